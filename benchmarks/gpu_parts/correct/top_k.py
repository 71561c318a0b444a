"""`top_k`: the best labels and their scores, where many are equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fanin.backends.kinds import Dense, FixedFanIn, GroupedFanIn
from fanin.backends.setup import LayerSetup
from fanin.backends.torch.ops import top_k
from fanin.benchmarks.gpu_parts import reference
from fanin.benchmarks.gpu_parts.correct.bench import Bench, Case, Outputs, shape_of, type_name
from fanin.benchmarks.gpu_parts.correct.step import kind_name, kinds, random_layer, stored


@dataclass(frozen=True)
class Ranking:
    """`top_k` on small whole numbers: sums are exact, equal scores abound, and ids have to be equal
    too. float8: whether weights are stored so."""

    setup: LayerSetup
    batch: int
    k: int
    index: torch.dtype
    float8: bool = False

    def __call__(self, bench: Bench) -> None:
        inputs, labels = self.setup.inputs, self.setup.labels
        weights, indices, starts = random_layer(bench, self.setup, self.index)
        weights = bench.integers(-1, 2, *weights.shape).float()
        given = stored(weights, torch.uint8) if self.float8 else weights
        bias = bench.integers(-1, 2, labels).float()
        features = bench.integers(-1, 2, self.batch, inputs).float()
        group_size = self.setup.output.group_size
        # As a grouped layer has them: the label at each position.
        order = bench.normal(labels).argsort()
        label_ids = order.int() if isinstance(self.setup.output, GroupedFanIn) else None
        bench.poison(features[:, :1].expand(self.batch, self.k).contiguous())
        (values, ids), seconds = bench.timed(
            lambda: top_k(
                *(features, indices, starts, None, given, bias, self.k, label_ids, group_size)
            )
        )
        layer = reference.Layer(weights, bias, indices, starts, group_size)
        scores = layer.scores(features)
        if label_ids is not None:  # in the order of the ids
            scores = scores[:, label_ids.argsort()]
        expected = reference.top_k(scores, self.k)
        outputs: Outputs = {
            "ids": (ids, expected, 0.0),
            "scores": (values, scores.gather(1, expected), 0.0),
        }
        shape = {**shape_of(self.setup, self.batch), "k": self.k}
        dtype = "float8" if self.float8 else "float32"
        bench.check("top_k", outputs, shape, dtype, indices, seconds)


def cases() -> Iterator[Case]:
    """Each kind and index type; a single label, the usual, and all labels."""
    for number in range(4):
        for batch, inputs, labels, k in ((1, 3, 1, 1), (33, 9, 3_001, 64), (100, 9, 301, 301)):
            kind = kinds(min(3, inputs))[number]
            setup = LayerSetup(inputs, labels, kind)
            for index in (torch.uint16, torch.uint32)[: 1 if isinstance(kind, Dense) else 2]:
                sizes = f"{labels}x{inputs} batch {batch} k {k}"
                key = f"top_k {kind_name(setup)} {sizes} {type_name(index)}"
                yield Case(key, Ranking(setup, batch, k, index), small=batch == 33)
            if batch > 1 and isinstance(kind, FixedFanIn | GroupedFanIn):
                ranking = Ranking(setup, batch, k, torch.uint16, float8=True)
                yield Case(f"top_k {kind_name(setup)} {sizes} float8", ranking, small=batch == 33)
