"""`fanin plan`: what tasks will need, before any of them runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy import sparse

from fanin.backends.estimate import Sizes
from fanin.benchmarks.cli.options import (
    DEFAULTS,
    AsJson,
    Backend,
    DataDir,
    Dataset,
    Execution,
    Features,
    MomentsDtype,
    MomentsOption,
    OptimizerOption,
    Processes,
    RecipeOption,
    Setup,
    Tasks,
    Threads,
    WeightsDtype,
    check_processes,
    finite,
)
from fanin.benchmarks.cli.output import make_console, print_json, print_text
from fanin.benchmarks.cli.selection import each_once, select_tasks
from fanin.benchmarks.harness import speed
from fanin.benchmarks.harness.plan import Plan
from fanin.benchmarks.records.statistics import GIB
from fanin.benchmarks.records.task import Task
from fanin.datasets import find_folder, load
from fanin.datasets.dataset import array_bytes
from fanin.datasets.memory import available_bytes, size_text
from fanin.datasets.shape_twins import ShapeTwin, has_twin, shape_twin
from fanin.kernels.threads import thread_count
from fanin.reports.format import Scale, duration_scale, large_count_scale, memory_scale
from fanin.reports.setups import Setup as ReportedSetup
from fanin.reports.table import Cell, Column, Table, text_column


def plan(
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
    memory: Annotated[
        float | None,
        typer.Option(
            min=0.001, callback=finite, help="GiB of the machine; by default what is free here."
        ),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            min=0.001, callback=finite, help="GB/s of its memory; by default measured here."
        ),
    ] = None,
    gflops: Annotated[
        float | None,
        typer.Option(
            min=0.001, callback=finite, help="Of a dense product; by default measured here."
        ),
    ] = None,
    threads: Threads = DEFAULTS.threads,
    processes: Processes = DEFAULTS.processes,
    as_json: AsJson = False,
) -> None:
    """Say before anything runs what a task file will need on a CPU: parameters, bytes, expected
    peak memory, hours, and what does not fit.

    Sizes come from the files in --data-dir, from the data set that comes with fanin, or from the
    published sizes. Examples: `fanin plan --dataset amazon-670k --execution fused`, `fanin plan
    --dataset amazon-3m --memory 16`.
    """
    console = make_console(as_json)
    backends = each_once(backend)
    check_processes(processes, backends, is_profile=False)
    overrides = {
        "recipe": recipe,
        "weights_dtype": weights_dtype,
        "moments_dtype": moments_dtype,
        "moments": moments,
        "optimizer": optimizer,
    }
    chosen = select_tasks([dataset], features, data_dir, tasks, setup, overrides, execution)
    count = thread_count(threads)
    available = int(memory * GIB) if memory else available_bytes()
    machine = speed.Speed(
        1e9 * bandwidth if bandwidth else speed.measured_bandwidth(count),
        1e9 * gflops if gflops else speed.measured_flops(count),
    )
    sizes = sizes_of(chosen, data_dir)
    plans = plans_of(chosen, backends, sizes, machine, count, available, processes)
    if as_json:
        return print_json(
            {
                "available_bytes": available,
                "bandwidth_bytes_per_second": machine.bandwidth,
                "flops": machine.flops,
                "plans": [each.as_json() for each in plans],
            }
        )
    for (name, kind), group in groupby(plans, key=lambda p: (p.task.dataset, p.task.features)):
        table = plan_table(list(group), sizes[name, kind].inputs)
        print_text(console, f"{name}, {kind} features\n{table.markdown()}\n")
    several = ""
    if processes > 1:
        several = (
            f"\nmemory and data: of each of the {processes} processes; fits: all together\n"
            "times: as of one process, without what several tell each other"
        )
    print_text(
        console,
        f"{size_text(available)} of memory, "
        f"{machine.bandwidth / 1e9:.0f} GB/s, {machine.flops / 1e9:.0f} GFLOP/s, {count} threads\n"
        "peak: what the process needs above the frameworks and the data, temporaries included\n"
        "data: features and labels in memory; fits: peak and data together\n"
        "times: from bytes moved and arithmetic, right within a factor of about two; total: all\n"
        "epochs, which early stopping may end sooner, and all repeats" + several,
        "dim",
    )


def sizes_of(tasks: Iterable[Task], data_dir: Path | None) -> dict[tuple[str, str], Sizes]:
    """The real sizes of the tasks' data, by data set and features."""
    return {key: read_sizes(*key, data_dir) for key in {(t.dataset, t.features) for t in tasks}}


