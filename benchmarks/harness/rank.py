"""One of several processes that do one run together: `child` with what torch's ranks need.

`agent` starts them on one machine; under `torchrun` the command itself does so, in each of its
processes. Rank 0 tells the parent how far the run is, and writes what comes of it. Any rank writes
why it failed. One that only lost another one writes nothing: whoever started them finds out which.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from fanin.backends.torch.sharded.ranks import Ranks
from fanin.benchmarks.harness.child import Events, main, run
from fanin.benchmarks.harness.launched import store_of_run
from fanin.benchmarks.harness.request import Request
from fanin.benchmarks.measuring import machine
from fanin.benchmarks.measuring.process import Parent
from fanin.benchmarks.records.printing import log
from fanin.benchmarks.records.run import RunResult

# The exit code of a process that lost another one.
LOST = 75


class AgentsParent(Parent):
    """The process that started this one's agent: events go through the agent's own pipe to it, and
    the end of standard input, which is the agent's, tells that it is gone. The agent's request is
    an argument."""

    def __init__(self, pipe: str, request: str) -> None:
        super().__init__(os.open(pipe, os.O_WRONLY))
        self._request = Request.model_validate_json(request)

    def receive(self, patience: float | None = None) -> Any:
        return self._request.model_dump(mode="json")


def is_of_another(error: BaseException) -> bool:
    """Whether an error only says that another rank is gone. gloo has no type of error for it."""
    is_gloos = type(error) is RuntimeError and "gloo" in str(error)
    return is_gloos or isinstance(error, dist.DistError)


@contextmanager
def process_group(device: str, key: str | None) -> Iterator[Ranks]:
    """The ranks that the environment tells of: gloo on CPUs, NCCL for what lies on GPUs. key: of
    the run in the launcher's store; None for a store of this run alone."""
    backend = "gloo"
    if not machine.runs_on_cpu(device) and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    if key is None:
        dist.init_process_group(backend)
    else:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, store=store_of_run(key), rank=rank, world_size=size)
    try:
        yield Ranks()
    finally:
        dist.destroy_process_group()


def run_of_rank(key: str | None, request: Request, events: Events, result: RunResult) -> None:
    """`child.run` together with the other ranks; key: see `process_group`."""
    try:
        with process_group(request.options.device, key) as ranks:
            run(request, events if ranks.rank == 0 else Events(lambda event: None), result, ranks)
    except Exception as error:
        if not is_of_another(error):
            raise
        log(f"lost another rank: {error}")
        sys.exit(LOST)


if __name__ == "__main__":
    starter, first, second = sys.argv[1:]
    if starter == "agent":  # its pipe, and the request
        asks: Parent = AgentsParent(first, second)
        work = partial(run_of_rank, None)
    else:  # the key of the run, and the parent's pipe
        asks = Parent(int(second))
        work = partial(run_of_rank, first)
    sys.exit(main(asks, work, rank=int(os.environ["RANK"])))
