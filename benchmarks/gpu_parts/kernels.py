"""Part `kernels`: forward, backward, fused step and top-k against torch's own ways and the floor.

Per shape, batch and op all contestants take turns in one process, each going through input sets
that are together larger than the GPU's cache, and so does a plain copy, whose bandwidth is what the
floor is made of. On a GPU the calls are queued behind a pause and timed by events, so that their
launching is not measured.
"""

from __future__ import annotations

import gc
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fanin.backends.interface import ADAM_BETAS, ADAM_EPSILON
from fanin.backends.torch import fan_in_linear
from fanin.backends.torch.fused import fused_step
from fanin.backends.torch.layers import index_type
from fanin.backends.torch.losses import squared_hinge
from fanin.backends.torch.ops import top_k
from fanin.benchmarks.gpu_parts import part
from fanin.benchmarks.gpu_parts.results import Contestant, KernelRow, Row
from fanin.benchmarks.gpu_parts.tables import COPY, OURS
from fanin.benchmarks.timing.op import rounds, wall_seconds
from fanin.datasets.catalogue import FEATURES, PUBLISHED

FAN_IN, BATCHES, K = 32, (32, 128), 5
POSITIVES = 5
# (data set, inputs of the output layer): without and with an intermediate layer.
SHAPES = (
    ("amazon-670k", FEATURES["cascade"]),
    ("amazon-670k", 32_768),
    ("wiki-500k", 32_768),
    ("amazon-3m", 131_072),
)
OPS = ("forward", "backward", "fused step", "top-k")
# A row takes about so long, within these numbers of rounds.
_ROW_SECONDS, _FEWEST, _MOST = 5.0, 5, 25
# The pause that launching hides behind, in cycles of the GPU: about 2 ms.
_PAUSE_CYCLES = 4_000_000
# The gather idiom holds [batch, labels, fan_in]; above this it goes in pieces of labels.
_GATHER_BYTES = 4 << 30
# Share of the device's memory that a dense layer leaves to the temporaries of all contestants.
_LEFT_FOR_OTHERS = 0.1


class DoesNotFitError(RuntimeError):
    """A contestant that this device has too little memory for, or no mode."""


@dataclass(frozen=True)
class Shape:
    dataset: str
    labels: int
    inputs: int
    batch: int

    @property
    def index(self) -> torch.dtype:
        return index_type(self.inputs)

    def least_bytes(self, op: str) -> int:
        """What fanin's op has to read and write at least, float32."""
        connections, scores = self.labels * FAN_IN, 4 * self.batch * self.labels
        features, bias = 4 * self.batch * self.inputs, 4 * self.labels
        layer = connections * (4 + self.index.itemsize)
        if op == "forward":
            return features + layer + bias + scores
        if op == "backward":
            # Gradients of features, weights and bias go out.
            return scores + 2 * features + layer + 4 * connections + bias
        if op == "fused step":
            # Weights, moments and bias in and out, the gradient of features out.
            positives = self.batch * POSITIVES * (4 + 8)
            return 2 * features + layer + 5 * 4 * connections + 6 * bias + positives
        return features + layer + bias + self.batch * K * (4 + 8)


