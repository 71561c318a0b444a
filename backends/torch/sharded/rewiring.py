"""Rewiring over ranks: the weakest connections of all labels, each moved by its own rank."""

from __future__ import annotations

import math

import numpy as np
import torch

from fanin.backends import checks
from fanin.backends.arrays import Rewiring, new_sources
from fanin.backends.kinds import Part
from fanin.backends.ranges import LabelRanges
from fanin.backends.torch.sharded.ranks import Ranks

_HALF = 1 << 16


def plan_rewiring(
    ranks: Ranks,
    ranges: LabelRanges,
    part: Part,
    magnitudes: np.ndarray,
    fraction: float,
    seed: int,
    device: torch.device,
    below: float = math.inf,
) -> Rewiring:
    """What `fanin.backends.arrays.plan_rewiring` chooses for an output layer of the whole model, as
    far as this rank has it: positions are counted within its own sources. All ranks have to ask.

    part: one of `LayerSetup.rewired_parts`. magnitudes: of the rank's own sources, float32, see
    `ConnectionKind.source_magnitudes`. device: where the ranks send from.
    """
    name = part.source_array
    assert name is not None
    own = np.abs(magnitudes.reshape(-1)).astype(np.float32, copy=False)
    count = int(checks.fraction(fraction) * ranges.setup.count(name))
    threshold = min(_at_rank(ranks, own, count, device), below)
    positions = np.flatnonzero(own < threshold)
    positions_of_all = positions + ranges.first_source(part, ranks.rank)
    sources = new_sources(positions_of_all, ranges.setup.output_inputs, seed)
    return Rewiring(positions, sources, threshold, layer=part.name)


def _at_rank(ranks: Ranks, values: np.ndarray, count: int, device: torch.device) -> float:
    """Of the values of all ranks in ascending order, the one before which `count` others stand.
    values: float32, none negative, so their bits ascend as they do. A first histogram, of the upper
    halves of these bits, gives the upper half of that value. A second one, of the lower halves
    where the upper half is that one, gives the lower half."""
    bits = values.view(np.uint32)
    upper, before = _bin_at(ranks, bits >> 16, count, device)
    lower, _ = _bin_at(ranks, bits[bits >> 16 == upper] & (_HALF - 1), count - before, device)
    return float(np.uint32(upper << 16 | lower).view(np.float32))


def _bin_at(ranks: Ranks, bins: np.ndarray, count: int, device: torch.device) -> tuple[int, int]:
    """The bin of the value before which `count` others stand, and how many values are in the bins
    before it."""
    own = torch.from_numpy(np.bincount(bins, minlength=_HALF))
    ends = ranks.sum(own.to(device)).cumsum(0).cpu().numpy()
    at = int(np.searchsorted(ends, count, side="right"))
    return at, int(ends[at - 1]) if at else 0
