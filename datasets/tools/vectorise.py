"""Features of texts by TF-IDF, sparse or reduced by SVD, and the vectoriser that made them.

The vectoriser is fitted on the training texts alone. It is kept beside the features, as JSON and,
for the SVD, an array, so that new texts become the same features:

    Vectoriser.load(Path("data/mine/tfidf.features.json")).features(["a new text"])
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fanin.datasets import svd
from fanin.datasets.dataset import DataError, check_finite
from fanin.datasets.file_errors import naming
from fanin.datasets.matrix_files import read_array
from fanin.datasets.text_features import CHARACTER_TFIDF, TFIDF
from fanin.datasets.tools.files import SPLITS, VECTORISER
from fanin.datasets.tools.new_folder import check_new
from fanin.datasets.tools.texts import in_parts, read_texts, text_file
from fanin.datasets.tools.writers import write_csr, write_dense
from fanin.kernels.kept_files import replacing

SCHEMA = 1
AT_ONCE = 10_000  # texts that become features at a time
UNITS = {"words": TFIDF, "characters": CHARACTER_TFIDF}


@dataclass(frozen=True, eq=False)
class Vectoriser:
    """TF-IDF as fitted, with the components [components, terms] of an SVD, or None.

    tfidf: the options of `TfidfVectorizer`. terms: in the order of the inputs.
    """

    tfidf: dict[str, Any]
    terms: list[str]
    idf: npt.NDArray[np.float32]
    components: npt.NDArray[np.float32] | None = None

    @property
    def inputs(self) -> int:
        """How many numbers an instance gets."""
        return len(self.terms) if self.components is None else len(self.components)

    def features(self, texts: Iterable[str]) -> sparse.csr_array | npt.NDArray[np.float32]:
        """Features float32 [texts, inputs]: canonical CSR, or dense with an SVD."""
        options = {key: value for key, value in self.tfidf.items() if key not in _OF_FIT}
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(dtype=np.float32, vocabulary=self.terms, **options)
        vectorizer.idf_ = self.idf
        x = _canonical(vectorizer.transform(texts))
        return x if self.components is None else svd.apply(self.components, x)

    def save(self, path: Path) -> None:
        """Write it as `<features>.features.json`, the components as `.npy` of the same stem."""
        if self.components is not None:
            with replacing(path.with_suffix(".npy")) as made, naming(path), made.open("wb") as file:
                np.save(file, self.components)
        content = {
            "schema_version": SCHEMA,
            "tfidf": self.tfidf,
            "components": None if self.components is None else len(self.components),
            "terms": self.terms,
            "idf": [float(value) for value in self.idf],
        }
        with replacing(path) as made, naming(path), made.open("w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False)

    @staticmethod
    def load(path: Path) -> Vectoriser:
        """Raises DataError for a file that `save` did not write."""
        try:
            with naming(path):
                content = json.loads(path.read_bytes())
            if content["schema_version"] != SCHEMA:
                raise ValueError(f"schema {content['schema_version']}, not {SCHEMA}")
            tfidf = dict(content["tfidf"], ngram_range=tuple(content["tfidf"]["ngram_range"]))
            terms, idf = content["terms"], np.array(content["idf"], np.float32)
            if not set(tfidf) <= _OPTIONS or idf.shape != (len(set(terms)),) or not terms:
                raise ValueError("its options, terms or idf are not those of a vectoriser")
            check_finite(idf[None], str(path))
            components = None
            if content["components"] is not None:
                components = read_array(path.with_suffix(".npy"))
                if components.shape != (content["components"], len(terms)):
                    raise ValueError(f"{path.with_suffix('.npy').name} is {components.shape}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{path}: no vectoriser that `fanin data features` wrote ({error}): make it anew"
            ) from error
        return Vectoriser(tfidf, terms, idf, components)


# Options that choose the terms, which a fitted vectoriser has already; and all options.
_OF_FIT = {"min_df", "max_features"}
_OPTIONS = {"sublinear_tf", "min_df", "ngram_range", "analyzer", "max_features"}


def fit(
    texts: Iterable[str],
    units: str,
    least: int | None = None,
    components: int | None = None,
    where: str = "texts",
) -> tuple[Vectoriser, sparse.csr_array | npt.NDArray[np.float32]]:
    """A vectoriser for these training texts, and their features.

    units: `words` or `characters`. least: texts that a term has to stand in (2). components: of an
    SVD, or None for sparse features. where: begins an error. Raises DataError for too few texts or
    terms.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    tfidf = UNITS[units] | ({} if least is None else {"min_df": least})
    vectorizer = TfidfVectorizer(dtype=np.float32, **tfidf)
    try:
        x = _canonical(vectorizer.fit_transform(texts))
    except ValueError as error:  # so is a DataError about the file
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{where}: no term stands in {tfidf['min_df']} texts ({error}): give more texts, or "
            "a lower --least"
        ) from error
    if components is not None and min(x.shape) < components:
        raise DataError(
            f"{where}: {x.shape[0]} texts with {x.shape[1]} terms are too few for {components} SVD "
            "components: give fewer components, or more texts"
        )
    terms = [str(term) for term in vectorizer.get_feature_names_out()]
    idf = vectorizer.idf_.astype(np.float32)
    if components is None:
        return Vectoriser(tfidf, terms, idf), x
    fitted, reduced = svd.fit(x, n_components=components)
    return Vectoriser(tfidf, terms, idf, fitted.components_.astype(np.float32)), reduced


