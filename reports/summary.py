"""From runs to rows: one row per data set, features, backend and setup, averaged over repeats.

Derived figures (percent, GiB, seconds per epoch, means, spreads) are made here and only here; the
result files hold what was measured. A figure that was not measured stays None all the way.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from fanin.benchmarks.records.base import AtK, DatasetInfo, Machine, Memory
from fanin.benchmarks.records.published import intermediate_label
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.statistics import GIB
from fanin.reports.metrics import FIGURES
from fanin.reports.setups import Setup, backend_order, dataset_label

ALLOCATOR_PEAK = "allocator peak"
RSS_ABOVE_BASELINE = "RSS above baseline"

# What makes two runs comparable in time and memory: processor, cores, GPU, runs on the GPU.
Hardware = tuple[str, int, str | None, bool]


@dataclass(frozen=True)
class Row:
    """Means over the finished repeats of one setup on one backend.

    values: metric key -> mean over the repeats that measured it, None where none did. spreads:
    metric key -> sample standard deviation, None for fewer than two measurements. n: finished
    repeats; 0 for a setup that was tried and only failed. machine: number of the hardware,
    from 1, None when n is 0.
    """

    dataset: str
    features: str
    backend: str
    setup: Setup
    machine: int | None
    memory_kind: str | None
    values: dict[str, float | None]
    spreads: dict[str, float | None]
    n: int

    @property
    def is_unresolved(self) -> bool:
        """Whether the measured peak is below the bytes of the arrays alone: the process found room
        in what its baseline already held, so the peak says less than the model needs."""
        peak, counted = self.values["memory_gib"], self.values["counted_gib"]
        return peak is not None and counted is not None and peak < counted


def on_gpu(machine: Machine) -> bool:
    """Whether the run's own device was a GPU; a machine can have one that a run left alone."""
    return "cpu" not in machine.device.lower()


def hardware(machine: Machine) -> Hardware:
    return machine.processor, machine.cores, machine.gpu, on_gpu(machine)


def memory_kind(machine: Machine | None) -> str | None:
    """Which memory figure of a run is the one to compare: the paper's on a GPU, RSS on a CPU."""
    if machine is None:
        return None
    return ALLOCATOR_PEAK if on_gpu(machine) else RSS_ABOVE_BASELINE


def memory_gib(memory: Memory | None, kind: str | None) -> float | None:
    """The figure of `memory_kind`, in GiB; None when it was not measured."""
    if memory is None or kind is None:
        return None
    if kind == ALLOCATOR_PEAK:
        peak = memory.allocator_peak_bytes
        return None if peak is None else peak / GIB
    peak, baseline = memory.host_peak_rss_bytes, memory.host_baseline_rss_bytes
    return None if peak is None or baseline is None else (peak - baseline) / GIB


def counted_gib(memory: Memory | None) -> float | None:
    if memory is None:
        return None
    return (memory.parameter_bytes + memory.optimizer_state_bytes) / GIB


def figures(run: RunResult) -> dict[str, float | None]:
    """Every metric of one finished run; None where the run did not measure it."""
    found: dict[str, float | None] = dict.fromkeys(FIGURES)
    for split, precision in (("train", run.train), ("test", run.test)):
        if precision is not None:
            found[f"{split}_p1"] = 100 * precision.at_1
            found[f"{split}_p3"] = 100 * precision.at_3
            found[f"{split}_p5"] = 100 * precision.at_5
    if run.test_ranking is not None:
        for metric in ("ndcg", "psp", "psndcg"):
            at: AtK = getattr(run.test_ranking, metric)
            found[f"test_{metric}1"] = 100 * at.at_1
            found[f"test_{metric}3"] = 100 * at.at_3
            found[f"test_{metric}5"] = 100 * at.at_5
    found["memory_gib"] = memory_gib(run.memory, memory_kind(run.machine))
    found["counted_gib"] = counted_gib(run.memory)
    epochs = len(run.history)
    if epochs:
        found["epochs"] = float(epochs)
    if epochs and run.timing is not None:
        train, evaluate = run.timing.train_seconds, run.timing.evaluate_seconds
        # The paper's time per epoch is that of Keras' fit, which includes the validation.
        found["seconds_per_epoch"] = (train + evaluate) / epochs
        found["train_seconds_per_epoch"] = train / epochs
    return found


