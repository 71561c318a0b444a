"""Prediction by labels that read words: a one-versus-rest model as the estimator asks it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp

from fanin.backends.estimator.predictor import BlockPredictor, TopK
from fanin.backends.words.model import OneVersusRest
from fanin.backends.words.setup import OneVersusRestSetup


class WordsPredictor(BlockPredictor):
    """A trained one-versus-rest model, as libfanin reads it; as `Predictor`."""

    def __init__(
        self, setup: OneVersusRestSetup, arrays: Mapping[str, np.ndarray], threads: int = 0
    ) -> None:
        super().__init__(setup, threads)
        self._model = OneVersusRest.from_arrays(setup.inputs, setup.labels, arrays, threads)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by their names in `OneVersusRest.weights`."""
        return self._model.weights()

    def _top_k(self, x: sp.csr_array, k: int) -> TopK:
        return TopK(*self._model.top_k(x, k))

    def _scores(self, x: sp.csr_array) -> np.ndarray:
        return self._model.scores(x)
