"""Writes `wordnet.txt.xz` from WordNet 3.0's own files; run once, its output is committed.

    python -m fanin.datasets.wordnet.build WORDNET_DIR

WORDNET_DIR holds data.noun, data.verb, data.adj and data.adv (Debian: the package `wordnet-base`
puts them into /usr/share/wordnet). The same input gives the same text; README.md has the format.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

OUTPUT = Path(__file__).with_name("wordnet.txt.xz")

# Data file -> first letter of its synsets' keys: an offset is only unique within one file.
PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}

# Where an adjective may stand, as in "ready(p)": grammar, not part of the word.
ADJECTIVE_MARKER = re.compile(r"\((?:a|p|ip)\)$")

# Plain text packs best with more literal context and no alignment (4 % smaller than the preset).
XZ_FILTERS = [
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0},
]


class Synset(NamedTuple):
    """One line of a data file, as far as it is used."""

    key: str  # "n00001740": part of speech and offset
    lexicographer_file: int
    lemmas: list[str]
    gloss: str
    pointers: list[str]  # keys of the synsets pointed to, each once, in the order of the file


def split_of(key: str) -> str:
    """The split of a synset, from its key alone: SHA-256 picks one in ten for testing."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return "test" if number % 10 == 0 else "train"


def read_synsets(folder: Path) -> Iterator[Synset]:
    """The synsets of the four data files in order; the format is described in WordNet's wndb(5)."""
    for part, letter in PARTS.items():
        with (folder / f"data.{part}").open(encoding="ascii") as file:
            for line in file:
                if not line.startswith("  "):  # the licence at the top of each file is indented
                    yield _parse(line, letter)


def _parse(line: str, letter: str) -> Synset:
    """`offset lex_file type w_cnt (word id)... p_cnt (symbol offset pos words)... | gloss`."""
    data, _, gloss = line.partition("|")
    fields = data.split()
    words = int(fields[3], 16)
    lemmas = fields[4 : 4 + 2 * words : 2]
    pointers = fields[5 + 2 * words :][: 4 * int(fields[4 + 2 * words])]
    targets = [pos + offset for offset, pos in zip(pointers[1::4], pointers[2::4], strict=True)]
    return Synset(
        key=letter + fields[0],
        lexicographer_file=int(fields[1]),
        lemmas=[ADJECTIVE_MARKER.sub("", lemma).replace("_", " ") for lemma in lemmas],
        gloss=" ".join(gloss.split()),
        pointers=list(dict.fromkeys(targets)),
    )


def to_text(synsets: list[Synset]) -> str:
    """The lines of the committed file."""
    number = {synset.key: line for line, synset in enumerate(synsets, start=1)}
    lines = []
    for synset in synsets:
        columns = (
            synset.key,
            split_of(synset.key),
            f"{synset.lexicographer_file:02d}",
            ", ".join(synset.lemmas),
            synset.gloss,
            " ".join(str(number[target]) for target in synset.pointers),
        )
        lines.append("\t".join(columns) + "\n")
    return "".join(lines)


def main() -> None:
    """Read the folder named on the command line, write OUTPUT and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("wordnet_dir", type=Path, help="folder with data.noun, data.verb, ...")
    synsets = list(read_synsets(parser.parse_args().wordnet_dir))
    packed = lzma.compress(to_text(synsets).encode("ascii"), filters=XZ_FILTERS)
    OUTPUT.write_bytes(packed)
    print(f"{OUTPUT}: {len(synsets)} synsets, {len(packed) / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
