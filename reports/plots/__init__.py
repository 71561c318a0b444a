"""The plots of the reports, one file each: rows or runs of one data set in, a `Plot` out.

Each function draws one picture or returns None when nothing of it was measured. Colour is the setup
(`setups.COLOURS`), marker shape or panel is the backend, hollow or dashed is the fused of two
executions. Against cost, the shape is the recipe, and hollow is published. Lines and points carry
their names where they stand, so that a picture reads without its text. matplotlib is imported by
these files alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path


def load_matplotlib() -> None:
    """Import matplotlib without its user's settings. They are for windows and notebooks, and may
    ask for what is not installed. Call this before any of these files is imported; `style.drawing`
    has the settings that pictures are made with."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    setting = os.environ.pop("MPLBACKEND", None)
    try:
        # matplotlib looks for its settings in the current folder first: here it finds its own.
        with contextlib.chdir(Path(spec.origin).parent / "mpl-data"):
            import matplotlib  # noqa: F401
    finally:
        if setting is not None:
            os.environ["MPLBACKEND"] = setting
