"""Two ranks on gloo that train layers together: `python two_ranks.py` runs each scenario in both of
them, in a file system that they share, and prints `name: ok` or what went wrong, line by line."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback

import numpy as np
import scipy.sparse as sp
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from fanin.backends.torch import FixedFanInLinear, FusedFanIn

LABELS = 13  # which two ranks cannot share out evenly
WIDE = 70_000


def model_of(seed, inputs=20, kind=FixedFanInLinear):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, inputs), kind(inputs, labels=LABELS, fan_in=4))


def same(tensor, what):
    """Both ranks have the same."""
    mine = tensor.detach().contiguous()
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    assert torch.equal(*both), f"the ranks differ in {what}"


def same_model(model, what):
    scores = model(torch.ones(3, 8))
    same(scores, f"{what}: scores")
    return scores


def trained(model, optimizer, rank):
    """A step on data of the rank's own."""
    optimizer.zero_grad()
    model(torch.full((3, 8), 1.0 + rank)).sub(1).square().mean().backward()
    optimizer.step()


def data(rank):
    rng = np.random.default_rng(rank)
    features = rng.standard_normal((40, 20)).astype(np.float32)
    return features, sp.random_array((40, LABELS), density=0.2, format="csr", rng=rng)


def ddp(rank, folder):
    """Whether buffers are broadcast or not, all have what rank 0 has: as of parameters."""
    for broadcast in (True, False):
        for inputs in (20, WIDE):
            model = model_of(rank, inputs)
            expected = model_of(0, inputs)
            wrapped = DistributedDataParallel(model, broadcast_buffers=broadcast)
            scores = same_model(wrapped, f"broadcast_buffers={broadcast}")
            assert torch.equal(scores, expected(torch.ones(3, 8)))
            optimizer = torch.optim.Adam(wrapped.parameters(), 0.1)
            trained(wrapped, optimizer, rank)
            before = model[1].indices.int()
            assert model[1].rewire(0.5, optimizer) == 26
            moved = before != model[1].indices.int()
            assert 10 < moved.sum() <= 26
            assert (optimizer.state[model[1].weights]["exp_avg"][moved] == 0).all()
            same(model[1].indices.int(), "indices after rewiring")
            same(optimizer.state[model[1].weights]["exp_avg"], "moments after rewiring")
            same_model(wrapped, "after rewiring")
            trained(wrapped, optimizer, rank)
            same_model(wrapped, "after another step")


def ddp_on_data_of_their_own(rank, folder):
    for broadcast in (True, False):
        model = model_of(rank)
        wrapped = DistributedDataParallel(model, broadcast_buffers=broadcast)
        optimizer = torch.optim.Adam(wrapped.parameters(), 0.1)
        trained(wrapped, optimizer, rank)
        model[1].rewire_towards_gradients(*data(rank), 0.5, optimizer)
        for name, array in model.state_dict().items():
            same(array, name)
        same(optimizer.state[model[1].weights]["exp_avg_sq"], "moments")
        given = np.random.default_rng(rank).integers(0, 20, (LABELS, 4))
        model[1].set_connections(given)
        same(model[1].indices.int(), "indices that each rank has set")


def ddp_of_layers_that_started_from_their_own(rank, folder):
    """Data, so that each makes something else of its features."""
    for kind in (FixedFanInLinear, FusedFanIn):
        torch.manual_seed(rank)
        model = torch.nn.Sequential(torch.nn.Linear(8, 20), kind(20, LABELS, 4, recipe="best"))
        model[1].start_from(*data(rank))
        same_model(DistributedDataParallel(model, broadcast_buffers=False), kind.__name__)


def ddp_of_layers_that_start_anew_when_they_are_wrapped(rank, folder):
    """Before the first pass no layer knows that it is one of several."""
    for broadcast in (True, False):
        for recipe in ("best", "paper"):
            torch.manual_seed(rank)
            layer = FixedFanInLinear(20, LABELS, 4, recipe=recipe)
            model = torch.nn.Sequential(torch.nn.Linear(8, 20), layer)
            wrapped = DistributedDataParallel(model, broadcast_buffers=broadcast)
            if recipe == "best":
                layer.start_from(*data(rank))
            else:
                layer.reset_parameters()
            optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
            trained(wrapped, optimizer, rank)
            trained(wrapped, optimizer, rank)
            for name, array in model.state_dict().items():
                same(array, f"{name} of {recipe}")


def ddp_of_a_layer_that_trains_itself(rank, folder):
    """Its scores, at least: DDP has no part in its training."""
    wrapped = DistributedDataParallel(model_of(rank, kind=FusedFanIn))
    same_model(wrapped, "FusedFanIn")


def ddp_compiled(rank, folder):
    model = model_of(rank)
    compiled = torch.compile(DistributedDataParallel(model), backend="aot_eager")
    same_model(compiled, "compiled").sum().backward()


