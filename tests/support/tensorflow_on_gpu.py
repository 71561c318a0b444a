"""TensorFlow's ops on a GPU beside those on the CPU, as a program: `python tensorflow_on_gpu.py`.

A test runs it, where there is no GPU on the stand-in of support/gpu_stand_in.cpp, which is the
argument then: a device can only be added before TensorFlow has started. Fails by AssertionError.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import load_library

from fanin.backends.arrays import InitialArrays, copied
from fanin.backends.interface import Storage
from fanin.backends.kinds import ORDER, Dense, FixedFanIn, GroupedFanIn, Unstructured
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.backends.tensorflow import FusedFanIn, fan_in_linear
from fanin.datasets import Batch
from fanin.kernels import sorting_pays

STAND_IN = sys.argv[1] if len(sys.argv) > 1 else None
CPU, GPU = "CPU:0", "GPU:0"
SETUPS = [
    LayerSetup(20, 300, Dense()),
    LayerSetup(20, 300, Dense(), intermediate=8),
    LayerSetup(20, 300, Unstructured(4)),
    LayerSetup(20, 300, FixedFanIn(4)),
    LayerSetup(3200, 300, FixedFanIn(4)),  # sorted on a CPU, not on a GPU
    LayerSetup(20, 300, FixedFanIn(4), intermediate=64, loss="bce"),
    LayerSetup(20, 300, GroupedFanIn(4, 16)),
]


def assert_near(one, other, tolerance=1e-4):
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    assert one.shape == other.shape
    assert np.abs(one - other).max(initial=0) <= tolerance * max(np.abs(other).max(initial=0), 1e-9)


def fetched():
    """How often the host has waited for something of the device; the stand-in counts it."""
    return ctypes.CDLL(STAND_IN).stand_in_fetched() if STAND_IN else 0


def positives(batch, labels, seed):
    rows, ids = np.nonzero(np.random.default_rng(seed).random((batch, labels)) < 0.01)
    return rows.astype(np.int32), ids


def batches(setup, count, seed=0):
    rng = np.random.default_rng(seed)
    for i in range(count):
        features = rng.standard_normal((32, setup.inputs)).astype(np.float32)
        yield Batch(features, *positives(32, setup.labels, seed + i))


def variables(trainer):
    for trained in trainer._trained.values():
        yield from (trained.values, trained.m, trained.v)
    yield from trainer._executor.connection_arrays.values()


def training(setup, storage):
    given = {}
    if setup.output.group_size:  # no label at its own position
        given[ORDER] = np.roll(np.arange(setup.labels, dtype=np.int32), 7)
    cpu, gpu = (
        make_trainer(
            "tensorflow",
            setup,
            InitialArrays(setup, 1, given),
            execution="fused",
            storage=storage,
            device=device,
        )
        for device in ("cpu", "auto")
    )
    assert all(variable.device.endswith(GPU) for variable in variables(gpu))
    assert all(variable.device.endswith(CPU) for variable in variables(cpu))
    sorts = setup.output.is_sortable and sorting_pays(setup.output_inputs)
    assert cpu._executor.is_sorted == sorts and not gpu._executor.is_sorted
    # Rounding to bfloat16 is by chance where two are not the same to the last digit.
    tolerance = 1e-4 if storage == Storage() else 2e-2
    # Read here and held on to: the steps have to leave it as it is.
    kept = gpu._trained["output.weights"].values.read_value(), gpu.array("output.weights").copy()
    waits, counts = fetched(), []
    losses = gpu.train(batches(setup, 3), 1e-2, lambda loss: counts.append(fetched()))
    assert counts == [waits] * 3  # a step, its loss included, is not waited for
    assert_near(losses, cpu.train(batches(setup, 3), 1e-2), tolerance)
    before = np.asarray(tf.cast(kept[0], tf.float32))
    assert_near(before if before.shape == kept[1].shape else before.T, kept[1], 0)
    assert np.abs(gpu.array("output.weights") - kept[1]).max() > 0
    if setup.is_rewired:
        gpu.load_weights(cpu.weights())  # the same |weight| are the smallest
        assert gpu.rewire(0.2, 7) == cpu.rewire(0.2, 7) > 0
    losses = [trainer.train(batches(setup, 3, 9), 1e-2) for trainer in (gpu, cpu)]
    assert_near(*losses, tolerance)
    state = copied(gpu.optimizer_arrays())
    for name, array in {**cpu.weights(), **copied(cpu.optimizer_arrays())}.items():
        on_gpu = state[name] if name in state else gpu.array(name)
        assert on_gpu.dtype == array.dtype, name
        assert_near(on_gpu, array, tolerance)
    if storage == Storage():
        (block,) = batches(setup, 1, 20)
        np.testing.assert_array_equal(gpu.top_k(block.features, 5), cpu.top_k(block.features, 5))
    gpu.load_optimizer_arrays(copied(cpu.optimizer_arrays()))
    gpu.device.synchronize()


def float8(setup):
    """A step, from the same rows on both; and prediction."""
    gpu, cpu = (
        make_trainer(
            "tensorflow",
            setup,
            InitialArrays(setup, 1),
            execution="fused",
            storage=Storage("float8", "bfloat16"),
            device=device,
        )
        for device in ("auto", "cpu")
    )
    assert all(variable.device.endswith(GPU) for variable in variables(gpu))
    assert gpu._trained["output.weights"].values.dtype == tf.uint8
    before = gpu.array("output.weights").copy()
    losses = [trainer.train(batches(setup, 1), 1e-2) for trainer in (gpu, cpu)]
    assert_near(*losses, 1e-4)
    after = [trainer.array("output.weights") for trainer in (gpu, cpu)]
    assert (after[0] != before).any()
    # From one number to the next is at most an eighth of it.
    assert_near(*after, 1 / 8)
    (block,) = batches(setup, 1, 20)
    gpu.load_weights(cpu.weights())
    np.testing.assert_array_equal(gpu.top_k(block.features, 5), cpu.top_k(block.features, 5))


def layer_of_its_own(device, traced):
    """Losses, gradient of the inputs, what moved, best labels and variables."""
    with tf.device(device):
        layer = FusedFanIn(300, 4, learning_rate=1e-2, seed=3)
        layer.build((None, 20))

        def step(x, rows, labels):
            with tf.GradientTape() as tape:
                tape.watch(x)
                waits = fetched()
                loss = layer.training_step(x, rows, labels)
                assert fetched() == waits
            return loss, tape.gradient(loss, x)

        step = tf.function(step) if traced else step
        rng = np.random.default_rng(5)
        results = []
        for i in range(3):
            x = tf.constant(rng.standard_normal((32, 20)), tf.float32)
            results += step(x, *(tf.constant(part[:20]) for part in positives(32, 300, i)))
        results += [layer.rewire(0.2, 5), *layer.top_k(x, 5), layer(x)]
    for variable in (layer.kernel, layer.kernel_m, layer.bias, layer.indices):
        assert variable.value.device.endswith(device), variable.path
    # The host reads these at each step.
    for variable in (layer.steps, layer.learning_rate):
        assert variable.value.device.endswith(CPU), variable.path
    return [np.asarray(result) for result in [*results, *(v.value for v in layer.variables)]]


def bad_positives():
    """The loss is NaN: nothing may wait for the device, so nothing can be an error."""
    with tf.device(GPU):
        layer, x = FusedFanIn(300, 4, seed=3), tf.ones((32, 20))
        for rows, labels in (([0, 32], [1, 2]), ([-1, 0], [1, 2]), ([0, 1], [1, 300])):
            for loss in (layer.evaluate_loss, layer.training_step):
                assert np.isnan(loss(x, tf.constant(rows), tf.constant(labels)))
                assert np.isfinite(loss(x, tf.constant([0, 31]), tf.constant([299, 0])))


def op(device):
    rng = np.random.default_rng(0)
    with tf.device(device):
        x, weights, bias = (
            tf.constant(rng.standard_normal(shape), tf.float32) for shape in ((5, 20), (7, 3), (7,))
        )
        indices = tf.constant(rng.integers(0, 20, (7, 3), np.uint16))
        with tf.GradientTape() as tape:
            tape.watch([x, weights, bias])
            scores = fan_in_linear(x, indices, weights, bias)
        gradients = tape.gradient(scores, [x, weights, bias])
    assert all(tensor.device.endswith(device) for tensor in (scores, *gradients))
    return scores, *gradients


def main():
    if STAND_IN:
        load_library.load_pluggable_device_library(STAND_IN)
    assert tf.config.list_physical_devices("GPU"), "TensorFlow sees no GPU here"
    for setup in SETUPS:
        for storage in (Storage(), Storage("bfloat16", "bfloat16")):
            training(setup, storage)
        if setup.output.fan_in and not setup.intermediate:
            float8(setup)
    for traced in (False, True):
        for one, other in zip(
            layer_of_its_own(GPU, traced), layer_of_its_own(CPU, traced), strict=True
        ):
            assert_near(one, other)
    if not STAND_IN:  # it computes on the CPU, where this is an error
        bad_positives()
    for one, other in zip(op(GPU), op(CPU), strict=True):
        assert_near(one, other)
    print("the GPU agrees with the CPU")


if __name__ == "__main__":
    main()
