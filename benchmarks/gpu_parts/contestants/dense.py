"""A dense layer of the same inputs and labels, in one of torch's precisions."""

from __future__ import annotations

import torch
from torch import Tensor

from fanin.benchmarks.gpu_parts.contestants.inputs import DoesNotFitError, InputSets, cache_bytes
from fanin.benchmarks.gpu_parts.contestants.peer import Peer

# Share of the device's memory that a dense layer leaves to the temporaries of all contestants.
_LEFT_FOR_OTHERS = 0.1


class Dense(Peer):
    """precision: fp32, tf32 or bf16."""

    def __init__(self, inputs: InputSets, op: str, precision: str) -> None:
        super().__init__(inputs)
        if precision == "tf32" and inputs.device.type == "cpu":
            raise DoesNotFitError("TF32 is a mode of GPUs")
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        size = (inputs.workload.setup.labels, inputs.workload.setup.inputs)
        each = size[0] * size[1] * dtype.itemsize
        # Beside the weights their gradient, and for a step moments.
        copies = {"forward": 0, "top-k": 0, "backward": 1, "fused step": 3}[op]
        _check_fits((copies + (dtype not in inputs.dense)) * each, inputs.device)
        self._mode = "high" if precision == "tf32" else "highest"
        # Once is enough where the weights alone are larger than any cache.
        sets = inputs.count if each < cache_bytes(inputs.device) * 4 else 1
        if dtype not in inputs.dense:  # two precisions share them
            inputs.dense[dtype] = [
                torch.randn(size, device=inputs.device, dtype=dtype) for _ in range(sets)
            ]
        self.trained = [
            (weights, inputs.bias[i].to(dtype, copy=True))
            for i, weights in enumerate(inputs.dense[dtype])
        ]
        self._features = [x.to(dtype) for x in inputs.features]

    def scores(self, i: int) -> Tensor:
        torch.set_float32_matmul_precision(self._mode)
        weights, bias = self.trained[i % len(self.trained)]
        return torch.addmm(bias, self._features[i], weights.t())

    def gradients(self, i: int, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        torch.set_float32_matmul_precision(self._mode)
        weights, _ = self.trained[i % len(self.trained)]
        grad = grad.to(weights.dtype)
        return grad @ weights, grad.t() @ self._features[i], grad.sum(0)


def _check_fits(need: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if need > free - _LEFT_FOR_OTHERS * total:
        raise DoesNotFitError(f"needs {need / 2**30:,.0f} GiB, and {free / 2**30:,.0f} are free")
