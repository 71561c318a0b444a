"""What every other part reads and writes: tasks and result files. Nothing here trains or draws."""
