"""The command `fanin`: reproduce, compare, report, info."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from fanin.backends.interface import BACKENDS, INSTALL
from fanin.benchmarks import lockstep, measure
from fanin.benchmarks.lock import BusyError
from fanin.benchmarks.progress import Terminal
from fanin.benchmarks.results import (
    LockstepResult,
    LockstepStep,
    ResultError,
    lockstep_path,
    remove_leftovers,
    write_result,
)
from fanin.benchmarks.runner import Options, requests, run_all
from fanin.benchmarks.task import TASK_FOLDER, Task, TaskError, read_tasks
from fanin.datasets import DataError, available
from fanin.kernels import build_info
from fanin.reports import ReportError, terminal_table, write_report

FAILED, USAGE, INTERRUPTED = 1, 2, 130

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

Results = Annotated[Path, typer.Option(help="Folder of the result files.", file_okay=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Dataset = Annotated[
    str,
    typer.Option(
        help="Data set: one that comes with fanin (see `fanin info`) or a folder below --data-dir."
    ),
]
Features = Annotated[
    str | None, typer.Option(help="Features of the data set; by default what its tasks name.")
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Your own data: `<dir>/<dataset>/{train,test}-labels.txt` and "
        "`{train,test}-<features>.npy`."
    ),
]
Tasks = Annotated[
    Path | None,
    typer.Option(help='Task file (JSON: {"defaults": {}, "tasks": []}) instead of fanin\'s own.'),
]
Setup = Annotated[
    list[str] | None,
    typer.Option(help="Only these setups, by name as in the table (`ffi-32-4096`); repeatable."),
]
Execution = Annotated[
    list[str] | None,
    typer.Option(
        help="autograd: the framework's own way; fused: score, loss, gradients and Adam in one "
        "pass by fanin's kernels. Repeatable; by default what the task file says (autograd)."
    ),
]
Epochs = Annotated[int | None, typer.Option(min=1, help="At most this many epochs.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of weights, order and dropout.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 for all.")]


def _friendly(command: Callable[..., None]) -> Callable[..., None]:
    """Errors that say what to do become one line, anything else stays a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (TaskError, DataError, ResultError, ReportError, BusyError) as error:
            _stop(str(error))
        except KeyboardInterrupt:
            typer.echo(
                "fanin: stopped; finished runs and checkpoints are kept, start again to go on",
                err=True,
            )
            raise typer.Exit(INTERRUPTED) from None

    return run


