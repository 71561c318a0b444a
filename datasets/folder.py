"""Data of the user: which files a folder may hold, and how they become a `Dataset`.

A folder holds labels and features of both splits, in any of the forms below, which `formats` reads.
Labels of one form may stand beside features of another. If several files hold the same thing, the
first in these lists is taken: fanin's own names stand before those of the Extreme Classification
Repository, and the form that is read fastest stands first among them.

Dense `.npy` features are memory-mapped. Sparse ones are made dense: as they are (`bow`) if memory
suffices, or by truncated SVD (`bow-svd512`), whose result is cached.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fanin.datasets import formats, svd
from fanin.datasets.catalogue import FEATURES, PUBLISHED, canonical_name, spellings
from fanin.datasets.dataset import DataError, Dataset, check_some
from fanin.datasets.file_errors import naming
from fanin.datasets.label_cache import SparseReader, cached
from fanin.datasets.label_names import read_label_names
from fanin.datasets.memory import available_bytes, size_text

_LOG = logging.getLogger(__name__)

BOW, BOW_SVD512 = "bow", "bow-svd512"
FILES_IN = "files in "  # and the folder: what a data set names as its source

Features = npt.NDArray[np.float32]
FeatureReader = Callable[[Path], "Features | sparse.csr_array"]
SplitLabels = tuple[Path, sparse.csr_array]  # the label file of a split, and its positives


# File names and what reads them, best first; {split} is train or test, {short} is trn or tst.
LABELS: dict[str, SparseReader] = {
    "{split}-labels.npz": formats.read_label_matrix,
    "{split}-labels.txt": cached(formats.read_labels),
    "{short}_X_Y.npz": formats.read_label_matrix,
    "{short}_X_Y.txt": cached(formats.read_label_pairs),
    "{split}.txt": cached(formats.read_labels),
}
SPARSE_FEATURES: dict[str, SparseReader] = {
    "{split}-bow.npz": formats.read_feature_matrix,
    "{short}_X_Xf.npz": formats.read_feature_matrix,
    "{short}_X_Xf.txt": formats.read_feature_pairs,
    "{split}.txt": formats.read_trailing_pairs,
}


# Pairs (instance, label) that evaluation leaves out: in the LF data sets of the repository an
# instance may be one of the labels itself.
LEFT_OUT = "filter_labels_{split}.txt"


def feature_files(features: str) -> dict[str, FeatureReader]:
    """The files in which features of that name may lie, as in the lists above."""
    own: dict[str, FeatureReader] = {
        f"{{split}}-{features}.npy": formats.read_features,
        f"{{split}}-{features}.npz": formats.read_feature_matrix,
    }
    return own | SPARSE_FEATURES if features == BOW else own


REPOSITORY = (
    "the Extreme Classification Repository, http://manikvarma.org/downloads/XC/XMLRepository.html"
)
ORIGINS = {
    "slice": (
        "the 512-d dense features used by Slice (Jain et al., WSDM 2019), available with that "
        f"method's data release from {REPOSITORY}"
    ),
    "cascade": (
        "768-d features of a trained CascadeXML model (Kharbanda et al., NeurIPS 2022), made by "
        "its code, https://github.com/xmc-aalto/cascadexml"
    ),
}


def layout(name: str) -> str:
    """What to lay out for a published data set, and where its files come from."""
    dense = (
        f"; with train-{kind}.npy and test-{kind}.npy for --features {kind}: {ORIGINS[kind]}"
        for kind in PUBLISHED[canonical_name(name)].features
    )
    return (
        f"lay out <data-dir>/{name}/ and give --data-dir <data-dir>: trn_X_Y.txt and tst_X_Y.txt "
        "hold the labels; with trn_X_Xf.txt and tst_X_Xf.txt (sparse features) for --features "
        f"{BOW} or {BOW_SVD512}, all four from {REPOSITORY}{''.join(dense)}"
    )


def find_folder(data_dir: Path | str, name: str) -> Path | None:
    """The folder of a data set below `data_dir`; None if there is none.

    It may bear any of the catalogue's spellings of the name, and letter case does not count; the
    name as given goes first.
    """
    data_dir = Path(data_dir)
    if (data_dir / name).is_dir():
        return data_dir / name
    if not data_dir.is_dir():
        return None
    folders = {path.name.lower(): path for path in sorted(data_dir.iterdir()) if path.is_dir()}
    matching = (folders.get(spelling.lower()) for spelling in spellings(name))
    return next(filter(None, matching), None)


def load_folder(folder: Path | str, name: str, features: str | None = None) -> Dataset:
    """Load the files in `folder` as the data set `name`.

    `features` may be left out where the folder holds only one kind. Other sizes than the published
    ones are logged, since small cuts are tried under the real name. Raises DataError for a missing
    file (saying what it is to hold), for a bad one, and for files that do not fit each other.
    """
    folder = Path(folder)
    if features is None:
        kinds = feature_kinds(folder)
        if len(kinds) != 1:
            present = ", ".join(kinds) or "none"
            raise DataError(f"{folder}: say which features to load; train features here: {present}")
        features = kinds[0]
    labels: list[SplitLabels] = []
    for path, read in [_label_file(folder, split) for split in ("train", "test")]:
        labels.append((path, read(path)))
        check_some(labels[-1][1], str(path), to_train=len(labels) == 1)
    train_x, test_x = _features(folder, name, features, labels)
    data = Dataset(
        name=name,
        features=features,
        train_x=train_x,
        train_y=labels[0][1],
        test_x=test_x,
        test_y=labels[1][1],
        synthetic=False,
        source=f"{FILES_IN}{folder}",
        label_names=read_label_names(folder, labels[0][1].shape[1]),
        train_left_out=_left_out(folder, "train", labels[0][1]),
        test_left_out=_left_out(folder, "test", labels[1][1]),
    )
    _compare_with_published(data)
    return data


def _left_out(folder: Path, split: str, y: sparse.csr_array) -> sparse.csr_array | None:
    """The pairs that evaluation leaves out; None where there is no file, or nothing in it."""
    path = folder / LEFT_OUT.format(split=split)
    if not path.is_file():
        return None
    pairs = formats.read_left_out(path, y.shape)
    return pairs if pairs.nnz else None


def _features(
    folder: Path, name: str, features: str, labels: Sequence[SplitLabels]
) -> tuple[Features, Features]:
    """Dense features of both splits, with as many instances as the labels."""
    if features == BOW_SVD512 and BOW_SVD512 not in _stored_kinds(folder):
        return _reduced(folder, name, labels)
    files = [_feature_file(folder, split, features) for split in ("train", "test")]
    parts = [
        _read_fitting(*file, *split_labels)
        for file, split_labels in zip(files, labels, strict=True)
    ]
    needed = sum(4 * x.shape[0] * x.shape[1] for x in parts if isinstance(x, sparse.csr_array))
    if needed > memory_limit():
        advice = (
            f"use --features {BOW_SVD512}"
            if features == BOW
            else "store them as float32 .npy, which is mapped, or reduce them"
        )
        raise DataError(
            f"{files[0][0]} and {files[1][0].name}: as dense float32 they need "
            f"{size_text(needed)}, and half of the memory available here is "
            f"{size_text(memory_limit())}: {advice}"
        )
    train, test = (x.toarray() if isinstance(x, sparse.csr_array) else x for x in parts)
    return train, test


def _reduced(folder: Path, name: str, labels: Sequence[SplitLabels]) -> tuple[Features, Features]:
    """The SVD of the sparse features; cached by the contents of their files."""
    files = [_sparse_file(folder, split) for split in ("train", "test")]

    def make() -> tuple[Features, Features]:
        train, test = (
            _read_fitting(*file, *split_labels)
            for file, split_labels in zip(files, labels, strict=True)
        )
        if train.shape[1] != test.shape[1]:
            raise DataError(
                f"{files[0][0]}: {train.shape[1]} inputs, but {files[1][0]} has "
                f"{test.shape[1]}: make both with the same feature extractor"
            )
        if min(train.shape) < svd.SVD["n_components"]:
            raise DataError(
                f"{files[0][0]}: {train.shape[0]} instances and {train.shape[1]} inputs are too "
                f"few for {svd.SVD['n_components']} SVD components: use --features {BOW}"
            )
        _LOG.info("making %s of %d instances", BOW_SVD512, train.shape[0])
        return svd.reduce(train, test)

    digest = svd.content_hash()
    for path, _ in files:
        with naming(path), path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return svd.cached(
        f"{name}-{BOW_SVD512}-{digest.hexdigest()[:12]}",
        (labels[0][1].shape[0], labels[1][1].shape[0]),
        make,
    )


def memory_limit() -> int:
    """Bytes that sparse features may take once they are dense: half of what is available."""
    return available_bytes() // 2


X = TypeVar("X", "Features | sparse.csr_array", sparse.csr_array)


def _read_fitting(
    path: Path, read: Callable[[Path], X], label_path: Path, positives: sparse.csr_array
) -> X:
    """Features of as many instances as have labels; sparse ones must have an entry."""
    x = read(path)
    if x.shape[0] != positives.shape[0]:
        raise DataError(
            f"{path}: {x.shape[0]} rows, but {label_path} has {positives.shape[0]} instances: "
            "both must hold the same instances in the same order"
        )
    if isinstance(x, sparse.csr_array) and x.shape[0] and not x.nnz:
        raise DataError(f"{path}: holds no features, only labels or zeros: give another file")
    return x


def _stored_kinds(folder: Path) -> set[str]:
    """Names of the features that the folder holds under fanin's own file names."""
    paths = (path for suffix in ("npy", "npz") for path in folder.glob(f"train-*.{suffix}"))
    return {path.stem.removeprefix("train-") for path in paths} - {"labels"}


