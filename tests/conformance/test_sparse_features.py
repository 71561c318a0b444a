"""Models of sparse features in both frameworks and both executions, against float64 NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from near import assert_near
from reference import Model
from setups import random_batch, random_csr, scaled_weights, setup_name, starting, trainer

from fanin.backends.arrays import copied
from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.interface import Storage
from fanin.backends.kinds import Dense, FixedFanIn, GroupedFanIn, Unstructured
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.datasets import Batch

WORDS = 60
SETUPS = [
    LayerSetup(WORDS, 40, FixedFanIn(4), intermediate=9, sparse_features=True),
    LayerSetup(WORDS, 40, Dense(), intermediate=33, sparse_features=True, loss="bce"),
    LayerSetup(WORDS, 40, Unstructured(4), intermediate=9, sparse_features=True, scaled=True),
    LayerSetup(WORDS, 40, GroupedFanIn(4, 16), intermediate=9, sparse_features=True),
    LayerSetup(
        WORDS, 40, HeadAndTail(Dense(), FixedFanIn(4), 7), intermediate=9, sparse_features=True
    ),
]
SETUP = SETUPS[0]
ROWS = Storage(row_moments=True)

each_setup = pytest.mark.parametrize("setup", SETUPS, ids=setup_name)
each_execution = pytest.mark.parametrize("execution", ["autograd", "fused"])
each_form = pytest.mark.parametrize("storage", [Storage(), ROWS], ids=["moments", "rows"])


def start(framework, setup, execution, storage, device="cpu", seed=0):
    """A trainer, and the arrays that it starts with."""
    arrays = starting(setup, seed)
    # As large as after some training, so that the scores matter.
    scaled_weights(setup, arrays, 0.3)
    if setup.scaled:
        arrays["features.scale"] = np.linspace(0.5, 2, setup.inputs, dtype=np.float32)
    options = {"device": device, "execution": execution, "storage": storage}
    return make_trainer(framework, setup, arrays, **options), arrays


def batch_of(features, seed=0, share=0.1):
    """A batch with these features."""
    rng = np.random.default_rng(seed)
    instances, label_ids = np.nonzero(rng.random((features.shape[0], 40)) < share)
    return Batch(features, instances.astype(np.int32), label_ids)


@pytest.mark.slow
@each_execution
@each_form
@each_setup
def test_each_of_a_hundred_steps_follows_the_reference(
    framework, device, setup, execution, storage
):
    ours, arrays = start(framework, setup, execution, storage, device)
    model = Model(setup, arrays, storage.row_moments)
    for step in range(100):
        batch = random_batch(setup, 7 if step % 10 == 9 else 32, step)
        assert_near(ours.train([batch], 3e-3), [model.step(batch, 3e-3)], 1e-5)
        if step % 10 and step != 99:
            continue
        for name, array in ours.arrays():
            expected = model.arrays[name]
            assert np.abs(array - expected).max() < 1e-4, (name, step)
    for key, array in ours.optimizer_arrays():
        name, _, moment = key.rpartition(".")
        expected = getattr(model, moment)[name] if name else model.steps
        assert_near(array, expected, 1e-4)


@each_execution
@each_form
def test_only_rows_of_words_in_the_batch_change(framework, device, execution, storage):
    ours, _ = start(framework, SETUP, execution, storage, device)
    ours.train([random_batch(SETUP, 32, 0)], 1e-2)
    before = copied(ours.arrays()) | copied(ours.optimizer_arrays())
    used = np.array([3, 4, 40])
    x = np.zeros((8, WORDS), np.float32)
    x[:, used] = np.random.default_rng(0).random((8, 3)) + 0.1
    ours.train([batch_of(sp.csr_array(x))], 1e-2)
    after = copied(ours.arrays()) | copied(ours.optimizer_arrays())
    others = np.setdiff1d(np.arange(WORDS), used)
    names = [name for name in before if name.startswith("intermediate.weights")]
    assert len(names) == (2 if storage.row_moments else 3)
    for name in names:
        np.testing.assert_array_equal(after[name][others], before[name][others], name)
        changed = (after[name] != before[name]).reshape(WORDS, -1).any(1)
        assert changed[used].all(), name


@each_execution
@each_form
def test_a_run_goes_on_in_another_trainer(framework, device, execution, storage):
    first, _ = start(framework, SETUP, execution, storage, device, seed=1)
    first.train([random_batch(SETUP, 32, seed) for seed in range(5)], 1e-2)
    weights, state = first.weights(), copied(first.optimizer_arrays())
    assert list(weights) == list(SETUP.array_shapes())
    assert weights["intermediate.weights"].shape == (WORDS, 9)
    trained = ["intermediate.weights", "intermediate.bias", "output.weights", "output.bias"]
    names = [f"{name}.{moment}" for name in trained for moment in "mv"]
    if storage.row_moments:
        names.remove("intermediate.weights.m")
    assert list(state) == [*names, "steps"]
    shape = (WORDS,) if storage.row_moments else (WORDS, 9)
    assert state["intermediate.weights.v"].shape == shape

    later = [random_batch(SETUP, 32, seed) for seed in range(9, 14)]
    losses = first.train(later, 1e-2)
    for other in ("autograd", "fused"):
        second, _ = start(framework, SETUP, other, storage, device, seed=2)
        second.load_weights(weights)
        second.load_optimizer_arrays(state)
        theirs = second.train(later, 1e-2)
        if other == execution:
            np.testing.assert_array_equal(theirs, losses)
        assert_near(theirs, losses, 1e-5)


@each_execution
def test_moments_of_another_form_are_refused(framework, execution):
    full, rows = (start(framework, SETUP, execution, storage)[0] for storage in (Storage(), ROWS))
    state = {trainer: copied(trainer.optimizer_arrays()) for trainer in (full, rows)}
    of_another = "arrays of another model or storage: "
    name = r"\['intermediate.weights.m'\]"
    with pytest.raises(ValueError, match=rf"{of_another}missing {name}, not known here \[\]"):
        full.load_optimizer_arrays(state[rows])
    with pytest.raises(ValueError, match=rf"{of_another}missing \[\], not known here {name}"):
        rows.load_optimizer_arrays(state[full])


@each_execution
@each_setup
def test_top_k(framework, device, setup, execution, monkeypatch):
    ours, arrays = start(framework, setup, execution, Storage(), device)
    x = random_csr((50, WORDS), np.random.default_rng(5))
    assert not np.diff(x.indptr).all()  # an instance without words
    x = sp.vstack([x, sp.csr_array((1, WORDS), dtype=np.float32)], format="csr")
    expected = np.argsort(-Model(setup, arrays).scores(x), axis=1, kind="stable")[:, :5]
    executor = type(ours._executor)
    np.testing.assert_array_equal(ours.top_k(x, 5), expected)
    monkeypatch.setattr(executor, "most_scores", setup.labels * 7, raising=False)
    np.testing.assert_array_equal(ours.top_k(x, 5), expected)
    assert ours.top_k(x[:0], 3).shape == (0, 3)
    with pytest.raises(ValueError, match=r"k must be in 1\.\.40 .*0"):
        ours.top_k(x, 0)


@each_execution
@each_form
def test_instances_without_words(framework, device, execution, storage):
    """At the end of a batch, and as all of it: only biases can tell labels apart then."""
    ours, arrays = start(framework, SETUP, execution, storage, device)
    model = Model(SETUP, arrays, storage.row_moments)
    x = random_csr((8, WORDS), np.random.default_rng(1))
    ends_empty = sp.vstack([x, sp.csr_array((3, WORDS), dtype=np.float32)], format="csr")
    for features in (ends_empty, sp.csr_array((4, WORDS), dtype=np.float32), x):
        batch = batch_of(features)
        assert_near(ours.train([batch], 1e-2), [model.step(batch, 1e-2)], 1e-6)
    for name, array in ours.arrays():
        assert_near(array, model.arrays[name], 3e-6)


@each_execution
def test_other_forms_of_csr(framework, device, execution):
    """Wide indices, SciPy's older class and words out of order give the same results."""
    losses = []
    plain = random_batch(SETUP, 32, 0)
    x = plain.features
    wide = sp.csr_array(x)
    wide.indices, wide.indptr = x.indices.astype(np.int64), x.indptr.astype(np.int64)
    starts = x.indptr[-1] - x.indptr[::-1]
    backwards = sp.csr_array((x.data[::-1], x.indices[::-1], starts), x.shape)[::-1]
    assert not backwards.has_sorted_indices
    for features in (x, wide, sp.csr_matrix(x), backwards):
        ours, _ = start(framework, SETUP, execution, Storage(), device)
        batch = replace(plain, features=features)
        losses.append(ours.train([batch] * 3, 1e-2))
        np.testing.assert_array_equal(ours.top_k(features, 3), ours.top_k(x, 3))
    for other in losses[1:]:
        assert_near(other, losses[0], 1e-6)


