"""Connections chosen by the data, without a framework."""

from __future__ import annotations

from pathlib import Path

import choose_reference
import numpy as np
import pytest
import scipy.sparse as sp

from fanin.backends import choosing, passes
from fanin.backends.arrays import new_sources


def make_data(instances=80, inputs=40, labels=60, density=0.06, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.random((instances, labels)) < density
    y[:, labels // 2] = False  # a label without positives
    x = y @ rng.standard_normal((labels, inputs)) + rng.standard_normal((instances, inputs))
    return (x + 3).astype(np.float32), y


def strongest(values, fan_in):
    """The inputs of the largest |value|, ascending."""
    return np.sort(np.argsort(-np.abs(values), axis=1, kind="stable")[:, :fan_in], axis=1)


def as_map(x, folder, mode="r"):
    np.save(folder / "x.npy", x)
    return np.load(folder / "x.npy", mmap_mode=mode)


FORMS = {
    "dense": lambda x, folder: x,
    "csr": lambda x, folder: sp.csr_array(x),
    "csr of 64 bits": lambda x, folder: wide(sp.csr_matrix(x)),
    "map": as_map,
    "private map": lambda x, folder: as_map(x, folder, "c"),
}


def wide(rows):
    rows.indices, rows.indptr = rows.indices.astype(np.int64), rows.indptr.astype(np.int64)
    return rows


class TestStatistics:
    @pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
    def test_mean_and_deviation(self, form, tmp_path, monkeypatch):
        monkeypatch.setattr(passes, "STATISTICS_BYTES", 7 * 4 * 40)  # 7 instances at a time
        x, _ = make_data()
        x[x < 2.5] = 0
        mean, deviation = choosing.input_statistics(form(x, tmp_path))
        np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-12)
        np.testing.assert_allclose(deviation, x.astype(np.float64).std(0), rtol=1e-12)

    def test_a_small_deviation_beside_a_large_mean(self):
        x = (1e6 + np.random.default_rng(0).standard_normal((70_000, 3)) * 8).astype(np.float32)
        _, deviation = choosing.input_statistics(x)
        np.testing.assert_allclose(deviation, x.astype(np.float64).std(0), rtol=1e-9)

    def test_scale(self):
        x, _ = make_data()
        x[:, 3], x[:, 4], x[:, 5] = 0, 0.1, 1e-20
        x[0, 5] = 2e-20
        scale = choosing.unit_variance_scale(*choosing.input_statistics(x))
        assert scale.dtype == np.float32
        assert scale[[3, 4]].tolist() == [1, 1]  # constants
        scaled = x.astype(np.float64) * scale
        np.testing.assert_allclose(np.delete(scaled.std(0), [3, 4]), 1, rtol=1e-6)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("form", ["dense", "csr"])
    def test_what_is_not_finite(self, value, form, tmp_path):
        x, _ = make_data()
        x[5, 7] = value
        with pytest.raises(ValueError, match="features must be finite, but input 7 is not"):
            choosing.input_statistics(FORMS[form](x, tmp_path))

    def test_log_odds(self):
        y = np.zeros((10, 3), bool)
        y[:4, 1] = y[:, 2] = True
        odds = np.array([0.5 / 10.5, 4.5 / 6.5, 10.5 / 0.5])
        result = choosing.log_odds(sp.csr_array(y))
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, np.log(odds), rtol=1e-6)


