"""Scale and dictionary of a model's features, and connections that are given: in both backends and
both executions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from frameworks import EACH_BACKEND
from reference import Model

from fanin.backends.arrays import InitialArrays, copied, initial_arrays
from fanin.backends.features import DICTIONARY, FeatureTransform, inputs_as_atoms
from fanin.backends.features import SCALE as SCALE_NAME
from fanin.backends.kinds import Dense, FixedFanIn, Unstructured
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.datasets import Batch

SETUPS = [
    LayerSetup(30, 50, FixedFanIn(8), scaled=True),
    LayerSetup(30, 50, FixedFanIn(4), intermediate=20, loss="bce", scaled=True),
    LayerSetup(30, 50, Dense(), scaled=True),
    LayerSetup(30, 50, Unstructured(5), scaled=True),
    LayerSetup(30, 50, FixedFanIn(8), scaled=True, atoms=37),
    LayerSetup(30, 50, Dense(), loss="bce", atoms=30),
]
SCALE = np.geomspace(0.2, 4, 30).astype(np.float32)
DICTIONARIES = {
    atoms: np.random.default_rng(7).standard_normal((30, atoms), np.float32) / np.float32(5)
    for atoms in (30, 37)
}

every_setup = pytest.mark.parametrize(
    "setup",
    SETUPS,
    ids=lambda setup: f"{setup.output}-{setup.intermediate}-{setup.scaled}-{setup.atoms}",
)
every_trainer = pytest.mark.parametrize("backend", EACH_BACKEND)
executions = pytest.mark.parametrize("execution", ["autograd", "fused"])


def make_batch(size, seed):
    rng = np.random.default_rng(seed)
    instances, labels = np.nonzero(rng.random((size, 50)) < 0.1)
    features = rng.standard_normal((size, 30)).astype(np.float32)
    return Batch(features, instances.astype(np.int32), labels.astype(np.int64))


def transform_of(setup):
    return FeatureTransform(SCALE if setup.scaled else None, DICTIONARIES.get(setup.atoms))


def given_arrays(setup):
    """Initial arrays with the transform, and weights as large as after some training."""
    arrays = dict(InitialArrays(setup, 0, transform_of(setup).arrays))
    arrays["output.weights"] *= np.float32(0.3 / np.abs(arrays["output.weights"]).max())
    return arrays


def plain(setup, arrays):
    """The same model without scale and dictionary."""
    transforms = (SCALE_NAME, DICTIONARY)
    rest = {name: array.copy() for name, array in arrays.items() if name not in transforms}
    return replace(setup, inputs=setup.first_inputs, scaled=False, atoms=None), rest


def near(a, b, tolerance):
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


BATCHES = [make_batch(size, seed) for seed, size in enumerate([32, 32, 7])]


@executions
@every_setup
@every_trainer
def test_training_and_prediction_follow_features_that_are_changed_before(backend, setup, execution):
    arrays, transform = given_arrays(setup), transform_of(setup)

    def changed(batch):
        features = transform.apply(batch.features)
        return Batch(features, batch.positive_instances, batch.positive_labels)

    trainer = make_trainer(backend, setup, arrays, execution=execution, device="cpu")
    unscaled, rest = plain(setup, arrays)
    other = make_trainer(backend, unscaled, rest, execution=execution, device="cpu")
    reference = Model(unscaled, rest)
    kept = BATCHES[0].features.copy()

    losses = trainer.train(BATCHES, 3e-3)
    np.testing.assert_array_equal(losses, other.train(map(changed, BATCHES), 3e-3))
    near(losses, np.array([reference.step(changed(batch), 3e-3) for batch in BATCHES]), 1e-5)
    np.testing.assert_array_equal(BATCHES[0].features, kept)  # what was given is not changed
    state = copied(trainer.arrays())
    assert list(state) == list(setup.array_shapes())
    assert [name for name in state if name.startswith("features.")] == list(transform.arrays)
    for name, array in transform.arrays.items():
        np.testing.assert_array_equal(state.pop(name), array)  # it is not trained
    for name, array in other.arrays():
        np.testing.assert_array_equal(state[name], array, name)
        near(array, reference.arrays[name], 3e-6)
    moments = dict(trainer.optimizer_arrays())
    assert not any(name.startswith("features.") for name in moments)

    x = make_batch(40, 9).features
    np.testing.assert_array_equal(trainer.top_k(x, 5), other.top_k(transform.apply(x), 5))
    if setup.first_inputs == setup.inputs:
        assert (trainer.top_k(x, 5) != other.top_k(x, 5)).any()

    with_scale, without = trainer.state_bytes(), other.state_bytes()
    more = sum(array.nbytes for array in transform.arrays.values())
    assert with_scale[0] - without[0] == more and with_scale[1] == without[1]


@executions
@every_trainer
def test_a_model_is_loaded_with_its_scale(backend, execution):
    setup = SETUPS[0]
    trainer = make_trainer(backend, setup, given_arrays(setup), execution=execution, device="cpu")
    trainer.train(BATCHES, 3e-3)
    weights = trainer.weights()
    weights[SCALE_NAME] = weights[SCALE_NAME][::-1].copy()
    other = make_trainer(
        backend, setup, initial_arrays(setup, 5), execution=execution, device="cpu"
    )
    np.testing.assert_array_equal(other.array(SCALE_NAME), np.ones(30))
    other.load_weights(weights)
    for name, array in other.arrays():
        np.testing.assert_array_equal(array, weights[name], name)
    weights[SCALE_NAME][:] = 1  # the trainer has its own
    expected = make_trainer(
        backend, *plain(setup, weights), execution=execution, device="cpu"
    ).top_k(BATCHES[0].features * SCALE[::-1], 5)
    np.testing.assert_array_equal(other.top_k(BATCHES[0].features, 5), expected)

    for wrong in (0, -1, np.nan, np.inf):
        bad = {**weights, SCALE_NAME: np.full(30, wrong, np.float32)}
        with pytest.raises(ValueError, match=r"features\.scale must be finite and above 0"):
            other.load_weights(bad)
    with pytest.raises(ValueError, match=r"features\.scale must be \[30\], got \[29\]"):
        other.load_weights({**weights, SCALE_NAME: SCALE[:29]})
    with pytest.raises(ValueError, match=r"missing \['features\.scale'\]"):
        other.load_weights(plain(setup, weights)[1])


@executions
@every_trainer
def test_connections_and_biases_that_are_given(backend, execution):
    setup = LayerSetup(30, 50, FixedFanIn(8))
    sources = np.tile(np.arange(8, dtype=np.uint16) * 3, (50, 1))
    given = {"output.indices": sources, "output.bias": np.full(50, -2, np.float32)}
    initial = InitialArrays(setup, 0, given)
    trainer = make_trainer(backend, setup, initial, execution=execution, device="cpu")
    np.testing.assert_array_equal(trainer.array("output.indices"), sources)
    np.testing.assert_array_equal(trainer.array("output.bias"), given["output.bias"])
    usual = initial_arrays(setup, 0)["output.weights"]
    np.testing.assert_array_equal(trainer.array("output.weights"), usual)


@every_trainer
def test_a_model_is_loaded_with_its_dictionary(backend):
    setup = SETUPS[4]
    trainer = make_trainer(backend, setup, given_arrays(setup), device="cpu")
    weights = trainer.weights()
    weights[DICTIONARY] = weights[DICTIONARY][::-1].copy()
    other = make_trainer(backend, setup, initial_arrays(setup, 5), device="cpu")
    np.testing.assert_array_equal(other.array(DICTIONARY), inputs_as_atoms(30, 37))
    other.load_weights(weights)
    np.testing.assert_array_equal(other.array(DICTIONARY), weights[DICTIONARY])
    x = BATCHES[0].features
    expected = make_trainer(backend, *plain(setup, weights), device="cpu")
    changed = FeatureTransform(weights[SCALE_NAME], weights[DICTIONARY]).apply(x)
    np.testing.assert_array_equal(other.top_k(x, 5), expected.top_k(changed, 5))
    bad = weights[DICTIONARY].copy()
    bad[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"features\.dictionary must be finite"):
        other.load_weights({**weights, DICTIONARY: bad})


class TestInitialArrays:
    def test_a_scale_changes_no_other_number(self):
        with_scale, without = (
            initial_arrays(LayerSetup(30, 50, FixedFanIn(8), 20, scaled=scaled), 3)
            for scaled in (True, False)
        )
        np.testing.assert_array_equal(with_scale.pop(SCALE_NAME), np.ones(30))
        assert list(with_scale) == list(without)
        for name, array in without.items():
            np.testing.assert_array_equal(with_scale[name], array, name)

    def test_what_is_given_has_a_name_of_the_model(self):
        with pytest.raises(KeyError, match=r"'features\.scale' is none of output\.indices"):
            InitialArrays(LayerSetup(30, 50, FixedFanIn(8)), 0, {SCALE_NAME: SCALE})
