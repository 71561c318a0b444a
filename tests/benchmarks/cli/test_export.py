"""`fanin export`: a saved model as an ONNX file, and what it refuses."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from fakes import in_process

from fanin.backends.arrays import initial_arrays
from fanin.backends.estimator.predictor import Predictor
from fanin.backends.estimator.saved import SavedModel, load, save
from fanin.backends.kinds import FixedFanIn
from fanin.backends.setup import LayerSetup

X = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)


@pytest.fixture(params=["dense", "sparse"])
def model(request, tmp_path):
    more = {"intermediate": 5, "sparse_features": True} if request.param == "sparse" else {}
    setup = LayerSetup(6, 8, FixedFanIn(3), **more)
    predictor = Predictor(setup, initial_arrays(setup, 0))
    save(SavedModel(predictor, np.arange(8), False, {}), tmp_path / "model")
    return tmp_path / "model"


def test_exports(model, tmp_path):
    file = tmp_path / "model.onnx"
    done = in_process("export", model, file, "--k", 3)
    assert done.exit_code == 0, done.stderr
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    inputs = {"features": X}
    if load(model).setup.sparse_features:
        inputs = {"columns": np.tile(np.arange(6), (20, 1)), "values": X}
    scores, label_ids = session.run(None, inputs)
    best = load(model).predict_top_k(X, 3)
    np.testing.assert_array_equal(label_ids, best.ids)
    np.testing.assert_allclose(scores, best.scores, rtol=1e-5, atol=1e-6)


def test_refuses(model, tmp_path):
    file = tmp_path / "model.onnx"
    done = in_process("export", model, file, "--k", 9)
    assert (done.exit_code, "k must be in 1..8" in done.stderr) == (2, True), done.stderr
    done = in_process("export", tmp_path / "nothing", file)
    assert done.exit_code == 2 and "nothing" in done.stderr
    assert not file.exists()
