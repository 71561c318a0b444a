"""The device in TensorFlow: the arrays that it holds, and what measuring asks of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, SupportsFloat

import numpy as np
import tensorflow as tf

from fanin.backends.interface import check_device

_LOG = logging.getLogger(__name__)


class TensorFlowDevice:
    """See `fanin.backends.interface.Device`.

    TensorFlow has variables of all types that the kernels read on a GPU too, uint16, uint32 and
    bfloat16 included, but for int32, which it keeps in the host's memory whatever the device. What
    is to be int32 is therefore held as uint32.
    """

    def __init__(self, name: str, threads: int) -> None:
        """name: "cpu", "cuda", or "auto" for a GPU where TensorFlow sees one. Settles what holds
        for the whole process: memory growth, and CPU threads, 0 for all."""
        check_device(name)
        gpus = tf.config.list_physical_devices("GPU")
        if name == "cuda" and not gpus:
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
                    "TensorFlow has started already: its own operations do not change to %d "
                    "threads",
                    threads,
                )
        self.threads = threads
        self.is_cpu = not gpus or name == "cpu"
        self.name = "/CPU:0" if self.is_cpu else "/GPU:0"

    def scope(self) -> Any:
        """Within it, ops and variables are made here."""
        return tf.device(self.name)

    def hold(self, array: np.ndarray, dtype: str) -> tf.Variable:
        with self.scope():
            return tf.Variable(_converted(array, _held_type(dtype)), trainable=False)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> tf.Variable:
        with self.scope():  # NumPy would need the memory a second time
            return tf.Variable(tf.zeros(shape, _held_type(dtype)), trainable=False)

    def read(self, array: tf.Variable) -> np.ndarray:
        if array.dtype == tf.bfloat16:
            rounded: np.ndarray = array.numpy().astype(np.float32)
            return rounded
        # A view, where `numpy()` would copy; who changes the variable while it lives copies first.
        return np.asarray(memoryview(array.read_value()))

    def write(self, target: tf.Variable, array: np.ndarray) -> None:
        # The whole at once: TensorFlow copies a variable at every later reading once parts of it
        # have been assigned.
        target.assign(_converted(array, target.dtype))

    def bytes(self, array: tf.Variable) -> int:
        return array.shape.num_elements() * array.dtype.size

    def tensor(self, array: np.ndarray) -> tf.Tensor:
        with self.scope():
            return tf.convert_to_tensor(array)

    def number(self, loss: tf.Tensor) -> SupportsFloat:
        return float(loss) if self.is_cpu else loss

    def synchronize(self) -> None:
        if not self.is_cpu:
            tf.test.experimental.sync_devices()

    def mark(self) -> float | None:
        """TensorFlow has no events for a GPU."""
        return time.perf_counter() if self.is_cpu else None

    def seconds(self, marks: Sequence[float]) -> list[float]:
        return [after - before for before, after in pairwise(marks)]

    def description(self) -> dict[str, str]:
        name = "cpu"
        if not self.is_cpu:
            gpu = tf.config.list_physical_devices("GPU")[0]
            name = tf.config.experimental.get_device_details(gpu).get("device_name", "cuda")
        return {"framework": f"tensorflow {tf.__version__}", "device": name}

    def memory(self) -> dict[str, int | None]:
        """TensorFlow does not tell what its allocator reserved."""
        peak = None
        if not self.is_cpu:
            peak = int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
        return {"allocator_peak_bytes": peak, "allocator_reserved_bytes": None}


def _held_type(dtype: str) -> tf.DType:
    return tf.as_dtype("uint32" if dtype == "int32" else dtype)


def _converted(array: np.ndarray, dtype: tf.DType) -> np.ndarray:
    return np.ascontiguousarray(array, dtype.as_numpy_dtype)
