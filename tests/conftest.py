"""What holds for all tests: both frameworks in one process, which fanin itself never has."""

import os
from contextlib import suppress

# As in fanin's runs, see `runner.child_environment`: before anything loads OpenMP.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

# torch's builds for GPUs bring triton, which crashes the process where it is loaded after
# TensorFlow: both have LLVM in them (github.com/tensorflow/tensorflow/issues/124205).
with suppress(ImportError):
    import triton  # noqa: F401