def feature_kinds(folder: Path) -> list[str]:
    """Names of the features that can be loaded from the folder."""
    from_sparse = {BOW, BOW_SVD512} if _first_file(folder, "train", SPARSE_FEATURES) else set()
    return sorted(_stored_kinds(folder) | from_sparse)


R = TypeVar("R")


def _names(forms: Mapping[str, R], split: str) -> list[str]:
    """The file names that stand for `split` in a list of forms."""
    short = {"train": "trn", "test": "tst"}[split]
    return [name.replace("{split}", split).replace("{short}", short) for name in forms]


def _first_file(folder: Path, split: str, forms: Mapping[str, R]) -> tuple[Path, R] | None:
    """The first file of the forms that exists, and what reads it."""
    for name, read in zip(_names(forms, split), forms.values(), strict=True):
        if (folder / name).is_file():
            return folder / name, read
    return None


def _unusable(folder: Path, names: Sequence[str]) -> str:
    """A remark on what lies in place of a missing file: a folder, a dead link, a packed file."""
    for path in (folder / name for name in names):
        if path.is_dir():
            return f"; {path} is a folder"
        if path.is_symlink():
            return f"; {path} is a link to nothing"
        packed = path.with_name(f"{path.name}.gz")
        if packed.is_file():
            return f"; {packed} is compressed: unpack it with gunzip"
    return ""


