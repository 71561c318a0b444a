"""The TensorFlow op library in C++, `ops.cc`, and how it is built, `build.py`."""
