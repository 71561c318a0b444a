"""The exit codes of the command `fanin`."""

# A run failed, or the backends drifted apart.
FAILED = 1
# Wrong usage, or data that cannot be used.
USAGE = 2
# Stopped with Ctrl-C, as a shell counts it.
INTERRUPTED = 130
