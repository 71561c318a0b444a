"""What the training of a one-versus-rest model needs before it begins."""

from __future__ import annotations

import scipy.sparse as sp

from fanin.backends.estimate import Estimate
from fanin.backends.words.fitting import CALL_INSTANCES
from fanin.backends.words.model import blocks_of
from fanin.backends.words.pairs import BLOCK_VALUES
from fanin.backends.words.setup import OneVersusRestRecipe, OneVersusRestSetup

# Beside all arrays: Python's objects, SciPy's code.
_OVERHEAD = 16 << 20
# Bytes of a pair while pairs are laid out anew, beside the new arrays; and of a value of a product
# while pairs are chosen.
_PAIR_BYTES, _VALUE_BYTES = 40, 32
# The most that a call of the kernel keeps for words that many labels have: so many rows of all
# labels, and so many bytes (`word_rows` in kernels/src/core/memory.h).
_ROWS, _ROW_BYTES = 256, 32 << 20


def words_kept_bytes(
    setup: OneVersusRestSetup, recipe: OneVersusRestRecipe, early_stopping: bool
) -> int:
    """Bytes of the trained arrays, which are kept for predictions. With early stopping an earlier
    pass may be the best: its arrays are kept, too, while pairs are added. The first pass is judged
    after pairs were added to it, so with one growth there are none yet."""
    early = 0.0
    if early_stopping and recipe.growths > 1:
        grown = (recipe.growths - 1) / recipe.growths  # before the last pairs are added
        early = recipe.first_share + (1 - recipe.first_share) * grown
    copy = 12 * setup.most_pairs + 8 * (setup.labels + setup.inputs + 1)
    return int((1 + early) * copy)


def words_estimate(
    setup: OneVersusRestSetup,
    x: sp.csr_array,
    y: sp.csr_array,
    threads: int,
) -> Estimate:
    """Bytes at the peak, which is while pairs are added, with all pairs that there may be; and what
    a call of the kernel moves and computes, at least, to score its instances. x: CSR [instances,
    inputs], y: CSR [instances, labels]."""
    pairs, labels = setup.most_pairs, setup.labels
    blocks, _ = blocks_of(labels, threads)
    starts = 8 * blocks * (setup.inputs + 1)
    chosen = _VALUE_BYTES * BLOCK_VALUES + 12 * (pairs + BLOCK_VALUES) + 16 * y.nnz
    rows = min(_ROW_BYTES, 4 * labels * min(_ROWS, setup.inputs))
    # Of pairs that a call scores, if all words had equally many: frequent ones have more.
    visited = CALL_INSTANCES * x.nnz / x.shape[0] * pairs / setup.inputs
    return Estimate(
        parameter_bytes=6 * pairs + 4 * labels + starts,
        optimizer_bytes=4 * pairs + 4 * labels,
        gradient_bytes=0,
        training_bytes=max(chosen, _PAIR_BYTES * pairs + starts, rows),
        overhead_bytes=_OVERHEAD,
        moved_bytes=int(6 * visited),
        flops=int(2 * visited + CALL_INSTANCES * labels),
    )
