"""Parsed labels, kept in the cache: large text files take minutes to parse and seconds to load."""

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

CACHED_FROM = 1 << 20  # bytes of a label file; a smaller one is parsed in a moment
CACHE_VERSION = 2  # to be raised when the label parsers or the cached arrays change


def cached(read: SparseReader) -> SparseReader:
    """A reader of labels that parses a large file once and keeps the result in the cache.

    The name of the cached file contains a hash of the label file's contents: another file may have
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
        positives = read(path)
        shape = np.array(positives.shape, np.int64)
        try:
            cache.store(kept, indices=positives.indices, indptr=positives.indptr, shape=shape)
        except kept_files.CacheError as error:
            _warn(path, error)
        return positives

    return read_cached


def _place(path: Path, read: SparseReader) -> Path:
    """Where the labels of that file are kept."""
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
    instances, labels = arrays["shape"].tolist()
    ones = np.ones(len(indices), np.bool_)
    positives = sparse.csr_array((ones, indices, indptr), shape=(instances, labels))
    positives.check_format(full_check=True)
    return positives
