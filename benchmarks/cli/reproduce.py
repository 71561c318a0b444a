"""`fanin reproduce`: train setups in the backends, then write the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, get_args

import typer

from fanin.benchmarks.cli.codes import FAILED, USAGE
from fanin.benchmarks.cli.options import (
    DEFAULTS,
    L2,
    AsJson,
    Backend,
    DataDir,
    Dataset,
    Device,
    Execution,
    Features,
    LearningRateOption,
    MomentsDtype,
    MomentsOption,
    OptimizerOption,
    Processes,
    RecipeOption,
    Results,
    Seed,
    Setup,
    Tasks,
    Threads,
    WeightDecay,
    WeightsDtype,
    check_processes,
    finite,
)
from fanin.benchmarks.cli.output import make_console, print_json, print_report, print_text
from fanin.benchmarks.cli.progress import Terminal
from fanin.benchmarks.cli.selection import installed_backends, select_tasks
from fanin.benchmarks.harness.parent import Runs, run_all
from fanin.benchmarks.harness.request import Options, requests
from fanin.benchmarks.harness.together import launched_rank
from fanin.benchmarks.records.run import Profile
from fanin.benchmarks.records.store import check_folder
from fanin.benchmarks.records.task_keys import EvaluationProtocol
from fanin.benchmarks.timing.options import one_of
from fanin.datasets import PUBLISHED
from fanin.reports.pages.report import write_report
from fanin.reports.tables.terminal import profiles_text, runs_text


def reproduce(
    dataset: Dataset = None,
    features: Features = None,
    data_dir: DataDir = None,
    tasks: Tasks = None,
    setup: Setup = None,
    recipe: RecipeOption = None,
    backend: Backend = None,
    execution: Execution = None,
    weights_dtype: WeightsDtype = None,
    moments_dtype: MomentsDtype = None,
    moments: MomentsOption = None,
    optimizer: OptimizerOption = None,
    learning_rate: LearningRateOption = None,
    weight_decay: WeightDecay = None,
    l2: L2 = None,
    repeat: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Runs per task, each its seed.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most this many epochs.")] = None,
    seed: Seed = None,
    protocol: Annotated[
        str | None,
        one_of(
            get_args(EvaluationProtocol),
            "paper: validate on the test set, as published; holdout: on a tenth of "
            "the training set.",
        ),
    ] = None,
    profile: Annotated[
        str,
        one_of(
            get_args(Profile),
            "shapes: a few steps on random data of the published sizes, for memory "
            "and extrapolated time, fused unless --execution says otherwise; without "
            "--dataset all published tables.",
        ),
    ] = DEFAULTS.profile,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a shape profile.")] = DEFAULTS.steps,
    results: Results = DEFAULTS.results,
    device: Device = DEFAULTS.device,
    threads: Threads = DEFAULTS.threads,
    processes: Processes = DEFAULTS.processes,
    force: Annotated[
        bool, typer.Option("--force", help="Repeat finished runs, use no checkpoint.")
    ] = DEFAULTS.force,
    save_weights: Annotated[
        bool, typer.Option("--save-weights", help="Keep the best weights (safetensors).")
    ] = DEFAULTS.save_weights,
    checkpoint_minutes: Annotated[
        float,
        typer.Option(
            min=0,
            help="A run that was stopped or killed goes on from its last checkpoint: written after "
            "an epoch when the last one is this old.",
            callback=finite,
        ),
    ] = DEFAULTS.checkpoint_minutes,
    as_json: AsJson = False,
) -> None:
    """Train all layer setups on a data set in both backends, then write the report.

    Finished runs are skipped and a run that was stopped or killed goes on from its checkpoint, so
    it can be stopped with Ctrl-C and started again.

    Examples: `fanin reproduce` (small cut, minutes), `fanin reproduce --dataset wordnet` (all of
    it, hours), `fanin reproduce --setup ffi-32 --backend torch --epochs 3`, `fanin reproduce
    --execution autograd --execution fused` (both ways beside each other), `fanin reproduce
    --data-dir DIR --dataset amazon-670k --features slice` (the rows of a published table).
    """
    launched = launched_rank()
    if launched and launched[0]:
        return follow(launched[0])
    console = make_console(as_json)
    backends = installed_backends(backend)
    overrides = {
        "recipe": recipe,
        "repeat": repeat,
        "epochs": epochs,
        "seed": seed,
        "protocol": protocol,
        "weights_dtype": weights_dtype,
        "moments_dtype": moments_dtype,
        "moments": moments,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "l2": l2,
    }
    shapes = profile == "shapes"
    processes = launched[1] if launched else processes
    check_processes(processes, backends, shapes)
    ways = execution or (["fused"] if shapes else None)
    names: list[str | None] = [dataset]
    if shapes and dataset is None and tasks is None and data_dir is None:
        names = [e.name for e in PUBLISHED.values() if e.features]
    chosen = select_tasks(names, features, data_dir, tasks, setup, overrides, ways)
    options = Options(
        results=results,
        data_dir=data_dir,
        device=device,
        threads=threads,
        processes=processes,
        force=force,
        save_weights=save_weights,
        checkpoint_minutes=checkpoint_minutes,
        profile="shapes" if shapes else "train",
        steps=steps,
    )
    todo = requests(chosen, backends, options)
    paths = {request.path for request in todo}
    check_folder(results, paths, replaced=paths if force else ())
    with Terminal(console) as display, told(launched is not None) as runs:
        done = run_all(todo, options, display, runs)
    table = profiles_text(done) if shapes else runs_text(done)
    if not as_json:  # whatever becomes of the report
        print_text(console, f"\n{table}")
    page = write_report(results)
    # A shape profile shall find out what is too large for this machine: that is no failure of it.
    failures = [r.failure for r in done if r.failure]
    failed = [each for each in failures if not (shapes and each.is_too_large)]
    if as_json:
        print_json(
            {
                "results": [r.model_dump(mode="json") for r in done],
                "report": str(page.resolve()),
            }
        )
    else:
        print_report(console, page)
    if len(done) < len(todo):
        print_text(console, f"{len(todo) - len(done)} more runs on unusable data were not tried")
    if failed:
        raise typer.Exit(USAGE if any(each.is_of_input for each in failed) else FAILED)


@contextmanager
def told(are_several: bool) -> Iterator[Runs | None]:
    """What tells the commands of other ranks of each run, where there are some; they end with it.
    Only then is torch imported into this process."""
    if not are_several:
        yield None
        return
    from fanin.benchmarks.harness.launched import Runs as LaunchedRuns

    runs = LaunchedRuns(0)
    try:
        yield runs
    finally:
        runs.end()


def follow(rank: int) -> None:
    """Take part in what the command of rank 0 does."""
    from fanin.benchmarks.harness.launched import Runs as LaunchedRuns

    LaunchedRuns(rank).follow()
