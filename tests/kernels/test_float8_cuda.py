"""Weights in float8 on the emulated GPU: as on a CPU, bit for bit where nothing is summed; steps,
prediction, and what is not finite or names nothing."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import test_float8
import test_step
from kernel_layers import make_batch
from test_float8 import KINDS, NONE, OPTIMIZERS, connections_of, decay, random_rows

from fanin import kernels
from fanin.kernels import numpy_ops

# slow: the kernels are compiled first
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("on_the_gpu")]
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_prediction_reads_every_byte(kind):
    test_float8.check_every_byte(kind, scales=(100,), batches=(3,))


@each_kind
def test_what_does_not_change_is_not_rounded(kind):
    test_float8.check_no_change(kind, fan_ins=(33,))


@each_kind
@pytest.mark.parametrize("fan_in", [1, 32, 45])
def test_rows_are_rounded_as_on_a_cpu(monkeypatch, kind, fan_in):
    rows = kernels.to_float8(random_rows(np.random.default_rng(fan_in), 70, fan_in))
    on_gpu = decay(kind, rows, 2.0**-5)
    monkeypatch.setattr(numpy_ops, "_DEVICE", "cpu")
    np.testing.assert_array_equal(on_gpu, decay(kind, rows, 2.0**-5))
    assert (on_gpu != rows).any()


@each_kind
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: each.kind)
def test_step_follows_the_reference(kind, optimizer):
    """Connections that fill no chunk, and several of them; one lane group and several; moments in
    bfloat16; both types of indices."""
    rng = np.random.default_rng(7)
    test_float8.check_step(rng, kind, 32, 50, 70, 32, "squared_hinge", optimizer)
    test_float8.check_step(rng, kind, 40, 90, 75, 45, "bce", optimizer, moments=ml_dtypes.bfloat16)
    test_float8.check_step(rng, kind, 3, 66_000, 40, 7, "bce", optimizer)


@pytest.mark.parametrize(
    ("batch", "fan_in"), [(3, 1720), (70, 1600), (1130, 5)], ids=["rows", "rows beside", "grads"]
)
def test_groups_that_shared_memory_does_not_hold(batch, fan_in):
    """Updated rows by themselves, or beside the gradients, or the gradients are in scratch memory
    (`gpu_group`, memory.h)."""
    rng = np.random.default_rng(8)
    sgd = OPTIMIZERS[1]
    test_float8.check_step(rng, "grouped", batch, fan_in + 9, 13, fan_in, "bce", sgd)


@each_kind
@pytest.mark.parametrize("stored", test_step.STORED_FLOAT8)
def test_parts_are_rounded_as_the_whole(kind, stored):
    test_step.check_parts(kind, *stored)


@each_kind
def test_what_is_not_a_number_or_names_nothing(kind):
    """A NaN as a GPU makes them, among the features, is every weight of the labels that read it.
    Labels with an index that names no input stay as they are, and the loss is NaN."""
    rng = np.random.default_rng(10)
    before = kernels.to_float8(random_rows(rng, 70, 5))
    sgd, batch = kernels.OptimizerStep(1, kind="sgd"), make_batch(rng, 4, 40, 70)
    layer = connections_of(kind, 70, 5)
    layer["indices"][1:] += 20
    size = layer["group_size"] or 1
    for index, value in ((20, 0x7FFFFFFF), (None, None)):
        rows, x = before.copy(), batch.features.copy()
        if index is None:
            layer["indices"][2, 3] = 40
        else:
            x[0, index] = np.array([value], np.uint32).view(np.float32)[0]
        loss, _ = kernels.step(x, kernels.Trained(rows), None, *NONE, sgd, **layer)
        assert np.isnan(loss)
        if index is None:
            tile = slice(2 * size, 3 * size) if kind == "grouped" else slice(0, 32)
            np.testing.assert_array_equal(rows[tile], before[tile])
        else:
            is_nan = np.isnan(kernels.from_float8(rows))
            assert not is_nan[:size].any() and is_nan[size:].all()
