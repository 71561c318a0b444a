"""Small setups of every kind, and batches for them."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from fanin.backends.arrays import initial_arrays, plan_rewiring
from fanin.backends.kinds import ORDER, Dense, FixedFanIn, GroupedFanIn, Unstructured
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.datasets import Batch


def every_setup(inputs, labels, units):
    """Each kind of connection, without and with an intermediate layer of so many units."""
    kinds = (Dense(), Unstructured(4), FixedFanIn(4), GroupedFanIn(4, 16))
    return [LayerSetup(inputs, labels, kind, unit) for unit in (None, units) for kind in kinds]


def random_order(labels, seed=0):
    """A label at each position, int32 [labels]."""
    return np.random.default_rng([seed, labels]).permutation(np.arange(labels, dtype=np.int32))


def starting(setup, seed):
    """Initial arrays, in which no label stands at its own position where there are positions."""
    arrays = initial_arrays(setup, seed)
    if ORDER in arrays:
        arrays[ORDER] = random_order(setup.labels, seed)
    return arrays


def rewiring(setup, weights, fraction, seed):
    """What a trainer with these weights rewires, and the flat positions in the weights of the
    connections that move."""
    kind = setup.output
    plan = plan_rewiring(kind.source_magnitudes(weights), fraction, setup.output_inputs, seed)
    if not kind.group_size:
        return plan, plan.positions
    reads = np.zeros(setup.array_shapes()["output.indices"], bool)
    reads.reshape(-1)[plan.positions] = True
    moves = np.repeat(reads, kind.group_size, axis=0)[: setup.labels]
    return plan, np.flatnonzero(moves)


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
