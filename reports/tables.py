"""The tables a reader sees, as text cells that Markdown and HTML both print.

Rows come from `summary` (and from the lockstep files); nothing is computed here but differences
and ratios of two rows. A missing figure is an em-dash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from fanin.backends.interface import BACKENDS
from fanin.benchmarks.records.compare import LockstepResult
from fanin.benchmarks.records.published import intermediate_label
from fanin.benchmarks.records.run import RunResult
from fanin.reports.metrics import HIGHLIGHTED, METRICS, RANKINGS
from fanin.reports.setups import BACKEND_NAMES, Setup, backend_order, dataset_label
from fanin.reports.summary import (
    ALLOCATOR_PEAK,
    RSS_ABOVE_BASELINE,
    Row,
    counted_gib,
    known_datasets,
    memory_gib,
    memory_kind,
    summarise,
)

GAP = "—"

MEMORY_NOTE = (
    "RSS: peak resident set of the process above its baseline; allocator: peak of the framework's "
    "GPU allocator"
)
# Behind a peak that cannot be compared with others, and what it means.
UNRESOLVED = "†"
UNRESOLVED_NOTE = (
    f"{UNRESOLVED} less than the arrays alone hold, for the process had room left from before: too "
    "small to be measured so"
)
BRIEF_KINDS: dict[str | None, str] = {ALLOCATOR_PEAK: "allocator", RSS_ABOVE_BASELINE: "RSS"}

PROTOCOLS = {
    "paper": "validation set = test set, as in the paper (protocol “paper”): learning rate, early "
    "stopping and best weights are chosen by P@3 on the test set, so test precision is optimistic",
    "holdout": "validation set split off the training set (protocol “holdout”): learning rate, "
    "early stopping and best weights are chosen by P@3 on it, and the test set is not used during "
    "training",
}
# The same for a terminal's line.
_BRIEF_PROTOCOLS = {
    "paper": "validation set = test set (protocol paper)",
    "holdout": "validation on training instances held out (protocol holdout)",
}

# Below this many GiB the smallest figure of a column would be printed as 0.0x; MiB reads better.
_SMALL_GIB = 0.1


@dataclass(frozen=True)
class Cell:
    """text as printed; beside it spread (`±0.12`) and what it is against another figure (`+0.3`, in
    parentheses); colour of the setup that the row is about."""

    text: str = GAP
    spread: str = ""
    against: str = ""
    best: bool = False
    colour: str | None = None


@dataclass(frozen=True)
class Column:
    """numeric columns stand flush right; meaning explains the head; wraps allows several lines."""

    head: str
    numeric: bool = True
    meaning: str = ""
    wraps: bool = False


@dataclass(frozen=True)
class Table:
    """A caption, the heads and one tuple of cells per row."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """A GitHub table, padded so that it also reads well on a terminal; best values bold."""
        texts = [[_markdown_cell(cell) for cell in row] for row in self.rows]
        heads = [_escape_markdown(column.head) for column in self.columns]
        widths = [max(map(len, column)) for column in zip(heads, *texts, strict=True)]
        right = [column.numeric for column in self.columns]

        def line(cells: Iterable[str]) -> str:
            padded = (
                cell.rjust(width) if numeric else cell.ljust(width)
                for cell, width, numeric in zip(cells, widths, right, strict=True)
            )
            return f"| {' | '.join(padded)} |"

        rule = (
            "-" * (width + 1) + ":" if numeric else ":" + "-" * (width + 1)
            for width, numeric in zip(widths, right, strict=True)
        )
        return "\n".join([line(heads), f"|{'|'.join(rule)}|", *map(line, texts)])


def _escape_markdown(text: str) -> str:
    # Newlines would end the row, pipes the cell, and `<` could begin raw HTML.
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _markdown_cell(cell: Cell) -> str:
    text = _escape_markdown(cell.text)
    text = f"**{text}**" if cell.best else text
    against = f"({cell.against})" if cell.against else ""
    return " ".join(part for part in (text, cell.spread, against) if part)


def number(value: float | None, decimals: int) -> str:
    return GAP if value is None else f"{value:,.{decimals}f}"


def memory_unit(gib: Iterable[float | None]) -> tuple[str, float, int]:
    """Unit, factor from GiB and decimals in which a whole column of memory figures reads well."""
    there = [value for value in gib if value is not None]
    if there and min(there) < _SMALL_GIB:
        return "MiB", 1024.0, 1
    return "GiB", 1.0, 2


def time_decimals(seconds: Iterable[float | None]) -> int:
    """Decimals for a column of seconds: the paper's whole seconds when they are long."""
    there = [value for value in seconds if value is not None]
    return 0 if there and min(there) >= 100 else 1 if there and min(there) >= 1 else 2


