"""Raw texts with the names of their labels, read from the files that people have.

| file                         | an instance                                                     |
|------------------------------|-----------------------------------------------------------------|
| `.jsonl`, `.ndjson`          | a line `{"text": "...", "labels": ["...", ...]}`                |
| `.csv`, `.tsv`               | a row; the first one names the columns                          |
| `.parquet`                   | a row; needs pyarrow                                            |
| any other, with a label file | a line of text; the same line of the other file has its labels  |

All but Parquet may be compressed by gzip. Labels are a list of names or integers, or one text in
which a separator stands between them. An error names the file, the line, what stands in it and
what is expected.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from fanin.datasets.dataset import DataError
from fanin.datasets.text_files import LONGEST_LINE, line_blocks, show

BLOCK_BYTES = 1 << 20
PARQUET_ROWS = 4096  # read at a time
JSON_LINES = (".jsonl", ".ndjson")
TABLES = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"
# What pandas makes of a list in a CSV file.
_PYTHON_LIST = re.compile(r"""\[\]|\[(['"]).*['"]\]""", re.DOTALL)

Record = tuple[str, str, list[str]]  # where it stands, its text, the names of its labels


@dataclass(frozen=True)
class RecordFile:
    """A file of texts, and how their labels stand in it.

    labels: the file with the labels, where they have one. text_field, label_field: names of the
    columns or keys. separator: what stands between labels in one text.
    """

    path: Path
    labels: Path | None = None
    text_field: str = "text"
    label_field: str = "labels"
    separator: str = ","
    _clean: _CleanNames = field(init=False, repr=False, default_factory=lambda: _CleanNames())

    def read(self) -> Iterator[Record]:
        """The records in order. Raises DataError at the first bad one."""
        if self.labels is not None:
            return self._read_lines(self.labels)
        kind = kind_of(self.path)
        if kind in JSON_LINES:
            return self._read_json()
        if kind in TABLES:
            return self._read_table(TABLES[kind])
        if kind == PARQUET:
            return self._read_parquet()
        raise DataError(
            f"{self.path}: its name ends with none of "
            f"{', '.join((*JSON_LINES, *TABLES, PARQUET))}: rename it, or give the file with "
            "the labels too, where each line of this one is a text"
        )

    def _read_json(self) -> Iterator[Record]:
        form = f'`{{"{self.text_field}": "...", "{self.label_field}": ["...", ...]}}`'
        for number, line in lines(self.path):
            where = f"{self.path}:{number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: {shown(line)} is no JSON ({error}): {form}") from error
            if not isinstance(record, dict):
                raise DataError(f"{where}: {shown(line)} is no object: expected {form}")
            for name in (self.text_field, self.label_field):
                if name not in record:
                    raise DataError(
                        f"{where}: {shown(line)} has no {name!r}: expected {form}, or name the "
                        "fields that hold them"
                    )
            yield self._record(where, record[self.text_field], record[self.label_field])

    def _read_table(self, delimiter: str) -> Iterator[Record]:
        text = (f"{line}\n" for _, line in lines(self.path))
        csv.field_size_limit(LONGEST_LINE)
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            columns = next(rows, [])
            for name in (self.text_field, self.label_field):
                if columns.count(name) != 1:
                    raise DataError(
                        f"{self.path}:1: the columns are {', '.join(map(repr, columns))}: expected "
                        f"one {name!r}, or name the columns that hold texts and labels"
                    )
            places = [columns.index(name) for name in (self.text_field, self.label_field)]
            end = rows.line_num
            for row in rows:
                where, end = f"{self.path}:{end + 1}", rows.line_num
                if not row:
                    continue
                if len(row) != len(columns):
                    raise DataError(
                        f"{where}: {len(row)} fields: expected {len(columns)}, as the first line "
                        "has; put a field that holds a delimiter or a line end in double quotes"
                    )
                yield self._record(where, *(row[place] for place in places))
        except csv.Error as error:
            raise DataError(
                f"{self.path}:{rows.line_num}: no CSV ({error}): expected fields in double quotes "
                "where they hold delimiters, quotes (written twice) or line ends"
            ) from error

    def _read_parquet(self) -> Iterator[Record]:
        if importlib.util.find_spec("pyarrow") is None:
            raise DataError(f"{self.path}: needs pyarrow: pip install 'fanin[parquet]'")
        import pyarrow
        from pyarrow import parquet

        fields = [self.text_field, self.label_field]
        try:
            with parquet.ParquetFile(self.path) as file:
                columns = file.schema_arrow.names
                if missing := [name for name in fields if name not in columns]:
                    raise DataError(
                        f"{self.path}: the columns are {', '.join(map(repr, columns))}: expected "
                        f"{missing[0]!r} too, or name the columns that hold texts and labels"
                    )
                row = 0
                for batch in file.iter_batches(PARQUET_ROWS, columns=fields):
                    for record in batch.to_pylist():
                        where = f"{self.path}: row {row} (counted from 0)"
                        yield self._record(where, *(record[name] for name in fields))
                        row += 1
        except pyarrow.ArrowException as error:
            raise DataError(f"{self.path}: not a readable Parquet file ({error})") from error

    def _read_lines(self, labels: Path) -> Iterator[Record]:
        sides = [chain(lines(path), [(0, None)]) for path in (self.path, labels)]
        for (number, text), (_, names) in zip(*sides, strict=False):
            if text is None and names is None:
                return
            if text is None or names is None:
                short, long = (self.path, labels) if text is None else (labels, self.path)
                raise DataError(
                    f"{short}: has fewer lines than {long}: both must have a line for each "
                    "instance, in the same order; an empty one where there is no label"
                )
            yield self._record(f"{labels}:{number}", text, names)

    def _record(self, where: str, text: Any, labels: Any) -> Record:
        if not isinstance(text, str):
            raise DataError(
                f"{where}: {self.text_field!r} is {shown(text)}: expected a text; write an empty "
                "one where there is none"
            )
        if not is_unicode(text):
            raise DataError(
                f"{where}: {shown(text)}: holds half a character, such as `\\ud800`: correct it"
            )
        return where, text, self._names(where, labels)

    def _names(self, where: str, labels: Any) -> list[str]:
        """The names of the labels, each once."""
        if isinstance(labels, str) and _PYTHON_LIST.fullmatch(labels.strip()):
            raise DataError(
                f"{where}: {self.label_field!r} is {shown(labels)}, a list as text: expected "
                f"names with {self.separator!r} between them, or JSON lines, where a list is one"
            )
        if isinstance(labels, str):
            labels = labels.split(self.separator) if labels.strip() else []
        elif not isinstance(labels, list):
            raise DataError(
                f"{where}: {self.label_field!r} is {shown(labels)}: expected a list of names, or "
                f"one text with {self.separator!r} between them"
            )
        clean = self._clean
        try:
            names = [clean[label if type(label) is str else _digits(label)] for label in labels]
        except ValueError as error:
            raise DataError(
                f"{where}: label {error}: expected a name, or an integer; leave the label "
                "out where there is none"
            ) from error
        return list(dict.fromkeys(names))


def _digits(label: Any) -> str:
    if type(label) is not int:  # a bool is none
        raise ValueError(shown(label))
    return str(label)


class _CleanNames(dict[str, str]):
    """The names of labels as they are kept, by what stands in the file. Blanks and line ends become
    one blank, since names are kept one a line; an integer becomes its digits."""

    def __missing__(self, label: str) -> str:
        name = " ".join(label.split())
        if not name or not is_unicode(name):
            raise ValueError(shown(label))
        self[label] = name
        return name


def kind_of(path: Path) -> str:
    """The ending of a file's name that says what it is, `.gz` aside."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def is_of_records(path: Path) -> bool:
    """Whether a file holds texts with their labels, by its name."""
    return kind_of(path) in (*JSON_LINES, *TABLES, PARQUET)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, with their numbers from 1."""
    number = 0
    for block in line_blocks(path, BLOCK_BYTES):
        for line in block:
            number += 1
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: {show(line)} is no UTF-8 ({error.reason}): save the file "
                    "as UTF-8"
                ) from error
            yield number, (text.removeprefix("\ufeff") if number == 1 else text).rstrip("\r")


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; JSON may hold halves of characters, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """A value of a file for a message, not too long."""
    return show(value.encode(errors="replace")) if isinstance(value, str) else repr(value)[:60]
