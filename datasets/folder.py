"""Data of the user: which files a folder may hold, and how they become a `Dataset`.

A folder holds labels and features of both splits, in any of the forms below, which `formats` reads.
Labels of one form may stand beside features of another. If several files hold the same thing, the
first in these lists is taken: fanin's own names stand before those of the Extreme Classification
Repository, and the form that is read fastest stands first among them.

Dense `.npy` features are memory-mapped, sparse ones stay sparse. Where there are sparse features
such as `bow`, there are two more kinds: `bow-svd512`, their truncated SVD, whose result is cached,
and `bow-dense`, the same numbers in a dense array, if memory suffices.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from scipy import sparse

from fanin.datasets import formats, svd
from fanin.datasets.catalogue import FEATURES, PUBLISHED, canonical_name, spellings
from fanin.datasets.dataset import DataError, Dataset, Features, check_some
from fanin.datasets.file_errors import naming
from fanin.datasets.label_names import read_label_names
from fanin.datasets.memory import available_bytes, size_text
from fanin.datasets.parse_cache import SparseReader, cached

_LOG = logging.getLogger(__name__)

BOW = "bow"
# What stands behind the name of sparse features for dense ones that are made of them.
SVD512, DENSE = "-svd512", "-dense"
SPLITS = ("train", "test")
SHORT = {"train": "trn", "test": "tst"}  # what the repository calls them
FILES_IN = "files in "  # and the folder: what a data set names as its source

X = TypeVar("X", Features, sparse.csr_array)
FeatureReader = Callable[[Path], Features]
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
    "{short}_X_Xf.txt": cached(formats.read_feature_pairs),
    "{split}.txt": cached(formats.read_trailing_pairs),
}


# Pairs (instance, label) that evaluation leaves out: in the LF data sets of the repository an
# instance may be one of the labels itself.
LEFT_OUT = "filter_labels_{split}.txt"


def sparse_files(features: str) -> dict[str, SparseReader]:
    """The files in which sparse features of that name may lie, as in the lists above."""
    own: dict[str, SparseReader] = {f"{{split}}-{features}.npz": formats.read_feature_matrix}
    return SPARSE_FEATURES if features == BOW else own


def feature_files(features: str) -> dict[str, FeatureReader]:
    """The files in which features of that name may lie, dense ones first."""
    return {f"{{split}}-{features}.npy": formats.read_features, **sparse_files(features)}


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
        f"{BOW} or {BOW}{SVD512}, all four from {REPOSITORY}{''.join(dense)}"
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

    `features` may be left out where the folder holds files of only one kind. Other sizes than the
    published ones are logged, since small cuts are tried under the real name. Raises DataError for
    a missing file (saying what it is to hold), for a bad one, and for files that do not fit each
    other.
    """
    folder = Path(folder)
    if features is None:
        kinds = feature_kinds(folder)
        if len(kinds) != 1:
            raise DataError(
                f"{folder}: say which features to load; train features here: {_present(folder)}"
            )
        features = kinds[0]
    labels: list[SplitLabels] = []
    for path, read in [label_file(folder, split) for split in SPLITS]:
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
    """Features of both splits, with as many instances as the labels."""
    base, ending = _base_and_ending(folder, features)
    if ending == SVD512:
        return _reduced(folder, name, base, labels)
    if ending == DENSE:
        return _densified(folder, base, labels)
    return _read_both([_feature_file(folder, split, base) for split in SPLITS], labels)


def _read_both(
    files: Sequence[tuple[Path, Callable[[Path], X]]], labels: Sequence[SplitLabels]
) -> tuple[X, X]:
    """Features of both splits, in this order."""
    train, test = (
        _read_fitting(*file, *split_labels)
        for file, split_labels in zip(files, labels, strict=True)
    )
    return train, test


def _densified(
    folder: Path, features: str, labels: Sequence[SplitLabels]
) -> tuple[svd.Features, svd.Features]:
    """Sparse features in dense arrays; DataError where memory does not suffice."""
    files = [_sparse_file(folder, split, features) for split in SPLITS]
    train, test = _read_both(files, labels)
    needed = sum(4 * x.shape[0] * x.shape[1] for x in (train, test))
    if needed > memory_limit():
        raise DataError(
            f"{files[0][0]} and {files[1][0].name}: as dense float32 they need "
            f"{size_text(needed)}, and half of the memory available here is "
            f"{size_text(memory_limit())}: use --features {features}{SVD512}, or {features} with "
            "a setup that has an intermediate layer"
        )
    return train.toarray(), test.toarray()


def _base_and_ending(folder: Path, features: str) -> tuple[str, str]:
    """The name of the features that lie in files, and the ending that says what is made of them;
    an empty one where they are taken as they are."""
    if features in feature_kinds(folder):
        return features, ""
    for ending in (SVD512, DENSE):
        base = features.removesuffix(ending)
        has_files = base == BOW or first_file(folder, "train", sparse_files(base))
        if base != features and has_files:
            return base, ending
    return features, ""


