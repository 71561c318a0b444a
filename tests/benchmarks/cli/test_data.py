"""`fanin data`: what the README shows, exit codes, and what a stop or a full disk leaves behind."""

from __future__ import annotations

import json
import re
import resource
import shlex
from pathlib import Path

import numpy as np
import pytest
from fakes import command, in_process, write_dataset

from fanin.datasets import load
from fanin.datasets.tools import records

README = Path(__file__).parents[3] / "datasets" / "README.md"
# The commands that make features of a file of texts.
README_LINES = re.findall(
    r"^fanin (data .*mine.*?)(?: +#.*)?$", README.read_text("utf-8"), re.MULTILINE
)


def data(*arguments, code=0):
    done = in_process("data", *arguments)
    assert done.exit_code == code, done.output
    return done


@pytest.fixture
def texts(tmp_path):
    """A file of 300 instances, each its own text."""
    lines = (
        json.dumps({"text": f"number {i} of class c{i % 7}", "labels": [f"class {i % 7}", "all"]})
        for i in range(300)
    )
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_the_commands_of_the_readme(texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(README_LINES) == 4
    for line in README_LINES:
        done = in_process(*shlex.split(line))
        assert done.exit_code == 0, done.output
    assert done.stdout.endswith(f"The picture: {tmp_path / 'mine.png'}\n")
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")
    names = (tmp_path / "data" / "mine" / "labels.txt").read_text().splitlines()
    assert names == ["all", *(f"class {i}" for i in range(7))]
    loaded = load("mine", "tfidf", tmp_path / "data")
    assert loaded.train_instances + loaded.test_instances == 300
    assert loaded.label_names == names


def test_the_frame_of_the_readme_becomes_features(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(# pandas\n.*?)```", README.read_text("utf-8"), re.DOTALL)
    exec(code, {})
    for line in README_LINES:
        done = in_process(*shlex.split(line))
        assert done.exit_code == 0, done.output
    names = (tmp_path / "data" / "mine" / "labels.txt").read_text().splitlines()
    assert names == ["blue", "fruit", "green", "red", "vehicle"]
    assert load("mine", "tfidf", tmp_path / "data").train_instances > 6


@pytest.mark.parametrize("name", ["list", "check", "convert", "features", "stats", "fetch"])
def test_help(name):
    assert len(data(name, "--help").stdout) > 300


@pytest.mark.slow
def test_list(tmp_path):
    write_dataset(tmp_path, name="Amazon670k")
    (tmp_path / "other").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train-labels.txt").write_text("x")
    rows = json.loads(data("list", "--data-dir", tmp_path, "--json").stdout)
    by_name = {row["name"]: row for row in rows}
    assert "amazon-670k" not in by_name and "other" not in by_name
    own = by_name["Amazon670k"]
    assert [own[key] for key in ("labels", "train", "test")] == [50, 60, 20]
    assert own["features"] == ["dense40"] and own["where"] == str(tmp_path / "Amazon670k")
    assert "train-labels.txt:1: header 'x'" in by_name["broken"]["where"]
    small = by_name["wordnet-small"]
    assert [small[key] for key in ("labels", "train", "test")] == [2357, 2877, 314]
    assert by_name["wiki-500k"]["labels"] == 501_070
    assert by_name["wiki-500k"]["where"].startswith("behind a click: http://")
    table = data("list").stdout
    assert re.search(r"\| amazon-670k +\| +670,091 \| +490,449 \| +153,025 \|", table)


def test_check(tmp_path):
    folder = write_dataset(tmp_path) / "tiny"
    done = data("check", folder)
    assert done.stdout.endswith("\nusable\n")
    assert "train: 60 instances, 50 labels" in done.stdout
    np.save(folder / "test-dense40.npy", np.ones((20, 3), np.float32))
    done = data("check", folder, code=2)
    assert "\nunusable: dense40: 40 inputs for training, 3 for testing: make both" in done.stdout
    assert done.stdout.endswith("\nnot usable as it is\n")
    answer = json.loads(data("check", folder, "--json", code=2).stdout)
    assert answer["usable"] is False
    assert {each["level"] for each in answer["findings"]} == {"fact", "warning", "unusable"}


def test_convert_says_what_it_wrote(texts, tmp_path):
    with texts.open("a") as file:
        file.write('{"text": "", "labels": []}\n')
    done = data("convert", texts, tmp_path / "a", "--test-share", "0.5", "--gzip")
    assert re.search(r"wrote 1\d\d training and 1\d\d test instances, 8 labels", done.stdout)
    assert "\n1 instances have no text\n1 instances have no label\n" in done.stdout
    assert (tmp_path / "a" / "train-texts.jsonl.gz").is_file()
    answer = json.loads(data("convert", texts, tmp_path / "b", "--json", "--seed", "1").stdout)
    assert answer["train"] + answer["test"] == 301
    data("features", tmp_path / "a", "--name", "words")
    done = data("convert", tmp_path / "a", tmp_path / "c", "--form", "text")
    files = "bow.features.json, labels.txt, test-texts.jsonl.gz, test.txt, train-texts.jsonl.gz"
    assert f"wrote {files}" in done.stdout
    done = data(
        "convert", tmp_path / "c" / "train.txt", tmp_path / "d", "--json", "--test-share", "0.5"
    )
    files = ["test-bow.npz", "test-labels.npz", "train-bow.npz", "train-labels.npz"]
    assert json.loads(done.stdout)["files"] == files


def test_features_by_a_kept_vectoriser(texts, tmp_path):
    for name in ("a", "b"):
        data("convert", texts, tmp_path / name)
    data("features", tmp_path / "a", "--name", "words")
    using = ("--with", tmp_path / "a" / "words.features.json")
    answer = json.loads(data("features", tmp_path / "b", *using, "--json").stdout)
    assert answer["features"] == "words"
    done = data("features", tmp_path / "b", *using, "--name", "x", "--force", code=2)
    assert "--with gives the features the name of the file" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "mine.jsonl", "mine.jsonl"), "mine.jsonl: is a file: name a folder"),
        (
            ("convert", ".", "out", "--test", "mine.jsonl"),
            "is a folder with both splits: leave out",
        ),
        (("convert", "mine.jsonl", "out", "--form", "text"), "raw texts have none yet"),
        (("convert", "mine.jsonl", "out", "--form", "x"), "unknown 'x'; there are npz, npy"),
        (("convert", "mine.jsonl", "out", "--separator", ""), "--separator is empty"),
        (
            ("convert", "a", "out", "--labels", "a", "--test", "a"),
            "--test-labels goes with --labels and --test",
        ),
        (("convert", "mine.jsonl", "out", "--text-field", "x"), "mine.jsonl:1: .* has no 'x'"),
        (("convert", "nowhere", "out"), "'nowhere' does not exist"),
        (("features", ".", "--kind", "encoder"), "--kind encoder and --model go together"),
        (("features", ".", "--name", ".a"), "--name '.a': "),
        (("features", ".", "--name", "labels"), "--name 'labels': "),
        (("features", "."), "train-texts.jsonl: missing; it is to hold the train texts"),
        (("check", "nowhere"), "'nowhere' does not exist"),
        (("stats", "nowhere"), "no data set named 'nowhere'; fanin comes with wordnet"),
        (("stats", "."), "train-labels.txt: missing"),
        (("fetch", "amazon-670k"), "amazon-670k has no direct address: open http"),
        (("fetch", "wordnet"), "wordnet comes with fanin"),
        (("fetch", "x", "--address", "y"), "y: no address of a file"),
    ],
)
def test_wrong_usage_is_told_and_code_2(texts, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").touch()
    done = data(*arguments, code=2)
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", done.output).split())
    assert re.search(message, shown)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "mine.jsonl"]


