"""JSON from outside is parsed without a loss, and a message says what is wrong with it."""

from __future__ import annotations

import json
import reprlib
from typing import Any

from pydantic import ValidationError

_SHORT = reprlib.Repr()
_SHORT.maxstring = 80


def parse(text: str) -> Any:
    """What a JSON text holds. ValueError where it is no JSON, is nested too deeply, has a number of
    thousands of digits, or has a key twice in an object: Python's own parser would drop one."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} stands twice in an object; keep it once")
    return content


def show(value: Any) -> str:
    """A value for a message, shortened."""
    return _SHORT.repr(value)


def explain(error: ValueError) -> str:
    """The first thing that is wrong: the field, what it has to be, and what it is."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    key = ".".join(str(name) for name in first["loc"]) or "file"
    has_value = first["type"] not in ("missing", "value_error", "extra_forbidden", "json_invalid")
    value = f" (got {show(first['input'])})" if has_value else ""
    return f"{key}: {first['msg'].removeprefix('Value error, ')}{value}"
