"""The options that commands have in common, each declared once; those of one command alone stand
with it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, get_args

import typer

from fanin.backends import interface
from fanin.backends.interface import DEVICES
from fanin.backends.optimizer import OptimizerKind
from fanin.backends.recipes import RecipeName
from fanin.backends.registry import BACKENDS
from fanin.benchmarks.cli.output import stop
from fanin.benchmarks.harness.request import Options
from fanin.benchmarks.records.task_keys import Moments
from fanin.benchmarks.timing.options import one_of
from fanin.kernels.threads import MOST_THREADS, thread_count

# What an option of a run is when it is not given.
DEFAULTS = Options()


def finite(value: float | None) -> float | None:
    """A number below 1e12; larger ones would make the results infinite."""
    if value is not None and not value < 1e12:
        raise typer.BadParameter(f"{value:g} is not a number below 1e12")
    return value


def text_path(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """The path, which must be text: a run gets it as JSON, which holds nothing else."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        stop(f"{param.opts[0]} {value} is no {encoding} text: rename the folder, or link to it")
    return value


def usable_threads(value: int) -> int:
    """The number of threads; where it is 0, OMP_NUM_THREADS must be possible too."""
    try:
        thread_count(value)
    except ValueError as error:
        stop(str(error))
    return value


def check_processes(processes: int, backends: Iterable[str], is_profile: bool) -> None:
    """Stop where several processes are asked for, and a backend or a profile has one."""
    if processes == 1:
        return
    if is_profile:
        stop(f"--processes {processes}: a shape profile runs in one process; leave it out")
    for backend in backends:
        if reason := BACKENDS[backend].one_process:
            name = BACKENDS[backend].display_name
            stop(
                f"--processes {processes}: {name} trains with one process: {reason}. Add --backend "
                "torch, or leave --processes out; runs beside each other need no --processes"
            )


Results = Annotated[
    Path,
    typer.Option(help="Folder of the result files.", file_okay=False, callback=text_path),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Dataset = Annotated[
    str | None,
    typer.Option(
        help="Data set: one that comes with fanin (see `fanin info`) or a folder below --data-dir; "
        "wordnet-small where no task file names another."
    ),
]
Features = Annotated[
    str | None,
    typer.Option(help="Features of the data set; by default all that it has tasks for."),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Your own data: `<dir>/<dataset>/{train,test}-labels.txt` and "
        "`{train,test}-<features>.npy`; with --dataset or --tasks.",
        exists=True,
        file_okay=False,
        callback=text_path,
    ),
]
Tasks = Annotated[
    Path | None,
    typer.Option(
        help='Task file (JSON: {"defaults": {}, "tasks": []}), or one of fanin\'s own by its name '
        "(see `fanin info`), such as `amazon-670k/slice-ablations`."
    ),
]
Setup = Annotated[
    list[str] | None,
    typer.Option(
        help="Only these setups, by name as in the table (`FFI 32-4096` or `ffi-32-4096`); "
        "repeatable."
    ),
]
Backend = Annotated[list[str] | None, one_of(BACKENDS, "Repeatable; default both.")]
Execution = Annotated[
    list[str] | None,
    one_of(
        get_args(interface.Execution),
        "autograd: the framework's own way; fused: score, loss, gradients and optimiser in "
        "one pass by fanin's kernels. Repeatable; by default what the task file says (autograd).",
    ),
]
WeightsDtype = Annotated[
    str | None,
    one_of(
        interface.WEIGHTS_TYPES,
        "bfloat16: stochastically rounded, fused only; float8: so too, and of labels with a fixed "
        "fan-in that read features.",
    ),
]
MomentsDtype = Annotated[
    str | None, one_of(get_args(interface.StoredType), "Adam's moments; bfloat16: fused only.")
]
MomentsOption = Annotated[
    str | None,
    one_of(
        get_args(Moments),
        "Adam's moments of the weights that read sparse features: full, or row, one number a word.",
    ),
]
OptimizerOption = Annotated[
    str | None,
    one_of(
        get_args(OptimizerKind),
        "sgd keeps no moments and momentum one for each weight; both need a learning rate of the "
        "order of the number of labels. By default what the task file says (adam).",
    ),
]
LearningRateOption = Annotated[
    float | None,
    typer.Option(min=0, help="At the first step; by default what the task file says."),
]
WeightDecay = Annotated[
    float | None,
    typer.Option(min=0, help="Decoupled, as in AdamW; by default what the task file says (0)."),
]
L2 = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="L2: so much of each weight is added to its gradient; by default what the task file "
        "says (0).",
    ),
]
RecipeOption = Annotated[
    str | None,
    one_of(
        get_args(RecipeName),
        "paper: as published; best: connections chosen by the data and the rest of what gave the "
        "highest precision, also for setups of a task file that says otherwise. By default what "
        "the task file says (paper), and best for your own data without one.",
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of weights, order and dropout.")]
Device = Annotated[str, one_of(DEVICES, "auto: a GPU where there is one.")]
Threads = Annotated[
    int,
    typer.Option(
        min=0,
        max=MOST_THREADS,
        help="CPU threads; 0 for OMP_NUM_THREADS, or all without it.",
        callback=usable_threads,
    ),
]
Processes = Annotated[
    int,
    typer.Option(
        min=1,
        max=1024,
        help="Processes that train each run together: each has its share of the labels and of the "
        "threads. PyTorch only.",
    ),
]
