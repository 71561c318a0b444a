"""What rewiring makes of the variables of each of Keras' optimizers."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import scipy.sparse as sp

from fanin.backends.tensorflow import FixedFanIn
from fanin.backends.tensorflow.optimizers import STARTS

pytestmark = pytest.mark.tensorflow

# What makes them keep all that they can.
OPTIONS = {
    "Adagrad": {"initial_accumulator_value": 0.25},
    "Adam": {"amsgrad": True},
    "AdamW": {"amsgrad": True},
    "Ftrl": {"initial_accumulator_value": 0.25},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "SGD": {"momentum": 0.9},
}
AVERAGE = "average"
KNOWN = [name for name in STARTS if hasattr(keras.optimizers, name)]


def trained(optimizer, layer=None, epochs=2, **options):
    """A layer that an optimizer has trained for some steps."""
    keras.utils.set_random_seed(0)
    layer = layer or FixedFanIn(50, 6, **options)
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(20), layer])
    model.compile(optimizer, "mse", run_eagerly=True)  # which compiles nothing
    fit(model, epochs)
    return model, layer


def fit(model, epochs=2):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 20)), rng.standard_normal((60, 50))
    model.fit(x.astype(np.float32), y.astype(np.float32), batch_size=20, epochs=epochs, verbose=0)


def blind(layer, optimizer):
    return layer.rewire(0.3, optimizer, rng=3)


def towards_gradients(layer, optimizer):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((60, 20)).astype(np.float32)
    positives = sp.random_array((60, 50), density=0.1, format="csr", rng=rng)
    return layer.rewire_towards_gradients(features, positives, 0.3, optimizer, rng=3)


def kept_for(optimizer, layer):
    """The variables that an optimizer keeps for the layer's kernel, by the end of their names."""
    prefix = layer.kernel.path.replace("/", "_") + "_"
    return {
        variable.name.removeprefix(prefix): variable
        for variable in optimizer.variables
        if variable.name.startswith(prefix)
    }


def check_rewiring(layer, optimizer, variables, rewire, first=0.0, weights=(AVERAGE,)):
    before = {name: variable.numpy() for name, variable in variables.items()}
    sources = layer.indices.numpy()
    rewire(layer, optimizer)
    moved = layer.indices.numpy() != sources
    assert 40 < moved.sum() < 200
    for name, variable in variables.items():
        value = variable.numpy()
        start = first if name == "accumulator" else 0.0
        started = value == (layer.kernel.numpy() if name in weights else start)
        kept = value == before[name]
        assert (kept | started).all() and started[moved].all(), name
        assert kept[~moved].mean() > 0.9, name  # a new random source may be the old one


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_moments_start_again_and_averages_take_the_weight(name):
    """In a layer that is rewired in either way, one after the other."""
    options = OPTIONS.get(name, {})
    optimizer = getattr(keras.optimizers, name)(0.01, use_ema=True, **options)
    model, layer = trained(optimizer)
    variables = kept_for(optimizer, layer)
    assert len(variables) > 1 and AVERAGE in variables
    averages = (AVERAGE, "momentum") if name == "ScheduleFreeAdamW" else (AVERAGE,)
    for rewire, most_zeros in ((blind, 0.01), (towards_gradients, 0.2)):
        check_rewiring(layer, optimizer, variables, rewire, 0.25, averages)
        others = [
            v.numpy() for v in optimizer.variables if not any(v is k for k in variables.values())
        ]
        assert not any(np.isnan(value).any() for value in others)
        fit(model)
        assert np.isfinite(layer.kernel.numpy()).all()
        assert (layer.kernel.numpy() == 0).mean() < most_zeros


def test_all_of_keras_are_known():
    named = {n for n, kind in vars(keras.optimizers).items() if inspect.isclass(kind)}
    wrappers = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer", "OptimizerMap"}
    assert named - set(STARTS) - wrappers == set()