def is_sparse(folder: Path, features: str) -> bool:
    """Whether features of that name are sparse here; False where there are none."""
    base, ending = _base_and_ending(folder, features)
    file = first_file(folder, "train", feature_files(base))
    return not ending and file is not None and file[0].suffix != ".npy"


def _reduced(
    folder: Path, name: str, features: str, labels: Sequence[SplitLabels]
) -> tuple[svd.Features, svd.Features]:
    """The SVD of the sparse features; cached by the contents of their files."""
    files = [_sparse_file(folder, split, features) for split in SPLITS]

    def make() -> tuple[svd.Features, svd.Features]:
        train, test = _read_both(files, labels)
        if train.shape[1] != test.shape[1]:
            raise DataError(
                f"{files[0][0]}: {train.shape[1]} inputs, but {files[1][0]} has "
                f"{test.shape[1]}: make both with the same feature extractor"
            )
        if min(train.shape) < svd.SVD["n_components"]:
            raise DataError(
                f"{files[0][0]}: {train.shape[0]} instances and {train.shape[1]} inputs are too "
                f"few for {svd.SVD['n_components']} SVD components: use --features {features}"
            )
        _LOG.info("making %s%s of %d instances", features, SVD512, train.shape[0])
        return svd.reduce(train, test)

    digest = svd.content_hash()
    for path, _ in files:
        with naming(path), path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return svd.cached(
        f"{name}-{features}{SVD512}-{digest.hexdigest()[:12]}",
        (labels[0][1].shape[0], labels[1][1].shape[0]),
        make,
    )


def memory_limit() -> int:
    """Bytes that sparse features may take once they are dense: half of what is available."""
    return available_bytes() // 2


def _read_fitting(
    path: Path, read: Callable[[Path], X], label_path: Path, positives: sparse.csr_array
) -> X:
    """Features of as many instances as have labels. Of sparse ones zeros are left out, and an entry
    must be there."""
    x = read(path)
    if x.shape[0] != positives.shape[0]:
        raise DataError(
            f"{path}: {x.shape[0]} rows, but {label_path} has {positives.shape[0]} instances: "
            "both must hold the same instances in the same order"
        )
    if isinstance(x, sparse.csr_array):
        x.eliminate_zeros()
        if x.shape[0] and not x.nnz:
            raise DataError(f"{path}: holds no features, only labels or zeros: give another file")
    return x


def feature_kinds(folder: Path) -> list[str]:
    """Names of the features that lie in files of the folder; more can be made of sparse ones."""
    paths = (path for suffix in ("npy", "npz") for path in folder.glob(f"train-*.{suffix}"))
    kinds = {path.stem.removeprefix("train-") for path in paths} - {"labels"}
    return sorted(kinds | ({BOW} if first_file(folder, "train", SPARSE_FEATURES) else set()))


def _present(folder: Path) -> str:
    """A list of the features that can be loaded from the folder."""
    kinds = feature_kinds(folder)
    sparse_kinds = [kind for kind in kinds if first_file(folder, "train", sparse_files(kind))]
    made = {f"{kind}{ending}" for kind in sparse_kinds for ending in (DENSE, SVD512)}
    return ", ".join(sorted(made.union(kinds))) or "none"


R = TypeVar("R")


def _names(forms: Mapping[str, R], split: str) -> list[str]:
    """The file names that stand for `split` in a list of forms."""
    return [name.replace("{split}", split).replace("{short}", SHORT[split]) for name in forms]


def first_file(folder: Path, split: str, forms: Mapping[str, R]) -> tuple[Path, R] | None:
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


def label_file(folder: Path, split: str) -> tuple[Path, SparseReader]:
    file = first_file(folder, split, LABELS)
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
    file = first_file(folder, split, feature_files(features))
    if file is None and features == BOW:
        return _sparse_file(folder, split, features)
    if file is None:
        origin = f"; they are {ORIGINS[features]}" if features in ORIGINS else ""
        unusable = _unusable(folder, _names(feature_files(features), split))
        raise DataError(
            f"{folder / f'{split}-{features}.npy'}: missing{unusable}; it is to hold the {split} "
            f"features, a float array [instances, inputs] written by numpy.save{origin}. Train "
            f"features here: {_present(folder)}"
        )
    return file


def _sparse_file(folder: Path, split: str, features: str) -> tuple[Path, SparseReader]:
    forms = sparse_files(features)
    file = first_file(folder, split, forms)
    if file is None and features != BOW:
        (name,) = _names(forms, split)
        raise DataError(
            f"{folder / name}: missing{_unusable(folder, [name])}; it is to hold the {split} "
            "features, a CSR matrix [instances, inputs] written by scipy.sparse.save_npz"
        )
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
    words = {BOW: entry.words.inputs} if entry.words else {}
    inputs = (FEATURES | words).get(data.features, data.inputs)
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
