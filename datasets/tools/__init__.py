"""Data tools: from the files that somebody has to a data folder, and what is to know about it.

`fanin data` (`benchmarks/cli/data.py`) calls them. Files are read and written a block at a time, so
memory does not grow with them; what is written is whole or not there.
"""
