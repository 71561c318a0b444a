"""A head above words that a model of a person's own reads through torch's layers."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from fanin.backends.torch import FixedFanInLinear, FusedFanIn

pytestmark = pytest.mark.torch

rng = np.random.default_rng(0)
X = sp.random_array((4, 60), density=0.1, format="csr", dtype=np.float32, rng=rng)


def test_embedding_sums_below_a_fused_head():
    """As README.md shows: sums of rows are the product with the matrix, only rows of words that
    occur are changed, and the head learns with them."""
    embedding = torch.nn.EmbeddingBag(60, 16, mode="sum", sparse=True)
    head = FusedFanIn(16, labels=40, fan_in=4, learning_rate=1e-2)
    optimizer = torch.optim.SparseAdam(embedding.parameters(), lr=1e-2)
    before = embedding.weight.detach().clone()
    words, starts, values = (torch.from_numpy(a) for a in (X.indices, X.indptr[:-1], X.data))
    losses = []
    for _ in range(40):
        sums = embedding(words, starts, per_sample_weights=values)
        if not losses:
            np.testing.assert_allclose(sums.detach(), X @ before.numpy(), atol=1e-5)
        losses.append(head.training_step(sums.relu(), [0, 1, 2, 3], [3, 7, 11, 3]))
        losses[-1].backward()
        assert embedding.weight.grad.is_sparse
        optimizer.step()
        optimizer.zero_grad()
    changed = (embedding.weight != before).any(1).numpy()
    assert set(np.flatnonzero(changed)) <= set(X.indices) and changed.any()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("layer", [FusedFanIn, FixedFanInLinear])
def test_a_scipy_matrix_is_refused_with_what_to_do(layer):
    head = layer(60, labels=40, fan_in=4)
    message = r"features must be a dense tensor, got a SciPy csr_array: .* sums of embeddings"
    with pytest.raises(ValueError, match=message):
        head(X)
    if layer is FusedFanIn:
        with pytest.raises(ValueError, match=message):
            head.training_step(X, [0], [1])
