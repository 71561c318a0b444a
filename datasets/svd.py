"""Dense features from sparse ones: truncated SVD, made at first use, then cached.

Texts (`text_features`) and the sparse features of data files (`folder`) both end here. scikit-learn
takes a second to import, so it is imported where something is made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy
from scipy import sparse

from fanin.datasets import cache
from fanin.datasets.dataset import DataError
from fanin.kernels import kept_files

if TYPE_CHECKING:
    from sklearn.decomposition import TruncatedSVD

_LOG = logging.getLogger(__name__)

SVD: dict[str, Any] = {"n_components": 512, "n_iter": 3, "random_state": 0}

Features = npt.NDArray[np.float32]


def reduce(train: sparse.csr_array, test: sparse.csr_array) -> tuple[Features, Features]:
    """Truncated SVD of [instances, inputs], then each instance scaled to length one.

    It is fitted on the training split only. The random state is fixed, but the last bits of an SVD
    depend on the BLAS and its threads.
    """
    svd, first = fit(train)
    return first, _of_length_one(svd.transform(test))


def fit(train: sparse.csr_array, **changed: Any) -> tuple[TruncatedSVD, Features]:
    """The SVD of [instances, inputs], and what it makes of them; `changed` parts of `SVD`."""
    from sklearn.decomposition import TruncatedSVD

    svd = TruncatedSVD(**SVD | changed)
    start = time.perf_counter()
    first = _of_length_one(svd.fit_transform(train))
    _LOG.info("SVD of %d instances in %.0f s", train.shape[0], time.perf_counter() - start)
    return svd, first


def apply(components: npt.NDArray[np.float32], x: sparse.csr_array) -> Features:
    """What a fitted SVD with these components [components, inputs] makes of [instances, inputs]."""
    return _of_length_one(x @ components.T)


def _of_length_one(x: npt.NDArray[np.floating]) -> Features:
    from sklearn.preprocessing import normalize

    return np.ascontiguousarray(normalize(x), np.float32)


def content_hash(**recipe: Any) -> Any:
    """A SHA-256 over the recipe and the library versions, to be fed with what is reduced."""
    recipe |= {"svd": SVD, "versions": [np.__version__, scipy.__version__, version("scikit-learn")]}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())


def cached(
    name: str, instances: tuple[int, int], make: Callable[[], tuple[Features, Features]]
) -> tuple[Features, Features]:
    """Features [instances, 512] of both splits, from the cache file `name` or made now and cached.

    Raises DataError if the cache folder cannot be written, before anything is made.
    """
    try:
        path = kept_files.cache_folder() / f"{name}.npz"
        return _loaded(path, instances) or _made(path, make)
    except kept_files.CacheError as error:
        raise DataError(str(error)) from error


def _loaded(path: Path, instances: tuple[int, int]) -> tuple[Features, Features] | None:
    shapes = tuple((count, SVD["n_components"]) for count in instances)

    def unpack(arrays: cache.Arrays) -> tuple[Features, Features]:
        train, test = arrays["train"], arrays["test"]
        if (train.shape, test.shape) != shapes or not train.dtype == test.dtype == np.float32:
            raise ValueError(f"holds {train.dtype} {train.shape} and {test.dtype} {test.shape}")
        return train, test

    return cache.load(path, unpack)


def _made(path: Path, make: Callable[[], tuple[Features, Features]]) -> tuple[Features, Features]:
    kept_files.check_writable(path)
    train, test = make()
    cache.store(path, train=train, test=test)
    return train, test
