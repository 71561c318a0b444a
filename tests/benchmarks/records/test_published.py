"""The published rows: each is one task of its file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fanin.benchmarks.records import published
from fanin.benchmarks.records.task import Task
from fanin.benchmarks.records.task_files import TASK_FOLDER, read_tasks, task_files
from fanin.datasets import PUBLISHED, find_folder
from fanin.datasets.catalogue import FEATURES

CSV = TASK_FOLDER.parent / "published" / "ecml23.csv"
ROWS = pd.read_csv(CSV, dtype={"intermediate": "str"}, keep_default_na=False)
TABLES = sorted(set(zip(ROWS["dataset"], ROWS["features"], strict=True)))
SIZES = {"": None, "64": 64, "16k": 16384, "32k": 32768, "65k": 65536, "100k": 100_000,
         "131k": 131_072}  # fmt: skip


def expected(row: pd.Series) -> Task:
    """The task of a published row, put together from the protocol and not from the task files."""
    inner = SIZES[row.intermediate]
    architecture = {
        "Dense": "dense",
        "Bottleneck": "bottleneck",
        "Unstructured": "dense-sparse" if inner else "sparse",
        "FFI": "dense-stratified" if inner else "stratified",
    }[row.setup]
    sparse = row.setup in ("Unstructured", "FFI")
    often = row.setup in ("Dense", "Bottleneck") or (
        (row.setup, row.connectivity) == ("FFI", 32) and inner in (None, 32768)
    )
    return Task.model_validate(
        {
            "dataset": row.dataset,
            "features": row.features,
            "architecture": architecture,
            "connectivity": int(row.connectivity) if sparse else None,
            "intermediate": inner,
            "repeat": 5 if often and row.dataset != "amazon-3m" else 1,
            "dropout": 0.2 if (row.dataset, row.features) == ("wiki-500k", "cascade") else 0.1,
            "rewire_fraction": 0.01 if architecture == "sparse" else 0.1,
        }
    )


def test_the_published_tables_are_those_of_the_catalogue() -> None:
    assert len(ROWS) == 58
    assert set(TABLES) == {(e.name, f) for e in PUBLISHED.values() for f in e.features}
    dense = ROWS[ROWS["setup"] == "Dense"]
    assert [FEATURES[f] for f in dense["features"]] == dense["connectivity"].tolist()


@pytest.mark.parametrize(("dataset", "features"), TABLES)
def test_a_task_file_holds_exactly_the_published_rows(dataset: str, features: str) -> None:
    rows = ROWS[(ROWS["dataset"] == dataset) & (ROWS["features"] == features)]
    tasks = read_tasks(task_files()[f"{dataset}/{features}"])
    assert [expected(row) for _, row in rows.iterrows()] == tasks
    for task in tasks:
        task.setup(FEATURES[features], PUBLISHED[dataset].labels)


def test_ablations_are_no_published_rows() -> None:
    files = {name: path for name, path in task_files().items() if name.endswith("-ablations")}
    assert {name: len(read_tasks(path)) for name, path in files.items()} == {
        "amazon-670k/cascade-ablations": 7,
        "amazon-670k/slice-ablations": 5,
        "wiki-500k/cascade-ablations": 3,
        "wiki-500k/slice-ablations": 6,
    }
    rows = {expected(row) for _, row in ROWS.iterrows()}
    for path in files.values():
        assert not rows & set(read_tasks(path))


def test_folders_may_spell_a_published_name_differently(tmp_path: Path) -> None:
    assert find_folder(tmp_path, "amazon-3m") is None
    assert find_folder(tmp_path / "nowhere", "amazon-3m") is None
    (tmp_path / "Amazon-3M").mkdir()
    assert find_folder(tmp_path, "amazon-3m") == tmp_path / "Amazon-3M"
    (tmp_path / "amazon-3m").mkdir()
    assert find_folder(tmp_path, "amazon-3m") == tmp_path / "amazon-3m"
    assert find_folder(tmp_path, "amazon-670k") is None


def test_every_published_row_is_the_result_of_one_task() -> None:
    assert sorted(published.published_tables()) == TABLES
    seen = set()
    for dataset, features in TABLES:
        rows = ROWS[(ROWS["dataset"] == dataset) & (ROWS["features"] == features)]
        known = published.published_rows(dataset, features)
        assert [row.task for row in known] == [
            published.as_published(expected(row)) for _, row in rows.iterrows()
        ]
        assert [row.values["seconds_per_epoch"] for row in known] == rows[
            "seconds_per_epoch"
        ].tolist()
        seen |= {row.task for row in known}
    assert len(seen) == len(ROWS)
    assert published.published_rows("wordnet", "tfidf-svd512") == ()
