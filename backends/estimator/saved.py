"""A trained model as a folder, which either backend and plain NumPy read:

    model.json           what the model is, how it was trained, versions, checksums of the others
    arrays.safetensors   its arrays, by their names in `LayerSetup.array_shapes`, or, of labels that
                         read words, in `OneVersusRest.weights`
    labels.txt           the names of its labels, one a line; not where they are ids

The folder is written beside its place and takes it when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from fanin.backends.estimator.onnx import export_predictor
from fanin.backends.estimator.predictor import AnySetup, BlockPredictor, Predictor, TopK
from fanin.backends.estimator.words import WordsPredictor
from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.kinds import ConnectionKind, Dense, FixedFanIn, GroupedFanIn
from fanin.backends.setup import LayerSetup
from fanin.backends.words.setup import OneVersusRestSetup
from fanin.kernels.kept_files import flush, replacing_folder

SCHEMA = 1
MODEL, ARRAYS, LABELS = "model.json", "arrays.safetensors", "labels.txt"
# What labels may be called: text, or numbers as NumPy has them.
LABEL_TYPES = (
    *("str", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
_KINDS: dict[str, type[ConnectionKind]] = {
    "dense": Dense,
    "fixed_fan_in": FixedFanIn,
    "grouped_fan_in": GroupedFanIn,
    "head_and_tail": HeadAndTail,
}
_ONE_VERSUS_REST = "one_versus_rest"


class ModelError(ValueError):
    """A folder that holds no usable model; the message names the file, the fault and what to do."""


@dataclass(frozen=True)
class SavedModel:
    """A trained model that predicts in NumPy.

    classes: what each label is called, [labels]. is_single: whether each instance has one label.
    settings: the estimator's arguments, as JSON holds them. feature_names: of the inputs, where
    they have names.
    """

    predictor: BlockPredictor
    classes: np.ndarray
    is_single: bool
    settings: dict[str, Any]
    feature_names: tuple[str, ...] | None = None

    @property
    def setup(self) -> AnySetup:
        return self.predictor.setup

    def predict_top_k(self, X: Any, k: int = 5) -> TopK:  # noqa: N803 (scikit-learn's name)
        """Ids int64 and scores float32, [instances, k] each, of the k best labels, best first.
        X: finite numbers [instances, inputs], dense or SciPy sparse. `classes[ids]` are the labels'
        names. ValueError naming what is wrong, such as a frame with other columns than the model
        was fitted on."""
        columns = getattr(X, "columns", None)
        if self.feature_names is not None and columns is not None:
            self._check_columns(self.feature_names, list(columns))
        return self.predictor.top_k(X, k)

    @staticmethod
    def _check_columns(known_names: tuple[str, ...], columns: list[Any]) -> None:
        for place, (name, known) in enumerate(zip_longest(columns, known_names)):
            if name != known:
                raise ValueError(
                    f"X has the columns of another frame: column {place} is {name!r}, and the "
                    f"model was fitted on {known!r}; give its columns in their order, such as by "
                    "X[list(model.feature_names)]"
                )

    def export_onnx(self, path: str | os.PathLike[str], top_k: int | None = None) -> None:
        """See `export_predictor`."""
        export_predictor(self.predictor, path, top_k)


def save(model: SavedModel, path: str | os.PathLike[str]) -> None:
    """Write a model's folder. It replaces a model that is there, or an empty folder; anything else
    there is a FileExistsError, and stays as it is. Where the path is a link, what it leads to is
    replaced."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    from fanin.datasets.file_errors import naming  # not for loading, which is to be quick

    folder = Path(path)
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and not (folder / MODEL).is_file():
        raise FileExistsError(
            f"{folder} is there and is no model (it has no {MODEL}): choose another name"
        )
    with naming(folder), replacing_folder(folder) as made:
        arrays = {name: np.ascontiguousarray(a) for name, a in model.predictor.arrays().items()}
        try:
            save_file(arrays, made / ARRAYS)
        except SafetensorError as error:  # a full disk, say
            raise OSError(f"{folder / ARRAYS}: cannot be written: {error}") from error
        names = [ARRAYS]
        if not are_ids(model.classes):
            names.append(LABELS)
            lines = [f"{name}\n" for name in model.classes.tolist()]
            (made / LABELS).write_bytes("".join(lines).encode("utf-8", "surrogatepass"))
        description = _description(model, {n: _checksum(made / n) for n in names})
        text = json.dumps(description, indent=1, default=np.generic.item)  # NumPy's numbers
        (made / MODEL).write_text(text + "\n", encoding="utf-8")
        for name in (*names, MODEL):
            flush(made / name)


