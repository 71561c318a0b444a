"""Child processes: how one is started, talked to and ended.

Whatever is measured runs in a process of its own, `python -P -m <module>`. Both ends exchange lines
of JSON: what the parent sends goes to the child's standard input, and what the child sends comes
through a pipe whose number is the last of its arguments, so that nothing that a framework prints
gets in between. Standard input stays open as long as the parent lives: when it ends, so does the
child, whatever it is doing.

Only the standard library is imported here, since the NVML sampler has to stay small.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fanin.benchmarks.records.printing import prepare_streams

# Bytes that are read from a pipe at once.
_BLOCK = 1 << 16


def how_ended(code: int) -> str:
    """What the exit code of a process says, as Python has it: negative for a signal."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class EndedError(RuntimeError):
    """A child ended where a message of it was awaited."""


def child_environment() -> dict[str, str]:
    """The environment of a child process: quiet frameworks, and threads that wait shortly."""
    usual = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "1", "PYTHONUNBUFFERED": "1"}
    if "OMP_WAIT_POLICY" not in os.environ:
        # GNU OpenMP's threads spin 300,000 times before they sleep: milliseconds, and that at the
        # end of each loop once another program has one of the cores. Small models then take 60 to
        # 180 times as long, with this 3 to 6 times; on an idle machine it costs little.
        usual["GOMP_SPINCOUNT"] = "5000"
    # A log is UTF-8, whatever a terminal of this process is.
    fixed = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "PYTHONIOENCODING": "utf-8"}
    return {**usual, **os.environ, **fixed}


class Child:
    """The parent's end of a child process.

    log: the file that what the child prints goes to; without one its output is dropped, and its
    errors go where this process's errors go. inherited: descriptors that it keeps open; all others
    are closed in it. through: a command that runs the child in its place, such as `ip netns exec
    NAME`. Left as a context, or by `close`, the process is gone.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        log: Path | None = None,
        inherited: tuple[int, ...] = (),
        through: Sequence[str] = (),
    ) -> None:
        self._log = log
        self._unread = b""
        reading, writing = os.pipe()
        self._messages = os.fdopen(reading, "rb", buffering=0)
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
        with open(log or os.devnull, "wb") as output:
            self.process = subprocess.Popen(
                # -P: the current folder stays off sys.path, where a `datasets` folder would shadow
                # another package of that name.
                [*through, sys.executable, "-P", "-m", module, *arguments, str(writing)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT if log else None,
                pass_fds=(writing, *inherited),
                env=child_environment(),
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends the child
                bufsize=0,
            )
        os.close(writing)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, message: Any) -> None:
        """Send something that JSON can say. To a child that has ended nothing is sent: whoever
        waits for its messages learns it."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")

    def receive(self, patience: float | None = None) -> Any:
        """Its next message.

        Raises EndedError when it has ended, and TimeoutError when it sends nothing for longer than
        `patience` seconds; None waits for ever.
        """
        while b"\n" not in self._unread:
            waiting = select.poll()
            waiting.register(self._messages, select.POLLIN)
            if not waiting.poll(None if patience is None else 1000 * patience):
                raise TimeoutError(f"no answer within {patience:g} seconds")
            block = self._messages.read(_BLOCK)
            if not block:
                raise EndedError(
                    f"its process ended: see {self._log}"
                    if self._log
                    else "it ended; what it said is in the output of this process"
                )
            self._unread += block
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def messages(self) -> Iterator[Any]:
        """Its messages, until it ends."""
        with suppress(EndedError):
            while True:
                yield self.receive()

    def kill(self) -> None:
        """Have the system end it, without waiting for that."""
        self.process.kill()

    def close(self, patience: float | None = None) -> None:
        """End it: at once, and wait until it is gone. With a `patience` it may end by itself for so
        many seconds, and is waited for as long once more when it had to be killed: what hangs in a
        driver may outlive even that."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        if patience is not None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self._messages.close()


class Parent:
    """A child's end: the process that started it, with the pipe of that number.

    When the parent is gone or has no more use for it, this process ends at once: an orphan must not
    go on beside a run that was started anew.
    """

    def __init__(self, pipe: int) -> None:
        prepare_streams()
        self._pipe = pipe
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        # A thread of its own, so that this process ends also while a driver hangs.
        threading.Thread(target=self._listen, name="fanin-lifeline", daemon=True).start()

    def _listen(self) -> None:
        unread = b""
        # Past Python's buffers, whose lock would be in the way when this process ends by itself.
        while block := os.read(0, _BLOCK):
            *lines, unread = (unread + block).split(b"\n")
            for line in lines:
                self._lines.put(line)
        os._exit(0)  # nobody is there to read the code

    def receive(self, patience: float | None = None) -> Any:
        """The parent's next message. Raises TimeoutError when there is none for longer than
        `patience` seconds; None waits for ever."""
        try:
            return json.loads(self._lines.get(timeout=patience))
        except queue.Empty:
            raise TimeoutError from None

    def send(self, message: Any) -> None:
        """Send something that JSON can say."""
        line = json.dumps(message).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._pipe, line) :]
        except BrokenPipeError:
            os._exit(0)