class Inputs:
    """Input sets of one shape: features, indices, weights, bias, gradient of scores, positives;
    and the weights of dense layers, by type, once one was made."""

    def __init__(self, shape: Shape, device: torch.device, count: int, seed: int) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        self.shape, self.device, self.count = shape, device, count

        def normal(*size: int) -> Tensor:
            return torch.randn(size, device=device, generator=generator)

        def integers(high: int, *size: int) -> Tensor:
            return torch.randint(0, high, size, device=device, generator=generator)

        sets, batch, labels = range(count), shape.batch, shape.labels
        self.features = [normal(batch, shape.inputs) for _ in sets]
        self.indices = [integers(shape.inputs, labels, FAN_IN).to(shape.index) for _ in sets]
        self.weights = [normal(labels, FAN_IN) for _ in sets]
        self.bias = [normal(labels) for _ in sets]
        self.grads = [normal(batch, labels) for _ in sets]
        pairs = [torch.unique(integers(batch * labels, batch * POSITIVES)) for _ in sets]
        self.dense: dict[torch.dtype, list[Tensor]] = {}
        self.rows = [(flat // labels).int() for flat in pairs]
        self.labels = [flat % labels for flat in pairs]


def adam(values: list[Tensor]) -> torch.optim.Adam:
    return torch.optim.Adam(values, lr=1e-3, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=True)


class Fanin:
    """fanin's own ops."""

    def __init__(self, of: Inputs) -> None:
        self._of = of
        state = (of.weights[0], of.weights[0], of.bias[0], of.bias[0])
        self._moments = [[torch.zeros_like(t) for t in state] for _ in range(of.count)]

    def forward(self, i: int) -> Tensor:
        of = self._of
        return fan_in_linear(of.features[i], of.indices[i], of.weights[i], of.bias[i])

    def backward(self, i: int) -> Any:
        of = self._of
        return torch.ops.fanin.fan_in_linear_backward(
            of.grads[i], of.features[i], of.indices[i], of.weights[i], [True] * 3, 0
        )

    def step(self, i: int) -> Any:
        of, (wm, wv, bm, bv) = self._of, self._moments[i]
        return fused_step(
            of.features[i], of.indices[i], None, None, of.weights[i], wm, wv, of.bias[i], bm, bv,
            of.rows[i], of.labels[i], "squared_hinge", 1e-3, 1, 0, True,
        )  # fmt: skip

    def best(self, i: int) -> Any:
        of = self._of
        return top_k(of.features[i], of.indices[i], None, None, of.weights[i], of.bias[i], K)


class Peer:
    """One of torch's ways: what its forward and backward pass are; step and top-k follow."""

    def __init__(self, of: Inputs) -> None:
        self.of = of
        # (values, bias) of each input set, and their optimisers, made at the first step.
        self.trained: list[tuple[Tensor, Tensor]] = []
        self._optimizers: list[torch.optim.Adam] = []

    def scores(self, i: int) -> Tensor:
        """[batch, labels]."""
        raise NotImplementedError

    def gradients(self, i: int, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of features, values and bias."""
        raise NotImplementedError

    def forward(self, i: int) -> Tensor:
        return self.scores(i)

    def backward(self, i: int) -> Any:
        return self.gradients(i, self.of.grads[i])

    def step(self, i: int) -> Any:
        """Scores, loss, gradients and torch's fused Adam."""
        if not self._optimizers:
            self._optimizers = [adam(list(pair)) for pair in self.trained]
        scores = self.scores(i).detach().requires_grad_()
        with torch.enable_grad():
            loss = squared_hinge(scores, self.of.rows[i], self.of.labels[i])
            (grad,) = torch.autograd.grad(loss, scores)
        of_features, *grads = self.gradients(i, grad)
        which = i % len(self.trained)
        for values, found in zip(self.trained[which], grads, strict=True):
            values.grad = found
        self._optimizers[which].step()
        self._optimizers[which].zero_grad()
        return of_features

    def best(self, i: int) -> Any:
        return torch.topk(self.scores(i), K)


class Dense(Peer):
    """A dense layer of the same inputs and labels, in one of torch's precisions."""

    def __init__(self, of: Inputs, op: str, precision: str) -> None:
        super().__init__(of)
        if precision == "tf32" and of.device.type == "cpu":
            raise DoesNotFitError("TF32 is a mode of GPUs")
        shape, kind = of.shape, torch.bfloat16 if precision == "bf16" else torch.float32
        each = shape.labels * shape.inputs * kind.itemsize
        # Beside the weights their gradient, and for a step moments.
        copies = {"forward": 0, "top-k": 0, "backward": 1, "fused step": 3}[op]
        _check_fits((copies + (kind not in of.dense)) * each, of.device)
        self._mode = "high" if precision == "tf32" else "highest"
        # Once is enough where the weights alone are larger than any cache.
        sets = of.count if each < _cache_bytes(of.device) * 4 else 1
        if kind not in of.dense:  # two precisions share them
            size = (shape.labels, shape.inputs)
            of.dense[kind] = [torch.randn(size, device=of.device, dtype=kind) for _ in range(sets)]
        self.trained = [(w, of.bias[i].to(kind, copy=True)) for i, w in enumerate(of.dense[kind])]
        self._features = [x.to(kind) for x in of.features]

    def scores(self, i: int) -> Tensor:
        torch.set_float32_matmul_precision(self._mode)
        weights, bias = self.trained[i % len(self.trained)]
        return torch.addmm(bias, self._features[i], weights.t())

    def gradients(self, i: int, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        torch.set_float32_matmul_precision(self._mode)
        weights, _ = self.trained[i % len(self.trained)]
        grad = grad.to(weights.dtype)
        return grad @ weights, grad.t() @ self._features[i], grad.sum(0)


class Csr(Peer):
    """torch's CSR product, int32 indices, as the harness' unstructured layer has it."""

    def __init__(self, of: Inputs) -> None:
        super().__init__(of)
        size = (of.shape.labels, of.shape.inputs)
        starts = FAN_IN * torch.arange(size[0] + 1, dtype=torch.int32, device=of.device)
        # A row's columns have to ascend.
        columns = [idx.int().sort(dim=1).values.view(-1) for idx in of.indices]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self._matrices = [
                torch.sparse_csr_tensor(starts, c, w.view(-1).clone(), size, check_invariants=False)
                for c, w in zip(columns, of.weights, strict=True)
            ]
        values = [matrix.values() for matrix in self._matrices]
        self.trained = [(v, b.clone()) for v, b in zip(values, of.bias, strict=True)]

    def scores(self, i: int) -> Tensor:
        product: Tensor = torch.sparse.mm(self._matrices[i], self.of.features[i].t())
        return product.t() + self.trained[i][1]

    def gradients(self, i: int, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        matrix, across = self._matrices[i], grad.t()
        of_features = torch.sparse.mm(matrix.t(), across).t()
        sampled = torch.sparse.sampled_addmm(matrix, across, self.of.features[i], beta=0.0)
        return of_features, sampled.values(), grad.sum(0)


class Gather(Peer):
    """The idiom x[:, indices] with einsum, int64 indices, in pieces of labels where it has to."""

    def __init__(self, of: Inputs) -> None:
        super().__init__(of)
        self._indices = [idx.long() for idx in of.indices]
        self.trained = [(w.clone(), b.clone()) for w, b in zip(of.weights, of.bias, strict=True)]
        whole = of.shape.batch * of.shape.labels * FAN_IN * 4
        pieces = math.ceil(whole / _GATHER_BYTES)
        self.note = f"in {pieces} pieces of labels" if pieces > 1 else None
        self._piece = math.ceil(of.shape.labels / pieces)

    def _pieces(self, i: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        weights, _ = self.trained[i]
        for first in range(0, len(weights), self._piece):
            piece = slice(first, first + self._piece)
            yield piece, self._indices[i][piece], weights[piece]

    def scores(self, i: int) -> Tensor:
        x, bias = self.of.features[i], self.trained[i][1]
        parts = [torch.einsum("blk,lk->bl", x[:, idx], w) for _, idx, w in self._pieces(i)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)) + bias

    def gradients(self, i: int, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.of.features[i]
        of_features, of_weights = torch.zeros_like(x), []
        for piece, idx, w in self._pieces(i):
            of_weights.append(torch.einsum("bl,blk->lk", grad[:, piece], x[:, idx]))
            spread = (grad[:, piece, None] * w).flatten(1)
            of_features.index_add_(1, idx.view(-1), spread)
        return of_features, torch.cat(of_weights), grad.sum(0)


Made = Fanin | Peer


def makers(of: Inputs, op: str) -> dict[str, Callable[[], Made]]:
    """How each contestant is made; one may say that it does not fit."""
    return {
        OURS: lambda: Fanin(of),
        "dense fp32": lambda: Dense(of, op, "fp32"),
        "dense tf32": lambda: Dense(of, op, "tf32"),
        "dense bf16": lambda: Dense(of, op, "bf16"),
        "CSR": lambda: Csr(of),
        "gather + einsum": lambda: Gather(of),
    }


METHODS: dict[str, Callable[[Made, int], Any]] = {
    "forward": lambda who, i: who.forward(i),
    "backward": lambda who, i: who.backward(i),
    "fused step": lambda who, i: who.step(i),
    "top-k": lambda who, i: who.best(i),
}


def _cache_bytes(device: torch.device) -> int:
    """The GPU's L2; for a CPU a small stand-in, since a dry run measures nothing."""
    if device.type != "cuda":
        return 1 << 12
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def _check_fits(need: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if need > free - _LEFT_FOR_OTHERS * total:
        raise DoesNotFitError(f"needs {need / 2**30:,.0f} GiB, and {free / 2**30:,.0f} are free")


def _clock(device: torch.device, count: int) -> Callable[[Callable[[], Any]], float]:
    """Seconds of one of the `count` calls that a contestant makes, one for each input set."""
    if device.type != "cuda":
        return lambda call: wall_seconds(call) / count

    def seconds(call: Callable[[], Any]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_PAUSE_CYCLES)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / count

    return seconds


class Copy:
    """Reads and writes memory well above any cache."""

    def __init__(self, device: torch.device) -> None:
        size = (1 << 30 if device.type == "cuda" else 1 << 22) // 4
        self._from = torch.randn(size, device=device)
        self._to = torch.empty_like(self._from)
        self.bytes = 2 * self._from.nbytes

    def __call__(self) -> None:
        self._to.copy_(self._from)


@torch.no_grad()
def measure(row: KernelRow, shape: Shape, device: torch.device, dry_run: bool, seed: int) -> None:
    """Fill the row: every contestant that can be had, in turns."""
    # Together at least four times the cache.
    each = shape.least_bytes("forward")
    count = min(16, max(2, math.ceil(4 * _cache_bytes(device) / each)))
    of, copy = Inputs(shape, device, count, seed), Copy(device)
    row.copy_bytes, row.rotated = copy.bytes, count
    method, clock = METHODS[row.op], _clock(device, count)

    def copies() -> None:
        for _ in range(count):
            copy()

    calls: dict[str, Callable[[], Any]] = {COPY: copies}
    made = {COPY: Contestant(COPY, None)}
    round_seconds = 0.0
    for name, make in makers(of, row.op).items():
        made[name] = Contestant(name, None)
        try:
            who = make()

            def all_sets(who: Made = who) -> None:
                for i in range(count):
                    method(who, i)

            all_sets()
            round_seconds += count * clock(all_sets)
        except (DoesNotFitError, torch.OutOfMemoryError) as error:
            made[name].reason = f"does not fit: {str(error).splitlines()[0]}"
        except Exception as error:  # the others still compare with each other
            made[name].reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        else:
            calls[name] = all_sets
            made[name].reason = getattr(who, "note", None)
    turns = int(_ROW_SECONDS / max(round_seconds, 1e-6))
    turns = 2 if dry_run else min(_MOST, max(_FEWEST, turns))
    for name, seconds in rounds(calls, turns, clock).items():
        made[name].seconds = seconds
    row.contestants = list(made.values())
    if made[OURS].seconds is None:
        row.reason = made[OURS].reason


def free(device: torch.device) -> None:
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def jobs(device: torch.device, dry_run: bool, seed: int) -> list[part.Job]:
    made = []
    for dataset, inputs in SHAPES:
        labels = PUBLISHED[dataset].labels
        if dry_run:
            labels, inputs = labels // 4_000, min(inputs, 1_024)
        for batch in BATCHES:
            shape = Shape(dataset, labels, inputs, batch)
            for op in OPS:
                row = KernelRow(
                    key=f"{dataset} {labels}x{inputs} batch {batch} {op}",
                    op=op,
                    dataset=dataset,
                    labels=labels,
                    inputs=inputs,
                    fan_in=FAN_IN,
                    batch=batch,
                    index=str(shape.index).removeprefix("torch."),
                    bytes=shape.least_bytes(op),
                )

                def run(row: KernelRow = row, shape: Shape = shape) -> None:
                    try:
                        measure(row, shape, device, dry_run, seed)
                    finally:
                        free(device)

                made.append(part.Job(row, run))
    return made


def failed(row: Row) -> bool:
    """fanin's own op has to run; that a peer does not is a gap."""
    ours = [one for one in getattr(row, "contestants", ()) if one.name == OURS]
    return row.state == "gap" or any(one.seconds is None for one in ours)


def main(arguments: Sequence[str] | None = None) -> int:
    given = part.options(arguments)
    device = torch.device(given.device)
    return part.conduct("kernels", given, device, jobs(device, given.dry_run, given.seed), failed)


if __name__ == "__main__":
    sys.exit(main())
