"""Matrices written a block of instances at a time, in the forms that `blocks` reads."""

from __future__ import annotations

import gzip
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fanin.datasets.file_errors import naming

# Of zlib, for `.npz` and `.gz`: level 1 takes a fifth of the time of the usual one for files that
# are a few percent larger.
LEVEL = 1


@contextmanager
def created(path: Path) -> Iterator[IO[bytes]]:
    """A new file, compressed where its name ends with `.gz`. An error of the system names it."""
    with naming(path), path.open("xb") as stored:
        if path.suffix == ".gz":
            # Without the time, so that the same data make the same file.
            with gzip.GzipFile("", "wb", LEVEL, stored, mtime=0) as file:
                yield file  # type: ignore[misc]  # it has all that is used of IO[bytes]
        else:
            yield stored


def write_csr(path: Path, columns: int, blocks: Iterable[sparse.csr_array], ones: bool) -> None:
    """A `.npz` file as `scipy.sparse.save_npz` writes it. ones: bool positives, whatever the
    values are. The ids and values of all blocks lie in files beside it until the last is known."""
    ids, values = path.with_name(f"{path.name}.ids"), path.with_name(f"{path.name}.values")
    starts = [np.zeros(1, np.int64)]
    try:
        with created(ids) as ids_file, created(values) as values_file:
            for block in blocks:
                with naming(path):
                    ids_file.write(block.indices.astype(np.int32).tobytes())
                    values_file.write(block.data.astype(bool if ones else np.float32).tobytes())
                starts.append(starts[-1][-1] + block.indptr[1:].astype(np.int64))
        indptr = np.concatenate(starts)
        index = np.int32 if indptr[-1] < 2**31 else np.int64
        kind = zipfile.ZIP_DEFLATED
        with (
            created(path) as file,
            zipfile.ZipFile(file, "w", kind, compresslevel=LEVEL) as archive,
        ):
            for name, dtype, source in (
                ("indices", np.dtype(np.int32), ids),
                ("data", np.dtype(bool if ones else np.float32), values),
            ):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    write_header(member, dtype, (int(indptr[-1]),))
                    with source.open("rb") as stored:
                        shutil.copyfileobj(stored, member, 1 << 20)
            for name, array in (
                ("indptr", indptr.astype(index)),
                ("shape", np.array([len(indptr) - 1, columns], np.int64)),
                ("format", np.array(b"csr")),
            ):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    finally:
        ids.unlink(missing_ok=True)
        values.unlink(missing_ok=True)


def write_dense(
    path: Path, shape: tuple[int, int], blocks: Iterable[npt.NDArray[np.floating]]
) -> None:
    """A `.npy` file of float32 [instances, inputs]."""
    with created(path) as file:
        write_header(file, np.dtype(np.float32), shape)
        for block in blocks:
            file.write(np.ascontiguousarray(block, np.float32).data)


def write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """How a `.npy` file begins; its numbers are to follow."""
    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)


def write_lines(path: Path, header: tuple[int, ...], blocks: Iterable[Iterable[str]]) -> None:
    """A text file: a header of integers, then the lines of each block."""
    with created(path) as file:
        file.write(f"{' '.join(map(str, header))}\n".encode("ascii"))
        for lines in blocks:
            file.write("".join(f"{line}\n" for line in lines).encode("ascii"))


def pair_lines(block: sparse.csr_array) -> list[str]:
    """`id:value ...` for each row, in as many digits as float32 needs."""
    entries = zip(block.indices.tolist(), block.data.tolist(), strict=True)
    return _by_row(block, list(map("%d:%.9g".__mod__, entries)), " ")


def label_lines(block: sparse.csr_array) -> list[str]:
    """`label,label,...` for each row."""
    return _by_row(block, list(map(str, block.indices.tolist())), ",")


def _by_row(block: sparse.csr_array, entries: list[str], separator: str) -> list[str]:
    starts = block.indptr.tolist()
    return [separator.join(entries[start:end]) for start, end in pairwise(starts)]
