"""What holds for all tests: both frameworks in one process, which fanin itself never has."""

from contextlib import suppress

# torch's builds for GPUs bring triton, which crashes the process where it is loaded after
# TensorFlow: both have LLVM in them (github.com/tensorflow/tensorflow/issues/124205).
with suppress(ImportError):
    import triton  # noqa: F401
