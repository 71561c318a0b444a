"""`fanin.load`: a saved model, to predict without a framework or to go on training in any."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, overload

from fanin.backends.estimator import saved

if TYPE_CHECKING:
    from fanin.backends.estimator.classifier import FanInClassifier


@overload
def load(
    path: str | os.PathLike[str], *, backend: None = None, threads: int = 0
) -> saved.SavedModel: ...
@overload
def load(path: str | os.PathLike[str], *, backend: str, threads: int = 0) -> FanInClassifier: ...
def load(
    path: str | os.PathLike[str], *, backend: str | None = None, threads: int = 0
) -> saved.SavedModel | FanInClassifier:
    """The model in a folder of `FanInClassifier.save`.

    Without `backend` it only predicts, by NumPy and libfanin: neither a framework nor scikit-learn
    is imported. With one ("torch", "tensorflow" or "auto") it is a fitted `FanInClassifier`, whose
    `partial_fit` goes on training there, whichever backend trained it before. threads: CPU threads,
    0 for all. ModelError (a ValueError) for a folder that is no model, or damaged.
    """
    model = saved.load(path, threads)
    if backend is None:
        return model
    # Imported here: it needs scikit-learn, which takes a second.
    from fanin.backends.estimator.classifier import FanInClassifier

    return FanInClassifier.from_saved(model, backend, threads)
