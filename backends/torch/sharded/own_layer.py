"""`OwnLayer`: a rank's labels of one output layer, in the tensors of the module that holds them,
and how they are scored, trained and asked in both executions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fanin.backends.head_and_tail import ranks_of
from fanin.backends.interface import Execution
from fanin.backends.kinds import Part, index_dtype
from fanin.backends.setup import LayerSetup
from fanin.backends.torch.autograd import TorchAutograd, best_of
from fanin.backends.torch.ops import top_k
from fanin.backends.torch.sharded.spread import WholeBatch
from fanin.backends.torch.tools.index_buffer import as_bytes, index_type
from fanin.backends.torch.training_ops import run_step

# Where labels have an order. positions: where the label of each rank stands; label_ranks: the rank
# of the label at each position (`ranks_of`); sorted_ids: the id of the label of each rank.
_TABLES = ("positions", "label_ranks", "sorted_ids")


class OwnLayer:
    """setup: of this rank's labels of one output layer alone. part: the layer in the rank's model,
    and first: the label at its first position where labels have no order. first_weight: see
    `LabelRanges.first_weights`.

    The tensors belong to the module: `weights`, `bias`, and `indices` as bytes, or `starts` and
    `columns`, each with the layer's name before it where there are several layers. In the fused
    execution dense weights are [labels, inputs].
    """

    def __init__(
        self,
        module: nn.Module,
        setup: LayerSetup,
        part: Part,
        first: int,
        first_weight: int,
        execution: Execution,
    ) -> None:
        self._module, self._execution = module, execution
        self.setup, self.part, self.first = setup, part, first
        self._first_weight = first_weight
        self._is_transposed = execution == "fused" and part.kind.operations == "dense"

    def attribute(self, name: str) -> str:
        """What the module calls the tensor of one of the layer's arrays, or one of its moments."""
        name = self.part.inside(name).removeprefix("output.").replace(".", "_")
        name = "starts" if name == "rows" else name
        return name if self.part.name == "output" else f"{self.part.name}_{name}"

    def tensor(self, name: str) -> Tensor | None:
        tensor: Tensor | None = getattr(self._module, self.attribute(name), None)
        return tensor

    # Arrays as `LayerSetup` has them, and back ----------------------------------------------------

    def made(self, name: str, array: np.ndarray) -> Tensor:
        """The tensor of an array; may share its memory."""
        inside = self.part.inside(name)
        if inside == "output.rows":
            array = self.part.kind.to_kernel(inside, array, self.setup.labels).astype(np.int32)
        elif inside == "output.indices" or (inside == "output.columns" and self._has_bytes):
            array = array.astype(index_dtype(self.setup.inputs), copy=False)
            return as_bytes(torch.from_numpy(np.ascontiguousarray(array)))
        elif self._is_transposed and inside.startswith("output.weights"):
            array = array.T
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))

    def array(self, name: str) -> np.ndarray:
        """The array of a tensor, bfloat16 as int16; may be a view of it."""
        tensor = self.tensor(name)
        assert tensor is not None
        tensor, inside = tensor.detach().cpu(), self.part.inside(name)
        if inside == "output.indices" or (inside == "output.columns" and self._has_bytes):
            tensor = tensor.view(index_type(self.setup.inputs))
        array: np.ndarray
        if tensor.dtype == torch.bfloat16:
            array = tensor.view(torch.int16).numpy()
        else:
            array = tensor.numpy()
        if inside in ("output.rows", "output.columns"):
            return self.part.kind.from_kernel(inside, array, self.setup.labels)
        return array.T if self._is_transposed and inside.startswith("output.weights") else array

    @property
    def _has_bytes(self) -> bool:
        return self._execution == "fused"

    # Labels ---------------------------------------------------------------------------------------

    def make_tables(self, order: Tensor | None) -> None:
        """Take over `output.order` of this rank's model; None where labels have no order."""
        if order is None:
            return
        own = order.detach().cpu().numpy()
        label_ranks, sorted_ids = ranks_of(self.part, own)
        positions = np.argsort(label_ranks).astype(np.int32)
        for name, table in zip(_TABLES, (positions, label_ranks, sorted_ids), strict=True):
            made = torch.from_numpy(table.astype(np.int32)).to(order.device)
            self._module.register_buffer(self._table_name(name), made, persistent=False)

    def _table_name(self, name: str) -> str:
        return f"{self.part.name}_{name}"

    def _table(self, name: str) -> Tensor | None:
        return self._module._buffers.get(self._table_name(name))

    def label_ids(self) -> Tensor:
        """Ids of the labels, ascending, int64 [labels]."""
        sorted_ids, end = self._table("sorted_ids"), self.first + self.setup.labels
        if sorted_ids is not None:
            return sorted_ids.long()
        return torch.arange(self.first, end, device=self._known("bias").device)

    def positives(self, instances: Tensor, label_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Of the positives of a batch those of own labels, with their positions in the layer."""
        sorted_ids, positions = self._table("sorted_ids"), self._table("positions")
        if sorted_ids is None or positions is None:
            own = label_ids - self.first
            kept = (own >= 0) & (own < self.setup.labels)
            return instances[kept], own[kept]
        at = torch.searchsorted(sorted_ids, label_ids.int()).clamp_(max=self.setup.labels - 1)
        kept = sorted_ids[at] == label_ids
        return instances[kept], positions[at[kept]].long()

    def _by_label(self, scores: Tensor) -> Tensor:
        positions = self._table("positions")
        return scores if positions is None else scores.index_select(1, positions)

    # Numbers --------------------------------------------------------------------------------------

    def _known(self, name: str) -> Tensor:
        tensor = self.tensor(f"{self.part.name}.{name}")
        assert tensor is not None
        return tensor

    def _moments(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        m, v = (self.tensor(f"{self.part.name}.{name}.{moment}") for moment in "mv")
        return m, v

    def _sources(self) -> Tensor | None:
        """As the kernels read them."""
        name = "columns" if "output.columns" in self.setup.array_shapes() else "indices"
        tensor = self.tensor(f"{self.part.name}.{name}")
        return None if tensor is None else tensor.view(index_type(self.setup.inputs))

    def scores_by_position(self, features: Tensor) -> Tensor:
        """[batch, labels], differentiable, by the framework's operations."""
        output = TorchAutograd.outputs[type(self.part.kind)](self.setup, None)
        if "output.columns" in self.setup.array_shapes():
            columns = self._known("columns")
            if self._has_bytes:
                columns = columns.view(index_type(self.setup.inputs)).int()
            output.arrays["output.columns"] = columns
            output.arrays["starts"] = self._known("rows")
        elif self.part.kind.operations == "fanin":
            output.arrays["output.indices"] = self._sources()
        weights = self._known("weights").float()
        weights = weights.t() if self._is_transposed else weights
        scores: Tensor = output.scores(features, weights, self._known("bias"))
        return scores

    def scores(self, features: Tensor) -> Tensor:
        """The same in the order of `label_ids`."""
        return self._by_label(self.scores_by_position(features))

    def step(
        self,
        batch: WholeBatch,
        loss: str,
        optimizer: Sequence[float],
        learning_rate: float,
        step: int,
        seed: int,
        all_labels: int,
    ) -> tuple[Tensor, Tensor]:
        """A fused step: what these labels add to the loss, which is a mean over `all_labels`, and
        to its gradient by all features; an empty gradient where the batch wants none."""
        return run_step(
            batch.features,
            self._sources(),
            self.tensor(f"{self.part.name}.rows"),
            None,
            self._known("weights"),
            *self._moments("weights"),
            self._known("bias"),
            *self._moments("bias"),
            *self.positives(batch.positive_instances, batch.positive_labels),
            loss,
            optimizer,
            learning_rate,
            step,
            seed,
            batch.wants_grad,
            self.part.kind.group_size,
            all_labels,
            self._first_weight,
        )

    def best(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Ids and scores of the best labels of this layer, at most k, [batch, ...]."""
        k = min(k, self.setup.labels)
        if self._execution == "autograd":
            own, scores = best_of(self.scores(features), k)
            return self.label_ids()[own], scores
        scores, own = top_k(
            features,
            self._sources(),
            self.tensor(f"{self.part.name}.rows"),
            None,
            self._known("weights"),
            self._known("bias"),
            k,
            self._table("label_ranks"),
            self.part.kind.group_size,
        )
        return self.label_ids()[own], scores
