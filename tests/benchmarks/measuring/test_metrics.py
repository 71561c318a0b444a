"""Ranking metrics against worked examples and against definitions written out one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from fanin.backends import metrics
from fanin.backends.metrics import precision_at
from fanin.benchmarks.measuring.metrics import precision, ranking
from fanin.datasets import propensity
from fanin.datasets.catalogue import AMAZON, OTHER, WIKIPEDIA, Propensity


def csr(rows, labels):
    return sp.csr_array(np.array([[j in row for j in range(labels)] for row in rows], bool))


# Two instances, six labels: the first has labels 0 and 2, the second labels 1 to 5.
LABELS = csr([{0, 2}, {1, 2, 3, 4, 5}], 6)
TOP = np.array([[0, 1, 2, 3, 4], [0, 5, 1, 2, 3]])
INVERSE = np.array([1.0, 2.0, 4.0, 1.0, 1.0, 8.0])
D2, D3, D4, D5 = (1 / math.log2(rank + 1) for rank in (2, 3, 4, 5))


def test_ndcg_of_a_worked_example():
    assert metrics.ndcg_at(LABELS, TOP, 1) == pytest.approx((1 + 0) / 2)
    # Two labels fill two ranks of the ideal order, five labels all three.
    expected = ((1 + D3) / (1 + D2) + (D2 + D3) / (1 + D2 + D3)) / 2
    assert metrics.ndcg_at(LABELS, TOP, 3) == pytest.approx(expected)
    ideal = 1 + D2 + D3 + D4 + D5
    expected = ((1 + D3) / (1 + D2) + (D2 + D3 + D4 + D5) / ideal) / 2
    assert metrics.ndcg_at(LABELS, TOP, 5) == pytest.approx(expected)


def test_propensity_scored_precision_of_a_worked_example():
    # Got 1 (label 0) and nothing; the best would be labels 2 (4) and 5 (8).
    assert metrics.psp_at(LABELS, TOP, 1, INVERSE) == pytest.approx(1 / 12)
    # Got 1 + 4, and 8 + 2; the best would be 4 + 1, and 8 + 4 + 2.
    assert metrics.psp_at(LABELS, TOP, 3, INVERSE) == pytest.approx(15 / 19)
    assert metrics.psp_at(LABELS, TOP, 5, INVERSE) == pytest.approx((5 + 15) / (5 + 16))


def test_propensity_scored_ndcg_of_a_worked_example():
    assert metrics.psndcg_at(LABELS, TOP, 1, INVERSE) == pytest.approx(1 / 12)
    got = (1 + 4 * D3) / (1 + D2) + (8 * D2 + 2 * D3) / (1 + D2 + D3)
    best = (4 + 1 * D2) / (1 + D2) + (8 + 4 * D2 + 2 * D3) / (1 + D2 + D3)
    assert metrics.psndcg_at(LABELS, TOP, 3, INVERSE) == pytest.approx(got / best)


def test_inverse_propensity_of_a_worked_example():
    train = csr([{0}, {0}, {0, 1}, set()], 3)
    scale = (math.log(4) - 1) * 2.5**0.55
    expected = [1 + scale * (n + 1.5) ** -0.55 for n in (3, 1, 0)]
    assert metrics.inverse_propensity(train, OTHER) == pytest.approx(expected)


def test_constants_of_the_data_sets():
    assert propensity("amazon-670k") == propensity("Amazon670k") == AMAZON == (0.6, 2.6)
    assert propensity("wiki-500k") == propensity("Wikipedia-500K") == WIKIPEDIA == (0.5, 0.4)
    assert propensity("wordnet") == propensity("eurlex-4k") == OTHER == (0.55, 1.5)


def by_definition(dense, top, k, inverse):
    """All metrics one instance at a time: (P, nDCG, PSP, PSnDCG)."""
    p = n = got_p = best_p = got_n = best_n = 0.0
    for row, ids in zip(dense, top, strict=True):
        true = {j for j, is_true in enumerate(row) if is_true}
        hits = [rank for rank, j in enumerate(ids[:k], 1) if j in true]
        weights = sorted((inverse[j] for j in true), reverse=True)[:k]
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(true)) + 1)) or 1.0
        p += len(hits) / k
        n += sum(1 / math.log2(rank + 1) for rank in hits) / ideal
        got_p += sum(inverse[ids[rank - 1]] for rank in hits)
        best_p += sum(weights)
        got_n += sum(inverse[ids[rank - 1]] / math.log2(rank + 1) for rank in hits) / ideal
        best_n += sum(w / math.log2(rank + 1) for rank, w in enumerate(weights, 1)) / ideal
    psp = got_p / best_p if best_p else 0.0
    psndcg = got_n / best_n if best_n else 0.0
    return p / len(dense), n / len(dense), psp, psndcg


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    instances=st.integers(1, 40),
    labels=st.integers(1, 30),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    block=st.sampled_from([3, 16_384]),
)
def test_against_the_definitions(seed, instances, labels, density, block):
    rng = np.random.default_rng(seed)
    dense = rng.random((instances, labels)) < density
    top = np.stack([rng.permutation(labels)[:5] for _ in range(instances)])
    inverse = rng.uniform(1.0, 20.0, labels)
    y = sp.csr_array(dense)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_BLOCK", block)
        for k in (1, 3, 5):
            measured = (
                metrics.precision_at(y, top, k),
                metrics.ndcg_at(y, top, k),
                metrics.psp_at(y, top, k, inverse),
                metrics.psndcg_at(y, top, k, inverse),
            )
            assert measured == pytest.approx(by_definition(dense, top, k, inverse), abs=1e-12)


def test_the_best_ranking_scores_one():
    rng = np.random.default_rng(3)
    dense = rng.random((50, 12)) < 0.4
    dense[:, 0] = True
    inverse = rng.uniform(1.0, 9.0, 12)
    top = np.argsort(np.where(dense, -inverse, 0.0), axis=1, kind="stable")[:, :5]
    for k in (1, 3, 5):
        assert metrics.ndcg_at(sp.csr_array(dense), top, k) == pytest.approx(1.0)
        assert metrics.psp_at(sp.csr_array(dense), top, k, inverse) == pytest.approx(1.0)
        assert metrics.psndcg_at(sp.csr_array(dense), top, k, inverse) == pytest.approx(1.0)


def test_ranking_holds_all_of_them_and_its_constants():
    ranked = ranking(LABELS, TOP, LABELS, Propensity(0.5, 0.4))
    inverse = metrics.inverse_propensity(LABELS, Propensity(0.5, 0.4))
    assert ranked.ndcg.at_3 == metrics.ndcg_at(LABELS, TOP, 3)
    assert ranked.psp.at_5 == metrics.psp_at(LABELS, TOP, 5, inverse)
    assert ranked.psndcg.at_1 == metrics.psndcg_at(LABELS, TOP, 1, inverse)
    assert (ranked.propensity_a, ranked.propensity_b) == (0.5, 0.4)


def test_bad_input():
    with pytest.raises(ValueError, match=r"must be \[6\], got \[5\]"):
        metrics.psp_at(LABELS, TOP, 1, INVERSE[:5])
    with pytest.raises(ValueError, match="k must be at least 1"):
        metrics.ndcg_at(LABELS, TOP, 0)
    with pytest.raises(ValueError, match="of no instances"):
        metrics.precision_at(LABELS[:0], TOP[:0], 1)


class TestPrecision:
    truth = sp.csr_array(
        np.array([[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1]], bool)
    )

    def test_worked_example(self):
        top = np.array([[0, 1, 2, 3, 4], [5, 4, 3, 2, 1], [1, 0, 2, 3, 4]])
        # Hits: first 1, 2 of 3, 2 of 5; second none; third 1, 2 of 3, 4 of 5.
        assert precision_at(self.truth, top, 1) == pytest.approx(2 / 3)
        assert precision_at(self.truth, top, 3) == pytest.approx((2 + 2) / 9)
        at = precision(self.truth, top)
        assert at.at_5 == pytest.approx((2 + 4) / 15)

    def test_fewer_labels_than_k(self):
        labels = sp.csr_array(np.array([[1, 1, 0]], bool))
        at = precision(labels, np.array([[2, 0, 1]]))
        assert (at.at_1, at.at_3, at.at_5) == (0, 2 / 3, 2 / 5)

    @pytest.mark.parametrize(
        ("top", "message"),
        [
            (np.zeros((2, 5), int), r"top must be \[3, >= 1\], got \[2, 5\]"),
            (np.full((3, 1), 6), r"label ids in top must be in 0\.\.5"),
            (np.full((3, 1), -1), r"label ids in top must be in 0\.\.5"),
        ],
    )
    def test_bad_input(self, top, message):
        with pytest.raises(ValueError, match=message):
            precision_at(self.truth, top, 1)

    def test_a_label_named_twice_is_an_error(self):
        with pytest.raises(ValueError, match="names a label twice"):
            precision_at(self.truth, np.array([[0, 0, 2]] * 3), 3)

    def test_against_counting_by_hand(self):
        rng = np.random.default_rng(0)
        dense = rng.random((40, 30)) < 0.1
        top = np.stack([rng.permutation(30)[:5] for _ in range(40)])
        for k in (1, 3, 5):
            hits = sum(dense[i, label] for i in range(40) for label in top[i, :k])
            assert precision_at(sp.csr_array(dense), top, k) == pytest.approx(hits / (40 * k))
