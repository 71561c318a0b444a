"""Ranks on gloo that share the labels of a layer: `python several_ranks.py RANKS FOLDER NAME...`
runs scenarios in all of them and prints `name: 'ok'` or what went wrong, a line for each rank.

`FOLDER/reference.pt` has what a process alone computes (`sharded_cases.reference`).
"""

from __future__ import annotations

import copy
import os
import sys
import time
import traceback
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from sharded_cases import (
    CASES,
    KINDS,
    LABELS,
    LOSSES,
    UNITS,
    Model,
    asked,
    encoder,
    layer_of,
    optimizer_of,
    outcome,
    share_of,
    trained,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fanin.backends.kinds import FixedFanIn, GroupedFanIn
from fanin.backends.torch.sharded import ShardedFanIn, left_alone
from fanin.backends.torch.sharded.ranks import Ranks

# Scenarios ----------------------------------------------------------------------------------------


def compare(found, expected, rank):
    losses = np.array(expected["losses"])
    assert (np.abs(np.array(found["losses"]) - losses) <= 1e-5 * losses).all()
    assert torch.equal(found["ids"], expected["ids"])
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-3, atol=1e-4)
    if "state" in found and rank == 0:
        assert [*found["state"]] == [*expected["state"]]
        for name, array in expected["state"].items():
            assert found["state"][name].dtype == array.dtype
            torch.testing.assert_close(found["state"][name], array, rtol=1e-2, atol=1e-4)


def the_same_numbers(rank, ranks, expected, case):
    """As one process: the loss of every step, best labels, the arrays of the whole model."""
    compare(outcome(*case.rsplit("_", 1)), expected[case], rank)


def a_share_of_the_memory(rank, ranks, expected):
    """Parameters and moments, counted in bytes."""
    for kind, output in KINDS.items():
        for execution in LOSSES:
            sizes = []
            for group in (None, OWN_GROUPS[rank]):
                layer = ShardedFanIn(256, 4000, output, execution=execution, group=group)
                arrays = [*layer.parameters(), *layer.buffers()]
                sizes.append(sum(array.nbytes for array in arrays))
            assert sizes[0] <= sizes[1] * (1 / ranks + 0.1), (kind, execution, sizes)


def split_batches_below_ddp(rank, ranks, expected):
    """An encoder that sees a rank's own instances, wrapped alone."""
    for kind, execution in zip(KINDS, [*LOSSES] * len(KINDS), strict=False):
        case = f"{kind}_{execution}"
        below = DistributedDataParallel(encoder())
        layer = layer_of(kind, execution, batch="split")
        optimizers = [optimizer_of(below, layer)]
        losses = trained(Model(below, layer), optimizers, lambda b: share_of(b, rank, ranks))
        check_split(losses, layer, below, expected[case], rank, ranks)


def check_split(losses, layer, below, expected, rank, ranks):
    """The rank asks about unequal numbers of instances, too."""
    features = asked()
    own = slice(7 * rank, 7 * (rank + 1) if rank < ranks - 1 else len(features))
    with torch.no_grad():
        scores, ids = layer.top_k(below(features[own]), 5)
    part = {"losses": expected["losses"]}
    part |= {name: expected[name][own] for name in ("ids", "scores")}
    compare({"losses": losses, "ids": ids, "scores": scores}, part, rank)


def a_whole_model_in_ddp(rank, ranks, expected):
    """Which leaves the layer alone."""
    for case in ("grouped_fused", "fixed_autograd"):
        kind, execution = case.rsplit("_", 1)
        model = Model(encoder(), layer_of(kind, execution, batch="split"))
        left_alone(model)
        wrapped = DistributedDataParallel(model)
        losses = trained(wrapped, [optimizer_of(model)], lambda b: share_of(b, rank, ranks))
        check_split(losses, model.layer, model.below, expected[case], rank, ranks)


def a_whole_model_in_fsdp(rank, ranks, expected):
    """`fully_shard` shares the encoder out, and leaves the layer alone."""
    for case in ("head_fused", "dense_autograd"):
        kind, execution = case.rsplit("_", 1)
        layer = layer_of(kind, execution, batch="split")
        model = Model(encoder(), layer)
        fully_shard(model.below)
        fully_shard(model, ignored_params=set(layer.parameters()))
        optimizers = [
            optimizer_of(model.below),
            *([optimizer_of(layer)] if [*layer.parameters()] else []),
        ]
        losses = trained(model, optimizers, lambda b: share_of(b, rank, ranks))
        check_split(losses, layer, model.below, expected[case], rank, ranks)


