"""One rank of trainings that several share: `python trained_over_ranks.py RANK RANKS FOLDER
EXECUTION...`. Each kind of output layer is trained in these executions; rank 0 writes what came of
it as `<folder>/<name>.npz`, which `tests/backends/torch/test_sharded_trainer.py` compares."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
from setups import random_batches, starting
from sharded_cases import KINDS

from fanin.backends.arrays import copied
from fanin.backends.interface import FLOAT32, Storage
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup

INPUTS, LABELS, UNITS = 40, 203, 24  # labels that neither 2 nor 4 ranks share evenly
STEPS = 12
BFLOAT16 = Storage("bfloat16", "bfloat16")


def cases(executions=("autograd", "fused")):
    """Name, setup, execution and storage of each training."""
    for name, kind in KINDS.items():
        for units in (None, UNITS):
            for execution in executions:
                loss = "bce" if units else "squared_hinge"
                setup = LayerSetup(INPUTS, LABELS, kind, units, loss)
                case = f"{name}-{units or 'plain'}-{execution}"
                yield case, setup, execution, FLOAT32
                if execution == "fused":
                    yield f"{case}-bfloat16", setup, execution, BFLOAT16
                    if kind.fan_in and not units:
                        yield f"{case}-float8", setup, execution, Storage("float8", "bfloat16")


def trained(setup, execution, storage, over_ranks):
    """Losses, the best labels of many instances, and all arrays, of a training that rewires, and
    that goes on from what it had written half way."""

    def make(seed):
        arrays = starting(setup, seed)
        for name in arrays:
            if name.endswith(".rows"):  # which never change
                arrays[name] = starting(setup, 1)[name]
        return make_trainer(
            "torch",
            setup,
            arrays,
            execution=execution,
            storage=storage,
            device="cpu",
            threads=1,
            over_ranks=over_ranks,
        )

    first, second = make(1), make(2)
    batches, moved = random_batches(setup, STEPS, share=0.02), 0
    losses = [first.train(batches[: STEPS // 2], 0.01)]
    if setup.is_rewired:
        moved += first.rewire(0.3, 7)
        moved += sum(map(first.apply_rewiring, first.plan_rewiring(0.2, 8, below=0.05)))
    state = {**copied(first.arrays()), **copied(first.optimizer_arrays())}
    if over_ranks:
        state = first.ranks.from_first(state)
    second.load_weights({name: state[name] for name in setup.array_shapes()})
    second.load_optimizer_arrays({k: v for k, v in state.items() if k not in setup.array_shapes()})
    losses.append(second.train(batches[STEPS // 2 :], 0.01))
    x = np.random.default_rng(5).standard_normal((500, INPUTS)).astype(np.float32)
    everything = {**copied(second.arrays()), **copied(second.optimizer_arrays())}
    parameters = second.state_bytes()[0]
    return {
        "losses": np.concatenate(losses),
        "top": second.top_k(x, 5),
        "all": second.top_k(x[:3], LABELS),
        "moved": np.array(moved),
        "bytes": np.array(parameters),
        **everything,
    }


if __name__ == "__main__":
    import torch.distributed as dist

    rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group(
        "gloo",
        f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=60),
    )
    for name, setup, execution, storage in cases(sys.argv[4:]):
        arrays = trained(setup, execution, storage, over_ranks=True)
        if rank == 0:
            np.savez(folder / name, **arrays)
    dist.destroy_process_group()