def shared_departures(setups: Sequence[Setup]) -> list[str]:
    """Departures from the defaults that every setup has; said once instead of in every row."""
    each = [setup.variant for setup in setups]
    return [part for part in each[0] if all(part in other for other in each)] if each else []


def shared_variant(rows: Iterable[Row]) -> list[str]:
    return shared_departures([row.setup for row in rows])


def without(setup: Setup, shared: Sequence[str]) -> Setup:
    """The setup with only those departures in its variant that are not said elsewhere."""
    return replace(setup, variant=tuple(part for part in setup.variant if part not in shared))


def comparison(rows: Sequence[Row]) -> Table:
    """The published columns of one data set and its features, every backend."""
    shared = shared_variant(rows)
    variants = [", ".join(without(row.setup, shared).variant) for row in rows]
    several_machines = len({row.machine for row in rows} - {None}) > 1
    best = _best(rows)

    columns = [
        Column("backend", numeric=False),
        Column("setup", numeric=False),
        Column("connectivity", meaning="connections per label"),
        Column("intermediate", meaning="units of the intermediate layer"),
    ]
    if any(variants):
        columns.append(
            Column("variant", False, "departures from the default hyper-parameters", True)
        )
    if several_machines:
        columns.append(Column("machine", meaning="number in the list of machines"))
    printed: list[Callable[[Row], Cell]] = []
    for key, metric in METRICS.items():
        values = [row.values[key] for row in rows]
        unit, factor, decimals = metric.unit, 1.0, metric.decimals
        if unit == "GiB":
            unit, factor, decimals = memory_unit(values)
        elif unit == "s":
            decimals = time_decimals(values)
        elif key == "epochs" and all(value is None or value == int(value) for value in values):
            decimals = 0
        columns.append(Column(metric.head(unit), meaning=metric.meaning))
        printed.append(_printer(key, factor, decimals, best))
        if key == "memory_gib":
            columns.append(Column("memory kind", False, MEMORY_NOTE))
            printed.append(lambda row: Cell(BRIEF_KINDS.get(row.memory_kind, GAP)))
    columns.append(Column("n", meaning="finished repeats; figures are means ± standard deviation"))

    lines = []
    for row, own in zip(rows, variants, strict=True):
        setup = row.setup
        line = [
            Cell(row.backend),
            Cell(setup.kind, colour=setup.colour),
            Cell(GAP if setup.connectivity is None else str(setup.connectivity)),
            Cell(intermediate_label(setup.intermediate) if setup.intermediate else GAP),
        ]
        if any(variants):
            line.append(Cell(own or GAP))
        if several_machines:
            line.append(Cell(GAP if row.machine is None else str(row.machine)))
        line += [cell(row) for cell in printed]
        line.append(Cell(str(row.n)))
        lines.append(tuple(line))
    caption = "One row per backend and setup: means over n finished repeats, ± standard deviation"
    if any(row.is_unresolved for row in rows):
        caption += f". {UNRESOLVED_NOTE}"
    return Table(caption, tuple(columns), tuple(lines))


def rankings(rows: Sequence[Row]) -> Table | None:
    """Precision beside nDCG, PSP and PSnDCG on the test instances; None where nobody has them."""
    shown = {**{key: METRICS[key] for key in ("test_p1", "test_p3", "test_p5")}, **RANKINGS}
    there = [row for row in rows if any(row.values[key] is not None for key in RANKINGS)]
    if not there:
        return None
    shared = shared_variant(rows)
    heads = [metric.head().removeprefix("test ") for metric in shown.values()]
    columns = (
        Column("backend", numeric=False),
        Column("setup", numeric=False),
        *(Column(head, meaning=m.meaning) for head, m in zip(heads, shown.values(), strict=True)),
        Column("n", meaning="finished repeats; figures are means ± standard deviation"),
    )
    lines = []
    for row in there:
        setup = without(row.setup, shared)
        printed = (_printer(key, 1.0, m.decimals, {})(row) for key, m in shown.items())
        lines.append(
            (
                Cell(row.backend),
                Cell(setup.label, colour=setup.colour),
                *printed,
                Cell(str(row.n)),
            )
        )
    caption = "Test metrics; PSP and PSnDCG weigh labels by inverse propensity"
    return Table(caption, columns, tuple(lines))