def known_datasets(runs: Iterable[RunResult]) -> dict[tuple[str, str], DatasetInfo]:
    """(data set, features) -> its description, from any run that got as far as loading it."""
    known: dict[tuple[str, str], DatasetInfo] = {}
    for run in runs:
        if run.dataset is not None:
            known.setdefault((run.task.dataset, run.task.features), run.dataset)
    return known


def number_hardware(machines: Iterable[Machine | None]) -> dict[Hardware, int]:
    """Hardware -> its number from 1, in the order of appearance."""
    seen = dict.fromkeys(hardware(machine) for machine in machines if machine is not None)
    return {kind: number for number, kind in enumerate(seen, start=1)}


def is_finished(run: RunResult) -> bool:
    return run.status == "finished"


def summarise(runs: Sequence[RunResult]) -> list[Row]:
    """One row per data set, features, backend, setup and hardware, in the order of the tables.

    Repeats made on different hardware are not averaged. A setup whose every run failed gets a row
    of gaps with n = 0, so that it is missed.
    """
    datasets = known_datasets(runs)
    numbers = number_hardware(run.machine for run in runs if is_finished(run))
    groups: dict[tuple[str, str, str, str], list[RunResult]] = defaultdict(list)
    for run in runs:
        groups[run.task.dataset, run.task.features, run.backend, run.task.slug].append(run)

    rows = []
    for (name, features, backend, _), group in groups.items():
        info = datasets.get((name, features))
        alike: dict[int | None, list[RunResult]] = defaultdict(list)
        for run in group:
            if is_finished(run):
                alike[numbers[hardware(run.machine)] if run.machine else None].append(run)
        for machine, repeats in alike.items() or [(None, [])]:
            values, spreads = average([figures(run) for run in repeats])
            rows.append(
                Row(
                    dataset=dataset_label(name, info.synthetic if info else False),
                    features=features,
                    backend=backend,
                    setup=Setup.of(group[0].task, info.inputs if info else None),
                    machine=machine,
                    memory_kind=memory_kind(repeats[0].machine) if repeats else None,
                    values=values,
                    spreads=spreads,
                    n=len(repeats),
                )
            )
    return sorted(
        rows,
        key=lambda row: (
            row.dataset,
            row.features,
            backend_order(row.backend),
            row.setup.order,
            row.machine or 0,
        ),
    )


def average(
    measured: list[dict[str, float | None]],
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Means and sample standard deviations of the `figures` of repeats; gaps where none has one."""
    values: dict[str, float | None] = {}
    spreads: dict[str, float | None] = {}
    for key in FIGURES:
        there = [value for each in measured if (value := each[key]) is not None]
        values[key] = statistics.fmean(there) if there else None
        spreads[key] = statistics.stdev(there) if len(there) > 1 else None
    return values, spreads


def comparison_table(runs: Iterable[RunResult]) -> pd.DataFrame:
    """The published columns for every setup that was run, and what the paper leaves out.

    Columns: dataset, features, backend, setup, connectivity, intermediate (`16k` for 16384),
    variant (departures from the default hyper-parameters), the keys of `FIGURES` (percent, GiB,
    seconds; means over the n finished repeats), memory_kind, machine, n, and `<metric>_std`, the
    sample standard deviation over repeats. What was not measured or not run is missing (NaN),
    never 0; failed setups have n = 0.
    """
    return frame_of(summarise(list(runs)))


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows as a pandas table; see `comparison_table` for its columns."""
    plain = ("dataset", "features", "backend", "setup", "connectivity", "intermediate", "variant")
    columns = (*plain, *FIGURES, "memory_kind", "machine", "n", *(f"{k}_std" for k in FIGURES))
    records = [
        {
            "dataset": row.dataset,
            "features": row.features,
            "backend": row.backend,
            "setup": row.setup.kind,
            "connectivity": row.setup.connectivity,
            "intermediate": (
                intermediate_label(row.setup.intermediate) if row.setup.intermediate else None
            ),
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
    for column in ("connectivity", "machine", "n"):
        frame[column] = frame[column].astype("Int64")
    return frame
