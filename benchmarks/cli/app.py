"""The command `fanin`: reproduce, compare, plan, report, info."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import typer
from rich.console import Console
from rich.table import Table

from fanin.backends import interface
from fanin.backends.checks import MOST_THREADS
from fanin.backends.interface import DEVICES
from fanin.backends.registry import BACKENDS
from fanin.benchmarks.__main__ import INTERRUPTED
from fanin.benchmarks.cli.options import one_of
from fanin.benchmarks.cli.progress import Terminal
from fanin.benchmarks.harness import compare as lockstep
from fanin.benchmarks.harness import plan as planning
from fanin.benchmarks.harness.lock import BusyError
from fanin.benchmarks.harness.parent import Options, requests, run_all
from fanin.benchmarks.measuring import measure
from fanin.benchmarks.records.compare import LockstepResult, LockstepStep
from fanin.benchmarks.records.files import remove_leftovers
from fanin.benchmarks.records.run import Profile, RunResult
from fanin.benchmarks.records.statistics import GIB
from fanin.benchmarks.records.store import ResultError, check_folder, lockstep_path, write_result
from fanin.benchmarks.records.task import (
    USUAL_TASKS,
    EvaluationProtocol,
    Task,
    TaskError,
    files_of,
    find_tasks,
    read_tasks,
    task_files,
)
from fanin.datasets import (
    PUBLISHED,
    DataError,
    available,
    canonical_name,
    feature_kinds,
    find_folder,
    load,
    unknown,
)
from fanin.datasets.memory import available_bytes
from fanin.datasets.shape_twins import shape_twin
from fanin.kernels import build_info
from fanin.reports import ReportError, setups, shape_table, terminal_table, write_report
from fanin.reports.tables import Cell, Column, lockstep_sides
from fanin.reports.tables import Table as ReportTable

FAILED, USAGE = 1, 2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Fixed fan-in sparse output layers for extreme classification: train every layer setup "
    "in PyTorch and TensorFlow, compare them, and report.",
    epilog="Start with `fanin reproduce`: it trains on real data that comes with fanin and ends "
    "with a table and an HTML page. Exit codes: 0 done; 1 a run failed or the backends drifted "
    "apart; 2 wrong usage or data; 130 stopped with Ctrl-C.",
)


def _finite(value: float | None) -> float | None:
    """Not inf, nan, or so large that what is computed from it were inf."""
    if value is not None and not value < 1e12:
        raise typer.BadParameter(f"{value:g} is not a number below 1e12")
    return value


Results = Annotated[Path, typer.Option(help="Folder of the result files.", file_okay=False)]
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
        "autograd: the framework's own way; fused: score, loss, gradients and Adam in one "
        "pass by fanin's kernels. Repeatable; by default what the task file says (autograd).",
    ),
]
WeightsDtype = Annotated[
    str | None,
    one_of(get_args(interface.StoredType), "bfloat16: stochastically rounded, fused only."),
]
MomentsDtype = Annotated[
    str | None, one_of(get_args(interface.StoredType), "Adam's moments; bfloat16: fused only.")
]
Epochs = Annotated[int | None, typer.Option(min=1, help="At most this many epochs.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of weights, order and dropout.")]
Device = Annotated[str, one_of(DEVICES, "auto: a GPU where there is one.")]
Threads = Annotated[
    int,
    typer.Option(
        min=0, max=MOST_THREADS, help="CPU threads; 0 for OMP_NUM_THREADS, or all without it."
    ),
]


def _friendly(command: Callable[..., None]) -> Callable[..., None]:
    """Errors that say what to do become one line, anything else stays a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (TaskError, DataError, ResultError, ReportError, BusyError) as error:
            _stop(str(error))
        except BrokenPipeError:
            raise  # whoever read the output is gone; nobody wants to know
        except OSError as error:
            _stop(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except ImportError as error:  # the kernels of another version, a package that is missing
            _stop(str(error))
        except KeyboardInterrupt:
            typer.echo(
                "fanin: stopped; what has finished is kept, the same command goes on from there",
                err=True,
            )
            raise typer.Exit(INTERRUPTED) from None

    return run


@app.command()
@_friendly
def reproduce(
    dataset: Dataset = None,
    features: Features = None,
    data_dir: DataDir = None,
    tasks: Tasks = None,
    setup: Setup = None,
    backend: Backend = None,
    execution: Execution = None,
    weights_dtype: WeightsDtype = None,
    moments_dtype: MomentsDtype = None,
    repeat: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Runs per task, each its seed.")
    ] = None,
    epochs: Epochs = None,
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
    ] = "train",
    steps: Annotated[int, typer.Option(min=1, help="Steps of a shape profile.")] = 20,
    results: Results = Path("results"),
    device: Device = "auto",
    threads: Threads = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Repeat finished runs, use no checkpoint.")
    ] = False,
    save_weights: Annotated[
        bool, typer.Option("--save-weights", help="Keep the best weights (safetensors).")
    ] = False,
    checkpoint_minutes: Annotated[
        float,
        typer.Option(
            min=0,
            help="A run that was stopped or killed goes on from its last checkpoint: written after "
            "an epoch when the last one is this old.",
            callback=_finite,
        ),
    ] = 1.0,
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
    console = _console(as_json)
    backends = _backends(backend)
    overrides = {
        "repeat": repeat,
        "epochs": epochs,
        "seed": seed,
        "protocol": protocol,
        "weights_dtype": weights_dtype,
        "moments_dtype": moments_dtype,
    }
    shapes = profile == "shapes"
    ways = execution or (["fused"] if shapes else None)
    names: list[str | None] = [dataset]
    if shapes and dataset is None and tasks is None and data_dir is None:
        names = [e.name for e in PUBLISHED.values() if e.features]
    chosen = _tasks(names, features, data_dir, tasks, setup, overrides, ways)
    options = Options(
        results,
        data_dir=data_dir,
        device=device,
        threads=threads,
        force=force,
        save_weights=save_weights,
        checkpoint_minutes=checkpoint_minutes,
        profile="shapes" if shapes else "train",
        steps=steps,
    )
    todo = requests(chosen, backends, options)
    check_folder(results, {request.path for request in todo} if force else ())
    with Terminal(console) as display:
        done = run_all(todo, options, display)
    page = write_report(results)
    # That something is too large for this machine is what a shape profile is asked.
    failures = [r.failure for r in done if r.failure]
    failed = [each for each in failures if not (shapes and each.is_too_large)]
    if as_json:
        _print_json(
            {
                "results": [r.model_dump(mode="json") for r in done],
                "report": str(page.resolve()),
            }
        )
    else:
        table = _shapes_table(done) if shapes else terminal_table(done)
        console.print("\n" + table, soft_wrap=True, highlight=False, markup=False)
        console.print(f"\nThe report: {page.resolve()}", soft_wrap=True, highlight=False)
    if len(done) < len(todo):
        console.print(f"{len(todo) - len(done)} more runs on unusable data were not tried")
    if failed:
        raise typer.Exit(USAGE if any(each.is_of_input for each in failed) else FAILED)


