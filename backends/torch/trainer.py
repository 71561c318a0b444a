"""The harness' trainer in PyTorch: every layer setup, its loss, Adam, top-k and rewiring."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fanin.backends.arrays import Rewiring, check_arrays, checked, copied
from fanin.backends.fused import FusedTrainer
from fanin.backends.interface import ADAM_BETAS, ADAM_EPSILON, OnStep, Storage, TrainingBatch
from fanin.backends.setup import Dense, FixedFanIn, LayerSetup
from fanin.backends.torch.devices import TorchDevice
from fanin.backends.torch.fused import TorchEngine, rewire, top_k
from fanin.backends.torch.layers import move_connections
from fanin.backends.torch.losses import LOSSES
from fanin.backends.torch.ops import fan_in_linear
from fanin.backends.trainer import Losses

# Said once per process by torch about every CSR tensor; the baseline uses them knowingly.
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)

_MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}  # the interface's names and torch's

# Scores of an evaluation block are [instances, labels]; this many values at a time.
_MAX_SCORES = 1 << 25


class _SparseProduct(torch.autograd.Function):
    """features [batch, sources] times CSR weights [labels, sources]: torch's own sparse operations.

    torch's built-in gradient of this product makes the dense [labels, sources] matrix first;
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


class TorchTrainer:
    """A model of one `LayerSetup`; see `fanin.backends.interface.Trainer`."""

    def __init__(
        self, setup: LayerSetup, arrays: Mapping[str, np.ndarray], device: TorchDevice
    ) -> None:
        self.setup = setup
        self.device = device
        self._loss = LOSSES[setup.loss]
        self._arrays: dict[str, Tensor] = {}
        self._row_starts: Tensor | None = None
        self.load_weights(arrays)
        self._parameters = {
            name: tensor.requires_grad_()
            for name, tensor in self._arrays.items()
            if tensor.is_floating_point()
        }
        self._optimizer = torch.optim.Adam(self._parameters.values(), betas=ADAM_BETAS, fused=True)
        # As torch would at the first step; made here so that it can be loaded before that.
        for tensor in self._parameters.values():
            self._optimizer.state[tensor] = {
                "step": torch.zeros((), device=device.torch),
                "exp_avg": torch.zeros_like(tensor, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(tensor, requires_grad=False),
            }
        self._steps = 0

    def _sources(self, features: Tensor) -> Tensor:
        """What the output layer reads: the features, or the intermediate units."""
        if not self.setup.intermediate:
            return features
        weights, bias = self._arrays["intermediate.weights"], self._arrays["intermediate.bias"]
        return torch.addmm(bias, features, weights).relu_()

    def _scores(self, features: Tensor) -> Tensor:
        features, arrays = self._sources(features), self._arrays
        weights, bias = arrays["output.weights"], arrays["output.bias"]
        if isinstance(self.setup.output, Dense):
            return torch.addmm(bias, features, weights)
        if self._row_starts is None:
            return fan_in_linear(features, arrays["output.indices"], weights, bias)
        product = _SparseProduct.apply(
            features, weights, self._row_starts, arrays["output.columns"], self.setup.labels
        )
        return product + bias

    def train(
        self, batches: Iterable[TrainingBatch], learning_rate: float, on_step: OnStep | None = None
    ) -> np.ndarray:
        (group,) = self._optimizer.param_groups
        group["lr"] = learning_rate
        losses = Losses(self.device, self._steps + 1)
        for batch in batches:
            # torch adds epsilon after the bias correction of v, Keras (and the paper) before it.
            group["eps"] = ADAM_EPSILON / (1 - ADAM_BETAS[1] ** (self._steps + 1)) ** 0.5
            scores = self._scores(self.device.tensor(batch.features))
            loss = self._loss(
                scores,
                self.device.tensor(batch.positive_instances).long(),
                self.device.tensor(batch.positive_labels),
            )
            del scores
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            self._steps += 1  # a step that was refused does not count
            number = self.device.number(loss)
            losses.add(number)
            if on_step:
                on_step(number)
        return losses.all()

    @torch.inference_mode()
    def top_k(self, features: np.ndarray, k: int) -> np.ndarray:
        self.setup.check_k(k)
        size = max(1, _MAX_SCORES // self.setup.labels)
        ids = np.empty((len(features), k), np.int64)
        for start in range(0, len(features), size):
            some = slice(start, start + size)
            ids[some] = self._top_k(self.device.tensor(features[some]), k).cpu().numpy()
        return ids

    def _top_k(self, features: Tensor, k: int) -> Tensor:
        if not isinstance(self.setup.output, FixedFanIn):
            return best_of(self._scores(features), k)
        # fanin's own layer is asked without making its scores.
        names = ("output.indices", "output.weights", "output.bias")
        indices, weights, bias = (self._arrays[name] for name in names)
        ids: Tensor = top_k(self._sources(features), indices, None, None, weights, bias, k)[1]
        return ids

    def apply_rewiring(self, rewiring: Rewiring) -> None:
        self.setup.check_rewired()
        ffi = self._row_starts is None
        targets = self._arrays["output.indices" if ffi else "output.columns"]
        state = self._optimizer.state[self._arrays["output.weights"]]
        moments = [state[key] for key in _MOMENTS.values()]
        move_connections(targets, moments, rewiring)

    def rewire(self, fraction: float, seed: int) -> int:
        self.setup.check_rewired()
        sources = self._arrays["output.indices" if self._row_starts is None else "output.columns"]
        if sources.dtype == torch.int32:
            sources = sources.view(torch.uint32)
        weights = self._arrays["output.weights"]
        state = self._optimizer.state[weights]
        m, v = (state[key] for key in _MOMENTS.values())
        inputs = self.setup.output_inputs
        return rewire(sources, weights.detach(), m, v, inputs, fraction, seed)

    def array(self, name: str) -> np.ndarray:
        self.setup.check_name(name)
        return self._arrays[name].detach().cpu().numpy()

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        return ((name, self.array(name)) for name in self._arrays)

    def weights(self) -> dict[str, np.ndarray]:
        return copied(self.arrays())

    @torch.no_grad()
    def load_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        if self._arrays:  # all is checked before any of them is overwritten
            check_arrays(self.setup, arrays)
        for name, array in checked(self.setup, arrays):
            tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.device.torch)
            if name in self._arrays:
                self._arrays[name].copy_(tensor)
            else:
                self._arrays[name] = tensor.clone()  # never the caller's memory
        if "output.rows" in self._arrays:
            self._row_starts = csr_starts(self._arrays["output.rows"], self.setup.labels)

    def _moments(self) -> dict[str, Tensor]:
        return {
            f"{name}.{moment}": self._optimizer.state[tensor][key]
            for name, tensor in self._parameters.items()
            for moment, key in _MOMENTS.items()
        }

    def optimizer_arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        for name, tensor in self._moments().items():
            yield name, tensor.cpu().numpy()
        yield "steps", np.array(self._steps, np.int64)

    def load_optimizer_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._steps = int(arrays["steps"])
        for name, tensor in self._moments().items():
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name])))
        for tensor in self._parameters.values():
            self._optimizer.state[tensor]["step"].fill_(self._steps)

    def state_bytes(self) -> tuple[int, int]:
        held = [*self._arrays.values()]
        if self._row_starts is not None:
            held.append(self._row_starts)
        moments = sum(tensor.nbytes for tensor in self._moments().values())
        return sum(tensor.nbytes for tensor in held), moments


