"""Lines of text: the fast and the slow parser agree, and a bad line is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_files import label_rows, pair_rows, pairs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fanin.datasets import DataError, formats, line_parsers


@given(data=label_rows(), features=st.sampled_from([b"", b" 3:0.5 7:1e-3", b"\r\n", b" "]))
@settings(max_examples=100, deadline=None)
def test_fast_and_slow_parser_agree(data, features: bytes) -> None:
    rows, labels = data
    lines = [",".join(map(str, row)).encode() + features + b"\n" for row in rows]
    fast = line_parsers.fast_labels(lines, labels)
    slow = line_parsers.slow_labels(lines, labels, Path("x"), 2)
    assert fast is not None
    assert fast.counts.tolist() == slow.counts.tolist() == [len(row) for row in rows]
    assert fast.ids.tolist() == slow.ids.tolist() == [i for row in rows for i in sorted(row)]


GOOD = ["0,1", "2 5:0.5", "", "3,0"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,x", "label 'x' is not an integer"),
        ("1.5", "label '1.5' is not an integer"),
        ("-1", "label '-1' is not an integer"),
        ("1,,2", "label '' is not an integer"),
        ("1,", "label '' is not an integer"),
        (",1", "label '' is not an integer"),
        ("5:0.5", "label '5:0.5' is not an integer"),
        ("1 2", "'2' after the labels is no `feature:value` list"),
        ("1, 2", "'2' after the labels is no `feature:value` list"),
        ("1,4", "label '4' is out of range: the header says 4 labels"),
        ("9" * 30, f"label '{'9' * 30}' is out of range"),
        ("9" * 5000, "is out of range"),
        ("1,2,1", "label 1 stands twice"),
    ],
)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_bad_line_is_named(tmp_path: Path, line: str, message: str, place: int) -> None:
    path = tmp_path / "train-labels.txt"
    lines = [*GOOD[:place], line, *GOOD[place:]]
    path.write_text("\n".join(["5 10 4", *lines]) + "\n")
    with pytest.raises(DataError) as caught:
        formats.read_labels(path)
    assert str(caught.value).startswith(f"{path}:{place + 2}: ")
    assert message in str(caught.value)


@given(data=pair_rows(), end=st.sampled_from([b"\n", b"\r\n", b" \n", b"\t\n"]))
@settings(max_examples=100, deadline=None)
def test_fast_and_slow_pairs_agree(data, end: bytes) -> None:
    rows, columns = data
    lines = [pairs(row).replace(" ", "  ").encode() + end for row in rows]
    fast = line_parsers.fast_pairs(lines, columns)
    slow = line_parsers.slow_pairs(lines, columns, Path("x"), 2)
    assert fast is not None
    for a, b in zip(fast, slow, strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


@example(lines=[b":5 1:2-3"])  # four numbers, as two pairs have, if NumPy splits "2-3"
@given(lines=st.lists(st.text("0123:.-+e nai", max_size=12).map(str.encode), max_size=4))
@settings(max_examples=500, deadline=None)
def test_fast_pairs_accept_nothing_that_slow_ones_do_not(lines: list[bytes]) -> None:
    fast = line_parsers.fast_pairs(lines, 40)
    if fast is not None:
        slow = line_parsers.slow_pairs(lines, 40, Path("x"), 2)
        assert all(np.array_equal(a, b) for a, b in zip(fast, slow, strict=True))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1", "pair '1' is not `id:value`"),
        (":1", "pair ':1' is not `id:value`"),
        ("x:1", "pair 'x:1' is not `id:value`"),
        ("-1:1", "pair '-1:1' is not `id:value`"),
        ("1.0:1", "pair '1.0:1' is not `id:value`"),
        ("1e0:1", "pair '1e0:1' is not `id:value`"),
        ("0,1 2:1", "pair '0,1' is not `id:value`"),
        ("1:", "pair '1:': '' is no finite float32 number"),
        ("1:x", "pair '1:x': 'x' is no finite float32 number"),
        ("1:1_0", "pair '1:1_0': '1_0' is no finite float32 number"),
        ("1:2:3", "pair '1:2:3': '2:3' is no finite float32 number"),
        ("1:2.3.4", "pair '1:2.3.4': '2.3.4' is no finite float32 number"),
        ("1:nan", "pair '1:nan': 'nan' is no finite float32 number"),
        ("1:-inf", "pair '1:-inf': '-inf' is no finite float32 number"),
        ("1:1e39", "pair '1:1e39': '1e39' is no finite float32 number"),
        ("0:1 4:1", "pair '4:1': id '4' is out of range: by the header, ids are 0 to 3"),
        ("9" * 30 + ":1", f"id '{'9' * 30}' is out of range"),
        ("2:1 1:1 2:0", "pair '2:0': id 2 stands twice in the line"),
    ],
)
@pytest.mark.parametrize("place", [0, 3])
def test_bad_pair_is_named(tmp_path: Path, line: str, message: str, place: int) -> None:
    good = ["0:1 1:0.5", "", "3:-1e-3 0:2"]
    for read, header, before in (
        (formats.read_label_pairs, "4 4", ""),
        (formats.read_feature_pairs, "4 4", ""),
        (formats.read_trailing_pairs, "4 4 9", "8,1 "),
    ):
        path = tmp_path / "pairs.txt"
        lines = [before + text for text in [*good[:place], line, *good[place:]]]
        path.write_text("\n".join([header, *lines]) + "\n")
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}:{place + 2}: ")
        assert message in str(caught.value)