def _printer(
    key: str, factor: float, decimals: int, best: dict[tuple[str, str | None], float]
) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        value, spread = row.values[key], row.spreads[key]
        if value is None:
            return Cell()
        text = number(value * factor, decimals)
        top = best.get((key, _peers(key, row)))
        unresolved = key == "memory_gib" and row.is_unresolved
        return Cell(
            text=text + UNRESOLVED * unresolved,
            spread="" if spread is None else f"±{number(spread * factor, decimals)}",
            # Compared as printed: what looks equal is equally good.
            best=top is not None and text == number(top * factor, decimals) and not unresolved,
        )

    return cell


def _peers(key: str, row: Row) -> str | None:
    """Among which rows a best value is sought: peaks of different kinds are not comparable."""
    return row.memory_kind if key == "memory_gib" else None


def _best(rows: Iterable[Row]) -> dict[tuple[str, str | None], float]:
    found: dict[tuple[str, str | None], float] = {}
    for row in rows:
        for key in HIGHLIGHTED:
            value = row.values[key]
            if value is None or (key == "memory_gib" and row.is_unresolved):
                continue
            peers = (key, _peers(key, row))
            choose = max if METRICS[key].better == "higher" else min
            found[peers] = choose(found.get(peers, value), value)
    return found


def comparison_markdown(runs: Iterable[RunResult]) -> str:
    """The comparison of all runs as Markdown, one table per data set and features.

    Reads well on a terminal too; empty without runs. Means over repeats, em-dashes for gaps.
    """
    parts = []
    for (dataset, features), group in groupby(
        summarise(list(runs)), key=lambda row: (row.dataset, row.features)
    ):
        parts.append(section_markdown(f"{dataset}, {features} features", list(group)))
    return "\n".join(parts)


def _protocol_names(rows: Iterable[Row]) -> list[str]:
    """Protocols of the rows; "paper" is the default, so only another one is in the variant."""
    return sorted(
        {"holdout" if "protocol=holdout" in row.setup.variant else "paper" for row in rows}
    )


def protocols(rows: Iterable[Row]) -> tuple[str, ...]:
    """What was validated on, in words: one entry per protocol that the rows were made with."""
    return tuple(PROTOCOLS[name] for name in _protocol_names(rows))


def heading(title: str) -> str:
    return f"## {_escape_markdown(title)}\n\n"


def section_markdown(title: str, rows: Sequence[Row]) -> str:
    """One comparison table under its heading, with the protocol and what all runs share."""
    shared = shared_variant(rows)
    remark = "".join(f"Protocol: {protocol}.\n\n" for protocol in protocols(rows))
    remark += f"All runs: {', '.join(shared)}.\n\n" if shared else ""
    table = comparison(rows)
    return (
        f"{heading(title)}{remark}{table.markdown()}\n\n"
        f"{table.caption}. Memory kind: {MEMORY_NOTE}.\n"
    )


@dataclass(frozen=True)
class Pair:
    """The same setup in both backends; None where one has not run it."""

    setup: Setup
    first: Row | None
    second: Row | None

    def ratio(self, key: str) -> float | None:
        """second / first of a metric; None when either is missing, or an unresolved peak."""
        rows = (self.first, self.second)
        if key == "memory_gib" and any(row.is_unresolved for row in rows if row):
            return None
        return _quotient(*self.both(key))

    def both(self, key: str) -> tuple[float | None, float | None]:
        kinds = {row.memory_kind for row in (self.first, self.second) if row}
        if key == "memory_gib" and len(kinds) > 1:
            # An allocator's peak against a resident set would say nothing.
            return None, None
        return (
            self.first.values[key] if self.first else None,
            self.second.values[key] if self.second else None,
        )


def _quotient(first: float | None, second: float | None) -> float | None:
    return second / first if first and second is not None else None


def by_setup(rows: Sequence[Row]) -> dict[tuple[Setup, int | None], dict[str, Row]]:
    """(setup, machine) -> backend -> row, in the order of the tables.

    A setup that only failed stands there once without a row, so that its gap is seen.
    """
    found: dict[tuple[Setup, int | None], dict[str, Row]] = {}
    for row in rows:
        if row.n:
            found.setdefault((row.setup, row.machine), {})[row.backend] = row
    measured = {setup for setup, _ in found}
    for row in rows:
        if row.setup not in measured:
            found.setdefault((row.setup, None), {})
    return dict(sorted(found.items(), key=lambda item: (item[0][0].order, item[0][1] or 0)))


