"""The embedded data sets: WordNet 3.0, whole and as a small cut. Real text, real labels.

An instance is a synset, its text the lemmas and the gloss, its labels the synsets that its
pointers lead to. `wordnet.txt.xz` (made by build.py) holds all synsets with all their pointers;
which of them become labels is decided here, by one rule for the whole set and for every cut:

1. take the synsets of the cut, split as their lines say;
2. keep the labels with at least MIN_POSITIVES training instances in the cut;
3. drop the instances left without a label.
"""

from __future__ import annotations

import lzma
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import chain
from typing import NamedTuple

import numpy as np
from scipy import sparse

from fanin.datasets.dataset import DataError, Dataset, Features
from fanin.datasets.text_features import (
    TFIDF_SVD512,
    TFIDF_WORDS,
    load_text_features,
    tfidf_words,
)

MIN_POSITIVES = 2

# Lexicographer files, as numbered in WordNet's lexnames(5), that make up the small cut.
# Why this one: see README.md.
SMALL_CUT = frozenset({15})  # noun.location

CUTS = {"wordnet": None, "wordnet-small": SMALL_CUT}  # the embedded data sets

SOURCE = "WordNet 3.0 (Princeton University): text and pointers of its synsets"


class Synset(NamedTuple):
    """One line of the committed file."""

    key: str
    split: str
    lexicographer_file: int
    lemmas: str
    gloss: str
    targets: tuple[int, ...]  # positions in the file, from 0


@dataclass(frozen=True, eq=False)
class Split:
    """Instances of one split: keys and texts [instances], positives bool [instances, labels]."""

    keys: list[str]
    texts: list[str]
    positives: sparse.csr_array


def load_wordnet(features: str | None = None) -> Dataset:
    """All of WordNet: some 65,000 labels."""
    return _load("wordnet", None, features)


def load_wordnet_small(features: str | None = None) -> Dataset:
    """WordNet's places: some 2,400 labels, for tests and quick runs."""
    return _load("wordnet-small", SMALL_CUT, features)


def _load(name: str, cut: Collection[int] | None, features: str | None) -> Dataset:
    features = features or TFIDF_SVD512
    if features not in (TFIDF_SVD512, TFIDF_WORDS):
        raise DataError(
            f"{name}: no features named {features!r}: there are {TFIDF_SVD512} and {TFIDF_WORDS}"
        )
    train, test, label_names = read_splits(cut)
    train_x: Features
    test_x: Features
    if features == TFIDF_WORDS:
        train_x, test_x = tfidf_words(train.texts, test.texts)
    else:
        train_x, test_x = load_text_features(name, train.texts, test.texts)
    return Dataset(
        name=name,
        features=features,
        train_x=train_x,
        train_y=train.positives,
        test_x=test_x,
        test_y=test.positives,
        synthetic=False,
        source=SOURCE,
        label_names=label_names,
    )


def read_splits(cut: Collection[int] | None = None) -> tuple[Split, Split, list[str]]:
    """Training split, test split and label names, of all synsets or of some lexicographer files.

    Label ids follow the order of the label synsets in the file. A name is the first lemma and the
    key, as "France (n08929922)", since lemmas alone are ambiguous.
    """
    synsets = read_synsets()
    chosen = [s for s in synsets if cut is None or s.lexicographer_file in cut]
    by_split = {split: [s for s in chosen if s.split == split] for split in ("train", "test")}

    targets = np.fromiter(chain.from_iterable(s.targets for s in by_split["train"]), np.int64)
    counts = np.bincount(targets, minlength=len(synsets))
    label_positions = np.flatnonzero(counts >= MIN_POSITIVES)
    label_ids = {int(position): label for label, position in enumerate(label_positions)}

    train, test = (_to_split(by_split[split], label_ids) for split in ("train", "test"))
    names = [f"{synsets[p].lemmas.split(', ')[0]} ({synsets[p].key})" for p in label_ids]
    return train, test, names


def _to_split(synsets: list[Synset], label_ids: dict[int, int]) -> Split:
    """The synsets that have a label; `label_ids` by the position of the label's synset."""
    labels = [sorted(label_ids[t] for t in s.targets if t in label_ids) for s in synsets]
    kept = [(synset, ids) for synset, ids in zip(synsets, labels, strict=True) if ids]
    indptr = np.cumsum([0, *(len(ids) for _, ids in kept)])
    indices = np.fromiter(chain.from_iterable(ids for _, ids in kept), np.int64)
    return Split(
        keys=[synset.key for synset, _ in kept],
        texts=[f"{synset.lemmas}; {synset.gloss}" for synset, _ in kept],
        positives=sparse.csr_array(
            (np.ones(len(indices), np.bool_), indices, indptr), shape=(len(kept), len(label_ids))
        ),
    )


@lru_cache(maxsize=1)
def read_synsets() -> tuple[Synset, ...]:
    """All lines of the committed file, in order. It takes about a second, once per process. Raises
    DataError where the file is damaged."""
    file = resources.files(__package__).joinpath("wordnet.txt.xz")
    try:
        text = lzma.decompress(file.read_bytes()).decode("ascii")  # which checks a checksum
    except (lzma.LZMAError, EOFError) as error:
        raise DataError(f"{file}: damaged ({error}): install fanin anew") from error
    synsets = []
    for line in text.splitlines():
        key, split, lexicographer_file, lemmas, gloss, targets = line.split("\t")
        positions = tuple(int(number) - 1 for number in targets.split())
        synsets.append(Synset(key, split, int(lexicographer_file), lemmas, gloss, positions))
    return tuple(synsets)
