"""The autograd execution in PyTorch.

Everything here is torch's own except the fixed fan-in op. Dense and unstructured outputs are the
baselines, so how torch does them is the result and nothing about them is improved.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, SupportsFloat

import numpy as np
import torch
from torch import Tensor

from fanin.backends.autograd import AutogradExecutor, Output
from fanin.backends.auxiliary import CLUSTER_LAYER, AuxiliaryStep
from fanin.backends.interface import Features, TrainingBatch
from fanin.backends.kinds import ORDER, Dense, FixedFanIn, GroupedFanIn, Part, Unstructured
from fanin.backends.optimizer import ADAM_BETAS, ADAM_EPSILON, Optimizer, is_decayed
from fanin.backends.setup import LayerSetup
from fanin.backends.sparse import ByInstance, tensors
from fanin.backends.torch.device import TorchDevice
from fanin.backends.torch.linear import fan_in_linear
from fanin.backends.torch.losses import LOSSES
from fanin.backends.torch.ops import rewire, top_k
from fanin.backends.trainer import Trained

# torch says so once per process of any CSR tensor; the baseline uses them knowingly.
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)


class TorchOutput(Output):
    """Takes the best labels from the scores of all."""

    device: TorchDevice

    def best(
        self, features: Tensor, weights: Tensor, bias: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        """Ids of the best labels and their scores, [batch, k] each."""
        return best_of(self.scores(features, weights, bias), k)


class DenseOutput(TorchOutput):
    """torch's own matrix product."""

    def scores(self, features: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        return torch.addmm(bias, features, weights)


class FanInOutput(TorchOutput):
    """fanin's own op, which is asked for the best labels without making its scores. Where labels
    have an order, scores are by position."""

    def scores(self, features: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        size = self.setup.output.group_size
        return fan_in_linear(features, self.sources(), weights, bias, group_size=size)

    def best(
        self, features: Tensor, weights: Tensor, bias: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        numbers = (k, self.arrays.get(ORDER), self.setup.output.group_size)
        scores, ids = top_k(features, self.sources(), None, None, weights, bias, *numbers)
        return ids, scores

    def sources(self) -> Tensor:
        return self.arrays["output.indices"]


class SparseOutput(TorchOutput):
    """torch's own sparse operations."""

    def set_connections(self, name: str, array: np.ndarray) -> None:
        super().set_connections(name, array)
        if name == "output.rows":
            self.arrays["starts"] = csr_starts(self.arrays[name], self.setup.labels)

    def scores(self, features: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        starts, columns = self.arrays["starts"], self.arrays["output.columns"]
        product = SparseProduct.apply(features, weights, starts, columns, self.setup.labels)
        return product + bias

    def sources(self) -> Tensor:
        return self.arrays["output.columns"].view(torch.uint32)


class SparseProduct(torch.autograd.Function):
    """features [batch, inputs] times CSR weights [labels, inputs]: torch's own sparse operations.

    torch's built-in gradient of this product makes the dense [labels, inputs] matrix first;
    `sampled_addmm`, also torch's own, computes it at the connections only.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weights: Tensor, starts: Tensor, columns: Tensor, labels: int
    ) -> Tensor:
        matrix = torch.sparse_csr_tensor(
            starts, columns, weights, (labels, features.shape[1]), check_invariants=False
        )
        ctx.save_for_backward(features, matrix)
        product: Tensor = torch.sparse.mm(matrix, features.t())
        return product.t()

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        features, matrix = ctx.saved_tensors
        grad_features = grad_weights = None
        if ctx.needs_input_grad[0]:
            grad_features = torch.sparse.mm(matrix.t(), grad_scores.t()).t()
        if ctx.needs_input_grad[1]:
            grad_weights = torch.sparse.sampled_addmm(
                matrix, grad_scores.t(), features, beta=0.0
            ).values()
        return grad_features, grad_weights, None, None, None


class TorchAutograd(AutogradExecutor):
    """See `fanin.backends.autograd.AutogradExecutor`."""

    outputs: ClassVar = {
        Dense: DenseOutput,
        FixedFanIn: FanInOutput,
        GroupedFanIn: FanInOutput,
        Unstructured: SparseOutput,
    }
    most_scores = 1 << 25
    device: TorchDevice

    def start(self, trained: Mapping[str, Trained]) -> None:
        super().start(trained)
        for each in trained.values():
            each.values.requires_grad_()
        lazily = self.setup.lazily_trained
        self._lazily_trained = [trained[name] for name in trained if name in lazily]
        others = {name: trained[name] for name in trained if name not in lazily}
        beside = {name: others.pop(name) for name in CLUSTER_LAYER if name in others}
        self._optimized = [self._optimized_by_torch(some) for some in (others, beside) if some]
        self._torch_steps = 0

    def _optimized_by_torch(
        self, trained: Mapping[str, Trained]
    ) -> tuple[torch.optim.Optimizer, list[Tensor]]:
        """An optimizer that trains these arrays, and which of them decay. Its states are as torch
        would make them at the first step; made here so that the moments are those of the trainer.
        """
        decayed = [each.values for name, each in trained.items() if is_decayed(name)]
        parameters = [each.values for each in trained.values()]
        optimizer: torch.optim.Optimizer
        if self.optimizer.kind == "adam":
            optimizer = torch.optim.Adam(parameters, betas=ADAM_BETAS, fused=True)
            for each in trained.values():
                optimizer.state[each.values] = {
                    "step": torch.zeros((), dtype=torch.float32, device=self.device.torch),
                    "exp_avg": each.m,
                    "exp_avg_sq": each.v,
                }
            return optimizer, decayed
        momentum = self.optimizer.momentum if self.optimizer.keeps else 0.0
        optimizer = torch.optim.SGD(parameters, momentum=momentum)
        for each in trained.values():
            if each.m is not None:
                optimizer.state[each.values] = {"momentum_buffer": each.m}
        return optimizer, decayed

    def step(
        self,
        batch: TrainingBatch,
        learning_rate: float,
        step: int,
        auxiliary: AuxiliaryStep | None = None,
    ) -> SupportsFloat:
        outputs = self.output_features(tensors(batch.features, self.device))
        loss = self.label_loss(outputs, batch)
        whole, rates = loss, [learning_rate]
        if auxiliary:
            whole = loss + self._auxiliary_loss(outputs, auxiliary)
            rates.append(learning_rate * auxiliary.rate)
        for optimizer, _ in self._optimized:
            optimizer.zero_grad(set_to_none=True)
        whole.backward()
        self._update(rates, step)
        return self.device.number(self.reported(loss))

    def label_loss(self, outputs: Tensor, batch: TrainingBatch) -> Tensor:
        """The loss of the labels, from what the output layer reads."""
        return LOSSES[self.setup.loss](
            self.scores(outputs),
            self.device.tensor(batch.positive_instances).long(),
            self.device.tensor(batch.positive_labels),
        )

    def reported(self, loss: Tensor) -> Tensor:
        """The loss of a step, from that of the labels."""
        return loss

    def _auxiliary_loss(self, outputs: Tensor, auxiliary: AuxiliaryStep) -> Tensor:
        """Of the layer over clusters, which learns by the whole loss. Only the gradient that the
        outputs get is multiplied by the weight."""
        outputs = outputs.view_as(outputs)
        outputs.register_hook(lambda grad: grad * auxiliary.weight)
        weights, bias = self.values("auxiliary")
        loss: Tensor = LOSSES["bce"](
            torch.addmm(bias, outputs, weights),
            self.device.tensor(auxiliary.positive_instances).long(),
            self.device.tensor(auxiliary.positive_clusters),
        )
        return loss

    def _update(self, rates: Sequence[float], step: int) -> None:
        """A step of each optimizer that has a rate: the second one only with an auxiliary loss."""
        # torch counts by itself; a loaded state goes on elsewhere.
        has_counted, self._torch_steps = self._torch_steps == step - 1, step
        for (optimizer, decayed), rate in zip(self._optimized, rates, strict=False):
            self._decay(decayed, rate)
            (group,) = optimizer.param_groups
            group["lr"] = rate
            if self.optimizer.kind == "adam":
                # torch adds epsilon after the bias correction of v, Keras (and the paper) before
                # it.
                group["eps"] = ADAM_EPSILON / (1 - ADAM_BETAS[1] ** step) ** 0.5
                if not has_counted:
                    for state in optimizer.state.values():
                        state["step"].fill_(step - 1)
            optimizer.step()
        for each in self._lazily_trained:
            update_lazily(each, self.optimizer, rates[0], step)

    @torch.no_grad()
    def _decay(self, decayed: list[Tensor], learning_rate: float) -> None:
        """L2 and weight decay, both of the weights before the step."""
        if self.optimizer.l2:
            for values in decayed:
                assert values.grad is not None
                values.grad.add_(values, alpha=self.optimizer.l2)
        if self.optimizer.weight_decay:
            for values in decayed:
                values.sub_(values, alpha=learning_rate * self.optimizer.weight_decay)

    def forward(self, features: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        return torch.addmm(bias, features, weights).relu_()

    def sparse_forward(self, features: ByInstance, weights: Tensor, bias: Tensor) -> Tensor:
        sums = torch.nn.functional.embedding_bag(
            features.columns,
            weights,
            # In the type of the columns, as torch requires.
            features.starts.int(),
            mode="sum",
            sparse=True,  # the gradient has only the rows of words that occur
            per_sample_weights=features.values,
            include_last_offset=True,
        )
        return (sums + bias).relu_()

    def joined(self, scores: list[Tensor]) -> Tensor:
        return torch.cat(scores, 1)

    def best(self, features: Features, k: int) -> np.ndarray:
        return self.best_with_scores(features, k)[0]

    @torch.inference_mode()
    def best_with_scores(self, features: Features, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the best labels of a block of instances and their scores, [instances, k] each."""
        outputs = self.output_features(tensors(features, self.device))
        if len(self.parts) > 1:
            ids, scores = best_of(self.scores(outputs)[:, self.positions], k)
        else:
            ids, scores = self.output.best(outputs, *self.values("output"), k)
        return ids.cpu().numpy(), scores.cpu().numpy()

    def rewire(self, part: Part, fraction: float, seed: int) -> int | None:
        sources, weights = self.output_of(part).sources(), self.trained[part.weights]
        if sources is None:
            return None
        state, inputs = (weights.values.detach(), weights.m, weights.v), self.setup.output_inputs
        return rewire(sources, *state, inputs, fraction, seed)


@torch.no_grad()
def update_lazily(trained: Trained, optimizer: Optimizer, learning_rate: float, step: int) -> None:
    """The optimiser on the rows in the sparse gradient, which is dropped afterwards. All other
    rows, and their moments, stay as they are, without any decay. `torch.optim.SparseAdam` does the
    same, but has neither row moments nor decay."""
    (beta1, beta2), values = ADAM_BETAS, trained.values
    gradient = values.grad.coalesce()
    values.grad = None
    (words,), change = gradient.indices(), gradient.values()
    rows = values.detach()[words] if optimizer.decays else None
    if rows is not None:
        change.add_(rows, alpha=optimizer.l2)
    size = learning_rate
    if optimizer.kind == "momentum":
        change = trained.m[words].mul_(optimizer.momentum).add_(change)
        trained.m[words] = change
    elif optimizer.kind == "adam":
        size *= (1 - beta2**step) ** 0.5
        squares = change.square()
        if trained.m is None:
            squares = squares.mean(1)
        else:
            change = trained.m[words].lerp_(change, 1 - beta1)
            trained.m[words] = change
            size /= 1 - beta1**step
        v = trained.v[words].lerp_(squares, 1 - beta2)
        trained.v[words] = v
        root = v.sqrt_().add_(ADAM_EPSILON)
        change = change / (root if trained.m is not None else root[:, None])
    values.index_add_(0, words, change, alpha=-size)
    if rows is not None:
        values.index_add_(0, words, rows, alpha=-learning_rate * optimizer.weight_decay)


def csr_starts(rows: Tensor, labels: int) -> Tensor:
    """Where each label's connections begin: int32 [labels + 1], from ascending int32 rows."""
    bounds = torch.arange(labels + 1, dtype=torch.int32, device=rows.device)
    return torch.searchsorted(rows, bounds, out_int32=True)


def best_of(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids of the k highest scores of each instance, best first, ties to the lower id; and these
    scores.

    torch.topk leaves open which of equal scores it takes, so instances for which the k-th score
    occurs beyond the k that it took are sorted whole; the others only need their k put in order.
    """
    values, ids = torch.topk(scores, k)
    cut = (scores >= values[:, -1:]).sum(1) > k
    if cut.any():
        whole = torch.sort(scores[cut], dim=1, descending=True, stable=True)
        values[cut], ids[cut] = whole.values[:, :k], whole.indices[:, :k]
    by_id = torch.argsort(ids, dim=1)
    by_score = torch.argsort(values.gather(1, by_id), dim=1, descending=True, stable=True)
    order = by_id.gather(1, by_score)
    return ids.gather(1, order), values.gather(1, order)


def make_executor(
    setup: LayerSetup, optimizer: Optimizer, *, device: str, threads: int
) -> TorchAutograd:
    """See `fanin.backends.registry.make_trainer`."""
    return TorchAutograd(setup, TorchDevice(device, threads), optimizer)