def pairs(rows: Sequence[Row]) -> list[Pair]:
    """Each setup that any backend ran, torch beside TensorFlow, on the same hardware."""
    first, second = BACKENDS
    return [Pair(setup, by.get(first), by.get(second)) for (setup, _), by in by_setup(rows).items()]


def against(rows: Sequence[Row]) -> Table:
    """PyTorch against TensorFlow, setup by setup: test P@1, time per epoch with and without
    validation, memory."""
    shared = shared_variant(rows)
    couples = pairs(rows)
    first, second = (BACKEND_NAMES[backend] for backend in BACKENDS)
    kinds = {row.memory_kind for row in rows} - {None}
    several_machines = len({row.machine for row in rows} - {None}) > 1

    columns = [Column("setup", numeric=False)]
    if several_machines:
        columns.append(Column("machine", meaning="number in the list of machines"))
    lines: list[list[Cell]] = []
    for couple in couples:
        line = [Cell(without(couple.setup, shared).label, colour=couple.setup.colour)]
        if several_machines:
            row = couple.first or couple.second
            line.append(Cell(str(row.machine) if row and row.machine else GAP))
        lines.append(line)

    for key in ("test_p1", "seconds_per_epoch", "train_seconds_per_epoch", "memory_gib"):
        metric = METRICS[key]
        values = [value for couple in couples for value in couple.both(key)]
        unit, factor, decimals = metric.unit, 1.0, metric.decimals
        if unit == "GiB":
            unit, factor, decimals = memory_unit(values)
        elif unit == "s":
            decimals = time_decimals(values)
        label = metric.label
        if key == "memory_gib" and len(kinds) == 1:
            label = f"memory, {next(iter(kinds))}"
        columns += [Column(f"{label}, {name} ({unit})") for name in (first, second)]
        columns.append(
            Column("difference (points)", meaning=f"{second} minus {first}")
            if key == "test_p1"
            else Column("ratio", meaning=f"{second} / {first}")
        )
        for line, couple in zip(lines, couples, strict=True):
            a, b = couple.both(key)
            line += [
                Cell(number(None if value is None else value * factor, decimals))
                for value in (a, b)
            ]
            if key != "test_p1":
                line.append(Cell(number(couple.ratio(key), 2)))
            else:
                # z: no negative zero.
                line.append(Cell(GAP if a is None or b is None else f"{b - a:+z.2f}"))
    caption = f"The same setup in both backends; below a ratio of 1 {second} needs less"
    return Table(caption, tuple(columns), tuple(map(tuple, lines)))


def savings(rows: Sequence[Row]) -> Table | None:
    """How many times less memory than the dense layer, measured and counted; None without one.

    Both are stated because they answer different questions: the measured peak holds the
    framework's temporaries, of which a dense layer makes many, the counted bytes do not.
    """
    dense = {
        (row.backend, row.machine, row.setup.variant): row
        for row in rows
        if row.setup.kind == "Dense" and row.n
    }
    shared = shared_variant(rows)
    lines = []
    for row in rows:
        base = dense.get((row.backend, row.machine, row.setup.variant))
        if base is None or row is base or not row.n:
            continue
        setup = without(row.setup, shared)
        ratios = (
            None
            if row.is_unresolved
            else _quotient(row.values["memory_gib"], base.values["memory_gib"]),
            _quotient(row.values["counted_gib"], base.values["counted_gib"]),
        )
        lines.append(
            (
                Cell(row.backend),
                Cell(setup.label, colour=setup.colour),
                *(Cell(GAP if ratio is None else f"{ratio:,.1f} x") for ratio in ratios),
            )
        )
    if not lines:
        return None
    kinds = sorted({row.memory_kind for row in rows if row.memory_kind})
    columns = (
        Column("backend", numeric=False),
        Column("setup", numeric=False),
        Column(f"Dense / setup, measured ({', '.join(kinds) or GAP})"),
        Column("Dense / setup, counted (parameters + optimiser state)"),
    )
    return Table("Memory of the dense layer divided by the setup's", columns, tuple(lines))


