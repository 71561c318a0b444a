"""Dense features of short texts: TF-IDF, then truncated SVD. Made at first use, then cached.

The cache lies in $FANIN_CACHE, or where the system keeps caches of programs. A file's name holds a
hash of the texts, the recipe and the library versions, so another text or recipe is another file.
Files are written beside their place and moved there: two processes that make the same one at once
both succeed, and neither sees a half-written file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs
import scipy
import sklearn
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from .dataset import DataError

log = logging.getLogger(__name__)

TFIDF_SVD512 = "tfidf-svd512"
TFIDF: dict[str, Any] = {"sublinear_tf": True, "min_df": 2, "ngram_range": (1, 1)}
SVD: dict[str, Any] = {"n_components": 512, "n_iter": 3, "random_state": 0}

Features = npt.NDArray[np.float32]


def load_text_features(
    name: str, train_texts: Sequence[str], test_texts: Sequence[str]
) -> tuple[Features, Features]:
    """Features [instances, 512] of both splits, from the cache or made now and cached.

    `name` is the data set's and only makes the file recognisable. Raises DataError if the cache
    folder cannot be written.
    """
    key = _content_hash(train_texts, test_texts)
    path = cache_folder() / f"{name}-{TFIDF_SVD512}-{key}.npz"
    shapes = tuple((len(texts), SVD["n_components"]) for texts in (train_texts, test_texts))
    if path.exists():
        try:
            return _read(path, shapes)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s is damaged (%s): making it anew", path, error)
    train, test = tfidf_svd(train_texts, test_texts)
    _write(path, train, test)
    return train, test


def tfidf_svd(train_texts: Sequence[str], test_texts: Sequence[str]) -> tuple[Features, Features]:
    """TF-IDF of words, truncated SVD, rows of length one; fitted on the training texts only.

    The random state is fixed, but the last bits of an SVD depend on the BLAS and its threads.
    """
    start = time.perf_counter()
    log.info("making %s of %d texts, at most a minute or two", TFIDF_SVD512, len(train_texts))
    vectorizer = TfidfVectorizer(dtype=np.float32, **TFIDF)
    svd = TruncatedSVD(**SVD)
    train = normalize(svd.fit_transform(vectorizer.fit_transform(train_texts)))
    test = normalize(svd.transform(vectorizer.transform(test_texts)))
    log.info("made %s in %.0f s", TFIDF_SVD512, time.perf_counter() - start)
    return np.ascontiguousarray(train, np.float32), np.ascontiguousarray(test, np.float32)


def cache_folder() -> Path:
    """Where cached features lie: $FANIN_CACHE if set, else the user's cache folder."""
    chosen = os.environ.get("FANIN_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("fanin"))


def _content_hash(*splits: Sequence[str]) -> str:
    """Twelve hex digits over all that the features depend on."""
    recipe = {
        "tfidf": TFIDF,
        "svd": SVD,
        "versions": [np.__version__, scipy.__version__, sklearn.__version__],
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    for texts in splits:
        digest.update(f"\n{len(texts)}\n".encode())
        digest.update("\n".join(texts).encode())
    return digest.hexdigest()[:12]


def _read(path: Path, shapes: tuple[tuple[int, int], ...]) -> tuple[Features, Features]:
    """Both arrays of a cache file; zip checks their CRC while reading. Raises if damaged."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        train, test = arrays["train"], arrays["test"]
    if (train.shape, test.shape) != shapes or not train.dtype == test.dtype == np.float32:
        raise ValueError(f"holds {train.dtype} {train.shape} and {test.dtype} {test.shape}")
    return train, test


def _write(path: Path, train: Features, test: Features) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                np.savez(file, train=train, test=test)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                file.close()
                os.unlink(file.name)
                raise
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error}): set FANIN_CACHE to a folder that can be"
        ) from error
    log.info("cached %s", path)
