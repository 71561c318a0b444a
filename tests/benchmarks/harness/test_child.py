"""A run in its process: its data, and whether it can be begun."""

from __future__ import annotations

import pytest
from fakes import make_task, write_dataset

from fanin.benchmarks.harness import child
from fanin.benchmarks.harness.child import Events
from fanin.benchmarks.harness.plan import TooLargeError
from fanin.benchmarks.harness.prepare import split
from fanin.benchmarks.harness.request import Options, Request, begun
from fanin.datasets import DataError, load


def test_a_model_that_cannot_be_held_is_not_begun(tmp_path, monkeypatch):
    """Else the system would kill the process, or others."""
    monkeypatch.setattr(child, "available_bytes", lambda: 1000)
    chosen = make_task(dataset="tiny", features="dense40")
    options = Options(results=tmp_path / "results", data_dir=write_dataset(tmp_path))
    request = Request(task=chosen, backend="torch", repeat=0, options=options)
    result = begun(request)
    with pytest.raises(
        TooLargeError, match=r"state alone are 0\.0 GiB, and 0\.0 GiB are available"
    ):
        child.run(request, Events(lambda event: None), result)
    assert result.dataset.labels == 50 and result.memory is None


@pytest.mark.parametrize(("instances", "kept"), [(1, None), (2, 1), (40, 36)])
def test_holdout_leaves_some_to_train_on(tmp_path, instances, kept):
    data = load("tiny", None, write_dataset(tmp_path, instances=instances))
    chosen = make_task(protocol="holdout")
    if kept is None:
        with pytest.raises(DataError, match="1 training instance, but protocol holdout"):
            split(data, chosen)
    else:
        (x, *_), (validation, *_) = split(data, chosen)
        assert (len(x), len(validation)) == (kept, instances - kept)
