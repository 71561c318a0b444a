"""The CUDA kernels, executed: compiled for a CPU over `cuda_emulator/`, with the very launches that
a GPU would get, and held against the same references as the CPU's own kernels.

What that leaves to a real GPU (`fanin.benchmarks.gpu`): races that no order of threads shows,
limits of the device, speed.
"""

from __future__ import annotations

import choose_reference
import ml_dtypes
import numpy as np
import pytest
import test_choose
import test_dense
import test_linear
import test_replace
import test_step
from kernel_layers import (
    check_steps,
    make_batch,
    make_layer,
    make_layer_with_ties,
    make_setup,
    near,
    trained,
)

from fanin import kernels
from fanin.backends.arrays import new_sources
from fanin.backends.optimizer import Optimizer

# slow: the kernels are compiled first
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("on_the_gpu")]

KINDS = ("dense", "fixed fan-in", "grouped", "unstructured")


# batch, inputs, labels, fan_in. Few and many inputs: features and sums are kept in shared memory
# where they are few and read often; 3 multiprocessors are emulated, so 24 reads of a row are often.
SHAPES = [
    (1, 1, 1, 1),
    (33, 1, 40, 1),
    (32, 50, 300, 32),
    (7, 300, 65, 70),
    (70, 3000, 33, 33),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("index", [np.uint16, np.uint32])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_op_follows_the_reference(shape, index, dtype):
    rng = np.random.default_rng(sum(shape))
    batch, inputs, labels, fan_in = shape
    arrays = test_linear.layer(rng, batch, inputs, labels, fan_in, dtype, index)
    test_linear.check(rng, *arrays)


def test_features_that_fit_where_sums_beside_them_do_not():
    rng = np.random.default_rng(4)
    test_linear.check(rng, *test_linear.layer(rng, 5, 700, 900, 33))


def test_indices_beyond_the_inputs_make_their_labels_nan():
    rng = np.random.default_rng(0)
    x, indices, weights, bias = test_linear.layer(rng, 33, 20, 70, 5)
    indices[40, 2] = 20
    scores = kernels.fan_in_linear(x, indices, weights, bias)
    bad = np.isnan(scores).all(axis=0)
    assert bad[32:64].all() and not np.isnan(scores[:, ~bad]).any()  # its tile of 32
    _, of_weights, of_bias = kernels.fan_in_linear_backward(scores, x, indices, weights)
    assert np.isnan(of_weights[32:64]).all() and np.isnan(of_bias[32:64]).all()


def test_a_feature_that_is_not_finite_reaches_only_what_it_is_connected_to():
    rng = np.random.default_rng(1)
    x, indices, weights, bias = test_linear.layer(rng, 3, 20, 70, 5)
    indices[:] = rng.integers(1, 20, indices.shape)
    x[:, 0] = np.inf  # what connections that are not there would read
    indices[7, 3] = 0
    scores = kernels.fan_in_linear(x, indices, weights, bias)
    assert np.isinf(scores[:, 7]).all()
    assert np.isfinite(np.delete(scores, 7, axis=1)).all()


def test_an_empty_batch():
    rng = np.random.default_rng(2)
    x, indices, weights, bias = test_linear.layer(rng, 0, 20, 70, 5)
    assert kernels.fan_in_linear(x, indices, weights, bias).shape == (0, 70)
    grads = kernels.fan_in_linear_backward(np.empty((0, 70), np.float32), x, indices, weights)
    assert not grads[1].any() and not grads[2].any()


@pytest.mark.parametrize("loss", ["squared_hinge", "bce"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (32, 50, 300, 32), (33, 400, 70, 40), (100, 30, 90, 7)]
)
def test_steps_follow_the_reference(kind, loss, shape):
    batch, inputs, labels, fan_in = shape
    rng = np.random.default_rng(sum(shape))
    check_steps(rng, kind, batch, inputs, labels, fan_in, loss, steps=2)


@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(weight_decay=3.0, l2=0.01),
        Optimizer("sgd", l2=1e-4),
        Optimizer("momentum", weight_decay=1e-4),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_each_optimizer(kind, optimizer):
    for shape in ((32, 50, 300, 32), (33, 400, 70, 40)):
        rng = np.random.default_rng(sum(shape))
        check_steps(rng, kind, *shape, "bce", steps=2, optimizer=optimizer)


@pytest.mark.parametrize("optimizer", test_dense.OPTIMIZERS, ids=str)
def test_dense_updates_of_each_optimizer(optimizer):
    test_dense.check_updates(optimizer)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_rounded_as_on_a_cpu(kind):
    rng = np.random.default_rng(5)
    setup = make_setup(kind, 40, 70, 33)
    half = ml_dtypes.bfloat16
    model, layer = make_layer(rng, setup, kind, dtype=half, moments=half)
    before = layer.weights.values.astype(np.float64)
    batch = make_batch(rng, 32, 40, 70)
    adam = kernels.OptimizerStep(1, learning_rate=0.01, seed=3)
    arrays = (
        batch.features,
        layer.weights,
        layer.bias,
        batch.positive_instances,
        batch.positive_labels,
    )
    kernels.step(*arrays, adam, **layer.connections)
    # Within one unit in the last place of what float32 gives, and not always on the same side.
    model.arrays["output.weights"] = layer.original(before).astype(np.float64)
    model.step(batch, 0.01)
    expected = model.arrays["output.weights"]
    updated = layer.original(layer.weights.values).astype(np.float64)
    unit = 2.0**-7 * np.maximum(np.abs(expected), 2.0**-126)
    assert (np.abs(updated - expected) <= unit * 1.01).all()
    error = (updated - expected) / unit
    assert abs(error.mean()) < 0.05 and (error > 0.05).any() and (error < -0.05).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_over_more_labels_than_the_layer_has(kind):
    test_step.check_mean_labels(kind)


@pytest.mark.parametrize("stored", test_step.STORED)
@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_rounded_as_the_whole(kind, stored):
    test_step.check_parts(kind, *stored)


def test_a_gpus_nan_stays_one_in_bfloat16():
    rng = np.random.default_rng(10)
    half = ml_dtypes.bfloat16
    _, layer = make_layer(
        rng, make_setup("fixed fan-in", 40, 70, 5), "fixed fan-in", dtype=half, moments=half
    )
    batch = make_batch(rng, 4, 40, 70)
    batch.features[0, 3] = np.array([0x7FFFFFFF], np.uint32).view(np.float32)[0]
    arrays = (
        batch.features,
        layer.weights,
        layer.bias,
        batch.positive_instances,
        batch.positive_labels,
    )
    kernels.step(*arrays, kernels.OptimizerStep(1), **layer.connections)
    touched = (layer.connections["indices"] == 3).any(axis=1)
    assert touched.any()
    for array in (layer.weights.values, layer.weights.m, layer.weights.v):
        # Every connection of a label whose score is NaN.
        np.testing.assert_array_equal(np.isnan(array.astype(np.float32)).all(1), touched)


def test_a_step_with_wrong_connections_has_no_number_for_a_loss():
    rng = np.random.default_rng(6)
    setup = make_setup("unstructured", 40, 70, 5)
    batch = make_batch(rng, 4, 40, 70)
    for name, position, value in (("starts", 3, -7), ("starts", 3, 10**6), ("indices", 9, 40)):
        _, layer = make_layer(rng, setup, "unstructured")
        layer.connections[name][position] = value
        loss, _ = kernels.step(
            *(
                batch.features,
                layer.weights,
                layer.bias,
                batch.positive_instances,
                batch.positive_labels,
            ),
            kernels.OptimizerStep(1),
            **layer.connections,
        )
        assert np.isnan(loss)


@pytest.mark.parametrize("kind", ["fixed fan-in", "dense"])
def test_positives_that_name_nothing_are_left_out_and_make_the_loss_nan(kind):
    rng = np.random.default_rng(8)
    setup = make_setup(kind, 40, 70, 5)
    batch = make_batch(rng, 4, 40, 70)

    def stepped(*extra):
        _, layer = make_layer(np.random.default_rng(0), setup, kind)
        rows, labels = (
            np.append(given, [positive[part] for positive in extra]).astype(given.dtype)
            for part, given in enumerate((batch.positive_instances, batch.positive_labels))
        )
        arrays = (batch.features, layer.weights, layer.bias, rows, labels)
        loss, _ = kernels.step(*arrays, kernels.OptimizerStep(1), **layer.connections)
        return loss, layer.weights.values

    loss, weights = stepped()
    assert np.isfinite(loss)
    for extra in ((-1, 0), (4, 0), (0, -1), (0, 70)):
        loss, others = stepped(extra)
        assert np.isnan(loss)
        np.testing.assert_array_equal(others, weights)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (40, 70, 33), (100, 33, 130), (32, 20, 2000)])