def plans_of(
    tasks: Iterable[Task],
    backends: Sequence[str],
    sizes: dict[tuple[str, str], Sizes],
    machine: speed.Speed,
    threads: int,
    available: int,
    processes: int = 1,
) -> list[Plan]:
    """A plan for each task and backend, for a machine with so many free bytes, and so many
    processes of a run."""
    return [
        Plan.of(
            task, name, sizes[task.dataset, task.features], machine, available, threads, processes
        )
        for task in tasks
        for name in backends
    ]


def plan_table(plans: list[Plan], inputs: int) -> Table:
    """A row for each task and backend of one data set. inputs: those of its instances."""

    def column(
        head: str, values: list[float], scale_of: Callable[[Iterable[float]], Scale]
    ) -> tuple[Column, list[str]]:
        scale = scale_of(values)
        unit = f" ({scale.unit})" if scale.unit else ""
        return Column(f"{head}{unit}"), [scale.bounded(value) for value in values]

    def memory(head: str, sizes: list[int]) -> tuple[Column, list[str]]:
        return column(head, [size / GIB for size in sizes], memory_scale)

    columns = [
        (text_column("setup"), [ReportedSetup.from_task(p.task, inputs).label for p in plans]),
        (text_column("backend"), [p.backend for p in plans]),
        column("parameters", [p.parameters for p in plans], large_count_scale),
        memory("model", [p.expected.parameter_bytes for p in plans]),
        memory("optimiser", [p.expected.optimizer_bytes for p in plans]),
        memory("gradients", [p.expected.gradient_bytes for p in plans]),
        memory("temporary", [p.expected.temporary_bytes for p in plans]),
        memory("peak", [p.expected.peak_bytes for p in plans]),
        memory("data", [p.data_bytes for p in plans]),
        (Column("fits"), ["yes" if p.fits else "NO" for p in plans]),
        (Column("epochs"), [str(p.epochs) for p in plans]),
        column("epoch", [p.hours_per_epoch for p in plans], duration_scale),
        column("total", [p.hours for p in plans], duration_scale),
    ]
    heads, texts = zip(*columns, strict=True)
    return Table("", heads, tuple(tuple(map(Cell, row)) for row in zip(*texts, strict=True)))


def read_sizes(dataset: str, features: str, data_dir: Path | None) -> Sizes:
    """Real sizes of a data set: of its files, or as published where it has none here."""
    is_here = data_dir is not None and find_folder(data_dir, dataset) is not None
    if not is_here and has_twin(dataset, features):
        return twin_sizes(shape_twin(dataset, features))
    data = load(dataset, features, data_dir)
    x = data.train_x
    return Sizes(
        data.inputs,
        data.labels,
        data.train_instances,
        data.test_instances,
        int(data.train_y.nnz),
        is_mapped=isinstance(x, np.memmap),
        words=x.nnz / data.train_instances if isinstance(x, sparse.csr_array) else None,
        data_bytes=data.memory_bytes,
        train_bytes=array_bytes(x) + array_bytes(data.train_y),
    )


def twin_sizes(twin: ShapeTwin) -> Sizes:
    """Of a published data set whose files are not here; dense features would be memory-mapped."""
    sizes, words = twin.published, twin.words.per_instance if twin.words else None

    def size(instances: int, in_memory: bool) -> int:
        # CSR: ids and starts are int32, values float32, those of labels a byte.
        labels = instances * (5 * sizes.labels_per_instance + 4)
        features = instances * (8 * words + 4 if words else 4.0 * twin.inputs)
        return round(labels + (features if in_memory else 0))

    return Sizes(
        twin.inputs,
        sizes.labels,
        sizes.train_instances,
        sizes.test_instances,
        round(sizes.train_instances * sizes.labels_per_instance),
        is_mapped=words is None,
        words=words,
        data_bytes=sum(
            size(instances, words is not None)
            for instances in (sizes.train_instances, sizes.test_instances)
        ),
        train_bytes=size(sizes.train_instances, True),
    )
