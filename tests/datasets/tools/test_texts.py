"""Raw texts with label names: each kind of file, each kind of fault."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from scipy import sparse

from fanin.datasets import DataError, load
from fanin.datasets.tools import records
from fanin.datasets.tools.records import RecordFile
from fanin.datasets.tools.texts import Converted, convert_texts, read_texts, text_file

TRAIN = [
    ('a red, "big" apple', ["fruit", "red"]),
    ("línea\nnueva", ["b,c", "fruit"]),
    ("", []),
    ("nothing", ["10", "9"]),
]
TEST = [("pears", ["fruit", "unseen"])]


def rows(pairs: list[tuple[str, list[str]]]) -> list[dict[str, object]]:
    return [{"text": text, "labels": labels} for text, labels in pairs]


def write_json(path: Path, pairs: list[tuple[str, list[str]]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows(pairs))
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_csv(path: Path, pairs: list[tuple[str, list[str]]]) -> Path:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter="\t" if ".tsv" in path.name else ",")
    writer.writerow(["labels", "other", "text"])
    writer.writerows((";".join(labels), "x", text) for text, labels in pairs)
    content = file.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_parquet(path: Path, pairs: list[tuple[str, list[str]]]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows(pairs)), path, row_group_size=2)
    return path


def convert(
    train: RecordFile, test: RecordFile | None, out: Path, compressed: bool = False
) -> Converted:
    return convert_texts(train, test, out, 0.2, 0, compressed, force=False)


def contents(folder: Path) -> dict[str, object]:
    """What a data folder holds, by split."""
    names = (folder / "labels.txt").read_text().splitlines()
    result: dict[str, object] = {"names": names}
    for split in ("train", "test"):
        y = sparse.load_npz(folder / f"{split}-labels.npz")
        assert y.shape[1] == len(names)
        texts = list(read_texts(text_file(folder, split)))
        labels = [{names[i] for i in y[[row]].indices} for row in range(y.shape[0])]
        result[split] = list(zip(texts, labels, strict=True))
    return result


EXPECTED = {
    "names": ["10", "9", "b,c", "fruit", "red", "unseen"],
    "train": [(text, set(labels)) for text, labels in TRAIN],
    "test": [(text, set(labels)) for text, labels in TEST],
}


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.tsv", "a.parquet", "a.txt", "a.txt.gz"],
)
def test_each_kind_of_file_gives_the_same(tmp_path: Path, name: str) -> None:
    files = []
    for split, pairs in (("train", TRAIN), ("test", TEST)):
        path = tmp_path / f"{split}-{name}"
        if "jsonl" in name:
            files.append(RecordFile(write_json(path, pairs)))
        elif "parquet" in name:
            files.append(RecordFile(write_parquet(path, pairs)))
        elif "txt" in name:
            texts = "".join(text.replace("\n", " ") + "\r\n" for text, _ in pairs).encode()
            path.write_bytes(gzip.compress(texts) if name.endswith(".gz") else texts)
            labels = tmp_path / f"{split}-names"
            labels.write_text("".join(";".join(each) + "\n" for _, each in pairs))
            files.append(RecordFile(path, labels, separator=";"))
        else:
            files.append(RecordFile(write_csv(path, pairs), separator=";"))
    out = tmp_path / "data" / "mine"
    made = convert(*files, out, compressed=name.endswith(".gz"))
    assert made == Converted(4, 1, 6, without_text=1, without_label=1)
    expected = dict(EXPECTED)
    if "txt" in name:  # a text is a line
        first, (text, labels), *rest = EXPECTED["train"]
        expected["train"] = [first, (str(text).replace("\n", " "), labels), *rest]
    assert contents(out) == expected
    assert [path.name for path in out.parent.iterdir()] == ["mine"]


def test_integers_blanks_and_repetitions_of_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        '\ufeff{"text": "t", "labels": [3, "3", " a\\u2028 b ", "a b", 3]}',
        "",
        '{"labels": "x , y", "text": "u", "more": null}',
    ]
    path.write_text("\r\n".join(lines))
    assert [labels for _, _, labels in RecordFile(path).read()] == [["3", "a b"], ["x", "y"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"text": "t", "labels": []}\n{"text',
            r":2: '{\"text' is no JSON .*`{",
        ),
        ("a.jsonl", "[1]", r":1: '\[1\]' is no object: expected `{\"text\""),
        ("a.jsonl", "[" * 100_000, r":1: .* is no JSON"),
        ("a.jsonl", '{"text": "t"}', r":1: .* has no 'labels': expected"),
        ("a.jsonl", '{"text": 1, "labels": []}', r":1: 'text' is 1: expected a text"),
        ("a.jsonl", '{"text": null, "labels": []}', r":1: 'text' is None: expected a text"),
        ("a.jsonl", '{"text": "\\ud800", "labels": []}', r":1: .*half a character"),
        ("a.jsonl", '{"text": "t", "labels": 3}', r":1: 'labels' is 3: expected a list of names"),
        ("a.jsonl", '{"text": "t", "labels": ["a", " "]}', r":1: label ' ': expected a name"),
        ("a.jsonl", '{"text": "t", "labels": ["\\udc00"]}', r":1: label '\?': expected a name"),
        ("a.jsonl", '{"text": "t", "labels": [true]}', r":1: label True: expected a name"),
        ("a.jsonl", '{"text": "t", "labels": [["a"]]}', r":1: label \['a'\]: expected a name"),
        ("a.jsonl", '{"text": "t", "labels": "a,,b"}', r":1: label '': expected a name"),
        ("a.jsonl", b'{"text": "\xff"}', r":1: .* is no UTF-8 \(invalid start byte\)"),
        ("a.jsonl", "", r": no train instances: give more"),
        ("a.jsonl", '{"text": "t", "labels": []}\n' * 2, r": no test instances: give more"),
        ("a.jsonl.gz", b"no gzip", r": damaged, or not compressed by gzip"),
        (
            "a.csv",
            "text,label\na,b\n",
            r":1: the columns are 'text', 'label': expected one",
        ),
        ("a.csv", "", r":1: the columns are : expected one 'text'"),
        ("a.csv", "text,labels\na,b\nc\n", r":3: 1 fields: expected 2, as the first line"),
        ("a.csv", 'text,labels\n"x\ny",b\nc,d,e\n', r":4: 3 fields: expected 2"),
        ("a.csv", 'text,labels\n"x', r":2: no CSV \(unexpected end of data\)"),
        ("a.csv", 'text,labels\n"x"y,b\n', r":2: no CSV \("),
        ("a.csv", "text,labels\na,\"['b', 'c']\"\n", r":2: 'labels' is .* a list as text"),
        ("a.parquet", b"PAR1 no", r": not a readable Parquet file"),
        ("a.xml", "<a/>", r": its name ends with none of .jsonl, .ndjson, .csv"),
    ],
)
def test_faults(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    out = tmp_path / "data" / "mine"
    with pytest.raises(DataError, match=f"^{path}{message}"):
        convert(RecordFile(path), None, out)
    assert not list(out.parent.iterdir())


def test_faults_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", None], "labels": [["b"], ["c"]]}), path)
    with pytest.raises(DataError, match=r"a.parquet: row 1 \(counted from 0\): 'text' is None"):
        list(RecordFile(path).read())
    with pytest.raises(DataError, match=r"the columns are 'text', 'labels': expect.* 'y'"):
        list(RecordFile(path, label_field="y").read())


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"parquet: needs pyarrow: pip install 'fanin\[parquet\]'"):
        list(RecordFile(tmp_path / "a.parquet").read())


@pytest.mark.parametrize("longer", ["texts", "labels"])
def test_two_files_of_other_lengths(tmp_path: Path, longer: str) -> None:
    for name in ("texts", "labels"):
        (tmp_path / name).write_text("a\n" * (3 if name == longer else 2))
    shorter = {"texts": "labels", "labels": "texts"}[longer]
    with pytest.raises(DataError, match=rf"/{shorter}: has fewer lines than .*/{longer}: both"):
        list(RecordFile(tmp_path / "texts", tmp_path / "labels").read())


def test_split_by_texts(tmp_path: Path) -> None:
    """The same instances whatever their order; equal texts on one side; about the share."""
    pairs = [(f"text {i}", [f"label {i % 5}"]) for i in range(400)]
    path = write_json(tmp_path / "a.jsonl", pairs + pairs)
    convert(RecordFile(path), None, tmp_path / "a")
    write_json(path, pairs[::-1])
    convert(RecordFile(path), None, tmp_path / "b")
    splits = [
        {
            split: {text for text, _ in contents(tmp_path / name)[split]}
            for split in ("train", "test")
        }
        for name in "ab"
    ]
    assert splits[0] == splits[1]
    assert not splits[0]["train"] & splits[0]["test"]
    assert 50 < len(splits[0]["test"]) < 110


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [1e-6, 0.5, 1 - 1e-6])
def test_a_small_set_has_both_splits(tmp_path: Path, seed: int, share: float) -> None:
    path = write_json(tmp_path / "a.jsonl", [("one", ["x"]), ("two", ["y"]), ("two", ["z"])])
    convert_texts(RecordFile(path), None, tmp_path / "a", share, seed, False, False)
    parts = contents(tmp_path / "a")
    assert parts["train"] and parts["test"]
    both = [*parts["train"], *parts["test"]]
    assert sorted((text, *names) for text, names in both) == [
        ("one", "x"),
        ("two", "y"),
        ("two", "z"),
    ]
    # Equal texts stay in one split, and a share of 0 gets no instance.
    path = write_json(tmp_path / "b.jsonl", [("one", ["x"])] * 3)
    for source, test_share in ((path, share), (tmp_path / "a.jsonl", 0.0)):
        with pytest.raises(DataError, match=r"no (train|test) instances"):
            convert_texts(RecordFile(source), None, tmp_path / "b", test_share, seed, False, False)
    assert not (tmp_path / "b").exists()


def test_training_reads_the_names(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.jsonl", TRAIN)
    convert(RecordFile(path), RecordFile(path), tmp_path / "mine")
    for split in ("train", "test"):
        np.save(tmp_path / "mine" / f"{split}-a.npy", np.ones((4, 2), np.float32))
    assert load("mine", data_dir=tmp_path).label_names == ["10", "9", "b,c", "fruit", "red"]
    names = tmp_path / "mine" / "labels.txt"
    names.write_text("only\n")
    with pytest.raises(DataError, match=r"labels.txt: 1 lines, but there are 5 labels"):
        load("mine", data_dir=tmp_path)
    names.write_bytes(b"a\nb\nc\nd\n\xff\n")
    with pytest.raises(DataError, match=r"labels.txt: no UTF-8"):
        load("mine", data_dir=tmp_path)


def test_kept_texts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-texts.jsonl: missing; it is to hold the train"):
        text_file(tmp_path, "train")
    (tmp_path / "train-texts.txt").write_text("a\n\nb\n")
    assert list(read_texts(text_file(tmp_path, "train"))) == ["a", "", "b"]
    for line in ("x", "{}", "[]", '{"text": 1}', "null", '{"text": "\\ud800"}'):
        (tmp_path / "train-texts.jsonl").write_text('{"text": "a"}\n' + line)
        with pytest.raises(DataError, match=r"train-texts.jsonl:2: .*: expected a line"):
            list(read_texts(text_file(tmp_path, "train")))
