"""`FusedFanIn`, the layer that trains itself, in both frameworks: against float64 NumPy, and to the
last digit what the kernels make of NumPy arrays."""

from __future__ import annotations

import re

import numpy as np
import pytest
import reference
from near import assert_near, difference

from fanin import kernels
from fanin.backends.arrays import plan_rewiring
from fanin.backends.kinds import FixedFanIn
from fanin.backends.setup import LayerSetup
from fanin.datasets import Batch

LOSSES = ("squared_hinge", "bce")
METHODS = ("training_step", "evaluate_loss")


def make(adapter, seed=0, **options):
    return adapter.fused_layer(40, 300, 7, seed=seed, **options)


def features(batch=20, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 40)).astype(np.float32)


def positives(batch=20, count=60):
    rng = np.random.default_rng(1)
    pairs = np.stack([rng.integers(0, batch, count), rng.integers(0, 300, count)])
    instances, label_ids = np.unique(pairs, axis=1)
    return instances.copy(), label_ids.copy()


def assert_equal(arrays, expected):
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], name)


@pytest.mark.parametrize("loss", LOSSES)
def test_follows_the_reference_and_hands_the_gradient_upstream(on_device, loss):
    for traced in on_device.ways:
        layer = make(on_device, loss=loss, learning_rate=1e-2)
        arrays = layer.arrays()
        model = reference.Model(
            LayerSetup(40, 300, FixedFanIn(7), loss=loss),
            {f"output.{name}": arrays[name] for name in ("indices", "weights", "bias")},
        )
        for step in range(1, 30):
            batch = Batch(features(seed=step), *positives())
            scores = model.scores(batch.features)
            _, grad_scores = reference.loss(loss, scores, *positives())
            expected = 3 * grad_scores @ model.output_matrix().T
            value, gradient = layer.loss_and_gradient(
                "training_step", batch.features, *positives(), traced=traced
            )
            assert value == pytest.approx(3 * model.step(batch, 1e-2), rel=1e-5)
            assert_near(gradient, expected, 1e-4)
            assert layer.arrays()["steps"] == step
        for name in ("weights", "bias"):
            assert difference(layer.arrays()[name], model.arrays[f"output.{name}"]) < 1e-4


@pytest.mark.parametrize("loss", LOSSES)
def test_trains_as_the_kernels_train_numpy_arrays(on_cpu, loss):
    for traced in on_cpu.ways:
        layer = make(on_cpu, loss=loss, learning_rate=1e-2)
        ours = layer.arrays()
        weights = kernels.Trained(ours["weights"], ours["weights_m"], ours["weights_v"])
        bias = kernels.Trained(ours["bias"], ours["bias_m"], ours["bias_v"])
        instances, label_ids = positives()
        for step in range(1, 4):
            x = features(seed=step)
            adam = kernels.OptimizerStep(step, learning_rate=1e-2)
            value, gradient = kernels.step(
                *(x, weights, bias, instances.astype(np.int32), label_ids, adam),
                indices=ours["indices"],
                loss=loss,
            )
            scaled, scaled_gradient = layer.loss_and_gradient(
                "training_step", x, instances, label_ids, traced=traced
            )
            assert scaled == np.float32(3) * np.float32(value)
            np.testing.assert_array_equal(scaled_gradient, np.float32(3) * gradient)
        assert_equal(layer.arrays(), {**ours, "steps": 3})  # ours were trained in place


OPTIMIZERS = [
    {"weight_decay": 0.5},
    {"l2": 0.01},
    {"optimizer": "sgd"},
    {"optimizer": "momentum", "momentum": 0.7, "weight_decay": 1e-4},
]


