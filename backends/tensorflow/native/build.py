"""Compiles the op library, `ops.cc`, against the installed TensorFlow at first use, and keeps it.

TensorFlow has no stable C++ interface, so a compiled op fits one TensorFlow release only. One fanin
serves all releases because the op is compiled on the user's machine: by g++ alone, in some 10 s,
once for each TensorFlow.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import logging
import shutil
import subprocess
from pathlib import Path

import tensorflow as tf

from fanin.kernels.kept_files import CacheError, cache_folder, is_whole, keeping

_LOG = logging.getLogger(__name__)


def compiled_ops() -> Path:
    """The op library for this TensorFlow, which is compiled now if the cache does not have it, or
    has it damaged.

    Raises ImportError where g++ is missing or fails, with what to install or what it said, and
    where the cache cannot be written.
    """
    try:
        return _compiled_ops()
    except CacheError as error:
        # Keras shows of an OSError its number alone.
        raise ImportError(f"fanin keeps its compiled TensorFlow op: {error}") from error


def _compiled_ops() -> Path:
    sources = importlib.resources.files(__package__)
    include = importlib.resources.files("fanin.kernels") / "include"
    compile_flags = ["-O2", "-shared", "-fPIC", *tf.sysconfig.get_compile_flags()]
    link_flags = tf.sysconfig.get_link_flags()

    identity = hashlib.sha256()
    texts = [
        file
        for folder in (sources, include)
        for file in folder.iterdir()
        if file.name.endswith((".cc", ".h"))
    ]
    for file in sorted(texts, key=lambda file: file.name):
        identity.update(hashlib.sha256(file.read_bytes()).digest())
    identity.update("\0".join([*compile_flags, *link_flags]).encode())
    target = cache_folder() / f"ops-tf{tf.__version__}-{identity.hexdigest()[:16]}.so"
    if is_whole(target):
        return target

    compiler = shutil.which("g++")
    if compiler is None:
        raise ImportError(
            "fanin compiles its TensorFlow op at first use and needs g++, which is not on the "
            "PATH; install it (Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++)"
        )
    _LOG.info("compiling the TensorFlow op for TensorFlow %s (once, ~10 s)", tf.__version__)
    with (
        importlib.resources.as_file(sources) as source_folder,
        importlib.resources.as_file(include) as include_folder,
        keeping(target) as built,
    ):
        files = [f"-I{include_folder}", str(source_folder / "ops.cc"), "-o", str(built)]
        result = subprocess.run(
            [compiler, *compile_flags, *files, *link_flags], capture_output=True, text=True
        )
        if result.returncode:
            last_lines = "\n".join(result.stderr.splitlines()[-20:])
            raise ImportError(
                f"{compiler} could not compile fanin's TensorFlow op for TensorFlow "
                f"{tf.__version__}:\n{last_lines}"
            )
    return target
