"""The training stream: every instance once an epoch, the buffer's order, labels, dropout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from fanin.datasets import Batch, Batches, evaluation_blocks
from fanin.datasets.batches import shuffled_order


def toy(instances: int = 101, inputs: int = 7, labels: int = 50):
    """Features whose first column is the instance's number, and 0 to 5 labels each."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((instances, inputs)).astype(np.float32)
    x[:, 0] = np.arange(instances)
    y = sparse.random_array((instances, labels), density=0.05, rng=rng).tocsr().astype(bool)
    y.sort_indices()
    assert 0 in np.diff(y.indptr)
    return x, y


def instances_of(batch: Batch) -> list[int]:
    return batch.features[:, 0].astype(int).tolist()


def naive_order(count: int, buffer: int, rng: np.random.Generator) -> list[int]:
    """The shuffle buffer as one would describe it, instance by instance."""
    waiting = list(range(min(buffer, count)))
    out = []
    draws = rng.integers(len(waiting), size=count - len(waiting)) if count > len(waiting) else []
    for number, position in enumerate(draws):
        out.append(waiting[position])
        waiting[position] = len(waiting) + number
    return out + rng.permutation(waiting).tolist()


@pytest.mark.parametrize(
    ("count", "buffer"), [(0, 5), (1, 5), (5, 5), (9, 1), (200, 7), (300, 299)]
)
def test_order_is_that_of_a_shuffle_buffer(count: int, buffer: int) -> None:
    got = shuffled_order(count, buffer, np.random.default_rng(1)).tolist()
    assert got == naive_order(count, buffer, np.random.default_rng(1))
    assert sorted(got) == list(range(count))


def test_buffer_bounds_how_early_an_instance_comes() -> None:
    order = shuffled_order(10_000, 100, np.random.default_rng(0))
    assert (order <= np.arange(10_000) + 99).all()
    assert (order > np.arange(10_000)).any()
    whole = shuffled_order(10_000, 50_000, np.random.default_rng(0))
    assert abs(np.corrcoef(whole, np.arange(10_000))[0, 1]) < 0.05


def test_epoch_holds_every_instance_once() -> None:
    x, y = toy()
    batches = Batches(x, y, batch_size=32, seed=5, shuffle_buffer=20)
    epoch = list(batches.epoch(0))
    assert len(epoch) == len(batches) == 4
    assert [len(batch.features) for batch in epoch] == [32, 32, 32, 5]
    assert sorted(i for batch in epoch for i in instances_of(batch)) == list(range(101))


def test_batch_is_that_part_of_the_data() -> None:
    x, y = toy()
    dense = y.toarray()
    for batch in Batches(x, y, batch_size=10, seed=2).epoch(1):
        chosen = instances_of(batch)
        assert np.array_equal(batch.features, x[chosen])
        expected_rows, expected_labels = np.nonzero(dense[chosen])
        assert np.array_equal(batch.positive_instances, expected_rows)
        assert np.array_equal(batch.positive_labels, expected_labels)
        assert (
            batch.features.dtype,
            batch.positive_instances.dtype,
            batch.positive_labels.dtype,
        ) == (
            np.float32,
            np.int32,
            np.int64,
        )
        assert batch.features.flags.c_contiguous
        assert batch.features.flags.writeable


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_stream_depends_on_seed_and_epoch_only(dropout: float) -> None:
    x, y = toy()

    def stream(seed: int, epoch: int) -> list[np.ndarray]:
        return [b.features for b in Batches(x, y, 10, dropout, seed).epoch(epoch)]

    def equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
        return all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))

    resumed = Batches(x, y, 10, dropout, seed=4)
    list(resumed.epoch(0))
    assert equal(stream(4, 3), [b.features for b in resumed.epoch(3)])
    assert not equal(stream(4, 3), stream(4, 2))
    assert not equal(stream(4, 3), stream(5, 3))


def test_dropout_changes_neither_order_nor_labels() -> None:
    x, y = toy()
    x[:, 1:] = 1.0
    for plain, dropped in zip(
        Batches(x, y, 32, 0.0, seed=1).epoch(0),
        Batches(x, y, 32, 0.5, seed=1).epoch(0),
        strict=True,
    ):
        kept = dropped.features != 0
        assert np.array_equal(dropped.features[kept], 2 * plain.features[kept])
        assert np.array_equal(plain.positive_instances, dropped.positive_instances)
        assert np.array_equal(plain.positive_labels, dropped.positive_labels)


def test_dropout_rate_scale_and_independence() -> None:
    x, y = np.ones((640, 200), np.float32), sparse.csr_array((640, 3), dtype=bool)
    epoch = list(Batches(x, y, 64, dropout=0.1, seed=0).epoch(0))
    masks = [batch.features != 0 for batch in epoch]
    assert abs(np.mean(masks) - 0.9) < 0.005
    assert np.unique(np.stack([batch.features for batch in epoch])).tolist() == pytest.approx(
        [0.0, 1 / 0.9], rel=1e-6
    )
    assert not np.array_equal(masks[0], masks[1])
    assert len(epoch[0].positive_instances) == len(epoch[0].positive_labels) == 0
    assert (x == 1).all()  # the data themselves do not change


