"""The command as one of several processes that `torchrun` started, perhaps on several machines.

The command of rank 0 does all that a command does. Before each run it tells the others, through
torch's store, what the run is asked to do, and every command starts a process of its own for it.
The others do nothing else.
"""

from __future__ import annotations

import os
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from fanin.benchmarks.harness.request import Request
from fanin.benchmarks.harness.together import RANK_MODULE
from fanin.benchmarks.measuring.process import Child

# What stands in place of a request when there are no more.
_END = "end"
# How long another rank may take to come, or its run to end.
_PATIENCE = timedelta(days=30)


def store(is_master: bool = False) -> TCPStore:
    """torch's store for what processes tell each other before they are a group. is_master: whether
    this process keeps it, if no agent of torch does. OSError and torch's errors where it cannot be
    reached."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent_has_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(address, port, is_master=is_master and not agent_has_it, wait_for_workers=False)


def store_of_run(key: str) -> PrefixStore:
    """The same for the processes of one run alone, which each find it under a key of the run."""
    return PrefixStore(key, store())


class Runs:
    """The runs that rank 0 tells of, one after the other. An agent of torch that starts all
    commands again keeps its store, so what they say has the number of the start."""

    def __init__(self, rank: int) -> None:
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._prefix = f"fanin-{start}"
        self._store = PrefixStore(self._prefix, store(is_master=rank == 0))
        self._number = 0

    def _next(self) -> str:
        self._number += 1
        return f"run-{self._number}"

    def tell(self, request: Request) -> tuple[str, ...]:
        """Have the others take part in a run; arguments of the process of rank 0."""
        key = self._next()
        self._store.set(key, request.model_dump_json())
        return "launcher", f"{self._prefix}/{key}"

    def end(self) -> None:
        """Let the others end."""
        self._store.set(self._next(), _END)

    def follow(self) -> None:
        """Take part in what rank 0 tells of, until it ends. What became of a run is known there."""
        while True:
            key = self._next()
            self._store.wait([key], _PATIENCE)
            text = self._store.get(key).decode()
            if text == _END:
                return
            request = Request.model_validate_json(text)
            with Child(RANK_MODULE, "launcher", f"{self._prefix}/{key}") as child:
                child.send(request.model_dump(mode="json"))
                for _ in child.messages():
                    pass
                child.process.wait()
