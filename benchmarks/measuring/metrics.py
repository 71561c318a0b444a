"""The ranking metrics of `backends.metrics` as result files hold them."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from fanin.backends.metrics import inverse_propensity, plain_at, scored_at
from fanin.benchmarks.records.base import AtK, Precision
from fanin.benchmarks.records.run import Ranking
from fanin.datasets.catalogue import Propensity

_KS = (1, 3, 5)


def precision(truth: sp.csr_array, top: np.ndarray) -> Precision:
    """P@1, P@3 and P@5; `top` is [instances, >= min(5, labels)]."""
    plain = plain_at(truth, top, _KS)
    return Precision(**{f"at_{k}": plain[k][0] for k in _KS})


def ranking(
    truth: sp.csr_array, top: np.ndarray, train_truth: sp.csr_array, propensity: Propensity
) -> Ranking:
    """nDCG, PSP and PSnDCG at 1, 3 and 5."""
    plain = plain_at(truth, top, _KS)
    scored = scored_at(truth, top, _KS, inverse_propensity(train_truth, propensity))
    return Ranking(
        ndcg=AtK(**{f"at_{k}": plain[k][1] for k in _KS}),
        psp=AtK(**{f"at_{k}": scored[k][0] for k in _KS}),
        psndcg=AtK(**{f"at_{k}": scored[k][1] for k in _KS}),
        propensity_a=propensity.a,
        propensity_b=propensity.b,
    )
