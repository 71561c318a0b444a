"""Dense features of texts by a sentence encoder, with the library sentence-transformers.

Encoding may take hours, so it goes on where it stopped: until the last text is encoded, the
features lie in a hidden file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fanin.datasets.dataset import DataError, check_finite
from fanin.datasets.file_errors import naming
from fanin.datasets.tools.files import SPLITS
from fanin.datasets.tools.new_folder import check_new
from fanin.datasets.tools.texts import in_parts, read_texts, text_file
from fanin.datasets.tools.writers import write_header
from fanin.kernels.kept_files import flush, replacing

SAVED_EVERY = 64  # batches; what a stop loses at most

# Texts to float32 [texts, inputs].
Encoder = Callable[[list[str]], npt.NDArray[np.float32]]
Show = Callable[[str, int, int], None]  # split, texts done, texts in all


def load_encoder(model: str, batch: int, device: str | None) -> Encoder:
    """The encoder of a folder, or of a name that sentence-transformers knows.

    device: such as `cpu` or `cuda`; None for a GPU where there is one. Raises DataError where the
    library is not installed or cannot load the model.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise DataError(
            "sentence encoders need sentence-transformers: pip install 'fanin[encoders]'"
        )
    from sentence_transformers import SentenceTransformer

    try:
        loaded = SentenceTransformer(model, device=device)
    except Exception as error:  # of the hub, of files, of the framework: many kinds
        raise DataError(
            f"{model}: sentence-transformers cannot load it ({error}): give a folder of a model, "
            "or a name that it knows, with a network"
        ) from error

    def encode(texts: list[str]) -> npt.NDArray[np.float32]:
        vectors = loaded.encode(
            texts, batch_size=batch, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(vectors, np.float32)

    return encode


def feature_name(model: str) -> str:
    """What features of a model are called: the last part of its name, in letters that a file name
    may have."""
    last = re.sub(r"[^\w.-]+", "-", Path(model).name or "encoder", flags=re.ASCII)
    return last.strip(".-_").lower() or "encoder"


def encode_folder(
    folder: Path, model: str, name: str, batch: int, device: str | None, force: bool, show: Show
) -> list[Path]:
    """Features `name` of both splits of a data folder by an encoder; the files that are written.

    What an earlier call has encoded of the same texts by the same model is not encoded again.
    """
    paths = {split: folder / f"{split}-{name}.npy" for split in SPLITS}
    texts = {split: text_file(folder, split) for split in SPLITS}
    for path in paths.values():
        check_new(path, force)
    encode = load_encoder(model, batch, device)
    for split, path in paths.items():
        encode_file(texts[split], path, model, encode, batch, lambda *n, s=split: show(s, *n))
    return list(paths.values())


def encode_file(
    texts: Path,
    path: Path,
    model: str,
    encode: Encoder,
    batch: int,
    show: Callable[[int, int], None],
) -> None:
    """The features of a file of texts as `.npy` [texts, inputs]."""
    digest = hashlib.sha256()
    count = 0
    for text in read_texts(texts):  # which also finds every bad line before hours of work
        digest.update(text.encode() + b"\n")
        count += 1
    if not count:
        raise DataError(f"{texts}: no texts: at least one is needed")
    key = {"model": model, "texts": digest.hexdigest()}
    begun = path.with_name(f".{path.name}.begun")
    state = path.with_name(f".{path.name}.state.json")
    done, inputs = _begun(begun, state, key)
    rest = islice(read_texts(texts), done, None)
    for part in in_parts(rest, batch * SAVED_EVERY):
        x = encode(part)
        if x.ndim != 2 or len(x) != len(part) or (inputs and x.shape[1] != inputs):
            raise DataError(
                f"{model}: gives an array {x.shape} for {len(part)} texts: an encoder has to give "
                "one vector for each, always of the same length"
            )
        check_finite(x, f"{texts}: features by {model}", done)
        inputs = x.shape[1]
        with naming(begun), begun.open("ab") as file:
            if not done:
                file.truncate(0)
                write_header(file, np.dtype(np.float32), (count, inputs))
            file.write(np.ascontiguousarray(x).data)
        flush(begun)
        done += len(part)
        _save(state, {"key": key, "done": done, "inputs": inputs, "bytes": begun.stat().st_size})
        show(done, count)
    os.replace(begun, path)
    state.unlink()


def _save(state: Path, content: dict[str, Any]) -> None:
    with replacing(state) as made, naming(state):
        made.write_text(json.dumps(content), "ascii")


def _begun(begun: Path, state: Path, key: dict[str, str]) -> tuple[int, int]:
    """How many texts are encoded already, and into how many numbers each; 0 and 0 where it begins
    anew: with another model, other texts, or without what was written."""
    try:
        content = json.loads(state.read_bytes())
        size = int(content["bytes"])
        if content["key"] != key or begun.stat().st_size < size:
            return 0, 0
        os.truncate(begun, size)  # what was written behind the last state
        return int(content["done"]), int(content["inputs"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0
