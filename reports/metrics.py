"""The figures of a report: what each is called, its unit and which direction is better.

Table heads, plot axes and the highlighted best values all come from here, so they agree. The keys
are the column names of `comparison.csv`; where the paper's tables have the same figure, the key is
the one of `published/*.csv`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One figure of a run. `better` is None where neither direction is a merit."""

    key: str
    label: str
    unit: str
    better: Literal["higher", "lower"] | None
    decimals: int
    meaning: str

    def head(self, unit: str | None = None) -> str:
        """The label with its unit, for a table head or an axis: `memory (GiB)`."""
        unit = self.unit if unit is None else unit
        return f"{self.label} ({unit})" if unit else self.label


_PRECISION = "share of the {k} highest scored labels that are right, {split} instances"

METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        *(
            Metric(
                key=f"{split}_p{k}",
                label=f"{split} P@{k}",
                unit="%",
                better="higher",
                decimals=2,
                meaning=_PRECISION.format(k=k, split=split),
            )
            for split in ("train", "test")
            for k in (1, 3, 5)
        ),
        Metric("memory_gib", "memory", "GiB", "lower", 2, "peak while training and evaluating"),
        Metric(
            "counted_gib",
            "parameters + optimiser state",
            "GiB",
            "lower",
            2,
            "bytes counted from the arrays, indices included",
        ),
        Metric("epochs", "epochs", "", None, 1, "until early stopping or the limit"),
        Metric(
            "seconds_per_epoch",
            "time per epoch",
            "s",
            "lower",
            1,
            "wall clock, training and validation",
        ),
        Metric(
            "train_seconds_per_epoch",
            "training per epoch",
            "s",
            "lower",
            1,
            "wall clock, without validation",
        ),
    )
}

# Shown in a table of their own beside precision, for the test instances.
RANKINGS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(f"test_{key}{k}", f"{label}@{k}", "%", "higher", 2, meaning)
        for key, label, meaning in (
            ("ndcg", "nDCG", "hits count less at lower ranks; over the best possible ranking"),
            ("psp", "PSP", "precision in which rare labels count more; over the best possible"),
            ("psndcg", "PSnDCG", "nDCG in which rare labels count more; over the best possible"),
        )
        for k in (1, 3, 5)
    )
}

# What a recipe costs: shown in a table of their own.
COSTS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            "choose_seconds",
            "choosing",
            "s",
            "lower",
            1,
            "wall clock of choosing connections, scale and biases by the data, before the "
            "training; a gap where nothing was to choose",
        ),
        Metric(
            "training_seconds",
            "training",
            "s",
            "lower",
            1,
            "wall clock of the whole training, with choosing, without validation",
        ),
        Metric(
            "seconds_to_99",
            "time to 99 %",
            "s",
            "lower",
            1,
            "the same, up to the end of the first epoch whose validation P@1 is at least 99 % of "
            "that of the best epoch; whole epochs only, for within one nothing is validated",
        ),
    )
}

FIGURES = {**METRICS, **RANKINGS, **COSTS}

# The best of these is marked in the comparison table; more marks would say less.
HIGHLIGHTED = ("test_p1", "memory_gib", "counted_gib")
