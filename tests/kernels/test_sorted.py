"""Sorted connections: their order, and the step and top-k with them."""

from __future__ import annotations

import copy

import ml_dtypes
import numpy as np
import pytest
from kernel_layers import INSTRUCTION_SETS, make_batch, near, trained

from fanin import kernels
from fanin.backends.kinds import index_dtype

# Of so many inputs to so many labels, lanes are worked on by halves: kernels/src/core/sorted.h.
MANY_INPUTS, MANY_LABELS = 30_000, 16 * 4096 + 37


def two_orders(rng, inputs=MANY_INPUTS, *, dtype=np.float32, with_bias=True, whole=False):
    """Connections, weights and bias of a large layer twice: in label order, and sorted with the
    slots that undo it. whole: small whole numbers, whose sums are exact."""
    labels, fan_in = MANY_LABELS, 3
    indices = rng.integers(0, inputs, (labels, fan_in)).astype(index_dtype(inputs))

    def values(*shape):
        return rng.integers(-1, 2, shape) if whole else rng.standard_normal(shape)

    weights = trained(values(labels, fan_in), dtype, dtype)
    bias = trained(values(labels)) if with_bias else None
    by_label = ({"indices": indices}, weights, bias)
    other = {"indices": indices.copy(), "tile_labels": np.empty(indices.shape, np.uint16)}
    is_sorted = (other, copy.deepcopy(weights), copy.deepcopy(bias))
    slots = np.empty(indices.shape, np.uint8)
    kernels.sort_connections(other["indices"], other["tile_labels"], slots, is_sorted[1], inputs)
    return by_label, is_sorted, slots


@pytest.mark.parametrize(
    "batch_size, threads, loss, options",
    [
        (1, 1, "squared_hinge", {}),
        (16, 2, "bce", {}),
        (17, 2, "squared_hinge", {"with_bias": False}),
        (32, 3, "squared_hinge", {}),
        (32, 2, "bce", {"inputs": 70_000}),
        (32, 2, "squared_hinge", {"dtype": ml_dtypes.bfloat16}),
        (75, 2, "squared_hinge", {}),
    ],
)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_sorted_step_from_many_inputs_is_that_in_label_order(
    instruction_set, batch_size, threads, loss, options
):
    """Too many for the reference; label order is held against that above."""
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(batch_size)
    *layers, slots = two_orders(rng, **options)
    inputs = options.get("inputs", MANY_INPUTS)
    # Bfloat16 is rounded up or down by where a connection stands.
    room = 2.0**-6 if "dtype" in options else 2e-5
    for step in (1, 2):
        batch = make_batch(rng, batch_size, inputs, MANY_LABELS)
        adam = kernels.OptimizerStep(step, learning_rate=0.01)
        (loss_by_label, grad_by_label), (value, grad) = (
            kernels.step(
                *(
                    batch.features,
                    weights,
                    bias,
                    batch.positive_instances,
                    batch.positive_labels,
                    adam,
                ),
                loss=loss,
                threads=threads,
                **connections,
            )
            for connections, weights, bias in layers
        )
        assert value == pytest.approx(loss_by_label, rel=0.1 * room)
        near(grad, grad_by_label, room)
    (by_label, weights, bias), (other, got, got_bias) = layers
    kernels.sort_connections(other["indices"], other["tile_labels"], slots, got, inputs, undo=True)
    np.testing.assert_array_equal(other["indices"], by_label["indices"])
    for name in ("values", "m", "v"):
        near(getattr(got, name), getattr(weights, name).astype(np.float64), room)
        if bias:
            near(getattr(got_bias, name), getattr(bias, name), room)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_sorted_top_k_from_many_inputs_is_that_in_label_order(instruction_set):
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(0)
    *layers, _ = two_orders(rng, whole=True)
    for batch_size, threads in ((5, 1), (75, 2)):
        x = rng.integers(-1, 2, (batch_size, MANY_INPUTS)).astype(np.float32)
        by_label, by_source = (
            kernels.top_k(x, weights.values, bias.values, 7, threads=threads, **connections)
            for connections, weights, bias in layers
        )
        np.testing.assert_array_equal(by_source[0], by_label[0])
        np.testing.assert_array_equal(by_source[1], by_label[1])


