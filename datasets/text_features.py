"""Features of short texts: TF-IDF, which is sparse, and its truncated SVD, which is dense (`svd`,
which also caches it). scikit-learn takes a second to import, so it is imported where it is used."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from fanin.datasets import svd
from fanin.datasets.dataset import DataError
from fanin.datasets.svd import Features

_LOG = logging.getLogger(__name__)

TFIDF_SVD512 = "tfidf-svd512"
TFIDF_WORDS = "tfidf"  # as they are, sparse
TFIDF: dict[str, Any] = {"sublinear_tf": True, "min_df": 2, "ngram_range": (1, 1)}
# Of single words, which have parts in common: n-grams of characters, within words.
CHARACTER_TFIDF = TFIDF | {
    "analyzer": "char_wb",
    "ngram_range": (1, 4),
    "max_features": 200_000,
}


def load_text_features(
    name: str, train_texts: Sequence[str], test_texts: Sequence[str]
) -> tuple[Features, Features]:
    """Features [instances, 512] of both splits, from the cache or made now and cached.

    `name` is that of the data set and only makes the cached file recognisable. Raises DataError if
    the cache folder cannot be written.
    """
    digest = svd.content_hash(tfidf=TFIDF)
    for texts in (train_texts, test_texts):
        digest.update(f"\n{len(texts)}\n".encode())
        digest.update("\n".join(texts).encode())
    return svd.cached(
        f"{name}-{TFIDF_SVD512}-{digest.hexdigest()[:12]}",
        (len(train_texts), len(test_texts)),
        lambda: tfidf_svd(train_texts, test_texts),
    )


def tfidf_svd(
    train_texts: Sequence[str], test_texts: Sequence[str], tfidf: Mapping[str, Any] = TFIDF
) -> tuple[Features, Features]:
    """TF-IDF, by default of words, then `svd.reduce`; both are fitted on the training texts only.

    Raises DataError for fewer training texts, or fewer terms in them, than the SVD has components.
    """
    _LOG.info("making %s of %d texts, at most a minute or two", TFIDF_SVD512, len(train_texts))
    _check_enough(len(train_texts), "training texts")
    train, test = _tfidf(train_texts, test_texts, tfidf)
    _check_enough(train.shape[1], "terms in the training texts")
    return svd.reduce(train, test)


def tfidf_words(
    train_texts: Sequence[str], test_texts: Sequence[str], tfidf: Mapping[str, Any] = TFIDF
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """TF-IDF [instances, terms] of both splits, by default of words, each instance of length one;
    the terms are those of the training texts. It takes seconds. Raises DataError for texts without
    terms."""
    try:
        train, test = _tfidf(train_texts, test_texts, tfidf)
    except ValueError as error:
        raise DataError(f"{len(train_texts)} training texts: {error}: give more") from error
    for matrix in (train, test):
        matrix.sort_indices()
    return train, test


def _tfidf(
    train_texts: Sequence[str], test_texts: Sequence[str], tfidf: Mapping[str, Any]
) -> tuple[sparse.csr_array, sparse.csr_array]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(dtype=np.float32, **tfidf)
    train = sparse.csr_array(vectorizer.fit_transform(train_texts))
    return train, sparse.csr_array(vectorizer.transform(test_texts))


def _check_enough(count: int, what: str) -> None:
    components = svd.SVD["n_components"]
    if count < components:
        raise DataError(f"{count} {what} are too few for {components} SVD components: give more")