@app.command()
@_friendly
def compare(
    dataset: Dataset = None,
    features: Features = None,
    data_dir: DataDir = None,
    tasks: Tasks = None,
    setup: Setup = None,
    execution: Execution = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps to compare.")] = 200,
    seed: Seed = None,
    results: Results = Path("results"),
    device: Device = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Train both backends side by side and compare loss and weights after every step.

    Same initial weights, batches and dropout. Fails (exit code 1) where the loss differs by more
    than 1e-5 or any array of weights by more than 1e-4 (largest difference over largest value).
    """
    console = _console(as_json)
    _backends(None)
    overrides = {"seed": seed}
    chosen = _tasks([dataset], features, data_dir, tasks, setup, overrides, execution)
    options = Options(results, data_dir=data_dir, device=device, threads=threads)
    check_folder(results, {lockstep_path(results, task) for task in chosen})
    done = []
    failures = 0
    for number, task in enumerate(chosen, 1):
        title = f"[{number}/{len(chosen)}] {task.title}"
        with console.status(title) as status:

            def show(step: LockstepStep, status: Any = status, title: str = title) -> None:
                worst = max(d.relative for d in step.arrays.values())
                status.update(
                    f"{title}: step {step.step}/{steps}, relative difference of the loss "
                    f"{step.loss.relative:.1e}, of the weights {worst:.1e}"
                )

            try:
                result = lockstep.compare(task, options, steps, show)
            except lockstep.LockstepError as error:
                console.print(f"{title}: failed: {error}", style="red", markup=False)
                failures += 1
                continue
        remove_leftovers(lockstep_path(results, task))
        write_result(lockstep_path(results, task), result)
        done.append(result)
        failures += not result.agreed
        verdict = "agree" if result.agreed else "DRIFTED APART"
        console.print(
            f"{title}: {verdict} over {steps} steps",
            style="green" if result.agreed else "red",
            markup=False,
            highlight=False,
        )
    page = write_report(results) if done else None
    if as_json:
        _print_json([r.model_dump(mode="json") for r in done])
    elif page:
        _show_comparisons(console, done)
        console.print(f"\nThe report: {page.resolve()}", soft_wrap=True, highlight=False)
    if failures:
        raise typer.Exit(FAILED)


@app.command()
@_friendly
def plan(
    dataset: Dataset = None,
    features: Features = None,
    data_dir: DataDir = None,
    tasks: Tasks = None,
    setup: Setup = None,
    backend: Backend = None,
    execution: Execution = None,
    weights_dtype: WeightsDtype = None,
    moments_dtype: MomentsDtype = None,
    memory: Annotated[
        float | None,
        typer.Option(
            min=0.001, callback=_finite, help="GiB of the machine; by default what is free here."
        ),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            min=0.001, callback=_finite, help="GB/s of its memory; by default measured here."
        ),
    ] = None,
    gflops: Annotated[
        float | None,
        typer.Option(
            min=0.001, callback=_finite, help="Of a dense product; by default measured here."
        ),
    ] = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Say before anything runs what a task file will need on a CPU: parameters, bytes, expected
    peak memory, hours, and what does not fit.

    Sizes come from the files in --data-dir, from the data set that comes with fanin, or from the
    published sizes. Examples: `fanin plan --dataset amazon-670k --execution fused`, `fanin plan
    --dataset amazon-3m --memory 16`.
    """
    console = _console(as_json)
    known = _each_once(backend)
    dtypes = {"weights_dtype": weights_dtype, "moments_dtype": moments_dtype}
    chosen = _tasks([dataset], features, data_dir, tasks, setup, dtypes, execution)
    count = measure.threads(threads)
    there = int(memory * GIB) if memory else available_bytes()
    sizes = {key: _sizes(*key, data_dir) for key in {(t.dataset, t.features) for t in chosen}}
    speed = planning.Speed(
        1e9 * bandwidth if bandwidth else planning.measured_bandwidth(count),
        1e9 * gflops if gflops else planning.measured_flops(count),
    )
    plans = [
        planning.Plan.of(task, name, sizes[task.dataset, task.features], speed, there, count)
        for task in chosen
        for name in known
    ]
    if as_json:
        return _print_json(
            {
                "available_bytes": there,
                "bandwidth_bytes_per_second": speed.bandwidth,
                "flops": speed.flops,
                "plans": [each.as_json() for each in plans],
            }
        )
    for (name, kind), group in groupby(plans, key=lambda p: (p.task.dataset, p.task.features)):
        inputs = sizes[name, kind].inputs
        rows = [(setups.Setup.of(p.task, inputs).label, p.backend, *p.cells()) for p in group]
        columns = (Column("setup", False), Column("backend", False), *map(Column, planning.HEADS))
        table = ReportTable("", columns, tuple(tuple(map(Cell, row)) for row in rows))
        text = f"{name}, {kind} features\n{table.markdown()}\n"
        console.print(text, soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"{there / GIB:.1f} GiB of memory, {speed.bandwidth / 1e9:.0f} GB/s, "
        f"{speed.flops / 1e9:.0f} GFLOP/s, {count} threads\n"
        "GiB; peak: what the process needs above the frameworks and the data, temporaries "
        "included\nhours: from bytes moved and arithmetic, within a factor of about two; the total "
        "is for all epochs that the task allows and its repeats, early stopping aside",
        style="dim",
        highlight=False,
    )


def _sizes(dataset: str, features: str, data_dir: Path | None) -> planning.Sizes:
    """Real sizes of a data set: of its files, or as published where it has none here."""
    there = data_dir is not None and find_folder(data_dir, dataset) is not None
    if not there and dataset in PUBLISHED and features in PUBLISHED[dataset].features:
        twin = shape_twin(dataset, features)
        sizes = twin.published
        return planning.Sizes(
            twin.inputs, sizes.labels, sizes.train_instances, sizes.test_instances
        )
    data = load(dataset, features, data_dir)
    return planning.Sizes(data.inputs, data.labels, data.train_instances, data.test_instances)


@app.command()
@_friendly
def report(
    results: Results = Path("results"),
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report; default RESULTS/report.", file_okay=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make tables, plots and the HTML page from result files alone."""
    page = write_report(results, out)
    if as_json:
        _print_json({"report": str(page.resolve())})
    else:
        _console(False).print(f"The report: {page.resolve()}", soft_wrap=True, highlight=False)


@app.command()
@_friendly
def info(as_json: AsJson = False) -> None:
    """Show what is installed and usable here: kernels, backends, GPU, data sets, task files."""
    try:
        kernels = build_info()
    except (OSError, ImportError, RuntimeError, ValueError) as error:
        _stop(f"the kernels cannot be used: {error}")
    facts: dict[str, Any] = {
        "kernels": kernels,
        "backends": {name: importlib.util.find_spec(name) is not None for name in BACKENDS},
        "packages": measure.packages(),
        "gpu": measure.gpu_name(),
        "datasets": available(),
        "tasks": list(task_files()),
        "code": measure.code_identity(),
    }
    if as_json:
        return _print_json(facts)
    table = Table(show_header=False, box=None)
    rows = {
        "kernels": f"version {kernels['version']}, CPU code {kernels['instruction_set']} "
        f"(here: {', '.join(kernels['instruction_sets'])}), "
        + (
            f"CUDA for sm_{', sm_'.join(map(str, kernels['cuda']))}"
            if kernels["cuda"]
            else "built without CUDA"
        ),
        **{
            f"backend {name}": "installed" if there else f"missing: {BACKENDS[name].install}"
            for name, there in facts["backends"].items()
        },
        "packages": ", ".join(f"{name} {version}" for name, version in facts["packages"].items()),
        "GPU": facts["gpu"] or "none",
        "data sets": ", ".join(facts["datasets"]),
        "task files": ", ".join(facts["tasks"]),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    _console(False).print(table, highlight=False)


def _console(as_json: bool) -> Console:
    """Where people read; standard output is left to JSON when a program reads. A log has no width
    of its own, and rich's guess is too narrow for the tables."""
    stream = sys.stderr if as_json else sys.stdout
    return Console(stderr=as_json, width=None if stream.isatty() else 110)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def _stop(message: str) -> NoReturn:
    typer.echo(f"fanin: {message}", err=True)
    raise typer.Exit(USAGE)


def _each_once(names: list[str] | None) -> list[str]:
    """The backends asked for, all without."""
    return list(dict.fromkeys(names or BACKENDS))


def _backends(names: list[str] | None) -> list[str]:
    """The backends asked for, each really there."""
    chosen = _each_once(names)
    for name in chosen:
        if importlib.util.find_spec(name) is None:
            _stop(f"backend {name!r} was asked for but is not installed: {BACKENDS[name].install}")
    return chosen


def _tasks(
    datasets: Sequence[str | None],
    features: str | None,
    data_dir: Path | None,
    file: Path | None,
    setups: list[str] | None,
    overrides: dict[str, Any],
    executions: Sequence[str] | None = None,
) -> list[Task]:
    """Tasks of the data sets: from `file`, their own files, or for other data the usual setups;
    in each of the executions, or as the files say."""
    if data_dir and file is None and None in datasets:
        _stop(f"--data-dir {data_dir} needs --dataset too, or --tasks: which data to take from it")
    overrides = {key: value for key, value in overrides.items() if value is not None}
    ways: list[dict[str, Any]] = [{"execution": way} for way in dict.fromkeys(executions or ())]
    chosen: list[Task] = []
    for way, dataset in product(ways or [{}], datasets):
        named = {"dataset": dataset, "features": features}
        if file is not None:
            files = [find_tasks(file)]
        else:
            named["dataset"] = dataset = canonical_name(
                "wordnet-small" if dataset is None else dataset
            )
            there = _kinds(dataset, data_dir)
            files = files_of(dataset, features)
            if len(files) > 1 and there:
                files = [path for kind in there for path in files_of(dataset, kind)]
            if not files:
                own = data_dir and find_folder(data_dir, dataset)
                if not own and dataset not in available():
                    raise unknown(dataset, data_dir)
                named["features"] = features or _only(there, dataset)
                files = [USUAL_TASKS]
        given = {key: value for key, value in named.items() if value is not None}
        given |= overrides | way
        chosen += [task for path in files for task in read_tasks(path, given)]
    if setups:
        asked = {_plain(name): name for name in setups}
        names = [_setup_names(task) for task in chosen]
        for plain, name in asked.items():
            if plain not in set().union(*names):
                there = sorted({task.setup_name for task in chosen})
                _stop(f"no setup {name!r} in these tasks; there are {', '.join(there)}")
        chosen = [task for task, known in zip(chosen, names, strict=True) if known & set(asked)]
    return chosen


def _setup_names(task: Task) -> set[str]:
    """What `--setup` may call it: as its folder or the table does, with what departs from the
    defaults or without, which names every task of that setup."""
    label = setups.Setup.of(task, None).label
    names = (task.slug, task.setup_name, label, label.partition(",")[0])
    return set(map(_plain, names))


def _plain(setup: str) -> str:
    return setup.lower().replace(" ", "-")


def _kinds(dataset: str, data_dir: Path | None) -> list[str]:
    """Kinds of features in the data set's own folder; none without one."""
    folder = find_folder(data_dir, dataset) if data_dir else None
    return feature_kinds(folder) if folder else []


def _only(kinds: list[str], dataset: str) -> str:
    if len(kinds) != 1:
        there = f" ({', '.join(kinds)})" if kinds else ""
        _stop(f"no tasks are known for data set {dataset!r}; name --features{there} or --tasks")
    return kinds[0]


def _shapes_table(done: list[RunResult]) -> str:
    parts = []
    for task, group in groupby(done, key=lambda run: (run.task.dataset, run.task.features)):
        table = shape_table(group)
        title = f"{task[0]}, {task[1]} features"
        parts.append(f"{title}\n{table.caption}\n{table.markdown()}\n")
    return "\n".join(parts)


def _show_comparisons(console: Console, done: list[LockstepResult]) -> None:
    apart = Table(title="Largest differences over all steps", title_justify="left")
    apart.add_column("setup", no_wrap=True)
    for head in ("steps", "loss rel.", "weights abs.", "weights rel.", "excused", "agree"):
        apart.add_column(head, justify="right")
    for result in done:
        weights = [d for step in result.steps for d in step.arrays.values()]
        last = result.steps[-1]
        apart.add_row(
            setups.Setup.of(result.task, None).label.partition(",")[0],
            str(len(result.steps)),
            f"{max(step.loss.relative for step in result.steps):.1e}",
            f"{max(d.absolute for d in weights):.1e}",
            f"{max(d.relative for d in weights):.1e}",
            str(last.excused + last.kinks),
            "yes" if result.agreed else "NO",
        )
    console.print(apart)
    ends = lockstep_sides(done)
    text = f"{ends.caption}\n{ends.markdown()}"
    console.print(text, soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"tolerated: loss {lockstep.LOSS_TOLERANCE:g}, weights {lockstep.WEIGHT_TOLERANCE:g}, both "
        "relative: largest |a - b| over largest |a|\n"
        "excused: rewired connections and ReLU units that lay within rounding of their threshold, "
        "where the second backend follows the first",
        style="dim",
        highlight=False,
    )
