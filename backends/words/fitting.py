"""The whole training of a one-versus-rest model: pairs of the positives, passes, pairs towards
gradients, and epochs at a falling rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse as sp

from fanin.backends.choosing import log_odds
from fanin.backends.words.model import OneVersusRest
from fanin.backends.words.pairs import pairs_of_positives
from fanin.backends.words.setup import OneVersusRestRecipe, OneVersusRestSetup
from fanin.datasets import Batches

# Instances of one call of the kernel. With each call the rate falls, and progress is shown. A call
# checks all pairs of its words, which took a sixth of the time with 256 instances.
CALL_INSTANCES = 1024
# Weights begin at this multiple of the word's mean over the label's positives.
START = 10.0
# AdaGrad's sums of squares begin at this multiple of the mean square of the values. Larger ones
# hold back the first steps of rare words.
SQUARES = 4.0


def steps_of(recipe: OneVersusRestRecipe, instances: int) -> int:
    """Calls of all passes."""
    return recipe.passes * -(-instances // CALL_INSTANCES)


def start(
    setup: OneVersusRestSetup, x: sp.csr_array, y: sp.csr_array, most: int, threads: int = 0
) -> OneVersusRest:
    """A model before its training, with at most so many pairs. Biases are the log-odds, weights a
    multiple of the word's mean over the label's positives, AdaGrad's sums of squares a multiple of
    the mean square of the values of instances of length 1. x: CSR float32 [instances, inputs], y:
    CSR [instances, labels], both canonical."""
    pairs, means = pairs_of_positives(x, y, most)
    mean_square = np.count_nonzero(np.diff(x.indptr)) / max(1, x.nnz)
    squares = np.full(len(pairs), SQUARES * mean_square or 1, np.float32)
    weights = np.float32(START) * means
    return OneVersusRest(
        setup.inputs, setup.labels, pairs, log_odds(y), weights, squares, threads=threads
    )


def train(
    setup: OneVersusRestSetup,
    recipe: OneVersusRestRecipe,
    x: sp.csr_array,
    y: sp.csr_array,
    seed: int,
    threads: int = 0,
    on_step: Callable[[float], None] = lambda loss: None,
    on_phase: Callable[[str], None] = lambda name: None,
) -> Iterator[tuple[OneVersusRest, float]]:
    """The model and the mean loss after each pass over the instances. All follows from the data and
    the seed. on_step: gets the loss of each call; on_phase: gets what is done between passes."""
    batches = Batches(x, y, CALL_INSTANCES, seed=seed)
    falling = recipe.epochs * len(batches)
    most = setup.most_pairs
    on_phase("choosing pairs")
    model = start(setup, x, y, int(recipe.first_share * most) if recipe.growths else most, threads)
    for number in range(recipe.passes):
        losses = []
        for step, batch in enumerate(batches.epoch(number)):
            done = (number - recipe.growths) * len(batches) + step
            share = max(0.0, (done + 0.5) / falling)
            losses.append(model.step(batch, recipe.learning_rate * (1 - share)))
            on_step(losses[-1])
        if number < recipe.growths:
            on_phase("growing")
            room = most - model.pair_count
            model.grow(x, y, room // (recipe.growths - number))
        yield model, float(np.mean(losses))
