"""The TensorFlow op library in C++, and how it is built (`build.py`).

One .cc file for each family of ops has their registrations, kernels and devices; `kernel.h` is what
all kernels share, `training.h` what those with variables share.
"""
