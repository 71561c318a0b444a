"""Three real data sets from what Debian's packages hold, to compare setups on.

    python -m fanin.datasets.packages NAME SOURCE --out DATA

reads the file SOURCE and writes the folder `DATA/<NAME>`, in a layout that `folder.py` reads.
README.md says where each SOURCE comes from. The data are not committed: they have other licences.

One rule makes every set, so that the same source gives the same labels and splits:

1. merge the entries that have the same text, and order the texts by their numbers (`number_of`);
2. take the first ones, for testing where the number is divisible by TEST_EVERY;
3. keep the labels with at least LEAST training instances;
4. drop the instances left without a label. As many texts are taken as leave INSTANCES of them.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from fanin.datasets import text_features
from fanin.datasets.dataset import DataError
from fanin.datasets.folder import BOW, SPLITS
from fanin.datasets.package_files import Entry, read_german, read_japanese, read_packages
from fanin.datasets.tools.new_folder import making

LEAST = 3
INSTANCES = 60_000
TEST_EVERY = 6


class Split(NamedTuple):
    """Instances of one split: texts [instances], positives bool [instances, labels]."""

    texts: list[str]
    positives: sparse.csr_array


class PackageSet(NamedTuple):
    """How one data set is made, and what its users must know."""

    read: Callable[[Iterable[str]], Iterator[Entry]]
    encoding: str
    tfidf: Mapping[str, Any]
    advice: str
    licence: str


SETS = {
    "debian-packages": PackageSet(
        read_packages,
        "utf-8",
        text_features.TFIDF,
        "give the output of `apt-cache dumpavail`, run after `apt-get update`, or an unpacked "
        "Packages file",
        "Each description is under the licence of its package: /usr/share/doc/<package>/copyright.",
    ),
    "german-english": PackageSet(
        read_german,
        "utf-8",
        text_features.CHARACTER_TFIDF,
        "give /usr/share/trans/de-en, from `apt-get install trans-de-en`",
        "The dictionary of Ding, (c) Frank Richter, https://dict.tu-chemnitz.de: GNU General "
        "Public\nLicense, version 2 or later.",
    ),
    "japanese-english": PackageSet(
        read_japanese,
        "euc_jp",
        text_features.CHARACTER_TFIDF,
        "give /usr/share/edict/edict, from `apt-get install edict`",
        "EDICT, (c) the Electronic Dictionary Research and Development Group, "
        "https://www.edrdg.org,\nused in conformance with the Group's licence: Creative Commons "
        "Attribution-ShareAlike 3.0.",
    ),
}


def read_entries(name: str, source: Path) -> Iterator[Entry]:
    """The entries of the file `source` for the data set `name`.

    Raises DataError for a file that cannot be read, and for the first bad line.
    """
    own = SETS[name]
    try:
        with source.open(encoding=own.encoding) as file:
            yield from own.read(file)
    except OSError as error:
        raise DataError(f"{source}: {error.strerror}: {own.advice}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not text in {own.encoding}: {own.advice}") from error
    except ValueError as error:
        raise DataError(f"{source}:{error}: correct the line, or {own.advice}") from error


def number_of(text: str) -> int:
    """The first 8 bytes of the SHA-256 of the text, read as a big-endian number."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def make_splits(
    entries: Iterable[Entry], least: int, instances: int
) -> tuple[Split, Split, list[str]]:
    """Training split, test split and label names, which are sorted."""
    merged: dict[str, set[str]] = {}
    for text, names in entries:
        merged.setdefault(text, set()).update(names)
    numbers = {text: number_of(text) for text, names in merged.items() if text and names}
    texts = sorted(numbers, key=numbers.__getitem__)
    tests = {text for text in texts if numbers[text] % TEST_EVERY == 0}

    def kept(taken: int) -> dict[str, set[str]]:
        """The instances, with the names of their labels, that the first texts give."""
        train = (merged[text] for text in texts[:taken] if text not in tests)
        counts = Counter(chain.from_iterable(train))
        frequent = {name for name, count in counts.items() if count >= least}
        return {text: names for text in texts[:taken] if (names := merged[text] & frequent)}

    # One text more never leaves fewer instances, so the last number of texts can be searched.
    taken = range(len(texts) + 1)
    last = bisect_right(taken, instances, key=lambda count: len(kept(count))) - 1
    labels = kept(last)
    label_names = sorted(set().union(*labels.values()))
    label_ids = {name: label_id for label_id, name in enumerate(label_names)}
    train, test = (
        _to_split({t: names for t, names in labels.items() if (t in tests) == testing}, label_ids)
        for testing in (False, True)
    )
    return train, test, label_names


