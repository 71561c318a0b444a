"""The rotation of features, without a framework: against one that was planted."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from planted import INPUTS, orthogonal, planted_data

from fanin.backends import choosing, passes
from fanin.backends.rotation import feature_rotation, varimax


def sparse_rows(rows=200, size=24, entries=2, seed=0):
    """float32 [rows, size] with so many entries of 1 or -1 in each."""
    rng = np.random.default_rng(seed)
    result = np.zeros((rows, size), np.float32)
    for row in result:
        row[rng.choice(size, entries, replace=False)] = rng.choice([-1, 1], entries)
    return result


def criterion(rows):
    return (rows.astype(np.float64) ** 4).sum()


def energy_in_top(rows, count):
    """Which share of the rows' squares their `count` largest have, on average."""
    squares = np.sort(rows.astype(np.float64) ** 2, axis=1)[:, ::-1]
    return (squares[:, :count].sum(1) / np.maximum(squares.sum(1), 1e-30)).mean()


def assert_orthogonal(rotation):
    assert rotation.dtype == np.float32
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(len(rotation)), atol=1e-5)


def differences(x, y, scale):
    """Of each label that has positives, by the mean over them and over all, scaled."""
    y = y.toarray().astype(np.float64)
    means = y.T @ x / np.maximum(y.sum(0), 1)[:, None]
    return ((means - x.mean(0)) * scale)[y.any(0)]


class TestVarimax:
    def test_finds_the_axes_that_were_turned_away(self):
        rows = sparse_rows()
        turned = (rows @ orthogonal(24)).astype(np.float32)
        rotation = varimax(turned)
        assert_orthogonal(rotation)
        found = turned @ rotation
        assert energy_in_top(turned, 2) < 0.5
        assert energy_in_top(found, 2) > 0.99
        assert criterion(found) > 0.99 * criterion(rows)

    def test_never_lowers_the_criterion(self):
        rows = np.random.default_rng(0).standard_normal((100, 24)).astype(np.float32)
        rotation = varimax(rows)
        assert_orthogonal(rotation)
        assert criterion(rows @ rotation) > criterion(rows)

    def test_leaves_axes_that_are_good(self):
        found = sparse_rows(entries=1) @ varimax(sparse_rows(entries=1))
        assert energy_in_top(found, 1) > 0.9999

    @pytest.mark.parametrize("rows", [1, 5])
    def test_rows_that_say_nothing(self, rows):
        np.testing.assert_array_equal(varimax(np.zeros((rows, 7), np.float32)), np.eye(7))


class TestFeatures:
    def rotation(self, x, y, scale=None):
        mean, _ = passes.input_statistics(x)
        rotation = feature_rotation(x, y, mean, scale, threads=1)
        assert_orthogonal(rotation)
        return rotation

    @pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
    @pytest.mark.parametrize("most_bytes", [passes.MOST_BYTES, 2 * 7 * 4 * INPUTS])
    def test_brings_labels_onto_few_axes(self, form, most_bytes, monkeypatch):
        def in_parts(*arguments, **options):
            return passes.label_sums(*arguments, **options, most_bytes=most_bytes)

        monkeypatch.setattr("fanin.backends.rotation.label_sums", in_parts)
        x, y = planted_data(instances=4000, labels=300, noise=0.05)
        scale = (1 / np.geomspace(0.5, 5, INPUTS)).astype(np.float32)
        before = differences(x, y, scale)
        assert len(before) == 299  # the last has no positives
        planted = before @ orthogonal(INPUTS)
        found = before @ self.rotation(form(x), y, scale)
        assert energy_in_top(before, 3) < 0.5
        assert energy_in_top(planted, 3) > 0.9
        assert energy_in_top(found, 3) > 0.97 * energy_in_top(planted, 3)

    def test_the_scale_counts(self):
        x, y = planted_data()
        scale = choosing.unit_variance_scale(*passes.input_statistics(x))
        scaled = self.rotation(x, y, scale)
        assert np.abs(scaled - self.rotation(x, y)).max() > 0.1
        np.testing.assert_allclose(scaled, self.rotation(x * scale, y), atol=0.05)

    def test_labels_of_many_positives_count_most(self, monkeypatch):
        x, y = planted_data()
        counts = y.toarray().sum(0)
        most = np.sort(np.argsort(-counts, kind="stable")[:9])
        expected = self.rotation(x, y[:, most])
        monkeypatch.setattr("fanin.backends.rotation._LABELS", 9)
        np.testing.assert_array_equal(self.rotation(x, y), expected)

    def test_no_positives(self):
        x, y = planted_data()
        np.testing.assert_array_equal(self.rotation(x, sp.csr_array(y.shape)), np.eye(INPUTS))

    def test_labels_that_all_instances_have(self):
        """Their mean is that of all instances, but for rounding, which is no direction."""
        x, y = planted_data()
        every = sp.csr_array(np.ones((x.shape[0], 3)))
        np.testing.assert_array_equal(self.rotation(x, every), np.eye(INPUTS))
        both = sp.hstack([y, every]).tocsr()
        np.testing.assert_allclose(self.rotation(x, both), self.rotation(x, y), atol=1e-4)
