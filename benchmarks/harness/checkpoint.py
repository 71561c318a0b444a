"""What a run leaves on disk while it goes on, so that another process can continue it.

A folder beside the result file, `<backend>-<repeat>.checkpoint/`:

    state.json         which run this is, and its history: everything but arrays follows from that
    weights-<epoch>/   arrays of the model after the last epoch of the history, and of the best one
    moments-<epoch>/   Adam's state after the last epoch

`state.json` is renamed into place after the folders that it needs are complete, and only then are
those of the state before removed. So one whole state is there whenever the process is
killed; a folder that `state.json` does not need is a leftover. It holds a checksum of each array
and of itself: where one is wrong, the run starts anew. Arrays are written and read one at a
time: the peak memory of a run is measured, and a checkpoint must not raise it.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from fanin.backends.trainer import Trainer
from fanin.benchmarks.harness.together import ALONE, Together
from fanin.benchmarks.records.files import checksum, flush, save_array, write_atomically
from fanin.benchmarks.records.run import Epoch
from fanin.datasets.file_errors import naming


class State(BaseModel):
    """What `state.json` holds."""

    identity: dict[str, str]
    resumed: int
    history: list[Epoch]
    best_epoch: int
    files: dict[str, str]  # the arrays' files, with the SHA-256 of each
    checksum: str = ""  # SHA-256 of all above

    def own_checksum(self) -> str:
        """What `checksum` has to be."""
        text = self.model_dump_json(exclude={"checksum"})
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def folders(self) -> set[str]:
        """The folders that belong to this state."""
        last = len(self.history)
        return {f"weights-{last}", f"moments-{last}", f"weights-{self.best_epoch}"}


class DamagedError(RuntimeError):
    """A file is not as the run wrote it; the message names it."""


class StoredArrays(Mapping[str, np.ndarray]):
    """The arrays in some files of a folder, each mapped when it is asked for."""

    def __init__(self, folder: Path, files: Collection[str]) -> None:
        self._folder = folder
        self._names = [file.removesuffix(".npy") for file in files]

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
    for path in (folder / "state.json", folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file() or path.is_symlink():
            path.unlink(missing_ok=True)


class Checkpoint:
    """The checkpoint of one run.

    identity: what must be equal for a run to go on, by name. seconds: how far apart checkpoints are
    at least. `history` and `resumed` (how many processes took over so far) are those of the state
    that this one goes on from, empty and 0 without one that fits; `note` says why another one is
    not used. together: the processes that train the model; the first one decides and writes, and
    all read.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, str],
        seconds: float,
        together: Together = ALONE,
    ) -> None:
        self._together = together
        self._folder = folder
        self._identity = identity
        self._seconds = seconds
        self._saved = time.monotonic()
        self.note = ""
        self._checksums: dict[str, str] = {}  # of all files that are written whole
        self._state = State(identity=identity, resumed=0, history=[], best_epoch=0, files={})
        self._best_epoch = 0
        fitting = self._find() if self._writes else None
        state, self.note = self._together.from_first((fitting, self.note))
        if state:
            self._state = state.model_copy(update={"resumed": state.resumed + 1})
            self._best_epoch = state.best_epoch
            self._checksums = dict(state.files)
            self._write_state()
            self._remove_leftovers()
        elif self._writes:
            remove_checkpoint(folder)

    @property
    def _writes(self) -> bool:
        return self._together.rank == 0

    def _find(self) -> State | None:
        path = self._folder / "state.json"
        try:
            state = State.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            if any(self._folder.glob("*")):
                self.note = f"{self._folder} holds no finished checkpoint; starting anew"
            return None
        except (OSError, ValidationError):
            self.note = f"{path} cannot be read; starting anew"
            return None
        if state.checksum != state.own_checksum():
            self.note = f"{path} is damaged; starting anew"
            return None
        keys = sorted(self._identity | state.identity)
        other = [key for key in keys if state.identity.get(key) != self._identity.get(key)]
        if other:
            self.note = f"{self._folder} is of another {', '.join(other)}; starting anew"
            return None
        if damaged := self._first_damaged(state.files):
            self.note = f"{damaged} is damaged; starting anew"
            return None
        return state

    def _first_damaged(self, files: Mapping[str, str]) -> Path | None:
        """The first of the files that is missing or has another checksum."""
        for name, expected in files.items():
            path = self._folder / name
            try:
                if checksum(path) == expected:
                    continue
            except OSError:
                pass  # it cannot be read
            return path
        return None

    @property
    def history(self) -> list[Epoch]:
        return list(self._state.history)

    @property
    def resumed(self) -> int:
        return self._state.resumed

    def restore(self, trainer: Trainer) -> None:
        """Bring a trainer to where the history ends."""
        last = len(self._state.history)
        trainer.load_weights(self._stored(f"weights-{last}"))
        trainer.load_optimizer_arrays(self._stored(f"moments-{last}"))

    def keep_best(self, trainer: Trainer, epoch: int) -> None:
        """Write the weights after `epoch`, the best one so far."""
        self._write(f"weights-{epoch}", trainer.arrays())
        self._best_epoch = epoch
        self._remove_leftovers()

    def restore_best(self, trainer: Trainer) -> None:
        """Give a trainer the weights of the best epoch. DamagedError where they are not as they
        were written, which may be hours ago."""
        folder = f"weights-{self._best_epoch}"
        files = self._together.from_first(self._files_of({folder}))
        self._checksums |= files
        damaged = self._first_damaged(files) if self._writes else None
        if damaged := self._together.from_first(damaged):
            raise DamagedError(f"{damaged} is damaged: start the command again, and it trains anew")
        trainer.load_weights(self._stored(folder))

    def _files_of(self, folders: Collection[str]) -> dict[str, str]:
        """The files in some folders, with their checksums."""
        return {f: c for f, c in self._checksums.items() if f.partition("/")[0] in folders}

    def _stored(self, folder: str) -> StoredArrays:
        files = [file.partition("/")[2] for file in self._files_of({folder})]
        return StoredArrays(self._folder / folder, files)

    def save(self, trainer: Trainer, history: list[Epoch]) -> None:
        """Write the state after the last epoch of `history`, if enough time has passed."""
        if self._together.from_first(time.monotonic() - self._saved < self._seconds):
            return
        last = len(history)
        if last != self._best_epoch:
            self._write(f"weights-{last}", trainer.arrays())
        self._write(f"moments-{last}", trainer.optimizer_arrays())
        self._state = self._state.model_copy(
            update={"history": list(history), "best_epoch": self._best_epoch}
        )
        self._state.files = self._files_of(self._state.folders)
        if not self._writes:
            return
        # They reach the disk before the state that needs them: a power cut then does no harm.
        for name in (*self._state.files, *self._state.folders, "."):
            flush(self._folder / name)
        self._write_state()
        self._remove_leftovers()
        self._saved = time.monotonic()

    def _write(self, folder: str, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
        if not self._writes:
            for _ in arrays:  # each of which is gathered by the first process
                pass
            return
        target = self._folder / folder
        target.mkdir(parents=True, exist_ok=True)
        try:
            for name, array in arrays:
                path = target / f"{name}.npy"
                save_array(path, array)
                del array  # before the next one is made
                # The file is read back a piece at a time: its bytes at once would take memory.
                self._checksums[f"{folder}/{path.name}"] = checksum(path)
        except OSError:
            shutil.rmtree(target, ignore_errors=True)  # half of it is of no use on a full disk
            raise

    def _write_state(self) -> None:
        if not self._writes:
            return
        self._state.checksum = self._state.own_checksum()
        write_atomically(self._folder / "state.json", self._state.model_dump_json(indent=1) + "\n")

    def _remove_leftovers(self) -> None:
        if not self._writes:
            return
        kept = {f"weights-{self._best_epoch}"}
        if self._state.history:
            kept |= {"state.json", *self._state.folders}
        self._checksums = self._files_of(kept)
        for path in self._folder.glob("*"):
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
