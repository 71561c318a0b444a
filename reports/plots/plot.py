"""What a plot is when it is drawn: a picture with its words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plot:
    """A finished picture. name: stem of its file; title: its heading; alt: the text alternative;
    png: the picture itself."""

    name: str
    title: str
    alt: str
    png: bytes