def counts(runs: Sequence[RunResult], locksteps: Sequence[LockstepResult]) -> Table:
    """The sizes of the data sets of these results; gaps for one that no run could load."""
    known = known_datasets(runs)
    for each in locksteps:
        known.setdefault((each.task.dataset, each.task.features), each.dataset)
    tasks = [*(run.task for run in runs), *(each.task for each in locksteps)]
    names = [(task.dataset, task.features) for task in tasks]
    lines = []
    for name, features in dict.fromkeys(names):
        info = known.get((name, features))
        if info is None:
            lines.append((Cell(name), Cell(features), *[Cell()] * 7))
            continue
        figures = (
            number(info.labels, 0),
            number(info.inputs, 0),
            number(info.train_instances, 0),
            number(info.test_instances, 0),
            number(info.train_positives / info.train_instances, 2) if info.train_instances else GAP,
            number(info.train_positives / info.labels, 2) if info.labels else GAP,
        )
        lines.append(
            (
                Cell(dataset_label(name, info.synthetic)),
                Cell(features),
                *map(Cell, figures),
                Cell(info.source),
            )
        )
    columns = (
        Column("data set", False),
        Column("features", False),
        Column("labels"),
        Column("inputs", meaning="width of a feature vector"),
        Column("train instances"),
        Column("test instances"),
        Column("labels / instance", meaning="training set"),
        Column("instances / label", meaning="training set"),
        Column("source", False),
    )
    return Table("The data set in numbers", columns, tuple(lines))


def failures(runs: Sequence[RunResult]) -> Table | None:
    """Runs that ended in an error; None when there are none."""
    failed = [run for run in runs if run.status == "failed"]
    if not failed:
        return None
    known = known_datasets(runs)
    lines = []
    for run in failed:
        info = known.get((run.task.dataset, run.task.features))
        setup = Setup.of(run.task, info.inputs if info else None)
        error = f"{run.failure.kind}: {run.failure.message}" if run.failure else GAP
        lines.append(
            (
                Cell(setup.label, colour=setup.colour),
                Cell(run.backend),
                Cell(str(run.repeat)),
                Cell(error),
            )
        )
    columns = (
        Column("setup", False),
        Column("backend", False),
        Column("repeat", meaning="from 0"),
        Column("error", False),
    )
    return Table(
        "Runs that ended in an error; they are tried again next time", columns, tuple(lines)
    )


def ordered_locksteps(locksteps: Iterable[LockstepResult]) -> list[tuple[Setup, LockstepResult]]:
    """Step-by-step comparisons with their setups, in the order of the tables."""
    named = [(Setup.of(each.task, each.dataset.inputs), each) for each in locksteps]
    return sorted(named, key=lambda item: item[0].order)


def lockstep(locksteps: Iterable[LockstepResult]) -> Table:
    """Per setup the largest differences between the backends over all steps, and the verdict."""
    named = ordered_locksteps(locksteps)
    shared = shared_departures([setup for setup, _ in named])
    lines = []
    for setup, result in named:
        losses = max((step.loss.relative for step in result.steps), default=None)
        absolute = max((step.loss.absolute for step in result.steps), default=None)
        weights = max(
            ((diff.relative, name) for step in result.steps for name, diff in step.arrays.items()),
            default=None,
        )
        weights_absolute = max(
            (diff.absolute for step in result.steps for diff in step.arrays.values()),
            default=None,
        )
        lines.append(
            (
                Cell(without(setup, shared).label, colour=setup.colour),
                Cell(number(len(result.steps), 0)),
                Cell(scientific(losses)),
                Cell(scientific(result.loss_tolerance)),
                Cell(scientific(absolute)),
                Cell(scientific(weights[0] if weights else None)),
                Cell(weights[1] if weights else GAP),
                Cell(scientific(result.weight_tolerance)),
                Cell(scientific(weights_absolute)),
                # The counts run over the steps, so the last step has all of them.
                Cell(number(result.steps[-1].excused, 0) if result.steps else GAP),
                Cell(number(result.steps[-1].kinks, 0) if result.steps else GAP),
                Cell("yes" if result.agreed else "NO"),
            )
        )
    columns = (
        Column("setup", False),
        Column("steps"),
        Column("loss, largest relative difference"),
        Column("tolerance"),
        Column("loss, largest absolute difference"),
        Column("weights, largest relative difference"),
        Column("in array", False),
        Column("tolerance"),
        Column("weights, largest absolute difference"),
        Column(
            "excused rewires",
            meaning="connections whose |weight| lay within rounding of the rewiring threshold",
        ),
        Column(
            "excused units",
            meaning="intermediate units for which the input to ReLU lay within rounding of 0",
        ),
        Column("agreed", False),
    )
    caption = departures_caption(
        "Both backends on the same batches, compared at every step", shared
    )
    return Table(caption, columns, tuple(lines))


