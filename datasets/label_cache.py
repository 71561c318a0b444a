"""Parsed labels, kept in the cache: large text files take minutes to parse and seconds to load."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import sparse

from fanin.datasets import cache

_LOG = logging.getLogger(__name__)

SparseReader = Callable[[Path], sparse.csr_array]

CACHED_FROM = 1 << 20  # bytes of a label file; a smaller one is parsed in a moment
CACHE_VERSION = 1  # to be raised when the label parsers or the cached arrays change


def cached(read: SparseReader) -> SparseReader:
    """A reader of labels that parses a large file once and keeps the result in the cache.

    The name of the cached file depends on the label file's path, size and time of change. A cache
    that cannot be written costs only time, so it is logged and raises nothing.
    """

    def read_cached(path: Path) -> sparse.csr_array:
        stat = path.stat()
        if stat.st_size < CACHED_FROM:
            return read(path)
        key = repr((CACHE_VERSION, str(path.absolute()), stat.st_size, stat.st_mtime_ns))
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        kept = cache.cache_folder() / f"{path.absolute().parent.name}-{path.stem}-{digest}.npz"
        loaded = cache.load(kept, _unpack)
        if loaded is not None:
            return loaded
        positives = read(path)
        shape = np.array(positives.shape, np.int64)
        try:
            cache.store(kept, indices=positives.indices, indptr=positives.indptr, shape=shape)
        except OSError as error:
            _LOG.warning(
                "%s: cannot be written (%s), so labels are parsed at every start: set FANIN_CACHE "
                "to a folder that can be",
                *(kept, error),
            )
        return positives

    return read_cached


def _unpack(arrays: cache.Arrays) -> sparse.csr_array:
    indices, indptr = arrays["indices"], arrays["indptr"]
    instances, labels = arrays["shape"].tolist()
    ones = np.ones(len(indices), np.bool_)
    positives = sparse.csr_array((ones, indices, indptr), shape=(instances, labels))
    positives.check_format(full_check=True)
    return positives
