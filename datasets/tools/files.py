"""Which file of a data folder holds what; the lists of names are those of `folder`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fanin.datasets.folder import (
    BOW,
    LABELS,
    SPARSE_FEATURES,
    SPLITS,
    feature_files,
    feature_kinds,
    first_file,
    label_file,
)

__all__ = ["SPLITS", "VECTORISER", "find_file", "find_packed", "kinds_in", "label_path"]

# What stands behind the name of features in the files of the vectoriser that made them: the second
# one where it has an SVD.
VECTORISER = (".features.json", ".features.npy")


def find_file(folder: Path, split: str, forms: Mapping[str, object]) -> Path | None:
    """The first file of these forms that exists; None without one."""
    file = first_file(folder, split, forms)
    return file[0] if file else None


def find_packed(folder: Path, split: str, forms: Mapping[str, object]) -> Path | None:
    """The same, or the first text file that is compressed by gzip."""
    packed = [f"{name}.gz" for name in forms if name.endswith(".txt")]
    return find_file(folder, split, forms) or find_file(folder, split, dict.fromkeys(packed))


def label_path(folder: Path, split: str, may_be_packed: bool = False) -> Path:
    """The label file of a split. Raises DataError where there is none."""
    packed = find_packed(folder, split, LABELS) if may_be_packed else None
    return packed or label_file(folder, split)[0]


def kinds_in(folder: Path) -> list[str]:
    """The features that lie in files of a folder, compressed ones too; none that would be made."""
    kinds = {
        kind for kind in feature_kinds(folder) if find_file(folder, "train", feature_files(kind))
    }
    return sorted(kinds | ({BOW} if find_packed(folder, "train", SPARSE_FEATURES) else set()))
