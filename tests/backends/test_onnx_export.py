"""A model as an ONNX file: its scores and best labels in two runtimes, and the file itself."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from frameworks import EACH_BACKEND
from near import assert_near
from onnx.reference import ReferenceEvaluator
from reference import Model
from setups import every_setup, random_batches, setup_name, starting, trainer

from fanin.backends import onnx_export
from fanin.backends.kinds import Dense, FixedFanIn, Unstructured
from fanin.backends.onnx_export import export, export_one_versus_rest
from fanin.backends.setup import LayerSetup
from fanin.backends.words.model import OneVersusRest
from fanin.backends.words.setup import OneVersusRestSetup

SETUPS = every_setup(12, 40, 9)
each_setup = pytest.mark.parametrize(
    "setup",
    [
        *SETUPS,
        LayerSetup(12, 40, FixedFanIn(4), scaled=True),
        LayerSetup(12, 40, FixedFanIn(4), scaled=True, atoms=24),
        LayerSetup(12, 40, Dense(), 9, atoms=24),
        LayerSetup(70_000, 40, FixedFanIn(4)),  # indices of 32 bits
        LayerSetup(12, 1, FixedFanIn(1)),
    ],
    ids=lambda setup: f"{setup_name(setup)}-{setup.inputs}-{setup.scaled}-{setup.atoms}",
)


def some_arrays(setup, seed=3):
    """Arrays of a model, none of which is as at its start."""
    rng = np.random.default_rng(seed)
    arrays = starting(setup, seed)
    for name, array in arrays.items():
        if name not in setup.index_arrays():
            arrays[name] = rng.standard_normal(array.shape, np.float32)
    if setup.scaled:
        arrays["features.scale"] = rng.uniform(0.5, 2, setup.inputs).astype(np.float32)
    return arrays


def some_features(setup, instances=33, seed=4):
    return np.random.default_rng(seed).standard_normal((instances, setup.inputs), np.float32)


def expected_scores(setup, arrays, features):
    """In float64."""
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    features = features.astype(np.float64)
    if setup.scaled:
        features = features * wide["features.scale"]
    if setup.atoms:
        features = features @ wide["features.dictionary"]
    inner = replace(setup, inputs=setup.first_inputs, scaled=False, atoms=None)
    return Model(inner, {n: arrays[n] for n in inner.array_shapes()}).scores(features)


def in_onnxruntime(path, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def as_sparse(features, stored):
    """The values that are not 0, and their columns, [batch, stored] each."""
    columns = np.zeros((len(features), stored), np.int64)
    values = np.zeros((len(features), stored), np.float32)
    for instance, row in enumerate(features):
        (own,) = np.nonzero(row)
        columns[instance, : len(own)], values[instance, : len(own)] = own, row[own]
    return columns, values


@each_setup
def test_scores(tmp_path, setup):
    arrays, features = some_arrays(setup), some_features(setup)
    path = tmp_path / "model.onnx"
    export(setup, arrays, path)
    onnx.checker.check_model(path, full_check=True)
    expected = expected_scores(setup, arrays, features)
    for size in (1, 33):
        (scores,) = in_onnxruntime(path, features=features[:size])
        assert_near(scores, expected[:size], 1e-6)
    if setup.output_inputs < 32:  # its GatherElements takes no more (ONNX 1.23)
        (scores,) = ReferenceEvaluator(str(path)).run(None, {"features": features})
        assert_near(scores, expected, 1e-6)


def test_a_batch_without_instances(tmp_path):
    setup = SETUPS[2]
    path = tmp_path / "model.onnx"
    export(setup, some_arrays(setup), path)
    (scores,) = in_onnxruntime(path, features=np.zeros((0, 12), np.float32))
    assert scores.shape == (0, 40)


@pytest.mark.parametrize("backend", EACH_BACKEND)
@pytest.mark.parametrize("setup", [*SETUPS[2:6], *SETUPS[-4:]], ids=setup_name)
def test_best_labels_are_those_of_the_trainer(tmp_path, backend, setup):
    ours = trainer(backend, setup)
    ours.train(random_batches(setup, 5, share=0.1), 3e-2)
    path = tmp_path / "model.onnx"
    export(setup, ours.weights(), path, top_k=5)
    onnx.checker.check_model(path, full_check=True)
    features = some_features(setup)
    scores, label_ids = in_onnxruntime(path, features=features)
    assert label_ids.dtype == np.int64
    np.testing.assert_array_equal(label_ids, ours.top_k(features, 5))
    all_scores = expected_scores(setup, ours.weights(), features)
    assert_near(scores, -np.sort(-all_scores)[:, :5], 1e-6)


def test_ties_go_to_the_lower_label(tmp_path):
    setup = SETUPS[2]
    arrays = some_arrays(setup) | {
        "output.weights": np.zeros((40, 4), np.float32),
        "output.bias": np.zeros(40, np.float32),
    }
    path = tmp_path / "model.onnx"
    export(setup, arrays, path, top_k=3)
    _, label_ids = in_onnxruntime(path, features=some_features(setup))
    assert (label_ids == [0, 1, 2]).all()


@pytest.mark.parametrize(
    "setup",
    [
        LayerSetup(300, 40, FixedFanIn(4), 9),
        LayerSetup(300, 40, Dense(), 9, scaled=True),
        LayerSetup(300, 40, Unstructured(4), 9, scaled=True, atoms=24),
        LayerSetup(300, 40, FixedFanIn(4), atoms=24),
    ],
    ids=setup_name,
)
def test_sparse_features(tmp_path, setup):
    arrays, features = some_arrays(setup), some_features(setup)
    rng = np.random.default_rng(5)
    features *= rng.random(features.shape) < 0.05
    features[7] = 0
    path = tmp_path / "model.onnx"
    export(setup, arrays, path, sparse_features=True)
    onnx.checker.check_model(path, full_check=True)
    columns, values = as_sparse(features, 50)
    (scores,) = in_onnxruntime(path, columns=columns, values=values)
    assert_near(scores, expected_scores(setup, arrays, features), 1e-6)


def test_unstructured_connections_of_unequal_number(tmp_path):
    """All of one label; others have none."""
    setup = LayerSetup(12, 40, Unstructured(4))
    arrays = some_arrays(setup) | {"output.rows": np.full(160, 39, np.int32)}
    features = some_features(setup)
    path = tmp_path / "model.onnx"
    export(setup, arrays, path)
    (scores,) = in_onnxruntime(path, features=features)
    assert_near(scores, expected_scores(setup, arrays, features), 1e-6)


@each_setup
def test_arrays_in_a_file_of_their_own(tmp_path, monkeypatch, setup):
    """As models have them that one file could not hold. Both files may be moved together."""
    monkeypatch.setattr(onnx_export, "MOST_BYTES_WITHIN", 0)
    monkeypatch.setattr(onnx_export, "_BLOCK_BYTES", 400)  # an array in several blocks
    arrays, features = some_arrays(setup), some_features(setup)
    export(setup, arrays, tmp_path / "written" / "model.onnx")
    (tmp_path / "written").rename(tmp_path / "moved")
    path = tmp_path / "moved" / "model.onnx"
    assert sorted(os.listdir(path.parent)) == ["model.onnx", "model.onnx.data"]
    assert path.stat().st_size < 5000
    onnx.checker.check_model(path, full_check=True)
    (scores,) = in_onnxruntime(path, features=features)
    assert_near(scores, expected_scores(setup, arrays, features), 1e-6)


def test_a_smaller_model_in_place_of_a_larger_one(tmp_path, monkeypatch):
    setup = SETUPS[2]
    path = tmp_path / "model.onnx"
    with monkeypatch.context() as patched:
        patched.setattr(onnx_export, "MOST_BYTES_WITHIN", 0)
        export(setup, some_arrays(setup), path)
    export(setup, some_arrays(setup), path)
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_a_full_disk_leaves_no_pair_of_old_and_new(tmp_path, monkeypatch):
    """Neither the old file with new arrays nor a part of a file."""
    monkeypatch.setattr(onnx_export, "MOST_BYTES_WITHIN", 0)
    setup = SETUPS[2]
    path = tmp_path / "model.onnx"
    export(setup, some_arrays(setup), path)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_export, "_write_beside", full)
    with pytest.raises(OSError, match=r"No space left.*model\.onnx"):
        export(setup, some_arrays(setup, seed=9), path)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_stopped_between_its_two_files_it_leaves_no_model(tmp_path, monkeypatch):
    """The older model beside the arrays of the newer one would give wrong scores."""
    monkeypatch.setattr(onnx_export, "MOST_BYTES_WITHIN", 0)
    setup = SETUPS[2]
    path = tmp_path / "model.onnx"
    export(setup, some_arrays(setup), path)
    replace_file = os.replace

    def arrays_only(made, target):
        if target == path:
            raise KeyboardInterrupt
        replace_file(made, target)

    monkeypatch.setattr(os, "replace", arrays_only)
    with pytest.raises(KeyboardInterrupt):
        export(setup, some_arrays(setup, seed=9), path)
    assert os.listdir(tmp_path) == ["model.onnx.data"]


@pytest.mark.parametrize("top_k", [None, 5])
def test_one_versus_rest(tmp_path, top_k):
    setup, rng = OneVersusRestSetup(60, 40, 4), np.random.default_rng(6)
    pairs = np.sort(rng.choice(60 * 40, 160, replace=False))  # some labels have none
    model = OneVersusRest(
        *(60, 40, pairs, rng.standard_normal(40, np.float32)),
        *(rng.standard_normal(160, np.float32), np.ones(160, np.float32)),
    )
    features = some_features(setup) * (rng.random((33, 60)) < 0.2)
    features[7] = 0
    path = tmp_path / "model.onnx"
    export_one_versus_rest(setup, model.weights(), path, top_k=top_k)
    onnx.checker.check_model(path, full_check=True)
    columns, values = as_sparse(features, 50)
    outputs = in_onnxruntime(path, columns=columns, values=values)
    weights = np.zeros((60, 40))
    weights.flat[pairs] = model.weights()["output.weights"]
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    scores = features / np.where(lengths, lengths, 1) @ weights + model.weights()["output.bias"]
    if top_k is None:
        assert_near(outputs[0], scores, 1e-6)
    else:
        np.testing.assert_array_equal(outputs[1], np.argsort(-scores, axis=1)[:, :5])
        assert_near(outputs[0], -np.sort(-scores, axis=1)[:, :5], 1e-6)


def test_what_cannot_be_exported(tmp_path):
    setup = SETUPS[2]
    arrays, path = some_arrays(setup), tmp_path / "model.onnx"
    with pytest.raises(ValueError, match="missing"):
        export(setup, {}, path)
    with pytest.raises(ValueError, match=r"k must be in 1\.\.40"):
        export(setup, arrays, path, top_k=41)
    with pytest.raises(ValueError, match=r"arrays must be output\.starts"):
        export_one_versus_rest(OneVersusRestSetup(60, 40, 4), {}, path)
    with pytest.raises(ValueError, match="sparse features need an intermediate layer"):
        export(setup, arrays, path, sparse_features=True)
    assert not list(tmp_path.iterdir())
