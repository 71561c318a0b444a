"""Findings: what is worth knowing about a data folder before anything is trained on it.

Every file is read once, a block at a time. In memory are counts: some numbers for each label and
each input, and 8 bytes for each instance, by which equal ones are noticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from fanin.datasets import formats
from fanin.datasets.dataset import DataError
from fanin.datasets.folder import LEFT_OUT, feature_files
from fanin.datasets.label_names import read_label_names
from fanin.datasets.tools.blocks import Blocks, feature_blocks, label_blocks
from fanin.datasets.tools.convert import row_bytes
from fanin.datasets.tools.files import SPLITS, find_file, find_packed, kinds_in, label_path
from fanin.datasets.tools.label_counts import HEAD_PERCENT, TAIL, LabelCounts
from fanin.datasets.tools.texts import read_texts, text_file

Level = Literal["unusable", "warning", "fact"]
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """Something about the data, and what to do about it; nothing for a fact."""

    level: Level
    what: str
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """All findings about a folder, in the order in which the files were read."""

    folder: Path
    findings: tuple[Finding, ...]

    @property
    def is_usable(self) -> bool:
        return all(finding.level != "unusable" for finding in self.findings)


def check_folder(folder: Path) -> Report:
    """Read all data of a folder. Raises DataError where it is no folder. What is wrong with a
    file becomes a finding, and the other files are read all the same."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no folder: name one with train-labels.txt and the other files")
    findings: list[Finding] = []
    labels = [_tried(findings, partial(_labels, folder, split)) for split in SPLITS]
    train, test = labels
    if train and test:
        findings += _compare_labels(train, test)
    for split, counts in zip(SPLITS, labels, strict=True):
        if counts:
            findings += _labels_of(counts, split)
            _tried(findings, partial(_left_out, folder, split, counts))
    if train:
        _tried(findings, partial(read_label_names, folder, len(train.by_label)))
    instances = [int(counts.by_instance.sum()) if counts else None for counts in labels]
    kinds = kinds_in(folder)
    for kind in kinds:
        findings += _features(folder, kind, instances)
    texts = [path for split in SPLITS for path in folder.glob(f"{split}-texts.*")]
    if texts:
        hashed = [_tried(findings, partial(_hashed_texts, folder, s)) for s in SPLITS]
        findings += _compare_hashes("texts", hashed, instances)
    if not kinds:
        advice = (
            "make some, such as by `fanin data features`"
            if texts
            else "put train-<features>.npy or .npz and the same for test beside the labels"
        )
        findings.append(Finding("unusable", f"{folder}: no train features", advice))
    return Report(folder, tuple(findings))


def _tried(findings: list[Finding], read: Callable[[], T]) -> T | None:
    """What it returns; an error of the data becomes a finding."""
    try:
        return read()
    except DataError as error:
        findings.append(Finding("unusable", str(error)))
        return None


# --- labels -------------------------------------------------------------------------------------


def _labels(folder: Path, split: str) -> LabelCounts:
    path = label_path(folder, split)
    counts = LabelCounts.of(label_blocks(path))
    if not counts.by_instance.sum() or not len(counts.by_label):
        what = "instances" if len(counts.by_label) else "labels"
        raise DataError(f"{path}: 0 {what}: at least one is needed")
    return counts


def _left_out(folder: Path, split: str, counts: LabelCounts) -> None:
    path = folder / LEFT_OUT.format(split=split)
    if path.is_file():
        formats.read_left_out(path, (int(counts.by_instance.sum()), len(counts.by_label)))


def _compare_labels(train: LabelCounts, test: LabelCounts) -> Iterator[Finding]:
    if len(train.by_label) != len(test.by_label):
        yield Finding(
            "unusable",
            f"{len(train.by_label)} labels for training but {len(test.by_label)} for testing",
            "write both files for all labels, also those without a positive there",
        )
        return
    unseen = (train.by_label == 0) & (test.by_label > 0)
    if unseen.any():
        lost = int(test.by_label[unseen].sum())
        share = lost / test.by_label.sum()
        yield Finding(
            "warning",
            f"test: {_some(unseen, 'label')} without a training instance, {_percent(share)} of the "
            "test positives",
            "no setup can learn them, so precision stays below what is left; split anew, or drop "
            "these labels in both splits",
        )
    never = (train.by_label == 0) & (test.by_label == 0)
    if never.any():
        yield Finding(
            "warning",
            f"{_some(never, 'label')} never positive in either split",
            "they cost memory and time and are never right; drop them and number the others anew",
        )