@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
def test_each_optimizer(on_device, tmp_path, options):
    """Beside the kernels on NumPy arrays, from a file on, and after rewiring."""
    kind = options.get("optimizer", "adam")
    rate = 1e-2 if kind == "adam" else 30.0
    numbers = {name: value for name, value in options.items() if name != "optimizer"}
    for traced in on_device.ways:
        layer = make(on_device, learning_rate=rate, **options)
        ours = layer.arrays()
        weights, bias = (
            kernels.Trained(ours[name], ours.get(f"{name}_m"), ours.get(f"{name}_v"))
            for name in ("weights", "bias")
        )
        kept = {"adam": "mv", "momentum": "m", "sgd": ""}[kind]
        moments = {f"{name}_{moment}" for name in ("weights", "bias") for moment in kept}
        assert set(ours) == {"indices", "weights", "bias", "steps", *moments}
        instances, label_ids = positives()
        for step in range(1, 4):
            x = features(seed=step)
            of_step = kernels.OptimizerStep(step, rate, kind=kind, **numbers)
            kernels.step(
                *(x, weights, bias, instances.astype(np.int32), label_ids, of_step),
                indices=ours["indices"],
            )
            layer.loss("training_step", x, instances, label_ids, traced=traced)
        for name, array in layer.arrays().items():
            assert difference(array, ours[name] if name != "steps" else 3) < 1e-5, name
    other = make(on_device, seed=1, **options)
    layer.save(tmp_path)
    other.load(tmp_path)
    assert layer.rewire(0.3, 3) == other.rewire(0.3, 3) > 0
    for each in (layer, other):
        each.loss("training_step", features(), *positives())
    assert_equal(other.arrays(), layer.arrays())


def test_an_optimizer_that_is_none(on_cpu):
    with pytest.raises(ValueError, match="optimizer must be one of adam, sgd, momentum, got 'adag"):
        make(on_cpu, optimizer="adagrad")
    with pytest.raises(ValueError, match="weight_decay must be finite and at least 0, got -1"):
        make(on_cpu, weight_decay=-1)


def test_only_trains_when_asked(on_device):
    layer, x = make(on_device), features()
    before = layer.arrays()
    quiet = layer.loss("evaluate_loss", x, *positives())
    layer(x)
    assert layer.loss("evaluate_loss", x, *positives()) == quiet
    assert_equal(layer.arrays(), before)
    assert layer.loss("training_step", x, *positives()) == pytest.approx(quiet, rel=1e-5)
    assert not np.array_equal(layer.arrays()["weights"], before["weights"])
    assert layer.arrays()["steps"] == 1
    assert layer.loss("evaluate_loss", x, *positives()) != quiet


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_is_saved_whole(on_device, tmp_path, dtype):
    types = {"dtype": dtype, "moments": dtype}
    one, other, x = make(on_device, **types), make(on_device, seed=1, **types), features()
    one.learning_rate = 0.02
    for _ in range(3):
        one.loss("training_step", x, *positives())
    one.save(tmp_path)
    other.load(tmp_path)
    assert other.learning_rate == pytest.approx(0.02)
    for _ in range(3):
        ours, theirs = (layer.loss("training_step", x, *positives()) for layer in (one, other))
        assert ours == theirs
    assert_equal(one.arrays(), other.arrays())
    assert one.trained_by_optimizers() == []


def test_top_k_and_scores_agree(on_device):
    layer, x = make(on_device), features()
    layer.loss("training_step", x, *positives())
    values, ids = layer.top_k(x, 4)
    scores = layer(x)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :4]
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(values, np.take_along_axis(scores, expected, 1), rtol=1e-5)


def test_rewires(on_device):
    layer, same = make(on_device), make(on_device)
    for each in (layer, same):
        each.loss("training_step", features(), *positives())
    before = layer.arrays()
    seed = int(np.random.default_rng(3).integers(2**64, dtype=np.uint64))
    plan = plan_rewiring(before["weights"], 0.3, 40, seed)
    assert layer.rewire(0.3, np.random.default_rng(3)) == len(plan.positions)
    assert same.rewire(0.3, 3) == len(plan.positions)
    assert 600 <= len(plan.positions) <= 630
    before["indices"].reshape(-1)[plan.positions] = plan.sources
    for name in ("weights_m", "weights_v"):
        before[name].reshape(-1)[plan.positions] = 0
    assert_equal(layer.arrays(), before)
    assert_equal(same.arrays(), before)


