"""The tables as pandas frames, which are written as CSV: `comparison.csv` and `paper.csv`.

pandas takes long to import, so it is imported where a frame is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fanin.benchmarks.records.run import RunResult
from fanin.reports.metrics import FIGURES
from fanin.reports.paper import DENSE_LAYERS, PUBLISHED_FIGURES, RATIOS, PaperRow, saving
from fanin.reports.summary import Row, summarise

if TYPE_CHECKING:
    import pandas as pd


def comparison_frame(runs: Iterable[RunResult]) -> pd.DataFrame:
    """The published columns for every setup that was run, and what the paper leaves out.

    Columns: dataset, features, backend, setup, connectivity, group_size, head (`Dense 10 %`, say),
    intermediate (`16k` for 16384), variant (departures from the default hyper-parameters), the keys
    of `FIGURES` (percent, GiB, seconds; means over the n finished repeats), memory_kind, machine,
    n, and `<metric>_std`, the sample standard deviation over repeats. What was not measured or not
    run is missing (NaN), never 0; failed setups have n = 0.
    """
    return frame_of(summarise(list(runs)))


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows as a pandas table; see `comparison_frame` for its columns."""
    import pandas as pd

    sizes = ("connectivity", "group_size", "head", "intermediate")
    plain = ("dataset", "features", "backend", "setup", *sizes, "variant")
    columns = (*plain, *FIGURES, "memory_kind", "machine", "n", *(f"{k}_std" for k in FIGURES))
    records = [
        {
            "dataset": row.dataset,
            "features": row.features,
            "backend": row.backend,
            "setup": row.setup.kind,
            "connectivity": row.setup.connectivity,
            "group_size": row.setup.group_size,
            "head": row.setup.head,
            "intermediate": row.setup.intermediate_label,
            "variant": ", ".join(row.setup.variant) or None,
            **row.values,
            "memory_kind": row.memory_kind,
            "machine": row.machine,
            "n": row.n,
            **{f"{key}_std": spread for key, spread in row.spreads.items()},
        }
        for row in rows
    ]
    frame = pd.DataFrame.from_records(records, columns=list(columns))
    numbers = [*FIGURES, *(f"{key}_std" for key in FIGURES)]
    frame[numbers] = frame[numbers].astype("float64")
    # Whole numbers with gaps: pandas' own integer would turn them into 32.0.
    for column in ("connectivity", "group_size", "machine", "n"):
        frame[column] = frame[column].astype("Int64")
    return frame


def paper_frame(rows: Iterable[PaperRow]) -> pd.DataFrame:
    """Published rows beside ours as a pandas table, one line per backend, execution and machine.

    Columns: dataset, features, setup, connectivity, intermediate, backend, execution, n, machine,
    memory_kind, marks; per published figure `<metric>_paper`, `_ours`, `_std` and `_difference`
    (ours minus the paper's) or for memory and time `_ratio` (ours / the paper's);
    `train_seconds_per_epoch_ours` (the paper has none); and `saving_published_dense_<whose>` and
    `saving_fused_dense_<whose>`, how many times less memory than the published dense layer and than
    4 x a dense layer's weights. What was not measured or not run is missing (NaN), n is then 0.
    """
    import pandas as pd

    frame = pd.DataFrame.from_records([_paper_record(row) for row in rows])
    for column in frame.columns:
        if column.endswith(_PAPER_NUMBERS):
            frame[column] = frame[column].astype("float64")
    return frame


_PAPER_NUMBERS = ("_paper", "_ours", "_std", "_difference", "_ratio")


def _paper_record(row: PaperRow) -> dict[str, object]:
    setup, task, ours = row.setup, row.published.task, row.ours
    record: dict[str, object] = {
        "dataset": task.dataset,
        "features": task.features,
        "setup": setup.kind,
        "connectivity": setup.connectivity,
        "intermediate": setup.intermediate_label,
        "backend": ours.backend if ours else None,
        "execution": ours.execution if ours else None,
        "n": ours.n if ours else 0,
        "machine": ours.machine if ours else None,
        "memory_kind": ours.memory_kind if ours else None,
        "marks": "; ".join(ours.marks) or None if ours else None,
    }
    for key in PUBLISHED_FIGURES:
        record[f"{key}_paper"] = row.published.values[key]
        record[f"{key}_ours"] = ours.value(key) if ours else None
        record[f"{key}_std"] = ours.spread(key) if ours else None
        record[f"{key}_{'ratio' if key in RATIOS else 'difference'}"] = row.compared(key)
    training = "train_seconds_per_epoch"
    record[f"{training}_ours"] = ours.value(training) if ours else None
    for dense in DENSE_LAYERS:
        record[f"saving_{dense}_dense_paper"] = saving(row, dense, "paper")
        record[f"saving_{dense}_dense_ours"] = saving(row, dense, "ours")
    return record
