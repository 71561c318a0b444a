"""The one table type: Markdown, terminal, and tables of plain texts."""

from __future__ import annotations

from fanin.reports.table import Cell, Column, Table, make_table, text_column, text_table

TABLE = Table(
    "",
    (text_column("name"), Column("figure | unit")),
    (
        (Cell("one"), Cell("1.00", spread="±0.10", against="+0.25")),
        (Cell("a <b>\nbreak"), Cell("22.00", best=True)),
        (Cell(), Cell()),
    ),
)


def test_markdown_is_padded_so_that_columns_stand_below_each_other() -> None:
    assert TABLE.markdown().splitlines() == [
        "| name           |     figure \\| unit |",
        "|:---------------|-------------------:|",
        "| one            | 1.00 ±0.10 (+0.25) |",
        "| a &lt;b> break |          **22.00** |",
        "| —              |                  — |",
    ]


def test_markdown_without_padding() -> None:
    assert TABLE.markdown(padded=False).splitlines() == [
        "| name | figure \\| unit |",
        "|---|---:|",
        "| one | 1.00 ±0.10 (+0.25) |",
        "| a &lt;b> break | **22.00** |",
        "| — | — |",
    ]


def test_a_terminal_gets_texts_alone() -> None:
    table = text_table(("name", "figure"), [("one", "1.00"), ("eleven", "11.00"), ("none", "—")])
    assert table.terminal().splitlines() == [
        "name    figure",
        "one       1.00",
        "eleven   11.00",
        "none         —",
    ]


def test_a_column_of_texts_is_numeric_where_all_but_gaps_begin_with_a_digit() -> None:
    rows = [("1", "—", "2 x", "—", "3"), ("1,5", "—", "—", "x", "")]
    table = text_table(("a", "b", "c", "d", "e"), rows)
    assert [column.numeric for column in table.columns] == [True, False, True, False, False]


def test_a_table_is_made_of_columns_and_what_fills_them() -> None:
    fields = [
        (text_column("word"), str),
        (Column("length"), lambda word: Cell(str(len(word)), colour="#000000")),
    ]
    table = make_table("words", fields, ["a", "bcd"])
    assert [[cell.text for cell in row] for row in table.rows] == [["a", "1"], ["bcd", "3"]]
    assert table.rows[0][1].colour == "#000000"
