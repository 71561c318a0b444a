"""`fused_step` on each kind of connection: loss, gradient of the features, values and moments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fanin.backends.kinds import ConnectionKind, Dense, FixedFanIn, GroupedFanIn, Unstructured
from fanin.backends.optimizer import ADAM, Optimizer
from fanin.backends.setup import LayerSetup
from fanin.backends.torch.training_ops import fused_step
from fanin.benchmarks.gpu_parts import reference
from fanin.benchmarks.gpu_parts.correct.bench import (
    LEARNING_RATE,
    Bench,
    Case,
    Outputs,
    adam_from,
    connections_per_label,
    shape_of,
    sizes,
    tolerance,
    type_name,
)
from fanin.kernels import from_float8, to_float8

_STEPS = 3


def kinds(count: int) -> tuple[ConnectionKind, ...]:
    """Each kind of connection, with so many a label where that can be chosen."""
    return FixedFanIn(count), GroupedFanIn(count, 12), Unstructured(count), Dense()


def kind_name(setup: LayerSetup) -> str:
    size = setup.output.group_size
    return type(setup.output).__name__ + (f" {size}" if size else "")


def random_layer(
    bench: Bench, setup: LayerSetup, index: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Weights in float32, indices and starts, as the kernels read the kind of connection."""
    inputs, labels, count = setup.inputs, setup.labels, connections_per_label(setup)
    match setup.output:
        case Dense():
            return bench.normal(labels, inputs), None, None
        case FixedFanIn() | GroupedFanIn():
            rows, _ = setup.array_shapes()["output.indices"]
            indices = bench.integers(0, inputs, rows, count).to(index)
            return bench.normal(labels, count), indices, None
    connections = labels * count
    of_labels = bench.integers(0, labels, connections).sort().values
    starts = torch.searchsorted(of_labels, torch.arange(labels + 1, device=bench.device)).int()
    sources = bench.integers(0, inputs, connections).to(index)
    return bench.normal(connections), sources, starts


def stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights as the kernels have them; torch.uint8 stands for rows in float8."""
    if dtype != torch.uint8:
        return values.to(dtype)
    return torch.from_numpy(to_float8(values.cpu().numpy())).to(values.device)


def numbers_of(weights: Tensor) -> Tensor:
    """What stored weights stand for, float64."""
    if weights.dtype != torch.uint8:
        return weights.double()
    return torch.from_numpy(from_float8(weights.cpu().numpy())).to(weights.device).double()


@dataclass(frozen=True)
class Step:
    """Steps of `fused_step` on a layer without an intermediate one. weights, moments: the types
    that they are kept in, of weights also torch.uint8 for float8. Other optimizers than Adam by
    itself train float32."""

    setup: LayerSetup
    batch: int
    index: torch.dtype = torch.uint16
    weights: torch.dtype = torch.float32
    moments: torch.dtype = torch.float32
    steps: int = _STEPS
    optimizer: Optimizer = ADAM

    @property
    def key(self) -> str:
        index = "" if isinstance(self.setup.output, Dense) else f" {type_name(self.index)}"
        name = f"fused_step {kind_name(self.setup)} {sizes(self.setup, self.batch)}"
        other = "" if self.optimizer == ADAM else f" {self.optimizer.kind} with decay"
        return f"{name} {self.setup.loss} {self.dtype}{index}{other}"

    @property
    def shape(self) -> dict[str, int]:
        return shape_of(self.setup, self.batch)

    @property
    def dtype(self) -> str:
        weights, moments = type_name(self.weights), type_name(self.moments)
        weights = "float8" if self.weights == torch.uint8 else weights
        if weights == moments == "float32":
            return "float32"
        return f"{weights} weights, {moments} moments"

    def __call__(self, bench: Bench) -> None:
        setup, batch = self.setup, self.batch
        values, indices, starts = random_layer(bench, setup, self.index)
        weights = stored(values, self.weights)
        kept = self.optimizer.keeps
        m, v = (torch.zeros_like(values, dtype=self.moments) if x in kept else None for x in "mv")
        bias = bench.normal(setup.labels)
        bias_m, bias_v = (torch.zeros_like(bias) if x in kept else None for x in "mv")
        rate = LEARNING_RATE
        if self.optimizer.kind != "adam":
            rate *= batch * setup.labels  # by which the loss is divided
        size = setup.output.group_size
        layer = reference.Layer(numbers_of(weights), bias, indices, starts, size)
        # Scores, then sums over the batch, and both once more for each step.
        per_label = connections_per_label(setup)
        terms, per_feature = per_label + batch, 1 + setup.labels * per_label / setup.inputs
        # Rounding would go on into the next step; one is all that can be compared.
        steps = self.steps if self.dtype == "float32" else 1
        seconds = 0.0
        outputs: Outputs = {}
        for step in range(1, steps + 1):
            features = bench.normal(batch, setup.inputs)
            positives = bench.positives(batch, setup.labels)
            bench.poison(features, bias[:1])
            arguments = (
                *(features, indices, starts, None, weights, m, v, bias, bias_m, bias_v),
                *(*positives, setup.loss, self.optimizer.numbers, rate, step, bench.seed, True),
                size,
            )
            before = numbers_of(weights)
            (loss, grad), spent = bench.timed(partial(fused_step, *arguments))
            seconds += spent
            expected = layer.step(features, *positives, setup.loss, rate, self.optimizer)
            room = step * tolerance(torch.float32, terms)
            of_features = room + step * tolerance(torch.float32, per_feature)
            outputs[f"loss {step}"] = (loss, expected[0], room)
            outputs[f"grad_features {step}"] = (grad, expected[1], of_features)
        room = steps * tolerance(torch.float32, terms)
        outputs["bias"] = (bias, layer.bias, room)
        if bias_m is not None:
            outputs["bias_m"] = (bias_m, layer.bias_m, room)
        # From the moments as they are now; what they were before they were rounded to bfloat16 is
        # known to the kernel alone.
        updated = (layer.weights, room)
        if self.optimizer == ADAM and self.moments == torch.float32:
            assert m is not None and v is not None
            updated = (adam_from(before, m, v, steps), tolerance(torch.float32, 1))
        trained: Outputs = {"weights": (weights, *updated)}
        if m is not None:
            trained["weights_m"] = (m, layer.m, room)
        if v is not None:
            trained["weights_v"] = (v, layer.v, 2 * room)  # of squares
        outputs |= {name: o for name, o in trained.items() if o[0].dtype == torch.float32}
        bench.check("fused_step", outputs, self.shape, self.dtype, indices, seconds)
        for name, (result, wanted, _) in trained.items():
            if result.dtype != torch.float32:
                self._check_rounded(bench, name, result, wanted)

    def _check_rounded(self, bench: Bench, name: str, result: Tensor, expected: Tensor) -> None:
        """A value rounded to either neighbour is within 2^-7 of it in bfloat16, which has 8 bits,
        and within 2^-3 in float8, which has 4; and rounded at random without drift. Only the larger
        half: in what cancelled to nearly nothing float32 has an error of its own."""
        large = expected.abs() > expected.abs().median()
        error = (numbers_of(result) - expected)[large] / expected[large].abs()
        unit = 2.0**-3 if result.dtype == torch.uint8 else 2.0**-7
        # The mean of n errors of up to a unit, five standard deviations of it.
        drift = 5 * unit / max(1, error.numel()) ** 0.5
        for what, value, room in (
            ("neighbour", error.abs().max(), unit * (1 + 1e-3)),
            ("drift", error.mean().abs(), drift),
        ):
            bench.record(
                *("fused_step", f"{name} {what}", self.shape, self.dtype, None),
                *(float(value), room, None),
            )


def cases() -> Iterator[Case]:
    """Each kind, loss, index type, storage and optimizer."""
    for loss in ("squared_hinge", "bce"):
        for kind in kinds(7):
            setup = LayerSetup(97, 1_003, kind, loss=loss)
            for batch in (1, 32, 33, 128):
                case = Step(setup, batch)
                yield Case(case.key, case, small=batch == 33 and loss == "bce")
            if not isinstance(kind, Dense):
                case = Step(setup, 33, torch.uint32)
                yield Case(case.key, case)
    # Groups that fill no block of what tensor cores multiply; more sources than are kept, and more
    # gradients than fit shared memory.
    for grouped, labels, batch in (
        *((GroupedFanIn(33, size), 1_003, 100) for size in (8, 33, 64)),
        # Few labels: the reference has a number for each label, instance and source.
        *((GroupedFanIn(300, 64), 203, batch) for batch in (3, 300)),
    ):
        case = Step(LayerSetup(397, labels, grouped, loss="bce"), batch)
        yield Case(case.key, case)
    half = torch.bfloat16
    for kind in kinds(32):
        case = Step(LayerSetup(97, 3_001, kind), 32)
        for weights, moments in ((half, torch.float32), (torch.float32, half), (half, half)):
            narrow = replace(case, weights=weights, moments=moments)
            small = isinstance(kind, FixedFanIn | GroupedFanIn) and weights == moments
            yield Case(narrow.key, narrow, small)
        if isinstance(kind, FixedFanIn | GroupedFanIn):
            narrow = replace(case, weights=torch.uint8)
            yield Case(narrow.key, narrow, small=True)
        # Adam by itself is above; what decays beside it is in the same place of the kernels.
        for optimizer in (Optimizer("sgd", 1e-4, 1e-4), Optimizer("momentum", 1e-4, 1e-4)):
            other = replace(case, optimizer=optimizer)
            yield Case(other.key, other, small=isinstance(kind, FixedFanIn))