def _label_file(folder: Path, split: str) -> tuple[Path, SparseReader]:
    file = _first_file(folder, split, LABELS)
    if file is None:
        names = _names(LABELS, split)
        raise DataError(
            f"{folder / f'{split}-labels.txt'}: missing{_unusable(folder, names)}; it is to hold "
            f"the {split} labels: a header line `N D L` (instances, inputs, labels), then one line "
            f"`l1,l2,...` per instance. Any of {', '.join(names)} will do; labels of the published "
            f"data sets come from {REPOSITORY}"
        )
    return file


def _feature_file(folder: Path, split: str, features: str) -> tuple[Path, FeatureReader]:
    file = _first_file(folder, split, feature_files(features))
    if file is None and features == BOW:
        return _sparse_file(folder, split)
    if file is None:
        present = ", ".join(feature_kinds(folder)) or "none"
        origin = f"; they are {ORIGINS[features]}" if features in ORIGINS else ""
        unusable = _unusable(folder, _names(feature_files(features), split))
        raise DataError(
            f"{folder / f'{split}-{features}.npy'}: missing{unusable}; it is to hold the {split} "
            f"features, a float array [instances, inputs] written by numpy.save{origin}. Train "
            f"features here: {present}"
        )
    return file


def _sparse_file(folder: Path, split: str) -> tuple[Path, SparseReader]:
    file = _first_file(folder, split, SPARSE_FEATURES)
    if file is None:
        names = _names(SPARSE_FEATURES, split)
        raise DataError(
            f"{folder / names[2]}: missing{_unusable(folder, names)}; it is to hold the {split} "
            "features, sparse: a header line `rows columns` (instances, inputs), then one line "
            f"`input:value ...` per instance. Any of {', '.join(names)} will do; sparse features "
            f"of the published data sets come from {REPOSITORY}"
        )
    return file


def _compare_with_published(data: Dataset) -> None:
    entry = PUBLISHED.get(canonical_name(data.name))
    if entry is None:
        return
    inputs = FEATURES.get(data.features, data.inputs)
    differences = [
        f"{loaded:,} {what}, not {published:,}"
        for what, loaded, published in (
            ("labels", data.labels, entry.labels),
            ("training instances", data.train_instances, entry.train_instances),
            ("test instances", data.test_instances, entry.test_instances),
            ("inputs", data.inputs, inputs),
        )
        if loaded != published
    ]
    if differences:
        _LOG.warning(
            "%s: these are not the published %s: %s",
            data.source,
            entry.name,
            "; ".join(differences),
        )