def test_dense_layers(shape, relu):
    batch, inputs, units = shape
    rng = np.random.default_rng(sum(shape))
    x = rng.standard_normal((batch, inputs)).astype(np.float32)
    weights = trained(rng.standard_normal((units, inputs)))
    bias = trained(rng.standard_normal(units))
    wide = x.astype(np.float64) @ weights.values.T.astype(np.float64) + bias.values
    outputs = kernels.dense_forward(x, weights.values, bias.values, relu=relu)
    near(outputs, np.maximum(wide, 0) if relu else wide, 1e-6)

    grad = rng.standard_normal((batch, units)).astype(np.float32)
    before = grad * (outputs > 0) if relu else grad
    expected = before.astype(np.float64) @ weights.values
    of_x = kernels.dense_update(
        grad, outputs if relu else None, x, weights, bias, kernels.OptimizerStep(1)
    )
    near(of_x, expected, 3e-6)
    near(weights.m, 0.1 * before.T.astype(np.float64) @ x, 3e-6)
    near(bias.m, 0.1 * before.sum(0), 3e-6)


@pytest.mark.parametrize("own_ids", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("batch", "labels", "k"), [(1, 1, 1), (33, 300, 5), (70, 90, 90), (5, 3000, 40)]
)
def test_top_k_ties_go_to_the_lower_id(kind, batch, labels, k, own_ids):
    rng = np.random.default_rng(k)
    model, layer, x = make_layer_with_ties(rng, kind, batch, 6, labels, 3)
    label_ids = np.arange(labels) if own_ids else rng.permutation(labels)
    scores, ids = kernels.top_k(
        *(x, layer.weights.values, layer.bias.values, k),
        label_ids=None if own_ids else label_ids.astype(np.int32),
        **layer.connections,
    )
    expected = model.scores(x)[:, np.argsort(label_ids)]
    order = np.argsort(-expected, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(scores, np.take_along_axis(expected, order, 1))


def test_nan_ranks_last():
    weights = np.eye(4, dtype=np.float32)
    x = np.array([[1, np.nan, 2, 3]], np.float32)
    x[0, 1] = 0
    weights[1, 1] = np.nan
    _, ids = kernels.top_k(x, weights, None, 4)
    assert ids.tolist() == [[3, 2, 0, 1]]
    weights[[0, 3], [0, 3]] = np.nan, -np.inf
    x[:] = 1
    scores, ids = kernels.top_k(x, weights, None, 4)
    assert ids.tolist() == [[2, 3, 0, 1]]
    np.testing.assert_array_equal(scores, [[1, -np.inf, np.nan, np.nan]])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("index", [np.uint16, np.uint32])
@pytest.mark.parametrize(("count", "fraction"), [(1, 0.5), (5000, 0.3), (70_000, 0.01), (300, 0.0)])
def test_rewiring_is_that_of_the_cpu(index, half, count, fraction):
    rng = np.random.default_rng(count)
    dtype = ml_dtypes.bfloat16 if half else np.float32
    values = rng.standard_normal(count).astype(dtype)
    indices = rng.integers(0, 60_000, count).astype(index)
    weights = kernels.Trained(values.copy(), np.ones(count, dtype), np.ones(count, dtype))
    before = indices.copy()
    moved, threshold = kernels.rewire(indices, weights, 60_000, fraction, 77)

    sizes = np.abs(values.astype(np.float64))
    limit = np.sort(sizes)[int(fraction * count)]
    chosen = np.flatnonzero(sizes < limit)
    assert (moved, threshold) == (len(chosen), limit)
    before[chosen] = new_sources(chosen, 60_000, 77)
    np.testing.assert_array_equal(indices, before)
    np.testing.assert_array_equal(weights.values, values)
    for moments in (weights.m, weights.v):
        assert np.flatnonzero(moments == 0).tolist() == chosen.tolist()


def test_what_a_gpu_does_not_do_is_refused():
    rng = np.random.default_rng(9)
    setup = make_setup("sorted", 40, 70, 5)
    _, layer = make_layer(rng, setup, "sorted")
    batch = make_batch(rng, 4, 40, 70)
    arrays = (
        batch.features,
        layer.weights,
        layer.bias,
        batch.positive_instances,
        batch.positive_labels,
    )
    with pytest.raises(ValueError, match=r"sorted connections .* are for CPUs only"):
        kernels.step(*arrays, kernels.OptimizerStep(1), **layer.connections)
    # More instances than a block's shared memory has room for.
    many = make_batch(rng, 32 * 2000, 3, 2)
    _, dense = make_layer(rng, make_setup("dense", 3, 2, None), "dense")
    with pytest.raises(RuntimeError, match="use smaller batches"):
        kernels.step(
            *(
                many.features,
                dense.weights,
                dense.bias,
                many.positive_instances,
                many.positive_labels,
            ),
            kernels.OptimizerStep(1),
        )


@pytest.mark.parametrize("csr", [False, True])
@pytest.mark.parametrize(
    ("instances", "inputs", "labels", "fan_in", "random"),
    [(1, 1, 1, 1, 0), (20, 33, 70, 5, 2), (9, 64, 300, 64, 0), (30, 200, 40, 17, 17)],
)
def test_choosing_sources_follows_the_reference(instances, inputs, labels, fan_in, random, csr):
    rng = np.random.default_rng(inputs)
    # Whole numbers, and few of them: sums are exact, and many strengths are equal.
    x = rng.integers(-2, 3, (instances, inputs)).astype(np.float32)
    y = rng.random((instances, labels)) < 0.2
    weights = rng.integers(-2, 3, y.shape).astype(np.float32)
    sums = test_choose.added(x, y, weights=weights, csr=csr)
    np.testing.assert_array_equal(sums, (y * weights).T.astype(np.float64) @ x)
    sums = test_choose.added(x, y, csr=csr)
    np.testing.assert_array_equal(sums, y.T.astype(np.float64) @ x)
    counts = np.where(y.any(0), 4, 0)
    mean = rng.integers(-1, 2, inputs).astype(np.float32)
    options = {"random": random, "seed": 3, "first_label": 2, "scale": np.float32(2) ** mean}
    for index in (np.uint16, np.uint32):
        indices, values = test_choose.chosen(sums, counts, mean, fan_in, index=index, **options)
        known = choose_reference.sources(sums, counts, mean, fan_in, **options)
        np.testing.assert_array_equal(indices, known[0])
        np.testing.assert_array_equal(values, known[1])


def test_sums_that_cannot_be_followed_are_nan():
    x, starts = np.ones((4, 6), np.float32), np.arange(4)
    for instances in ([0, 4, 1], [0, -1, 1]):
        sums = np.zeros((3, 6), np.float32)
        kernels.add_label_sums(x, starts, np.array(instances, np.int32), sums)
        assert np.isnan(sums).all(1).tolist() == [False, True, False]
    values, places = test_choose.stored(x)
    places["columns"][7] = 6
    sums = np.zeros((3, 6), np.float32)
    kernels.add_label_sums(values, starts, np.arange(3, dtype=np.int32), sums, **places)
    assert np.isnan(sums).all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("index", [np.uint16, np.uint32])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("labels", "inputs", "fan_in", "replaced"),
    [(1, 1, 1, 1), (90, 40, 5, 0), (90, 40, 33, 7), (40, 200, 65, 65)],
)
def test_replacing_sources_follows_the_reference(labels, inputs, fan_in, replaced, half, index):
    rng = np.random.default_rng(inputs)
    for moments in (False, True):
        options = {"half": half, "half_moments": moments, "index": index}
        test_replace.check(rng, labels, inputs, fan_in, replaced, **options)


def test_a_label_with_an_index_out_of_range_stays_as_it_is():
    indices, weights = np.array([[0, 1], [0, 6], [4, 5]], np.uint16), trained(np.ones((3, 2)))
    moved = np.full(3, -9, np.int32)
    kernels.replace_sources(np.ones((3, 6), np.float32), indices, weights, 1, moved=moved)
    assert indices.tolist() == [[2, 1], [0, 6], [0, 5]] and moved.tolist() == [1, 0, 1]
    assert weights.values.tolist() == [[0, 1], [1, 1], [0, 1]]