def test_bad_options(on_cpu):
    for options, message in (
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"dtype": "float16"}, r"_dtype must be (torch\.)?float32 or"),
        ({"learning_rate": -1}, "learning_rate must be finite and at least 0"),
        ({"learning_rate": np.nan}, "learning_rate must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            make(on_cpu, **options)


def test_bad_features_are_named_and_change_nothing(on_cpu):
    layer = make(on_cpu)
    before, x = layer.arrays(), features()
    for width in (39, 30, 50, 99):
        bad = np.ones((20, width), np.float32)
        named = re.escape(on_cpu.width_text(40, bad.shape))
        for method in METHODS:
            with pytest.raises(ValueError, match=named):
                layer.loss(method, bad, *positives())
        with pytest.raises(ValueError, match=named):
            layer.top_k(bad, 3)
        called = re.escape(on_cpu.width_text(40, bad.shape, called=True))
        with pytest.raises(ValueError, match=called):
            layer(bad)
    with pytest.raises(on_cpu.data_error, match=r"features\[0, 0\] is NaN"):
        layer.loss("training_step", x * np.nan, *positives())
    out_of_range = r"positive_instances\[\d+\] is 19, out of range for a batch of 19"
    with pytest.raises(on_cpu.data_error, match=out_of_range):
        layer.loss("training_step", x[:19], *positives())
    assert_equal(
        layer.arrays(), before
    )  # `steps` included: the bias correction counts what was done


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "instances, label_ids, message",
    [
        ([0, 1, 20], [1, 2, 3], r"positive_instances\[2\] is 20, out of range for a batch of 20"),
        ([0, -1, 2], [1, 2, 3], r"positive_instances\[1\] is -1, out of range"),
        ([2**32, 1, 2], [1, 2, 3], r"positive_instances\[0\] is 4294967296, out of range"),
        ([0, -(2**32)], [2, 3], r"positive_instances\[1\] is -4294967296, out of range"),
        ([0, 1, 2], [1, 300, 3], r"positive_labels\[1\] is 300, out of range for 300 labels"),
        ([0, 1, 2], [1, 2, -3], r"positive_labels\[2\] is -3, out of range for 300 labels"),
    ],
)
def test_positives_out_of_range_are_named(on_cpu, method, instances, label_ids, message):
    layer = make(on_cpu)
    before = layer.arrays()
    for kind in (list, np.array):
        with pytest.raises(on_cpu.data_error, match=message):
            layer.loss(method, features(), kind(instances), kind(label_ids))
    assert_equal(layer.arrays(), before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "instances, label_ids, name, dtype",
    [
        ([0, 1, 2], [1.5, 2, 3], "positive_labels", "float32"),
        ([0.0, 1, 2], [1, 2, 3], "positive_instances", "float32"),
        (np.array([0.0, 1]), [2, 3], "positive_instances", "float64"),
        ([True, False], [1, 2], "positive_instances", "bool"),
    ],
)
def test_positives_that_are_no_integers(on_device, method, instances, label_ids, name, dtype):
    layer = make(on_device)
    before = layer.arrays()
    message = re.escape(f"{name} must be integers, got {on_device.type_text(dtype)}")
    with pytest.raises(ValueError, match=message):
        layer.loss(method, features(), instances, label_ids)
    assert_equal(layer.arrays(), before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "instances, label_ids", [([0, 1, 2], [1, 2]), ([0, 1], [2, 3, 4]), ([[0, 1]], [[1, 2]])]
)
def test_positives_that_are_no_pairs(on_device, method, instances, label_ids):
    layer = make(on_device)
    before = layer.arrays()
    shapes = [on_device.shape_text(np.shape(each)) for each in (instances, label_ids)]
    message = re.escape(f"vectors of one length, got {' and '.join(shapes)}")
    with pytest.raises(ValueError, match=message):
        layer.loss(method, features(), instances, label_ids)
    assert_equal(layer.arrays(), before)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_any_integers_name_positives(on_device, dtype):
    layer, x = make(on_device), features()
    instances, label_ids = (each % 20 for each in positives())
    expected = layer.loss("evaluate_loss", x, instances, label_ids)
    given = (instances.astype(dtype), label_ids.astype(dtype))
    assert layer.loss("evaluate_loss", x, *given) == expected


