"""What the training of a one-versus-rest model needs before it begins."""

from __future__ import annotations

import scipy.sparse as sp

from fanin.backends.estimate import Estimate
from fanin.backends.words.model import blocks_of
from fanin.backends.words.pairs import BLOCK_VALUES
from fanin.backends.words.setup import OneVersusRestRecipe, OneVersusRestSetup

# Beside all arrays: Python's objects, SciPy's code.
_OVERHEAD = 16 << 20
# Bytes of a pair while pairs are laid out anew, beside the new arrays; and of a value of a product
# while pairs are chosen.
_PAIR_BYTES, _VALUE_BYTES = 36, 32


def words_estimate(
    setup: OneVersusRestSetup,
    recipe: OneVersusRestRecipe,
    x: sp.csr_array,
    y: sp.csr_array,
    threads: int,
) -> Estimate:
    """Bytes at the peak, which is while pairs are added, and arithmetic of a call of the kernel. x:
    CSR [instances, inputs], y: CSR [instances, labels]."""
    pairs, labels = setup.most_pairs, setup.labels
    blocks, _ = blocks_of(labels, threads)
    starts = 8 * blocks * (setup.inputs + 1)
    chosen = _VALUE_BYTES * BLOCK_VALUES + 12 * (pairs + BLOCK_VALUES) + 16 * y.nnz
    return Estimate(
        parameter_bytes=6 * pairs + 4 * labels + starts,
        optimizer_bytes=4 * pairs + 4 * labels,
        gradient_bytes=0,
        temporary_bytes=max(chosen, _PAIR_BYTES * pairs + starts),
        overhead_bytes=_OVERHEAD,
        moved_bytes=0,
        flops=0,
    )
