"""`fanin compare`: train both backends side by side and compare them after every step."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fanin.benchmarks.cli.codes import FAILED
from fanin.benchmarks.cli.options import (
    DEFAULTS,
    AsJson,
    DataDir,
    Dataset,
    Device,
    Execution,
    Features,
    RecipeOption,
    Results,
    Seed,
    Setup,
    Tasks,
    Threads,
)
from fanin.benchmarks.cli.output import make_console, print_json, print_report, print_text
from fanin.benchmarks.cli.selection import installed_backends, select_tasks
from fanin.benchmarks.harness import compare as lockstep
from fanin.benchmarks.harness.request import Options
from fanin.benchmarks.records.compare import LockstepResult, LockstepStep
from fanin.benchmarks.records.files import remove_leftovers
from fanin.benchmarks.records.store import check_folder, lockstep_path, write_result
from fanin.reports.pages.report import write_report
from fanin.reports.tables.terminal import comparisons_text


def compare(
    dataset: Dataset = None,
    features: Features = None,
    data_dir: DataDir = None,
    tasks: Tasks = None,
    setup: Setup = None,
    recipe: RecipeOption = None,
    execution: Execution = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps to compare.")] = 200,
    seed: Seed = None,
    results: Results = DEFAULTS.results,
    device: Device = DEFAULTS.device,
    threads: Threads = DEFAULTS.threads,
    as_json: AsJson = False,
) -> None:
    """Train both backends side by side and compare loss and weights after every step.

    Same initial weights, batches and dropout. Fails (exit code 1) where the loss differs by more
    than 1e-5 or any array of weights by more than 1e-4 (largest difference over largest value).
    """
    console = make_console(as_json)
    installed_backends(None)
    overrides = {"recipe": recipe, "seed": seed}
    chosen = select_tasks([dataset], features, data_dir, tasks, setup, overrides, execution)
    options = Options(results=results, data_dir=data_dir, device=device, threads=threads)
    paths = {lockstep_path(results, task) for task in chosen}
    check_folder(results, paths, replaced=paths)
    done = []
    failures = 0
    for number, task in enumerate(chosen, 1):
        title = f"[{number}/{len(chosen)}] {task.title}"
        with console.status(Text(title)) as status:

            def show(step: LockstepStep, status: Any = status, title: str = title) -> None:
                worst = max(d.relative for d in step.arrays.values())
                text = (
                    f"{title}: step {step.step}/{steps}, relative difference of the loss "
                    f"{step.loss.relative:.1e}, of the weights {worst:.1e}"
                )
                status.update(Text(text))

            try:
                result = lockstep.compare(task, options, steps, show)
            except lockstep.LockstepError as error:
                print_text(console, f"{title}: failed: {error}", "red")
                failures += 1
                continue
        remove_leftovers(lockstep_path(results, task))
        write_result(lockstep_path(results, task), result)
        done.append(result)
        failures += not result.agreed
        verdict = "agree" if result.agreed else "DRIFTED APART"
        colour = "green" if result.agreed else "red"
        print_text(console, f"{title}: {verdict} over {steps} steps", colour)
    page = write_report(results) if done else None
    if as_json:
        print_json([r.model_dump(mode="json") for r in done])
    elif page:
        show_comparisons(console, done)
        print_report(console, page)
    if failures:
        raise typer.Exit(FAILED)


def show_comparisons(console: Console, done: list[LockstepResult]) -> None:
    """Print how far the backends were apart at most, and what each of them measured."""
    print_text(console, comparisons_text(done))
    print_text(
        console,
        f"tolerated: loss {lockstep.LOSS_TOLERANCE:g}, weights {lockstep.WEIGHT_TOLERANCE:g}, both "
        "relative: largest |a - b| over largest |a|\n"
        "excused: rewired connections and ReLU units that lay within rounding of their threshold,\n"
        "where the second backend follows the first\n",
        "dim",
    )
