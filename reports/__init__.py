"""Reports: result files in, tables, plots and one HTML page out.

Everything here reads the files that `fanin.benchmarks.records` describes, and `devices` those of
`fanin.benchmarks.gpu_parts.results` beside them, and nothing else; no framework is imported, so a
report can be made on a machine that could not have trained anything.
The way is one direction: `summary` (runs -> rows: means and spreads over repeats), then `tables`
and `plots` (rows -> what a reader sees), then `page` (all of it in one file). `metrics` and
`setups` say once how a figure and a setup are called, ordered and coloured.
"""

from fanin.reports.page import ReportError, write_report
from fanin.reports.shapes import shape_table
from fanin.reports.summary import comparison_table
from fanin.reports.tables import comparison_markdown, terminal_table

__all__ = [
    "ReportError",
    "comparison_markdown",
    "comparison_table",
    "shape_table",
    "terminal_table",
    "write_report",
]
