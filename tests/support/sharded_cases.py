"""Layers of every kind whose labels ranks share, and how they are trained: for a process alone and
for each of several (`several_ranks.py`)."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import torch
from setups import random_batch, starting

from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.kinds import Dense, FixedFanIn, GroupedFanIn, Unstructured
from fanin.backends.setup import LayerSetup
from fanin.backends.torch.sharded import ShardedFanIn

INPUTS, UNITS, LABELS, BATCH, STEPS = 12, 24, 157, 10, 60
KINDS = {
    "dense": Dense(),
    "unstructured": Unstructured(3),
    "fixed": FixedFanIn(4),
    "grouped": GroupedFanIn(4, 16),
    "head": HeadAndTail(Dense(), FixedFanIn(4), 40),
    "grouped_tail": HeadAndTail(FixedFanIn(5), GroupedFanIn(4, 8), 43),
    "unstructured_tail": HeadAndTail(FixedFanIn(5), Unstructured(2), 30),
}
LOSSES = {"fused": "squared_hinge", "autograd": "bce"}
CASES = [f"{kind}_{execution}" for kind in KINDS for execution in LOSSES]


def setup_of(kind, loss="squared_hinge"):
    return LayerSetup(UNITS, LABELS, KINDS[kind], loss=loss)


def batches():
    """With a rank's share of the instances as well: ranks have 1, 2, 3, ... parts of them, so that
    no two have the same number."""
    for step in range(STEPS):
        yield random_batch(LayerSetup(INPUTS, LABELS, Dense()), BATCH, [5, step], share=0.02)


def share_of(batch, rank, ranks):
    """A rank's own instances of a batch, of unequal numbers; with two ranks 3 and 7 of 10."""
    bounds = [BATCH * r * (r + 1) // (ranks * (ranks + 1)) for r in range(ranks + 1)]
    first, end = bounds[rank], bounds[rank + 1]
    own = (batch.positive_instances >= first) & (batch.positive_instances < end)
    instances = batch.positive_instances[own] - first
    return batch.features[first:end], instances, batch.positive_labels[own]


def encoder():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(INPUTS, UNITS), torch.nn.ReLU())


def layer_of(kind, execution, **options):
    """Where labels have an order, a random one."""
    layer = ShardedFanIn(
        UNITS,
        LABELS,
        KINDS[kind],
        execution=execution,
        loss=LOSSES[execution],
        seed=3,
        timeout=timedelta(seconds=60),
        **options,
    )
    full = [layer.full_state_dict()]
    if layer.ranks.size > 1:
        full = [layer.ranks.from_first(full[0])]
    if "order" in full[0]:
        full[0]["order"] = torch.from_numpy(starting(layer.setup, 3)["output.order"])
        layer.load_full_state_dict(full[0])
    return layer


class Model(torch.nn.Module):
    """An encoder and a layer, as a user writes them."""

    def __init__(self, below, layer):
        super().__init__()
        self.below, self.layer = below, layer

    def forward(self, features, instances, label_ids):
        return self.layer.training_step(self.below(features), instances, label_ids)


def optimizer_of(*modules):
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return torch.optim.Adam(parameters, 1e-3)


def trained(model, optimizers, given=lambda batch: (batch.features, *positives_of(batch))):
    """The losses of all steps."""
    losses = []
    for batch in batches():
        features, instances, label_ids = given(batch)
        loss = model(torch.from_numpy(features), instances, label_ids)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return losses


def positives_of(batch):
    return batch.positive_instances, batch.positive_labels


def asked():
    """Features of instances that nobody trained by."""
    rng = np.random.default_rng(77)
    return torch.from_numpy(rng.standard_normal((64, INPUTS)).astype(np.float32))


def outcome(kind, execution):
    """What a training of this rank comes to. With `batch="same"`."""
    below, layer = encoder(), layer_of(kind, execution)
    losses = trained(Model(below, layer), [optimizer_of(below, layer)])
    scores, ids = layer.top_k(below(asked()), 5)
    return {"losses": losses, "ids": ids, "scores": scores, "state": layer.full_state_dict()}


def reference():
    """Of each case, of a process alone."""
    return {case: outcome(*case.rsplit("_", 1)) for case in CASES}
