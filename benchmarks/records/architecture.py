"""What the paper's names of models in task files stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.kinds import (
    LEAST_GROUP_SIZE,
    ConnectionKind,
    Dense,
    FixedFanIn,
    GroupedFanIn,
    Unstructured,
)
from fanin.backends.recipes import recipe_of
from fanin.backends.setup import LayerSetup

Architecture = Literal[
    "dense", "sparse", "dense-sparse", "stratified", "dense-stratified", "bottleneck"
]


@dataclass(frozen=True)
class _Model:
    """What an architecture is made of. slug: its name in those of files and on the command line.
    connections: the kind of output layer for a connectivity; None where that has none."""

    slug: str
    connections: Callable[[int], ConnectionKind] | None
    has_intermediate: bool


_MODELS: dict[Architecture, _Model] = {
    "dense": _Model("dense", None, False),
    "sparse": _Model("unstructured", Unstructured, False),
    "dense-sparse": _Model("unstructured", Unstructured, True),
    "stratified": _Model("ffi", FixedFanIn, False),
    "dense-stratified": _Model("ffi", FixedFanIn, True),
    "bottleneck": _Model("bottleneck", None, True),
}


def model_slug(architecture: Architecture) -> str:
    """`dense`, `unstructured`, `ffi` or `bottleneck`."""
    return _MODELS[architecture].slug


def output_kind(
    architecture: Architecture,
    connectivity: int | None,
    group_size: int | None,
    intermediate: int | None,
    inputs: int,
) -> ConnectionKind:
    """The output layer of an architecture with these sizes; ValueError for sizes that do not fit
    it. inputs: of the data."""
    model, output_inputs = _MODELS[architecture], intermediate or inputs
    if model.has_intermediate and not intermediate:
        raise ValueError(f"architecture {architecture!r} needs `intermediate` >= 1")
    if not model.has_intermediate and intermediate:
        raise ValueError(
            f"architecture {architecture!r} has no intermediate layer, got "
            f"intermediate={intermediate}"
        )
    output: ConnectionKind = Dense()
    if model.connections:
        if not connectivity:
            raise ValueError(f"architecture {architecture!r} needs `connectivity` >= 1")
        if connectivity > output_inputs:
            raise ValueError(
                f"connectivity {connectivity} is larger than the {output_inputs} inputs of the "
                "output layer"
            )
        output = model.connections(connectivity)
    if group_size is None:
        return output
    if not isinstance(output, FixedFanIn):
        raise ValueError(
            f"group_size {group_size} needs architecture 'stratified' or 'dense-stratified', which "
            f"have a fixed fan-in, got {architecture!r}"
        )
    return GroupedFanIn(output.fan_in, group_size)


def keys_of_best(values: dict[str, Any], is_sparse: bool) -> dict[str, Any]:
    """What the recipe "best" gives to its keys, for the model that a task's unchecked values name;
    nothing where that is not known. is_sparse: whether the model is to read sparse features; one
    without an intermediate layer cannot."""
    architecture = values.get("architecture")
    if architecture not in list(_MODELS):  # a list: what stands in the file may have no hash
        return {}
    model = _MODELS[architecture]
    output = model.connections(1) if model.connections else Dense()
    if values.get("group_size") is not None and isinstance(output, FixedFanIn):
        output = GroupedFanIn(1, LEAST_GROUP_SIZE)
    if values.get("head_fraction"):
        output = HeadAndTail(Dense(), output, 1)
    units = 1 if model.has_intermediate else None
    setup = LayerSetup(1, 2, output, units, sparse_features=is_sparse and units is not None)
    return asdict(recipe_of("best", setup))
