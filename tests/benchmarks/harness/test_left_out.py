"""Pairs that evaluation leaves out: no prediction, in both backends and executions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from fakes import make_task, write_dataset
from frameworks import EACH_BACKEND

from fanin.backends.arrays import InitialArrays
from fanin.backends.kinds import Dense, FixedFanIn, Unstructured
from fanin.backends.metrics import NO_LABEL
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.harness import child, fit
from fanin.benchmarks.harness.fit import evaluate, predict
from fanin.benchmarks.harness.prepare import split
from fanin.benchmarks.harness.request import Options, Request, begun
from fanin.benchmarks.measuring.metrics import precision, ranking
from fanin.datasets import load, propensity
from fanin.reports.tables.counts import counts_table

LABELS = 12
SETUPS = {
    "dense": LayerSetup(6, LABELS, Dense()),
    "unstructured": LayerSetup(6, LABELS, Unstructured(3)),
    "ffi": LayerSetup(6, LABELS, FixedFanIn(3)),
    "ffi-8": LayerSetup(6, LABELS, FixedFanIn(3), 8),
}


def left_out_pairs() -> sp.csr_array:
    """Of 40 instances: some pairs of most, none of the second, all but two of the third, and all of
    the fourth."""
    pairs = np.random.default_rng(1).random((40, LABELS)) < 0.2
    pairs[1:4] = [[False] * LABELS, [True] * (LABELS - 2) + [False] * 2, [True] * LABELS]
    return sp.csr_array(pairs)


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("execution", ["autograd", "fused"])
@pytest.mark.parametrize("backend", EACH_BACKEND)
def test_what_is_left_out_is_no_prediction(backend, execution, setup, monkeypatch):
    monkeypatch.setattr(fit, "evaluation_block", lambda setup: 16)
    setup = SETUPS[setup]
    if execution == "fused" and isinstance(setup.output, Unstructured):
        setup = LayerSetup(6, LABELS, Unstructured(3), 8)
    trainer = make_trainer(
        backend, setup, InitialArrays(setup, 0), execution=execution, device="cpu"
    )
    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    pairs = left_out_pairs()
    order, forbidden = trainer.top_k(x, LABELS), pairs.toarray()
    expected = np.full((40, 5), NO_LABEL)
    for instance, ids in enumerate(order):
        others = [label for label in ids if not forbidden[instance, label]][:5]
        expected[instance, : len(others)] = others
    np.testing.assert_array_equal(predict(trainer, x, pairs), expected)
    np.testing.assert_array_equal(predict(trainer, x), order[:, :5])
    true = sp.csr_array(forbidden)
    assert evaluate(trainer, x, true, pairs).at_5 == 0 < evaluate(trainer, x, true).at_5


def test_no_label_is_no_hit():
    truth = sp.csr_array(np.array([[0, 0, 1], [1, 1, 1]], bool))
    top = np.array([[0, 2, NO_LABEL], [NO_LABEL, NO_LABEL, NO_LABEL]])
    assert precision(truth, top).at_3 == pytest.approx(1 / 6)
    assert ranking(truth, top, truth, propensity("")).psp.at_1 == 0
    with pytest.raises(ValueError, match=r"must be in 0\.\.2"):
        precision(truth, top + 1)
    with pytest.raises(ValueError, match="twice"):
        precision(truth, np.array([[0, 0, NO_LABEL], [0, 1, 2]]))


def write_pairs(path: Path, pairs: sp.csr_array) -> None:
    rows, columns = pairs.nonzero()
    path.write_text("".join(f"{i} {label}\n" for i, label in zip(rows, columns, strict=True)))


@pytest.mark.torch
@pytest.mark.parametrize("protocol", ["paper", "holdout"])
def test_a_run_leaves_out_what_the_files_name(tmp_path, protocol, capsys):
    """Where these are all true pairs of a split, nothing is found in it."""
    data_dir = write_dataset(tmp_path)
    data = load("tiny", None, data_dir)
    has_hits = {}
    for name in ("neither", "test", "train"):
        options = Options(results=tmp_path / name, data_dir=data_dir)
        if name != "neither":
            y = {"test": data.test_y, "train": data.train_y}[name]
            write_pairs(data_dir / "tiny" / f"filter_labels_{name}.txt", y)
        task = make_task(dataset="tiny", features="dense40", epochs=2, protocol=protocol)
        request = Request(task=task, backend="torch", repeat=0, options=options)
        result = begun(request)
        child.run(request, child.Events(lambda event: None), result)
        has_hits[name] = (result.test.at_5 > 0, result.train.at_5 > 0)
        validated = result.history[-1].validation.at_5 > 0
        assert validated == has_hits[name][protocol == "holdout"]
    assert has_hits == {"neither": (True, True), "test": (False, True), "train": (False, False)}
    line = f"scores of {data.test_y.nnz} pairs in filter_labels_test.txt are left out"
    assert line in capsys.readouterr().err
    assert result.dataset.left_out_pairs == data.test_y.nnz
    assert "evaluation leaves out the scores of" in counts_table([result], []).markdown()
    again = load("tiny", None, data_dir)
    assert again.identity != data.identity
    assert split(again, task)[1].left_out.shape == split(again, task)[1].y.shape
