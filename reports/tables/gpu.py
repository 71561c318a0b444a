"""The tables of the GPU parts: one small table each, for the terminal and for the page of devices.

Only the record layer is needed here, so a machine that measures alone can print its table.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from fanin.benchmarks.records.gpu import (
    COPY,
    OURS,
    PARTS,
    Check,
    CorrectFile,
    CorrectRow,
    KernelReport,
    KernelRow,
    KernelsFile,
    PartFile,
    PartName,
    SanitizeFile,
    SanitizeRow,
    ShapeRow,
    ShapesFile,
)
from fanin.benchmarks.records.statistics import ratio
from fanin.reports.format import (
    GAP,
    aligned_scientific,
    milliseconds_with_quartiles,
    number,
    percent,
)
from fanin.reports.table import Table, text_column, text_table

PART_MEANINGS: dict[PartName, str] = {
    "correct": "every op against float64",
    "shapes": "the published rows at their real sizes",
    "kernels": "ops against torch's own ways and the floor",
    "sanitize": "compute-sanitizer over every op",
}


def part_text(part_file: PartFile) -> str:
    """The part's table for a terminal, below a line that says how much of it is there."""
    table = part_table(part_file)
    # On a terminal all columns stand flush left.
    columns = tuple(text_column(column.head) for column in table.columns)
    device = part_file.device + (" (dry run)" if part_file.dry_run else "")
    title = f"{part_file.part} on {device}: {part_summary(part_file)}"
    return f"{title}\n{Table('', columns, table.rows).terminal()}"


def part_table(part_file: PartFile) -> Table:
    """The table of whichever part the file is of."""
    match part_file:
        case CorrectFile():
            return correct_table(part_file.rows)
        case KernelsFile():
            return kernels_table(part_file.rows)
        case SanitizeFile():
            return sanitize_table(part_file.rows)
        case ShapesFile():
            return shapes_table(part_file.rows)
    raise ValueError(f"no table for the GPU part {part_file.part!r}")


def part_summary(part_file: PartFile) -> str:
    """How many rows there are, and how many of them are gaps."""
    states = [row.state for row in part_file.rows]
    counts = [f"{states.count('done')} of {len(states)} rows"]
    counts += [f"{states.count(s)} {s}" for s in ("gap", "not reached") if s in states]
    return ", ".join(counts)


def parts_table(part_files: Mapping[PartName, PartFile], gap: str) -> Table:
    """All parts and what there is of each. gap: printed where there is nothing."""
    rows = []
    for part in PARTS:
        results, day = gap, GAP
        if part in part_files:
            part_file = part_files[part]
            results = part_summary(part_file) + (" (dry run)" if part_file.dry_run else "")
            day = part_file.finished.date().isoformat()
        rows.append((f"`{part}`", PART_MEANINGS[part], results, day))
    return text_table(("GPU part", "what", "results", "when"), rows)


# ---- every op against float64 --------------------------------------------------------------------


def correct_table(rows: Sequence[CorrectRow]) -> Table:
    """One line per op with its worst check, then one per gap."""
    by_op: dict[str, list[Check]] = defaultdict(list)
    for row in rows:
        for check in row.checks:
            by_op[check.op].append(check)
    lines = [_op_line(op, checks) for op, checks in by_op.items()]
    lines += [
        (row.key, "0", GAP, GAP, f"{row.state}: {row.reason}") for row in rows if row.state == "gap"
    ]
    return text_table(("op", "checks", "failed", "largest error", "of its tolerance"), lines)


def _op_line(op: str, checks: Sequence[Check]) -> tuple[str, ...]:
    worst = max(checks, key=_share_of_tolerance)
    share = GAP
    if worst.error is not None and worst.tolerance:
        share = f"{percent(_share_of_tolerance(worst))} ({worst.output})"
    failed = sum(not check.passed for check in checks)
    return op, str(len(checks)), str(failed), aligned_scientific(worst.error), share


