"""What the labels of a data folder mean: `labels.txt`, a name a line in the order of their ids."""

from __future__ import annotations

from pathlib import Path

from fanin.datasets.dataset import DataError
from fanin.datasets.text_files import BLOCK_BYTES, line_blocks

LABEL_NAMES = "labels.txt"


def read_label_names(folder: Path, labels: int) -> list[str] | None:
    """The names of the labels; None where there is no file.

    Raises DataError for another number of names than `labels`, and for what is no UTF-8.
    """
    path = folder / LABEL_NAMES
    if not path.is_file():
        return None
    names = [line for block in line_blocks(path, BLOCK_BYTES) for line in block]
    if len(names) != labels:
        raise DataError(
            f"{path}: {len(names)} lines, but there are {labels} labels: give each a name, a line "
            "each, or rename the file"
        )
    try:
        return [name.decode().rstrip("\r") for name in names]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 ({error}): save it as UTF-8") from error
