"""Times predictions for one instance and for a few: `python -m fanin.benchmarks.timing.predict`.

A fixed fan-in model of random weights (synthetic: a time does not depend on them) is asked for the
best labels of random instances, as a saved model is: by `Predictor`, in NumPy and libfanin, with
all threads. Batches of each size take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer

from fanin.backends.arrays import InitialArrays
from fanin.backends.estimator.predictor import Predictor
from fanin.backends.kinds import FixedFanIn
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.measuring.machine import describe_machine
from fanin.benchmarks.records.files import try_writing, write_atomically
from fanin.benchmarks.records.printing import prepare_streams
from fanin.benchmarks.records.timing import PredictTimes
from fanin.benchmarks.timing.options import ResultFile, Rounds, SizeOption
from fanin.benchmarks.timing.rounds import rounds
from fanin.benchmarks.timing.text_trainer import NoFramework
from fanin.kernels.threads import thread_count
from fanin.reports.tables.predict import predict_introduction, predict_table

_BATCHES = (1, 2, 4, 8, 16, 32)


def time_batches(
    inputs: int, labels: int, fan_in: int, k: int, count: int
) -> dict[int, list[float]]:
    """Seconds per round of each size of a batch."""
    setup = LayerSetup(inputs, labels, FixedFanIn(fan_in))
    predictor = Predictor(setup, InitialArrays(setup, seed=0))
    x = np.random.default_rng(0).standard_normal((max(_BATCHES), inputs), np.float32)
    calls: dict[str, Callable[[], Any]] = {
        str(n): partial(predictor.top_k, x[:n], k) for n in _BATCHES
    }
    return {int(n): seconds for n, seconds in rounds(calls, count).items()}


def main(
    labels: SizeOption = 670_091,
    inputs: SizeOption = 768,
    fan_in: SizeOption = 32,
    k: Annotated[int, typer.Option(min=1, help="How many labels are asked for.")] = 5,
    count: Rounds = 25,
    out: ResultFile = None,
) -> None:
    """Time predictions for batches of 1 to 32 instances."""
    if out:
        try_writing(out.parent)
    times = PredictTimes(
        started=datetime.now(UTC),
        machine=describe_machine(NoFramework(), thread_count(0)),
        inputs=inputs,
        labels=labels,
        fan_in=fan_in,
        k=k,
        seconds=time_batches(inputs, labels, fan_in, k, count),
    )
    print(f"{predict_introduction(times)}\n\n{predict_table(times).terminal()}")
    if out:
        write_atomically(out, times.model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    prepare_streams()
    typer.run(main)
