"""Raw texts with label names become a data folder; the texts are kept in it for `vectorise`.

In memory are the positives, 4 bytes each, and the names of the labels, but no texts.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
from scipy import sparse

from fanin.datasets.dataset import DataError
from fanin.datasets.file_errors import naming
from fanin.datasets.label_names import LABEL_NAMES
from fanin.datasets.tools import records
from fanin.datasets.tools.files import SPLITS
from fanin.datasets.tools.new_folder import check_free, making
from fanin.datasets.tools.records import RecordFile
from fanin.datasets.tools.splitting import bound, bound_between, place
from fanin.datasets.tools.writers import created, write_csr

_as_json = json.JSONEncoder(ensure_ascii=False).encode


@dataclass
class _Positives:
    """The positives of a split while it is read: how many each instance has, and their ids."""

    counts: array[int] = field(default_factory=lambda: array("i"))
    ids: array[int] = field(default_factory=lambda: array("i"))

    def add(self, ids: list[int]) -> None:
        self.counts.append(len(ids))
        self.ids.extend(ids)

    def matrix(self, new_ids: np.ndarray) -> sparse.csr_array:
        """bool [instances, labels]; new_ids: the label id of each id that was given."""
        starts = np.cumsum([0, *np.frombuffer(self.counts, np.int32)], dtype=np.int64)
        ids = new_ids[np.frombuffer(self.ids, np.int32)]
        shape = (len(self.counts), len(new_ids))
        matrix = sparse.csr_array((np.ones(len(ids), np.bool_), ids, starts), shape=shape)
        matrix.sort_indices()
        return matrix


@dataclass
class _Texts:
    """The texts of a split on their way into its file, some lines at a time."""

    path: Path
    file: IO[bytes]
    lines: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.lines.append(f'{{"text": {_as_json(text)}}}\n')
        if len(self.lines) >= 1024:
            self.write()

    def write(self) -> None:
        with naming(self.path):
            self.file.write("".join(self.lines).encode())
        self.lines.clear()


@dataclass(frozen=True)
class Converted:
    """What was written: instances of both splits, labels, and instances without text or label."""

    train: int
    test: int
    labels: int
    without_text: int
    without_label: int


def convert_texts(
    train: RecordFile,
    test: RecordFile | None,
    out: Path,
    share: float,
    seed: int,
    compressed: bool,
    force: bool,
) -> Converted:
    """Write labels, label names and texts of both splits into the folder `out`.

    Without a test file, about `share` of the instances become the test split, by their texts and
    the seed (see `splitting`), but at least one of each split where texts differ. Labels get their
    ids in the order of their names. Raises DataError for the first bad record, for a split without
    instances and for training without labels.
    """
    check_free(out, force)
    with making(out, force) as made:
        read = _Reading(train, test, made, ".gz" if compressed else "", seed)
        read.all(bound(share))
        limit = bound_between(share, read.lowest, read.highest)
        if read.lacks_split() and read.lowest < limit <= read.highest and train.path.is_file():
            read.all(limit)  # a set so small is soon read again
        positives, label_ids = read.positives, read.label_ids
        _check_enough(train.path, positives, is_split=test is None)
        ordered = sorted(label_ids)
        new_ids = np.zeros(len(ordered), np.int32)
        for new_id, name in enumerate(ordered):
            new_ids[label_ids[name]] = new_id
        for split in SPLITS:
            matrix = positives[split].matrix(new_ids)
            write_csr(made / f"{split}-labels.npz", len(ordered), [matrix], ones=True)
        with created(made / LABEL_NAMES) as file:
            file.writelines(f"{name}\n".encode() for name in ordered)
    counts = [np.frombuffer(positives[split].counts, np.int32) for split in SPLITS]
    without_label = sum(int((each == 0).sum()) for each in counts)
    train_count, test_count = map(len, counts)
    return Converted(train_count, test_count, len(ordered), read.without_text, without_label)


class _Reading:
    """The records of one or two files on their way into a folder: texts go into files, and the
    positives of both splits stay. lowest, highest: places of the texts (`splitting`), where one
    file holds both splits."""

    def __init__(
        self, train: RecordFile, test: RecordFile | None, made: Path, suffix: str, seed: int
    ) -> None:
        self._sources = {"train": train} if test is None else {"train": train, "test": test}
        self._paths = {split: made / f"{split}-texts.jsonl{suffix}" for split in SPLITS}
        self._seed = seed

    def all(self, limit: int) -> None:
        """Read all records, of one file those below the limit for testing."""
        self.positives = {split: _Positives() for split in SPLITS}
        self.label_ids: dict[str, int] = {}
        self.without_text = 0
        self.lowest, self.highest = 2**64, 0
        for path in self._paths.values():
            path.unlink(missing_ok=True)
        with ExitStack() as stack:
            texts = {
                split: _Texts(path, stack.enter_context(created(path)))
                for split, path in self._paths.items()
            }
            for own, source in self._sources.items():
                for _, text, names in source.read():
                    split = own if len(self._sources) > 1 else self._split_of(text, limit)
                    ids = [self.label_ids.setdefault(n, len(self.label_ids)) for n in names]
                    self.positives[split].add(ids)
                    self.without_text += not text.strip()
                    texts[split].add(text)
            for each in texts.values():
                each.write()

    def _split_of(self, text: str, limit: int) -> str:
        own = place(text.encode(), self._seed)
        self.lowest, self.highest = min(self.lowest, own), max(self.highest, own)
        return SPLITS[own < limit]

    def lacks_split(self) -> bool:
        return not all(each.counts for each in self.positives.values())


def _check_enough(path: Path, positives: dict[str, _Positives], is_split: bool) -> None:
    for split, each in positives.items():
        if not each.counts:
            advice = ": give more, another share or seed, or a file for testing" if is_split else ""
            raise DataError(f"{path}: no {split} instances{advice}")
    if not positives["train"].ids:
        raise DataError(f"{path}: no training instance has a label: there is nothing to learn")


# --- texts that are kept ------------------------------------------------------------------------


def text_file(folder: Path, split: str) -> Path:
    """The file with the texts of a split. Raises DataError where there is none."""
    names = [f"{split}-texts.{kind}{packed}" for kind in ("jsonl", "txt") for packed in ("", ".gz")]
    for path in (folder / name for name in names):
        if path.is_file():
            return path
    raise DataError(
        f"{folder / names[0]}: missing; it is to hold the {split} texts, a line "
        '`{"text": "..."}` for each instance; `fanin data convert` writes it'
    )


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a file: JSON lines `{"text": "..."}`, or else a text a line."""
    if records.kind_of(path) not in records.JSON_LINES:
        return (text for _, text in records.lines(path))
    return _json_texts(path)


def in_parts(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    """The texts, `size` at a time."""
    while part := list(islice(texts, size)):
        yield part


def _json_texts(path: Path) -> Iterator[str]:
    form = '`{"text": "..."}`'
    for number, line in records.lines(path):
        try:
            text = json.loads(line)["text"]
        except (ValueError, RecursionError, TypeError, KeyError):
            text = None
        if not isinstance(text, str) or not records.is_unicode(text):
            raise DataError(f"{path}:{number}: {records.shown(line)}: expected a line {form}")
        yield text
