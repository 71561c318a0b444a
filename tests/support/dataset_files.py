"""Small data sets for tests, written in every form that a folder may hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from scipy import sparse

from fanin.datasets import formats


def csr(rows: list[list[int]], labels: int) -> sparse.csr_array:
    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.array([label for row in rows for label in row], np.int64)
    return sparse.csr_array((np.ones(len(indices), bool), indices, indptr), (len(rows), labels))


def same(a: sparse.csr_array, b: sparse.csr_array) -> bool:
    return (
        a.shape == b.shape
        and np.array_equal(a.indptr, b.indptr)
        and np.array_equal(a.indices, b.indices)
    )


def with_values(rows: list[dict[int, float]], columns: int) -> sparse.csr_array:
    matrix = csr([sorted(row) for row in rows], columns).astype(np.float32)
    matrix.data[:] = [row[i] for row in rows for i in sorted(row)]
    return matrix


def same_values(a: sparse.csr_array, b: sparse.csr_array) -> bool:
    return same(a, b) and a.dtype == b.dtype and np.array_equal(a.data, b.data)


def pairs(row: dict[int, float]) -> str:
    return " ".join(f"{index}:{value!r}" for index, value in row.items())


@st.composite
def label_rows(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    labels = draw(st.integers(1, 3_000_000))
    row = st.lists(st.integers(0, labels - 1), max_size=6, unique=True)
    return draw(st.lists(row, max_size=40)), labels


@st.composite
def pair_rows(draw: st.DrawFn) -> tuple[list[dict[int, float]], int]:
    columns = draw(st.integers(1, 3_000_000))
    value = st.floats(width=32, allow_nan=False, allow_infinity=False)
    row = st.dictionaries(st.integers(0, columns - 1), value, max_size=6)
    return draw(st.lists(row, max_size=30)), columns


def write_folder(folder: Path, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """A well-formed data set of 6 + 3 instances, 4 inputs and 5 labels; returns its features."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    features = {}
    for split, count in (("train", 6), ("test", 3)):
        features[split] = rng.standard_normal((count, 4)).astype(dtype)
        np.save(folder / f"{split}-slice.npy", features[split])
        formats.write_labels(folder / f"{split}-labels.txt", csr([[0, 3]] * count, 5), 4)
    return features


LABEL_ROWS = {"train": [[3, 0], [2], [], [4, 1, 0], [3], [1]], "test": [[0], [], [4, 2]]}


FEATURE_ROWS = {
    "train": [{0: 1.0, 5: 0.25}, {2: -3.0}, {1: 0.1, 3: 7.0}, {4: 2.0}, {5: 1e-3, 0: 2.0}, {1: 1}],
    "test": [{3: 0.5}, {}, {0: 1.5, 4: -1.0}],
}


LABEL_FORMS = ["own.npz", "own.txt", "repository.npz", "repository.txt", "single"]


FEATURE_FORMS = ["own.npy", "own.npz", "repository.npz", "repository.txt", "single"]


def short(split: str) -> str:
    return {"train": "trn", "test": "tst"}[split]


def write_form(place: Path, labels: str, features: str) -> None:
    """The data above with its labels in one form and its features, `bow`, in another."""
    place.mkdir(exist_ok=True)
    for split, rows in LABEL_ROWS.items():
        write_label_form(place, split, labels, csr([sorted(row) for row in rows], 5))
        write_feature_form(place, split, features, with_values(FEATURE_ROWS[split], 6))


def write_lines(path: Path, header: str, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in (header, *lines)))


def write_label_form(place: Path, split: str, form: str, y: sparse.csr_array) -> None:
    rows = LABEL_ROWS[split]
    match form:
        case "own.npz":
            sparse.save_npz(place / f"{split}-labels.npz", y)
        case "own.txt":
            formats.write_labels(place / f"{split}-labels.txt", y, 6)
        case "repository.npz":
            sparse.save_npz(place / f"{short(split)}_X_Y.npz", y)
        case "repository.txt":
            lines = (pairs(dict.fromkeys(row, 1)) for row in rows)
            write_lines(place / f"{short(split)}_X_Y.txt", f"{len(rows)} 5", lines)
        case "single":
            write_single(place, split)


def write_feature_form(place: Path, split: str, form: str, x: sparse.csr_array) -> None:
    rows = FEATURE_ROWS[split]
    match form:
        case "own.npy":
            np.save(place / f"{split}-bow.npy", x.toarray())
        case "own.npz":
            sparse.save_npz(place / f"{split}-bow.npz", x)
        case "repository.npz":
            sparse.save_npz(place / f"{short(split)}_X_Xf.npz", x)
        case "repository.txt":
            write_lines(place / f"{short(split)}_X_Xf.txt", f"{len(rows)} 6", map(pairs, rows))
        case "single":
            write_single(place, split)


def write_single(place: Path, split: str) -> None:
    rows = zip(LABEL_ROWS[split], FEATURE_ROWS[split], strict=True)
    lines = [f"{','.join(map(str, labels))} {pairs(values)}" for labels, values in rows]
    write_lines(place / f"{split}.txt", f"{len(lines)} 6 5", lines)
