"""Parsed labels and sparse features, kept in the cache: large text files take minutes to parse and
seconds to load."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import sparse

from fanin.datasets import cache
from fanin.kernels import kept_files

_LOG = logging.getLogger(__name__)

SparseReader = Callable[[Path], sparse.csr_array]

CACHED_FROM = 1 << 20  # bytes of a file; a smaller one is parsed in a moment
CACHE_VERSION = 2  # to be raised when the parsers or the cached arrays change


def cached(read: SparseReader) -> SparseReader:
    """A reader of labels or features that parses a large file once and keeps the result in the
    cache.

    The name of the cached file contains a hash of the file's contents: another file may have
    the same size and time of change. A cache that cannot be used costs only time, so it is logged
    and raises nothing.
    """

    def read_cached(path: Path) -> sparse.csr_array:
        if path.stat().st_size < CACHED_FROM:
            return read(path)
        try:
            kept = _place(path, read)
        except kept_files.CacheError as error:
            _warn(path, error)
            return read(path)
        loaded = cache.load(kept, _unpack)
        if loaded is not None:
            return loaded
        parsed = read(path)
        arrays = {"indices": parsed.indices, "indptr": parsed.indptr}
        if parsed.dtype != np.bool_:  # of labels all are True
            arrays["values"] = parsed.data
        try:
            cache.store(kept, **arrays, shape=np.array(parsed.shape, np.int64))
        except kept_files.CacheError as error:
            _warn(path, error)
        return parsed

    return read_cached


def _place(path: Path, read: SparseReader) -> Path:
    """Where what was parsed of that file is kept."""
    digest = hashlib.sha256(repr((CACHE_VERSION, read.__name__)).encode())
    with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    # Names of users' files may be long, and need not be UTF-8; the hash alone tells files apart.
    stem = re.sub(r"[^\w.-]", "_", f"{path.absolute().parent.name}-{path.stem}", flags=re.ASCII)
    return kept_files.cache_folder() / f"{stem[:60]}-{digest.hexdigest()[:12]}.npz"


def _warn(path: Path, error: kept_files.CacheError) -> None:
    _LOG.warning("%s is parsed at every start: %s", path, error)


def _unpack(arrays: cache.Arrays) -> sparse.csr_array:
    indices, indptr = arrays["indices"], arrays["indptr"]
    values = arrays["values"] if "values" in arrays else np.ones(len(indices), np.bool_)
    parsed = sparse.csr_array((values, indices, indptr), shape=tuple(arrays["shape"].tolist()))
    parsed.check_format(full_check=True)
    return parsed
