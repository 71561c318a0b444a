"""`fanin export`: a saved model as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fanin.backends.estimator.saved as models
from fanin.benchmarks.cli.output import stop


def export(
    model: Annotated[Path, typer.Argument(help="Folder that `FanInClassifier.save` wrote.")],
    file: Annotated[Path, typer.Argument(help="The file to write, such as model.onnx.")],
    k: Annotated[
        int | None,
        typer.Option(min=1, help="Give the k best labels instead of the scores of all."),
    ] = None,
) -> None:
    """Write a saved model as an ONNX file, which other runtimes run without fanin.

    Its inputs are `features` [batch, inputs], or, of a model of sparse features, `columns` and
    `values` [batch, stored]. Its outputs are `scores`, with --k of the best labels and with their
    `label_ids`, which count the lines of the model's labels.txt from 0. Example: `fanin export
    model model.onnx --k 5`. Needs `pip install 'fanin[onnx]'`.
    """
    loaded = models.load(model)
    try:
        loaded.export_onnx(file, k)
    except ValueError as error:
        stop(f"{model}: {error}")
