"""What needs no framework of models that read sparse features."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from setups import random_csr

from fanin.backends.features import FeatureTransform
from fanin.backends.kinds import Dense, FixedFanIn, Unstructured
from fanin.backends.setup import LayerSetup
from fanin.backends.sparse import by_instance, known_sparse


def test_arrays_by_instance_are_those_of_the_matrix():
    x = random_csr((9, 50), np.random.default_rng(0))
    x.indices, x.indptr = x.indices.astype(np.int64), x.indptr.astype(np.int64)
    values, starts, columns = by_instance(x)
    assert [values.dtype, starts.dtype, columns.dtype] == [np.float32, np.int64, np.int32]
    again = sp.csr_array((values, columns, starts), x.shape)
    np.testing.assert_array_equal(again.toarray(), x.toarray())


def test_good_features_are_not_copied():
    x = random_csr((9, 50), np.random.default_rng(0))
    assert known_sparse(x, 50) is x
    assert np.shares_memory(known_sparse(sp.csr_matrix(x, copy=False), 50).data, x.data)


@pytest.mark.parametrize("kind", [Dense(), FixedFanIn(4), Unstructured(4)])
def test_no_kind_of_connection_reads_sparse_features_itself(kind):
    message = f"an output layer {type(kind).__name__} does not read sparse features itself: set "
    with pytest.raises(ValueError, match=message):
        LayerSetup(20, 30, kind, sparse_features=True)
    with pytest.raises(ValueError, match="a dictionary of 25 atoms would make sparse features"):
        LayerSetup(20, 30, kind, intermediate=8, atoms=25, sparse_features=True)


def test_a_scale_counts_for_each_column():
    x = random_csr((9, 50), np.random.default_rng(0))
    scale = np.linspace(0.1, 3, 50, dtype=np.float32)
    scaled = FeatureTransform(scale).apply(x)
    assert isinstance(scaled, sp.csr_array) and scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled.toarray(), x.toarray() * scale)
    assert FeatureTransform().apply(x) is x