def bad_features():
    """Features that a model of 60 words cannot read, and the error for each."""
    good = random_csr((4, WORDS), np.random.default_rng(0))
    at = int(np.flatnonzero(np.diff(good.indptr))[1])  # the second instance with words
    first = good.indptr[at]
    for value in (np.nan, np.inf):
        bad = good.copy()
        bad.data[first] = value
        yield bad, rf"features\[{at}, {good.indices[first]}\] is {value}; all .* must be finite"
    outside = good.copy()
    outside.indices[0] = WORDS
    yield outside, r"features must be a valid CSR matrix \[4, 60\]: .*indices must be < 60"
    negative = good.copy()
    negative.indices[0] = -1
    yield negative, r"features must be a valid CSR matrix \[4, 60\]: .*indices must be >= 0"
    descends = good.copy()
    descends.indptr[1] = descends.indptr[-1] + 1
    yield descends, r"features must be a valid CSR matrix \[4, 60\]"
    yield good.astype(np.float64), "features must be float32, got float64; features.astype"
    yield good[:, :59], r"features must be \[instances, 60\] \(the inputs\), got \[4, 59\]"
    yield good.toarray(), "must be a SciPy CSR array, .* got ndarray; scipy.sparse.csr_array"
    yield good.tocoo(), "must be a SciPy CSR array, .* got coo_array; scipy.sparse.csr_array"