class TestSources:
    @pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
    @pytest.mark.parametrize("threads", [1, 2])
    @pytest.mark.parametrize("most_bytes", [2 * 7 * 4 * 40, 1 << 30])  # 7 labels, 7 instances
    def test_they_are_those_of_the_reference(self, form, threads, most_bytes, tmp_path):
        x, y = make_data()
        labels, seen = sp.csr_array(y), []
        chosen = choosing.choose_sources(
            form(x, tmp_path),
            labels,
            6,
            threads=threads,
            most_bytes=most_bytes,
            want_values=True,
            on_labels=seen.append,
        )
        known = y.any(0)
        expected = choose_reference.centroid_values(x, y)
        assert chosen.indices.dtype == np.uint16
        np.testing.assert_array_equal(chosen.indices[known], strongest(expected, 6)[known])
        values = np.take_along_axis(expected, chosen.indices.astype(int), 1)
        np.testing.assert_allclose(chosen.values, values, atol=1e-5)
        assert all(len(set(sources)) == 6 for sources in chosen.indices.tolist())
        assert seen == ([*range(7, 60, 7), 60] if most_bytes < 1 << 30 else [60])

    def test_a_scale_weighs_the_inputs(self):
        x, y = make_data()
        scale = np.linspace(0.1, 5, 40).astype(np.float32)
        chosen = choosing.choose_sources(x, sp.csr_array(y), 6, scale=scale)
        expected = strongest(choose_reference.centroid_values(x, y) * scale, 6)
        np.testing.assert_array_equal(chosen.indices[y.any(0)], expected[y.any(0)])
        assert chosen.values is None

    def test_a_share_is_random(self):
        x, y = make_data()
        one, other, again = (
            choosing.choose_sources(x, sp.csr_array(y), 8, random_share=0.3, seed=seed).indices
            for seed in (1, 2, 1)
        )
        np.testing.assert_array_equal(one, again)
        known = y.any(0)
        np.testing.assert_array_equal(one[known, :6], other[known, :6])
        assert (one[:, 6:] != other[:, 6:]).mean() > 0.9
        drawn = new_sources(np.arange(60 * 8), 40, 1).reshape(60, 8)[:, 6]
        is_free = [d not in sources for d, sources in zip(drawn, one[:, :6], strict=True)]
        np.testing.assert_array_equal(one[is_free & known, 6], drawn[is_free & known])

    def test_blocks_do_not_change_what_is_random(self):
        x, y = make_data()
        whole, parts = (
            choosing.choose_sources(
                x, sp.csr_array(y), 8, random_share=1, seed=4, most_bytes=most_bytes
            ).indices
            for most_bytes in (1 << 30, 2 * 9 * 4 * 40)
        )
        np.testing.assert_array_equal(whole, parts)

    def test_a_positive_counts_once_and_a_stored_zero_never(self):
        x, y = make_data()
        expected = choosing.choose_sources(x, sp.csr_array(y), 5).indices
        rows, labels = np.nonzero(y)
        twice = sp.coo_array(
            (
                np.append(np.ones(2 * len(rows)), 0),
                (np.r_[rows, rows, 0], np.r_[labels, labels, 30]),
            ),
            shape=y.shape,
        )
        for given in (twice, twice.tocsr(), sp.csc_matrix(y)):
            np.testing.assert_array_equal(choosing.choose_sources(x, given, 5).indices, expected)

    def test_wide_indices(self):
        rng = np.random.default_rng(0)
        x = sp.random_array((30, 70_000), density=1e-3, format="csr", dtype=np.float32, rng=rng)
        y = rng.random((30, 5)) < 0.3
        chosen = choosing.choose_sources(x, sp.csr_array(y), 4)
        assert chosen.indices.dtype == np.uint32
        expected = strongest(choose_reference.centroid_values(x.toarray(), y), 4)
        np.testing.assert_array_equal(chosen.indices, expected)

    def test_memory_of_a_map_is_given_back(self, tmp_path):
        x, y = make_data(4000, 256, 50)  # 4 MB
        mapped = as_map(x, tmp_path)

        def resident():
            lines = iter(Path("/proc/self/smaps").read_text().splitlines())
            next(line for line in lines if line.endswith("x.npy"))
            return int(next(line for line in lines if line.startswith("Rss:")).split()[1])

        assert mapped.sum() and resident() > 3000
        choosing.choose_sources(mapped, sp.csr_array(y), 4, most_bytes=1 << 20)
        assert resident() < 100
        np.testing.assert_array_equal(mapped, x)

    def test_changes_of_a_private_map_stay(self, tmp_path):
        x, y = make_data()
        mapped = as_map(x, tmp_path, "c")
        mapped[:] = 7
        choosing.choose_sources(mapped, sp.csr_array(y), 4, most_bytes=1 << 10)
        assert (mapped == 7).all()

    def test_planned_bytes_are_those_of_the_arrays(self):
        sums, by_label, result = 4 * 100 * 1000, 5 * 3000 + 12 * 1000, 2 * 4 * 1000
        in_memory = choosing.choosing_bytes(50, 100, 1000, 3000, 4, is_mapped=False)
        assert in_memory == sums + by_label + result
        mapped = choosing.choosing_bytes(50, 100, 1000, 3000, 4, is_mapped=True)
        assert mapped == in_memory + 50 * 100 * 4 + 24 * 3000
        values = choosing.choosing_bytes(
            50, 100, 1000, 3000, 4, is_mapped=False, atoms=200, wants_values=True
        )
        assert values == in_memory + 4 * 4 * 1000 + 4 * 1000 * (100 + 200)
        # Of many instances and few labels, the statistics need more.
        assert choosing.choosing_bytes(10**6, 100, 5, 50, 4, is_mapped=False) == 2 * (16 << 20)