def _canonical(x: Any) -> sparse.csr_array:
    matrix = sparse.csr_array(x, dtype=np.float32)
    matrix.sum_duplicates()
    return matrix


def make_features(
    folder: Path,
    name: str,
    units: str,
    least: int | None,
    components: int | None,
    force: bool,
) -> list[Path]:
    """Features `name` of both splits of a data folder, from its texts, and their vectoriser; the
    files that are written."""
    kept = folder / f"{name}{VECTORISER[0]}"
    paths = _paths(folder, name, is_sparse=components is None)
    for path in (kept, *paths):
        check_new(path, force)
    texts = [text_file(folder, split) for split in SPLITS]
    vectoriser, x = fit(read_texts(texts[0]), units, least, components, str(texts[0]))
    # The vectoriser is written last: where it exists, the features are complete.
    _write(paths[0], vectoriser.inputs, [x], x.shape[0])
    del x
    write_features(vectoriser, texts[1], paths[1])
    vectoriser.save(kept)
    return [*paths, kept]


def features_with(vectoriser_file: Path, folder: Path, force: bool) -> list[Path]:
    """Features of the texts in another data folder by a vectoriser that is kept."""
    vectoriser = Vectoriser.load(vectoriser_file)
    paths = _paths(folder, name_of(vectoriser_file), is_sparse=vectoriser.components is None)
    for path in paths:
        check_new(path, force)
    texts = [text_file(folder, split) for split in SPLITS]
    for source, path in zip(texts, paths, strict=True):
        write_features(vectoriser, source, path)
    return paths


def name_of(vectoriser_file: Path) -> str:
    """The name of the features that a vectoriser makes."""
    return vectoriser_file.name.removesuffix(VECTORISER[0])


def write_features(vectoriser: Vectoriser, texts: Path, path: Path) -> None:
    """The features of a file of texts, some texts at a time, in a `.npz` or `.npy` file."""
    count = sum(1 for _ in read_texts(texts))
    parts = map(vectoriser.features, in_parts(read_texts(texts), AT_ONCE))
    _write(path, vectoriser.inputs, parts, count)


def _write(path: Path, inputs: int, parts: Iterable[Any], instances: int) -> None:
    with replacing(path) as made:
        made.unlink()  # the writers make new files only
        if path.suffix == ".npz":
            write_csr(made, inputs, parts, ones=False)
        else:
            write_dense(made, (instances, inputs), parts)


def _paths(folder: Path, name: str, is_sparse: bool) -> list[Path]:
    return [folder / f"{split}-{name}.{'npz' if is_sparse else 'npy'}" for split in SPLITS]
