"""Data tools: they make a data folder of files of other kinds, and say what is worth knowing of it.

`fanin data` (`benchmarks/cli/data.py`) calls them. Files are read and written a block at a time, so
memory does not grow with them. What is written is whole, or does not exist.
"""
