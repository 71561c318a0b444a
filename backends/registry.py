"""The backends: one record each, and `make_trainer`, which builds a trainer in one of them.

Whatever depends on a backend's name stands in its record. Importing this imports no framework.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np

from fanin.backends.auxiliary import Auxiliary
from fanin.backends.interface import FLOAT32, Execution, Storage
from fanin.backends.optimizer import ADAM, Optimizer, check_row_moments
from fanin.backends.setup import LayerSetup
from fanin.backends.trainer import Trainer
from fanin.kernels.threads import within_share


@dataclass(frozen=True)
class MemoryModel:
    """What a framework holds on a CPU beside the arrays that can be counted from a setup. Found in
    its code and checked against measured peaks; `fanin plan` estimates by it.

    rounding: what the allocator rounds up, a share of all bytes.
    dense_copies: of the float32 weights of a dense layer, while the fused execution takes them over
    (together with the weights that are kept by then).
    read_copies: of the weights of a dense layer, while they are read out of the fused execution,
    which has them the other way round.
    words_building: copies of the float32 weights that read sparse features, while they are taken
    over, in both executions. Nothing else is in memory then.
    Of the autograd execution:
    optimizer_copies: of all trained arrays, during Adam's update, when the scores are gone.
    dense_library_bytes, sparse_library_bytes, fanin_library_bytes: held by the libraries under the
    framework for the products of an output layer of that kind of operations.
    intermediate_library_bytes: for those of an intermediate layer before fanin's own op.
    words_rows, words_predicted: arrays that have a row of `units` numbers for each word of each
    instance, in training and in prediction.
    words_copies: copies of these weights or of a moment, which are made where rows have changed and
    then the whole array is read.
    sparse_index_bytes, sparse_starts_bytes: of each sparse connection's place, and of each label's
    start.
    sparse_arrays, sparse_arrays_by_instance: arrays of one float32 for each connection that the
    sparse operations hold besides: so many, and so many for each instance of a batch; the second
    number of each holds where there is an intermediate layer.
    """

    rounding: float
    dense_copies: int = 0
    read_copies: int = 0
    optimizer_copies: int = 0
    dense_library_bytes: int = 0
    sparse_library_bytes: int = 0
    fanin_library_bytes: int = 0
    intermediate_library_bytes: int = 0
    words_building: int = 1
    words_rows: float = 0.0
    words_predicted: float = 0.0
    words_copies: int = 0
    sparse_index_bytes: int = 0
    sparse_starts_bytes: int = 0
    sparse_arrays: tuple[float, float] = (0.0, 0.0)
    sparse_arrays_by_instance: tuple[float, float] = (0.0, 0.0)

    def library_bytes(self, setup: LayerSetup) -> int:
        """Memory of the libraries under the framework, for products."""
        has_product = setup.intermediate is not None and not setup.sparse_features
        by_operations = {
            "fanin": self.fanin_library_bytes
            + (self.intermediate_library_bytes if has_product else 0),
            "dense": self.dense_library_bytes,
            "sparse": self.sparse_library_bytes,
        }
        return max(by_operations[part.kind.operations] for part in setup.parts)

    def sparse_temporary_bytes(self, setup: LayerSetup, batch: int) -> float:
        """What the framework's sparse operations hold besides."""
        at = 1 if setup.intermediate else 0
        arrays = self.sparse_arrays[at] + self.sparse_arrays_by_instance[at] * batch
        return arrays * 4 * setup.connections("sparse")


@dataclass(frozen=True)
class Backend:
    """A framework as the rest of fanin sees it.

    name: of its folder here, of its package, and on the command line. marker: of its points in
    plots, as Matplotlib has it. install: the command that brings it. one_process: why it cannot
    train a model with several processes, empty where it can.
    """

    name: str
    display_name: str
    marker: str
    install: str
    memory: MemoryModel
    one_process: str = ""


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name="torch",
            display_name="PyTorch",
            marker="o",
            install="pip install 'fanin[torch]'",
            memory=MemoryModel(
                rounding=0.01,
                dense_library_bytes=36 << 20,
                sparse_library_bytes=36 << 20,
                intermediate_library_bytes=10 << 20,
                words_rows=4,
                # Rows, columns and where rows start, int32.
                sparse_index_bytes=8,
                sparse_starts_bytes=4,
                # The matrix is sorted by columns for the gradient of its inputs.
                sparse_arrays=(1.6, 6.6),
            ),
        ),
        Backend(
            name="tensorflow",
            display_name="TensorFlow",
            marker="s",
            install="pip install 'fanin[tensorflow]' (or 'fanin[tensorflow-cpu]')",
            memory=MemoryModel(
                rounding=0.04,
                dense_copies=3,
                read_copies=1,
                optimizer_copies=2,
                words_building=2,
                words_rows=5,
                words_predicted=2,
                words_copies=1,
                sparse_index_bytes=16,  # pairs of int64
                sparse_arrays=(10, 10),
                # Each gradient gathers two of [connections, batch].
                sparse_arrays_by_instance=(2, 4),
            ),
            one_process="Keras' distribution for TensorFlow does not cut such a layer over "
            "processes, and TensorFlow's parameter servers are asynchronous, so no two runs would "
            "give the same numbers",
        ),
    )
}


def make_trainer(
    backend: str,
    setup: LayerSetup,
    arrays: Mapping[str, np.ndarray],
    *,
    execution: Execution = "autograd",
    storage: Storage = FLOAT32,
    optimizer: Optimizer = ADAM,
    device: str = "auto",
    threads: int = 0,
    auxiliary: Auxiliary | None = None,
    over_ranks: bool = False,
) -> Trainer:
    """Build the trainer of `backend`; imports that framework and no other.

    execution: how to train; storage: of weights and moments, see `Storage`; optimizer: see there.
    device: "cpu", "cuda", or "auto" for a GPU when there is one. threads: CPU threads, 0 for all.
    auxiliary: a loss that helps the training, see there. over_ranks: whether the labels are cut
    over the processes of torch.distributed, each of which calls this with the same arguments.
    A missing framework raises ImportError with what to install: never a silent skip.
    """
    if execution == "autograd" and not storage.is_float32:
        raise ValueError("bfloat16 or float8 weights or moments need execution 'fused'")
    if storage.weights == "float8":
        setup.check_float8()
    if storage.row_moments and not setup.sparse_features:
        raise ValueError(
            "row moments need sparse features: leave row_moments out, or make the LayerSetup "
            "with sparse_features=True"
        )
    if storage.row_moments:
        check_row_moments(optimizer)
    if execution not in get_args(Execution):
        raise ValueError(f"execution must be autograd or fused, got {execution!r}")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; there are {', '.join(BACKENDS)}")
    if over_ranks and BACKENDS[backend].one_process:
        raise ValueError(
            f"backend {backend!r} trains with one process: {BACKENDS[backend].one_process}"
        )
    try:
        module = importlib.import_module(f"fanin.backends.{backend}.{execution}")
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in BACKENDS:
            raise ImportError(
                f"backend {backend!r} was asked for but {error.name} is not installed: "
                f"{BACKENDS[backend].install}"
            ) from error
        raise
    threads = within_share(threads)
    if over_ranks:
        sharded = importlib.import_module(f"fanin.backends.{backend}.sharded.trainer")
        several: Trainer = sharded.make_trainer(
            setup, arrays, execution, storage, optimizer, device, threads, auxiliary
        )
        return several
    executor = module.make_executor(setup, optimizer, device=device, threads=threads)
    if storage.weights == "float8":
        executor.take_float8()
    return Trainer(setup, arrays, executor, storage, threads, auxiliary)
