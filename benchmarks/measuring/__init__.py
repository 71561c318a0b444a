"""What is measured, and how: memory, NVML, clocks, the machine, ranking metrics."""
