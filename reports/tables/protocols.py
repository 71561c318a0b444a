"""What was validated on, in words: every table says which protocol its runs followed."""

from __future__ import annotations

from collections.abc import Iterable

from fanin.reports.summary import Row

_LONG = {
    "paper": "validation set = test set, as in the paper (protocol “paper”): learning rate, early "
    "stopping and best weights are chosen by P@3 on the test set, so test precision is optimistic",
    "holdout": "validation set split off the training set (protocol “holdout”): learning rate, "
    "early stopping and best weights are chosen by P@3 on it, and the test set is not used during "
    "training",
}
# For a line of a terminal.
_BRIEF = {
    "paper": "validation set = test set (protocol paper)",
    "holdout": "validation on training instances held out (protocol holdout)",
}


def protocols(rows: Iterable[Row]) -> tuple[str, ...]:
    """One sentence for each protocol that the rows were made with."""
    return tuple(_LONG[name] for name in _names(rows))


def brief_protocols(rows: Iterable[Row]) -> str:
    """The same on one line."""
    return "; ".join(_BRIEF[name] for name in _names(rows))


def _names(rows: Iterable[Row]) -> list[str]:
    """Protocols of the rows; "paper" is the default, so only another one is in the variant."""
    return sorted(
        {"holdout" if "protocol=holdout" in row.setup.variant else "paper" for row in rows}
    )
