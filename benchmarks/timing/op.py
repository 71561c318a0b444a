"""Times the fixed fan-in op against torch's own layers, in one run: `python -m
fanin.benchmarks.timing.op`.

All contestants take turns, one call each per round, and what is stated is the median over rounds
and the median of the per-round ratios. With `--keep-memory` scores and gradients come from memory
that the process has kept (see `measuring.memory.keep_memory`), which shows the op alone; without,
malloc decides, as it does in anybody's program.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from fanin.benchmarks.measuring import memory
from fanin.benchmarks.measuring.machine import describe_machine
from fanin.benchmarks.records.files import try_writing, write_atomically
from fanin.benchmarks.records.printing import prepare_streams
from fanin.benchmarks.records.timing import OpTimes
from fanin.benchmarks.timing.options import (
    USUAL_INPUTS,
    ResultFile,
    Rounds,
    SeveralInputs,
    SizeOption,
)
from fanin.benchmarks.timing.rounds import rounds
from fanin.kernels.threads import thread_count
from fanin.reports.tables.op import op_text


def time_layers(
    inputs: int, labels: int = 131_072, fan_in: int = 32, batch: int = 32, count: int = 15
) -> dict[str, dict[str, list[float]]]:
    """Seconds per round of `forward` and `forward + backward` for fanin, torch's CSR product
    (forward alone; with int32 indices, and with int64, torch's default) and, where it fits into
    2 GiB, torch's dense layer. All float32."""
    import torch

    from fanin.backends.torch import FixedFanInLinear
    from fanin.backends.torch.autograd import csr_starts

    torch.manual_seed(0)
    layer = FixedFanInLinear(inputs, labels, fan_in)
    with torch.no_grad():
        layer.weights.normal_()
    features = torch.randn(batch, inputs)
    grad = torch.randn(batch, labels)
    rows = torch.arange(labels, dtype=torch.int32).repeat_interleave(fan_in)
    starts, sources = csr_starts(rows, labels), layer.indices.reshape(-1)

    def csr(integers: torch.dtype) -> torch.Tensor:
        return torch.sparse_csr_tensor(
            starts.to(integers),
            sources.to(integers),
            layer.weights.detach().reshape(-1),
            (labels, inputs),
            check_invariants=False,
        )

    narrow, wide = csr(torch.int32), csr(torch.int64)
    columns = features.t().contiguous()
    asking = features.clone().requires_grad_()

    def backward(module: torch.nn.Module) -> None:
        module.zero_grad(set_to_none=True)
        asking.grad = None
        module(asking).backward(grad)

    @torch.inference_mode()
    def forward(call: Callable[[], Any]) -> None:
        call()

    forwards: dict[str, Callable[[], Any]] = {
        "fanin": lambda: forward(lambda: layer(features)),
        "CSR int32": lambda: forward(lambda: torch.sparse.mm(narrow, columns)),
        "CSR int64": lambda: forward(lambda: torch.sparse.mm(wide, columns)),
    }
    both: dict[str, Callable[[], Any]] = {"fanin": lambda: backward(layer)}
    if labels * inputs * 4 <= 2**31:
        dense = torch.nn.Linear(inputs, labels)
        forwards["torch dense"] = lambda: forward(lambda: dense(features))
        both["torch dense"] = lambda: backward(dense)
    return {"forward": rounds(forwards, count), "forward + backward": rounds(both, count)}


def main(
    inputs: SeveralInputs = None,
    labels: SizeOption = 131_072,
    fan_in: SizeOption = 32,
    batch: SizeOption = 32,
    count: Rounds = 15,
    keep_memory: Annotated[
        bool, typer.Option("--keep-memory", help="Take no new memory from the system.")
    ] = False,
    out: ResultFile = None,
) -> None:
    """Time the op against torch's sparse and dense layers and print medians and ratios."""
    from fanin.backends.torch.device import TorchDevice

    if out:
        try_writing(out.parent)
    if keep_memory:
        memory.keep_memory()
    results = []
    for number in inputs or USUAL_INPUTS:
        started = datetime.now(UTC)
        timed = time_layers(number, labels, fan_in, batch, count)
        machine = describe_machine(TorchDevice("cpu", 0), thread_count(0))
        results.append(
            OpTimes(
                started=started,
                machine=machine,
                inputs=number,
                labels=labels,
                fan_in=fan_in,
                batch=batch,
                keeps_memory=keep_memory,
                seconds=timed,
            )
        )
    print(op_text(results))
    if out:
        dumped = [result.model_dump(mode="json") for result in results]
        write_atomically(out, json.dumps(dumped, indent=1) + "\n")


if __name__ == "__main__":
    prepare_streams()
    typer.run(main)
