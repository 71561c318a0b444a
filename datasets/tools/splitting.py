"""Which instances are for testing, where no file says so."""

from __future__ import annotations

import hashlib


def place(content: bytes, seed: int) -> int:
    """A place for an instance of this content, 0 to 2^64 - 1 and evenly spread. The instances below
    `bound(share)` are for testing.

    It depends on the content and the seed alone: the order of a file does not matter, and equal
    instances never lie in both splits, where they would make testing look better than it is.
    """
    key = seed.to_bytes(8, "big")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=key).digest(), "big")


def bound(share: float) -> int:
    """The place below which `share` of all contents are."""
    return int(share * 2**64)


def bound_between(share: float, lowest: int, highest: int) -> int:
    """`bound(share)`, moved so that both splits of a small set have instances, where its lowest and
    highest places differ. A share of 0 or 1 still gives an empty split: 0 or 2^64."""
    wanted = bound(share)
    return wanted if wanted in (0, 2**64) else min(max(wanted, lowest + 1), highest)
