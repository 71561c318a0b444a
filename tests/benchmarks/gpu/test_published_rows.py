"""Part `shapes`: which rows, in which order."""

from __future__ import annotations

import pytest

from fanin.benchmarks.gpu_parts import published_rows

pytestmark = pytest.mark.torch


def test_shapes_has_all_published_rows_the_most_telling_first():
    tasks = published_rows.tasks(False)
    assert len(tasks) == 2 * 58
    first = tasks[0]
    assert (first.dataset, first.features, first.execution) == ("amazon-670k", "slice", "fused")
    assert {t.execution for t in tasks[:58]} == {"fused"}
    assert [t.dataset for t in tasks[53:58]] == ["amazon-3m"] * 5
