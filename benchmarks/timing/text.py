"""Trains the estimator on sparse features, and Omikuji beside it: `python -m
fanin.benchmarks.timing.text`.

Each training is a process of its own (`text_trainer`), and where the package `omikuji` is installed
the two take turns, on the same data with the same number of threads. Omikuji (its trees are those
of Prabhu et al., WWW 2018) runs with its own defaults, three trees; the estimator with its
defaults. Times are of the training alone. Omikuji's include the reading of its text file, fanin's
the choice of pairs.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from fanin.benchmarks.harness.prepare import dataset_info
from fanin.benchmarks.measuring.machine import describe_machine
from fanin.benchmarks.measuring.process import Child, EndedError
from fanin.benchmarks.records.files import try_writing, write_atomically
from fanin.benchmarks.records.printing import prepare_streams
from fanin.benchmarks.records.timing import TrainerName, WordsTimes, WordsTraining
from fanin.benchmarks.timing.text_trainer import NoFramework, Request
from fanin.datasets.registry import load
from fanin.kernels.threads import thread_count
from fanin.reports.tables.words import words_table

_TREES = 3


def in_a_process(request: Request) -> WordsTraining:
    """Train and measure in a new process."""
    with tempfile.TemporaryDirectory(prefix="fanin-text-") as folder:
        log = Path(folder) / "trainer.log"
        with Child("fanin.benchmarks.timing.text_trainer", folder, log=log) as child:
            child.send(request.model_dump(mode="json"))
            try:
                answer = child.receive()
            except EndedError:
                answer = {"error": log.read_text(encoding="utf-8", errors="replace")}
    if "error" in answer:
        raise RuntimeError(f"{request.trainer} failed:\n{answer['error']}")
    return WordsTraining.model_validate_json(json.dumps(answer["result"]))


def main(
    dataset: Annotated[str, typer.Option(help="Name of a data set with sparse features.")],
    out: Annotated[Path, typer.Option(help="Write the result file here.")],
    data_dir: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of data sets.")
    ] = None,
    features: Annotated[str, typer.Option(help="Which of its features.")] = "bow",
    repeats: Annotated[int, typer.Option(min=1)] = 1,
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Train both, turn by turn, print a table and write a result file."""
    try_writing(out.parent)
    names: list[TrainerName] = ["fanin"]
    if importlib.util.find_spec("omikuji") is None:
        print("omikuji is not installed (pip install omikuji): fanin alone is trained")
    else:
        names.append("omikuji")
    data = load(dataset, features, data_dir)
    if not data.sparse_features:
        raise typer.BadParameter(f"{features} features of {dataset} are dense")
    info = dataset_info(data)
    del data
    trainings = []
    for repeat in range(repeats):
        for name in names:
            request = Request(
                trainer=name,
                dataset=dataset,
                features=features,
                data_dir=None if data_dir is None else str(data_dir.resolve()),
                threads=threads,
                trees=_TREES,
                seed=repeat,
            )
            trainings.append(in_a_process(request))
            print(trainings[-1].model_dump_json(), flush=True)
        # After each round, so that a stopped command leaves what it has measured.
        times = WordsTimes(
            dataset=info,
            machine=describe_machine(NoFramework(), thread_count(threads)),
            threads=threads,
            trees=_TREES,
            trainings=trainings,
        )
        write_atomically(out, times.model_dump_json(indent=1) + "\n")
    print(words_table([times]).terminal())


if __name__ == "__main__":
    prepare_streams()
    typer.run(main)
