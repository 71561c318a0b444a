"""Keras' optimizers, as far as rewiring has to know them: what each keeps for each weight."""

from __future__ import annotations

from typing import Any

import keras

from fanin.backends.moments import WEIGHT, Resets, Start, reset_of, start_of, starts_of

_ADAM: dict[str, Start] = {"_momentums": 0.0, "_velocities": 0.0, "_velocity_hats": 0.0}

# By class, then by the optimizer's attribute, a list with an array for each trained variable.
STARTS: dict[str, dict[str, Start]] = {
    "Adadelta": {"_accumulated_grads": 0.0, "_accumulated_delta_vars": 0.0},
    "Adafactor": {"_r": None, "_c": None, "_v": 0.0},
    "Adagrad": {"_accumulators": "initial_accumulator_value"},
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "Adamax": {"_m": 0.0, "_u": 0.0},
    "Ftrl": {"_accumulators": "initial_accumulator_value", "_linears": 0.0},
    "Lamb": {"_momentums": 0.0, "_velocities": 0.0},
    "Lion": {"_momentums": 0.0},
    "Muon": {"momentums": 0.0, "adam_velocities": 0.0},
    "Nadam": {"_momentums": 0.0, "_velocities": 0.0},
    "RMSprop": {"_velocities": 0.0, "_momentums": 0.0, "_average_gradients": 0.0},
    "SGD": {"momentums": 0.0},
    # Its "momentum" is the weight before averaging.
    "ScheduleFreeAdamW": {"_momentums": WEIGHT, "_velocities": 0.0},
}
# Any of them may have these: use_ema, gradient_accumulation_steps.
_COMMON: dict[str, Start] = {
    "_model_variables_moving_average": WEIGHT,
    "_accumulated_gradients": 0.0,
}
# Lists of the optimizer that hold no state by themselves.
_NO_STATE = ("_variables", "_trainable_variables")


def resets_of(optimizer: Any, kernel: keras.Variable) -> Resets:
    """The variables that an optimizer keeps for this kernel, and what they start with; none before
    it is built. ValueError for what is no optimizer that trains it, or one that rewiring does not
    know."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(f"optimizer must be one of keras.optimizers, got {optimizer!r}")
    several = _unwrapped(optimizer)
    resets, is_trained = Resets(), not any(own.built for own in several)
    for own in several:
        index = _index(own, kernel)
        if own.built and index is None:
            continue
        starts = {**starts_of(own, "keras", STARTS), **_COMMON}
        if index is not None:
            is_trained = True
            resets += _resets(own, kernel, index, starts)
    if not is_trained:
        raise ValueError(
            f"{optimizer.name} does not train {kernel.path}; "
            "hand over the optimizer that does, or none"
        )
    return resets


def _unwrapped(optimizer: Any) -> list[Any]:
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return _unwrapped(optimizer.inner_optimizer)
    several: Any = getattr(keras.optimizers, "MultiOptimizer", ())  # of newer Keras
    if isinstance(optimizer, several):
        return list(optimizer.optimizers)
    return [optimizer]


def _index(optimizer: Any, kernel: keras.Variable) -> int | None:
    trained = enumerate(optimizer._trainable_variables)
    return next((i for i, variable in trained if variable is kernel), None)


def _resets(optimizer: Any, kernel: keras.Variable, index: int, starts: dict[str, Start]) -> Resets:
    count = len(optimizer._trainable_variables)
    lists = {
        name: kept
        for name, kept in vars(optimizer).items()
        if isinstance(kept, list) and len(kept) == count and name not in _NO_STATE
    }
    listed = {id(variable) for variables in lists.values() for variable in variables}
    for variable in optimizer.variables:
        if variable.shape == kernel.shape and id(variable) not in listed:
            start_of(optimizer, starts, variable.name)  # raises: it may well be the kernel's
    resets = Resets()
    for name, kept in lists.items():
        if not isinstance(kept[index], keras.Variable):  # a velocity that Muon does without, say
            continue
        start = start_of(optimizer, starts, name)
        if start is None:
            continue
        resets.append(reset_of(kept[index], start, vars(optimizer)))
    return resets
