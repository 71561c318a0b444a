"""The one table type of all reports, and how it is printed as text.

A table is made of text cells. `Table.markdown` prints it for GitHub and for the end of a command,
`Table.terminal` without lines, and `pages/table.html.jinja` as HTML. `make_table` builds one from a
list of columns, each with the function that fills it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fanin.reports.format import GAP

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """What one place of a table shows.

    text: as printed. spread: printed beside it (`±0.12`). against: how the text compares with
    another figure (`+0.3`), printed in parentheses. best: the best value of its column. colour: the
    colour of the setup that the row is about.
    """

    text: str = GAP
    spread: str = ""
    against: str = ""
    best: bool = False
    colour: str | None = None


@dataclass(frozen=True)
class Column:
    """numeric: cells stand flush right. meaning: explains the head. wraps: a cell may take several
    lines on the page."""

    head: str
    numeric: bool = True
    meaning: str = ""
    wraps: bool = False


def text_column(head: str, meaning: str = "", wraps: bool = False) -> Column:
    """A column of words, flush left."""
    return Column(head, numeric=False, meaning=meaning, wraps=wraps)


@dataclass(frozen=True)
class Table:
    """A caption, the columns, and one tuple of cells per row."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self, padded: bool = True) -> str:
        """A GitHub table; best values are bold. padded: columns stand below each other, so that the
        text reads well on a terminal too."""
        heads = [_escape_markdown(column.head) for column in self.columns]
        lines = [heads, *([_markdown_cell(cell) for cell in row] for row in self.rows)]
        if padded:
            lines = self._aligned(lines)
            # The rule is as wide as its column and the two spaces around it.
            dashes = [f"-{'-' * len(head)}" for head in lines[0]]
            rule = [
                f"{dash}:" if column.numeric else f":{dash}"
                for dash, column in zip(dashes, self.columns, strict=True)
            ]
        else:
            rule = ["---:" if column.numeric else "---" for column in self.columns]
        head, *body = (f"| {' | '.join(line)} |" for line in lines)
        return "\n".join([head, f"|{'|'.join(rule)}|", *body])

    def terminal(self) -> str:
        """Columns two spaces apart, without lines; texts only, without spreads and marks."""
        heads = [column.head for column in self.columns]
        lines = self._aligned([heads, *([cell.text for cell in row] for row in self.rows)])
        return "\n".join("  ".join(line).rstrip() for line in lines)

    def _aligned(self, lines: Sequence[Sequence[str]]) -> list[list[str]]:
        """The same cells, filled up with spaces to the width of their column."""
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return [
            [
                cell.rjust(width) if column.numeric else cell.ljust(width)
                for cell, width, column in zip(line, widths, self.columns, strict=True)
            ]
            for line in lines
        ]


def make_table(
    caption: str,
    fields: Sequence[tuple[Column, Callable[[T], Cell | str]]],
    items: Iterable[T],
) -> Table:
    """A table with a row for each item. fields: the columns, each with the function that makes an
    item's cell or its text."""

    def made(cell: Cell | str) -> Cell:
        return Cell(cell) if isinstance(cell, str) else cell

    rows = (tuple(made(fill(item)) for _, fill in fields) for item in items)
    return Table(caption, tuple(column for column, _ in fields), tuple(rows))


def text_table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> Table:
    """A table of texts. A column is numeric where every text in it begins with a digit, gaps aside,
    and not all are gaps."""
    lines = [tuple(row) for row in rows]
    columns = []
    for place, head in enumerate(heads):
        texts = [line[place] for line in lines if line[place] != GAP]
        columns.append(Column(head, bool(texts) and all(text[:1].isdigit() for text in texts)))
    return Table(caption, tuple(columns), tuple(tuple(map(Cell, line)) for line in lines))


def _escape_markdown(text: str) -> str:
    # Newlines would end the row, pipes the cell, and `<` could begin raw HTML.
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _markdown_cell(cell: Cell) -> str:
    text = _escape_markdown(cell.text)
    text = f"**{text}**" if cell.best else text
    against = f"({cell.against})" if cell.against else ""
    return " ".join(part for part in (text, cell.spread, against) if part)


def heading(title: str, level: int = 2) -> str:
    """A Markdown heading and the empty line behind it."""
    return f"{'#' * level} {_escape_markdown(title)}\n\n"
