"""The estimator in both backends: it learns, predicts, goes on, is saved, and refuses."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from frameworks import EACH_BACKEND
from planted import FAN_IN, LABELS, planted_data
from sklearn.base import clone

from fanin.backends.arrays import initial_arrays
from fanin.backends.estimate import TooLargeError
from fanin.backends.estimator import classifier as classifier_module
from fanin.backends.estimator import planning, saved
from fanin.backends.estimator.classifier import FanInClassifier
from fanin.backends.estimator.fitting import new_trainer
from fanin.backends.estimator.loading import load
from fanin.backends.estimator.predictor import Predictor
from fanin.backends.estimator.settings import Settings
from fanin.backends.kinds import ORDER, FixedFanIn, GroupedFanIn
from fanin.backends.recipes import PAPER, Recipe
from fanin.backends.setup import LayerSetup

X, Y = planted_data(600)
TEST_X, TEST_Y = planted_data(200, seed=0)
each_backend = pytest.mark.parametrize("backend", EACH_BACKEND)


def classifier(backend, **more):
    return FanInClassifier(
        **{"fan_in": FAN_IN, "backend": backend, "random_state": 0, "epochs": 4, "threads": 1}
        | more
    )


def words(x=X):
    """The features as CSR: the large ones."""
    return sp.csr_array(np.where(np.abs(x) > np.quantile(np.abs(x), 0.7), x, 0).astype(np.float32))


@each_backend
@pytest.mark.parametrize("execution", ["fused", "autograd"])
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_learns(backend, execution, form):
    x = X if form == "dense" else words()
    intermediate = None if form == "dense" else 512
    model = classifier(backend, execution=execution, epochs=20, intermediate=intermediate)
    fitted = model.fit(x, Y)
    assert fitted.score(x, Y) > 0.6
    assert [epoch.loss for epoch in fitted.history_][-1] < 0.8 * fitted.history_[0].loss
    assert (fitted.setup_.intermediate, fitted.setup_.sparse_features) == (
        (None, False) if form == "dense" else (512, True)
    )
    top = fitted.predict_top_k(x, 5)
    scores = fitted.decision_function(x)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(top.ids, order)
    np.testing.assert_allclose(top.scores, np.take_along_axis(scores, order, 1), atol=1e-5)
    predicted = fitted.predict(x)
    assert isinstance(predicted, sp.csr_array)
    np.testing.assert_array_equal(predicted.toarray(), scores > 0)


@each_backend
def test_both_executions_and_all_forms_of_data_give_the_same(backend, tmp_path):
    np.save(tmp_path / "x.npy", X)
    forms = [
        np.asfortranarray(X),
        X.astype(np.float64),
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        pd.DataFrame(X),
        X.tolist(),
    ]
    ids = classifier(backend).fit(X, Y).predict_top_k(TEST_X, 3).ids
    for form in forms:
        again = classifier(backend).fit(form, Y).predict_top_k(TEST_X, 3).ids
        np.testing.assert_array_equal(again, ids)
    lists = [Y[i : i + 1].indices.tolist() for i in range(Y.shape[0])]
    for labels in (lists, Y.toarray(), sp.coo_array(Y)):
        again = classifier(backend).fit(X, labels, np.arange(LABELS)).predict_top_k(TEST_X, 3).ids
        np.testing.assert_array_equal(again, ids)
    autograd = classifier(backend, execution="autograd").fit(X, Y).predict_top_k(TEST_X, 3).ids
    assert (autograd == ids).mean() > 0.99


@each_backend
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_saved_and_loaded(backend, form, tmp_path):
    x = X if form == "dense" else words()
    names = [f"label {i}" for i in range(LABELS)]
    ways = {"execution": "fused"}
    if form == "sparse":
        ways = {"execution": "autograd", "intermediate": 512}
    fitted = classifier(backend, **ways).fit(x, Y, names)
    fitted.save(tmp_path / "model")
    plain = load(tmp_path / "model")
    again = load(tmp_path / "model", backend=backend)
    for other in (plain, again, pickle.loads(pickle.dumps(fitted))):
        ours, theirs = fitted.predict_top_k(x, 5), other.predict_top_k(x, 5)
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_array_equal(ours.scores, theirs.scores)
    assert plain.classes.tolist() == again.classes_.tolist() == names
    params = fitted.get_params() | {"random_state": None, "threads": 0}
    assert again.get_params() == params
    before = again.score(x, Y, k=3)
    for _ in range(5):
        again.partial_fit(x, Y)
    assert again.score(x, Y, k=3) > before


@each_backend
@pytest.mark.parametrize("group_size", [None, 8])
def test_goes_on_from_a_file_as_from_memory(backend, group_size, tmp_path):
    """In either execution, up to rounding; a file knows no moments, and neither does a fit."""
    fitted = classifier(backend, group_size=group_size).fit(X, Y)
    fitted.save(tmp_path / "model")
    before = fitted.decision_function(TEST_X)
    scores = []
    for execution in ("fused", "autograd"):
        again = load(tmp_path / "model", backend=backend)
        again.set_params(random_state=0, execution=execution, threads=1)
        scores.append(again.partial_fit(X, Y).decision_function(TEST_X))
    assert np.abs(scores[0] - scores[1]).max() < 1e-3
    assert np.abs(scores[0] - before).max() > 1e-2


@each_backend
@pytest.mark.parametrize("grouping", [None, "frequency", "meaning", "random"])
def test_labels_that_share_their_sources(backend, grouping, tmp_path):
    ways = {"group_size": 8, "grouping": grouping, "early_stopping": True, "intermediate": 64}
    fitted = classifier(backend, epochs=20, **ways).fit(X, Y)
    assert fitted.setup_.output == GroupedFanIn(FAN_IN, 8)
    assert fitted.score(X, Y) > 0.4
    order = fitted._model.predictor.arrays()[ORDER]
    assert sorted(order) == [*range(LABELS)] and order.tolist() != [*range(LABELS)]
    if grouping in (None, "frequency"):  # of the instances that were not held out
        counts = Y[:, order].sum(0)
        assert counts[:8].mean() > counts[-8:].mean()
    top, scores = fitted.predict_top_k(X, 5), fitted.decision_function(X)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(top.ids, expected)
    fitted.save(tmp_path / "model")
    np.testing.assert_array_equal(load(tmp_path / "model").predict_top_k(X, 5).ids, top.ids)
    planned = classifier(backend, **ways).plan(X, Y)
    trainer = new_trainer(Settings.of(fitted), planned.setup, initial_arrays(planned.setup, 0))
    assert trainer.state_bytes()[0] == planned.expected.parameter_bytes


@each_backend
def test_other_optimizers(backend, tmp_path):
    """They learn, decay, and are known in a file; a plan counts no moments that none keeps."""
    usual = classifier(backend).plan(X, Y).expected
    for options in (
        {"optimizer": "sgd", "learning_rate": 0.1 * LABELS},
        {"optimizer": "momentum", "learning_rate": 0.01 * LABELS},
    ):
        model = classifier(backend, **options)
        moments = {"sgd": 0, "momentum": 1}[options["optimizer"]]
        assert 2 * model.plan(X, Y).expected.optimizer_bytes == moments * usual.optimizer_bytes
        assert model.fit(X, Y).score(X, Y) > 0.5
        model.save(tmp_path / "model")
        again = load(tmp_path / "model", backend=backend)
        assert again.get_params()["optimizer"] == options["optimizer"]
        assert again.partial_fit(X, Y).score(X, Y) > 0.5
    # What weights alone tell: how scores differ from instance to instance.
    spread = [
        classifier(backend, weight_decay=decay).fit(X, Y).decision_function(TEST_X).std(0).mean()
        for decay in (0.0, 10.0)
    ]
    assert spread[1] < 0.9 * spread[0]


@each_backend
def test_an_auxiliary_loss_is_no_part_of_the_model(backend, tmp_path):
    recipe = replace(PAPER, schedule="cosine", auxiliary_weight=1.0, auxiliary_clusters=5)
    helped = classifier(backend, recipe=recipe, intermediate=16)
    plain = clone(helped).set_params(recipe=replace(recipe, auxiliary_weight=0.0))
    beside = [each.plan(X, Y).expected.optimizer_bytes for each in (helped, plain)]
    assert beside[0] - beside[1] == 4 * (3 * (16 + 1) * 5 + LABELS)
    assert helped.fit(X, Y).history_[0].loss != plain.fit(X, Y).history_[0].loss
    helped.save(tmp_path / "model")
    again = load(tmp_path / "model", backend=backend)
    assert again.get_params()["recipe"] == recipe
    np.testing.assert_array_equal(again.decision_function(X), helped.decision_function(X))
    assert np.isfinite(again.partial_fit(X, Y).history_[-1].loss)
    with pytest.raises(ValueError, match="auxiliary_weight of this recipe is for an intermediate"):
        classifier(backend, recipe=recipe).fit(X, Y)
    for wrong in ({"auxiliary_clusters": 0}, {"auxiliary_until": 0.0}, {"warm_up": 1.0}):
        with pytest.raises(ValueError, match=r"auxiliary_clusters must|steps above 0|warm_up must"):
            classifier(backend, recipe=replace(recipe, **wrong), intermediate=16).fit(X, Y)


@each_backend
def test_partial_fit_learns_and_knows_its_classes(backend):
    names = [f"label {i}" for i in range(LABELS)]
    lists = [[names[i] for i in Y[[row]].indices] for row in range(Y.shape[0])]
    model = classifier(backend)
    for first in range(0, 600, 200):
        own = slice(first, first + 200)
        model.partial_fit(X[own], lists[own], names if first == 0 else None)
    assert model.classes_.tolist() == names
    before = model.score(X, lists)
    for _ in range(10):
        model.partial_fit(X, lists)
    assert model.score(X, lists) > max(before, 0.5)
    assert len(model.history_) == 13
    with pytest.raises(ValueError, match=r"y\[0\] has the label 'new', which is none of"):
        model.partial_fit(X[:1], [["new"]])
    with pytest.raises(ValueError, match="X must be dense, as when the model was begun"):
        model.partial_fit(words(), lists)


@each_backend
def test_early_stopping_keeps_the_best_epoch(backend):
    """With a rate that spoils what was learnt."""
    fitted = classifier(
        backend, early_stopping=True, validation_fraction=0.3, epochs=12, learning_rate=0.5
    ).fit(X, Y)
    precisions = [epoch.precision for epoch in fitted.history_]
    assert precisions[fitted.best_epoch_ - 1] == max(precisions)
    assert len(precisions) <= fitted.best_epoch_ + 4
    without = classifier(backend).fit(X, Y)
    assert [epoch.precision for epoch in without.history_] == [None] * 4


@each_backend
def test_recipes(backend):
    with pytest.raises(ValueError, match=r"schedule 'plateau' .* set early_stopping=True"):
        classifier(backend, recipe="paper").fit(X, Y)
    paper = classifier(backend, recipe="paper", early_stopping=True, epochs=2).fit(X, Y)
    assert paper.recipe_ == Recipe(epochs=2)
    own = classifier(backend, recipe=PAPER, schedule="linear", loss="bce", epochs=None)
    own.set_params(recipe=Recipe(epochs=1), fan_in=None, intermediate=8).fit(X, Y)
    assert own.recipe_ == Recipe(epochs=1, schedule="linear", loss_fn="bce")
    assert (own.setup_.intermediate, own.setup_.loss) == (8, "bce")
    own.set_params(schedule="cosine", warm_up=0.5).fit(X, Y)
    assert own.recipe_ == Recipe(epochs=1, schedule="cosine", warm_up=0.5, loss_fn="bce")
    hinge = classifier(backend, loss="squared_hinge", epochs=1).fit(X, Y)
    assert hinge.recipe_.initial_bias == -1


@each_backend
def test_one_label_each(backend):
    names = np.array(["low", "high"])[(X[:, 0] > X[:, 0].mean()).astype(int)]
    fitted = classifier(backend, fan_in=None, epochs=20, learning_rate=0.02).fit(X, names)
    predicted = fitted.predict(X)
    assert fitted.score(X, names) == pytest.approx((predicted == names).mean())
    assert fitted.score(X, names) > 0.8
    np.testing.assert_array_equal(fitted.decision_function(X) > 0, predicted == "low")


@each_backend
def test_what_does_not_fit_is_refused_before_it_starts(backend, monkeypatch):
    plan = classifier(backend).plan(X, Y)
    assert plan.fits and plan.peak_bytes > plan.expected.parameter_bytes
    assert (
        str(plan)
        .splitlines()[0]
        .endswith(f"600 instances, 24 inputs, 100 labels, {Y.nnz} positives")
    )
    monkeypatch.setattr(planning, "available_bytes", lambda: 1 << 20)
    with pytest.raises(TooLargeError, match=r"needs about .* 1\.0 MiB are available here; .*"):
        classifier(backend).fit(X, Y)
    assert "DOES NOT FIT" in str(classifier(backend).plan(X, Y))


@each_backend
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_small_data_have_more_epochs(backend, form):
    """600 instances make 5 steps of 128."""
    x, intermediate = (X, None) if form == "dense" else (words(), 8)
    model = classifier(backend, epochs=None, batch_size=128, intermediate=intermediate)
    plan = model.plan(x, Y)
    assert (plan.epochs, plan.steps) == (40, 200)
    assert ", 40 epochs, 200 steps, " in str(plan)
    assert len(model.fit(x, Y).history_) == model.recipe_.epochs == 40
    assert len(model.set_params(epochs=3).fit(x, Y).history_) == 3


@each_backend
def test_a_plan_notes_nothing(backend):
    model = classifier(backend)
    model.plan(X, Y)
    assert not hasattr(model, "n_features_in_")


@each_backend
def test_progress_is_shown(backend, capsys):
    classifier(backend, verbose=True, early_stopping=True, epochs=2).fit(X, Y)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1", "epoch 2"]
    assert all("loss" in line and "P@3" in line for line in lines)
    classifier(backend).fit(X, Y)
    assert capsys.readouterr().out == ""


def test_the_installed_backend_is_chosen(monkeypatch):
    from fanin.backends.estimator import settings

    present = {"tensorflow"}
    monkeypatch.setattr(
        settings.importlib.util, "find_spec", lambda name: object() if name in present else None
    )
    assert settings.Settings().known_backend() == "tensorflow"
    present.add("torch")
    assert settings.Settings().known_backend() == "torch"
    present.clear()
    with pytest.raises(ImportError, match=r"pip install 'fanin\[torch\]', or pip install"):
        classifier("auto").fit(X, Y)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fan_in": 0}, "fan_in must be at least 1"),
        ({"fan_in": 2.0}, "fan_in must be a whole number"),
        ({"group_size": 7}, r"group_size must be in 8\.\.64, got 7"),
        ({"group_size": 8, "fan_in": None}, "is for labels with a fixed fan-in; set fan_in"),
        ({"head_fraction": 1.0}, "head_fraction must be at least 0 and below 1, got 1"),
        ({"head_fraction": 0.1, "head_fan_in": 0}, "head_fan_in must be at least 1"),
        ({"head_fan_in": 64}, "head_fan_in 64 is for frequent labels .*; set head_fraction"),
        ({"grouping": "size"}, "grouping must be one of random, frequency, meaning, sources"),
        ({"grouping": "random"}, "grouping 'random' is for labels that share their sources; set"),
        (
            {"group_size": 8, "grouping": "sources", "intermediate": 64},
            "grouping='sources' is for sources that are chosen by the data, and here they are",
        ),
        ({"intermediate": "none"}, "intermediate must be a whole number"),
        ({"recipe": "worst"}, "recipe must be one of paper, best, got 'worst'"),
        ({"recipe": []}, "recipe must be one of"),
        ({"loss": "hinge"}, "loss must be one of squared_hinge, bce"),
        ({"learning_rate": -1}, "learning_rate must be finite"),
        ({"schedule": "sine"}, "schedule must be one of plateau, linear, cosine"),
        ({"warm_up": 1.0}, "warm_up must be at least 0 and below 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"dropout": 1}, "dropout must be at least 0 and below 1"),
        ({"dropout": float("nan")}, "dropout must be"),
        ({"weights_dtype": "float16"}, "weights_dtype must be one of float32, bfloat16"),
        ({"optimizer": "adagrad"}, "optimizer must be one of adam, sgd, momentum"),
        ({"optimizer": "sgd", "moments": "row"}, "row moments are of optimizer 'adam', and 'sgd'"),
        ({"weight_decay": -0.1}, r"weight_decay must be finite and at least 0, got -0\.1"),
        ({"moments": "column"}, "moments must be one of full, row"),
        ({"execution": "eager"}, "execution must be one of autograd, fused"),
        ({"backend": "jax"}, "backend must be one of auto, torch, tensorflow"),
        ({"device": "tpu"}, "device must be one of cpu, cuda, auto"),
        ({"threads": -1}, r"threads must be in 0\.\.1024"),
        ({"early_stopping": 1}, "early_stopping must be True or False"),
        ({"validation_fraction": 0}, "validation_fraction must be above 0 and below 1"),
        ({"random_state": -1}, "Seed must be between|random_state"),
    ],
)
def test_refused_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        FanInClassifier(**{"backend": "torch"} | parameters).fit(X, Y)


def test_refused_data():
    model = FanInClassifier(backend="torch")
    with pytest.raises(ValueError, match="no instance has a label"):
        model.fit(X, sp.csr_array(Y.shape, dtype=bool))
    broken = words()
    broken.indices[7] = 10**6
    with pytest.raises(ValueError, match="X must be a valid CSR matrix"):
        model.fit(broken, Y)
    with pytest.raises(ValueError, match="could not convert string"):
        model.fit(pd.DataFrame({"a": ["x"] * 600}), Y)


def test_a_damaged_memory_map_is_named(tmp_path):
    x = X.copy()
    x[5, 3] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=r"x.npy: row 5, column 3"):
        FanInClassifier(backend="torch").fit(np.load(tmp_path / "x.npy", mmap_mode="r"), Y)


def test_scores_that_do_not_fit(monkeypatch):
    setup = LayerSetup(6, 8, FixedFanIn(3))
    predictor = Predictor(setup, initial_arrays(setup, 0))
    model = saved.SavedModel(predictor, np.arange(8), False, Settings().as_json())
    fitted = FanInClassifier.from_saved(model)
    assert fitted.decision_function(np.zeros((4, 6))).shape == (4, 8)
    monkeypatch.setattr(classifier_module, "available_bytes", lambda: 10)
    with pytest.raises(TooLargeError, match=r"scores \[4, 8\] are .*use predict_top_k"):
        fitted.decision_function(np.zeros((4, 6)))