@pytest.fixture
def words() -> sparse.csr_array:
    """As many instances as `toy` has, the third without a word; values tell the places."""
    x = sparse.random_array((101, 40), density=0.2, rng=np.random.default_rng(4), format="csr")
    x.data[:] = 1 + np.arange(x.nnz)
    x.data[x.indptr[2] : x.indptr[3]] = 0
    x.eliminate_zeros()
    x.sort_indices()
    return x.astype(np.float32)


def test_sparse_batches_are_the_dense_ones(words: sparse.csr_array) -> None:
    _, y = toy()
    before = words.copy()
    for sparse_batch, dense_batch in zip(
        Batches(words, y, 10, seed=2).epoch(3),
        Batches(words.toarray(), y, 10, seed=2).epoch(3),
        strict=True,
    ):
        x = sparse_batch.features
        assert isinstance(x, sparse.csr_array) and x.dtype == np.float32
        assert x.has_canonical_format
        assert np.array_equal(x.toarray(), dense_batch.features)
        assert np.array_equal(sparse_batch.positive_labels, dense_batch.positive_labels)
        x.data[:] = 0  # a copy
    assert np.array_equal(words.data, before.data)


def test_dropout_of_words(words: sparse.csr_array) -> None:
    _, y = toy()

    def stream(dropout: float, seed: int = 1, epoch: int = 0) -> list[sparse.csr_array]:
        return [b.features for b in Batches(words, y, 32, dropout, seed).epoch(epoch)]

    whole = stored = 0
    for plain, dropped in zip(stream(0.0), stream(0.25), strict=True):
        dropped.check_format()
        assert dropped.has_canonical_format and (dropped.data > 0).all()
        kept = dropped.toarray()
        at = kept != 0
        assert np.allclose(kept[at], plain.toarray()[at] / 0.75, rtol=1e-6)
        whole, stored = whole + plain.nnz, stored + dropped.nnz
    assert abs(stored / whole - 0.75) < 0.05

    assert [batch.nnz for batch in stream(0.999999)] == [0, 0, 0, 0]


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_what_is_dropped_depends_on_seed_epoch_and_step(form) -> None:
    """Of instances that are all alike, so that their order does not matter."""
    x, y = form(np.ones((64, 50), np.float32)), sparse.csr_array((64, 3), dtype=bool)

    def dropped(seed: int, epoch: int, step: int) -> bytes:
        batches = list(Batches(x, y, 32, 0.5, seed).epoch(epoch))
        features = batches[step].features
        return np.asarray(features.todense() if sparse.issparse(features) else features).tobytes()

    first = dropped(1, 0, 0)
    assert first == dropped(1, 0, 0)
    assert len({first, dropped(2, 0, 0), dropped(1, 1, 0), dropped(1, 0, 1)}) == 4


def test_sparse_evaluation_blocks(words: sparse.csr_array) -> None:
    blocks = list(evaluation_blocks(words, 40))
    assert [block.shape for block in blocks] == [(40, 40), (40, 40), (21, 40)]
    assert np.array_equal(np.concatenate([b.toarray() for b in blocks]), words.toarray())
    blocks[0].data[:] = 0
    assert (words.data != 0).all()


def test_memory_map(tmp_path: Path) -> None:
    x, y = toy()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for a, b in zip(
        Batches(x, y, dropout=0.2).epoch(0), Batches(mapped, y, dropout=0.2).epoch(0), strict=True
    ):
        assert np.array_equal(a.features, b.features)
    blocks = list(evaluation_blocks(mapped, 40))
    assert [len(block) for block in blocks] == [40, 40, 21]
    assert np.array_equal(np.concatenate(blocks), x)
    for block in blocks:
        assert type(block) is np.ndarray
        assert block.dtype == np.float32
        assert block.flags.c_contiguous
        assert block.flags.writeable


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"dropout": -0.1}, "dropout must be at least 0"),
        ({"seed": -1}, "seed must not be negative: -1"),
        ({"shuffle_buffer": 0}, "shuffle_buffer must be at least 1, not 0"),
    ],
)
def test_arguments_that_make_no_sense(options: dict, message: str) -> None:
    x, y = toy()
    with pytest.raises(ValueError, match=message):
        Batches(x, y, **options)


def test_rows_must_agree() -> None:
    x, y = toy()
    with pytest.raises(ValueError, match="must have the same rows"):
        Batches(x[:-1], y)
    with pytest.raises(ValueError, match="size must be at least 1"):
        next(evaluation_blocks(x, 0))