def test_what_is_wrong_with_sorted_connections_from_many_inputs_is_named():
    rng = np.random.default_rng(0)
    _, (connections, weights, _), _ = two_orders(rng)
    x = rng.standard_normal((20, MANY_INPUTS)).astype(np.float32)
    none = (np.empty(0, np.int32), np.empty(0, np.int64), kernels.OptimizerStep(1))

    def check(message, features, **connections):
        before = weights.values.copy()
        with pytest.raises(ValueError, match=message):
            kernels.step(features, weights, None, *none, threads=1, **connections)
        with pytest.raises(ValueError, match=message):
            kernels.top_k(features, weights.values, None, 5, threads=1, **connections)
        np.testing.assert_array_equal(weights.values[:4096], before[:4096])

    bad = x.copy()
    bad[17, 29_999] = np.nan
    check(r"features\[17, 29999\] is NaN", bad, **connections)
    for name, value, message in (
        ("indices", MANY_INPUTS, r"indices\[7, 2\] is 30000, out of range"),
        ("tile_labels", 4096, "tile_labels at flat position 23 names a label beyond its tile"),
    ):
        wrong = {**connections, name: connections[name].copy()}
        wrong[name][7, 2] = value
        check(message, x, **wrong)
    # Sorted for other features: into tiles of another size.
    few = rng.standard_normal((20, 24_000)).astype(np.float32)
    indices = connections["indices"] % 24_000
    tile_labels, slots = np.empty(indices.shape, np.uint16), np.empty(indices.shape, np.uint8)
    kernels.sort_connections(indices, tile_labels, slots, weights, 24_000)
    kernels.step(few, weights, None, *none, indices=indices, tile_labels=tile_labels)
    check(
        "tile_labels from flat position 0 on are not those of a tile",
        x,
        indices=indices,
        tile_labels=tile_labels,
    )


def test_where_sorting_pays():
    intel = "Intel(R) Xeon(R) Processor @ 2.50GHz (family 6, model 85)"
    zen_4, zen_5 = "AMD EPYC (family 25, model 17)", "AMD EPYC (family 26, model 2)"
    assert [kernels.sorting_pays(inputs, intel) for inputs in (768, 3072, 3073)] == [0, 0, 1]
    assert [kernels.sorting_pays(inputs, zen_4) for inputs in (3073, 32_768, 32_769)] == [0, 0, 1]
    assert not kernels.sorting_pays(100_000, zen_5)
    windows = "AMD64 Family 26 Model 68 Stepping 0, AuthenticAMD"
    assert not kernels.sorting_pays(100_000, windows)
    assert kernels.sorting_pays(100_000) is kernels.sorting_pays(100_000, kernels.processor())


@pytest.mark.parametrize("inputs", [4000, MANY_INPUTS])
def test_sorting_and_back(inputs):
    rng = np.random.default_rng(3)
    labels, fan_in = MANY_LABELS, 6
    tile_of = kernels.sorted_labels(inputs, labels)
    assert tile_of == (4096 if inputs == MANY_INPUTS else 2048)
    indices = rng.integers(0, inputs, (labels, fan_in)).astype(np.uint16)
    weights = trained(rng.standard_normal((labels, fan_in)))
    weights.m[:] = rng.standard_normal((labels, fan_in))
    weights.v[:] = weights.values * 3
    before = [a.copy() for a in (indices, weights.values, weights.m, weights.v)]
    tile_labels, slots = np.empty_like(indices), np.empty(indices.shape, np.uint8)

    kernels.sort_connections(indices, tile_labels, slots, weights, inputs)

    np.testing.assert_array_equal(weights.v, weights.values * 3)
    for first in range(0, labels, tile_of):
        tile = slice(first, first + tile_of)
        assert (np.diff(indices[tile].reshape(-1).astype(int)) >= 0).all()
        place = tile_labels[tile].reshape(-1).astype(int) * fan_in + slots[tile].reshape(-1)
        np.testing.assert_array_equal(
            before[1][tile].reshape(-1)[place], weights.values[tile].reshape(-1)
        )

    kernels.sort_connections(indices, tile_labels, slots, weights, inputs, undo=True)

    for old, new in zip(before, (indices, weights.values, weights.m, weights.v), strict=True):
        np.testing.assert_array_equal(old, new)
