"""Small setups of every kind, and batches for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from fanin.backends.arrays import initial_arrays, plan_rewiring
from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.kinds import ORDER, Dense, FixedFanIn, GroupedFanIn, Unstructured
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.datasets import Batch

# With a head of another kind than the tail; each kind stands at either place.
PAIRS = (
    HeadAndTail(Dense(), FixedFanIn(4), 7),
    HeadAndTail(FixedFanIn(6), GroupedFanIn(4, 8), 9),
    HeadAndTail(GroupedFanIn(4, 8), Unstructured(3), 11),
    HeadAndTail(Unstructured(3), Dense(), 5),
)


def every_setup(inputs, labels, units):
    """Each kind of connection, without and with an intermediate layer of so many units; pairs of
    kinds."""
    kinds = (Dense(), Unstructured(4), FixedFanIn(4), GroupedFanIn(4, 16))
    setups = [LayerSetup(inputs, labels, kind, unit) for unit in (None, units) for kind in kinds]
    # The pairs at the end, and an intermediate layer with every other one.
    above = (None, units, None, units)
    return setups + [
        LayerSetup(inputs, labels, pair, unit) for pair, unit in zip(PAIRS, above, strict=True)
    ]


def random_order(labels, seed=0):
    """A label at each position, int32 [labels]."""
    return np.random.default_rng([seed, labels]).permutation(np.arange(labels, dtype=np.int32))


def starting(setup, seed):
    """Initial arrays, in which no label stands at its own position where there are positions."""
    arrays = initial_arrays(setup, seed)
    if ORDER in arrays:
        arrays[ORDER] = random_order(setup.labels, seed)
    return arrays


def scaled_weights(setup, arrays, largest):
    """Scale the weights of each output layer, in place, to a largest |weight|: at the start they
    may be so small that scores hardly matter."""
    for part in setup.parts:
        weights = arrays[part.weights]
        weights *= np.float32(largest / np.abs(weights).max())


def rewirings(setup, arrays, fraction, seed):
    """What a trainer with these arrays rewires. Of each output layer that can be: the layer, its
    plan, and the flat positions in the weights of the connections that move."""
    found = []
    for number, part in enumerate(setup.rewired_parts):
        compared = part.kind.source_magnitudes(arrays[part.weights])
        plan = plan_rewiring(compared, fraction, setup.output_inputs, seed + number)
        plan, moved = replace(plan, layer=part.name), plan.positions
        if part.kind.group_size:
            reads = np.zeros(setup.array_shapes()[part.source_array], bool)
            reads.reshape(-1)[plan.positions] = True
            moved = np.repeat(reads, part.kind.group_size, axis=0)[: part.labels]
            moved = np.flatnonzero(moved)
        found.append((part, plan, moved))
    return found


def rewired(plans, arrays, moments):
    """Arrays and moments after these `rewirings`, in place."""
    for part, plan, moved in plans:
        arrays[part.source_array].reshape(-1)[plan.positions] = plan.sources
        for name in (f"{part.weights}.m", f"{part.weights}.v"):
            if name in moments:
                moments[name].reshape(-1)[moved] = 0


def setup_name(setup):
    return f"{setup.output}-{setup.output_inputs}-{setup.loss}"


def random_batch(setup, size, seed, share=0.1):
    """share: of all pairs of instance and label, those that are positives."""
    rng = np.random.default_rng(seed)
    instances, label_ids = np.nonzero(rng.random((size, setup.labels)) < share)
    if setup.sparse_features:
        features = random_csr((size, setup.inputs), rng)
    else:
        features = rng.standard_normal((size, setup.inputs)).astype(np.float32)
    return Batch(features, instances.astype(np.int32), label_ids)


def random_csr(shape, rng, words=3):
    """CSR features with so many words an instance on average; some instances have none."""
    density = min(1, words / shape[1])
    return sp.random_array(shape, density=density, format="csr", dtype=np.float32, rng=rng)


def random_batches(setup, count, seed=0, size=32, share=0.01):
    return [random_batch(setup, size, [seed, step], share) for step in range(count)]


def trainer(framework, setup, seed=1, device="cpu", **options):
    return make_trainer(framework, setup, starting(setup, seed), device=device, **options)