@each_execution
def test_bad_features_change_nothing(framework, execution):
    """The same text in both frameworks, and for training and prediction."""
    ours, arrays = start(framework, SETUP, execution, Storage())
    for features, message in bad_features():
        bad = Batch(features, np.zeros(1, np.int32), np.zeros(1, np.int64))
        with pytest.raises(ValueError, match=message):
            ours.train([bad], 1e-2)
        with pytest.raises(ValueError, match=message):
            ours.top_k(features, 3)
    assert dict(ours.optimizer_arrays())["steps"] == 0
    for name, array in ours.arrays():
        np.testing.assert_array_equal(array, arrays[name], name)


@each_execution
def test_a_model_of_dense_features_refuses_sparse_ones(framework, execution):
    ours = trainer(framework, LayerSetup(WORDS, 40, Dense()), execution=execution)
    batch = random_batch(SETUP, 4, 0)
    message = "features must be dense, .* got csr_array; hand over features.toarray\\(\\), or"
    with pytest.raises(ValueError, match=message):
        ours.train([batch], 1e-2)
    with pytest.raises(ValueError, match=message):
        ours.top_k(batch.features, 3)


def test_row_moments_need_sparse_features(framework):
    with pytest.raises(ValueError, match="row moments need sparse features"):
        trainer(framework, LayerSetup(WORDS, 40, Dense(), intermediate=9), storage=ROWS)


@each_execution
def test_counted_bytes(framework, execution):
    labels = 40
    weights, output, biases = WORDS * 9, labels * 4, labels + 9
    for storage, moments in ((Storage(), 2 * weights), (ROWS, WORDS)):
        ours, _ = start(framework, SETUP, execution, storage)
        counted = ours.state_bytes()
        assert counted[0] == 4 * (weights + output + biases) + 2 * labels * 4  # uint16 sources
        assert counted[1] == 4 * (moments + 2 * (output + biases))


@each_form
def test_bfloat16_trains_as_well(framework, device, storage):
    setup = LayerSetup(200, 60, FixedFanIn(16), intermediate=64, sparse_features=True)
    rng = np.random.default_rng(0)
    texts = random_csr((60, 200), rng, words=8)  # one for each label
    stream = []
    for _ in range(300):
        label_ids = rng.integers(0, 60, 32)
        x = texts[label_ids]
        x.data *= rng.random(x.nnz, np.float32) > 0.1
        x.eliminate_zeros()
        stream.append(Batch(x, np.arange(32, dtype=np.int32), label_ids))
    for dtype in ("float32", "bfloat16"):
        options = {"device": device, "execution": "fused"}
        ours = trainer(
            framework, setup, storage=replace(storage, weights=dtype, moments=dtype), **options
        )
        ours.train(stream, 1e-2)
        assert (ours.top_k(texts, 1)[:, 0] == np.arange(60)).mean() > 0.9
        width = 4 if dtype == "float32" else 2
        moments = 200 * 4 if storage.row_moments else 2 * width * 200 * 64
        assert ours.state_bytes()[1] == moments + 2 * (width * 60 * 16 + 4 * (60 + 64))
