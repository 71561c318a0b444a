"""The page of a report: well formed, self-contained, and nothing from files is trusted."""

from __future__ import annotations

import base64
import io
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_results import (
    HOSTILE,
)
from PIL import Image

from fanin.benchmarks.records.store import read_results
from fanin.reports.setups import COLOURS
from fanin.reports.tables.terminal import runs_text


class _Checker(HTMLParser):
    """Every opened element is closed in order; collects attributes by element."""

    VOID = frozenset({"meta", "img", "br", "link", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(html: str) -> _Checker:
    checker = _Checker()
    checker.feed(html)
    checker.close()
    return checker


def _without_images(html: str) -> str:
    return re.sub(r"data:image/png;base64,[^\"]*", "", html)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def test_html_is_well_formed_and_accessible(html: str, page: _Checker) -> None:
    assert html.lstrip().lower().startswith("<!doctype html>")
    assert page.open == []
    names = [tag for tag, _ in page.seen]
    assert names.count("h1") == 1
    assert names.count("table") == names.count("caption") > 5
    ids = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.seen:
        if tag == "img":
            assert len(attributes["alt"] or "") > 30
        if tag == "html":
            assert attributes["lang"] == "en"
        if tag == "a":
            assert (attributes["href"] or "").removeprefix("#") in ids


def test_page_is_self_contained(html: str, page: _Checker) -> None:
    bare = _without_images(html)
    assert not re.search(r"https?:|@import|url\(|//[a-z]+\.", bare)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.seen}
    for _, attributes in page.seen:
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png")


def test_text_from_files_is_escaped(html: str, page: _Checker) -> None:
    assert "<script" not in html
    assert "<b>" not in html
    assert HOSTILE.replace("\x1b", r"\x1b") in page.text


def test_no_control_character_is_in_a_file(report: Path) -> None:
    for path in report.parent.rglob("*"):
        if path.suffix in (".html", ".md", ".csv"):
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", path.read_text()), path


def test_a_wide_table_scrolls_and_its_long_texts_wrap(html: str) -> None:
    tables = html.count("<table>")
    assert tables == len(re.findall(r'<div class="scroll"[^>]*>\s*<table>', html))
    assert ".scroll { overflow-x: auto;" in html
    cells = re.findall(r'<td class="text([^"]*)">(?:<span[^>]*></span>)?([^<]*)', html)
    long = [(classes, text) for classes, text in cells if len(unescape(text)) > 20]
    assert long and all(" wrap" in classes for classes, _ in long)
    assert any(" wrap" not in classes for classes, _ in cells)


def test_page_says_what_it_is_made_of(page: _Checker) -> None:
    words = " ".join(page.text.split())
    for expected in (
        "Some CPU, 2 cores",
        "24.0 GiB",
        "no GPU",
        "torch 2.9 on cpu",
        "c0de",
        "2026-01-02 03:04 to 2026-01-04 00:00 UTC",
        "validation set = test set, as in the paper",
        "wall-clock times of one machine and noisy",
        "11 finished and 1 failed runs, 2 comparisons step by step",
    ):
        assert expected in words


def test_synthetic_data_is_named_so_everywhere(report: Path, html: str) -> None:
    name = "twin (synthetic)"
    assert f'<h2 id="section-1">{name}, lsa features</h2>' in html
    assert name in (report.parent / "comparison.md").read_text()
    assert name in set(pd.read_csv(report.parent / "comparison.csv")["dataset"])
    runs = list(read_results(report.parent.parent))
    assert f"{name}, lsa features" in runs_text(runs)
    # Nowhere on the page without the word, apart from the folder's name.
    assert not re.search(r"\btwin(?! \(synthetic\)|/lsa)", _without_images(html))


def test_plots_are_in_the_page_and_beside_it_and_not_blank(report: Path, page: _Checker) -> None:
    beside = sorted(report.parent.glob("words/lsa/*.png"))
    names = ["backends", "cost", "curves", "lockstep", "memory", "time"]
    assert [path.stem for path in beside] == names
    embedded = {
        base64.b64decode((attributes["src"] or "").partition(",")[2])
        for tag, attributes in page.seen
        if tag == "img"
    }
    drawn = set(map(_rgb, COLOURS.values()))
    for path in beside:
        assert path.read_bytes() in embedded
        pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
        assert pixels.shape[1] > 1000
        assert 0.5 < (pixels == 255).all(axis=2).mean() < 0.995
        least = 3000 if path.name == "time.png" else 15  # bars are areas, the others lines, points
        seen = {colour for colour in drawn if (pixels == colour).all(axis=2).sum() > least}
        assert seen >= {_rgb(COLOURS["FFI"]), _rgb(COLOURS["Dense"])}, path.name
    # No memory was measured there, so there is nothing to draw.
    assert not (report.parent / "twin" / "lsa" / "memory.png").exists()
    assert (report.parent / "twin" / "lsa" / "time.png").exists()
