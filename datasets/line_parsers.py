"""The lines of text files: labels `l1,l2,...`, and pairs `id:value ...`.

Each form has a fast and a slow parser (see `text_files.Parser`). Both accept the same lines and
return the same entries; a fast one returns None for lines that a slow one complains about.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fanin.datasets.dataset import DataError
from fanin.datasets.text_files import MAX_DIGITS, Entries, Parser, show

_DIGITS = b"0123456789"
_NUMBER = re.compile(rb"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


# --- labels -------------------------------------------------------------------------------------


def fast_labels(lines: Sequence[bytes], labels: int) -> Entries | None:
    """The positives of good lines, in bulk; None if a line is bad."""
    parts = [line.rstrip(b"\r\n").partition(b" ") for line in lines]
    if any(rest and not _is_feature_list(rest) for _, _, rest in parts):
        return None
    fields = [field for field, _, _ in parts]
    counts = np.fromiter((f.count(b",") + 1 if f else 0 for f in fields), np.int64, len(fields))
    text = b",".join(filter(None, fields))
    if text and (text.translate(None, _DIGITS + b",") or b",," in b",%b," % text):
        return None
    ids = np.fromstring(text, np.int64, sep=",") if text else np.zeros(0, np.int64)
    return _sorted_entries(counts, ids, np.ones(len(ids), np.float32), labels)


def slow_labels(lines: Sequence[bytes], labels: int, path: Path, first_line: int) -> Entries:
    """The same line by line. Raises DataError at the first bad line."""
    entries: list[dict[int, float]] = []
    for number, line in enumerate(lines, first_line):
        where = f"{path}:{number}"
        field, _, rest = line.rstrip(b"\r\n").partition(b" ")
        if rest and not _is_feature_list(rest):
            raise DataError(
                f"{where}: {show(rest)} after the labels is no `feature:value` list: "
                "separate labels by commas without spaces"
            )
        positives: dict[int, float] = {}
        for token in field.split(b",") if field else ():
            if not token.isdigit():
                raise DataError(
                    f"{where}: label {show(token)} is not an integer: write the line as "
                    "`l1,l2,...`, with a space before any `feature:value` pairs"
                )
            if len(token) > MAX_DIGITS or (label := int(token)) >= labels:
                raise DataError(
                    f"{where}: label {show(token)} is out of range: the header says {labels} "
                    f"labels, so ids are 0 to {labels - 1}"
                )
            if label in positives:
                raise DataError(f"{where}: label {label} stands twice: keep it once")
            positives[label] = 1.0
        entries.append(positives)
    return _entries(entries)


def _is_feature_list(rest: bytes) -> bool:
    """Whether what follows the labels begins with an `f:v` pair, or is blank."""
    first = rest.lstrip().partition(b" ")[0]
    return not first or b":" in first


# --- pairs --------------------------------------------------------------------------------------


def fast_pairs(lines: Sequence[bytes], columns: int) -> Entries | None:
    """The `id:value` pairs of good lines, in bulk; None if a line is bad."""
    stripped = [b" ".join(line.split()) for line in lines]
    counts = np.fromiter((line.count(b":") for line in stripped), np.int64, len(stripped))
    pairs = int(counts.sum())
    text = b" %b " % b" ".join(filter(None, stripped))
    if not text.strip():
        return _entries([{} for _ in stripped])
    # There must be one colon per blank, and only digits between a blank and its colon. An empty id
    # or value yields fewer numbers than the check below asks for.
    if text.count(b" ") != pairs + 1 or text.translate(None, _DIGITS).count(b" :") != pairs:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # NumPy's answer to text it cannot read
        try:
            numbers = np.fromstring(text.replace(b":", b" "), np.float64, sep=" ")
        except (DeprecationWarning, ValueError):
            return None
    if len(numbers) != 2 * pairs or not numbers[::2].max() < columns:
        return None
    with np.errstate(over="ignore"):  # too large a value becomes infinite
        values = numbers[1::2].astype(np.float32)
    if not np.isfinite(values).all():
        return None
    return _sorted_entries(counts, numbers[::2].astype(np.int64), values, columns)


def slow_pairs(lines: Sequence[bytes], columns: int, path: Path, first_line: int) -> Entries:
    """The same line by line. Raises DataError at the first bad line."""
    entries: list[dict[int, float]] = []
    for number, line in enumerate(lines, first_line):
        values: dict[int, float] = {}
        for token in line.split():
            where = f"{path}:{number}: pair {show(token)}"
            left, colon, right = token.partition(b":")
            if not colon or not left.isdigit():
                raise DataError(f"{where} is not `id:value` with an integer id: correct it")
            if len(left) > MAX_DIGITS or (index := int(left)) >= columns:
                raise DataError(
                    f"{where}: id {show(left)} is out of range: by the header, ids are 0 to "
                    f"{columns - 1}"
                )
            if index in values:
                raise DataError(f"{where}: id {index} stands twice in the line: keep it once")
            with np.errstate(over="ignore"):
                value = np.float32(float(right) if _NUMBER.fullmatch(right) else np.nan)
            if not np.isfinite(value):
                raise DataError(
                    f"{where}: {show(right)} is no finite float32 number: correct it, or leave "
                    "the pair out"
                )
            values[index] = float(value)
        entries.append(values)
    return _entries(entries)


def _after_labels(line: bytes) -> bytes:
    """The `f:v` pairs of a line `l1,l2,... f:v ...`."""
    labels, _, rest = line.partition(b" ")
    return line if b":" in labels else rest


# --- entries ------------------------------------------------------------------------------------


def _entries(lines: Sequence[dict[int, float]]) -> Entries:
    """The entries of lines that are given as {id: value}."""
    return Entries(
        np.array([len(line) for line in lines], np.int64),
        np.array([index for line in lines for index in sorted(line)], np.int64),
        np.array([line[index] for line in lines for index in sorted(line)], np.float32),
    )


def _sorted_entries(
    counts: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    columns: int,
) -> Entries | None:
    """The entries with the ids of each line sorted.

    None if their number is not the sum of the counts, if an id is not below `columns`, and if an
    id stands twice in a line.
    """
    if len(ids) != counts.sum() or (len(ids) and ids.max() >= columns):
        return None
    # One sortable number per entry: ids are in order within each line exactly if these are.
    keys = np.repeat(np.arange(len(counts)), counts) * columns + ids
    if not (np.diff(keys) > 0).all():
        order = np.argsort(keys)
        if not (np.diff(keys[order]) > 0).all():
            return None  # an id stands twice in a line
        ids, values = ids[order], values[order]
    return Entries(counts, ids, values)


LABEL_LINES = Parser(fast_labels, slow_labels)
PAIR_LINES = Parser(fast_pairs, slow_pairs)
TRAILING_PAIR_LINES = Parser(
    lambda lines, *place: fast_pairs([_after_labels(line) for line in lines], *place),
    lambda lines, *place: slow_pairs([_after_labels(line) for line in lines], *place),
)
