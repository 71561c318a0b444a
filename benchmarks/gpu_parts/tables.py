"""What a reader sees of a part's file: one small table each, for the terminal and the page.

Everything derived from the raw figures is derived here.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from fanin.benchmarks.gpu_parts.results import (
    Check,
    Contestant,
    KernelRow,
    PartFile,
    Row,
)
from fanin.benchmarks.records.statistics import quartiles, ratio

GAP = "—"
OURS, COPY = "fanin", "copy"

# Heads, then one list of cells a row.
Lines = tuple[tuple[str, ...], list[tuple[str, ...]]]


def lines(result: PartFile) -> Lines:
    """The part's table."""
    rows = result.rows
    if result.part == "correct":
        return _correct(rows)
    if result.part == "kernels":
        return _kernels(rows)
    heads: tuple[str, ...]
    if result.part == "sanitize":
        heads = ("check", "tool", "exit code", "passed", "what it says")
        return heads, [
            (
                row.check,
                row.tool or GAP,
                GAP if row.exit_code is None else str(row.exit_code),
                GAP if row.passed is None else "yes" if row.passed else "NO",
                "; ".join(row.summary) or row.reason or GAP,
            )
            for row in rows
        ]
    heads = ("data set", "features", "setup", "execution", "state", "s")
    return heads, [
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
    ]


def summary(result: PartFile) -> str:
    """How many rows there are, and how many of them are gaps."""
    states = [row.state for row in result.rows]
    parts = [f"{states.count('done')} of {len(states)} rows"]
    parts += [f"{states.count(s)} {s}" for s in ("gap", "not reached") if s in states]
    return ", ".join(parts)


def _correct(rows: Sequence[Row]) -> Lines:
    by_op: dict[str, list[Check]] = defaultdict(list)
    for row in rows:
        for check in getattr(row, "checks", ()):
            by_op[check.op].append(check)
    heads = ("op", "checks", "failed", "largest error", "of its tolerance")
    found: list[tuple[str, ...]] = []
    for op, checks in by_op.items():
        worst = max(checks, key=_share)
        error = GAP if worst.error is None else f"{worst.error:.1e}"
        share = GAP
        if worst.error is not None and worst.tolerance:
            share = f"{100 * _share(worst):.0f} % ({worst.output})"
        wrong = sum(not check.passed for check in checks)
        found.append((op, str(len(checks)), str(wrong), error, share))
    found += [(row.key, "0", GAP, GAP, f"{row.state}: {row.reason}") for row in _gaps(rows)]
    return heads, found


def _share(check: Check) -> float:
    """Error over tolerance; infinite where there is no number, 0 where both are 0."""
    if check.error is None:
        return float("inf")
    if not check.tolerance:
        return 0.0 if not check.error else float("inf")
    return check.error / check.tolerance


def _gaps(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.state == "gap"]


def contestant(row: KernelRow, name: str) -> Contestant | None:
    return next((one for one in row.contestants if one.name == name and one.seconds), None)


def floor_seconds(row: KernelRow) -> float | None:
    """The bytes that the op has to move, at the bandwidth that copying reached beside it."""
    copy = contestant(row, COPY)
    if copy is None or copy.seconds is None or row.copy_bytes is None:
        return None
    return row.bytes * statistics.median(copy.seconds) / row.copy_bytes


def _kernels(rows: Sequence[KernelRow]) -> Lines:
    peers = list(
        dict.fromkeys(
            one.name for row in rows for one in row.contestants if one.name not in (OURS, COPY)
        )
    )
    heads = ("layer", "batch", "op", "ms", "floor ms", "share", *(f"{p} / ours" for p in peers))
    return heads, [_kernel_line(row, peers) for row in rows]


def _kernel_line(row: KernelRow, peers: Sequence[str]) -> tuple[str, ...]:
    ours, floor = contestant(row, OURS), floor_seconds(row)
    layer = f"{row.dataset} {row.labels:,} x {row.inputs:,}, {row.fan_in}"
    cells = [layer, str(row.batch), row.op]
    if ours is None or ours.seconds is None:
        why = next((one.reason for one in row.contestants if one.name == OURS), row.reason)
        return (*cells, why or row.state, *[GAP] * (2 + len(peers)))
    low, middle, high = quartiles(ours.seconds)
    cells.append(f"{1e3 * middle:.3f} ({1e3 * low:.3f}–{1e3 * high:.3f})")
    cells.append(GAP if floor is None else f"{1e3 * floor:.3f}")
    cells.append(GAP if floor is None else f"{100 * floor / middle:.0f} %")
    for name in peers:
        peer = contestant(row, name)
        if peer is None or peer.seconds is None:
            cells.append(GAP)
            continue
        cells.append(f"{ratio(peer.seconds, ours.seconds):.2f}")
    return tuple(cells)


def text(result: PartFile) -> str:
    """For a terminal."""
    heads, rows = lines(result)
    table = [heads, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    where = result.machine.device + (" (dry run)" if result.dry_run else "")
    body = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    return "\n".join([f"{result.part} on {where}: {summary(result)}", *body])