def csr_starts(rows: Tensor, labels: int) -> Tensor:
    """Where each label's connections begin: int32 [labels + 1], from ascending int32 rows."""
    bounds = torch.arange(labels + 1, dtype=torch.int32, device=rows.device)
    return torch.searchsorted(rows, bounds, out_int32=True)


def best_of(scores: Tensor, k: int) -> Tensor:
    """Ids of the k highest scores of each row, best first, ties to the lower id.

    torch.topk leaves open which of equal scores it takes, so rows in which the k-th score occurs
    beyond the k found are sorted whole; the others only need their k put in order.
    """
    values, ids = torch.topk(scores, k)
    cut = (scores >= values[:, -1:]).sum(1) > k
    if cut.any():
        order = torch.sort(scores[cut], dim=1, descending=True, stable=True)
        values[cut], ids[cut] = order.values[:, :k], order.indices[:, :k]
    by_id = torch.argsort(ids, dim=1)
    by_score = torch.argsort(values.gather(1, by_id), dim=1, descending=True, stable=True)
    return ids.gather(1, by_id).gather(1, by_score)


def make(
    setup: LayerSetup, arrays: Mapping[str, np.ndarray], *, device: str, threads: int
) -> TorchTrainer:
    """See `fanin.backends.interface.make_trainer`."""
    return TorchTrainer(setup, arrays, TorchDevice(device, threads))


def make_fused(
    setup: LayerSetup,
    arrays: Mapping[str, np.ndarray],
    storage: Storage,
    *,
    device: str,
    threads: int,
) -> FusedTrainer:
    """See `fanin.backends.interface.make_trainer`."""
    engine = TorchEngine(TorchDevice(device, threads))
    return FusedTrainer(setup, arrays, engine, storage)
