"""`label_sums`, `choose_sources`, `replace_sources`: which sources the data give to a label.

Inputs are small whole numbers, often equal: sums are exact, and what is chosen has to be equal to
the reference, ties included. There are no torch ops of these, so they are called through the C
interface.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fanin.backends.arrays import new_sources
from fanin.backends.torch.ops import described, stream, trained
from fanin.benchmarks.gpu_parts import reference
from fanin.benchmarks.gpu_parts.correct.bench import Bench, Case, Outputs, starts_of, type_name
from fanin.kernels import library, params

# Labels, inputs, fan-in: some of each and a bit, and the inputs of the published tables.
_SIZES = ((1_003, 97, 7), (261, 512, 32), (261, 768, 32))


def _call(bench: Bench, arguments: params.Params, where: Tensor) -> float:
    """Call with workspace of NaN; the seconds."""
    arguments.resources.stream = stream(where)
    return bench.timed(lambda: library.call(arguments, bench.poisoned_scratch))[1]


def _label_sums(
    bench: Bench,
    features: tuple[Tensor, Tensor | None, Tensor | None],
    positives: tuple[Tensor, Tensor, Tensor | None],
    sums: Tensor,
) -> float:
    """features: values, starts and columns; positives: starts, instances and weights."""
    values, starts, columns = map(described, features)
    positive_starts, positive_instances, positive_weights = map(described, positives)
    arguments = params.LabelSumsParams(
        features=values,
        starts=starts,
        columns=columns,
        positive_starts=positive_starts,
        positive_instances=positive_instances,
        positive_weights=positive_weights,
        sums=described(sums),
    )
    return _call(bench, arguments, sums)


@dataclass(frozen=True)
class LabelSums:
    """Sums of dense or CSR features over each label's positives; weighted, or not."""

    labels: int
    inputs: int
    csr: bool
    weighted: bool
    instances: int = 100

    def __call__(self, bench: Bench) -> None:
        features = bench.integers(-2, 3, self.instances, self.inputs).float()
        instances, label_ids = bench.positives(self.instances, self.labels)
        order = label_ids.argsort(stable=True)
        instances, label_ids = instances[order], label_ids[order]
        positive_starts = starts_of(label_ids, self.labels)
        weights = bench.integers(-2, 3, len(instances)).float() if self.weighted else None
        sums = bench.integers(-3, 4, self.labels, self.inputs).float()
        expected = reference.label_sums(features, instances, label_ids, weights, sums)
        of_features: tuple[Tensor, Tensor | None, Tensor | None] = (features, None, None)
        if self.csr:
            of_instance, at = features.nonzero(as_tuple=True)
            starts = starts_of(of_instance, self.instances)
            of_features = features[of_instance, at], starts, at.int()
        seconds = _label_sums(bench, of_features, (positive_starts, instances, weights), sums)
        shape = {"instances": self.instances, "inputs": self.inputs, "labels": self.labels}
        outputs: Outputs = {"sums": (sums, expected, 0.0)}
        bench.check("label_sums", outputs, shape, "float32", None, seconds)


@dataclass(frozen=True)
class ChooseSources:
    """The strongest inputs of each label, some of them random; some labels have no positives."""

    labels: int
    inputs: int
    fan_in: int
    random: int
    index: torch.dtype

    def __call__(self, bench: Bench) -> None:
        sums = bench.integers(-9, 10, self.labels, self.inputs).float()
        counts = torch.tensor([0, 1, 2, 4], device=bench.device)[bench.integers(0, 4, self.labels)]
        mean = bench.integers(-1, 2, self.inputs).float()
        scale = 2.0 ** bench.integers(-2, 3, self.inputs).float()
        shape = (self.labels, self.fan_in)
        indices = torch.zeros(shape, dtype=self.index, device=bench.device)
        values = torch.full(shape, torch.nan, device=bench.device)
        seed, first_label = bench.seed * 2**32 + 5, 7
        arguments = params.ChooseSourcesParams(
            sums=described(sums),
            counts=described(counts),
            mean=described(mean),
            scale=described(scale),
            indices=described(indices),
            values=described(values),
            first_label=first_label,
            random=self.random,
            seed=seed,
        )
        seconds = _call(bench, arguments, sums)
        positions = first_label * self.fan_in + np.arange(self.labels * self.fan_in)
        drawn = new_sources(positions, self.inputs, seed).astype(np.int64).reshape(shape)
        expected = reference.chosen_sources(
            sums, counts, mean, scale, torch.from_numpy(drawn).to(bench.device), self.random
        )
        outputs: Outputs = {
            "indices": (indices.long(), expected[0], 0.0),
            "values": (values, expected[1], 0.0),
        }
        sizes = {"labels": self.labels, "inputs": self.inputs, "fan_in": self.fan_in}
        sizes["random"] = self.random
        bench.check("choose_sources", outputs, sizes, "float32", indices, seconds)


