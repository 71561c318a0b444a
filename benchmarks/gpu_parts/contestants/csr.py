"""torch's CSR product, int32 indices, as the harness' unstructured layer has it."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from fanin.benchmarks.gpu_parts.contestants.inputs import InputSets
from fanin.benchmarks.gpu_parts.contestants.peer import Peer


class Csr(Peer):
    def __init__(self, inputs: InputSets) -> None:
        super().__init__(inputs)
        workload = inputs.workload
        size = (workload.setup.labels, workload.setup.inputs)
        ends = torch.arange(size[0] + 1, dtype=torch.int32, device=inputs.device)
        starts = workload.fan_in * ends
        # A row's columns have to ascend.
        columns = [idx.int().sort(dim=1).values.view(-1) for idx in inputs.indices]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self._matrices = [
                torch.sparse_csr_tensor(starts, c, w.view(-1).clone(), size, check_invariants=False)
                for c, w in zip(columns, inputs.weights, strict=True)
            ]
        values = [matrix.values() for matrix in self._matrices]
        self.trained = [(v, b.clone()) for v, b in zip(values, inputs.bias, strict=True)]

    def scores(self, i: int) -> Tensor:
        product: Tensor = torch.sparse.mm(self._matrices[i], self.inputs.features[i].t())
        return product.t() + self.trained[i][1]

    def gradients(self, i: int, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        matrix, across = self._matrices[i], grad.t()
        grad_features = torch.sparse.mm(matrix.t(), across).t()
        sampled = torch.sparse.sampled_addmm(matrix, across, self.inputs.features[i], beta=0.0)
        return grad_features, sampled.values(), grad.sum(0)
