"""Entry point of the command `fanin`, and of `python -m fanin.benchmarks`.

Only what every Python has is imported first: the rest takes seconds, in which Ctrl-C is to end as
quietly as it does later.
"""

from __future__ import annotations

import sys

from fanin.benchmarks.cli.codes import INTERRUPTED


def main() -> None:
    """Run the command and exit with its code; see `cli.app`."""
    try:
        from fanin.benchmarks.cli.app import app

        app()
    except KeyboardInterrupt:
        print("fanin: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
