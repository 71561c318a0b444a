"""Times a fused step of one process, and of several that share the labels:
`python -m fanin.benchmarks.timing.ranks`.

One process has as many threads as the others have together, a thread each. They take turns, some
steps a round, on random features and labels (synthetic); the gradient of the features is wanted. On
a machine that others use, wall time says little, so the CPU time of all threads is measured too.
With a rate, two ranks talk over a link between network namespaces, and two others, which take turns
with them, within the machine.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from fanin.benchmarks.measuring.process import Child, EndedError
from fanin.benchmarks.records.base import Machine
from fanin.benchmarks.records.files import try_writing, write_atomically
from fanin.benchmarks.records.printing import prepare_streams
from fanin.benchmarks.records.timing import RankContender, RankSet, RankTimes
from fanin.benchmarks.timing.link import limited_link
from fanin.benchmarks.timing.options import ResultFile, Rounds, SizeOption
from fanin.reports.tables.ranks import ranks_introduction, ranks_table


class _Processes:
    """The processes of all contestants."""

    def __init__(
        self, stack: ExitStack, sizes: dict[str, int], ranks: int, rate: float | None
    ) -> None:
        self._log = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fanin-ranks-")))
        several = [RankContender(rank=r, ranks=ranks, threads=1, **sizes) for r in range(ranks)]
        one = RankContender(rank=0, ranks=1, threads=ranks, **sizes)
        places = stack.enter_context(limited_link(rate)) if rate else [[]] * ranks
        given: dict[RankSet, list[RankContender]] = {"one": [one], "several": several}
        if rate:
            given["within"] = several
        self._children: dict[RankSet, list[Child]] = {which: [] for which in given}
        for which, contenders in given.items():
            folder = self._log / which
            folder.mkdir()
            for contender in contenders:
                log = self._log / f"{which}-{contender.rank}.log"
                module = "fanin.benchmarks.timing.rank_contender"
                through = places[contender.rank] if which == "several" else []
                child = stack.enter_context(Child(module, str(folder), log=log, through=through))
                child.send(contender.model_dump(mode="json"))
                self._children[which].append(child)
        machines = [self._answers(which)[0] for which in given]
        self.machine = Machine.model_validate(machines[0])

    @property
    def names(self) -> tuple[RankSet, ...]:
        return tuple(self._children)

    def steps(self, which: RankSet, count: int) -> tuple[float, float]:
        """Seconds of a step, and CPU seconds."""
        for child in self._children[which]:
            child.send(count)
        answers = self._answers(which)
        wall, cpu = max(a[0] for a in answers), sum(a[1] for a in answers)
        return wall / count, cpu / count

    def _answers(self, which: RankSet) -> list[Any]:
        try:
            return [child.receive() for child in self._children[which]]
        except EndedError:
            logs = [path.read_text(errors="replace") for path in self._log.glob("*.log")]
            raise RuntimeError("a process has failed:\n" + "\n".join(logs)) from None


def main(
    labels: SizeOption = 670_091,
    inputs: SizeOption = 768,
    fan_in: SizeOption = 32,
    batch: SizeOption = 32,
    ranks: Annotated[int, typer.Option(min=2, help="Processes, and threads of one.")] = 2,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Gbit/s of a link between two ranks (Linux, as root)."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a round.")] = 5,
    count: Rounds = 25,
    out: ResultFile = None,
) -> None:
    """Time a fused step of one process and of several."""
    if rate and ranks != 2:
        raise typer.BadParameter(f"a link is between 2 ranks, got --ranks {ranks}")
    if out:
        try_writing(out.parent)
    bits_per_second = rate and 1e9 * rate
    sizes = {"inputs": inputs, "labels": labels, "fan_in": fan_in, "batch": batch}
    started = datetime.now(UTC)
    with ExitStack() as stack:
        processes = _Processes(stack, sizes, ranks, bits_per_second)
        names = processes.names
        seconds: dict[RankSet, list[float]] = {name: [] for name in names}
        cpu_seconds: dict[RankSet, list[float]] = {name: [] for name in names}
        for number in range(count + 1):
            for name in names:
                wall, cpu = processes.steps(name, steps)
                if number:  # the first round warms up
                    seconds[name].append(wall)
                    cpu_seconds[name].append(cpu)
    times = RankTimes(
        started=started,
        machine=processes.machine,
        ranks=ranks,
        inputs=inputs,
        labels=labels,
        fan_in=fan_in,
        batch=batch,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        bits_per_second=bits_per_second,
    )
    print(f"{ranks_introduction(times)}\n\n{ranks_table(times).terminal()}")
    if out:
        write_atomically(out, times.model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    prepare_streams()
    typer.run(main)
