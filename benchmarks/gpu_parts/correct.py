"""Part `correct`: every op against float64 on fresh random inputs, with outputs poisoned by NaN.

A case calls one op on one shape and checks each of its outputs. Sizes are those of the published
tables' tasks; a dry run takes the same sources and fan-ins with few labels.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fanin.backends.arrays import plan_rewiring
from fanin.backends.torch import fan_in_linear
from fanin.backends.torch.fused import dense_relu, dense_relu_update, fused_step, rewire, top_k
from fanin.backends.torch.layers import index_type
from fanin.backends.torch.ops import described, stream
from fanin.benchmarks.gpu_parts import part, reference
from fanin.benchmarks.gpu_parts.results import Check, CorrectRow, Row
from fanin.datasets.catalogue import FEATURES, PUBLISHED
from fanin.kernels import library, params

TASKS = Path(__file__).resolve().parents[1] / "tasks"
RAGGED = (1, 7, 31, 32, 33, 100, 128, 256)
RATE = 0.01
_STEPS = 3
# Labels where the shape is published but not the number of labels: some tiles and a bit.
_SOME_LABELS, _FEW_LABELS = 4_099, 261


def tolerance(dtype: torch.dtype, terms: float) -> float:
    """How far from float64 a sum of so many products may be, relative to the largest result.

    Each addition rounds by eps / 2 of the partial sum. Signs are random, so both the sum and its
    error grow like sqrt(terms), the error by eps * sqrt(terms) / 3 of a typical sum at most (all
    added one after the other). The largest result is some times a typical one, and so is the
    largest error. 4 leaves room, and still finds a TF32 product (eps 2^-11) or a term left out.
    """
    return float(4 * torch.finfo(dtype).eps * (1 + terms**0.5))


class Bench:
    """Fresh random inputs on a device, and the checks of one case's outputs."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)
        self.seed = seed
        self.checks: list[Check] = []

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=self.device, generator=self._generator)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, device=self.device, generator=self._generator)

    def positives(self, batch: int, labels: int) -> tuple[Tensor, Tensor]:
        """Instance and label of five positives an instance, each pair once."""
        flat = torch.unique(
            self.integers(0, batch, 5 * batch) * labels + self.integers(0, labels, 5 * batch)
        )
        return (flat // labels).int(), flat % labels

    def poison(self, *tensors: Tensor) -> None:
        """Leave NaN in the memory that outputs like these will most likely get."""
        for like in tensors:
            # Two of each: an op may allocate something else first.
            _ = [torch.full_like(like, torch.nan) for _ in range(2)]

    def timed(self, call: Callable[[], Any]) -> tuple[Any, float]:
        """What the call gives, and its seconds."""
        self._wait()
        start = time.perf_counter()
        result = call()
        self._wait()
        return result, time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def check(
        self,
        op: str,
        outputs: dict[str, tuple[Tensor, Tensor, float]],
        shape: dict[str, int],
        dtype: str,
        index: Tensor | None,
        seconds: float,
    ) -> None:
        """Compare each output (got, expected, tolerance)."""
        name = None if index is None else str(index.dtype).removeprefix("torch.")
        for output, (got, expected, room) in outputs.items():
            self.record(op, output, shape, dtype, name, relative(got, expected), room, seconds)

    def record(
        self,
        op: str,
        output: str,
        shape: dict[str, int],
        dtype: str,
        index: str | None,
        error: float,
        room: float,
        seconds: float | None,
        reason: str | None = None,
    ) -> None:
        passed = error <= room
        if not np.isfinite(error):
            reason = reason or "NaN or infinity, or another shape"
        number = float(error) if np.isfinite(error) else None
        self.checks.append(
            Check(op, output, shape, dtype, index, number, room, passed, seconds, reason)
        )


def relative(got: Tensor, expected: Tensor) -> float:
    """max |got - expected| / max |expected|; NaN where either has one or the shapes differ."""
    if got.shape != expected.shape:
        return float("nan")
    if not expected.numel():
        return 0.0
    largest = expected.double().abs().max().clamp(min=1e-300)
    return float((got.double() - expected.double()).abs().max() / largest)


def adam_of(before: Tensor, m: Tensor, v: Tensor, step: int) -> Tensor:
    """What a step makes of the values before it, given the moments that it left. Where a gradient
    all but cancels, Adam blows its rounding up to a step of full size; so moments are held to the
    reference, and the values to the moments."""
    values = before.clone()
    reference.adam_update(values, m.double(), v.double(), step, RATE)
    return values


@dataclass(frozen=True)
class Case:
    """What `run` records in a bench. small: also run under the sanitizer."""

    key: str
    run: Callable[[Bench], None]
    small: bool = False


# ---- fan_in_linear -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear:
    """One call of `fan_in_linear` and its backward pass."""

    batch: int
    inputs: int
    labels: int
    fan_in: int
    dtype: torch.dtype = torch.float32
    index: torch.dtype = torch.uint16

    @property
    def shape(self) -> dict[str, int]:
        return {
            "batch": self.batch,
            "inputs": self.inputs,
            "labels": self.labels,
            "fan_in": self.fan_in,
        }

    @property
    def key(self) -> str:
        names = (str(t).removeprefix("torch.") for t in (self.dtype, self.index))
        sizes = f"{self.labels}x{self.inputs} fan-in {self.fan_in} batch {self.batch}"
        return f"fan_in_linear {sizes} {' '.join(names)}"

    def arrays(self, bench: Bench) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features, indices, weights, bias."""
        shape = (self.labels, self.fan_in)
        return (
            bench.normal(self.batch, self.inputs, dtype=self.dtype),
            bench.integers(0, self.inputs, *shape).to(self.index),
            bench.normal(*shape, dtype=self.dtype),
            bench.normal(self.labels, dtype=self.dtype),
        )

    def rooms(self) -> tuple[float, float, float, float]:
        """Tolerances of scores, and of the gradients of features, weights and bias."""
        per_feature = 1 + self.labels * self.fan_in / self.inputs
        terms = (self.fan_in + 1, per_feature, self.batch, self.batch)
        scores, features, weights, bias = (tolerance(self.dtype, n) for n in terms)
        return scores, features, weights, bias

    def compare(
        self, bench: Bench, op: str, arrays: Sequence[Tensor], grad: Tensor, got: Sequence[Tensor]
    ) -> dict[str, tuple[Tensor, Tensor, float]]:
        features, indices, weights, bias = arrays
        layer = reference.Layer(weights, bias, indices)
        expected = (layer.scores(features), *layer.gradients(grad, features))
        names = ("scores", "grad_features", "grad_weights", "grad_bias")
        together = zip(names, got, expected, self.rooms(), strict=True)
        return {name: (a.detach(), b, room) for name, a, b, room in together}

    def __call__(self, bench: Bench) -> None:
        """As a user calls it, with autograd."""
        arrays = self.arrays(bench)
        features, indices, weights, bias = arrays
        leaves = [t.requires_grad_() for t in (features, weights, bias)]
        grad = bench.normal(self.batch, self.labels, dtype=self.dtype)
        bench.poison(grad)
        scores, seconds = bench.timed(lambda: fan_in_linear(features, indices, weights, bias))
        bench.poison(*(t.detach() for t in leaves))
        _, more = bench.timed(lambda: scores.backward(grad))
        # Neither may keep the graph: the reference is large enough.
        plain = [t.detach() for t in arrays]
        found = [scores, *(t.grad for t in leaves if t.grad is not None)]
        outputs = self.compare(bench, "fan_in_linear", plain, grad, found)
        bench.check(
            "fan_in_linear", outputs, self.shape, _name(self.dtype), indices, seconds + more
        )


def poisoned(case: Linear) -> Callable[[Bench], None]:
    """The same through the C interface, where outputs and workspace are NaN for certain."""

    def run(bench: Bench) -> None:
        features, indices, weights, bias = arrays = case.arrays(bench)
        grad = bench.normal(case.batch, case.labels, dtype=case.dtype)
        got = [torch.full_like(t, torch.nan) for t in (grad, features, weights, bias)]

        def allocate(size: int) -> tuple[int, Tensor]:
            memory = torch.full((size,), 255, dtype=torch.uint8, device=bench.device)
            return memory.data_ptr(), memory

        forward = params.ForwardParams(
            features=described(features),
            indices=described(indices),
            weights=described(weights),
            bias=described(bias),
            scores=described(got[0]),
            stream=stream(features),
        )
        backward = params.BackwardParams(
            grad_scores=described(grad),
            features=described(features),
            indices=described(indices),
            weights=described(weights),
            grad_features=described(got[1]),
            grad_weights=described(got[2]),
            grad_bias=described(got[3]),
            stream=stream(features),
        )

        def call() -> None:
            library.call(forward, allocate)
            library.call(backward, allocate)

        _, seconds = bench.timed(call)
        outputs = case.compare(bench, "fan_in_linear", arrays, grad, got)
        bench.check("fan_in_linear (C)", outputs, case.shape, _name(case.dtype), indices, seconds)

    return run


def bad_index(bench: Bench) -> None:
    """NaN beside a bad index on a GPU; a ValueError on a CPU."""
    case = Linear(33, 50, 100, 5)
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
    except ValueError as found:
        if bench.device.type != "cpu" or "out of range" not in str(found):
            error, reason = float("inf"), f"ValueError: {found}"
    bench.record("bad index", "scores", case.shape, "float32", "uint16", error, 0.0, None, reason)


# ---- the fused step ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Steps of `fused_step`. kind: fixed, unstructured or dense (then fan_in is inputs)."""

    kind: str
    batch: int
    inputs: int
    labels: int
    fan_in: int
    index: torch.dtype = torch.uint16
    loss: str = "squared_hinge"
    weights: torch.dtype = torch.float32
    moments: torch.dtype = torch.float32
    steps: int = _STEPS

    @property
    def shape(self) -> dict[str, int]:
        return {**Linear(self.batch, self.inputs, self.labels, self.fan_in).shape}

    @property
    def dtype(self) -> str:
        names = dict.fromkeys(_name(t) for t in (self.weights, self.moments))
        if list(names) == ["float32"]:
            return "float32"
        return f"{_name(self.weights)} weights, {_name(self.moments)} moments"

    @property
    def key(self) -> str:
        index = "" if self.kind == "dense" else f" {_name(self.index)}"
        sizes = f"{self.labels}x{self.inputs} fan-in {self.fan_in} batch {self.batch}"
        return f"fused_step {self.kind} {sizes} {self.loss} {self.dtype}{index}"

    def layer(self, bench: Bench) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Weights in float32, indices, starts."""
        if self.kind == "dense":
            return bench.normal(self.labels, self.inputs), None, None
        if self.kind == "fixed":
            shape = (self.labels, self.fan_in)
            indices = bench.integers(0, self.inputs, *shape).to(self.index)
            return bench.normal(*shape), indices, None
        count = self.labels * self.fan_in
        of = bench.integers(0, self.labels, count).sort().values
        bounds = torch.arange(self.labels + 1, device=bench.device)
        starts = torch.searchsorted(of, bounds).int()
        return bench.normal(count), bench.integers(0, self.inputs, count).to(self.index), starts

    def __call__(self, bench: Bench) -> None:
        values, indices, starts = self.layer(bench)
        weights = values.to(self.weights)
        m, v = (torch.zeros_like(values, dtype=self.moments) for _ in range(2))
        bias = bench.normal(self.labels)
        bias_m, bias_v = torch.zeros_like(bias), torch.zeros_like(bias)
        layer = reference.Layer(weights, bias, indices, starts)
        narrow = torch.bfloat16 in (self.weights, self.moments)
        seconds, outputs = 0.0, {}
        # Scores, then sums over the batch, and both once more for each step.
        terms = (self.inputs if self.kind == "dense" else self.fan_in) + self.batch
        # Rounding of bfloat16 would go on into the next step; one is all that can be compared.
        steps = 1 if narrow else self.steps
        for step in range(1, steps + 1):
            features = bench.normal(self.batch, self.inputs)
            rows, labels = bench.positives(self.batch, self.labels)
            bench.poison(features, bias[:1])
            arrays = (weights, m, v, bias, bias_m, bias_v)

            def call(
                step: int = step,
                features: Tensor = features,
                rows: Tensor = rows,
                labels: Tensor = labels,
                arrays: tuple[Tensor, ...] = arrays,
            ) -> tuple[Tensor, Tensor]:
                return fused_step(
                    features, indices, starts, None, *arrays, rows, labels, self.loss, RATE, step,
                    bench.seed, True,
                )  # fmt: skip

            before = weights.double()
            (loss, grad), spent = bench.timed(call)
            seconds += spent
            expected, expected_grad = layer.step(features, rows, labels, self.loss, RATE)
            room = step * tolerance(torch.float32, terms)
            per_feature = 1 + self.labels * self.fan_in / self.inputs
            of_features = room + step * tolerance(torch.float32, per_feature)
            outputs[f"loss {step}"] = (loss, expected, room)
            outputs[f"grad_features {step}"] = (grad, expected_grad, of_features)
        room = steps * tolerance(torch.float32, terms)
        outputs["bias"] = (bias, layer.bias, room)
        outputs["bias_m"] = (bias_m, layer.bias_m, room)
        # From the moments as they are now; what they were before they were rounded to bfloat16 is
        # known to the kernel alone.
        updated = (adam_of(before, m, v, steps), tolerance(torch.float32, 1))
        if self.moments == torch.bfloat16:
            updated = (layer.weights, room)
        exact = {
            "weights": (weights, *updated),
            "weights_m": (m, layer.m, room),
            "weights_v": (v, layer.v, 2 * room),  # of squares
        }
        outputs |= {k: o for k, o in exact.items() if o[0].dtype == torch.float32}
        bench.check("fused_step", outputs, self.shape, self.dtype, indices, seconds)
        for name, (got, wanted, _) in exact.items():
            if got.dtype == torch.bfloat16:
                self._rounded(bench, name, got, wanted)

    def _rounded(self, bench: Bench, name: str, got: Tensor, expected: Tensor) -> None:
        """bfloat16 has 8 bits: a value rounded to either neighbour is within 2^-7 of it, and
        rounded at random without drift. Only the larger half: in what cancelled to nearly nothing
        float32 has an error of its own."""
        large = expected.abs() > expected.abs().median()
        error = (got.double() - expected)[large] / expected[large].abs()
        # The mean of n errors of up to 2^-7, five standard deviations of it.
        drift = 5 * 2.0**-7 / max(1, error.numel()) ** 0.5
        for what, value, room in (
            ("neighbour", error.abs().max(), 2.0**-7 * (1 + 1e-3)),
            ("drift", error.mean().abs(), drift),
        ):
            bench.record(
                *("fused_step", f"{name} {what}", self.shape, self.dtype, None),
                *(float(value), room, None),
            )


# ---- dense layers, top-k, rewiring ---------------------------------------------------------------


def dense_layer(
    batch: int, inputs: int, units: int, dtype: torch.dtype = torch.float32
) -> Callable[[Bench], None]:
    """`dense_relu` and a step of `dense_relu_update`."""

    def run(bench: Bench) -> None:
        shape = {"batch": batch, "inputs": inputs, "units": units}
        features, grad = bench.normal(batch, inputs), bench.normal(batch, units)
        weights, bias = bench.normal(units, inputs).to(dtype), bench.normal(units)
        layer = reference.Layer(weights, bias)
        bench.poison(grad)
        outputs, seconds = bench.timed(lambda: dense_relu(features, weights, bias))
        room = tolerance(torch.float32, inputs)
        expected = layer.scores(features).clamp(min=0)
        bench.check(
            *("dense_relu", {"outputs": (outputs, expected, room)}, shape, _name(dtype), None),
            seconds,
        )
        if dtype != torch.float32:
            return
        state = [torch.zeros_like(t) for t in (weights, weights, bias, bias)]
        before = weights.double(), bias.double()
        bench.poison(features)
        arguments = (weights, *state[:2], bias, *state[2:], RATE, 1, 0, True)
        got, seconds = bench.timed(lambda: dense_relu_update(grad, outputs, features, *arguments))
        # Which units are active is the forward pass' word: an input within rounding of 0 may be
        # on either side.
        active = grad * (outputs > 0)
        of_features, of_weights, of_bias = layer.gradients(active, features)
        reference.adam(layer.weights, layer.m, layer.v, of_weights, 1, RATE)
        reference.adam(layer.bias, layer.bias_m, layer.bias_v, of_bias, 1, RATE)
        room, by_units = tolerance(torch.float32, batch), tolerance(torch.float32, units)
        checked = {
            "grad_features": (got, of_features, by_units),
            "weights": (
                weights,
                adam_of(before[0], state[0], state[1], 1),
                tolerance(torch.float32, 1),
            ),
            "weights_m": (state[0], layer.m, room),
            "weights_v": (state[1], layer.v, 2 * room),
            "bias": (bias, adam_of(before[1], state[2], state[3], 1), tolerance(torch.float32, 1)),
            "bias_m": (state[2], layer.bias_m, room),
        }
        bench.check("dense_relu_update", checked, shape, _name(dtype), None, seconds)

    return run


def ranking(
    kind: str, batch: int, inputs: int, labels: int, fan_in: int, k: int, index: torch.dtype
) -> Callable[[Bench], None]:
    """`top_k` on small whole numbers: sums are exact, equal scores abound, and ids have to be equal
    too."""

    def run(bench: Bench) -> None:
        case = Step(kind, batch, inputs, labels, fan_in, index)
        weights, indices, starts = case.layer(bench)
        weights = bench.integers(-1, 2, *weights.shape).float()
        bias = bench.integers(-1, 2, labels).float()
        features = bench.integers(-1, 2, batch, inputs).float()
        bench.poison(features[:, :1].expand(batch, k).contiguous())
        (values, ids), seconds = bench.timed(
            lambda: top_k(features, indices, starts, None, weights, bias, k)
        )
        scores = reference.Layer(weights, bias, indices, starts).scores(features)
        expected = reference.top_k(scores, k)
        outputs = {
            "ids": (ids, expected, 0.0),
            "scores": (values, scores.gather(1, expected), 0.0),
        }
        bench.check("top_k", outputs, {**case.shape, "k": k}, "float32", indices, seconds)

    return run


def rewiring(
    labels: int, fan_in: int, inputs: int, fraction: float, dtype: torch.dtype, index: torch.dtype
) -> Callable[[Bench], None]:
    """`regrow` against the plan in NumPy, which the CPU's kernel follows too: all of it is logic on
    whole numbers and has to be equal."""

    def run(bench: Bench) -> None:
        shape = (labels, fan_in)
        weights = bench.normal(*shape).to(dtype)
        weights[labels // 2] = 0  # equal magnitudes at the threshold's lower end
        m, v = torch.ones_like(weights), torch.ones_like(weights)
        indices = bench.integers(0, inputs, *shape).to(index)
        kept = weights.clone()
        seed = bench.seed * 2**32 + 5
        plan = plan_rewiring(weights.float().cpu().numpy(), fraction, inputs, seed)
        expected = indices.cpu().long().view(-1)
        expected[torch.from_numpy(plan.positions)] = torch.from_numpy(plan.sources.astype(np.int64))
        left = torch.ones(weights.numel())
        left[torch.from_numpy(plan.positions)] = 0
        moved, seconds = bench.timed(lambda: rewire(indices, weights, m, v, inputs, fraction, seed))
        outputs = {
            "indices": (indices.cpu().long().view(-1), expected, 0.0),
            "weights": (weights, kept, 0.0),
            "m": (m.float().cpu().view(-1), left, 0.0),
            "v": (v.float().cpu().view(-1), left, 0.0),
            "moved": (torch.tensor([moved + 1]), torch.tensor([len(plan.positions) + 1]), 0.0),
        }
        sizes = {"labels": labels, "fan_in": fan_in, "inputs": inputs}
        bench.check(f"regrow {fraction:g}", outputs, sizes, _name(dtype), indices, seconds)

    return run


# ---- CUDA graphs ---------------------------------------------------------------------------------


class NeedsGpuError(RuntimeError):
    """Nothing of this kind exists on a CPU."""


def graph(bench: Bench) -> None:
    """Forward, backward and fused step captured once and replayed on new inputs: what is replayed
    is what the same calls give at once."""
    if bench.device.type != "cuda":
        raise NeedsGpuError("CUDA graphs need a GPU")
    case = Linear(33, 1_000, _SOME_LABELS, 32)
    features, indices, weights, bias = case.arrays(bench)
    grad = bench.normal(case.batch, case.labels)
    rows, labels = bench.positives(case.batch, case.labels)
    start = (weights.clone(), *(torch.zeros_like(weights) for _ in "mv"))
    start += (bias.clone(), *(torch.zeros_like(bias) for _ in "mv"))
    state = [t.clone() for t in start]

    def calls(of: Sequence[Tensor]) -> tuple[Tensor, ...]:
        scores = fan_in_linear(features, indices, weights, bias)
        backward = torch.ops.fanin.fan_in_linear_backward
        grads = backward(grad, features, indices, weights, [True] * 3, 0)
        fused = fused_step(
            features, indices, None, None, *of, rows, labels, "squared_hinge", RATE, 1, 0, True
        )
        return (scores, *grads, *fused)

    def back() -> None:
        for held, first in zip(state, start, strict=True):
            held.copy_(first)

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
    back()
    for tensor in outputs:
        tensor.fill_(torch.nan)
    _, seconds = bench.timed(captured.replay)
    again = [t.clone() for t in start]
    expected = calls(again)
    names = ("scores", "grad_features", "grad_weights", "grad_bias", "loss", "step grad_features")
    terms = (case.fan_in, case.labels * case.fan_in / case.inputs, case.batch, case.batch)
    rooms = [tolerance(torch.float32, n) for n in (*terms, case.fan_in, terms[1])]
    checked = {
        name: (a, b, room) for name, a, b, room in zip(names, outputs, expected, rooms, strict=True)
    }
    checked["step weights"] = (state[0], again[0], rooms[2])
    bench.check("CUDA graph", checked, case.shape, "float32", indices, seconds)


# ---- all of them ---------------------------------------------------------------------------------


def published_layers() -> list[tuple[str, str, int, int]]:
    """(data set, features, sources of the output layer, fan-in) of every published fixed fan-in
    row, in the order of the task files; read as they are, without the harness."""
    found = []
    for path in sorted(TASKS.glob("*/*.json")):
        if path.parent.name not in PUBLISHED or path.stem not in FEATURES:
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        for entry in content["tasks"]:
            task = {**content.get("defaults", {}), **entry}
            if task["architecture"] in ("stratified", "dense-stratified"):
                sources = task.get("intermediate") or FEATURES[path.stem]
                found.append((path.parent.name, path.stem, sources, task["connectivity"]))
    return found


def _index_types(inputs: int) -> list[torch.dtype]:
    """Both, where uint16 can name all inputs."""
    return list(dict.fromkeys((index_type(inputs), torch.uint32)))


def cases(dry_run: bool) -> list[Case]:
    """All that is checked, what is most likely wrong first."""
    some, batch = (_FEW_LABELS, 3) if dry_run else (_SOME_LABELS, 33)
    made = []

    def add(case: Linear | Step, small: bool = False) -> None:
        made.append(Case(case.key, case, small))

    for dtype in (torch.float32, torch.float64):
        for index in (torch.uint16, torch.uint32):
            for size in RAGGED:
                case = Linear(size, 97, 1_003, 7, dtype, index)
                add(case, small=size == 33)
                made.append(Case(f"{case.key} (C)", poisoned(case), small=size == 7))
    made.append(Case("bad index", bad_index))
    for loss in ("squared_hinge", "bce"):
        for kind in ("fixed", "unstructured", "dense"):
            for size in (1, 32, 33, 128):
                small = size == 33 and loss == "bce"
                inputs, fan_in = 97, 97 if kind == "dense" else 7
                add(Step(kind, size, inputs, 1_003, fan_in, loss=loss), small)
            if kind != "dense":
                add(Step(kind, 33, 97, 1_003, 7, torch.uint32, loss))
    half = torch.bfloat16
    for kind in ("fixed", "unstructured", "dense"):
        for weights, moments in ((half, torch.float32), (torch.float32, half), (half, half)):
            fan_in = 97 if kind == "dense" else 32
            add(
                Step(kind, 32, 97, 3_001, fan_in, weights=weights, moments=moments),
                small=kind == "fixed" and weights == moments,
            )
    for size, inputs, units in ((1, 1, 1), (33, 97, 131), (128, 129, 65), (32, 512, 4_096)):
        for dtype in (torch.float32, half):
            key = f"dense_relu {units}x{inputs} batch {size} {_name(dtype)}"
            made.append(Case(key, dense_layer(size, inputs, units, dtype), small=size == 33))
    for kind in ("fixed", "unstructured", "dense"):
        for size, inputs, labels, k in ((1, 3, 1, 1), (33, 9, 3_001, 64), (100, 9, 301, 301)):
            for index in (torch.uint16, torch.uint32)[: 1 if kind == "dense" else 2]:
                fan_in = inputs if kind == "dense" else min(3, inputs)
                key = f"top_k {kind} {labels}x{inputs} batch {size} k {k} {_name(index)}"
                run = ranking(kind, size, inputs, labels, fan_in, k, index)
                made.append(Case(key, run, small=size == 33))
    for fraction in (0.0, 0.1, 0.5, 0.999):
        for dtype in (torch.float32, half):
            for index in (torch.uint16, torch.uint32):
                key = f"regrow {fraction:g} {_name(dtype)} {_name(index)}"
                run = rewiring(1_003, 7, 90, fraction, dtype, index)
                made.append(Case(key, run, small=fraction == 0.1))
    made.append(Case("CUDA graph", graph))
    # Every fan-in and number of sources of the published tables, both index types.
    for sources, fan_in in sorted({layer[2:] for layer in published_layers()}):
        for index in _index_types(sources):
            for dtype in (torch.float32, torch.float64):
                add(Linear(batch, sources, some, fan_in, dtype, index))
            add(Step("fixed", batch, sources, some, fan_in, index, steps=1))
    for width in sorted({layer[2] for layer in published_layers()} - set(FEATURES.values())):
        for inputs in sorted(FEATURES.values()):
            units = min(width, some) if dry_run else width
            key = f"dense_relu {units}x{inputs} below {width} batch 32"
            made.append(Case(key, dense_layer(32, inputs, units)))
    # The real numbers of labels, with the widest layer of each data set.
    for name in dict.fromkeys(layer[0] for layer in published_layers()):
        sources, fan_in = max(layer[2:] for layer in published_layers() if layer[0] == name)
        labels = PUBLISHED[name].labels
        labels = labels // 1_000 if dry_run else labels
        index = index_type(sources)
        add(Linear(32, sources, labels, fan_in, index=index))
        add(Step("fixed", 32, sources, labels, fan_in, index, steps=1))
    return list({case.key: case for case in made}.values())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _row_run(case: Case, row: CorrectRow, device: torch.device, seed: int) -> Callable[[], None]:
    def run() -> None:
        # A case's inputs do not depend on which others ran.
        row.seed = zlib.crc32(f"{seed} {case.key}".encode())
        bench = Bench(device, row.seed)
        try:
            case.run(bench)
        except NeedsGpuError:
            raise
        except Exception as error:  # a call that fails is a check that fails
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            bench.record(case.key, "call", {}, "", None, float("inf"), 0.0, None, reason)
        row.checks = bench.checks
        if worst := [check for check in row.checks if not check.passed]:
            row.reason = "; ".join(_words(check) for check in worst[:3])

    return run


def _words(check: Check) -> str:
    what = f"{check.op} {check.output}"
    if check.error is None:
        return f"{what}: {check.reason}"
    return f"{what}: error {check.error:.1e}, tolerance {check.tolerance:.1e}"


def jobs(device: torch.device, seed: int, chosen: Sequence[Case]) -> list[part.Job]:
    made = []
    for case in chosen:
        row = CorrectRow(key=case.key)
        made.append(part.Job(row, _row_run(case, row, device, seed)))
    return made


def failed(row: Row) -> bool:
    return isinstance(row, CorrectRow) and not all(check.passed for check in row.checks)


def main(arguments: Sequence[str] | None = None) -> int:
    given = part.options(arguments)
    device = torch.device(given.device)
    print(f"seed {given.seed}", flush=True)
    return part.conduct(
        "correct", given, device, jobs(device, given.seed, cases(given.dry_run)), failed
    )


def small_run(device: torch.device, seed: int) -> int:
    """The small cases alone, for the sanitizer; what fails is printed. The exit code."""
    wrong = 0
    for job in jobs(device, seed, [case for case in cases(True) if case.small]):
        job.run()
        wrong += failed(job.row)
        print(f"{'FAILED' if failed(job.row) else 'ok'} {job.row.key} {job.row.reason or ''}")
    return part.FAILED if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
