"""What contestants work on: a layer and a batch, and sets of random inputs for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fanin.backends.kinds import FixedFanIn
from fanin.backends.setup import LayerSetup
from fanin.backends.torch.tools.index_buffer import index_type

# Labels that top-k asks for; positives of an instance.
K, POSITIVES = 5, 5


class DoesNotFitError(RuntimeError):
    """A contestant that this device has too little memory for, or no mode."""


@dataclass(frozen=True)
class Workload:
    """A fixed fan-in layer without an intermediate one, and a batch."""

    dataset: str
    setup: LayerSetup
    batch: int

    @property
    def fan_in(self) -> int:
        assert isinstance(self.setup.output, FixedFanIn)
        return self.setup.output.fan_in

    @property
    def index(self) -> torch.dtype:
        return index_type(self.setup.inputs)

    def least_bytes(self, op: str) -> int:
        """What fanin's op has to read and write at least, float32."""
        labels = self.setup.labels
        connections, scores = labels * self.fan_in, 4 * self.batch * labels
        features, bias = 4 * self.batch * self.setup.inputs, 4 * labels
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


class InputSets:
    """`count` sets of features, indices, weights, bias, gradient of scores and positives; and the
    weights of dense layers, by type, once one was made."""

    def __init__(self, workload: Workload, device: torch.device, count: int, seed: int) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        self.workload, self.device, self.count = workload, device, count

        def normal(*size: int) -> Tensor:
            return torch.randn(size, device=device, generator=generator)

        def integers(high: int, *size: int) -> Tensor:
            return torch.randint(0, high, size, device=device, generator=generator)

        sets, batch, fan_in = range(count), workload.batch, workload.fan_in
        inputs, labels = workload.setup.inputs, workload.setup.labels
        self.features = [normal(batch, inputs) for _ in sets]
        self.indices = [integers(inputs, labels, fan_in).to(workload.index) for _ in sets]
        self.weights = [normal(labels, fan_in) for _ in sets]
        self.bias = [normal(labels) for _ in sets]
        self.grads = [normal(batch, labels) for _ in sets]
        pairs = [torch.unique(integers(batch * labels, batch * POSITIVES)) for _ in sets]
        self.positive_instances = [(flat // labels).int() for flat in pairs]
        self.positive_labels = [flat % labels for flat in pairs]
        self.dense: dict[torch.dtype, list[Tensor]] = {}


def cache_bytes(device: torch.device) -> int:
    """The GPU's L2; for a CPU a small stand-in, since a dry run measures nothing."""
    if device.type != "cuda":
        return 1 << 12
    return int(torch.cuda.get_device_properties(device).L2_cache_size)
