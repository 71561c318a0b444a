"""Task files: which there are, and how one is read.

A task file is the original experiments' JSON, `{"defaults": {...}, "tasks": [{...}, ...]}`: each
entry of `tasks` overrides `defaults`. Where a key is silent, the paper's protocol holds
(Schultheis & Babbar, ECML-PKDD 2023, arXiv 2306.03725, and its public code).

fanin's own files lie in `tasks/<dataset>/<features>.json`; those of published data sets hold
exactly the published rows. Beside them, `<features>-ablations.json` holds what else the authors
tried, `<features>-grouped.json` labels that share their sources, and `<features>-heads.json`
frequent labels with an output layer of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fanin.benchmarks.records import json_text
from fanin.benchmarks.records.task import RECIPE_KEYS, SPARSE_FEATURES, Task, TaskError
from fanin.benchmarks.records.task_keys import NAMES, is_name
from fanin.datasets import canonical_name

TASK_FOLDER = Path(__file__).parent.parent / "tasks"
# Ends of the names of files that no one runs without naming them.
_BESIDE = ("-ablations", "-grouped", "-heads")
# What one's own data are trained with when no task file is named.
USUAL_TASKS = TASK_FOLDER / "wordnet" / "tfidf-svd512.json"
# The same for sparse features: setups with an intermediate layer.
USUAL_SPARSE_TASKS = TASK_FOLDER / "sparse.json"


def task_files() -> dict[str, Path]:
    """fanin's own task files by their short names, such as `amazon-670k/slice-ablations`."""
    files = sorted(TASK_FOLDER.glob("*/*.json"))
    return {path.relative_to(TASK_FOLDER).with_suffix("").as_posix(): path for path in files}


def files_of(dataset: str, features: str | None = None) -> list[Path]:
    """The task files of a data set, one per kind of features, without ablations and grouped labels;
    only that of `features` if they are named. Empty where fanin has none."""
    return [
        path
        for path in task_files().values()
        if path.parent.name == canonical_name(dataset)
        and not path.stem.endswith(_BESIDE)
        and features in (None, path.stem)
    ]


def find_tasks(name: Path) -> Path:
    """The task file that `--tasks` names: a file, or else one of fanin's own by its short name."""
    own = task_files()
    if name.is_file() or name.suffix == ".json":
        return name  # where there is no such file, reading says so
    if name.as_posix() not in own:
        raise TaskError(f"{name}: no such task file; fanin's own are {', '.join(own)}")
    return own[name.as_posix()]


def read_tasks(
    path: Path,
    overrides: dict[str, Any] | None = None,
    is_sparse: Callable[[str, str], bool] = lambda dataset, features: False,
) -> list[Task]:
    """All tasks of one file, in its order; `overrides` win over the file (command line options).
    is_sparse: whether a data set has these features as sparse ones; a recipe may differ there.

    Entries that are the same task are one, with the largest of their repeats: the original's files
    list a task of their tables once more among its ablations. Raises TaskError for a file that
    cannot be used.
    """

    try:
        content = json_text.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TaskError(f"{path}: no such task file") from error
    except OSError as error:
        raise TaskError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise TaskError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except ValueError as error:
        raise TaskError(f"{path}: not usable as JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), list):
        raise TaskError(f'{path}: expected {{"defaults": {{...}}, "tasks": [...]}}')
    defaults = content.get("defaults", {})
    if not isinstance(defaults, dict):
        raise TaskError(f"{path}: `defaults` must be an object, got {defaults!r}")
    if unknown := set(content) - {"defaults", "tasks"}:
        raise TaskError(f"{path}: unknown keys {sorted(unknown)}; use `defaults` and `tasks`")
    merged: dict[tuple[str, str, str], Task] = {}
    for task in _tasks(path, defaults, content["tasks"], overrides or {}, is_sparse):
        key = (task.dataset, task.features, task.slug)
        known = merged.setdefault(key, task)
        if task.repeat > known.repeat:
            merged[key] = task
    return list(merged.values())


def _tasks(
    path: Path,
    defaults: dict[str, Any],
    entries: list[Any],
    overrides: dict[str, Any],
    is_sparse: Callable[[str, str], bool],
) -> Iterator[Task]:
    if not entries:
        raise TaskError(f"{path}: `tasks` is empty")
    for number, entry in enumerate(entries):
        where = f"{path}: tasks[{number}]"
        if not isinstance(entry, dict):
            raise TaskError(f"{where}: expected an object, got {entry!r}")
        values = {**defaults, **entry, **overrides}
        if "recipe" in overrides:
            # A recipe that is asked for decides what the file says for another one.
            for key in {*RECIPE_KEYS} - overrides.keys():
                values.pop(key, None)
        if "epochs" in values:
            values.setdefault("least_steps", 0)
        if values.get("architecture") == "sparse" and "rewire_fraction" not in entry | overrides:
            # The original never handed its default fraction to this layer, which kept its own.
            values.pop("rewire_fraction", None)
        names = (str(values.get("dataset", "")), str(values.get("features", "")))
        context = {SPARSE_FEATURES: all(map(is_name, names)) and is_sparse(*names)}
        try:
            yield Task.model_validate(values, context=context)
        except ValidationError as error:
            given = ", ".join(f"{key}={value}" for key, value in overrides.items())
            asked = f" with {given}" if given else ""
            raise TaskError(f"{where}{asked}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    known = ", ".join(Task.model_fields)
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        value = (
            ""
            if item["type"] in ("missing", "value_error")
            else f" (got {json_text.show(item['input'])})"
        )
        hint = f"; known keys: {known}" if item["type"] == "extra_forbidden" else ""
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "string_pattern_mismatch":
            message = NAMES
        lines.append(f"{key + ': ' if key else ''}{message}{value}{hint}")
    return "; ".join(lines)
