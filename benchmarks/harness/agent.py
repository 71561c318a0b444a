"""Runs one request with several processes of this machine, by torch's elastic agent.

Where a process is killed, the agent ends the others, and all start again and go on from the last
checkpoint; where one fails by itself, the run has failed.
"""

from __future__ import annotations

import os
import sys
import uuid

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fanin.benchmarks.harness.request import RESTARTS, Request, begun, failed, with_options
from fanin.benchmarks.harness.together import RANK_MODULE
from fanin.benchmarks.measuring.process import Parent, how_ended
from fanin.benchmarks.records.files import written_at
from fanin.benchmarks.records.printing import log
from fanin.benchmarks.records.store import write_result
from fanin.kernels.threads import thread_count


def launch(request: Request, pipe: str) -> None:
    """Run the processes until all have ended; ChildFailedError as soon as one has failed, and the
    others are gone. pipe: where rank 0 writes its events to."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=request.options.processes,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # they print into this one's log
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        local_addr="localhost",
        max_restarts=0,  # not for what would fail again: `main` tells these apart
        shutdown_timeout=5,
    )
    ranks = elastic_launch(config, sys.executable)
    ranks("-P", "-m", RANK_MODULE, "agent", pipe, request.model_dump_json())


def lost(error: ChildFailedError) -> str:
    """Which process was lost, and how it ended."""
    failures = sorted(error.failures.items(), key=lambda each: (each[1].exitcode >= 0, each[0]))
    rank, failure = failures[0]
    return f"the process of rank {rank} ended with {how_ended(failure.exitcode)}"


def main(parent: Parent, pipe: str) -> int:
    """Do the run that the parent requests; the exit code."""
    request = Request.model_validate(parent.receive())
    result, before = begun(request), written_at(request.path)
    threads = thread_count(request.options.threads)
    request = with_options(request, threads=threads)
    message = ""
    for _ in range(1 + RESTARTS):
        if message:
            parent.send({"event": "note", "text": f"{message}; going on from its checkpoint"})
        try:
            launch(request, pipe)
            return 0
        except ChildFailedError as error:
            if written_at(request.path) != before:  # it tells why
                return 1
            message = lost(error)
            log(message)
        request = with_options(request, force=False)  # which would remove the checkpoint
    text = f"{message}, and {RESTARTS} times before that one did; start the command again, and it "
    text += "goes on from its checkpoint"
    write_result(request.path, failed(result, "ProcessDied", text, ""))
    return 1


if __name__ == "__main__":
    sys.exit(main(Parent(int(sys.argv[1])), f"/proc/{os.getpid()}/fd/{sys.argv[1]}"))
