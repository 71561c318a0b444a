"""What a `Dataset` checks of its parts, and its identity."""

from __future__ import annotations

import numpy as np
import pytest
from dataset_files import csr, with_values
from scipy import sparse

from fanin.datasets import DataError, Dataset


def parts() -> dict:
    x, y = np.ones((3, 2), np.float32), csr([[0], [1, 3], []], 4)
    return {
        "name": "toy", "features": "ones", "train_x": x, "train_y": y, "test_x": x, "test_y": y,
        "synthetic": True, "source": "this test",
    }  # fmt: skip


def unsorted() -> sparse.csr_array:
    return sparse.csr_array((np.ones(2, bool), [3, 1], [0, 2, 2, 2]), (3, 4))


def out_of_range() -> sparse.csr_array:
    y = csr([[0], [1, 3], []], 4)
    y.indices[2] = 4
    return y


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"test_x": np.full((3, 2), np.nan, np.float32)},
            "test features: row 0, column 0 .* is nan",
        ),
        ({"train_x": np.ones((3, 2))}, "train features must be C-contiguous float32, not float64"),
        ({"train_x": np.ones((2, 3), np.float32).T}, "train features must be C-contiguous"),
        ({"train_x": np.ones(3, np.float32)}, r"train features must be \[instances, inputs\]"),
        (
            {"test_x": np.ones((2, 2), np.float32)},
            "test has 2 rows of features but 3 rows of labels",
        ),
        ({"test_x": np.ones((3, 5), np.float32)}, "2 inputs for training but 5 for testing"),
        ({"test_y": csr([[0], [1], []], 5)}, "4 labels for training but 5 for testing"),
        ({"train_y": unsorted()}, "train labels: indices must be sorted"),
        ({"train_y": out_of_range()}, "train labels: label 4 is out of range: ids are 0 to 3"),
        (
            {"train_y": csr([[0], [1, 1], []], 4)},
            "train labels: indices must be sorted, none twice",
        ),
        ({"train_y": csr([[0], [1], []], 4).astype(float)}, "train labels: must be bool or int8"),
        ({"train_y": csr([[0], [1], []], 4).tocsc()}, "must be a scipy.sparse.csr_array"),
        ({"label_names": ["a", "b"]}, "2 label names for 4 labels"),
        (
            {"test_x": np.ones((0, 2), np.float32), "test_y": csr([], 4)},
            "test labels: 0 instances: at least one is needed",
        ),
        ({"train_x": np.ones((3, 0), np.float32)}, "train features: 0 inputs"),
        ({"train_y": csr([[], [], []], 0)}, "train labels: 0 labels"),
        ({"train_y": csr([[], [], []], 4)}, "train labels: no instance has a label"),
        ({"test_left_out": csr([[0], []], 4)}, r"test pairs left out are of \(2, 4\) instances"),
        ({"train_left_out": csr([[0, 0], [], []], 4)}, "train pairs left out: indices must be"),
    ],
)
def test_dataset_checks_its_parts(change: dict, message: str) -> None:
    Dataset(**parts())
    with pytest.raises(DataError, match=message) as caught:
        Dataset(**(parts() | change))
    assert "toy (this test)" in str(caught.value)


def words(rows: list[dict[int, float]] | None = None, columns: int = 3) -> sparse.csr_array:
    return with_values(rows or [{0: 1.0, 2: 0.5}, {}, {1: -2.0}], columns)


def changed_words(**arrays: object) -> sparse.csr_array:
    """`words` with some of its arrays replaced, which SciPy does not check."""
    x = words()
    for name, array in arrays.items():
        setattr(x, name, array)
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            words([{0: 1.0}, {2: np.inf}, {}]),
            r"row 1, column 2 \(counted from 0\) is inf: .* finite",
        ),
        (words([{0: 1.0}, {}, {1: np.nan}]), "row 2, column 1 .* is nan: features must be finite"),
        (words([{0: 1.0}, {}, {1: 0.0}]), r"row 2, column 1 .* is 0.0: .*x\.eliminate_zeros"),
        (words().astype(float), r"must be float32, not float64: x\.astype"),
        (words().tocsc(), "must be a NumPy array or a scipy.sparse.csr_array, not csc_array"),
        (sparse.csr_matrix(words()), "not csr_matrix"),
        (changed_words(indices=np.array([2, 0, 1])), "indices must be sorted, none twice"),
        (changed_words(indices=np.array([0, 0, 1])), "indices must be sorted, none twice"),
        (changed_words(indices=np.array([0, 3, 1])), "input 3 is out of range: ids are 0 to 2"),
        (changed_words(indices=np.array([-1, 0, 1])), "input -1 is out of range"),
        (changed_words(indptr=np.array([0, 3, 2, 3])), "no valid CSR matrix .indptr must rise"),
        (changed_words(indptr=np.array([0, 2, 2, 9])), "no valid CSR matrix .Last value"),
        (words(columns=0, rows=[{}, {}, {}]), "0 inputs: at least one is needed"),
        (words(columns=4), "4 inputs for training but 3 for testing"),
        (words([{0: 1.0}]), "train has 1 rows of features but 3 rows of labels"),
        (np.ones((3, 3), np.float32), "features of one split are dense"),
    ],
)
def test_sparse_features_are_checked(x: sparse.csr_array, message: str) -> None:
    fitting = parts() | {"train_x": words(), "test_x": words()}
    data = Dataset(**fitting)
    assert data.sparse_features and data.inputs == 3 and data.train_instances == 3
    with pytest.raises(DataError, match=message) as caught:
        Dataset(**(fitting | {"train_x": x}))
    assert "toy (this test)" in str(caught.value)


@pytest.mark.parametrize("block", [8, 16 << 20])
def test_identity_of_sparse_features(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    whole = Dataset(**(parts() | {"train_x": words(), "test_x": words()})).identity
    monkeypatch.setattr("fanin.datasets.dataset.BLOCK_BYTES", block)
    others = [
        [{0: 1.0, 1: 0.5}, {}, {1: -2.0}],
        [{0: 1.0}, {2: 0.5}, {1: -2.0}],
        [{0: 1.0, 2: 0.25}, {}, {1: -2.0}],
    ]
    made = [words(), words([{0: 1.0, 2: 0.5}, {}, {1: -2.0}]), *map(words, others)]
    made.append(changed_words(indices=np.array([0, 2, 1], np.int64)))  # of another type, but equal
    first, same, *different, wide = (
        Dataset(**(parts() | {"train_x": x, "test_x": words()})).identity for x in made
    )
    assert first == same == wide == whole
    assert len({first, *different}) == 4
    dense = parts() | {"train_x": words().toarray(), "test_x": words().toarray()}
    assert Dataset(**dense).identity not in {first, *different}


def test_identity_depends_on_labels_and_features() -> None:
    first = Dataset(**parts()).identity
    assert first == Dataset(**parts()).identity
    assert len(first) == 64
    moved = csr([[0], [1, 2], []], 4)
    nudged = np.nextafter(np.ones((3, 2), np.float32), np.float32(2))
    changes = [{"train_y": moved}, {"test_y": moved}, {"train_x": nudged}, {"test_x": nudged}]
    changes += [{"train_left_out": moved}, {"test_left_out": moved}]
    assert len({first, *(Dataset(**(parts() | change)).identity for change in changes)}) == 7
