"""The command `fanin`: its commands, and how errors of theirs are told."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import typer

from fanin.backends.estimator.saved import ModelError
from fanin.benchmarks.cli.codes import INTERRUPTED
from fanin.benchmarks.cli.compare import compare
from fanin.benchmarks.cli.data import COMMANDS as DATA_COMMANDS
from fanin.benchmarks.cli.export import export
from fanin.benchmarks.cli.info import info
from fanin.benchmarks.cli.merge import merge
from fanin.benchmarks.cli.output import stop, stop_for
from fanin.benchmarks.cli.plan import plan
from fanin.benchmarks.cli.predict import predict
from fanin.benchmarks.cli.report import report
from fanin.benchmarks.cli.reproduce import reproduce
from fanin.benchmarks.harness.lock import BusyError
from fanin.benchmarks.harness.queues import ClusterError
from fanin.benchmarks.records.store import ResultError
from fanin.benchmarks.records.task import TaskError
from fanin.datasets import DataError
from fanin.reports.pages.report import ReportError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Fixed fan-in sparse output layers for extreme classification: train every layer setup "
    "in PyTorch and TensorFlow, compare them, and report.",
    epilog="Start with `fanin reproduce`: it trains on real data that comes with fanin and ends "
    "with a table and an HTML page. Exit codes: 0 done; 1 a run failed, the backends drifted apart "
    "or the disk is full; 2 wrong usage or data; 130 stopped with Ctrl-C.",
)


# Their messages say what to do.
_NAMED_ERRORS = (
    *(TaskError, DataError, ModelError, ResultError, ReportError, BusyError, ClusterError),
)


def friendly(command: Callable[..., None]) -> Callable[..., None]:
    """Errors that say what to do become one line, anything else stays a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except _NAMED_ERRORS as error:
            stop(str(error))
        except BrokenPipeError:
            raise  # whoever read the output is gone; nobody wants to know
        except OSError as error:
            stop_for(error)
        except ImportError as error:  # the kernels of another version, a package that is missing
            stop(str(error))
        except KeyboardInterrupt as stopped:
            usual = "stopped; what has finished is kept, the same command goes on from there"
            stop(str(stopped) or usual, INTERRUPTED)

    return run


for _command in (reproduce, compare, plan, report, merge, predict, export, info):
    app.command()(friendly(_command))

_data = typer.Typer(
    no_args_is_help=True,
    help="Your own data: list, check, convert, make features, count, fetch. Start with `fanin data "
    "convert` and `fanin data check`.",
)
for _name, _of_data in DATA_COMMANDS.items():
    _data.command(_name)(friendly(_of_data))
app.add_typer(_data, name="data")
