"""`fanin predict`: instances in, names and scores out, and what it refuses."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import scipy.sparse as sp
from fakes import command, in_process

from fanin.backends.arrays import initial_arrays
from fanin.backends.estimator.loading import load
from fanin.backends.estimator.predictor import Predictor
from fanin.backends.estimator.saved import SavedModel, save
from fanin.backends.kinds import FixedFanIn
from fanin.backends.setup import LayerSetup

X = np.random.default_rng(0).standard_normal((700, 6)).astype(np.float32)
NAMES = np.array([f"läbel {i}" for i in range(8)], object)


@pytest.fixture(params=["dense", "sparse"])
def model(request, tmp_path):
    more = {"intermediate": 5, "sparse_features": True} if request.param == "sparse" else {}
    setup = LayerSetup(6, 8, FixedFanIn(3), **more)
    predictor = Predictor(setup, initial_arrays(setup, 0))
    save(SavedModel(predictor, NAMES, False, {}), tmp_path / "model")
    return tmp_path / "model"


def check(output, model, k, x=X):
    lines = [json.loads(line) for line in output.splitlines()]
    best = load(model).predict_top_k(x, k)
    assert [line["labels"] for line in lines] == NAMES[best.ids].tolist()
    np.testing.assert_allclose([line["scores"] for line in lines], best.scores, rtol=1e-6)


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "npy", "npz", "-"])
def test_predicts(model, tmp_path, form):
    path, text = tmp_path / f"x.{form}", None
    lines = "".join(json.dumps({"features": row}) + "\n" for row in X.tolist())
    if form == "npy":
        np.save(path, X)
    elif form == "npz":
        sp.save_npz(path, sp.csr_array(X))
    elif form == "jsonl":
        path.write_text(lines)
    elif form == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path, text = "-", lines
    done = in_process("predict", model, "--input", path, "--k", 3, input=text)
    assert done.exit_code == 0, done.output
    check(done.stdout, model, 3)


def test_a_bad_line_ends_it_after_the_answers_above(model):
    good = json.dumps({"features": X[0].tolist()})
    done = command("predict", model, "--k", 2, input=f"{good}\n{good}\n{{}}\n{good}\n")
    assert done.returncode == 2
    check(done.stdout, model, 2, X[[0, 0]])
    assert done.stderr.startswith("fanin: standard input, line 3: must be {")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--k", 9), r"k must be in 1..8 (the labels), got 9"),
        (("--input", "missing.jsonl"), "missing.jsonl: No such file"),
        (("--input", "missing.npy"), "missing.npy: No such file"),
        (("--input", "narrow.npy"), "narrow.npy: 5 inputs, and the model reads 6"),
        (("--input", "text.npz"), "text.npz: not a readable sparse .npz file"),
    ],
)
def test_refused(model, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    np.save("narrow.npy", X[:, :5])
    (tmp_path / "text.npz").write_text("text")
    done = in_process("predict", model, *arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_a_folder_that_is_no_model(tmp_path):
    done = in_process("predict", tmp_path)
    assert done.exit_code == 2
    assert f"fanin: {tmp_path}: no model: it has no model.json" in done.output