def _to_split(labels: Mapping[str, set[str]], label_ids: Mapping[str, int]) -> Split:
    """The split of texts with the names of their labels."""
    ids = [sorted(label_ids[name] for name in names) for names in labels.values()]
    indptr = np.cumsum([0, *map(len, ids)])
    indices = np.fromiter(chain.from_iterable(ids), np.int64)
    ones = np.ones(len(indices), np.bool_)
    shape = (len(ids), len(label_ids))
    return Split(list(labels), sparse.csr_array((ones, indices, indptr), shape=shape))


def write(name: str, source: Path, out: Path, least: int, instances: int) -> str:
    """Write the data set `name` of the file `source` into `out`; returns what its README.txt says.

    Raises DataError for a source that cannot be used, and for a folder that exists.
    """
    folder, advice = out / name, SETS[name].advice
    if folder.exists():
        raise DataError(f"{folder}: exists: remove it, or give another folder with --out")
    train, test, label_names = make_splits(read_entries(name, source), least, instances)
    if not (train.texts and test.texts):
        raise DataError(
            f"{source}: {len(train.texts)} training and {len(test.texts)} test instances with a "
            f"label of at least {least} training instances: {advice}, or change --least and "
            "--instances"
        )
    try:
        texts = train.texts, test.texts, SETS[name].tfidf
        words, reduced = text_features.tfidf_words(*texts), text_features.tfidf_svd(*texts)
    except DataError as error:
        raise DataError(f"{source}: {error}, or {advice}") from error
    about = _describe(name, source, least, instances, train, test)
    with making(folder, force=False) as made:
        for split, bow, x, y in zip(SPLITS, words, reduced, (train, test), strict=True):
            sparse.save_npz(made / f"{split}-{BOW}.npz", bow)
            np.save(made / f"{split}-{text_features.TFIDF_SVD512}.npy", x)
            sparse.save_npz(made / f"{split}-labels.npz", y.positives)
        (made / "labels.txt").write_text("".join(f"{each}\n" for each in label_names), "utf-8")
        (made / "README.txt").write_text(about, "utf-8")
    return about


def _describe(
    name: str, source: Path, least: int, instances: int, train: Split, test: Split
) -> str:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    means = [split.positives.nnz / len(split.texts) for split in (train, test)]
    return f"""\
{name}: made by `python -m fanin.datasets.packages` with --least {least} --instances {instances}
Source: {source.name}, SHA-256 {digest}
{SETS[name].licence}

Labels: {train.positives.shape[1]:,}, each with at least {least} training instances
Training instances: {len(train.texts):,}, with {means[0]:.2f} labels on average
Test instances: {len(test.texts):,}, with {means[1]:.2f} labels on average
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the data set that the command line names, and say what it holds."""
    parser = argparse.ArgumentParser(
        prog="python -m fanin.datasets.packages", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("name", choices=SETS)
    parser.add_argument("source", type=Path, help="the file to read; datasets/README.md says which")
    parser.add_argument("--out", type=Path, required=True, help="the folder of data sets")
    parser.add_argument("--least", type=int, default=LEAST, help="training instances of a label")
    parser.add_argument("--instances", type=int, default=INSTANCES, help="of both splits, at most")
    options = parser.parse_args(arguments)
    if min(options.least, options.instances) < 1:
        parser.error(
            f"--least {options.least} --instances {options.instances}: both are at least 1"
        )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(write(**vars(options)))
    except DataError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
