"""Which tasks and backends a command line means."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from fanin.backends.registry import BACKENDS
from fanin.benchmarks.cli.output import stop
from fanin.benchmarks.records.task import Task
from fanin.benchmarks.records.task_files import (
    USUAL_SPARSE_TASKS,
    USUAL_TASKS,
    files_of,
    find_tasks,
    read_tasks,
)
from fanin.benchmarks.records.task_keys import NAMES, is_name
from fanin.datasets import (
    available,
    canonical_name,
    feature_kinds,
    find_folder,
    has_sparse_features,
    unknown,
)
from fanin.datasets.shape_twins import has_sparse_twin
from fanin.reports.setups import Setup


def each_once(names: list[str] | None) -> list[str]:
    """The backends asked for, all without."""
    return list(dict.fromkeys(names or BACKENDS))


def installed_backends(names: list[str] | None) -> list[str]:
    """The backends asked for, each really there."""
    chosen = each_once(names)
    for name in chosen:
        if importlib.util.find_spec(name) is None:
            stop(f"backend {name!r} was asked for but is not installed: {BACKENDS[name].install}")
    return chosen


def select_tasks(
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
    for option, names in (("--dataset", datasets), ("--features", [features])):
        for name in filter(None, names):
            _check_name(option, name)
    if data_dir and file is None and None in datasets:
        stop(f"--data-dir {data_dir} needs --dataset too, or --tasks: which data to take from it")
    overrides = {key: value for key, value in overrides.items() if value is not None}
    ways: list[dict[str, Any]] = [{"execution": way} for way in dict.fromkeys(executions or ())]

    def is_sparse(name: str, kind: str) -> bool:
        return has_sparse_features(name, kind, data_dir) or has_sparse_twin(name, kind)

    chosen: list[Task] = []
    for way, dataset in product(ways or [{}], datasets):
        named = {"dataset": dataset, "features": features}
        if file is not None:
            files = [find_tasks(file)]
        else:
            named["dataset"] = dataset = canonical_name(
                "wordnet-small" if dataset is None else dataset
            )
            kinds = _feature_kinds(dataset, data_dir)
            files = files_of(dataset, features)
            if len(files) > 1 and kinds:
                files = [path for kind in kinds for path in files_of(dataset, kind)]
            if not files:
                folder = data_dir and find_folder(data_dir, dataset)
                # The sizes of a twin are known, which do for a plan and a shape profile.
                is_known = folder or dataset in available() or has_sparse_twin(dataset, features)
                if not is_known:
                    raise unknown(dataset, data_dir)
                named["features"] = own = features or _only_kind(kinds, dataset)
                files = [USUAL_SPARSE_TASKS if is_sparse(dataset, own) else USUAL_TASKS]
                named["recipe"] = "best"
        given = {key: value for key, value in named.items() if value is not None}
        given |= overrides | way
        chosen += [task for path in files for task in read_tasks(path, given, is_sparse)]
    if setups:
        for name in setups:
            if not any(_is_called(task, name) for task in chosen):
                known_names = sorted({task.setup_name for task in chosen})
                stop(f"no setup {name!r} in these tasks; there are {', '.join(known_names)}")
        chosen = [task for task in chosen if any(_is_called(task, name) for name in setups)]
    for task in chosen:
        try:
            task.check_float8()
        except ValueError as error:
            stop(f"{task.setup_name}: {error}; --setup chooses tasks")
    return chosen


def _check_name(what: str, name: str) -> None:
    if not is_name(name):
        stop(f"{what} {name!r}: {NAMES}; rename what is called so, or link to it")


def _is_called(task: Task, name: str) -> bool:
    """Whether `--setup` means this task by a name: that of its folder, or that of a table, which
    leaves out departures from the defaults that all its rows have. A name without departures means
    every task of that setup."""
    if _plain(name) == _plain(task.slug):
        return True
    setup, *named = _plain(name).split(",")
    label, *departures = _plain(Setup.from_task(task, None).label).split(",")
    return setup in (task.setup_name, label) and set(named) <= set(departures)


def _plain(name: str) -> str:
    return name.lower().replace(", ", ",").replace(" ", "-")


def _feature_kinds(dataset: str, data_dir: Path | None) -> list[str]:
    """Kinds of features in the data set's own folder; none without one."""
    folder = find_folder(data_dir, dataset) if data_dir else None
    return feature_kinds(folder) if folder else []


def _only_kind(kinds: list[str], dataset: str) -> str:
    if len(kinds) != 1:
        choice = f" ({', '.join(kinds)})" if kinds else ""
        stop(f"no tasks are known for data set {dataset!r}; name --features{choice} or --tasks")
    _check_name("features", kinds[0])
    return kinds[0]
