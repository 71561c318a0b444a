"""Shape profiles: what a few steps on random data of the real sizes tell of memory and time.

Times per epoch are extrapolated from medians of the raw times in the result files; there is no
precision, since nothing real was learnt.
"""

from __future__ import annotations

import statistics

from fanin.benchmarks.records.run import Extrapolation, RunResult
from fanin.reports.memory import memory_gib, memory_kind
from fanin.reports.summary import Figures

SYNTHETIC, EXTRAPOLATED = "synthetic", "extrapolated"


def profile_values(run: RunResult) -> Figures:
    """Metric key -> figure of one profile: memory_gib, and extrapolated seconds_per_epoch (with
    validation on the test set) and train_seconds_per_epoch; None where it failed."""
    values: Figures = dict.fromkeys(("memory_gib", "seconds_per_epoch", "train_seconds_per_epoch"))
    values["memory_gib"] = memory_gib(run.memory, memory_kind(run.machine))
    if run.extrapolation:
        train = train_seconds(run.extrapolation)
        values["train_seconds_per_epoch"] = train
        values["seconds_per_epoch"] = train + evaluation_seconds(run.extrapolation)
    return values


def train_seconds(measured: Extrapolation) -> float:
    """Seconds of training an epoch: its steps and its rewirings."""
    rewiring = (measured.rewire_seconds or 0.0) * measured.rewires_per_epoch
    return statistics.median(measured.step_seconds) * measured.steps_per_epoch + rewiring


def evaluation_seconds(measured: Extrapolation) -> float:
    """Seconds of ranking the labels of the whole test set once."""
    return statistics.median(measured.block_seconds) * measured.evaluation_blocks


def remark(run: RunResult) -> str:
    """What a reader has to know of a profile beside its figures."""
    if run.failure:
        reason = "does not fit" if run.failure.is_too_large else f"failed ({run.failure.kind})"
        return f"{reason}: {run.failure.message}"
    steps = len(run.extrapolation.step_seconds) if run.extrapolation else 0
    return f"{SYNTHETIC}; time {EXTRAPOLATED} from {steps} steps"
