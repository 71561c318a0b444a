"""The parts of `fanin.benchmarks.gpu`, each run in a process of its own: `python -m
fanin.benchmarks.gpu_parts.correct` and so on.

`results` is the schema of their files, `part` the frame they share (options, budget, machine),
`reference` the float64 form that `correct` compares with, and `tables` what a reader sees of a
file. All but `shapes` do without pydantic and platformdirs: machines with a GPU often have torch
and little else.
"""
