"""What the weights of the first layer cost, for `estimate`: all of them, where features are dense;
where they are sparse, a step has to do with the rows of words that occur.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fanin.backends.interface import evaluation_block
from fanin.backends.setup import LayerSetup

# How many scores TensorFlow computes together in its own execution (`tensorflow/autograd.py`).
_MOST_SCORES = 1 << 26


@dataclass(frozen=True)
class FirstLayer:
    """The weights of the intermediate layer and what works with them, in numbers; 0 without one.

    moments: what the optimiser keeps in the type of moments, and row_moments, in float32. touched:
    the weights that a step reads and changes; products: how many multiplications an instance takes.
    gathered, predicted: the rows for all words of all instances of a batch, and of those that are
    predicted together by the framework's own operations.
    """

    weights: int
    moments: int
    row_moments: int = 0
    touched: int = 0
    products: int = 0
    gathered: int = 0
    predicted: int = 0

    @classmethod
    def of(
        cls, setup: LayerSetup, batch: int, row_moments: bool, words: float | None, kept: int
    ) -> FirstLayer:
        """batch: instances of a step; words: of sparse features, how many an instance has; kept:
        how many moments the optimiser keeps for each weight."""
        weights, units = setup.count("intermediate.weights"), setup.intermediate or 0
        if not setup.sparse_features:
            return cls(weights, kept * weights, touched=weights, products=weights)
        # A word that several instances have counts several times: their number is not known.
        gathered = math.ceil(batch * (words or 0) * units)
        return cls(
            weights,
            moments=0 if row_moments else kept * weights,
            row_moments=setup.inputs if row_moments else 0,
            touched=min(weights, gathered),
            # Two of the three products of a dense layer: features have no gradient.
            products=math.ceil(2 / 3 * (words or 0) * units),
            gathered=gathered,
            predicted=math.ceil(_predicted_together(setup) * (words or 0) * units),
        )


def _predicted_together(setup: LayerSetup) -> int:
    return min(evaluation_block(setup.output_inputs), max(1, _MOST_SCORES // setup.labels))
