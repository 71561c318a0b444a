"""The exit codes of the command `fanin`."""

# A run failed, the backends drifted apart, or the machine failed: a full disk, say.
FAILED = 1
# Wrong usage, or data that cannot be used.
USAGE = 2
# Stopped with Ctrl-C, as a shell counts it.
INTERRUPTED = 130
