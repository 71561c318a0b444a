"""The auxiliary loss over clusters of labels, in both frameworks and both executions."""

from __future__ import annotations

import numpy as np
import pytest
from near import assert_near, difference
from reference import Model, loss, of_bias, update
from setups import random_batch, random_batches, scaled_weights, setup_name, starting, trainer

from fanin.backends.arrays import copied
from fanin.backends.auxiliary import BIAS, CLUSTERS, WEIGHTS, Auxiliary
from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.interface import Storage
from fanin.backends.kinds import Dense, FixedFanIn, GroupedFanIn, Unstructured
from fanin.backends.optimizer import ADAM, Optimizer
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup

LABELS, UNITS, COUNT = 40, 9, 6
SETUPS = [
    LayerSetup(12, LABELS, FixedFanIn(4), intermediate=UNITS),
    LayerSetup(12, LABELS, Unstructured(4), intermediate=UNITS, loss="bce"),
    LayerSetup(12, LABELS, Dense(), intermediate=UNITS),
    LayerSetup(12, LABELS, GroupedFanIn(4, 16), intermediate=UNITS),
    LayerSetup(12, LABELS, HeadAndTail(Dense(), FixedFanIn(4), 7), intermediate=UNITS),
    LayerSetup(60, LABELS, FixedFanIn(4), intermediate=UNITS, sparse_features=True),
]
OPTIMIZERS = [ADAM, Optimizer("sgd", 1e-3, 1e-4), Optimizer("momentum", l2=1e-4, momentum=0.7)]
each_setup = pytest.mark.parametrize("setup", SETUPS, ids=setup_name)
each_execution = pytest.mark.parametrize("execution", ["autograd", "fused"])


def some_clusters(seed=0):
    """Each of them has labels."""
    return np.random.default_rng(seed).permutation(np.arange(LABELS) % COUNT)


def auxiliary(weight=0.6, steps=8, seed=0, clusters=None):
    return Auxiliary(some_clusters() if clusters is None else clusters, weight, steps, seed)


class ModelWithClusters(Model):
    """The reference with an auxiliary loss whose layer begins with these arrays."""

    def __init__(self, setup, arrays, clusters, weight, steps, first, optimizer):
        super().__init__(setup, arrays, optimizer=optimizer)
        self.clusters, self.weight, self.until = clusters, weight, steps
        self.layer = {name: first[name].astype(np.float64) for name in (WEIGHTS, BIAS)}
        self.layer_m = {name: np.zeros(array.shape) for name, array in self.layer.items()}
        self.layer_v = {name: np.zeros(array.shape) for name, array in self.layer.items()}

    def beside(self, hidden, batch, learning_rate):
        if self.steps >= self.until:
            return 0
        share = COUNT / LABELS
        weight = share * self.weight * (1 + np.cos(np.pi * self.steps / self.until)) / 2
        rate = learning_rate * (1 if self.optimizer.kind == "adam" else share)
        scores = hidden @ self.layer[WEIGHTS] + self.layer[BIAS]
        pairs = (batch.positive_instances, self.clusters[batch.positive_labels])
        g = loss("bce", scores, *pairs)[1]
        grad = weight * g @ self.layer[WEIGHTS].T
        for name, of_layer in ((WEIGHTS, hidden.T @ g), (BIAS, g.sum(0))):
            optimizer = of_bias(self.optimizer) if name == BIAS else self.optimizer
            state = (self.layer[name], self.layer_m[name], self.layer_v[name])
            update(optimizer, rate, self.steps + 1, *state, of_layer)
        return grad


def start(framework, setup, execution, device="cpu", optimizer=ADAM, given=None, **options):
    """A trainer, and the arrays that it starts with."""
    arrays = starting(setup, 0)
    # As large as after some training, so that the scores matter.
    scaled_weights(setup, arrays, 0.3)
    options |= {"device": device, "execution": execution, "optimizer": optimizer}
    return make_trainer(framework, setup, arrays, auxiliary=given, **options), arrays


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@each_execution
@each_setup
def test_each_step_follows_the_reference(framework, device, setup, execution, optimizer):
    """To the end of the weight and beyond, where the layer over clusters stays as it is."""
    given = auxiliary()
    ours, arrays = start(framework, setup, execution, device, optimizer, given)
    first = copied(ours.optimizer_arrays())
    assert np.abs(first[WEIGHTS]).max() > 0.3 and not first[BIAS].any()
    model = ModelWithClusters(setup, arrays, some_clusters(), 0.6, 8, first, optimizer)
    rate = 3e-3 * (1 if optimizer.kind == "adam" else 32 * LABELS)
    for step in range(12):
        batch = random_batch(setup, 32, step)
        assert_near(ours.train([batch], rate), [model.step(batch, rate)], 1e-5)
        for name, array in ours.arrays():
            assert np.abs(array - model.arrays[name]).max() < 1e-4, (name, step)
        state = copied(ours.optimizer_arrays())
        for name, array in model.layer.items():
            assert np.abs(state[name] - array).max() < 1e-4, (name, step)
    for name in (WEIGHTS, BIAS):
        for moment, expected in (("m", model.layer_m), ("v", model.layer_v)):
            if moment in optimizer.keeps:
                assert_near(state[f"{name}.{moment}"], expected[name], 1e-4)
    np.testing.assert_array_equal(state[CLUSTERS], some_clusters())


