"""Features as a person has them: dense of any number type and order, a memory map, a pandas frame,
or sparse. They become float32, C-contiguous or CSR, and are copied only where that needs it."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.utils.validation import validate_data

from fanin.backends.interface import Features
from fanin.backends.passes import check_numbers, check_sparse
from fanin.datasets.dataset import check_finite


def known_x(estimator: Any, given: Any, *, reset: bool) -> Features:
    """Features [instances, inputs] for fitting (reset, which notes inputs and names) or for asking
    a fitted estimator. ValueError as scikit-learn words it where they are no finite numbers, are
    empty, or do not fit what the estimator was fitted on."""
    if sp.issparse(given):
        check_sparse("X", given)
    check_numbers("X", given)
    if _is_usable_map(given):
        # scikit-learn would read the whole map into memory.
        validate_data(estimator, given, reset=reset, skip_check_array=True)
        check_finite(given, str(getattr(given, "filename", None) or "X"))
        return given
    try:
        x = validate_data(
            estimator, given, reset=reset, accept_sparse="csr", dtype=np.float32, order="C"
        )
    except ValueError as error:
        if "could not convert string" not in str(error):
            raise
        raise ValueError(
            f"X must be numbers, but {error}: make numbers of texts by TF-IDF, such as by "
            "sklearn.pipeline.make_pipeline(TfidfVectorizer(), FanInClassifier())"
        ) from error
    if isinstance(x, np.ndarray):
        return x
    sparse = sp.csr_array(x)
    if not sparse.has_canonical_format or not sparse.data.all():
        sparse = sparse.copy()
        sparse.sum_duplicates()
        sparse.eliminate_zeros()  # an instance does not have a word of value 0
    return sparse


def copied_bytes(given: Any, known: Features) -> int:
    """Bytes of the known arrays that are new, and do not share the memory of the given ones."""
    before = [array for array in _arrays(given) if isinstance(array, np.ndarray)]
    return sum(
        array.nbytes
        for array in _arrays(known)
        if not any(np.may_share_memory(array, old) for old in before)
    )


def _arrays(features: Any) -> list[Any]:
    """The arrays of a CSR matrix; a matrix of any other form, as it is."""
    is_sparse = bool(sp.issparse(features))  # as a condition, it would hide all but the base class
    if is_sparse and features.format == "csr":
        return [features.data, features.indices, features.indptr]
    return [features]


def _is_usable_map(given: Any) -> bool:
    return (
        isinstance(given, np.memmap)
        and given.dtype == np.float32
        and given.ndim == 2
        and 0 not in given.shape
        and given.flags.c_contiguous
    )
