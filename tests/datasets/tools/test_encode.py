"""Sentence encoders, with a stand-in for sentence-transformers: batches, going on, faults."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from fanin.datasets import DataError
from fanin.datasets.tools import encode
from fanin.datasets.tools.encode import encode_folder, feature_name, load_encoder

COUNTS = {"train": 23, "test": 4}


class StandIn:
    """Encodes a text into three numbers, and notes what it is asked for."""

    calls: ClassVar[list[tuple[list[str], int]]] = []
    device: str | None = None
    stop_at: str | None = None
    inputs = 3

    def __init__(self, model: str, device: str | None = None) -> None:
        if model == "missing":
            raise OSError("no such model")
        StandIn.device = device

    def encode(
        self,
        sentences: Sequence[str],
        batch_size: int,
        convert_to_numpy: bool,
        show_progress_bar: bool,
    ) -> npt.NDArray[np.float32]:
        assert convert_to_numpy and not show_progress_bar
        if self.stop_at in sentences:
            raise KeyboardInterrupt
        self.calls.append((list(sentences), batch_size))
        return vectors(sentences)[:, : self.inputs]


def vectors(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    return np.array([[len(text), int(text[5:]), 0.5] for text in texts], np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    monkeypatch.setattr(encode.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(encode, "SAVED_EVERY", 2)
    monkeypatch.setattr(StandIn, "calls", [])
    for split, count in COUNTS.items():
        write(tmp_path, split, count)
    return tmp_path


def write(folder: Path, split: str, count: int) -> None:
    lines = (f'{{"text": "text {i}"}}\n' for i in range(count))
    (folder / f"{split}-texts.jsonl").write_text("".join(lines))


def run(folder: Path, model: str = "some/Model_1", force: bool = False) -> list[str]:
    shown: list[str] = []

    def show(split: str, done: int, count: int) -> None:
        shown.append(f"{split} {done}/{count}")

    files = encode_folder(folder, model, "enc", 3, "cpu", force, show)
    assert files == [folder / "train-enc.npy", folder / "test-enc.npy"]
    return shown


def encoded() -> list[str]:
    return [text for texts, _ in StandIn.calls for text in texts]


def test_features(folder: Path) -> None:
    assert run(folder) == ["train 6/23", "train 12/23", "train 18/23", "train 23/23", "test 4/4"]
    for split, count in COUNTS.items():
        stored = np.load(folder / f"{split}-enc.npy", mmap_mode="r")
        assert stored.dtype == np.float32
        assert np.array_equal(stored, vectors([f"text {i}" for i in range(count)]))
    assert {batch for _, batch in StandIn.calls} == {3}
    assert StandIn.device == "cpu"
    assert not list(folder.glob(".*"))
    with pytest.raises(DataError, match=r"train-enc.npy: exists: give --force"):
        run(folder)
    run(folder, force=True)


def test_it_goes_on_where_it_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "stop_at", "text 14")
    with pytest.raises(KeyboardInterrupt):
        run(folder)
    assert not list(folder.glob("*.npy"))
    # What a power cut left behind the last state is written once more.
    with (folder / ".train-enc.npy.begun").open("ab") as file:
        file.write(b"half")
    monkeypatch.setattr(StandIn, "stop_at", None)
    StandIn.calls.clear()
    run(folder)
    assert encoded()[:2] == ["text 12", "text 13"]
    assert np.array_equal(
        np.load(folder / "train-enc.npy"), vectors([f"text {i}" for i in range(23)])
    )
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("changed", ["texts", "model", "lost", "state"])
def test_it_begins_anew_for_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    monkeypatch.setattr(StandIn, "stop_at", "text 14")
    with pytest.raises(KeyboardInterrupt):
        run(folder)
    monkeypatch.setattr(StandIn, "stop_at", None)
    StandIn.calls.clear()
    count = 23
    if changed == "texts":
        count = 22
        write(folder, "train", count)
    if changed == "lost":
        (folder / ".train-enc.npy.begun").write_bytes(b"")
    if changed == "state":
        (folder / ".train-enc.npy.state.json").write_text("{")
    run(folder, model="other" if changed == "model" else "some/Model_1")
    assert encoded()[0] == "text 0"
    expected = vectors([f"text {i}" for i in range(count)])
    assert np.array_equal(np.load(folder / "train-enc.npy"), expected)


def test_faults(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"missing: sentence-transformers cannot load it \(no such"):
        run(folder, model="missing")
    monkeypatch.setattr(StandIn, "encode", lambda self, texts, **_: np.zeros((len(texts), 2, 2)))
    with pytest.raises(DataError, match=r"m: gives an array \(6, 2, 2\) for 6 texts"):
        run(folder, model="m")
    nan = lambda self, texts, **_: np.full((len(texts), 2), np.nan)  # noqa: E731
    monkeypatch.setattr(StandIn, "encode", nan)
    with pytest.raises(DataError, match=r"train-texts.jsonl: features by m: row 0, .*is nan"):
        run(folder, model="m")
    write(folder, "train", 0)
    with pytest.raises(DataError, match=r"train-texts.jsonl: no texts"):
        run(folder)
    monkeypatch.setattr(encode.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'fanin\[encoders\]'"):
        load_encoder("m", 3, None)


def test_names() -> None:
    assert feature_name("sentence-transformers/All-MiniLM-L6-v2") == "all-minilm-l6-v2"
    assert feature_name("/models/my model (1)/") == "my-model-1"
    assert feature_name("..") == feature_name("/") == "encoder"
