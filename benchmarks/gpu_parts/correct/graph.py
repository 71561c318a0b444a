"""CUDA graphs: forward, backward and fused step captured once and replayed on new inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fanin.backends.optimizer import ADAM
from fanin.backends.torch import fan_in_linear
from fanin.backends.torch.training_ops import fused_step
from fanin.benchmarks.gpu_parts.correct.bench import (
    LEARNING_RATE,
    SOME_LABELS,
    Bench,
    Case,
    NeedsGpuError,
    Outputs,
    connections_per_label,
    fixed,
    tolerance,
)
from fanin.benchmarks.gpu_parts.correct.linear import Linear


def replay(bench: Bench) -> None:
    """What is replayed is what the same calls give at once."""
    if bench.device.type != "cuda":
        raise NeedsGpuError("CUDA graphs need a GPU")
    case = Linear(fixed(1_000, SOME_LABELS, 32), 33)
    setup, fan_in = case.setup, connections_per_label(case.setup)
    features, indices, weights, bias = case.arrays(bench)
    grad = case.grad(bench)
    positives = bench.positives(case.batch, setup.labels)
    first = [
        *(weights.clone(), torch.zeros_like(weights), torch.zeros_like(weights)),
        *(bias.clone(), torch.zeros_like(bias), torch.zeros_like(bias)),
    ]
    state = [t.clone() for t in first]

    def calls(trained: Sequence[Tensor]) -> tuple[Tensor, ...]:
        scores = fan_in_linear(features, indices, weights, bias)
        backward = torch.ops.fanin.fan_in_linear_backward
        grads = backward(grad, features, indices, weights, [True] * 3, 0)
        arguments = (*positives, setup.loss, ADAM.numbers, LEARNING_RATE, 1, 0, True)
        fused = fused_step(features, indices, None, None, *trained, *arguments)
        return (scores, *grads, *fused)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls(state)  # what is made at the first use is not for the graph
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        outputs = calls(state)
    features.copy_(bench.normal(*features.shape))
    grad.copy_(bench.normal(*grad.shape))
    for tensor, value in zip(state, first, strict=True):
        tensor.copy_(value)
    for tensor in outputs:
        tensor.fill_(torch.nan)
    _, seconds = bench.timed(captured.replay)
    again = [t.clone() for t in first]
    expected = calls(again)
    names = ("scores", "grad_features", "grad_weights", "grad_bias", "loss", "step grad_features")
    per_feature = setup.labels * fan_in / setup.inputs
    terms = (fan_in, per_feature, case.batch, case.batch, fan_in, per_feature)
    rooms = [tolerance(torch.float32, n) for n in terms]
    checked: Outputs = {
        name: (a, b, room) for name, a, b, room in zip(names, outputs, expected, rooms, strict=True)
    }
    checked["step weights"] = (state[0], again[0], rooms[2])
    bench.check("CUDA graph", checked, case.shape, "float32", indices, seconds)


def cases() -> Iterator[Case]:
    yield Case("CUDA graph", replay)
