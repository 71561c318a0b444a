"""The estimator where labels read words: sparse X and no intermediate layer, without a backend."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from planted import LABELS, planted_data

from fanin.backends import registry
from fanin.backends.estimate import TooLargeError
from fanin.backends.estimator import planning, saved
from fanin.backends.estimator.classifier import FanInClassifier
from fanin.backends.estimator.fitting import Instances, fit, split
from fanin.backends.estimator.loading import load
from fanin.backends.estimator.settings import Settings
from fanin.backends.metrics import precision_at
from fanin.backends.words.model import blocks_of
from fanin.backends.words.setup import OneVersusRestSetup
from fanin.kernels import threads

DENSE, Y = planted_data(600)
X = sp.csr_array(np.where(np.abs(DENSE) > 2, DENSE, 0).astype(np.float32))


def fitted(x=X, **more):
    parameters = {"fan_in": 12, "random_state": 0, "threads": 1} | more
    return FanInClassifier(**parameters).fit(x, Y)


def test_learns_and_predicts():
    model = fitted()
    assert model.setup_ == OneVersusRestSetup(24, LABELS, 12)
    assert model.score(X, Y) > 0.5
    top, scores = model.predict_top_k(X, 5), model.decision_function(X)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(top.ids, order)
    np.testing.assert_array_equal(top.scores, np.take_along_axis(scores, order, 1))
    np.testing.assert_array_equal(model.predict(X).toarray(), scores > 0)
    with pytest.raises(ValueError, match=r"k must be in 1\.\.100"):
        model.predict_top_k(X, 101)


def test_all_forms_of_data_give_the_same():
    expected = fitted().predict_top_k(X, 3)
    twice = sp.csr_array((np.repeat(X.data / 2, 2), np.repeat(X.indices, 2), 2 * X.indptr))
    twice.resize(X.shape)
    # Values of 0 that are stored, of every word of an instance.
    stored = sp.csr_array(
        (X[[0]].toarray().ravel(), np.arange(X.shape[1]), [0, X.shape[1]]), (1, X.shape[1])
    )
    zeros = sp.csr_array(sp.vstack([stored, X[1:]], "csr"))
    assert zeros.nnz > X.nnz
    forms = (sp.csc_array(X), sp.coo_array(X), sp.csr_matrix(X), X.astype(np.float64), twice, zeros)
    for x in forms:
        model = fitted(x)
        for asked in (x, X):
            np.testing.assert_array_equal(model.predict_top_k(asked, 3).ids, expected.ids)
    wide = sp.csr_array(X)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    np.testing.assert_array_equal(fitted(wide).predict_top_k(wide, 3).ids, expected.ids)
    np.testing.assert_array_equal(fitted(threads=2).predict_top_k(X, 3).scores, expected.scores)
    parameters = {"fan_in": 12, "random_state": 0, "threads": 1}
    for y in (sp.csr_matrix(Y), sp.coo_matrix(Y)):
        again = FanInClassifier(**parameters).fit(X, y).predict_top_k(X, 3)
        np.testing.assert_array_equal(again.ids, expected.ids)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (["two words"] * 600, r"X must be numbers, but.*make_pipeline\(TfidfVectorizer\(\)"),
        (pd.DataFrame({"text": ["two words"] * 600}), "X must be numbers, but"),
        (np.ma.masked_greater(DENSE, 3), r"X is masked at \[\d+, \d+\]: fill it"),
        (np.zeros((600, 3), "M8[s]"), "X must be numbers, got datetime64"),
        (
            pd.DataFrame({"a": [1.0] * 600, "b": pd.Timestamp(0)}),
            "X must be numbers, got datetime64",
        ),
    ],
)
def test_what_is_no_numbers_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        FanInClassifier().fit(x, Y)


@pytest.mark.parametrize("x", [np.ma.masked_greater(DENSE, 3), np.zeros((600, 24), "M8[s]")])
def test_a_loaded_model_refuses_what_is_no_numbers(x, tmp_path):
    fitted().save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"x is masked|x must be numbers"):
        load(tmp_path / "model").predict_top_k(x)


def test_a_loaded_model_knows_the_columns_of_its_frame(tmp_path):
    frame = pd.DataFrame(DENSE, columns=[f"input {i}" for i in range(DENSE.shape[1])])
    model = FanInClassifier(fan_in=4, random_state=0, threads=1, epochs=1)
    sparse = pd.DataFrame.sparse.from_spmatrix(X, columns=frame.columns)
    model.fit(sparse, Y).save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    ids = model.predict_top_k(sparse).ids
    np.testing.assert_array_equal(loaded.predict_top_k(sparse).ids, ids)
    with pytest.raises(ValueError, match=r"column 0 is 'input 23', .* fitted on 'input 0'"):
        loaded.predict_top_k(sparse[sparse.columns[::-1]])
    with pytest.raises(ValueError, match="column 23 is None"):
        loaded.predict_top_k(sparse[sparse.columns[:-1]])
    reordered = sparse[sparse.columns[::-1]][list(loaded.feature_names)]
    np.testing.assert_array_equal(loaded.predict_top_k(reordered).ids, ids)


def test_a_fit_that_fails_leaves_the_model_as_it_was():
    model = fitted()
    ids = model.predict_top_k(X, 3).ids
    with pytest.raises(ValueError, match="no instance has a label"):
        model.fit(X[:, :5], sp.csr_array(Y.shape))
    assert model.n_features_in_ == X.shape[1]
    np.testing.assert_array_equal(model.predict_top_k(X, 3).ids, ids)


def test_a_fit_forgets_the_names_of_an_older_one():
    sparse = pd.DataFrame.sparse.from_spmatrix(X, columns=[f"input {i}" for i in range(24)])
    model = fitted(sparse)
    assert list(model.feature_names_in_) == list(sparse.columns)
    assert not hasattr(model.fit(X, Y), "feature_names_in_")


def test_partial_fit_refuses_other_classes():
    model = fitted()
    with pytest.raises(ValueError, match="classes are not those that the model was begun with"):
        model.partial_fit(X, Y, classes=[f"label {i}" for i in range(LABELS)])
    model.partial_fit(X, Y, classes=np.arange(LABELS))


def test_something_has_to_be_left_to_learn():
    one = sp.csr_array(([1], ([0], [0])), shape=(600, 3))
    model = FanInClassifier(early_stopping=True, validation_fraction=0.99, random_state=0)
    with pytest.raises(ValueError, match="holds out all instances that have a label"):
        model.fit(X, one)


@pytest.mark.parametrize("named", [True, False])
def test_saved_and_loaded(tmp_path, named):
    names = [f"label {i}" for i in range(LABELS)] if named else None
    model = FanInClassifier(fan_in=12, random_state=0).fit(X, Y, names)
    model.save(tmp_path / "model")
    plain, again = load(tmp_path / "model"), load(tmp_path / "model", backend="auto")
    for other in (plain, again, pickle.loads(pickle.dumps(model))):
        ours, theirs = model.predict_top_k(X, 5), other.predict_top_k(X, 5)
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_array_equal(ours.scores, theirs.scores)
    np.testing.assert_array_equal(
        plain.predict_top_k(X.toarray(), 5).ids, model.predict_top_k(X, 5).ids
    )
    assert (again.classes_.tolist() == names) == named
    again.save(tmp_path / "again")
    for name in (saved.ARRAYS, saved.LABELS)[: 1 + named]:
        both = [(tmp_path / folder / name).read_bytes() for folder in ("model", "again")]
        assert both[0] == both[1]


def test_goes_on_from_a_file_as_from_memory(tmp_path):
    model = FanInClassifier(fan_in=12, random_state=0).partial_fit(X, Y)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model", backend="auto").set_params(random_state=0)
    again._passes_seed = 0
    before = model.decision_function(X)
    # The order of a pass depends on its number, and a loaded model counts from the start.
    model.history_ = []
    ours = model.partial_fit(X, Y).decision_function(X)
    np.testing.assert_array_equal(again.partial_fit(X, Y).decision_function(X), ours)
    assert np.abs(ours - before).max() > 0.1


def test_partial_fit_reads_more_words():
    names = [f"label {i}" for i in range(LABELS)]
    lists = [[names[i] for i in Y[[row]].indices] for row in range(Y.shape[0])]
    model = FanInClassifier(fan_in=12, random_state=0)
    counts = []
    for first, end in ((0, 30), (30, 300), (300, 600)):
        own = slice(first, end)
        model.partial_fit(X[own], lists[own], names if first == 0 else None)
        counts.append(model._model.trainer.pair_count)
    assert counts[0] < counts[-1] <= 12 * LABELS and counts == sorted(counts)
    assert len(model.history_) == 3
    before = model.score(X, lists)
    for _ in range(4):
        model.partial_fit(X, lists)
    assert model.score(X, lists) > before + 0.05
    with pytest.raises(ValueError, match="X must be sparse, as when the model was begun"):
        model.partial_fit(X.toarray(), lists)


def test_the_best_pass_is_kept():
    model = fitted(early_stopping=True, validation_fraction=0.3, epochs=4)
    precisions = [epoch.precision for epoch in model.history_]
    assert len(precisions) == 5
    assert precisions[model.best_epoch_ - 1] == max(precisions)
    assert [epoch.precision for epoch in fitted().history_] == [None] * 3


@pytest.mark.parametrize("parameters", [{}, {"epochs": 1}])
def test_the_plan_has_as_many_epochs_as_the_history(parameters):
    model = fitted(**parameters)
    plan = model.plan(X, Y)
    assert plan.epochs == len(model.history_)
    assert f", {len(model.history_)} epochs, {plan.steps} steps" in str(plan)


def test_later_passes_do_not_change_the_best_one():
    """Passes train the model's arrays in place."""
    settings = Settings(fan_in=12, threads=1, epochs=8, learning_rate=1.0)
    setup, recipe = settings.model(24, LABELS, is_sparse=True)
    training, validation = split(Instances(X, Y), 0.3, seed=0)
    result = fit(settings, setup, recipe, training, validation, 0, verbose=False)
    assert result.best_epoch < len(result.history)
    ids = saved.make_predictor(setup, result.arrays).top_k(validation.features, 3).ids
    kept = result.history[result.best_epoch - 1]
    assert precision_at(validation.positives, ids, 3) == kept.precision