def _labels_of(counts: LabelCounts, split: str) -> Iterator[Finding]:
    numbers = counts.summary()
    yield Finding(
        "fact",
        f"{split}: {numbers.instances:,} instances, {numbers.labels:,} labels, "
        f"{numbers.positives:,} positives; {numbers.labels_per_instance:.2f} labels an instance, "
        f"at most {numbers.most_labels_of_an_instance:,}; {numbers.instances_per_label:.2f} "
        f"instances a label, at most {numbers.most_instances_of_a_label:,}",
    )
    if not numbers.positives:
        if split == "train":
            what = "train: no instance has a label: there is nothing to learn"
            yield Finding("unusable", what, "give labels to the training instances")
        else:
            what = "test: no instance has a label, so every precision is 0"
            yield Finding("warning", what, "give labels to the test instances")
        return
    yield Finding(
        "fact",
        f"{split}: head: {HEAD_PERCENT} % of the labels ({numbers.head_labels:,}) have "
        f"{_percent(numbers.head_positives / numbers.positives)} of the positives; tail: "
        f"{numbers.tail_labels:,} labels ({_percent(numbers.tail_labels / numbers.labels)}) with 1 "
        f"to {TAIL} instances have {_percent(numbers.tail_positives / numbers.positives)}",
    )
    if numbers.instances_without_label:
        share = numbers.instances_without_label / numbers.instances
        effect = (
            "they only teach that scores are low; drop them unless that is meant"
            if split == "train"
            else "they count as wrong in P@k; drop them unless that is meant"
        )
        what = f"{split}: {numbers.instances_without_label:,} instances ({_percent(share)})"
        yield Finding("warning", f"{what} without a label", effect)


# --- features -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Columns:
    """What is known of the features of a split once they are read."""

    path: Path
    instances: int
    lowest: npt.NDArray[np.float32]
    highest: npt.NDArray[np.float32]
    stored: npt.NDArray[np.int64]  # how many instances have a value other than 0 in a column
    empty: int  # instances without a value other than 0
    hashes: npt.NDArray[np.uint64]

    @staticmethod
    def of(x: Blocks) -> _Columns:
        lowest = np.full(x.columns, np.inf, np.float32)
        highest = np.full(x.columns, -np.inf, np.float32)
        stored = np.zeros(x.columns, np.int64)
        empty = 0
        hashes = [np.zeros(0, np.uint64)]
        for block in x.blocks:
            block.eliminate_zeros()
            np.minimum.at(lowest, block.indices, block.data)
            np.maximum.at(highest, block.indices, block.data)
            stored += np.bincount(block.indices, minlength=x.columns)
            empty += int((np.diff(block.indptr) == 0).sum())
            hashes.append(_hashes(row_bytes(block)))
        some_zero = stored < x.instances
        lowest[some_zero] = np.minimum(lowest[some_zero], 0)
        highest[some_zero] = np.maximum(highest[some_zero], 0)
        return _Columns(x.path, x.instances, lowest, highest, stored, empty, np.concatenate(hashes))