def _share_of_tolerance(check: Check) -> float:
    """Error over tolerance; infinite where there is no number, 0 where both are 0."""
    if check.error is None:
        return float("inf")
    if not check.tolerance:
        return 0.0 if not check.error else float("inf")
    return check.error / check.tolerance


# ---- ops against torch's own ways and the floor --------------------------------------------------


def kernels_table(rows: Sequence[KernelRow]) -> Table:
    """One line per op and shape: fanin's time, the floor, and the others' times over fanin's."""
    names = (one.name for row in rows for one in row.contestants)
    others = [name for name in dict.fromkeys(names) if name not in (OURS, COPY)]
    heads = ("layer", "batch", "op", "ms", "floor ms", "share", *(f"{o} / ours" for o in others))
    return text_table(heads, (_kernel_line(row, others) for row in rows))


def _kernel_line(row: KernelRow, others: Sequence[str]) -> tuple[str, ...]:
    layer = f"{row.dataset} {row.labels:,} x {row.inputs:,}, {row.fan_in}"
    cells = (layer, str(row.batch), row.op)
    seconds = contestant_seconds(row, OURS)
    if seconds is None:
        ours = next((one for one in row.contestants if one.name == OURS), None)
        reason = ours.reason if ours else row.reason
        return (*cells, reason or row.state, *[GAP] * (2 + len(others)))
    floor = floor_seconds(row)
    share = None if floor is None else floor / statistics.median(seconds)
    return (
        *cells,
        milliseconds_with_quartiles(seconds, 3),
        number(None if floor is None else 1e3 * floor, 3),
        percent(share),
        *(_over_ours(contestant_seconds(row, other), seconds) for other in others),
    )


def _over_ours(other: Sequence[float] | None, ours: Sequence[float]) -> str:
    return GAP if other is None else number(ratio(other, ours), 2)


def contestant_seconds(row: KernelRow, name: str) -> list[float] | None:
    """Seconds of each round; None where the contestant could not be run."""
    return next((one.seconds for one in row.contestants if one.name == name and one.seconds), None)


def floor_seconds(row: KernelRow) -> float | None:
    """The bytes that the op has to move, at the bandwidth that copying reached beside it."""
    copy = contestant_seconds(row, COPY)
    if copy is None or row.copy_bytes is None:
        return None
    return row.bytes * statistics.median(copy) / row.copy_bytes


def compiled_table(report: Sequence[KernelReport]) -> Table:
    """What the compiler says of each kernel: registers, and what it had to spill."""
    heads = ("kernel", "architecture", "registers", "spilled bytes", "shared bytes")
    return text_table(
        heads,
        (
            (
                kernel.kernel,
                kernel.architecture,
                str(kernel.registers),
                str(kernel.spill_bytes),
                str(kernel.shared_bytes),
            )
            for kernel in report
        ),
    )


# ---- compute-sanitizer, and the published rows ---------------------------------------------------


def sanitize_table(rows: Sequence[SanitizeRow]) -> Table:
    """One line per check of compute-sanitizer."""
    return text_table(
        ("check", "tool", "exit code", "passed", "what it says"),
        (
            (
                row.check,
                row.tool or GAP,
                GAP if row.exit_code is None else str(row.exit_code),
                GAP if row.passed is None else "yes" if row.passed else "NO",
                "; ".join(row.summary) or row.reason or GAP,
            )
            for row in rows
        ),
    )


def shapes_table(rows: Sequence[ShapeRow]) -> Table:
    """Which published rows were profiled; their figures stand beside the paper's."""
    return text_table(
        ("data set", "features", "setup", "execution", "state", "s"),
        (
            (
                row.dataset,
                row.features,
                row.setup.partition("_")[0],
                row.execution,
                f"failed: {row.failure}" if row.failure else row.state,
                GAP if row.seconds is None else f"{row.seconds:.0f}",
            )
            for row in rows
            if row.state != "not reached"
        ),
    )
