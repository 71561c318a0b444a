"""Instances as JSON lines: read as they come, and a bad line is named."""

from __future__ import annotations

import io
import json
import os
import threading
import time

import numpy as np
import pytest
import scipy.sparse as sp

from fanin.datasets import DataError, instance_lines
from fanin.datasets.instance_lines import read_instances


def read(text, inputs=3, as_sparse=False):
    stream = io.BytesIO(text if isinstance(text, bytes) else text.encode())
    return list(read_instances(stream, "x.jsonl", inputs, as_sparse=as_sparse))


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("as_sparse", [False, True])
def test_both_forms(end, as_sparse):
    lines = [
        '{"features": [1, 0, -2.5]}',
        '{"values": [7, 0.5], "indices": [2, 0]}',
        '\t{"indices": [], "values": []}\r',
    ]
    blocks = read("\n".join(lines) + end, as_sparse=as_sparse)
    for block in blocks:
        assert isinstance(block, sp.csr_array) == as_sparse
        assert block.dtype == np.float32
        assert not as_sparse or block.has_canonical_format
    rows = np.vstack([block.toarray() if as_sparse else block for block in blocks])
    np.testing.assert_array_equal(rows, [[1, 0, -2.5], [0.5, 0, 7], [0, 0, 0]])


def test_nothing():
    assert read("") == []


def test_blocks_are_bounded():
    blocks = read('{"features": [1, 2, 3]}\n' * 1000)
    assert [len(block) for block in blocks] == [256, 256, 256, 232]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no JSON"),
        ("nonsense", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        ("[" * 100_000, "nested too deeply|no JSON"),
        ("[1, 2, 3]", "must be {"),
        ('{"text": "a"}', "must be {"),
        ('{"features": [1, 2, 3], "values": []}', "must be {"),
        ('{"indices": [1]}', "must be {"),
        ('{"features": [1, 2]}', "features has 2 numbers, and the model reads 3"),
        ('{"features": "1 2 3"}', "features must be a list of numbers, got str"),
        ('{"features": [1, 2, true]}', "features has True, which is no number"),
        ('{"features": [1, 2, null]}', "features has None"),
        ('{"features": [1, 2, "3"]}', "features has '3'"),
        ('{"features": [1, 2, NaN]}', "not finite in float32"),
        ('{"features": [1, 2, 1e39]}', "not finite in float32"),
        ('{"features": [1, 2, 1' + "0" * 400 + "]}", "not finite in float32"),
        ('{"values": [1], "indices": [3]}', r"indices has 3; they must be in 0\.\.2"),
        ('{"values": [1], "indices": [-1]}', "indices has -1"),
        ('{"values": [1], "indices": [true]}', "indices has True"),
        ('{"values": [1], "indices": [1.0]}', r"indices has 1\.0"),
        ('{"values": [1, 2], "indices": [1, 1]}', "indices has 1 twice"),
        ('{"values": [1, 2], "indices": [1]}', "there are 1 indices for 2 values"),
        ('{"values": [1, 2]}', "there are no indices for 2 values"),
    ],
)
def test_a_bad_line_is_named_after_those_above_it(line, message):
    good = b'{"features": [1, 2, 3]}\n'
    text = 300 * good + (line if isinstance(line, bytes) else line.encode()) + b"\n" + good
    blocks = read_instances(io.BytesIO(text), "x.jsonl", 3, as_sparse=False)
    assert [len(next(blocks)), len(next(blocks))] == [256, 44]
    with pytest.raises(DataError, match=rf"^x\.jsonl, line 301: .*({message})"):
        next(blocks)


def test_a_repeated_index_of_a_long_line_is_named_at_once():
    count = 200_000
    line = json.dumps({"indices": [*range(count), count - 1], "values": [1] * (count + 1)})
    started = time.process_time()
    with pytest.raises(DataError, match=f"indices has {count - 1} twice"):
        read(line, inputs=count)
    assert time.process_time() - started < 20


def test_a_line_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(instance_lines, "MOST_LINE_BYTES", 2 << 20)
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: longer than 2 MiB"):
        read(b'{"features": [1, 2, 3]}\n' + b"1" * (8 << 20))


def test_each_line_is_answered_as_it_comes():
    """A pipe that stays open."""
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as pipe:
        blocks = read_instances(stream, "pipe", 1, as_sparse=False)
        for number in range(3):
            pipe.write(json.dumps({"features": [number]}).encode() + b"\n")
            late = threading.Timer(60, pipe.close)  # so that a failure ends
            late.start()
            np.testing.assert_array_equal(next(blocks), [[number]])
            late.cancel()
