"""Files that Debian's packages hold, read as texts with the names of their labels.

Each reader takes the lines of a file. For a bad one it raises ValueError: the number of the line,
what it holds and what it is to hold. `packages` adds the file, and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain

from fanin.datasets.text_files import show

PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*")
EDICT_LINE = re.compile(r"(\S+)(?: \[(\S+)\])? /(.*)")
# Remarks in the dictionaries: grammar, field, usage.
REMARK = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|<[^<>]*>")
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
# English words that say nothing about the word that is translated: articles, prepositions,
# conjunctions, and abbreviations of the dictionaries.
FUNCTION_WORDS = frozenset(
    {"an", "and", "as", "at", "be", "by", "esp", "etc", "for", "from", "in", "is", "of", "on"}
    | {"one", "one's", "or", "sb", "sth", "that", "the", "to", "with"}
)

Entry = tuple[str, set[str]]  # a text, and the names of its labels


def read_packages(lines: Iterable[str]) -> Iterator[Entry]:
    """Packages, labelled with those that they depend on; the format is described in deb-control(5).

    The text is name, section and description. Of alternatives, `a | b`, the first one is taken.
    """
    for fields in _paragraphs(lines):
        description = fields.get("Description") or fields.get("Description-en", "")
        words = (fields["Package"].replace("-", " "), fields.get("Section", ""), description)
        depends = ",".join(fields.get(key, "") for key in ("Depends", "Pre-Depends"))
        # Behind a name stand an architecture, `:any`, a version, `(>= 1)`, and alternatives.
        names = (PACKAGE_NAME.match(part.strip()) for part in depends.split(","))
        yield " ".join(" ".join(words).split()), {name[0] for name in names if name}


def _paragraphs(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The fields of each package. A line that begins with a blank goes on with the field above."""
    fields: dict[str, str] = {}
    key = ""
    for number, line in enumerate(chain(lines, [""]), start=1):
        name, colon, value = line.partition(":")
        if not line.strip():
            if fields:
                yield fields
            fields = {}
        elif line[0] in " \t" and fields:
            fields[key] += line
        elif line[0] in " \t" or not colon or not (fields or name == "Package"):
            raise _bad_line(number, line, "`Field: value`, with `Package` as the first field")
        else:
            key = name
            fields[key] = value


def read_german(lines: Iterable[str]) -> Iterator[Entry]:
    """German phrases, labelled with the English words of their translations.

    A line is `German | German ... :: English | English ...`, phrase by phrase.
    """
    for number, line in enumerate(lines, start=1):
        if line.startswith("#") or not line.strip():
            continue
        sides = [side.split("|") for side in line.split("::")]
        if len(sides) != 2 or len(sides[0]) != len(sides[1]):
            form = "`German | ... :: English | ...`, with as many phrases on both sides"
            raise _bad_line(number, line, form)
        for german, english in zip(*sides, strict=True):
            yield " ".join(_without_remarks(german).split()), _english_words(english)


def read_japanese(lines: Iterable[str]) -> Iterator[Entry]:
    """Japanese words with their readings, labelled with the English words of their glosses.

    A line is `word [reading] /gloss/gloss/`; a word in kana has no reading.
    """
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.startswith("\u3000"):  # title and copyright, made to sort first
            continue
        parts = EDICT_LINE.fullmatch(line.rstrip("\n"))
        if parts is None:
            raise _bad_line(number, line, "`word [reading] /gloss/gloss/`")
        word, reading, glosses = parts.groups()
        yield f"{word} {reading}" if reading else word, _english_words(glosses)


def _bad_line(number: int, line: str, form: str) -> ValueError:
    return ValueError(f"{number}: {show(line.encode())} is not {form}")


def _without_remarks(phrase: str) -> str:
    """The phrase without what stands in brackets, which may be nested."""
    count = 1
    while count:
        phrase, count = REMARK.subn(" ", phrase)
    return phrase


def _english_words(phrase: str) -> set[str]:
    words = WORD.findall(_without_remarks(phrase).lower().replace("\u2019", "'"))
    return {word for word in words if len(word) > 1} - FUNCTION_WORDS