def test_stats_of_a_data_set_that_comes_with_fanin(tmp_path):
    answer = json.loads(data("stats", "wordnet-small", "--json").stdout)
    assert answer["train"]["positives"] == 10_103
    assert answer["test"]["instances"] == 314
    (tmp_path / "x.png").touch()
    done = data("stats", "wordnet-small", "--plot", tmp_path / "x.png", code=2)
    assert "x.png: exists: give --force" in done.output
    table = data("stats", "wordnet-small", "--plot", tmp_path / "x.png", "--force").stdout
    assert re.search(r"\| positives +\| 10,103 \| +754 \|", table)


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(texts, tmp_path):
    """A limit on the size of files stands in for it."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = command("data", "convert", texts, tmp_path / "data" / "mine", preexec_fn=limit)
    assert done.returncode == 1
    assert re.search(r"^fanin: .*: File too large$", done.stderr)
    assert not list((tmp_path / "data").iterdir())
    data("convert", texts, tmp_path / "data" / "mine")
    before = sorted((tmp_path / "data" / "mine").iterdir())
    arguments = ("data", "features", tmp_path / "data" / "mine", "--least", "1")
    done = command(*arguments, preexec_fn=limit)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert before == sorted((tmp_path / "data" / "mine").iterdir())
    done = command("data", "stats", "wordnet-small", "--plot", tmp_path / "x.png", preexec_fn=limit)
    assert (done.returncode, done.stderr) == (1, f"fanin: {tmp_path / 'x.png'}: File too large\n")
    assert not list(tmp_path.glob("*x.png*"))


def test_ctrl_c_leaves_nothing(texts, tmp_path, monkeypatch):
    def stopped(path):
        for number, line in enumerate(texts.read_text().splitlines(), 1):
            if number == 200:
                assert list(tmp_path.glob("data/.mine-*/mine/train-texts.jsonl"))
                raise KeyboardInterrupt
            yield number, line

    monkeypatch.setattr(records, "lines", stopped)
    done = data("convert", texts, tmp_path / "data" / "mine", code=130)
    assert (
        done.output == "fanin: stopped; what has finished is kept, the same command goes on "
        "from there\n"
    )
    assert not list((tmp_path / "data").iterdir())