X, Y = np.ones((4, 6), np.float32), sp.csr_array(np.eye(4, 5, dtype=bool))


def damaged(matrix, name, value):
    """The matrix with one number of its structure, or of its data, changed."""
    wrong = matrix.copy()
    getattr(wrong, name)[1] = value
    return wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            (
                {"labels": damaged(Y.asformat(form), name, value)},
                f"labels must be a valid {form.upper()} matrix",
            )
            for form, name in (("csr", "indices"), ("csr", "indptr"), ("csc", "indices"))
            for value in (77, 10**8, -1)
        ),
        ({"labels": damaged(Y.tocoo(), "col", 10**8)}, "labels must be a valid COO matrix"),
        ({"features": damaged(sp.csr_array(X), "indices", 77)}, "features must be a valid CSR"),
        ({"labels": damaged(Y.astype(float), "data", -1)}, "labels has the value -1.0; give pos"),
        ({"labels": damaged(Y.astype(float), "data", np.nan)}, "labels has the value nan"),
        ({"fan_in": True}, "fan_in must be a whole number, got True"),
        ({"features": X.tolist()}, "features must be a NumPy array or a SciPy CSR array, got list"),
        ({"features": X.astype(float)}, "features must be float32, got float64"),
        ({"features": np.ones((6, 4), np.float32).T}, "features must be C-contiguous"),
        ({"features": sp.csc_array(X)}, "sparse features must be CSR, got csc"),
        ({"features": X[0]}, r"features must be \[instances, inputs\] .* got \[6\]"),
        ({"features": X[:, :0]}, r"features must be \[instances, inputs\]"),
        ({"labels": Y.toarray()}, "labels must be a SciPy sparse array .*, got ndarray"),
        ({"labels": Y[:3]}, r"labels must be .* 4 instances as in features, got \[3, 5\]"),
        ({"labels": Y[:, :0]}, "labels must be at least 1, got 0"),
        ({"fan_in": 7}, "fan_in 7 is larger than the 6 inputs"),
        ({"fan_in": 0}, "fan_in must be at least 1, got 0"),
        ({"fan_in": 2.5}, "fan_in must be a whole number, got 2.5"),
        (
            {"method": "gradient"},
            "unknown method 'gradient' of choosing sources; there are centroid",
        ),
        ({"random_share": 1.1}, "random_share must be in 0..1, got 1.1"),
        ({"random_share": "half"}, "random_share must be in 0..1, got 'half'"),
        ({"random_share": float("nan")}, "random_share must be in 0..1, got nan"),
        ({"scale": np.ones(5)}, r"scale must be \[6\] \(the inputs\), got \[5\]"),
        ({"mean": np.array([0, 0, np.nan, 0, 0, 0])}, r"mean\[2\] is nan; all of mean must be"),
        ({"threads": -1}, r"threads must be in 0..1024, got -1"),
        ({"most_bytes": 0}, "most_bytes must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"features": X, "labels": Y, "fan_in": 2}
    choosing.choose_sources(**arguments)
    with pytest.raises(ValueError, match=message):
        choosing.choose_sources(**{**arguments, **change})
