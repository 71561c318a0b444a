"""One training of `text`, measured in the process that this runs in: `text` starts it as a child,
sends it a `Request`, and gets `{"result": ...}`, or `{"error": ...}` where it has failed."""

from __future__ import annotations

import importlib
import importlib.metadata
import resource
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from fanin.backends.metrics import NO_LABEL, precision_at
from fanin.benchmarks.measuring import memory
from fanin.benchmarks.measuring.process import Parent
from fanin.benchmarks.records.base import Precision, Record
from fanin.benchmarks.records.ranges import Count, Size
from fanin.benchmarks.records.timing import TrainerName, WordsTraining
from fanin.datasets import Dataset
from fanin.datasets.registry import load
from fanin.kernels import build_info

_K = 5


class Request(Record):
    """What to train, on what. data_dir: of `datasets.registry.load`."""

    trainer: TrainerName
    dataset: str
    features: str
    data_dir: str | None
    threads: Size
    trees: Size
    seed: Count


class NoFramework:
    """For `describe_machine`: NumPy and libfanin, on a CPU."""

    def description(self) -> dict[str, str]:
        return {"framework": f"NumPy {np.__version__}", "device": "cpu"}


class Contestant(NamedTuple):
    """A training, and how the labels of instances are predicted after it: ids int64 [instances, 5]
    of CSR features."""

    train: Callable[[], object]
    predict: Callable[[sp.csr_array], np.ndarray]


def fanin(request: Request, data: Dataset, folder: Path) -> Contestant:
    from fanin.backends.estimator.classifier import FanInClassifier

    model = FanInClassifier(threads=request.threads, random_state=request.seed)
    x, y = data.train_x, data.train_y
    return Contestant(lambda: model.fit(x, y), lambda x: model.predict_top_k(x, _K).ids)


def omikuji(request: Request, data: Dataset, folder: Path) -> Contestant:
    """By its own defaults. It reads a text file, which is written before."""
    package = importlib.import_module("omikuji")
    path = folder / "train.txt"
    write_text(path, data.train_x, data.train_y)
    parameters = package.Model.default_hyper_param()
    parameters.n_trees = request.trees
    model: list[Any] = []

    def train() -> None:
        model.append(package.Model.train_on_data(str(path), parameters, request.threads))

    def predict(x: sp.csr_array) -> np.ndarray:
        ids = np.full((x.shape[0], _K), NO_LABEL, np.int64)
        for i in range(x.shape[0]):
            own = slice(x.indptr[i], x.indptr[i + 1])
            pairs = list(zip(x.indices[own].tolist(), x.data[own].tolist(), strict=True))
            best = [label for label, _ in model[0].predict(pairs, top_k=_K)]
            ids[i, : len(best)] = best
        return ids

    return Contestant(train, predict)


TRAINERS = {"fanin": fanin, "omikuji": omikuji}


def write_text(path: Path, x: Any, y: sp.csr_array) -> None:
    """The text form of the Extreme Classification Repository: a header, and a line of labels and
    features for each instance."""
    with path.open("w", encoding="ascii") as file:
        file.write(f"{x.shape[0]} {x.shape[1]} {y.shape[1]}\n")
        for i in range(x.shape[0]):
            own = slice(x.indptr[i], x.indptr[i + 1])
            words = zip(x.indices[own].tolist(), x.data[own].tolist(), strict=True)
            labels = ",".join(map(str, y.indices[y.indptr[i] : y.indptr[i + 1]].tolist()))
            file.write(f"{labels} {' '.join(f'{word}:{value:.7g}' for word, value in words)}\n")


def measure(request: Request, folder: Path) -> WordsTraining:
    data_dir = None if request.data_dir is None else Path(request.data_dir)
    data = load(request.dataset, request.features, data_dir)
    contestant, started = TRAINERS[request.trainer](request, data, folder), datetime.now(UTC)
    test_x, test_y, left_out = data.test_x, data.test_y, data.test_left_out
    assert isinstance(test_x, sp.csr_array)
    if left_out is not None:
        raise ValueError("data sets with pairs that evaluation leaves out cannot be measured")
    del data  # Omikuji reads its file
    with memory.MemoryWatch() as watch:
        before, start = _cpu_seconds(), time.perf_counter()
        contestant.train()
        seconds, cpu_seconds = time.perf_counter() - start, _cpu_seconds() - before
        baseline, peak = watch.host()
    ids = contestant.predict(test_x)
    at = {f"at_{k}": precision_at(test_y, ids, k) for k in (1, 3, 5)}
    return WordsTraining(
        trainer=request.trainer,
        version=_version(request.trainer),
        started=started,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_bytes=peak,
        baseline_bytes=baseline,
        precision=Precision(**at),
    )


def _version(trainer: TrainerName) -> str:
    if trainer == "fanin":
        return str(build_info()["version"])
    return importlib.metadata.version(trainer)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(parent: Parent, folder: Path) -> None:
    request = Request.model_validate(parent.receive())
    try:
        parent.send({"result": measure(request, folder).model_dump(mode="json")})
    except Exception:
        parent.send({"error": traceback.format_exc()})


if __name__ == "__main__":
    main(Parent(int(sys.argv[2])), Path(sys.argv[1]))