def load(path: str | os.PathLike[str], threads: int = 0) -> SavedModel:
    """Read a model's folder; no framework is imported. threads: CPU threads of predictions, 0 for
    all. ModelError for a folder that is none, of a newer fanin, or damaged."""
    folder = Path(path)
    values = _read_description(folder)
    try:
        setup = _setup(values["setup"])
        checksums, labels_type = dict(values["checksums"]), values["labels_type"]
        settings, is_single = dict(values["settings"]), values["is_single"]
        if not isinstance(is_single, bool):
            raise ValueError(f"is_single is {is_single!r}")
        feature_names = _feature_names(values["feature_names"], setup)
        if ARRAYS not in checksums or not checksums.keys() <= {ARRAYS, LABELS}:
            raise ValueError(f"checksums of {', '.join(checksums)}")
        if labels_type not in LABEL_TYPES:
            raise ValueError(f"labels of type {labels_type}")
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / MODEL}: damaged ({error}): save the model anew") from error
    for name, checksum in checksums.items():
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name}: missing: copy the whole folder, or save it anew")
        if _checksum(folder / name) != checksum:
            raise ModelError(
                f"{folder / name}: damaged (its checksum is not the one in {MODEL}): save the "
                "model anew"
            )
    predictor = _read_arrays(folder / ARRAYS, setup, threads)
    if LABELS in checksums:
        classes = _read_labels(folder / LABELS, labels_type, setup.labels)
    else:
        classes = np.arange(setup.labels)  # the arrays were checked to have so many
    return SavedModel(predictor, classes, is_single, settings, feature_names)


def are_ids(classes: np.ndarray) -> bool:
    """Whether labels are called by their ids, and so need no names."""
    return classes.dtype.kind == "i" and bool((classes == np.arange(len(classes))).all())


def _description(model: SavedModel, checksums: dict[str, str]) -> dict[str, Any]:
    return {
        "format": "fanin model",
        "schema": SCHEMA,
        "setup": _setup_as_json(model.setup),
        "is_single": model.is_single,
        "labels_type": "str" if model.classes.dtype.kind in "OU" else model.classes.dtype.name,
        "feature_names": model.feature_names,
        "settings": model.settings,
        "checksums": checksums,
        "versions": {name: _version(name) for name in ("fanin", "numpy", "safetensors")},
    }


def _version(name: str) -> str | None:
    # Imported here: a model is loaded without it, and sooner.
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / MODEL
    if not path.is_file():
        raise ModelError(f"{folder}: no model: it has no {MODEL}; `FanInClassifier.save` makes one")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: damaged ({error}): save the model anew") from error
    if not isinstance(values, dict) or values.get("format") != "fanin model":
        raise ModelError(f"{path}: not written by fanin: choose a folder of `FanInClassifier.save`")
    if values.get("schema") != SCHEMA:
        raise ModelError(
            f"{path}: has schema {values.get('schema')}, and this fanin reads {SCHEMA}: use the "
            "fanin that wrote it"
        )
    return values


def _setup_as_json(setup: AnySetup) -> dict[str, Any]:
    if isinstance(setup, OneVersusRestSetup):
        return asdict(setup) | {"output": {"kind": _ONE_VERSUS_REST}}
    return asdict(setup) | {"output": _kind_as_json(setup.output)}


def _setup(values: dict[str, Any]) -> AnySetup:
    values = dict(values)
    output = dict(values.pop("output"))
    kind = output.pop("kind")
    if kind == _ONE_VERSUS_REST:
        return OneVersusRestSetup(**values)
    return LayerSetup(output=_kind(kind, output), **values)


def _kind(name: str, values: dict[str, Any]) -> ConnectionKind:
    """A kind of connection from its name and its fields, of which some are kinds again."""
    arguments = {
        key: _kind(str(value["kind"]), {k: v for k, v in value.items() if k != "kind"})
        if isinstance(value, dict)
        else value
        for key, value in values.items()
    }
    return _KINDS[name](**arguments)


def _kind_as_json(kind: ConnectionKind) -> dict[str, Any]:
    """Undo `_kind`."""
    name = next(name for name, known in _KINDS.items() if type(kind) is known)
    values = {field.name: getattr(kind, field.name) for field in fields(kind)}  # type: ignore[arg-type]
    return {"kind": name} | {
        key: _kind_as_json(value) if isinstance(value, ConnectionKind) else value
        for key, value in values.items()
    }


def _feature_names(given: Any, setup: AnySetup) -> tuple[str, ...] | None:
    """Names of the inputs as the description holds them; ValueError for what is none of them."""
    if given is None:
        return None
    is_list = isinstance(given, list) and all(isinstance(name, str) for name in given)
    if not is_list or len(given) != setup.inputs:
        raise ValueError(f"feature_names are not the names of {setup.inputs} inputs")
    return tuple(given)


def make_predictor(
    setup: AnySetup, arrays: Mapping[str, np.ndarray], threads: int = 0
) -> BlockPredictor:
    """The predictor of a model's kind; ValueError for arrays that are none of such a model."""
    if isinstance(setup, OneVersusRestSetup):
        return WordsPredictor(setup, arrays, threads)
    return Predictor(setup, arrays, threads)


def _read_labels(path: Path, dtype: str, labels: int) -> np.ndarray:
    try:
        *lines, last = path.read_bytes().decode("utf-8", "surrogatepass").split("\n")
        names = np.array(lines, object)
        if dtype == "bool":
            names = np.array([{"True": True, "False": False}[line] for line in lines])
        elif dtype != "str":
            names = np.array(lines).astype(dtype)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: damaged ({error}): save the model anew") from error
    if last or len(names) != labels:
        raise ModelError(f"{path}: {len(names)} names for {labels} labels: save the model anew")
    return names


def _read_arrays(path: Path, setup: AnySetup, threads: int) -> BlockPredictor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return make_predictor(setup, arrays, threads)
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path}: damaged ({error}): save the model anew") from error


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
