"""How figures are written: every number of a table, a plot or a page is printed by one of these.

A figure that was not measured is None, and is printed as a dash (`GAP`), never as 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fanin.benchmarks.records.statistics import quartiles

GAP = "—"
# Where a whole row or part is missing.
NOT_RUN = "not run"


def number(value: float | None, decimals: int) -> str:
    """`1,234.50`."""
    return GAP if value is None else f"{value:,.{decimals}f}"


def spread(value: float | None, decimals: int) -> str:
    """`±0.12`; empty where there is no spread, since it stands behind a figure."""
    return "" if value is None else f"±{number(value, decimals)}"


def difference(value: float | None, decimals: int) -> str:
    """`+0.27` or `-0.27`, and never a negative zero."""
    return GAP if value is None else f"{value:+z.{decimals}f}"


def times(ratio: float | None, decimals: int) -> str:
    """`8.1 x`."""
    return GAP if ratio is None else f"{number(ratio, decimals)} x"


def percent(fraction: float | None, decimals: int = 0) -> str:
    """`38 %` for 0.38."""
    return GAP if fraction is None else f"{100 * fraction:.{decimals}f} %"


def scientific(value: float | None) -> str:
    """`1.2e-7`, or `1e-5` for a round figure."""
    if value is None:
        return GAP
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return "0" if value == 0 else f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def aligned_scientific(value: float | None) -> str:
    """`1.2e-07`, as wide for every value, so that figures stand below each other."""
    return GAP if value is None else f"{value:.1e}"


def milliseconds_with_quartiles(seconds: Sequence[float], decimals: int) -> str:
    """The median in milliseconds and the quartiles around it: `4.3 (4.0–4.8)`."""
    low, middle, high = (f"{1e3 * value:.{decimals}f}" for value in quartiles(seconds))
    return f"{middle} ({low}–{high})"


@dataclass(frozen=True)
class Scale:
    """How a whole column of figures is printed: in which unit, by what factor, how precisely."""

    unit: str
    factor: float
    decimals: int

    def text(self, value: float | None) -> str:
        return number(None if value is None else value * self.factor, self.decimals)

    def bounded(self, value: float) -> str:
        """The same where 0 means none: another value that rounds to 0 is `under 0.1`."""
        if value == 0:
            return "0"
        least = 10.0**-self.decimals
        is_shown = value * self.factor >= least / 2
        return self.text(value) if is_shown else f"under {number(least, self.decimals)}"

    def spread(self, value: float | None) -> str:
        return spread(None if value is None else value * self.factor, self.decimals)


# From the largest unit to the smallest.
_MEMORY = (Scale("GiB", 1.0, 2), Scale("MiB", 1024.0, 1), Scale("KiB", 1024.0**2, 1))
_DURATIONS = (
    Scale("h", 1.0, 1),
    Scale("min", 60.0, 1),
    Scale("s", 3600.0, 1),
    Scale("ms", 3.6e6, 1),
)
_LARGE_COUNTS = (Scale("M", 1e-6, 1), Scale("k", 1e-3, 1), Scale("", 1.0, 0))


def _fitting(
    values: Iterable[float | None], scales: Sequence[Scale], smallest: float = 0.1
) -> Scale:
    """The first scale in which every figure, but for 0, is at least `smallest`; else the last."""
    known = [abs(value) for value in values if value]
    least = min(known, default=smallest / scales[0].factor)
    fitting = (scale for scale in scales if least * scale.factor >= smallest)
    return next(fitting, scales[-1])


def memory_scale(gib: Iterable[float | None]) -> Scale:
    """GiB, or MiB or KiB where the smallest figure of the column is small."""
    return _fitting(gib, _MEMORY)


def duration_scale(hours: Iterable[float]) -> Scale:
    """Hours, or a smaller unit where the smallest figure of the column is small."""
    return _fitting(hours, _DURATIONS, smallest=1.0)


def large_count_scale(counts: Iterable[float]) -> Scale:
    """Millions, or thousands or ones where the smallest figure of the column is small."""
    return _fitting(counts, _LARGE_COUNTS, smallest=1.0)


def time_scale(seconds: Iterable[float | None]) -> Scale:
    """Seconds: whole ones where all are long, as the paper prints them."""
    known = [value for value in seconds if value is not None]
    shortest = min(known, default=0.0)
    return Scale("s", 1.0, 0 if shortest >= 100 else 1 if shortest >= 1 else 2)


def count_scale(counts: Iterable[float | None]) -> Scale:
    """Counts, or means of counts: without decimals where all are whole."""
    whole = all(value is None or value == int(value) for value in counts)
    return Scale("", 1.0, 0 if whole else 1)
