"""torch's optimizers, as far as rewiring has to know them: what each keeps for each weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fanin.backends.moments import WEIGHT, Resets, Start, reset_of, start_of, starts_of
from fanin.backends.torch.tools import ranks

_ADAM: dict[str, Start] = {"exp_avg": 0.0, "exp_avg_sq": 0.0, "max_exp_avg_sq": 0.0}

# By class, then by the name that an array has in `optimizer.state`. Scalars (steps, rates) stay.
# LBFGS is missing: what it keeps is of all parameters in one.
STARTS: dict[str, dict[str, Start]] = {
    "ASGD": {"ax": WEIGHT},
    "Adadelta": {"square_avg": 0.0, "acc_delta": 0.0},
    "Adafactor": {"row_var": None, "col_var": None, "variance": 0.0},
    "Adagrad": {"sum": "initial_accumulator_value"},
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "Adamax": {"exp_avg": 0.0, "exp_inf": 0.0},
    "Muon": {"momentum_buffer": 0.0},
    "NAdam": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    "RAdam": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    "RMSprop": {"square_avg": 0.0, "momentum_buffer": 0.0, "grad_avg": 0.0},
    "Rprop": {"prev": 0.0, "step_size": "lr"},
    "SGD": {"momentum_buffer": 0.0},
}


def resets_of(optimizer: Any, weights: Tensor) -> Resets:
    """The arrays that an optimizer keeps for these weights, and what they start with. ValueError
    for what is no optimizer that trains them, or one that rewiring does not know."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer must be one of torch.optim, got {optimizer!r}")
    groups = [g for g in optimizer.param_groups if any(p is weights for p in g["params"])]
    if not groups:
        raise ValueError(
            f"this {type(optimizer).__name__} does not train the layer's weights; "
            "hand over the optimizer that does, or none"
        )
    if ranks.is_part_of_larger(weights):
        raise ValueError(
            f"this {type(optimizer).__name__} keeps a part of the layer's moments on each rank, as "
            "FullyShardedDataParallel has it, and a part cannot be rewired; hand over none, or "
            "shard the model by fully_shard"
        )
    starts, resets = starts_of(optimizer, "torch", STARTS), Resets()
    for name, array in optimizer.state.get(weights, {}).items():  # empty before the first step
        if not isinstance(array, Tensor) or array.ndim == 0:
            continue
        start = start_of(optimizer, starts, name)
        if start is None:
            continue
        if array.shape != weights.shape:
            raise ValueError(
                f"{name!r} of this {type(optimizer).__name__} is {list(array.shape)} and the "
                f"layer's weights are {list(weights.shape)}; a part of it cannot be rewired"
            )
        resets.append(reset_of(array, start, groups[0]))
    return resets
