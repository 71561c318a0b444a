"""The harness: task files, the runner, what is measured, and the command line.

A run goes one way: `tasks/*/*.json` -> `task.Task` -> `runner` (one child process each) -> `run`
(data set, trainer, measuring) -> a `results.RunResult` file, which `fanin.reports` reads.
"""