def lockstep_sides(locksteps: Iterable[LockstepResult]) -> Table:
    """What each backend reached and cost in the step-by-step comparison."""
    named = ordered_locksteps(locksteps)
    shared = shared_departures([setup for setup, _ in named])
    sides = [
        (without(setup, shared), backend, side)
        for setup, result in named
        for backend, side in sorted(result.sides.items(), key=lambda item: backend_order(item[0]))
    ]
    peaks = [memory_gib(side.memory, memory_kind(side.machine)) for _, _, side in sides]
    held = [counted_gib(side.memory) for _, _, side in sides]
    peak_unit, peak_factor, peak_decimals = memory_unit(peaks)
    held_unit, held_factor, held_decimals = memory_unit(held)
    lines = []
    for (setup, backend, side), peak, counted in zip(sides, peaks, held, strict=True):
        lines.append(
            (
                Cell(setup.label, colour=setup.colour),
                Cell(backend),
                *(
                    Cell(number(100 * value, 2))
                    for value in (side.test.at_1, side.test.at_3, side.test.at_5)
                ),
                Cell(number(1000 * side.median_step_seconds, 2)),
                Cell(number(None if peak is None else peak * peak_factor, peak_decimals)),
                Cell(memory_kind(side.machine) or GAP),
                Cell(number(None if counted is None else counted * held_factor, held_decimals)),
            )
        )
    columns = (
        Column("setup", False),
        Column("backend", False),
        *(Column(METRICS[f"test_p{k}"].head(), meaning="after the last step") for k in (1, 3, 5)),
        Column("median step (ms)"),
        Column(METRICS["memory_gib"].head(peak_unit)),
        Column("memory kind", False),
        Column(METRICS["counted_gib"].head(held_unit)),
    )
    caption = departures_caption("Each backend after these steps", shared)
    return Table(caption, columns, tuple(lines))


def scientific(value: float | None) -> str:
    """`1.2e-7`, or `1e-5` for a round figure."""
    if value is None:
        return GAP
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return "0" if value == 0 else f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def departures_caption(caption: str, shared: Sequence[str]) -> str:
    return f"{caption} (all: {', '.join(shared)})" if shared else caption


def terminal_table(runs: Iterable[RunResult]) -> str:
    """The comparison in about 100 columns, for the end of a command: one table per data set.

    Test P@k in percent, memory, epochs and wall-clock time per epoch with and without validation,
    means over n repeats; the full columns stand in `comparison.md`.
    """
    parts = []
    for (dataset, features), group in groupby(
        summarise(list(runs)), key=lambda row: (row.dataset, row.features)
    ):
        rows = list(group)
        shared = shared_variant(rows)
        unit, factor, decimals = memory_unit(row.values["memory_gib"] for row in rows)
        times = ("seconds_per_epoch", "train_seconds_per_epoch")
        seconds = time_decimals(row.values[key] for row in rows for key in times)
        kinds = sorted({row.memory_kind for row in rows if row.memory_kind})
        printed = (
            *((f"P@{k}", f"test_p{k}", 1.0, 2) for k in (1, 3, 5)),
            (unit, "memory_gib", factor, decimals),
            ("epochs", "epochs", 1.0, 1),
            ("s/epoch", "seconds_per_epoch", 1.0, seconds),
            ("train", "train_seconds_per_epoch", 1.0, seconds),
        )
        table = Table(
            caption="",
            columns=(
                Column("backend", False),
                Column("setup", False),
                *(Column(head) for head, *_ in printed),
                Column("n"),
            ),
            rows=tuple(
                (
                    Cell(row.backend),
                    Cell(without(row.setup, shared).label),
                    *(
                        replace(_printer(key, by, digits, {})(row), spread="")
                        for _, key, by, digits in printed
                    ),
                    Cell(str(row.n)),
                )
                for row in rows
            ),
        )
        title = departures_caption(f"{dataset}, {features} features", shared)
        validated = "; ".join(_BRIEF_PROTOCOLS[name] for name in _protocol_names(rows))
        note = (
            f"Test P@k in percent; {validated}\n"
            f"memory: {', '.join(kinds) or 'not measured'}; train: s/epoch without validation"
        )
        if any(row.is_unresolved for row in rows):
            note += f"\n{UNRESOLVED_NOTE}"
        parts.append(f"{title}\n{note}\n{table.markdown()}\n")
    return "\n".join(parts)
