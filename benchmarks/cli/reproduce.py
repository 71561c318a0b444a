"""`fanin reproduce`: train setups in the backends, then write the report."""

from __future__ import annotations

import re
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
from fanin.benchmarks.cli.output import make_console, print_json, print_report, print_text, stop
from fanin.benchmarks.cli.plan import plans_of, sizes_of
from fanin.benchmarks.cli.progress import Terminal
from fanin.benchmarks.cli.selection import installed_backends, select_tasks
from fanin.benchmarks.harness import speed
from fanin.benchmarks.harness.cluster import Cluster, OnInterrupt, Resources, run_as_jobs
from fanin.benchmarks.harness.parent import Runs, run_all
from fanin.benchmarks.harness.queues import QUEUES
from fanin.benchmarks.harness.request import Options, requests
from fanin.benchmarks.harness.together import launched_rank
from fanin.benchmarks.records.printing import number_of
from fanin.benchmarks.records.run import Profile
from fanin.benchmarks.records.store import check_folder
from fanin.benchmarks.records.task_keys import EvaluationProtocol
from fanin.benchmarks.timing.options import one_of
from fanin.datasets import PUBLISHED
from fanin.datasets.memory import available_bytes
from fanin.kernels.threads import thread_count
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
    cluster: Annotated[
        str | None,
        one_of(
            QUEUES,
            "Run each training as a job: slurm, all as one array whose memory, time and CPUs come "
            "from the plan; local, processes of this machine by the same path. By default one "
            "after the other, by this command.",
        ),
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option(min=1, help="Jobs at once; by default all, and local as many as fit."),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="How often a job that was killed, or whose time was over, is taken up again "
            f"({Cluster.retries}).",
        ),
    ] = None,
    on_interrupt: Annotated[
        str | None,
        one_of(
            get_args(OnInterrupt),
            "What Ctrl-C does to jobs: leave (they go on, and the same command watches them "
            "again; the default) or cancel.",
        ),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A long option of sbatch, such as partition=long, account=x, mem=8G or time=90 "
            "(minutes), in place of the plan's; repeatable.",
        ),
    ] = None,
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
    where = _cluster(cluster, at_once, retries, on_interrupt, slurm)
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
    if where:
        count = thread_count(threads)
        machine = speed.Speed(speed.measured_bandwidth(count), speed.measured_flops(count))
        sizes = sizes_of(chosen, data_dir)
        plans = plans_of(chosen, backends, sizes, machine, count, available_bytes(), processes)
        needs = Resources.of(plans, options)
        with Terminal(console) as terminal:
            done = run_as_jobs(todo, where, needs, terminal)
    else:
        with Terminal(console) as terminal, other_ranks(launched is not None) as runs:
            done = run_all(todo, options, terminal.line(), runs)
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
        untried = number_of(len(todo) - len(done), "run")
        print_text(console, f"not tried, since the data cannot be used: {untried}")
    if failed:
        raise typer.Exit(USAGE if any(each.is_of_input for each in failed) else FAILED)


# What fanin itself has to choose. By --threads also the frameworks learn of the CPUs.
_CHOSEN = {"array", "cpus_per_task", "error", "open_mode", "output", "requeue", "signal"}


def _cluster(
    name: str | None,
    at_once: int | None,
    retries: int | None,
    on_interrupt: str | None,
    settings: list[str] | None,
) -> Cluster | None:
    """Where jobs are run; None where this command runs the trainings itself."""
    given = [value for value in (at_once, retries, on_interrupt, settings) if value is not None]
    if name is None:
        if given:
            stop("--at-once, --retries, --on-interrupt and --slurm are for jobs: name --cluster")
        return None
    if name == "local" and settings:
        stop("--slurm is for --cluster slurm")
    pairs = {}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        known = key.strip("-").replace("-", "_")
        if not (equals and re.fullmatch(r"[a-z_]+", known) and value.isprintable() and value):
            stop(f"--slurm {setting!r} is no KEY=VALUE, such as partition=long")
        if known in _CHOSEN:
            stop(f"--slurm {key} is not for you to choose; CPUs come from --threads")
        if known == "time" and not (value.isdecimal() and int(value) > 0):
            stop(f"--slurm time={value}: give minutes, such as time=90")
        pairs[known] = value
    return Cluster(
        name,
        at_once,
        Cluster.retries if retries is None else retries,
        "cancel" if on_interrupt == "cancel" else "leave",
        pairs,
    )


@contextmanager
def other_ranks(are_several: bool) -> Iterator[Runs | None]:
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