def test_positives_of_any_kind(on_device):
    """Arrays and lists: the same step."""
    losses = []
    for kind in (np.array, np.ndarray.tolist):
        layer, given = make(on_device), [kind(each) for each in positives()]
        losses.append([layer.loss("training_step", features(), *given) for _ in range(2)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("method", METHODS)
def test_a_pair_that_stands_twice_counts_once(on_device, loss, method):
    seen = []
    for given in (positives(), [np.tile(each, 2) for each in positives()]):
        layer = make(on_device, loss=loss)
        seen.append(layer.loss_and_gradient(method, features(), *given))
    assert seen[0][0] == pytest.approx(seen[1][0], rel=1e-6)
    if method == "training_step":
        np.testing.assert_allclose(seen[0][1], seen[1][1], rtol=1.3e-6, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch(on_cpu, method):
    with pytest.raises(on_cpu.data_error, match="the batch is empty"):
        make(on_cpu).loss(method, features(0), [], [])


@pytest.mark.parametrize("method", METHODS)
def test_no_positives(on_device, method):
    # Each score is near 0, and a negative's.
    assert make(on_device).loss(method, features(), [], []) == pytest.approx(1, rel=0.1)


def test_learning_rate_is_read_at_every_step(on_device):
    layer, x = make(on_device, learning_rate=0.0), features()
    before = layer.arrays()["weights"]
    layer.loss("training_step", x, *positives())
    np.testing.assert_array_equal(layer.arrays()["weights"], before)
    layer.learning_rate = 0.5
    assert layer.learning_rate == 0.5
    layer.loss("training_step", x, *positives())
    assert not np.array_equal(layer.arrays()["weights"], before)
    for rate in (-1, np.inf, "fast"):
        with pytest.raises(ValueError, match="learning_rate must be finite and at least 0"):
            layer.learning_rate = rate


def test_values_that_make_no_layer(on_cpu):
    for sizes, message in (
        ((40, "5", 7), "labels must be a whole number, got '5'"),
        ((40, 10.7, 7), "labels must be a whole number, got 10.7"),
        ((40, 300, "2"), "fan_in must be a whole number, got '2'"),
        ((40, 0, 2), "labels must be at least 1, got 0"),
        ((40, 300, 41), "fan_in 41 is larger than the 40 inputs"),
        ((3, 300, 7), "fan_in 7 is larger than the 3 inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            on_cpu.fused_layer(*sizes)


def test_values_that_cannot_be_asked_for(on_device):
    layer, x = make(on_device), features()
    for k in (0, 301, 2**62, 1.5, -1, None):
        with pytest.raises(ValueError, match=rf"k must be in 1\.\.300 \(the labels\), got {k}"):
            layer.top_k(x, k)
    for fraction in (None, 2):
        message = f"fraction must be at least 0 and below 1, got {fraction}"
        with pytest.raises(ValueError, match=message):
            layer.rewire(fraction)
    with pytest.raises(ValueError, match="rng must be a NumPy generator or a seed, got 'x'"):
        layer.rewire(0.1, "x")


@pytest.mark.parametrize("kind", ["fixed_layer", "fused_layer"])
def test_indices_of_a_wider_layer_are_not_loaded(on_device, tmp_path, kind):
    """The framework would make uint16 of them, and others."""
    wide, layer = (getattr(on_device, kind)(inputs, 90, 7) for inputs in (70_000, 300))

    def arrays():
        if kind == "fused_layer":
            return layer.arrays()
        return {name: getattr(layer, name) for name in ("indices", "weights", "bias")}

    before = arrays()
    wide.save(tmp_path)
    message = r"indices\[\d+, \d+\] is \d+, out of range for 300"
    with pytest.raises(on_device.load_error, match=message):
        layer.load(tmp_path)
    assert_equal(arrays(), before)


def test_only_steps_that_were_made_count(on_cpu):
    layer, x = make(on_cpu), features()
    instances, label_ids = positives()
    layer.loss("training_step", x, instances, label_ids)
    before = layer.arrays()
    for bad in ((x * np.nan, instances, label_ids), (x, instances, label_ids + 300)):
        with pytest.raises(on_cpu.data_error):
            layer.loss("training_step", *bad)
    assert before["steps"] == 1
    assert_equal(layer.arrays(), before)
    layer.loss("training_step", x, instances, label_ids)
    assert layer.arrays()["steps"] == 2
