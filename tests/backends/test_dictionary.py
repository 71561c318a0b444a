"""The dictionary of features, without a framework: against one that was planted."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from planted import FAN_IN, INPUTS, orthogonal, planted_data

from fanin.backends import choosing, dictionary, passes
from fanin.backends.dictionary import feature_dictionary, learn_dictionary, sums_of_atoms
from fanin.backends.features import inputs_as_atoms


def unit(columns):
    return (columns / np.linalg.norm(columns, axis=0)).astype(np.float32)


def sums_of(atoms, rows=400, entries=2, seed=0):
    """Rows that are sums of so many of the atoms [inputs, atoms], float32 [rows, inputs]."""
    rng = np.random.default_rng(seed)
    sums = np.zeros((rows, atoms.shape[1]))
    for row in sums:
        row[rng.choice(atoms.shape[1], entries, replace=False)] = rng.choice([-1, 1], entries)
    return (sums @ atoms.T).astype(np.float32)


def left(rows, atoms, count):
    """Which share of the rows' squares sums of so many atoms leave out."""
    rest = rows - sums_of_atoms(rows, atoms, count) @ atoms.T
    return (rest**2).sum() / (rows**2).sum()


def energy_in_top(rows, count):
    """Which share of the rows' squares their `count` largest have, on average."""
    squares = np.sort(rows.astype(np.float64) ** 2, axis=1)[:, ::-1]
    return (squares[:, :count].sum(1) / np.maximum(squares.sum(1), 1e-30)).mean()


def differences(x, y, scale):
    """Of each label that has positives, by the mean over them and over all, scaled."""
    y = y.toarray().astype(np.float64)
    means = y.T @ x / np.maximum(y.sum(0), 1)[:, None]
    return ((means - x.mean(0)) * scale)[y.any(0)]


class TestSums:
    def test_of_an_orthogonal_basis_they_are_the_largest(self):
        atoms = orthogonal(12).astype(np.float32)
        rows = np.random.default_rng(0).standard_normal((600, 12)).astype(np.float32)  # two blocks
        sums = sums_of_atoms(rows, atoms, 3).toarray()
        match = rows @ atoms
        largest = np.argsort(-np.abs(match), axis=1)[:, :3]
        expected = np.zeros_like(match)
        np.put_along_axis(expected, largest, np.take_along_axis(match, largest, 1), 1)
        np.testing.assert_allclose(sums, expected, atol=1e-5)

    def test_more_steps_come_nearer(self, monkeypatch):
        atoms = unit(np.random.default_rng(1).standard_normal((20, 30)))
        rows, errors = sums_of(atoms), []
        for steps in (1, 3, 30):
            monkeypatch.setattr(dictionary, "_STEPS", steps)
            errors.append(left(rows, atoms, 2))
        assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]

    def test_more_than_there_are(self):
        rows = np.ones((3, 4), np.float32)
        np.testing.assert_allclose(sums_of_atoms(rows, np.eye(4, dtype=np.float32), 9).toarray(), 1)


class TestLearning:
    @pytest.mark.parametrize("atoms", [24, 40])
    def test_rows_are_near_to_sums_of_few(self, atoms):
        planted = unit(np.random.default_rng(2).standard_normal((24, atoms)))
        rows = sums_of(planted, rows=2000)
        learnt = learn_dictionary(rows, atoms, 2, np.random.default_rng(0))
        assert learnt.shape == (24, atoms) and learnt.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(learnt, axis=0), 1, rtol=1e-5)
        first = unit(rows[np.random.default_rng(0).permutation(len(rows))[:atoms]].T)
        assert left(rows, learnt, 2) < 0.5 * left(rows, first, 2)

    def test_fewer_rows_than_atoms(self):
        rows = sums_of(np.eye(24), rows=5)
        learnt = learn_dictionary(rows, 30, 1, np.random.default_rng(0))
        np.testing.assert_allclose(np.linalg.norm(learnt, axis=0), 1, rtol=1e-5)
        assert left(rows, learnt, 1) < 1e-6

    def test_rows_that_say_nothing(self):
        learnt = learn_dictionary(np.zeros((3, 7), np.float32), 9, 2, np.random.default_rng(0))
        assert np.isfinite(learnt).all()
        np.testing.assert_array_equal(learnt[:, 3:], inputs_as_atoms(7, 6))


class TestFeatures:
    def learnt(self, x, y, atoms=INPUTS, scale=None, **options):
        mean, _ = passes.input_statistics(x)
        return feature_dictionary(x, y, mean, atoms, FAN_IN, scale=scale, threads=1, **options)

    @pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
    @pytest.mark.parametrize("most_bytes", [passes.MOST_BYTES, 2 * 7 * 4 * INPUTS])
    def test_brings_labels_onto_few_atoms(self, form, most_bytes, monkeypatch):
        def in_parts(*arguments, **options):
            return passes.label_sums(*arguments, **options, most_bytes=most_bytes)

        monkeypatch.setattr(dictionary, "label_sums", in_parts)
        x, y = planted_data(instances=4000, labels=300, noise=0.05)
        scale = (1 / np.geomspace(0.5, 5, INPUTS)).astype(np.float32)
        before = differences(x, y, scale)
        assert len(before) == 299  # the last has no positives
        after = before @ self.learnt(form(x), y, scale=scale)
        assert energy_in_top(after, 3) > energy_in_top(before, 3) + 0.25

    def test_the_scale_counts(self):
        x, y = planted_data()
        scale = choosing.unit_variance_scale(*passes.input_statistics(x))
        scaled = self.learnt(x, y, scale=scale)
        assert np.abs(scaled - self.learnt(x, y)).max() > 0.1
        np.testing.assert_allclose(scaled, self.learnt(x * scale, y), atol=0.05)

    def test_labels_of_many_positives_count_most(self, monkeypatch):
        x, y = planted_data()
        counts = y.toarray().sum(0)
        most = np.sort(np.argsort(-counts, kind="stable")[:29])
        expected = self.learnt(x, y[:, most])
        monkeypatch.setattr(dictionary, "_LABELS", 29)
        np.testing.assert_array_equal(self.learnt(x, y), expected)

    def test_the_seed_makes_it_repeatable(self):
        x, y = planted_data()
        one, same, other = (self.learnt(x, y, 30, seed=seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, same)
        assert (one != other).any()

    def test_no_positives(self):
        x, y = planted_data()
        expected = inputs_as_atoms(INPUTS, 30)
        np.testing.assert_array_equal(self.learnt(x, sp.csr_array(y.shape), 30), expected)

    def test_labels_that_all_instances_have(self):
        """Their mean is that of all instances, but for rounding, which is no direction."""
        x, y = planted_data()
        every = sp.csr_array(np.ones((x.shape[0], 3)))
        expected = inputs_as_atoms(INPUTS, INPUTS)
        np.testing.assert_array_equal(self.learnt(x, every), expected)
        both = sp.hstack([y, every]).tocsr()
        np.testing.assert_allclose(self.learnt(x, both), self.learnt(x, y), atol=1e-4)
