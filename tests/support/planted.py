"""Training data with structure: labels that lie apart in few directions, which are not the axes."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

# Enough labels for a dictionary of more atoms than inputs.
INPUTS, LABELS, FAN_IN = 24, 100, 6


def orthogonal(size, seed=0):
    """A random orthogonal matrix [size, size]."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def planted_data(instances=300, labels=LABELS, directions=3, noise=0.3, seed=0):
    """Features float32 [instances, INPUTS], and positives, CSR [instances, labels]: those of a
    label lie apart in so many directions of an orthogonal basis. The last label has none."""
    rng = np.random.default_rng(seed)
    y = rng.random((instances, labels)) < 3 / labels
    y[:, -1] = False
    centers = np.zeros((labels, INPUTS))
    for center in centers:
        center[rng.choice(INPUTS, directions, replace=False)] = rng.choice([-1, 1], directions)
    x = y @ centers + noise * rng.standard_normal((instances, INPUTS))
    x = x @ orthogonal(INPUTS).T * np.geomspace(0.5, 5, INPUTS) + 1
    return x.astype(np.float32), sp.csr_array(y)
