"""A model's folder: what is written is read again, and anything else is an error that says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from damage import cut, flip, zero_all, zero_block
from setups import starting

from fanin.backends.estimator import saved
from fanin.backends.estimator.loading import load
from fanin.backends.estimator.predictor import Predictor
from fanin.backends.estimator.settings import Settings
from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.kinds import Dense, FixedFanIn, GroupedFanIn
from fanin.backends.recipes import PAPER
from fanin.backends.setup import LayerSetup
from fanin.kernels import kept_files

NAMES = np.array(["", " spaces ", "äpfel", "a,b", "\t", "日本", '"', "z\u2028"], object)
SETUPS = [
    LayerSetup(6, 8, FixedFanIn(3), loss="bce", scaled=True, atoms=10),
    LayerSetup(6, 8, Dense(), intermediate=4),
    LayerSetup(6, 8, GroupedFanIn(3, 8), loss="bce"),
    LayerSetup(6, 8, HeadAndTail(Dense(), FixedFanIn(3), 2), loss="bce", scaled=True),
    LayerSetup(6, 8, HeadAndTail(FixedFanIn(4), GroupedFanIn(2, 8), 3), intermediate=4),
    LayerSetup(6, 8, FixedFanIn(2), intermediate=4, sparse_features=True),
]


def model(setup=SETUPS[0], classes=NAMES, seed=0, **more):
    predictor = Predictor(setup, starting(setup, seed))
    return saved.SavedModel(predictor, classes, False, Settings(**more).as_json())


def same(one, other):
    assert one.setup == other.setup
    assert one.classes.tolist() == other.classes.tolist()
    assert (one.is_single, one.settings) == (other.is_single, other.settings)
    assert one.feature_names == other.feature_names
    arrays = other.predictor.arrays()
    for name, array in one.predictor.arrays().items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize(
    "classes",
    [
        NAMES,
        np.arange(8),
        np.arange(8) - 3,
        np.linspace(0, 1, 8),
        np.array(["a" * i for i in range(8)]),
    ],
)
def test_what_is_saved_is_loaded(tmp_path, setup, classes):
    one = model(setup, classes)
    saved.save(one, tmp_path / "below" / "model")
    other = load(tmp_path / "below" / "model")
    same(one, other)
    x = np.random.default_rng(0).standard_normal((5, 6))
    for given in (x, sp.csr_array(x)):
        best, again = one.predict_top_k(given, 3), other.predict_top_k(given, 3)
        np.testing.assert_array_equal(best.ids, again.ids)
        np.testing.assert_array_equal(best.scores, again.scores)
    has_names = (tmp_path / "below" / "model" / saved.LABELS).exists()
    assert has_names == (classes.tolist() != list(range(8)))
    assert os.listdir(tmp_path / "below") == ["model"]


def test_a_recipe_of_ones_own_is_kept(tmp_path):
    saved.save(model(recipe=PAPER), tmp_path / "model")
    assert Settings.from_json(load(tmp_path / "model").settings).recipe == PAPER


def test_numbers_of_numpy_are_saved(tmp_path):
    """As a search over `np.arange` has them, in the settings and in the setup."""
    setup = LayerSetup(6, 8, FixedFanIn(np.int64(3)), intermediate=np.int32(4))
    recipe = replace(PAPER, epochs=np.int64(2))
    one = model(setup, fan_in=np.int64(3), learning_rate=np.float32(0.5), recipe=recipe)
    saved.save(one, tmp_path / "model")
    same(load(tmp_path / "model"), one)


def test_labels_of_booleans(tmp_path):
    setup = LayerSetup(6, 2, Dense())
    saved.save(model(setup, np.array([True, False])), tmp_path / "model")
    assert load(tmp_path / "model").classes.tolist() == [True, False]


@pytest.mark.parametrize("name", [saved.ARRAYS, saved.LABELS])
@pytest.mark.parametrize("damage", [zero_block, zero_all, flip, cut, Path.unlink])
def test_damaged_files(tmp_path, name, damage):
    saved.save(model(), tmp_path / "model")
    damage(tmp_path / "model" / name)
    with pytest.raises(saved.ModelError, match=rf"{name}: (damaged|missing).*save"):
        load(tmp_path / "model")


@pytest.mark.parametrize("damage", [zero_block, zero_all, cut])
def test_damaged_description(tmp_path, damage):
    saved.save(model(), tmp_path / "model")
    damage(tmp_path / "model" / saved.MODEL)
    with pytest.raises(saved.ModelError, match=r"model.json: damaged .*save the model anew"):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "model.json: not written by fanin"),
        ({"schema": 2}, "model.json: has schema 2, and this fanin reads 1"),
        ({"setup": {"inputs": 6}}, "model.json: damaged"),
        ({"setup": None}, "model.json: damaged"),
        ({"settings": 3}, "model.json: damaged"),
        ({"feature_names": 3}, "model.json: damaged"),
        ({"checksums": 3}, "model.json: damaged"),
        ({"checksums": {}}, "model.json: damaged"),
        ({"checksums": {"../../x": ""}}, "model.json: damaged"),
        ({"labels_type": "object"}, r"model\.json: damaged"),
        ({"labels_type": "int64"}, "labels.txt: damaged"),
        ({"labels_type": 3}, r"model\.json: damaged"),
        ({"is_single": "no"}, r"model\.json: damaged .*is_single is 'no'"),
        ({"feature_names": ["a"]}, r"model\.json: damaged .*names of 6 inputs"),
        ({"feature_names": list(range(6))}, r"model\.json: damaged .*names of 6 inputs"),
    ],
)
def test_a_description_that_was_changed(tmp_path, change, message):
    saved.save(model(), tmp_path / "model")
    path = tmp_path / "model" / saved.MODEL
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(saved.ModelError, match=message):
        load(tmp_path / "model")


def test_more_labels_than_memory_has_room_for(tmp_path):
    saved.save(model(classes=np.arange(8)), tmp_path / "model")
    path = tmp_path / "model" / saved.MODEL
    values = json.loads(path.read_text())
    for labels in (2**40, 2**70):
        values["setup"]["labels"] = labels
        path.write_text(json.dumps(values))
        with pytest.raises(saved.ModelError, match=r"model\.json|arrays.safetensors: damaged"):
            load(tmp_path / "model")


def test_a_setup_of_other_sizes(tmp_path):
    saved.save(model(), tmp_path / "model")
    path = tmp_path / "model" / saved.MODEL
    values = json.loads(path.read_text())
    values["setup"]["inputs"] = 7
    path.write_text(json.dumps(values))
    with pytest.raises(saved.ModelError, match=r"arrays.safetensors: damaged .*must be \[7"):
        load(tmp_path / "model")


@pytest.mark.parametrize("text", ["[]", "{}", "3", "null", "\udcff", "[" * 100_000])
def test_foreign_folders(tmp_path, text):
    with pytest.raises(saved.ModelError, match=r"no model: it has no model\.json"):
        load(tmp_path)
    (tmp_path / saved.MODEL).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(saved.ModelError, match=r"model\.json: (not written by fanin|damaged)"):
        load(tmp_path)


def test_a_model_takes_the_place_of_another(tmp_path):
    one, other = model(), model(SETUPS[1], np.arange(8))
    saved.save(one, tmp_path / "model")
    saved.save(other, tmp_path / "model")
    same(load(tmp_path / "model"), other)
    assert os.listdir(tmp_path) == ["model"]
    assert not (tmp_path / "model" / saved.LABELS).exists()


def test_without_exchange_of_folders(tmp_path, monkeypatch):
    """A file system that lacks it."""
    monkeypatch.setattr(kept_files.ctypes, "CDLL", lambda _: object())
    test_a_model_takes_the_place_of_another(tmp_path)


def test_an_empty_folder_and_a_link(tmp_path):
    (tmp_path / "empty").mkdir()
    saved.save(model(), tmp_path / "empty")
    for name, aim in (("link", "empty"), ("dangling", "new")):
        (tmp_path / name).symlink_to(aim)
        saved.save(model(seed=1), tmp_path / name)
        assert (tmp_path / name).is_symlink()
        same(load(tmp_path / aim), model(seed=1))
    assert sorted(os.listdir(tmp_path)) == ["dangling", "empty", "link", "new"]


def test_what_is_no_model_is_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("1")
    (tmp_path / "file").write_text("1")
    for name in ("thesis", "file"):
        with pytest.raises(FileExistsError, match="is there and is no model"):
            saved.save(model(), tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "thesis"]
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "1"


def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    saved.save(model(), tmp_path / "model")

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(saved, "flush", full)
    with pytest.raises(OSError, match="No space left"):
        saved.save(model(SETUPS[1]), tmp_path / "model")
    same(load(tmp_path / "model"), model())
    assert os.listdir(tmp_path) == ["model"]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    """A write names no file itself."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/model'"):
        saved.save(model(), tmp_path / "model")
    assert not os.listdir(tmp_path)


def test_loading_needs_no_framework(tmp_path):
    """Nor scikit-learn or pandas, which take long. In CPU seconds: other work may go on."""
    saved.save(model(), tmp_path / "model")
    code = f"""
import sys, time
import fanin
import numpy as np
model = fanin.load({str(tmp_path / "model")!r})
model.predict_top_k(np.zeros((1, 6)), 3)
print(time.process_time())
print(sorted({{"torch", "tensorflow", "keras", "sklearn", "pandas", "rich"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    seconds, modules = done.stdout.splitlines()
    assert modules == "[]"
    assert float(seconds) < 1


def test_a_copy_is_a_model(tmp_path):
    saved.save(model(), tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    shutil.rmtree(tmp_path / "model")
    same(load(tmp_path / "copy"), model())


def test_what_fanin_offers():
    import fanin

    assert {"FanInClassifier", "load", "__version__"} <= set(dir(fanin))
    assert fanin.load is load
    with pytest.raises(AttributeError, match="module 'fanin' has no attribute 'fit'"):
        _ = fanin.fit
