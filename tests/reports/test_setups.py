"""The names, sizes, variants and colours of setups."""

from __future__ import annotations

import pytest
from made_results import (
    SIX,
    run,
    task,
)

from fanin.benchmarks.records.published import intermediate_label
from fanin.reports.setups import COLOURS, Setup, variant
from fanin.reports.tables.comparison import comparison_markdown


@pytest.mark.parametrize(
    ("units", "text"),
    [
        (16384, "16k"), (32768, "32k"), (65536, "65k"), (100_000, "100k"), (131_072, "131k"),
        (64, "64"), (4096, "4096"), (16000, "16000"),
    ],
)  # fmt: skip
def test_intermediate_sizes_as_the_paper_writes_them(units: int, text: str) -> None:
    assert intermediate_label(units) == text


def test_departures_from_the_defaults_are_shown() -> None:
    odd = task(dropout=0.2, loss_fn="bce")
    assert variant(odd) == ("dropout=0.2", "loss_fn=bce")
    assert variant(task()) == ()
    text = comparison_markdown([run(), run(for_task=odd)])
    assert text.count("dropout=0.2, loss_fn=bce") == 1
    # What all rows share is written once and takes no column.
    shared = comparison_markdown([run(for_task=odd), run("tensorflow", for_task=odd)])
    assert "All runs: dropout=0.2, loss_fn=bce." in shared
    assert "variant" not in shared


def test_a_recipe_reads_well_and_has_no_departures_of_its_own() -> None:
    best = Setup.from_task(task(recipe="best", execution="fused", epochs=9), inputs=512)
    assert best.label == "FFI 32, recipe best, epochs=9, fused"
    assert best.recipe == "best"
    paper = Setup.from_task(task(epochs=9), inputs=512)
    assert (paper.label, paper.recipe) == ("FFI 32, epochs=9", "paper")


def test_labels_that_share_their_sources_are_named() -> None:
    grouped = task(group_size=16)
    deep = {"architecture": "dense-stratified", "connectivity": 32, "intermediate": 16384}
    deep["group_size"] = 64
    setups = [Setup.from_task(t, inputs=512) for t in (task(), grouped, task(**deep))]
    assert [s.label for s in setups] == ["FFI 32", "FFI 32/g16", "FFI 32/g64-16k"]
    assert [t.slug for t in (grouped, task(**deep))] == ["ffi-32-g16", "ffi-32-g64-16384"]
    assert sorted(setups, key=lambda s: s.order) == setups
    assert task(group_size=16, grouping="meaning").slug == "ffi-32-g16_grouping=meaning"


def test_heads_are_named() -> None:
    deep = {"architecture": "dense-stratified", "intermediate": 16384, "head_connectivity": 128}
    tasks = [
        task(),
        task(head_fraction=0.1),
        task(head_fraction=0.025, group_size=16),
        task(**deep, head_fraction=0.1),
        task(architecture="dense", connectivity=None, head_fraction=0.1, head_connectivity=64),
    ]
    assert [Setup.from_task(t, inputs=512).label for t in tasks] == [
        "FFI 32",
        "Dense 10 % + FFI 32",
        "Dense 2.5 % + FFI 32/g16",
        "FFI 128 10 % + FFI 32-16k",
        "FFI 64 10 % + Dense",
    ]
    assert [t.slug for t in tasks] == [
        "ffi-32",
        "ffi-32-h0.1",
        "ffi-32-g16-h0.025",
        "ffi-32-h0.1x128-16384",
        "dense-h0.1x64",
    ]
    assert len({Setup.from_task(t, inputs=512).order for t in tasks}) == 5
    assert Setup.from_task(tasks[1], 512) != Setup.from_task(tasks[0], 512)


def test_colours_are_distinct_and_every_setup_has_one() -> None:
    assert len(set(COLOURS.values())) == 6
    names = [Setup.from_task(task(**values), inputs=512).name for values in SIX]
    assert names == list(COLOURS)
