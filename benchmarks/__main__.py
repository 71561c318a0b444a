"""Entry point of the command `fanin`, and of `python -m fanin.benchmarks`.

Only what every Python has is imported first: the rest takes seconds, in which Ctrl-C is to end as
quietly as it does later.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from fanin.benchmarks.cli.codes import FAILED, INTERRUPTED


def stop_at_once(*_: object) -> None:
    """End the process, which has nothing to clean up yet.

    While modules are imported, an interrupt must not become an exception: some modules take it for
    one of their own, and another error comes of it.
    """
    os.write(2, b"fanin: stopped\n")
    os._exit(INTERRUPTED)


def interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Repeat a Ctrl-C that Python dropped.

    Where a destructor or the callback of a weak reference runs, as within every import, Python
    cannot pass an interrupt on: it prints the traceback, and the program goes on.
    """
    if unraisable.exc_type is KeyboardInterrupt:
        # Later and from another thread: within this function it would be dropped again.
        main_thread = threading.main_thread().ident
        repeated = threading.Timer(0.01, signal.pthread_kill, (main_thread, signal.SIGINT))
        repeated.daemon = True
        repeated.start()
    else:
        sys.__unraisablehook__(unraisable)


def main() -> None:
    """Run the command and exit with its code; see `cli.app`."""
    sys.unraisablehook = interrupt_again
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:  # and not where a parent has it ignored
        signal.signal(signal.SIGINT, stop_at_once)
    try:
        from fanin.benchmarks.records.printing import prepare_streams

        prepare_streams()
        from fanin.benchmarks.cli.app import app

        signal.signal(signal.SIGINT, usual)
        app()
    except KeyboardInterrupt:
        print("fanin: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:  # while typer prints a help; commands report their own errors
        from fanin.benchmarks.records.printing import drop_output

        print(f"fanin: {error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        drop_output()
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
