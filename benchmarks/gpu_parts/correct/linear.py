"""`fan_in_linear`: scores and gradients, as a user calls it and through the C interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fanin.backends.kinds import GroupedFanIn
from fanin.backends.setup import LayerSetup
from fanin.backends.torch import fan_in_linear
from fanin.backends.torch.ops import described, stream
from fanin.benchmarks.gpu_parts import reference
from fanin.benchmarks.gpu_parts.correct.bench import (
    Bench,
    Case,
    Outputs,
    connections_per_label,
    fixed,
    shape_of,
    sizes,
    tolerance,
    type_name,
)
from fanin.kernels import library, params

# A ragged batch does not fill its last group of 32 instances.
RAGGED = (1, 7, 31, 32, 33, 100, 128, 256)


@dataclass(frozen=True)
class Linear:
    """One call of `fan_in_linear` and its backward pass."""

    setup: LayerSetup
    batch: int
    dtype: torch.dtype = torch.float32
    index: torch.dtype = torch.uint16

    @property
    def key(self) -> str:
        names = f"{type_name(self.dtype)} {type_name(self.index)}"
        groups = f" groups of {self.group_size}" if self.group_size else ""
        return f"fan_in_linear {sizes(self.setup, self.batch)} {names}{groups}"

    @property
    def group_size(self) -> int:
        return self.setup.output.group_size

    @property
    def shape(self) -> dict[str, int]:
        return shape_of(self.setup, self.batch)

    def arrays(self, bench: Bench) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features, indices, weights, bias."""
        inputs, labels = self.setup.inputs, self.setup.labels
        shapes = self.setup.array_shapes()
        return (
            bench.normal(self.batch, inputs, dtype=self.dtype),
            bench.integers(0, inputs, *shapes["output.indices"]).to(self.index),
            bench.normal(*shapes["output.weights"], dtype=self.dtype),
            bench.normal(labels, dtype=self.dtype),
        )

    def grad(self, bench: Bench) -> Tensor:
        """A gradient of the scores."""
        return bench.normal(self.batch, self.setup.labels, dtype=self.dtype)

    def compare(self, arrays: Sequence[Tensor], grad: Tensor, results: Sequence[Tensor]) -> Outputs:
        """Scores, and the gradients of features, weights and bias, beside the reference's."""
        features, indices, weights, bias = arrays
        layer = reference.Layer(weights, bias, indices, group_size=self.group_size)
        expected = (layer.scores(features), *layer.gradients(grad, features))
        fan_in = connections_per_label(self.setup)
        # How many products each sums up.
        per_feature = 1 + self.setup.labels * fan_in / self.setup.inputs
        terms = (fan_in + 1, per_feature, self.batch, self.batch)
        names = ("scores", "grad_features", "grad_weights", "grad_bias")
        return {
            name: (result.detach(), wanted, tolerance(self.dtype, count))
            for name, result, wanted, count in zip(names, results, expected, terms, strict=True)
        }

    def __call__(self, bench: Bench) -> None:
        """As a user calls it, with autograd."""
        arrays = self.arrays(bench)
        features, indices, weights, bias = arrays
        leaves = [t.requires_grad_() for t in (features, weights, bias)]
        grad = self.grad(bench)
        bench.poison(grad)
        scores, seconds = bench.timed(
            lambda: fan_in_linear(features, indices, weights, bias, group_size=self.group_size)
        )
        bench.poison(*(t.detach() for t in leaves))
        _, more = bench.timed(lambda: scores.backward(grad))
        # Neither may keep the graph: the reference is large enough.
        plain = [t.detach() for t in arrays]
        results = [scores, *(t.grad for t in leaves if t.grad is not None)]
        outputs = self.compare(plain, grad, results)
        dtype = type_name(self.dtype)
        bench.check("fan_in_linear", outputs, self.shape, dtype, indices, seconds + more)


def through_c(case: Linear) -> Callable[[Bench], None]:
    """The same through the C interface, where outputs and workspace are NaN for certain."""

    def run(bench: Bench) -> None:
        arrays, grad = case.arrays(bench), case.grad(bench)
        features, indices, weights, bias = arrays
        results = [torch.full_like(t, torch.nan) for t in (grad, features, weights, bias)]
        scores, grad_features, grad_weights, grad_bias = (described(t) for t in results)

        forward = params.ForwardParams(
            features=described(features),
            indices=described(indices),
            weights=described(weights),
            bias=described(bias),
            scores=scores,
            group_size=case.group_size,
            stream=stream(features),
        )
        backward = params.BackwardParams(
            grad_scores=described(grad),
            features=described(features),
            indices=described(indices),
            weights=described(weights),
            grad_features=grad_features,
            grad_weights=grad_weights,
            grad_bias=grad_bias,
            group_size=case.group_size,
            stream=stream(features),
        )

        def call() -> None:
            library.call(forward, bench.poisoned_scratch)
            library.call(backward, bench.poisoned_scratch)

        _, seconds = bench.timed(call)
        outputs = case.compare(arrays, grad, results)
        dtype = type_name(case.dtype)
        bench.check("fan_in_linear (C)", outputs, case.shape, dtype, indices, seconds)

    return run


def bad_index(bench: Bench) -> None:
    """NaN beside a bad index on a GPU; a ValueError on a CPU."""
    case = Linear(fixed(50, 100, 5), 33)
    features, indices, weights, bias = case.arrays(bench)
    indices = indices.int()
    indices[70, 3] = 60
    indices = indices.to(torch.uint16)
    error, reason = 0.0, None
    try:
        scores = fan_in_linear(features, indices, weights, bias)
        if bench.device.type == "cpu":
            error, reason = float("inf"), "no ValueError for an index out of range"
        elif not scores[:, 70].isnan().all():
            error, reason = float("inf"), "scores beside a bad index are not NaN"
    except ValueError as raised:
        if bench.device.type != "cpu" or "out of range" not in str(raised):
            error, reason = float("inf"), f"ValueError: {raised}"
    bench.record("bad index", "scores", case.shape, "float32", "uint16", error, 0.0, None, reason)


def cases() -> Iterator[Case]:
    """Ragged batches in both types of values and of indices, and an index that is out of range."""
    for dtype in (torch.float32, torch.float64):
        for index in (torch.uint16, torch.uint32):
            for batch in RAGGED:
                case = Linear(fixed(97, 1_003, 7), batch, dtype, index)
                yield Case(case.key, case, small=batch == 33)
                yield Case(f"{case.key} (C)", through_c(case), small=batch == 7)
            for group_size, batch in ((12, 33), (64, 100)):
                grouped = LayerSetup(97, 1_003, GroupedFanIn(7, group_size))
                case = Linear(grouped, batch, dtype, index)
                yield Case(case.key, case, small=batch == 33)
                yield Case(f"{case.key} (C)", through_c(case))
    yield Case("bad index", bad_index)
