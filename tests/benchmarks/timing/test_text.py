"""Trainings on words beside Omikuji's, on a small data set: the command, its file, its table."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import scipy.sparse as sp
from fakes import command

from fanin.benchmarks.records.store import read_words_times
from fanin.benchmarks.timing import text_trainer
from fanin.benchmarks.timing.text_trainer import Request, measure, write_text
from fanin.reports.tables.words import words_introduction, words_table


@pytest.mark.slow
def test_the_command_writes_a_result_file(tmp_path):
    """In a folder that no result file names."""
    out = tmp_path / "results" / "file.json"
    given = "--dataset wordnet-small --features tfidf --threads 1 --repeats 2 --out"
    command(*given.split(), out, module="fanin.benchmarks.timing.text", check=True)
    times = read_words_times(out)
    assert str(tmp_path) not in out.read_text()
    ours = [each for each in times.trainings if each.trainer == "fanin"]
    assert len(ours) == 2 and times.threads == 1
    assert times.trainings[0].trainer == "fanin"
    for each in ours:
        assert each.precision.at_1 > 0.6
        assert each.peak_bytes is None or each.peak_bytes > each.baseline_bytes
        assert 0.01 < each.cpu_seconds < 100
    text = words_table([times]).markdown()
    assert "wordnet-small, 2,357 labels | fanin" in text
    low, high = sorted(each.cpu_seconds for each in ours)
    assert f" ({low:.1f}–{high:.1f}) | " in text
    assert "fanin 0." in words_introduction([times])


def test_the_file_that_omikuji_reads(tmp_path):
    x = sp.csr_array(np.array([[0, 0.5], [0.25, 1e-8], [0, 0]], np.float32))
    y = sp.csr_array(np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], bool))
    write_text(tmp_path / "train.txt", x, y)
    lines = (tmp_path / "train.txt").read_text().split("\n")
    assert lines == ["3 2 3", "0,2 1:0.5", "1 0:0.25 1:1e-08", " ", ""]


def test_omikuji_is_asked_as_the_estimator_is(tmp_path, monkeypatch):
    """With a stand-in, which predicts the instance's first word."""
    asked = {}

    class Model:
        @staticmethod
        def default_hyper_param():
            return types.SimpleNamespace()

        @staticmethod
        def train_on_data(path, parameters, threads):
            with open(path) as file:
                asked.update(head=next(file), trees=parameters.n_trees, threads=threads)
            return Model()

        def predict(self, pairs, top_k):
            assert top_k == 5
            return [(pairs[0][0] % 7, 0.5)]

    monkeypatch.setitem(sys.modules, "omikuji", types.SimpleNamespace(Model=Model))
    monkeypatch.setattr(text_trainer, "_version", lambda trainer: "0")
    request = Request(
        trainer="omikuji",
        dataset="wordnet-small",
        features="tfidf",
        data_dir=None,
        threads=2,
        trees=3,
        seed=0,
    )
    result = measure(request, tmp_path)
    assert asked == {"head": "2877 2733 2357\n", "trees": 3, "threads": 2}
    assert result.precision.at_1 < 0.3
    assert result.precision.at_5 == pytest.approx(result.precision.at_1 / 5)
