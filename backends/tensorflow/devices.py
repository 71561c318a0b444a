"""What both executions ask TensorFlow about the device; it is named "/CPU:0" or "/GPU:0"."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import SupportsFloat

import tensorflow as tf

_LOG = logging.getLogger(__name__)


def prepare_device(device: str, threads: int) -> str:
    """Settle the process-wide settings; returns "/CPU:0" or "/GPU:0"."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f'device must be "auto", "cpu" or "cuda", got {device!r}')
    gpus = tf.config.list_physical_devices("GPU")
    if device == "cuda" and not gpus:
        raise RuntimeError(
            "a GPU was asked for but TensorFlow sees none here: it needs an NVIDIA driver and "
            "TensorFlow's CUDA build (pip install 'tensorflow[and-cuda]')"
        )
    for gpu in gpus:
        # Without it TensorFlow takes the whole device, and its use would say nothing.
        if not tf.config.experimental.get_memory_growth(gpu):
            tf.config.experimental.set_memory_growth(gpu, True)
    if threads > 0 and tf.config.threading.get_intra_op_parallelism_threads() != threads:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        except RuntimeError:
            _LOG.warning(
                "TensorFlow has started already: its own operations do not change to %d threads",
                threads,
            )
    return "/GPU:0" if gpus and device != "cpu" else "/CPU:0"


def synchronize(device: str) -> None:
    """Wait until the device has finished."""
    if device != "/CPU:0":
        tf.test.experimental.sync_devices()


def mark(device: str) -> float | None:
    """See `fanin.backends.interface.Trainer`; TensorFlow has no events for a GPU."""
    return time.perf_counter() if device == "/CPU:0" else None


def seconds(marks: Sequence[float]) -> list[float]:
    """See `fanin.backends.interface.Trainer`."""
    return [after - before for before, after in pairwise(marks)]


def loss_number(loss: tf.Tensor, device: str) -> SupportsFloat:
    """A loss as a number, but on a GPU, where that would wait, as it is.

    Small tensors that are kept, step after step, between large ones that are freed also keep the C
    library from using their memory again.
    """
    return float(loss) if device == "/CPU:0" else loss


def description(device: str) -> dict[str, str]:
    """Framework with its version, and device."""
    name = "cpu"
    if device != "/CPU:0":
        gpu = tf.config.list_physical_devices("GPU")[0]
        name = tf.config.experimental.get_device_details(gpu).get("device_name", "cuda")
    return {"framework": f"tensorflow {tf.__version__}", "device": name}


def device_memory(device: str) -> dict[str, int | None]:
    """Bytes that TensorFlow's allocator held at most; it does not tell what it reserved."""
    peak = None
    if device != "/CPU:0":
        peak = int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    return {"allocator_peak_bytes": peak, "allocator_reserved_bytes": None}
