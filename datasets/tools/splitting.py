"""Which instances are for testing, where no file says so."""

from __future__ import annotations

import hashlib


def is_test(content: bytes, share: float, seed: int) -> bool:
    """Whether an instance of this content is for testing; true for `share` of all contents.

    It depends on the content and the seed alone: the order of a file does not matter, and equal
    instances never lie in both splits, where they would make testing look better than it is.
    """
    key = seed.to_bytes(8, "big")
    digest = hashlib.blake2b(content, digest_size=8, key=key).digest()
    return int.from_bytes(digest, "big") < share * 2**64