def _features(folder: Path, kind: str, instances: list[int | None]) -> list[Finding]:
    findings: list[Finding] = []

    def read(split: str, expected: int | None) -> _Columns:
        path = find_file(folder, split, feature_files(kind))
        if path is None:
            packed = find_packed(folder, split, feature_files(kind))
            raise DataError(
                f"{packed}: compressed: unpack it with gunzip"
                if packed
                else f"{folder}: no {split} features {kind!r}: make them as those of train"
            )
        columns = _Columns.of(feature_blocks(path))
        if not len(columns.stored):
            raise DataError(f"{columns.path}: 0 inputs: at least one is needed")
        if expected is not None and columns.instances != expected:
            raise DataError(
                f"{columns.path}: {columns.instances} rows, but there are {expected} {split} "
                "instances: both files must hold the same instances in the same order"
            )
        return columns

    both = [_tried(findings, partial(read, s, n)) for s, n in zip(SPLITS, instances, strict=True)]
    for split, x in zip(SPLITS, both, strict=True):
        if x:
            findings += _columns_of(x, kind, split)
    train, test = both
    if train and test:
        if len(train.stored) != len(test.stored):
            what = (
                f"{kind}: {len(train.stored)} inputs for training, {len(test.stored)} for testing"
            )
            advice = "make both with the same feature extractor"
            findings.append(Finding("unusable", what, advice))
        elif (unseen := (train.stored == 0) & (test.stored > 0)).any():
            what = f"{kind}: {_some(unseen, 'input')} of the test split only"
            advice = "they teach nothing; fit the extractor on the training split alone"
            findings.append(Finding("warning", what, advice))
        findings += _compare_hashes(kind, [train.hashes, test.hashes], instances)
    return findings


def _columns_of(x: _Columns, kind: str, split: str) -> Iterator[Finding]:
    inputs = len(x.stored)
    density = x.stored.sum() / max(1, x.instances * inputs)
    yield Finding(
        "fact",
        f"{kind}, {split}: {x.instances:,} instances, {inputs:,} inputs, {_percent(density)} not "
        f"0; values {x.lowest.min():g} to {x.highest.max():g}",
    )
    if not x.stored.any():
        what = f"{x.path}: holds no features, only zeros"
        yield Finding("unusable" if split == "train" else "warning", what, "give another file")
        return
    if x.empty:
        yield Finding(
            "warning",
            f"{kind}, {split}: {x.empty:,} instances ({_percent(x.empty / x.instances)}) have "
            "zeros alone",
            "all of them get the same scores; drop them, or make features that know more words",
        )
    if split == "train" and x.instances > 1:
        zero = x.stored == 0
        constant = ~zero & (x.lowest == x.highest)
        for which, what in ((zero, "always 0"), (constant, "the same for all instances")):
            if which.any():
                advice = (
                    "they tell nothing apart and cost memory; drop these columns in both splits"
                )
                text = f"{kind}, {split}: {_some(which, 'input')} {what}"
                yield Finding("warning", text, advice)


# --- equal instances ----------------------------------------------------------------------------


def _hashes(contents: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    digests = (hashlib.blake2b(each, digest_size=8).digest() for each in contents)
    return np.fromiter((int.from_bytes(each, "little") for each in digests), np.uint64)


def _hashed_texts(folder: Path, split: str) -> npt.NDArray[np.uint64]:
    return _hashes(text.encode() for text in read_texts(text_file(folder, split)))


def _compare_hashes(
    what: str, both: list[npt.NDArray[np.uint64] | None], instances: list[int | None]
) -> Iterator[Finding]:
    train, test = both
    for split, hashes, expected in zip(SPLITS, both, instances, strict=True):
        if hashes is None:
            continue
        if expected is not None and len(hashes) != expected:
            text = f"{what}, {split}: {len(hashes)}, but {expected} instances have labels"
            advice = "both must hold the same instances in the same order"
            yield Finding("unusable", text, advice)
        repeated = len(hashes) - len(np.unique(hashes))
        if repeated:
            yield Finding(
                "warning",
                f"{what}, {split}: {repeated:,} instances "
                f"({_percent(repeated / len(hashes))}) are equal to an earlier one",
                "keep one of them, with the labels of all",
            )
    if train is not None and test is not None and len(test):
        leaks = int(np.isin(test, train).sum())
        if leaks:
            yield Finding(
                "warning",
                f"{what}: {leaks:,} test instances ({_percent(leaks / len(test))}) are equal to "
                "a training instance",
                "they make test precision better than on new data; drop them from one split",
            )


def _some(which: npt.NDArray[np.bool_], what: str) -> str:
    """How many of them, and the first ids."""
    ids = np.flatnonzero(which)
    first = ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
    return f"{len(ids):,} of {len(which):,} {what}s ({first})"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
