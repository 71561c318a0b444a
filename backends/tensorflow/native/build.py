"""Compiles the op library, `ops.cc`, against the installed TensorFlow at first use, and keeps it.

TensorFlow has no stable C++ interface, so a compiled op fits one TensorFlow release only. One fanin
serves all releases because the op is compiled on the user's machine: by g++ alone, in some 10 s,
once for each TensorFlow.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import platformdirs
import tensorflow as tf

_LOG = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where compiled op libraries are kept: FANIN_CACHE, or the user's cache folder for fanin."""
    return Path(os.environ.get("FANIN_CACHE") or platformdirs.user_cache_dir("fanin"))


def compiled_ops() -> Path:
    """The op library for this TensorFlow, which is compiled now if the cache does not have it.

    Raises ImportError where g++ is missing or fails, with what to install or what it said.
    """
    sources = importlib.resources.files(__package__)
    include = importlib.resources.files("fanin.kernels") / "include"
    compile_flags = ["-O2", "-shared", "-fPIC", *tf.sysconfig.get_compile_flags()]
    link_flags = tf.sysconfig.get_link_flags()

    identity = hashlib.sha256()
    texts = [file for file in sources.iterdir() if file.name.endswith((".cc", ".h"))]
    for file in (*sorted(texts, key=lambda file: file.name), include / "fanin.h"):
        identity.update(hashlib.sha256(file.read_bytes()).digest())
    identity.update("\0".join([*compile_flags, *link_flags]).encode())
    target = cache_folder() / f"ops-tf{tf.__version__}-{identity.hexdigest()[:16]}.so"
    if target.is_file():
        return target

    compiler = shutil.which("g++")
    if compiler is None:
        raise ImportError(
            "fanin compiles its TensorFlow op at first use and needs g++, which is not on the "
            "PATH; install it (Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++)"
        )
    _LOG.info("compiling the TensorFlow op for TensorFlow %s (once, ~10 s)", tf.__version__)
    target.parent.mkdir(parents=True, exist_ok=True)
    # It is built beside its place under a name of its own, and then moved there in one step. So two
    # processes that start together both find a whole file.
    with (
        importlib.resources.as_file(sources) as source_folder,
        importlib.resources.as_file(include) as include_folder,
        tempfile.TemporaryDirectory(dir=target.parent) as work,
    ):
        built = Path(work) / target.name
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
        os.replace(built, target)
    _LOG.info("compiled %s", target)
    return target