def older_fsdp(rank, folder):
    """Rewires where it has all weights, and says so where it has not."""
    for original in (True, False):
        model = FullyShardedDataParallel(
            model_of(3), use_orig_params=original, device_id=torch.device("cpu")
        )
        optimizer = torch.optim.Adam(model.parameters())
        trained(model, optimizer, rank)
        layer = model.module[1]
        before = layer.indices.int()
        for ask in (
            lambda layer=layer: layer.rewire(0.5, rng=0),
            lambda layer=layer, given=optimizer: layer.rewire(0.5, given, rng=0),
            lambda layer=layer: layer.rewire_towards_gradients(*data(0)),
        ):
            refused(ask)
        with FullyShardedDataParallel.summon_full_params(model):
            refused(lambda layer=layer, given=optimizer: layer.rewire(0.5, given, rng=0))
            assert torch.equal(layer.indices.int(), before)
            assert layer.rewire(0.5, rng=0) == 26
        trained(model, optimizer, rank)
        same_model(model, "FullyShardedDataParallel")


def refused(ask):
    try:
        ask()
    except ValueError:
        return
    raise AssertionError("it is not refused")


def sharded(model):
    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)))


def newer_fsdp(rank, folder):
    """What a layer of one process does, and moments that are spread over the ranks."""
    for kind in (torch.optim.Adam, torch.optim.ASGD, torch.optim.Adagrad):
        for towards_gradients in (False, True):
            alone, model = model_of(3), sharded(model_of(3))
            optimizers = [kind(each.parameters(), 0.1) for each in (alone, model)]
            for each, optimizer in zip((alone, model), optimizers, strict=True):
                trained(each, optimizer, 0)
                if towards_gradients:
                    each[1].rewire_towards_gradients(*data(0), 0.5, optimizer, rng=5)
                else:
                    assert each[1].rewire(0.5, optimizer, rng=5) == 26
            assert torch.equal(alone[1].indices.int(), model[1].indices.int())
            states = [
                o.state[m[1].weights] for o, m in zip(optimizers, (alone, model), strict=True)
            ]
            for name, array in states[0].items():
                if array.ndim:
                    assert torch.allclose(array, states[1][name].full_tensor(), atol=1e-6), name
            for each, optimizer in zip((alone, model), optimizers, strict=True):
                trained(each, optimizer, 0)
            assert torch.allclose(alone(torch.ones(3, 8)), same_model(model, "FSDP2"), atol=1e-5)


def newer_fsdp_agrees(rank, folder):
    """On connections of rank 0, as soon as it rewires or draws its parameters anew."""
    model = sharded(model_of(rank))
    optimizer = torch.optim.Adam(model.parameters())
    trained(model, optimizer, rank)
    model[1].rewire(0.5, optimizer)
    same_model(model, "FSDP2 after rewiring")
    with torch.device("meta"):
        model = model_of(0)
    sharded(model).to_empty(device="cpu")
    torch.manual_seed(rank)
    for module in model:
        module.reset_parameters()
    same_model(model, "FSDP2 of an empty model")
    layer = sharded(FixedFanInLinear(20, LABELS, 4, recipe="best"))
    layer.start_from(*data(rank))
    same(layer(torch.ones(2, 20)), "FSDP2 of a layer that started from data")


def checkpoint(rank, folder):
    for wrap in (lambda model: model, sharded, DistributedDataParallel):
        model, other = wrap(model_of(3)), wrap(model_of(rank + 4))
        where = f"{folder}/{wrap.__name__.strip('<>')}"
        dcp.save(get_model_state_dict(model), checkpoint_id=where)
        state = get_model_state_dict(other)
        dcp.load(state, checkpoint_id=where)
        set_model_state_dict(other, state)
        assert torch.equal(model(torch.ones(3, 8)), other(torch.ones(3, 8)))


def state_of_rank_0(rank, folder):
    expected = model_of(3)
    full = get_model_state_dict(
        sharded(model_of(3)), options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    for wrap in (lambda model: model, sharded):
        for given in (full, expected.state_dict()):
            model = wrap(model_of(rank + 4))
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            set_model_state_dict(model, given if rank == 0 else {}, options=options)
            assert torch.equal(model(torch.ones(3, 8)), expected(torch.ones(3, 8)))
            assert torch.equal(model[1].indices.int(), expected[1].indices.int())


SCENARIOS = (
    ddp,
    ddp_on_data_of_their_own,
    ddp_of_layers_that_started_from_their_own,
    ddp_of_layers_that_start_anew_when_they_are_wrapped,
    ddp_of_a_layer_that_trains_itself,
    ddp_compiled,
    older_fsdp,
    newer_fsdp,
    newer_fsdp_agrees,
    checkpoint,
    state_of_rank_0,
)


def both(rank, folder, names):
    dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=2)
    for scenario in SCENARIOS:
        if scenario.__name__ not in names:
            continue
        try:
            scenario(rank, folder)
            outcome = "ok"
        except Exception:
            outcome = traceback.format_exc()
        print(f"{scenario.__name__}: {outcome!r}", flush=True)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    wanted = sys.argv[1:] or [scenario.__name__ for scenario in SCENARIOS]
    with tempfile.TemporaryDirectory() as shared:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.multiprocessing.spawn(both, (shared, wanted), nprocs=2)
