"""What `import fanin` gives: the estimator, and `load` for models that it saved.

The build installs this file as `fanin/__init__.py` (see pyproject.toml). Nothing is imported before
it is asked for (PEP 562), so that neither a framework nor scikit-learn is loaded in vain.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fanin.backends.estimator.classifier import FanInClassifier as FanInClassifier
    from fanin.backends.estimator.loading import load as load

    __version__: str

__all__ = ["FanInClassifier", "__version__", "load"]

_MODULES = {
    "FanInClassifier": "fanin.backends.estimator.classifier",
    "load": "fanin.backends.estimator.loading",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("fanin")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'fanin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
