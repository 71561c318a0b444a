"""Prediction in NumPy and libfanin: a trained model needs no framework to be asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from fanin.backends.arrays import check_arrays
from fanin.backends.features import FeatureTransform
from fanin.backends.head_and_tail import best_of_parts, ranks_of
from fanin.backends.interface import evaluation_block
from fanin.backends.kinds import ORDER, Dense, FixedFanIn, GroupedFanIn, Part, index_dtype
from fanin.backends.label_order import LabelOrder
from fanin.backends.passes import check_numbers, check_sparse
from fanin.backends.setup import LayerSetup
from fanin.backends.sparse import by_instance
from fanin.backends.words.setup import OneVersusRestSetup
from fanin.kernels import dense_forward, fan_in_linear, sparse_forward, top_k
from fanin.kernels.threads import within_share

# Scores of so many bytes are held at once, where those of all labels are wanted.
_SCORES_BYTES = 64 << 20

# What a model may be.
AnySetup = LayerSetup | OneVersusRestSetup


class TopK(NamedTuple):
    """The k best labels of each instance, best first: ids int64 and scores float32, both
    [instances, k]. Equal scores stand in the order of their ids."""

    ids: np.ndarray
    scores: np.ndarray


class BlockPredictor(ABC):
    """A trained model that predicts block by block; threads: CPU threads, 0 for all. Each kind of
    model has a subclass, which predicts the instances of one block."""

    def __init__(self, setup: AnySetup, threads: int) -> None:
        self.setup = setup
        self.threads = within_share(threads)

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """The model's arrays by their names; views where that is possible."""

    @abstractmethod
    def _top_k(self, features: Any, k: int) -> TopK:
        """Of one block, in the form that the model reads."""

    @abstractmethod
    def _scores(self, features: Any) -> np.ndarray:
        """Of one block and all labels, float32."""

    def top_k(self, x: Any, k: int) -> TopK:
        """The k best labels of each instance. x: finite numbers [instances, inputs], dense or
        SciPy sparse; worked on in blocks, so that no other array of all instances is made.
        ValueError naming what is wrong, or where k is not in 1..labels."""
        self.setup.check_k(k)
        x = self._known(x)
        best = TopK(np.empty((x.shape[0], k), np.int64), np.empty((x.shape[0], k), np.float32))
        for block, features in self._blocks(x, self._block_size()):
            best.ids[block], best.scores[block] = self._top_k(features, k)
        return best

    def scores(self, x: Any) -> Iterator[tuple[slice, np.ndarray]]:
        """Scores of all labels, float32 [block, labels], for one block of instances after the
        other, with the instances of each; x as in `top_k`."""
        x = self._known(x)
        size = max(1, _SCORES_BYTES // (4 * self.setup.labels))
        for block, features in self._blocks(x, min(size, self._block_size())):
            yield block, self._scores(features)

    def _block_size(self) -> int:
        return evaluation_block(self.setup.output_inputs)

    def _known(self, x: Any) -> Any:
        is_sparse = bool(sp.issparse(x))  # as a condition, it would hide all but the base class
        check_numbers("x", x)
        if is_sparse:
            check_sparse("x", x)
            x = sp.csr_array(x)
        else:
            x = np.asarray(x)
        if x.ndim != 2 or x.shape[1] != self.setup.inputs:
            raise ValueError(
                f"x must be [instances, {self.setup.inputs}] (the inputs), got {list(x.shape)}"
            )
        if x.dtype.kind not in "biuf":
            raise ValueError(f"x must be numbers, got {x.dtype}")
        return x

    def _blocks(self, x: Any, size: int) -> Iterator[tuple[slice, Any]]:
        """The instances, block by block, in the form that the model reads."""
        for first in range(0, x.shape[0], size):
            block = slice(first, min(first + size, x.shape[0]))
            yield block, self._read(x, block)

    def _read(self, x: Any, block: slice) -> Any:
        """Some instances in the form that the model reads, and finite."""
        part = x[block]
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            if self.setup.sparse_features:
                part = sp.csr_array(part, dtype=np.float32)
                part.sum_duplicates()
                values = part.data
            else:
                dense = part.toarray() if isinstance(part, sp.csr_array) else part
                part = values = np.array(dense, np.float32, order="C", subok=False)
        if not (finite := np.isfinite(values)).all():
            at = int(finite.argmin())
            instance = at // self.setup.inputs
            if isinstance(part, sp.csr_array):
                instance = int(np.searchsorted(part.indptr, at, "right")) - 1
            raise ValueError(
                f"x[{block.start + instance}] has the value {values.flat[at]} (as float32); all "
                "must be finite"
            )
        return part


class Predictor(BlockPredictor):
    """A trained model of a `LayerSetup`, as libfanin reads it.

    setup: with a dense or a fixed fan-in output layer. arrays: of `LayerSetup.array_shapes`; not
    copied where they have the form already. threads: CPU threads, 0 for all. ValueError for arrays
    that do not make up such a model.
    """

    setup: LayerSetup

    def __init__(
        self, setup: LayerSetup, arrays: Mapping[str, np.ndarray], threads: int = 0
    ) -> None:
        for part in setup.parts:
            if not isinstance(part.kind, Dense | FixedFanIn | GroupedFanIn):
                raise ValueError(f"output layers {type(part.kind).__name__} have no predictor")
        check_arrays(setup, arrays)
        super().__init__(setup, threads)
        self._transform = FeatureTransform.from_arrays(arrays)
        self._order = LabelOrder.of(arrays[ORDER]) if ORDER in arrays else None
        self._inside_arrays: dict[str, np.ndarray] = {
            name: self._inside(name, arrays[name])
            for name in setup.array_shapes()
            if name not in self._transform.arrays
        }
        self._ranks = {
            part.name: ranks_of(part, self._inside_arrays[ORDER])
            for part in setup.parts
            if len(setup.parts) > 1
        }

    def _is_transposed(self, name: str) -> bool:
        """Dense weights are [units, inputs] in the kernels, but for the rows of words."""
        if name == "intermediate.weights":
            return not self.setup.sparse_features
        return any(
            name == part.weights and isinstance(part.kind, Dense) for part in self.setup.parts
        )

    def _inside(self, name: str, array: np.ndarray) -> np.ndarray:
        if name == ORDER:
            return np.ascontiguousarray(array, np.int32)
        if name in self.setup.index_arrays():
            return np.ascontiguousarray(array, index_dtype(self.setup.output_inputs))
        inside = array.T if self._is_transposed(name) else array
        return np.ascontiguousarray(inside, np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by their names in `LayerSetup.array_shapes`; views where that is possible."""
        arrays = {
            name: array.T if self._is_transposed(name) else array
            for name, array in self._inside_arrays.items()
        }
        named = arrays | self._transform.arrays
        return {name: named[name] for name in self.setup.array_shapes()}

    def _top_k(self, features: Any, k: int) -> TopK:
        outputs = self._output_inputs(features)
        lists = [self._best_of(part, outputs, min(k, part.labels)) for part in self.setup.parts]
        return TopK(*(lists[0] if len(lists) == 1 else best_of_parts(lists, k)))

    def _best_of(self, part: Part, outputs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and scores of the best labels of one output layer."""
        label_ids, sorted_ids = self._inside_arrays.get(ORDER), None
        if len(self.setup.parts) > 1:
            label_ids, sorted_ids = self._ranks[part.name]
        scores, ids = top_k(
            outputs,
            self._inside_arrays[part.weights],
            self._inside_arrays[part.bias],
            k,
            indices=self._inside_arrays.get(part.outside("output.indices")),
            label_ids=label_ids,
            group_size=part.kind.group_size,
            threads=self.threads,
        )
        return ids if sorted_ids is None else sorted_ids[ids], scores

    def _scores(self, features: Any) -> np.ndarray:
        outputs = self._output_inputs(features)
        scores = [self._scores_of(part, outputs) for part in self.setup.parts]
        whole = scores[0] if len(scores) == 1 else np.concatenate(scores, axis=1)
        return self._order.by_label(whole) if self._order else whole

    def _scores_of(self, part: Part, outputs: np.ndarray) -> np.ndarray:
        weights = self._inside_arrays[part.weights]
        bias = self._inside_arrays[part.bias]
        indices = self._inside_arrays.get(part.outside("output.indices"))
        if indices is None:
            return dense_forward(outputs, weights, bias, threads=self.threads)
        size = part.kind.group_size
        return fan_in_linear(outputs, indices, weights, bias, group_size=size, threads=self.threads)

    def _output_inputs(self, features: Any) -> np.ndarray:
        read = self._transform.apply(features, self.threads)
        if not self.setup.intermediate:
            return np.ascontiguousarray(read)
        weights, bias = (
            self._inside_arrays["intermediate.weights"],
            self._inside_arrays["intermediate.bias"],
        )
        if self.setup.sparse_features:
            words = by_instance(read)
            return sparse_forward(*words, weights, bias, relu=True, threads=self.threads)
        return dense_forward(
            np.ascontiguousarray(read), weights, bias, relu=True, threads=self.threads
        )
