"""What a run leaves on disk while it goes on, so that another process can continue it.

A folder beside the result file, `<backend>-<repeat>.checkpoint/`:

    state.json         which run this is, and its history: everything but arrays follows from that
    weights-<epoch>/   arrays of the model after the last epoch of the history, and of the best one
    moments-<epoch>/   Adam's state after the last epoch

`state.json` is renamed into place after the folders that it needs are complete, and only then are
those of the state before removed. So one whole state is there whenever the process is
killed; a folder that `state.json` does not need is a leftover. Arrays are written and read one at a
time: the peak memory of a run is measured, and a checkpoint must not raise it.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from fanin.backends.trainer import Trainer
from fanin.benchmarks.records.files import flush, save_array, write_atomically
from fanin.benchmarks.records.run import Epoch
from fanin.datasets.file_errors import naming


class State(BaseModel):
    """What `state.json` holds."""

    identity: dict[str, str]
    resumed: int
    history: list[Epoch]
    best_epoch: int
    files: dict[str, int]  # the arrays' files, with their bytes

    @property
    def folders(self) -> set[str]:
        """The folders that belong to this state."""
        last = len(self.history)
        return {f"weights-{last}", f"moments-{last}", f"weights-{self.best_epoch}"}


class StoredArrays(Mapping[str, np.ndarray]):
    """The arrays in a folder, each mapped when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = sorted(path.stem for path in folder.glob("*.npy"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> np.ndarray:
        # "c": whoever writes to the array changes memory and not the file. With "r" the frameworks
        # would warn of an array that cannot be written to, or copy it first.
        path = self._folder / f"{name}.npy"
        with naming(path):
            try:
                array: np.ndarray = np.load(path, mmap_mode="c")
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
                array = np.load(path)  # this file system has no memory maps
        return array


def checkpoint_folder(result: Path) -> Path:
    """Where the checkpoint of the run with that result file lies."""
    return result.with_suffix(".checkpoint")


def remove_checkpoint(folder: Path) -> None:
    """Remove it. If a kill interrupts this, the rest is not taken for a checkpoint."""
    (folder / "state.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


class Checkpoint:
    """The checkpoint of one run.

    identity: what must be equal for a run to go on, by name. seconds: how far apart checkpoints are
    at least. `history` and `resumed` (how many processes took over so far) are those of the state
    that this one goes on from, empty and 0 without one that fits; `note` says why another one is
    not used.
    """

    def __init__(self, folder: Path, identity: dict[str, str], seconds: float) -> None:
        self._folder = folder
        self._identity = identity
        self._seconds = seconds
        self._saved = time.monotonic()
        self.note = ""
        self._state = State(identity=identity, resumed=0, history=[], best_epoch=0, files={})
        self._best_epoch = 0
        if state := self._find():
            self._state = state.model_copy(update={"resumed": state.resumed + 1})
            self._best_epoch = state.best_epoch
            self._write_state()
            self._remove_leftovers()
        else:
            remove_checkpoint(folder)

    def _find(self) -> State | None:
        path = self._folder / "state.json"
        try:
            state = State.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValidationError, UnicodeDecodeError):
            self.note = f"{path} cannot be read; starting anew"
            return None
        keys = sorted(self._identity | state.identity)
        other = [key for key in keys if state.identity.get(key) != self._identity.get(key)]
        if other:
            self.note = f"{self._folder} is of another {', '.join(other)}; starting anew"
            return None
        for name, size in state.files.items():
            file = self._folder / name
            if not file.is_file() or file.stat().st_size != size:
                self.note = f"{file} is damaged; starting anew"
                return None
        return state

    @property
    def history(self) -> list[Epoch]:
        return list(self._state.history)

    @property
    def resumed(self) -> int:
        return self._state.resumed

    def restore(self, trainer: Trainer) -> None:
        """Bring a trainer to where the history ends."""
        last = len(self._state.history)
        trainer.load_weights(StoredArrays(self._folder / f"weights-{last}"))
        trainer.load_optimizer_arrays(StoredArrays(self._folder / f"moments-{last}"))

    def keep_best(self, trainer: Trainer, epoch: int) -> None:
        """Write the weights after `epoch`, the best one so far."""
        self._write(f"weights-{epoch}", trainer.arrays())
        self._best_epoch = epoch
        self._remove_leftovers()

    def restore_best(self, trainer: Trainer) -> None:
        """Give a trainer the weights of the best epoch."""
        trainer.load_weights(StoredArrays(self._folder / f"weights-{self._best_epoch}"))

    def save(self, trainer: Trainer, history: list[Epoch]) -> None:
        """Write the state after the last epoch of `history`, if enough time has passed."""
        if time.monotonic() - self._saved < self._seconds:
            return
        last = len(history)
        if last != self._best_epoch:
            self._write(f"weights-{last}", trainer.arrays())
        self._write(f"moments-{last}", trainer.optimizer_arrays())
        self._state = self._state.model_copy(
            update={"history": list(history), "best_epoch": self._best_epoch}
        )
        # On the disk before the state that needs them: it is to survive a power cut as well.
        folders = [self._folder / name for name in self._state.folders]
        files = [file for folder in folders for file in folder.iterdir()]
        for path in (*files, *folders, self._folder):
            flush(path)
        self._state.files = {f"{f.parent.name}/{f.name}": f.stat().st_size for f in files}
        self._write_state()
        self._remove_leftovers()
        self._saved = time.monotonic()

    def _write(self, folder: str, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
        target = self._folder / folder
        target.mkdir(parents=True, exist_ok=True)
        try:
            for name, array in arrays:
                save_array(target / f"{name}.npy", array)
                del array  # before the next one is made
        except OSError:
            shutil.rmtree(target, ignore_errors=True)  # half of it is of no use on a full disk
            raise

    def _write_state(self) -> None:
        write_atomically(self._folder / "state.json", self._state.model_dump_json(indent=1) + "\n")

    def _remove_leftovers(self) -> None:
        kept = {f"weights-{self._best_epoch}"}
        if self._state.history:
            kept |= {"state.json", *self._state.folders}
        for path in self._folder.glob("*"):
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