@pytest.mark.parametrize("rewire", [blind, towards_gradients])
def test_within_a_wrapper(rewire):
    inner = keras.optimizers.Adam(0.01)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0)
    _, layer = trained(optimizer)
    check_rewiring(layer, optimizer, kept_for(inner, layer), rewire)
    with pytest.raises(ValueError, match=r"does not train .*/kernel"):
        rewire(
            layer, keras.optimizers.LossScaleOptimizer(trained(keras.optimizers.SGD())[0].optimizer)
        )


def test_one_of_several_optimizers():
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        return  # an older Keras
    adam, sgd = keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.01, momentum=0.9)
    several = keras.optimizers.OptimizerMap(sgd)
    several[".*fixed_fan_in.*"] = adam
    optimizer = keras.optimizers.MultiOptimizer(several)
    _, layer = trained(optimizer)
    assert set(kept_for(adam, layer)) == {"momentum", "velocity"}
    check_rewiring(layer, optimizer, kept_for(adam, layer), blind)


def test_gradients_that_wait_for_their_step_are_dropped():
    optimizer = keras.optimizers.Adam(0.01, gradient_accumulation_steps=4)
    _, layer = trained(optimizer)
    variables = kept_for(optimizer, layer)
    assert variables["gradient_accumulator"].numpy().any()
    check_rewiring(layer, optimizer, variables, blind)


def test_the_average_of_weights_ends_in_the_model():
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=2)
    model, layer = trained(optimizer)
    layer.rewire(0.5, optimizer)
    fit(model)
    assert (layer.kernel.numpy() == 0).sum() == 0


def test_layers_of_one_name_have_their_own_moments():
    first, second = (FixedFanIn(50, 6, name="same", seed=seed) for seed in (0, 1))
    for layer in (first, second):
        layer.build((None, 20))
    assert first.kernel.path == second.kernel.path
    optimizer = keras.optimizers.Adam()
    optimizer.build([first.kernel, second.kernel])
    for variable in optimizer.variables[2:]:
        variable.assign(np.ones(variable.shape))
    second.rewire(0.5, optimizer)
    zeros = [int((variable.numpy() == 0).sum()) for variable in optimizer.variables[2:]]
    assert sorted(zeros)[:2] == [0, 0] and sorted(zeros)[2] > 100


class Mine(keras.optimizers.Adam):
    """An optimizer of the user's own, which keeps more."""

    def build(self, variables):
        super().build(variables)
        self.slow = self.add_optimizer_variables(variables, "slow")


class Hidden(keras.optimizers.Adam):
    """Which keeps it in another way."""

    def build(self, variables):
        super().build(variables)
        self.slow = {
            variable.path: self.add_variable_from_reference(variable, "slow")
            for variable in variables
        }


class Adam(keras.optimizers.Optimizer):
    """Another of a known name."""


@pytest.mark.parametrize("rewire", [blind, towards_gradients])
def test_what_is_not_known_is_refused(rewire):
    _, layer = trained(keras.optimizers.SGD())
    indices, kernel = layer.indices.numpy(), layer.kernel.numpy()
    for optimizer, message in (
        (Mine(), "nothing of 'slow', which this Mine keeps for each weight beside _momentums"),
        (Hidden(), "nothing of '.*kernel_slow', which this Hidden keeps for each weight"),
        (Adam(0.1), "nothing of what Adam keeps for each weight, only of keras's own Adadelta"),
        ("adam", r"optimizer must be one of keras\.optimizers, got 'adam'"),
    ):
        if isinstance(optimizer, keras.optimizers.Optimizer):
            optimizer.build([layer.kernel, layer.bias])
        with pytest.raises(ValueError, match=message):
            rewire(layer, optimizer)
    np.testing.assert_array_equal(layer.indices.numpy(), indices)
    np.testing.assert_array_equal(layer.kernel.numpy(), kernel)
