"""Part `correct`: what must not pass fails and is named, and all published rows are checked."""

from __future__ import annotations

import pytest
from gpu_kit import conduct_correct, few_cases

from fanin.benchmarks.gpu_parts import part
from fanin.benchmarks.gpu_parts.correct import (
    cases,
    choose,
    dense,
    linear,
    rewire,
    sparse,
    step,
    top_k,
    words,
)
from fanin.benchmarks.records.task_files import files_of, read_tasks

pytestmark = pytest.mark.torch


def wrong_scores(op):
    return lambda *args, **kwargs: op(*args, **kwargs) * (1 + 1e-5)


def wrong_gradient(op):
    def call(*arguments):
        value, grad = op(*arguments)
        return value, grad + 1e-4 * grad.abs().max()

    return call


def wrong_moment(op):
    def call(*arguments):
        arguments[5].mul_(1.001)  # m, before the step: what the second step has of the first
        return op(*arguments)

    return call


def wrong_row(op):
    def call(*arguments):
        weights = arguments[6]
        weights.mul_(1.001)  # also of words that are in no instance
        return op(*arguments)

    return call


def wrong_bias(op):
    def call(features, positives, pairs, loss_kind):
        pairs.bias_squares[-1].mul_(1.001)
        return op(features, positives, pairs, loss_kind)

    return call


def wrong_tie(op):
    def call(*arguments):
        values, ids = op(*arguments)
        return values, ids.flip(1)

    return call


def one_too_many(op):
    def call(indices, *arguments):
        moved = op(indices, *arguments)
        indices.view(-1)[0] = 1
        indices.view(-1)[1] = 2
        return moved

    return call


def without_code(op):
    def call(*arguments):
        raise RuntimeError("CUDA: no kernel image")

    return call


@pytest.mark.parametrize(
    "module, op, wrong, chosen, named",
    [
        (
            linear,
            "fan_in_linear",
            wrong_scores,
            "fan_in_linear 1003x97 fan-in 7 batch 33",
            "scores",
        ),
        (step, "fused_step", wrong_gradient, "FixedFanIn 1003x97 fan-in 7 batch 33", "grad_feat"),
        (step, "fused_step", wrong_moment, "Dense 1003x97 fan-in 97 batch 33", "weights_m"),
        (dense, "dense_relu", wrong_scores, "dense_relu 131x97", "dense_relu outputs"),
        (sparse, "sparse_relu", wrong_scores, "sparse_relu 97x131", "sparse_relu outputs"),
        (sparse, "sparse_relu_update", wrong_row, "sparse_relu 97x131", "other weights"),
        (words, "words_step", wrong_bias, "words 1003x97 batch 33", "words_step bias_squares"),
        (words, "words_top_k", wrong_tie, "words 1003x97 batch 33", "words_top_k ids"),
        (top_k, "top_k", wrong_tie, "top_k FixedFanIn 3001", "top_k ids"),
        (rewire, "rewire", one_too_many, "rewire 0.1", "rewire 0.1 indices"),
        (top_k, "top_k", without_code, "top_k FixedFanIn 3001", "no kernel image"),
    ],
)
def test_a_wrong_op_fails_the_part_and_is_named(
    tmp_path, monkeypatch, module, op, wrong, chosen, named
):
    code, _ = conduct_correct(tmp_path, few_cases(chosen))
    assert code == 0
    monkeypatch.setattr(module, op, wrong(getattr(module, op)))
    code, part_file = conduct_correct(tmp_path, few_cases(chosen))
    assert code == part.FAILED
    assert all(row.state == "done" for row in part_file.rows)  # the others were run all the same
    assert any(named in row.reason for row in part_file.rows if row.reason)


def test_outputs_that_are_not_written_are_found(tmp_path, monkeypatch):
    """The kernel leaves out what it was not asked for; the poison shows."""
    monkeypatch.setattr(linear.library, "call", lambda params, allocate: None)
    code, part_file = conduct_correct(tmp_path, few_cases("batch 7 float32 uint16 (C)"))
    assert code == part.FAILED
    assert all(check.error is None and not check.passed for check in part_file.rows[0].checks)


@pytest.mark.parametrize("op", ["label_sums", "choose_sources", "replace_sources", "bad positive"])
def test_sources_that_are_not_chosen_are_found(tmp_path, monkeypatch, op):
    code, _ = conduct_correct(tmp_path, few_cases(op))
    assert code == 0
    monkeypatch.setattr(choose.library, "call", lambda params, allocate: None)
    code, part_file = conduct_correct(tmp_path, few_cases(op))
    assert code == part.FAILED
    assert all(row.reason for row in part_file.rows)


def test_every_published_fixed_fan_in_row_is_checked():
    tasks = [
        task
        for name in ("amazon-670k", "wiki-500k", "amazon-3m")
        for path in files_of(name)
        for task in read_tasks(path)
        if "stratified" in task.architecture
    ]
    assert len(tasks) == 41
    wanted = {
        (t.dataset, t.features, t.intermediate or {"slice": 512, "cascade": 768}[t.features],
         t.connectivity)
        for t in tasks
    }  # fmt: skip
    assert wanted == {
        (task.dataset, task.features, setup.output_inputs, setup.output.fan_in)
        for task, setup in cases.published_tasks()
    }
    keys = [case.key for case in cases.cases(False)]
    assert len(set(keys)) == len(keys)
    for _, _, inputs, fan_in in wanted:
        index_types = ("uint16", "uint32") if inputs <= 65_536 else ("uint32",)
        for dtype in ("float32", "float64"):
            for index in index_types:
                key = f"4099x{inputs} fan-in {fan_in} batch 33 {dtype} {index}"
                assert f"fan_in_linear {key}" in keys
    assert any("2812281x131072" in key for key in keys)
