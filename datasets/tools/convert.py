"""From one form of a data folder to another, and from a file with both splits to a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fanin.datasets.dataset import DataError
from fanin.datasets.folder import BOW, LEFT_OUT, SHORT, feature_files
from fanin.datasets.formats import read_left_out
from fanin.datasets.label_names import LABEL_NAMES, read_label_names
from fanin.datasets.tools import writers
from fanin.datasets.tools.blocks import Blocks, feature_blocks, label_blocks
from fanin.datasets.tools.files import SPLITS, VECTORISER, find_packed, kinds_in, label_path
from fanin.datasets.tools.new_folder import check_free, copy, making
from fanin.datasets.tools.splitting import bound_between, place

FORMS = ("npz", "npy", "split", "text")
# Of these, whose files bear the name of the features; in the others features are `bow`.
_NAMED = ("npz", "npy")


@dataclass(frozen=True)
class Split:
    """Where one split comes from. features: its file; None with labels alone. taken: which
    instances of the files belong to it, bool; None for all."""

    labels: Path
    features: Path | None
    taken: npt.NDArray[np.bool_] | None = None

    def open_labels(self) -> Blocks:
        return _only(label_blocks(self.labels), self.taken)

    def open_features(self) -> Blocks:
        assert self.features is not None
        return _only(feature_blocks(self.features), self.taken)


def _only(matrix: Blocks, taken: npt.NDArray[np.bool_] | None) -> Blocks:
    """The rows that are taken."""
    if taken is None:
        return matrix

    def blocks() -> Iterator[sparse.csr_array]:
        done = 0
        for block in matrix.blocks:
            yield block[np.flatnonzero(taken[done : done + block.shape[0]])]
            done += block.shape[0]

    return matrix._replace(instances=int(taken.sum()), blocks=blocks())


def convert_folder(
    source: Path, out: Path, form: str, features: str | None, compressed: bool, force: bool
) -> list[str]:
    """Write the data of a folder in another form into the folder `out`; the names of its files.

    features: which to take; None where the folder has one kind, or none. compressed: text files are
    packed by gzip. Raises DataError for what cannot be read, and for a folder that may not be
    replaced.
    """
    check_free(out, force)
    kinds = kinds_in(source)
    if features is None and len(kinds) > 1:
        raise DataError(f"{source}: say which features to convert: {', '.join(kinds)}")
    name = features or next(iter(kinds), None)
    splits = {}
    for split in SPLITS:
        labels = label_path(source, split, may_be_packed=True)
        path = None
        if name is not None:
            path = find_packed(source, split, feature_files(name))
            if path is None:
                raise DataError(
                    f"{source}: no {split} features {name!r}; train features here: "
                    f"{', '.join(kinds) or 'none'}"
                )
        splits[split] = Split(labels, path)
    _check_others(source, {split: each.open_labels() for split, each in splits.items()})
    others = [source / LABEL_NAMES, *(source / LEFT_OUT.format(split=s) for s in SPLITS)]
    others += [path for split in SPLITS for path in source.glob(f"{split}-texts.*")]
    names = {path: path.name for path in others}
    if name is not None:
        written = name if form in _NAMED else BOW
        names |= {source / f"{name}{end}": f"{written}{end}" for end in VECTORISER}
    return _write(splits, out, form, name or BOW, compressed, force, names)


def _check_others(source: Path, labels: dict[str, Blocks]) -> None:
    """Raise DataError where the files that are copied are not of these labels."""
    read_label_names(source, labels["train"].columns)
    for split, each in labels.items():
        path = source / LEFT_OUT.format(split=split)
        if path.is_file():
            read_left_out(path, (each.instances, each.columns))


def convert_files(
    train: Path, test: Path | None, out: Path, form: str, share: float, seed: int, **how: bool
) -> list[str]:
    """The same from a file with a header `N D L` and lines `l1,l2,... f:v ...`.

    Without a test file, about `share` of the instances become the test split. Which ones depends
    on the seed and on their own features, so that equal instances lie in the same split.
    """
    check_free(out, how["force"])
    if test is None:
        taken = _test_instances(train, share, seed)
        splits = {"train": Split(train, train, ~taken), "test": Split(train, train, taken)}
    else:
        splits = {"train": Split(train, train), "test": Split(test, test)}
    return _write(splits, out, form, BOW, others={}, **how)


def _test_instances(path: Path, share: float, seed: int) -> npt.NDArray[np.bool_]:
    matrix = feature_blocks(path)
    places = np.zeros(matrix.instances, np.uint64)
    done = 0
    for block in matrix.blocks:
        for row, content in enumerate(row_bytes(block)):
            places[done + row] = place(content, seed)
        done += block.shape[0]
    lowest, highest = (int(places.min()), int(places.max())) if len(places) else (0, 0)
    limit = bound_between(share, lowest, highest)
    taken = places < limit if limit < 2**64 else np.ones(len(places), np.bool_)
    if taken.all() or not taken.any():
        raise DataError(
            f"{path}: {taken.sum()} of {matrix.instances} instances would be for testing: give "
            "another share or seed, or a file for testing"
        )
    return taken


def row_bytes(block: sparse.csr_array) -> Iterator[bytes]:
    """The ids and values of each row; equal rows have equal bytes."""
    ids, values = block.indices.astype(np.int32), block.data.astype(np.float32)
    starts = block.indptr.tolist()
    for start, end in pairwise(starts):
        yield ids[start:end].tobytes() + values[start:end].tobytes()


def _write(
    splits: dict[str, Split],
    out: Path,
    form: str,
    features: str,
    compressed: bool,
    force: bool,
    others: dict[Path, str],
) -> list[str]:
    """others: files that are copied where they exist, with their new names."""
    for what, opened in (("labels", Split.open_labels), ("inputs", Split.open_features)):
        if what == "labels" or splits["train"].features:
            train, test = (opened(splits[split]) for split in SPLITS)
            if train.columns != test.columns:
                raise DataError(
                    f"{test.path}: {test.columns} {what}, but {train.path} has {train.columns}: "
                    "both splits must count the same ones"
                )
    with making(out, force) as made:
        for split, source in splits.items():
            _write_split(source, split, made, form, features, ".gz" if compressed else "")
        for path, name in others.items():
            if path.is_file():
                copy(path, made, name)
        return sorted(path.name for path in made.iterdir())


def _write_split(
    source: Split, split: str, made: Path, form: str, features: str, suffix: str
) -> None:
    labels = source.open_labels()
    x = source.open_features() if source.features else None
    if x is not None and x.instances != labels.instances:
        raise DataError(
            f"{x.path}: {x.instances} rows, but {labels.path} has {labels.instances} instances: "
            "both must hold the same instances in the same order"
        )
    short = SHORT[split]
    if form == "text":
        header = (labels.instances, x.columns if x else 0, labels.columns)
        writers.write_lines(made / f"{split}.txt{suffix}", header, _whole_lines(labels, x))
        return
    if form == "split":
        lines = map(writers.pair_lines, labels.blocks)
        sizes = (labels.instances, labels.columns)
        writers.write_lines(made / f"{short}_X_Y.txt{suffix}", sizes, lines)
    else:
        path = made / f"{split}-labels.npz"
        writers.write_csr(path, labels.columns, labels.blocks, ones=True)
    if x is None:
        return
    if form == "split":
        lines = map(writers.pair_lines, x.blocks)
        writers.write_lines(made / f"{short}_X_Xf.txt{suffix}", (x.instances, x.columns), lines)
    elif form == "npz":
        writers.write_csr(made / f"{split}-{features}.npz", x.columns, x.blocks, ones=False)
    else:
        dense = (part.toarray() for block in x.blocks for part in _parts(block))
        writers.write_dense(made / f"{split}-{features}.npy", (x.instances, x.columns), dense)


def _parts(block: sparse.csr_array, numbers: int = 1 << 22) -> Iterator[sparse.csr_array]:
    """A block in parts that are small as dense arrays too."""
    rows = max(1, numbers // max(1, block.shape[1]))
    for first in range(0, block.shape[0], rows):
        yield block[first : first + rows]


def _whole_lines(labels: Blocks, x: Blocks | None) -> Iterator[Iterator[str]]:
    """Lines `l1,l2,... f:v ...`. The blocks of both files need not have the same instances."""
    if x is None:
        for block in labels.blocks:
            yield iter(writers.label_lines(block))
        return
    label_text = (line for block in labels.blocks for line in writers.label_lines(block))
    for block in x.blocks:
        pairs = writers.pair_lines(block)
        heads = [next(label_text, "") for _ in pairs]
        yield (f"{head} {tail}" for head, tail in zip(heads, pairs, strict=True))
    for _ in label_text:  # the end of the file is checked too
        pass
