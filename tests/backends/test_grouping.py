"""The order of labels that share their sources."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from fanin.backends import grouping
from fanin.backends.choosing import Chosen, choose_sources
from fanin.backends.grouping import label_order

GROUPINGS = ("random", "frequency", "meaning")
every_grouping = pytest.mark.parametrize("kind", GROUPINGS)


def clustered(clusters, size, inputs=40, seed=0):
    """Features and positives: label l belongs to cluster l % clusters, whose labels have positives
    that lie near one place. The numbers are small and whole, so that all sums are exact."""
    rng = np.random.default_rng(seed)
    labels = clusters * size
    places = rng.integers(-40, 41, (clusters, inputs))
    own = np.repeat(np.arange(labels), 3)  # three positives each
    x = places[own % clusters] + rng.integers(-4, 5, (len(own), inputs))
    y = sp.csr_array((np.ones(len(own), bool), (np.arange(len(own)), own)), (len(own), labels))
    return x.astype(np.float32), y


def purity(order, clusters, group_size):
    """The share of the labels that are in the most frequent cluster of their group."""
    groups = [order[at : at + group_size] for at in range(0, len(order), group_size)]
    return sum(np.bincount(group % clusters).max() for group in groups) / len(order)


def many(seed=0, instances=150, labels=203):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((instances, 300)).astype(np.float32)  # more than PROJECTED
    return x, sp.csr_array(rng.random((instances, labels)) < 0.02)


class TestOrder:
    @every_grouping
    @pytest.mark.parametrize("labels", [1, 5, 16, 17, 203])
    @pytest.mark.parametrize("group_size", [2, 16, 64])
    def test_each_label_stands_once(self, kind, labels, group_size):
        x, y = many(labels=labels)
        order = label_order(y, group_size, kind, features=x)
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(labels))

    @pytest.mark.parametrize("kind", ["random", "meaning"])
    def test_it_follows_from_the_seed(self, kind):
        x, y = many()
        one, again, other = (
            label_order(y, 16, kind, features=x, seed=seed).tolist() for seed in (1, 1, 2)
        )
        assert one == again != other

    def test_by_frequency(self):
        counts = [3, 0, 5, 3, 1, 5]
        y = sp.csr_array(np.arange(6)[:, None] < counts)
        assert label_order(y, 2, "frequency").tolist() == [2, 5, 0, 3, 4, 1]

    def test_a_positive_counts_once_and_a_stored_zero_never(self):
        rows, labels = [0, 1, 0, 0, 0, 1], [0, 0, 1, 1, 1, 2]
        y = sp.coo_array(([1, 1, 1, 1, 1, 0], (rows, labels)), (2, 3))
        assert label_order(y, 2, "frequency").tolist() == [0, 1, 2]
        x = np.ones((2, 4), np.float32)
        assert label_order(y, 2, "meaning", features=x).tolist()[-1] == 2


class TestMeaning:
    @pytest.mark.parametrize(("clusters", "size"), [(8, 16), (32, 16), (5, 32), (11, 16)])
    def test_groups_are_those_of_the_data(self, clusters, size):
        x, y = clustered(clusters, size)
        assert purity(label_order(y, 16, "meaning", features=x), clusters, 16) > 0.9
        assert purity(label_order(y, 16, "random"), clusters, 16) < 0.6

    def test_a_part_larger_than_the_sample(self, monkeypatch):
        x, y = clustered(32, 16)
        monkeypatch.setattr(grouping, "_SAMPLE", 50)
        assert purity(label_order(y, 16, "meaning", features=x), 32, 16) > 0.85

    def test_in_a_projection(self):
        x, y = clustered(8, 16, inputs=500)
        assert purity(label_order(y, 16, "meaning", features=x), 8, 16) > 0.9

    def test_of_very_many_words(self):
        """A square matrix of them would need 160 GB."""
        x, y = clustered(8, 16)
        wide = sp.csr_array(x).tocoo()
        wide = sp.csr_array((wide.data, (wide.row, wide.col * 5000)), (x.shape[0], 200_000))
        assert purity(label_order(y, 16, "meaning", features=wide), 8, 16) > 0.9

    def test_the_last_group_has_what_remains(self):
        x, y = clustered(8, 16)
        order = label_order(y[:, :-5], 16, "meaning", features=x)
        assert purity(order, 8, 16) > 0.75  # each cluster that lacks a label may be mixed

    def test_how_many_positives_a_label_has_does_not_matter(self):
        x, y = clustered(8, 16)
        often = np.r_[np.arange(len(x)), np.repeat(np.arange(0, len(x), 7), 50)]
        assert purity(label_order(y[often], 16, "meaning", features=x[often]), 8, 16) > 0.9

    def test_forms_of_features(self, tmp_path, monkeypatch):
        x, y = clustered(8, 16)
        expected = label_order(y, 16, "meaning", features=x)
        np.save(tmp_path / "x.npy", x)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        forms = (sp.csr_array(x), sp.csr_matrix(x), mapped)
        for form in forms:
            np.testing.assert_array_equal(label_order(y, 16, "meaning", features=form), expected)
        monkeypatch.setattr(grouping, "_BLOCK", 7)
        monkeypatch.setattr(grouping, "_PROJECTED_TOGETHER", 50)
        for form in (x, *forms):
            np.testing.assert_array_equal(
                label_order(y.tocsc(), 16, "meaning", features=form), expected
            )

    @pytest.mark.parametrize("name", ["_TOGETHER", "_SAMPLE"])
    def test_threads_do_not_change_it(self, name, monkeypatch):
        monkeypatch.setattr(grouping, name, 40)
        monkeypatch.setattr(grouping, "_BLOCK", 16)
        x, y = many()
        orders = [label_order(y, 4, "meaning", features=x, threads=t) for t in (1, 2, 3)]
        for order in orders[1:]:
            np.testing.assert_array_equal(order, orders[0])

    def test_parts_that_are_halved_together_are_halved_alike(self, monkeypatch):
        x, y = clustered(32, 16)
        expected = label_order(y, 4, "meaning", features=x)
        monkeypatch.setattr(grouping, "_TOGETHER", 1)
        np.testing.assert_array_equal(label_order(y, 4, "meaning", features=x), expected)

    def test_labels_without_positives_come_last(self):
        x, y = many()
        y = sp.csr_array(y.toarray() & (np.arange(203) % 3 > 0))
        order = label_order(y, 16, "meaning", features=x)
        unknown = np.flatnonzero(y.sum(0) == 0)
        assert len(unknown) >= 68
        np.testing.assert_array_equal(order[-len(unknown) :], unknown)

    def test_no_label_has_positives(self):
        y = sp.csr_array((4, 50), dtype=bool)
        x = np.ones((4, 6), np.float32)
        np.testing.assert_array_equal(label_order(y, 8, "meaning", features=x), np.arange(50))

    def test_all_mean_the_same(self):
        _, y = many()
        for x in (np.zeros((150, 6), np.float32), np.ones((150, 6), np.float32)):
            order = label_order(y, 16, "meaning", features=x)
            np.testing.assert_array_equal(np.sort(order), np.arange(203))

    def test_planned_bytes(self):
        labels, instances, positives = 1000, 1 << 19, 1 << 20
        threads = 2 * 4 * 16384 * (128 + 4)
        expected = labels * (4 * 128 + 40) + (768 + (1 << 18)) * 4 * 128 + 10 * (1 << 19) + threads
        assert grouping.meaning_bytes(instances, 768, labels, positives, 2) == expected
        assert grouping.meaning_bytes(10**7, 8, 10, 10**8, 2) == 8 * 10**8


class TestSources:
    def test_groups_would_choose_the_same(self):
        """Features that are far from the mean of all in inputs of the cluster's own, but lie on
        either side of it: means of features would tell labels of one cluster apart."""
        rng = np.random.default_rng(0)
        labels, clusters, inputs = 128, 8, 200
        own = np.repeat(np.arange(labels), 3)
        x = rng.standard_normal((len(own), inputs)) / 10
        signs = rng.choice([-1, 1], (labels, inputs))
        is_own = np.arange(inputs) % clusters == np.arange(labels)[:, None] % clusters
        x = (x + (signs * is_own)[own]).astype(np.float32)
        y = sp.csr_array((np.ones(len(own), bool), (np.arange(len(own)), own)), (len(own), labels))
        chosen = choose_sources(x, y, 25, want_values=True)
        by_sources, by_meaning = (
            label_order(y, 16, kind, features=x, chosen=chosen) for kind in ("sources", "meaning")
        )
        np.testing.assert_array_equal(np.sort(by_sources), np.arange(labels))
        assert purity(by_sources, clusters, 16) > 0.9
        assert purity(by_meaning, clusters, 16) < 0.7

    def test_weak_sources_count_less(self):
        """The first two labels share their strong source, and each its weak one with another."""
        chosen = Chosen(
            np.array([[0, 2], [0, 3], [1, 2], [1, 3]], np.uint16),
            np.array([[-9, 1], [9, 1], [9, 1], [9, -1]], np.float32),
        )
        y = sp.eye_array(4, format="csr")
        for seed in range(10):
            order = label_order(y, 2, "sources", chosen=chosen, seed=seed)
            assert sorted(order[:2].tolist()) in ([0, 1], [2, 3])

    def test_labels_without_positives_come_last(self):
        x, y = many()
        y = sp.csr_array(y.toarray() & (np.arange(203) % 3 > 0))
        order = label_order(
            y, 16, "sources", chosen=choose_sources(x, y, 4, want_values=True), threads=2
        )
        unknown = np.flatnonzero(y.sum(0) == 0)
        np.testing.assert_array_equal(order[-len(unknown) :], unknown)
        np.testing.assert_array_equal(np.sort(order), np.arange(203))

    def test_what_is_not_chosen_for_each_label(self):
        x, y = many()
        for chosen in (
            None,
            choose_sources(x, y, 4),
            choose_sources(x, y, 4, group_size=16, want_values=True),
        ):
            with pytest.raises(ValueError, match="grouping 'sources' needs chosen"):
                label_order(y, 16, "sources", features=x, chosen=chosen)

    def test_planned_bytes(self):
        own = 1000 * (32 * (2 + 4 + 8) + 20)
        expected = own + grouping.meaning_bytes(1000, 500, 1000, 1000, 2)
        assert grouping.sources_bytes(500, 1000, 32, 2) == expected


X, Y = np.ones((4, 6), np.float32), sp.csr_array(np.eye(4, 5, dtype=bool))
BAD = np.where(np.arange(24).reshape(4, 6) == 8, np.nan, X).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"grouping": "size"},
            "unknown grouping 'size'; there are random, frequency, meaning, sources",
        ),
        ({"group_size": 1}, "group_size must be at least 2, got 1"),
        ({"group_size": 2.0}, "group_size must be a whole number, got 2.0"),
        ({"seed": -1}, "seed must be in 0..18446744073709551615, got -1"),
        ({"threads": 1025}, "threads must be in 0..1024, got 1025"),
        ({"features": None}, "features must be a NumPy array or a SciPy CSR array, got NoneType"),
        ({"features": X.astype(float)}, "features must be float32, got float64"),
        ({"features": X[:3]}, r"labels must be .* 3 instances as in features, got \[4, 5\]"),
        ({"features": BAD}, "features must be finite, but those of label 1's positives are not"),
        ({"features": np.full_like(X, np.inf)}, "features must be finite, .* label 0's"),
        ({"labels": Y.toarray()}, "labels must be a SciPy sparse array .*, got ndarray"),
        ({"labels": None}, "labels must be a SciPy sparse array .*, got NoneType"),
        ({"labels": Y[:, :0]}, "labels must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"labels": Y, "group_size": 2, "grouping": "meaning", "features": X}
    label_order(**arguments)
    with pytest.raises(ValueError, match=message):
        label_order(**{**arguments, **change})


@pytest.mark.parametrize("kind", ["random", "frequency"])
@pytest.mark.parametrize("labels", [None, 3, [[1]], Y.toarray()])
def test_labels_that_are_not_sparse(kind, labels):
    with pytest.raises(ValueError, match="labels must be a SciPy sparse array"):
        label_order(labels, 2, kind)
