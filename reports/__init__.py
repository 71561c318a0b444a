"""Reports: result files in, tables, plots and pages out.

Everything here reads the files that `fanin.benchmarks.records` describes, and nothing else; no
framework is imported, so a report can be made on a machine that could not have trained anything.
The way is one direction: `summary` (runs -> rows: means and spreads over repeats), then `tables`
and `plots` (rows -> what a reader sees), then `pages` (all of it in one file). `metrics`, `setups`
and `format` define once how a figure and a setup are called, ordered, coloured and printed.
"""