def files_of_other_numbers_of_ranks(rank, ranks, expected):
    """What a process alone has saved goes on here, and the other way round."""
    for case in CASES:
        kind, execution = case.rsplit("_", 1)
        layer = layer_of(kind, execution)
        layer.load_full_state_dict(expected[case]["state"])
        again = layer.full_state_dict()
        if rank == 0:
            for name, array in expected[case]["state"].items():
                assert torch.equal(again[name], array), (case, name)
        own = layer_of(kind, execution)
        own.load_state_dict(layer.state_dict())
        alone = layer_of(kind, execution, group=OWN_GROUPS[rank])
        alone.load_full_state_dict(layer.ranks.from_first(again))
        features = torch.from_numpy(np.random.default_rng(1).random((9, UNITS), np.float32))
        for other in (own, alone):
            assert torch.equal(other.top_k(features, 5)[1], layer.top_k(features, 5)[1])
        by_label = alone(features)[:, alone.label_ids.argsort()]
        torch.testing.assert_close(layer(features), by_label[:, layer.label_ids])


def gradients_of_scores(rank, ranks, expected):
    """A loss of the user's own, over the scores of a rank's labels."""
    for batch in ("same", "split"):
        layers = [
            layer_of("grouped", "autograd", batch=batch),
            layer_of("grouped", "autograd", group=OWN_GROUPS[rank]),
        ]
        features = torch.from_numpy(np.random.default_rng(1).random((8, UNITS), np.float32))
        first = 0 if batch == "same" else 8 * rank // ranks
        own = features[first : 8 if batch == "same" else 8 * (rank + 1) // ranks].clone()
        whole = features.clone()
        for each in (own, whole):
            each.requires_grad_()
        layers[0](own).square().sum().backward()
        layers[1](whole).square().sum().backward()
        grad = whole.grad[first : first + len(own)]
        torch.testing.assert_close(own.grad, grad * (1 if batch == "same" else ranks))


def rewiring(rank, ranks, expected):
    """The same connections move as in one process, to the same inputs."""
    for case in CASES:
        kind, execution = case.rsplit("_", 1)
        layers = [layer_of(kind, execution), layer_of(kind, execution, group=OWN_GROUPS[rank])]
        if not layers[0].setup.is_rewired:
            refused(ValueError, lambda layer=layers[0]: layer.rewire(0.3))
            continue
        moved, states = [], []
        for layer in layers:
            optimizers = [optimizer_of(layer)] if execution == "autograd" else []
            layer.load_full_state_dict(expected[case]["state"])
            features = torch.ones(3, UNITS, requires_grad=True)
            layer.training_step(features, [0, 1], [5, 6]).backward()
            for optimizer in optimizers:
                optimizer.step()
            moved.append(layer.rewire(0.3, *optimizers, rng=rank if layer is layers[0] else 0))
            states.append(layer.full_state_dict())
        assert moved[0] == moved[1] > 0
        if rank == 0:
            torch.testing.assert_close(*states, rtol=1e-5, atol=1e-7)


def what_is_wrong_on_one_rank(rank, ranks, expected):
    """Is an error on all, and the next step works."""
    good = torch.ones(3, UNITS)
    for execution in LOSSES:
        same, split = (layer_of("fixed", execution, batch=b) for b in ("same", "split"))
        for layer, given in (
            (split, (good, [0], [LABELS if rank == 1 else 0])),
            (split, (good[:, : UNITS - (rank == 1)], [0], [0])),
            (split, (good.clone().requires_grad_(rank == 1), [0], [0])),
            (split, (good[:0], [], [])),
            (same, (good, [0], [rank])),
            (same, (good[: 2 + (rank == 1)], [0], [0])),
            (same, (good, [3 if rank else 0], [0])),
        ):
            refused(ValueError, lambda layer=layer, given=given: layer.training_step(*given))
        for layer in (same, split):
            refused(ValueError, lambda layer=layer: layer.top_k(good, 3 + (rank == 1)))
            assert layer.top_k(good[:0], 3)[0].shape == (0, 3)
            if execution == "fused":
                layer.learning_rate = 1e-3 if rank else 2e-3
                refused(ValueError, lambda layer=layer: layer.training_step(good, [0], [0]))
                layer.learning_rate = 1e-3
            assert np.isfinite(layer.training_step(good, [0], [0]).item())
    refused(ValueError, lambda: ShardedFanIn(UNITS, LABELS + rank, FixedFanIn(4)))
    refused(ValueError, lambda: ShardedFanIn(UNITS, 17, GroupedFanIn(4, 32)))


def refused(kind, ask):
    try:
        ask()
    except kind:
        return
    raise AssertionError("it is not refused")


def a_copy(rank, ranks, expected):
    """Trains by itself, with the same ranks."""
    layer = layer_of("grouped", "fused")
    copied = copy.deepcopy(layer)
    given = (torch.ones(3, UNITS), [0, 1], [5, 6])
    assert copied.training_step(*given) == layer.training_step(*given)
    copied.training_step(*given)
    assert int(layer.steps) == 1
    assert int(copied.steps) == 2
    assert not torch.equal(layer.weights, copied.weights)


def what_ranks_tell_each_other(rank, ranks, expected):
    group = Ranks()
    assert (group.rank, group.size) == (rank, ranks)
    assert group.sum(torch.tensor([rank])).item() == ranks * (ranks - 1) // 2
    # Rank r wants r numbers, of which the ranks have 1, 2, ... times 0, 1, ..., r - 1.
    parts = [torch.arange(float(other)) * (rank + 1) for other in range(ranks)]
    expected_sum = torch.arange(float(rank)) * (ranks * (ranks + 1) // 2)
    assert torch.equal(group.own_sum(parts), expected_sum)
    for dtype in (torch.uint16, torch.bfloat16, torch.int64, torch.bool):
        own = torch.full((rank, 2), rank).to(dtype)
        for gathered in (group.gather(own), group.gather_to_first(own)):
            if gathered is None:
                assert rank
                continue
            assert [len(each) for each in gathered] == [*range(ranks)]
            for other, each in enumerate(gathered):
                assert each.dtype == dtype
                assert (each.float() == torch.full((1,), other).to(dtype).float()).all()
    assert group.from_first(rank) == 0
    group.check_equal("a number", 5)
    refused(ValueError, lambda: group.check_equal("a number", rank))
    # Equal scores: by their ids, whichever rank has them.
    ids = np.array([[2 * ranks - rank, 100 + rank]])
    scores = np.array([[1.0, 2.0 if rank == ranks - 1 else 0.5]], np.float32)
    best = group.best([(ids, scores)], 2, torch.device("cpu"))
    assert best[0].tolist() == [[100 + ranks - 1, ranks + 1]]


def a_rank_that_does_not_answer(rank, ranks, expected):
    """Is an error on the others, after the time that was given."""
    layer = ShardedFanIn(UNITS, LABELS, FixedFanIn(4), timeout=timedelta(seconds=2))
    started = time.monotonic()
    if rank == 1:
        time.sleep(6)
        return
    refused(RuntimeError, lambda: layer.training_step(torch.ones(3, UNITS), [0], [0]))
    assert time.monotonic() - started < 5


SCENARIOS = (
    what_ranks_tell_each_other,
    a_share_of_the_memory,
    split_batches_below_ddp,
    a_whole_model_in_ddp,
    a_whole_model_in_fsdp,
    files_of_other_numbers_of_ranks,
    gradients_of_scores,
    rewiring,
    what_is_wrong_on_one_rank,
    a_copy,
    # After which the group is of no use any more.
    a_rank_that_does_not_answer,
)
OWN_GROUPS = []


def work(rank, ranks, folder, names):
    torch.set_num_threads(1)
    address = f"file://{folder}/{ranks}-ranks"
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", address, rank=rank, world_size=ranks, timeout=wait)
    OWN_GROUPS.extend(dist.new_group([each]) for each in range(ranks))
    expected = torch.load(f"{folder}/reference.pt", weights_only=False)
    scenarios = {each.__name__: (each,) for each in SCENARIOS}
    scenarios = {case: (the_same_numbers, case) for case in CASES} | scenarios
    for name, (scenario, *case) in scenarios.items():
        if name not in names:
            continue
        try:
            scenario(rank, ranks, expected, *case)
            result = "ok"
        except Exception:
            result = traceback.format_exc()
        # In one piece, since other ranks write to the same pipe.
        sys.stdout.write(f"{name}: {result!r}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    count, where, *wanted = sys.argv[1:]
    wanted = wanted or [*CASES, *(scenario.__name__ for scenario in SCENARIOS)]
    torch.multiprocessing.spawn(work, (int(count), where, wanted), nprocs=int(count))