@each_execution
def test_it_changes_what_the_intermediate_layer_learns_and_not_the_loss(framework, execution):
    batches = random_batches(SETUPS[0], 2, share=0.1)
    plain, _ = start(framework, SETUPS[0], execution)
    helped, _ = start(framework, SETUPS[0], execution, given=auxiliary())
    losses = [each.train(batches[:1], 1e-3) for each in (plain, helped)]
    np.testing.assert_array_equal(*losses)
    for name, array in plain.arrays():
        is_same = np.array_equal(array, helped.array(name))
        assert is_same == (not name.startswith("intermediate")), name
    assert plain.train(batches[1:], 1e-3) != helped.train(batches[1:], 1e-3)


@pytest.mark.slow
def test_many_fused_steps_follow_autograd(framework):
    """Whether a ReLU input within rounding of 0 is active is chance: the second takes over the
    first's state every 50 steps, as in `test_executions`."""
    setup = LayerSetup(20, LABELS, FixedFanIn(4), intermediate=64)
    one, other = (
        trainer(framework, setup, execution=execution, auxiliary=auxiliary(steps=350))
        for execution in ("autograd", "fused")
    )
    for step in range(400):
        batch = random_batch(setup, 32, [0, step], 0.02)
        if step % 50 == 0:
            other.load_weights(one.weights())
            other.load_optimizer_arrays(copied(one.optimizer_arrays()))
        losses = [each.train([batch], 1e-3)[0] for each in (one, other)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5), step
    moments = copied(one.optimizer_arrays())
    for name, array in copied(other.optimizer_arrays()).items():
        assert difference(array, moments[name]) < 1e-4, name


@pytest.mark.parametrize("setup", SETUPS[:3:2], ids=setup_name)
def test_a_run_goes_on_in_another_trainer(framework, device, setup):
    """With the clusters that it was begun with, whatever those of the other trainer are."""
    first, _ = start(framework, setup, "autograd", device, given=auxiliary())
    first.train(random_batches(setup, 3, share=0.1), 1e-2)
    weights, state = first.weights(), copied(first.optimizer_arrays())
    assert not {WEIGHTS, BIAS, CLUSTERS} & weights.keys()
    later = random_batches(setup, 3, seed=5, share=0.1)
    losses = first.train(later, 1e-2)
    for execution in ("autograd", "fused"):
        own = auxiliary(seed=4, clusters=some_clusters(3))
        second, _ = start(framework, setup, execution, device, given=own)
        second.load_weights(weights)
        second.load_optimizer_arrays(state)
        for name, array in second.optimizer_arrays():
            np.testing.assert_array_equal(array, state[name], name)
        np.testing.assert_allclose(second.train(later, 1e-2), losses, rtol=1e-5)


def test_its_layer_is_stored_like_all_weights(framework, device):
    setup, trained = SETUPS[0], []
    for dtype in ("float32", "bfloat16"):
        options = {"storage": Storage(dtype, dtype), "given": auxiliary(steps=100)}
        one, _ = start(framework, setup, "fused", device, **options)
        plain, _ = start(framework, setup, "fused", device, storage=Storage(dtype, dtype))
        beside = one.state_bytes()[1] - plain.state_bytes()[1]
        number = 4 if dtype == "float32" else 2
        assert beside == 3 * number * UNITS * COUNT + 3 * 4 * COUNT + 4 * LABELS
        assert one.state_bytes()[0] == plain.state_bytes()[0]
        one.train(random_batches(setup, 30, share=0.1), 1e-2)
        trained.append(dict(one.optimizer_arrays())[WEIGHTS])
    assert 0 < difference(trained[1], trained[0]) < 0.1


def test_what_cannot_be(framework):
    def refused(message, given, setup=SETUPS[0]):
        with pytest.raises(ValueError, match=message):
            trainer(framework, setup, auxiliary=given())

    refused("for an intermediate layer", auxiliary, LayerSetup(12, LABELS, Dense()))
    refused(r"must be \[40\] \(the labels\), got \[3\]", lambda: Auxiliary(np.arange(3), 1, 1))
    refused("a weight and steps above 0, got 0 and 8", lambda: auxiliary(0))
    refused("a weight and steps above 0, got nan", lambda: auxiliary(np.nan))
    refused("a weight and steps above 0, got 0.6 and 0", lambda: auxiliary(steps=0))
    refused("must be integers", lambda: auxiliary(clusters=np.ones(LABELS)))
    refused("values -1 to 38", lambda: auxiliary(clusters=np.arange(LABELS) - 1))
    one = trainer(framework, SETUPS[0], auxiliary=auxiliary())
    plain = trainer(framework, SETUPS[0])
    with pytest.raises(ValueError, match=r"missing \[\], not known here \['auxiliary.bias'"):
        plain.load_optimizer_arrays(copied(one.optimizer_arrays()))
    state = copied(one.optimizer_arrays())
    with pytest.raises(ValueError, match="must be 6 clusters of 40 labels, got 40 of 40"):
        one.load_optimizer_arrays(state | {CLUSTERS: np.arange(LABELS)})


@pytest.mark.parametrize("wrong", [-1, LABELS])
def test_a_label_that_is_none_is_named(framework, on_cpu, wrong):
    one = trainer(framework, SETUPS[0], execution="fused", auxiliary=auxiliary())
    batch = random_batch(SETUPS[0], 8, 0)
    batch.positive_labels[3] = wrong
    with pytest.raises(ValueError, match=rf"positive_labels\[3\] is {wrong}, out of range"):
        one.train([batch], 1e-3)