@app.command()
@_friendly
def reproduce(
    dataset: Dataset = "wordnet-small",
    features: Features = None,
    data_dir: DataDir = None,
    tasks: Tasks = None,
    setup: Setup = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="torch or tensorflow; repeatable; default both.")
    ] = None,
    execution: Execution = None,
    weights_dtype: Annotated[
        str | None, typer.Option(help="float32 or, fused only, bfloat16 (stochastically rounded).")
    ] = None,
    moments_dtype: Annotated[
        str | None, typer.Option(help="Adam's moments: float32 or, fused only, bfloat16.")
    ] = None,
    repeat: Annotated[int | None, typer.Option(min=1, help="Runs per task, each its seed.")] = None,
    epochs: Epochs = None,
    seed: Seed = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="paper: validate on the test set, as published; holdout: on a tenth of "
            "the training set."
        ),
    ] = None,
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
        ),
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Train all layer setups on a data set in both backends, then write the report.

    Finished runs are skipped and a run that was stopped or killed goes on from its checkpoint, so
    it can be stopped with Ctrl-C and started again.

    Examples: `fanin reproduce` (small cut, minutes), `fanin reproduce --dataset wordnet` (all of
    it, hours), `fanin reproduce --setup ffi-32 --backend torch --epochs 3`, `fanin reproduce
    --execution autograd --execution fused` (both ways beside each other).
    """
    console = _console(as_json)
    backends = _backends(backend)
    overrides = {
        "features": features,
        "repeat": repeat,
        "epochs": epochs,
        "seed": seed,
        "protocol": protocol,
        "weights_dtype": weights_dtype,
        "moments_dtype": moments_dtype,
    }
    chosen = [
        task
        for way in execution or (None,)
        for task in _tasks(dataset, tasks, setup, {**overrides, "execution": way})
    ]
    options = Options(results, data_dir, device, threads, force, save_weights, checkpoint_minutes)
    with Terminal(console) as display:
        done = run_all(requests(chosen, backends, options), options, display)
    page = write_report(results)
    failed = [r for r in done if r.status == "failed"]
    if as_json:
        _print_json(
            {
                "results": [r.model_dump(mode="json") for r in done],
                "report": str(page.resolve()),
            }
        )
    else:
        console.print("\n" + terminal_table(done), soft_wrap=True, highlight=False, markup=False)
        console.print(f"\nThe report: {page.resolve()}", soft_wrap=True, highlight=False)
    if failed:
        raise typer.Exit(FAILED)


@app.command()
@_friendly
def compare(
    dataset: Dataset = "wordnet-small",
    features: Features = None,
    data_dir: DataDir = None,
    tasks: Tasks = None,
    setup: Setup = None,
    execution: Annotated[
        str | None, typer.Option(help="autograd or fused; default what the task file says.")
    ] = None,
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
    overrides = {"features": features, "seed": seed, "execution": execution}
    chosen = _tasks(dataset, tasks, setup, overrides)
    options = Options(results, data_dir, device, threads)
    done = []
    failures = 0
    for number, task in enumerate(chosen, 1):
        title = f"[{number}/{len(chosen)}] {task.dataset} {task.slug.partition('_')[0]}"
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
def report(
    results: Results = Path("results"),
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; default RESULTS/report.")
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
    facts: dict[str, Any] = {
        "kernels": build_info(),
        "backends": {name: importlib.util.find_spec(name) is not None for name in BACKENDS},
        "packages": measure.packages(),
        "gpu": measure.gpu_name(),
        "datasets": available(),
        "tasks": sorted(path.stem for path in TASK_FOLDER.glob("*.json")),
        "code": measure.code_identity(),
    }
    if as_json:
        return _print_json(facts)
    kernels = facts["kernels"]
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
            f"backend {name}": "installed" if there else f"missing: {INSTALL[name]}"
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
    print(json.dumps(value, indent=1))


def _stop(message: str) -> NoReturn:
    typer.echo(f"fanin: {message}", err=True)
    raise typer.Exit(USAGE)


def _backends(names: list[str] | None) -> list[str]:
    """The backends asked for, each really there."""
    chosen = names or list(BACKENDS)
    for name in chosen:
        if name not in BACKENDS:
            _stop(f"unknown backend {name!r}; there are {', '.join(BACKENDS)}")
        if importlib.util.find_spec(name) is None:
            _stop(f"backend {name!r} was asked for but is not installed: {INSTALL[name]}")
    return list(dict.fromkeys(chosen))


def _tasks(
    dataset: str, file: Path | None, setups: list[str] | None, overrides: dict[str, Any]
) -> list[Task]:
    """Tasks of the data set: from `file`, its own file, or for other data the usual setups."""
    own = TASK_FOLDER / f"{dataset}.json"
    overrides = {key: value for key, value in overrides.items() if value is not None}
    if file is None and not own.exists():
        if "features" not in overrides:
            _stop(f"no tasks are known for data set {dataset!r}; name --features or --tasks")
        overrides["dataset"] = dataset
        own = TASK_FOLDER / "wordnet.json"
    chosen = read_tasks(file or own, overrides)
    if setups:
        # `ffi-32` names every task of that setup, whatever else it departs from the defaults in.
        names = {task.slug.partition("_")[0] for task in chosen}
        slugs = {task.slug for task in chosen}
        for name in setups:
            if name not in names | slugs:
                _stop(f"no setup {name!r} in {file or own}; there are {', '.join(sorted(names))}")
        chosen = [t for t in chosen if {t.slug, t.slug.partition("_")[0]} & set(setups)]
    return chosen


def _table(title: str, heads: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for head in heads:
        named = head in ("setup", "backend")
        table.add_column(head, justify="left" if named else "right", no_wrap=named)
    return table


def _show_comparisons(console: Console, done: list[LockstepResult]) -> None:
    apart = _table(
        "Largest differences over all steps",
        ["setup", "steps", "loss rel.", "weights abs.", "weights rel.", "excused", "agree"],
    )
    ends = _table(
        "Each backend after the last step, both on the same batches",
        ["setup", "backend", "P@1", "P@3", "P@5", "ms/step", "memory MiB"],
    )
    for result in done:
        weights = [d for step in result.steps for d in step.arrays.values()]
        last = result.steps[-1]
        setup = result.task.slug.partition("_")[0]
        apart.add_row(
            setup,
            str(len(result.steps)),
            f"{max(step.loss.relative for step in result.steps):.1e}",
            f"{max(d.absolute for d in weights):.1e}",
            f"{max(d.relative for d in weights):.1e}",
            str(last.excused + last.kinks),
            "yes" if result.agreed else "NO",
        )
        for backend, side in result.sides.items():
            at, memory = side.test, side.memory
            known = memory.host_peak_rss_bytes and memory.host_baseline_rss_bytes
            used = (memory.host_peak_rss_bytes or 0) - (memory.host_baseline_rss_bytes or 0)
            ends.add_row(
                setup,
                backend,
                *(f"{100 * value:.2f}" for value in (at.at_1, at.at_3, at.at_5)),
                f"{1e3 * side.median_step_seconds:.1f}",
                f"{used / 2**20:.0f}" if known else "—",
            )
    console.print(apart)
    console.print(ends)
    console.print(
        f"tolerated: loss {lockstep.LOSS_TOLERANCE:g}, weights {lockstep.WEIGHT_TOLERANCE:g}, both "
        "relative: largest |a - b| over largest |a|\n"
        "excused: rewired connections and ReLU units that lay within rounding of their threshold, "
        "where the second backend follows the first\n"
        "memory: peak resident set above its baseline",
        style="dim",
        highlight=False,
    )


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
