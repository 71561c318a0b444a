"""The processes that train one model together, as a run sees them."""

from __future__ import annotations

import os
from typing import Any, Final, Protocol

# What each of them runs.
RANK_MODULE = "fanin.benchmarks.harness.rank"


class Together(Protocol):
    """All of them have to call the same methods in the same order; one that ends makes the others
    fail. rank: the number of this one; size: how many there are. `backends.torch.sharded.ranks` has
    those of torch."""

    rank: int
    size: int

    def from_first(self, value: Any) -> Any:
        """What rank 0 has of something."""

    def gather_objects(self, value: Any) -> list[Any]:
        """What each rank has of something, in their order."""

    def check_equal(self, what: str, value: Any) -> None:
        """ValueError, on all ranks, where they do not all have an equal value."""


class Alone:
    """A process that trains a model by itself."""

    rank, size = 0, 1

    def from_first(self, value: Any) -> Any:
        return value

    def gather_objects(self, value: Any) -> list[Any]:
        return [value]

    def check_equal(self, what: str, value: Any) -> None:
        pass


ALONE: Final = Alone()


def launched_rank() -> tuple[int, int] | None:
    """The rank of this process and how many there are, where a launcher of torch started several;
    None elsewhere."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if rank.isdecimal() and size.isdecimal() and int(size) > 1:
        return int(rank), int(size)
    return None


def processes_here() -> int:
    """How many of the processes that this one is one of are on this machine. torch's launchers say
    so in the environment."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
