"""The frame of a part's process: budget, going on, gaps."""

from __future__ import annotations

import pytest
from gpu_kit import conduct_correct, few_cases, part_options

from fanin.benchmarks.gpu_parts import part, sanitize
from fanin.benchmarks.records.gpu import Row, SanitizeRow, read_part
from fanin.reports.tables.gpu import part_text

pytestmark = pytest.mark.torch


class TestBudget:
    def test_gaps_are_left_and_filled_by_the_next_call(self, tmp_path):
        cases = few_cases("top_k FixedFanIn")
        code, part_file = conduct_correct(tmp_path, cases, seconds=0.0)
        assert code == 0
        assert {(row.state, row.reason) for row in part_file.rows} == {
            ("not reached", "not reached within the budget of 1 minutes")
        }
        assert f"0 of {len(cases)} rows, {len(cases)} not reached" in part_text(part_file)
        _, part_file = conduct_correct(tmp_path, cases)
        assert {row.state for row in part_file.rows} == {"done"}

    def test_what_is_there_is_not_run_again(self, tmp_path, monkeypatch):
        # Only a job takes time: describing the machine takes long on a busy one.
        seconds = [0.0]
        monkeypatch.setattr(part.time, "monotonic", lambda: seconds[0])
        ran = []

        def jobs():
            def job(name):
                def work():
                    ran.append(name)
                    seconds[0] += 0.2

                return part.Job(SanitizeRow(key=name, check=name), work)

            return [job(name) for name in "abc"]

        def call(**changes):
            options = part_options(tmp_path, **changes)
            part.conduct("sanitize", options, jobs(), sanitize.failed)
            return [row.state for row in read_part(options.path).rows]

        assert call(seconds=0.1) == ["done", "not reached", "not reached"]
        assert call(seconds=0.1) == ["done", "done", "not reached"]
        # Other code: nothing of before counts.
        with monkeypatch.context() as patch:
            patch.setattr(part.machine, "code_identity", lambda: "another")
            assert call(seconds=0.1) == ["done", "not reached", "not reached"]
        assert ran == ["a", "b", "a"]
        assert call() == ["done"] * 3
        ran.clear()
        assert call() == ["done"] * 3  # a complete file is made anew
        assert ran == ["a", "b", "c"]


def test_a_row_that_ends_in_an_error_is_a_gap(tmp_path):
    def work():
        raise ValueError("nothing to be had\nmore")

    options = part_options(tmp_path)
    job = part.Job(SanitizeRow(key="a", check="a"), work)
    assert part.conduct("sanitize", options, [job], lambda row: False) == 0
    (row,) = read_part(options.path).rows
    assert isinstance(row, Row)
    assert (row.state, row.reason) == ("gap", "ValueError: nothing to be had")
