"""The harness: task files, runs, what is measured, and the command line.

A run goes one way: `tasks/*/*.json` -> `records.task.Task` -> `harness.parent` (one child process
each) -> `harness.child` (data set, trainer, measuring) -> a `records.run.RunResult` file, which
`fanin.reports` reads. Each room imports only rooms before it: records, measuring, harness, timing,
gpu_parts, cli.
"""
