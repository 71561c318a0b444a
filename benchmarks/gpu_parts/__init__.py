"""The parts of `fanin.benchmarks.gpu`, each run in a process of its own.

`needs` and `build` come before a part: what the machine lacks is said at once, then the kernels are
built. The parts are `correct` (a folder with a file of cases per op), `published_rows` (part
`shapes`), `contest` (part `kernels`, whose contestants have a file each) and `sanitize`. They share
the frame of a process, `part`; `provenance` tells where the figures come from, and `records.gpu` is
the schema of the files. `reference` is the float64 form that `correct` compares with.
"""
