"""Two network namespaces on this machine with a link of a given rate between them, for processes
that are to talk to each other as if they were on two machines. Linux only, and only for root: it
calls `ip` and `tc`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESSES = ("10.203.77.1", "10.203.77.2")
# A bucket of so many bits may pass at once. Far less than a step sends, but enough for the kernel's
# timer to keep up with the rate.
_BURST = "256kb"


@contextmanager
def limited_link(bits_per_second: float) -> Iterator[list[list[str]]]:
    """What a command begins with to run in either namespace, where it has the address of the same
    place in `ADDRESSES`. The namespaces go when the block ends. Raises RuntimeError where the
    system does not let us."""
    if missing := [name for name in ("ip", "tc") if shutil.which(name) is None]:
        raise RuntimeError(f"a limited link needs {' and '.join(missing)}, of Debian's iproute2")
    spaces = [f"fanin-{os.getpid()}-{number}" for number in range(2)]
    ends = [f"fanin{number}" for number in range(2)]
    try:
        for space in spaces:
            _call("ip", "netns", "add", space)
        first, second = zip(spaces, ends, strict=True)
        peer = ("peer", "name", second[1], "netns", second[0])
        _call("ip", "-n", first[0], "link", "add", first[1], "type", "veth", *peer)
        for space, end, address in zip(spaces, ends, ADDRESSES, strict=True):
            _call("ip", "-n", space, "address", "add", f"{address}/24", "dev", end)
            _call("ip", "-n", space, "link", "set", "lo", "up")
            _call("ip", "-n", space, "link", "set", end, "up")
            limit = ("rate", f"{int(bits_per_second)}bit", "burst", _BURST, "latency", "100ms")
            _call("tc", "-n", space, "qdisc", "add", "dev", end, "root", "tbf", *limit)
        yield [
            ["ip", "netns", "exec", space, "env", f"GLOO_SOCKET_IFNAME={end}"]
            for space, end in zip(spaces, ends, strict=True)
        ]
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a limited link needs root: {' '.join(command)}: {done.stderr.strip()}")