@dataclass(frozen=True)
class ReplaceSources:
    """The weakest connections of each label move to the largest gradients; some labels have fewer
    inputs to take."""

    labels: int
    inputs: int
    fan_in: int
    dtype: torch.dtype
    index: torch.dtype
    keep_weights: bool

    def __call__(self, bench: Bench) -> None:
        gradients = bench.integers(-9, 10, self.labels, self.inputs).float()
        gradients[::5] *= bench.integers(0, self.inputs, *gradients[::5].shape) == 0
        order = bench.normal(self.labels, self.inputs).argsort(1)
        sources = order[:, : self.fan_in].contiguous()
        indices = sources.to(self.index)
        weights = bench.integers(-3, 4, self.labels, self.fan_in).to(self.dtype)
        m, v = torch.full_like(weights, 3), torch.full_like(weights, 5)
        moved = torch.full((self.labels,), -9, dtype=torch.int32, device=bench.device)
        replaced = max(1, self.fan_in // 3)
        moves, expected = reference.replaced_sources(gradients, sources, weights, replaced)
        kept = torch.ones_like(moves) if self.keep_weights else ~moves
        outputs: Outputs = {
            "weights": (weights, weights * kept, 0.0),
            "m": (m, m * ~moves, 0.0),
            "v": (v, v * ~moves, 0.0),
            "moved": (moved, moves.sum(1), 0.0),
        }
        arguments = params.ReplaceSourcesParams(
            gradients=described(gradients),
            indices=described(indices),
            weights=trained(weights, m, v),
            moved=described(moved),
            replaced=replaced,
            keep_weights=self.keep_weights,
        )
        seconds = _call(bench, arguments, gradients)
        outputs["indices"] = (indices.long(), expected, 0.0)
        sizes = {"labels": self.labels, "inputs": self.inputs, "fan_in": self.fan_in}
        sizes["replaced"] = replaced
        dtype = type_name(self.dtype)
        bench.check("replace_sources", outputs, sizes, dtype, indices, seconds)


def bad_positive(bench: Bench) -> None:
    """NaN for a label with a positive out of range on a GPU; a ValueError on a CPU."""
    features, sums = bench.normal(5, 97), bench.normal(3, 97)
    instances = torch.tensor([0, 5, 4], dtype=torch.int32, device=bench.device)
    starts = torch.arange(4, device=bench.device)  # a positive each
    error, reason = 0.0, None
    try:
        _label_sums(bench, (features, None, None), (starts, instances, None), sums)
        if bench.device.type == "cpu":
            error, reason = float("inf"), "no ValueError for an instance out of range"
        elif sums.isnan().any(1).tolist() != [False, True, False]:
            error, reason = float("inf"), "not just the label with a bad positive has NaN"
    except ValueError as raised:
        if bench.device.type != "cpu" or "out of range" not in str(raised):
            error, reason = float("inf"), f"ValueError: {raised}"
    shape = {"instances": 5, "inputs": 97, "labels": 3}
    bench.record("bad positive", "sums", shape, "float32", None, error, 0.0, None, reason)


def cases() -> Iterator[Case]:
    """Dense and CSR features with and without weights; each type of weights and indices."""
    for labels, inputs, fan_in in _SIZES:
        small, sizes = inputs == 97, f"{labels}x{inputs}"
        for csr in (False, True):
            for weighted in (False, True):
                words = f"{'CSR' if csr else 'dense'} {'weighted' if weighted else 'plain'}"
                sums = LabelSums(labels, inputs, csr, weighted)
                yield Case(f"label_sums {words} {sizes}", sums, small=small)
        for index in (torch.uint16, torch.uint32):
            for random in (0, 2, fan_in):
                chosen = ChooseSources(labels, inputs, fan_in, random, index)
                key = f"choose_sources {sizes} fan-in {fan_in} random {random} {type_name(index)}"
                yield Case(key, chosen, small=small and random == 2)
            for dtype in (torch.float32, torch.bfloat16):
                for keep in (False, True):
                    moves = ReplaceSources(labels, inputs, fan_in, dtype, index, keep)
                    words = f"{type_name(dtype)} {type_name(index)}{' kept' if keep else ''}"
                    key = f"replace_sources {sizes} fan-in {fan_in} {words}"
                    yield Case(key, moves, small=small and not keep)
    yield Case("bad positive", bad_positive)