def test_progress_is_shown(capsys):
    fitted(verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1", "epoch 2", "epoch 3"]


def test_one_label_each():
    names = np.array(["low", "high"])[(DENSE[:, -1] > DENSE[:, -1].mean()).astype(int)]
    model = FanInClassifier(random_state=0, epochs=10).fit(X, names)
    assert (model.predict(X) == names).mean() > 0.9
    assert model.decision_function(X).shape == (600,)


def test_what_does_not_fit_is_refused(monkeypatch):
    plan = FanInClassifier(fan_in=12).plan(X, Y)
    assert plan.flops > 3 * 600 * LABELS
    assert plan.fits and plan.steps == 3 and plan.expected.parameter_bytes > 6 * 12 * LABELS
    assert "one-versus-rest, at most 12 words a label on average" in str(plan)
    monkeypatch.setattr(planning, "available_bytes", lambda: 1 << 20)
    advice = r"needs about .* 1\.0 MiB are available here; a smaller fan_in needs less\n"
    with pytest.raises(TooLargeError, match=advice):
        fitted()


@pytest.mark.parametrize(
    "parameters",
    [
        *({"recipe": "paper"}, {"loss": "squared_hinge"}, {"schedule": "plateau"}),
        *({"weights_dtype": "bfloat16"}, {"moments_dtype": "bfloat16"}, {"moments": "row"}),
        *({"execution": "autograd"}, {"device": "cuda"}),
        *({"optimizer": "sgd"}, {"weight_decay": 0.1}, {"warm_up": 0.1}),
        {"head_fraction": 0.1},
    ],
)
def test_parameters_of_other_models(parameters):
    ((name, value),) = parameters.items()
    with pytest.raises(ValueError, match=rf"{name}={value!r} is not for labels that read words"):
        fitted(**parameters)


def test_all_words_of_all_labels():
    with pytest.raises(ValueError, match="fan_in=None would connect each label to all words"):
        fitted(fan_in=None)


@pytest.mark.slow
def test_no_framework_is_needed(tmp_path):
    fitted().save(tmp_path / "model")
    sp.save_npz(tmp_path / "x.npz", X)
    code = f"""
import sys
import scipy.sparse as sp
import fanin
x = sp.csr_array(sp.load_npz({str(tmp_path / "x.npz")!r}))
model = fanin.load({str(tmp_path / "model")!r})
model.predict_top_k(x, 3)
print("sklearn" in sys.modules)
fanin.FanInClassifier(fan_in=4).fit(x, [[i % 3] for i in range(x.shape[0])]).predict_top_k(x, 2)
print(sorted({{"torch", "tensorflow", "keras"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["False", "[]"]


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ({"inputs": 25}, r"arrays.safetensors: damaged \(output.starts must be int64 \[26\]"),
        ({"labels": 0}, r"model.json: damaged \(labels must be at least 1"),
        ({"fan_in": 1.5}, r"model.json: damaged \(fan_in must be a whole number"),
        ({"output": {"kind": "one"}}, r"model.json: damaged"),
    ],
)
def test_a_description_that_was_changed(tmp_path, setup, message):
    fitted().save(tmp_path / "model")
    path = tmp_path / "model" / saved.MODEL
    values = json.loads(path.read_text())
    values["setup"] |= setup
    path.write_text(json.dumps(values))
    with pytest.raises(saved.ModelError, match=message):
        load(tmp_path / "model")


def test_a_container_has_no_more_threads_than_its_share(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64))
    monkeypatch.setattr(threads, "cpu_quota", lambda: 2.0)
    model = fitted(threads=0)
    assert Settings().cpu_threads == 2
    model.save(tmp_path / "model")
    for predicts in (model._model.predictor, load(tmp_path / "model").predictor):
        assert predicts.threads == 2
        assert predicts._model.threads == 2
        # Labels are cut for two threads, not for 64.
        assert len(predicts._model._word_pairs.pair_starts) == blocks_of(LABELS, 2)[0]

    class AskedError(Exception):
        pass

    def make_executor(setup, optimizer, *, device, threads):
        raise AskedError(threads)

    framework = SimpleNamespace(make_executor=make_executor)
    monkeypatch.setattr(registry.importlib, "import_module", lambda name: framework)
    for asked, expected in ((0, 2), (3, 3)):
        with pytest.raises(AskedError, match=str(expected)):
            FanInClassifier(backend="torch", threads=asked).fit(DENSE, Y)
