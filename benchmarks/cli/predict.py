"""`fanin predict`: the best labels of instances, by a saved model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

import fanin.backends.estimator.saved as models
from fanin.backends.interface import evaluation_block
from fanin.benchmarks.cli.options import DEFAULTS, Threads
from fanin.benchmarks.cli.output import print_lines, stop
from fanin.datasets import Features, evaluation_blocks
from fanin.datasets.instance_lines import read_instances
from fanin.datasets.matrix_files import read_array, read_matrix
from fanin.datasets.text_files import opened
from fanin.kernels.threads import thread_count


def predict(
    model: Annotated[Path, typer.Argument(help="Folder that `FanInClassifier.save` wrote.")],
    source: Annotated[
        str,
        typer.Option(
            "--input",
            help="JSON lines, `.gz` too, a `.npy` file [instances, inputs], a sparse `.npz` file, "
            "or - for JSON lines from standard input.",
        ),
    ] = "-",
    k: Annotated[int, typer.Option(min=1, help="How many labels of each instance.")] = 5,
    threads: Threads = DEFAULTS.threads,
) -> None:
    """Predict the best labels of instances: a line of JSON for each, with names and scores.

    An instance is a line `{"features": [...]}` with all its numbers, or `{"indices": [...],
    "values": [...]}` with those that are not 0. Lines are answered as they come; a bad one ends the
    command, after the answers to those above it. Example: `fanin predict model --input
    instances.jsonl --k 3`. No framework is needed.
    """
    loaded = models.load(model, thread_count(threads))
    try:
        loaded.setup.check_k(k)
    except ValueError as error:
        stop(f"{model}: {error}")
    names = loaded.classes.tolist()
    for block in _instances(source, loaded):
        best = loaded.predict_top_k(block, k)
        print_lines(
            json.dumps(
                {
                    "labels": [names[label] for label in ids],
                    "scores": [float(f"{score:.7g}") for score in scores],
                }
            )
            for ids, scores in zip(best.ids.tolist(), best.scores.tolist(), strict=True)
        )


def _instances(source: str, model: models.SavedModel) -> Iterator[Features]:
    """The instances, block by block; DataError for what cannot be used."""
    setup, path = model.setup, Path(source)
    if path.suffix in (".npy", ".npz"):
        x: Features = read_array(path) if path.suffix == ".npy" else read_matrix(path)
        if x.shape[1] != setup.inputs:
            stop(f"{path}: {x.shape[1]} inputs, and the model reads {setup.inputs}")
        yield from evaluation_blocks(x, evaluation_block(setup.output_inputs))
        return
    with ExitStack() as files:
        is_standard = source == "-"
        stream = sys.stdin.buffer if is_standard else files.enter_context(opened(path))
        name = "standard input" if is_standard else source
        yield from read_instances(stream, name, setup.inputs, as_sparse=setup.sparse_features)
