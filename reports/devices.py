"""The page of all devices, `benchmarks/results/README.md`: what ran where, and what came out beside
the paper, torch's own ways and the floor. Gaps stay visible.

A device is a folder with any of `runs`, `shapes`, `op`, `step` and `gpu` in it; `notes.md` there, a
line for each tuning trial, is written by hand and only linked to.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from fanin.benchmarks.gpu_parts import tables as parts
from fanin.benchmarks.gpu_parts.results import PARTS, PartFile, PartName, read_all
from fanin.benchmarks.records.published import published_tables
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.statistics import GIB, quartiles, ratio
from fanin.benchmarks.records.store import read_op_times, read_results, read_steps
from fanin.benchmarks.records.timing import OpTimes, StepResult
from fanin.reports.paper import PaperRow, measured, paper_rows, profiled, setup_of
from fanin.reports.tables import GAP, Cell, Column, Table, number

NOT_RUN = "not run"
NO_GPU = f"{NOT_RUN}: no GPU was at hand so far"
_MEANINGS: dict[PartName, str] = {
    "correct": "every op against float64",
    "shapes": "the published rows at their real sizes",
    "kernels": "ops against torch's own ways and the floor",
    "sanitize": "compute-sanitizer over every op",
}
_INTRODUCTION = """# Results by device

Written by `nox -s readme` from the files in these folders; nothing here was typed by hand, and what
was not measured is a gap. `nox -s gpu` (or `python benchmarks/gpu.py`) makes a GPU's folder.

A folder is a device, or runs of some kind on one: `cpu` is the README's, and newer than the others;
`whole` has the README's table of all of WordNet; `executions` and `whole-executions` have autograd
and fused beside each other, for several seeds.

Beside the paper: its memory is the peak of TensorFlow's allocator on a V100, ours that of torch's
on a GPU, and on a CPU the resident set above the baseline. Ratios are ours / the paper's.
"""


def devices_page(results: Path) -> str:
    """The whole page. Raises ValueError naming a file that cannot be read."""
    folders = [p for p in sorted(results.iterdir()) if any((p / name).is_dir() for name in _KINDS)]
    pages = [_device(folder) for folder in folders]
    if not any((folder / "gpu").is_dir() for folder in folders):
        pages.append(f"## GPU\n\n{_parts_table({}, NO_GPU)}\n")
    return "\n".join([_INTRODUCTION, *pages])


_KINDS = ("runs", "shapes", "op", "step", "gpu")


def _device(folder: Path) -> str:
    runs, shapes = list(read_results(folder)), list(read_results(folder, "shapes"))
    ops, steps, found = op_results(folder), step_results(folder), read_all(folder)
    parts_of_page = [f"## {folder.name}", _described(runs + shapes, [*ops, *steps], found)]
    if (folder / "notes.md").exists():
        parts_of_page.append(f"Tuning, a line for each trial: [notes.md]({folder.name}/notes.md).")
    parts_of_page.append(_what_ran(runs, shapes, ops, steps))
    if found or (folder / "gpu").is_dir():
        parts_of_page.append(_parts_table(found, NOT_RUN))
    ours = [*measured(runs), *profiled(shapes)]
    if ours:
        for table in published_tables():
            parts_of_page.append(_beside_paper(table, paper_rows(*table, ours)))
    if ops:
        parts_of_page.append(f"### The op alone\n\n{op_introduction(ops)}")
        parts_of_page.append(op_table(ops))
    if steps:
        parts_of_page.append(f"### Training steps\n\n{step_introduction(steps)}")
        parts_of_page.append(step_table(steps))
    for part, result in found.items():
        if part != "shapes":
            parts_of_page.append(_part(result))
    return "\n\n".join(parts_of_page) + "\n"


def _described(
    runs: Sequence[RunResult],
    others: Sequence[OpTimes | StepResult],
    found: dict[PartName, PartFile],
) -> str:
    """The device in words, from whatever file there is."""
    for result in found.values():
        of = result.machine
        driver = f", driver {of.driver}" if of.driver else ""
        commit = f", commit {of.commit[:12]}" if of.commit else ""
        changed = " (modified)" if of.modified else ""
        return (
            f"{of.device}{driver}, torch {of.torch}, {of.library}{commit}{changed}; "
            f"{of.processor}, {of.cores} cores."
        )
    for machine in [run.machine for run in runs if run.machine] + [o.machine for o in others]:
        return f"{machine.gpu or 'No GPU'}; {machine.processor}, {machine.cores} cores."
    return "Unknown machine."


def _what_ran(
    runs: Sequence[RunResult],
    shapes: Sequence[RunResult],
    ops: Sequence[OpTimes],
    steps: Sequence[StepResult],
) -> str:
    rows = []
    for name, of in (("whole runs", runs), ("shape profiles", shapes)):
        states = Counter(run.status for run in of)
        count = ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or NOT_RUN
        frameworks = sorted({run.backend for run in of})
        rows.append((name, count, ", ".join(frameworks) or GAP, _days(r.started for r in of)))
    count = f"{len(ops)} shapes" if ops else NOT_RUN
    rows.append(("op alone", count, "torch" if ops else GAP, _days(o.started for o in ops)))
    which = ", ".join(sorted({s.contender.backend for s in steps})) or GAP
    count = f"{len(steps)} processes" if steps else NOT_RUN
    rows.append(("training steps", count, which, _days(s.started for s in steps)))
    return _table(("what", "results", "backends", "when"), rows)


def _days(when: Iterable[datetime]) -> str:
    days = sorted({moment.date().isoformat() for moment in when})
    return " – ".join(dict.fromkeys([days[0], days[-1]])) if days else GAP


def _parts_table(found: dict[PartName, PartFile], gap: str) -> str:
    rows = []
    for part in PARTS:
        said, day = gap, GAP
        if part in found:
            said = parts.summary(found[part]) + (" (dry run)" if found[part].dry_run else "")
            day = found[part].finished[:10]
        rows.append((f"`{part}`", _MEANINGS[part], said, day))
    return _table(("GPU part", "what", "results", "when"), rows)


def _beside_paper(table: tuple[str, str], rows: Sequence[PaperRow]) -> str:
    """Memory and time per epoch of each published row, ours beside the paper's."""
    heads = ("setup", "ours", "paper GiB", "GiB", "ratio", "paper s/epoch", "s/epoch", "ratio")
    lines = [_paper_line(row) for row in rows]
    dataset, features = table
    return f"### {dataset}, {features} features\n\n{_table((*heads, 'remarks'), lines)}"


def _paper_line(row: PaperRow) -> tuple[str, ...]:
    ours = row.ours
    cells = [setup_of(row.published).label, f"{ours.backend} {ours.execution}" if ours else NOT_RUN]
    for key, digits in (("memory_gib", 2), ("seconds_per_epoch", 0)):
        cells.append(number(row.published.values[key], digits))
        cells.append(number(ours.value(key) if ours else None, digits))
        cells.append(number(row.compared(key), 2))
    return (*cells, "; ".join(ours.marks) if ours and ours.marks else GAP)


def _part(result: PartFile) -> str:
    heads, rows = parts.lines(result)
    dry = ", a dry run on the CPU" if result.dry_run else ""
    said = [f"### {result.part}: {_MEANINGS[result.part]}{dry}", f"{parts.summary(result)}."]
    if result.part == "kernels":
        said.append(
            "Medians over rounds in which all took turns (with the quartiles), each through input "
            "sets larger than the cache; a training step where an op is `fused step` is scores, "
            "loss, gradients and torch's fused Adam. Floor: bytes that fanin's op has to move at "
            "the bandwidth of a copy beside it; share: floor / ours."
        )
    return "\n\n".join([*said, _table(heads, rows), *_compiled(result)])


def _compiled(result: PartFile) -> Iterator[str]:
    """Registers and spills, once: with the kernels' times."""
    if result.part != "kernels":
        return
    if result.compile_report is None:
        yield f"Compile report: {result.compile_report_reason or GAP}."
        return
    heads = ("kernel", "architecture", "registers", "spilled bytes", "shared bytes")
    yield _table(
        heads,
        [
            (r.kernel, r.architecture, str(r.registers), str(r.spill_bytes), str(r.shared_bytes))
            for r in result.compile_report
        ],
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [tuple(row) for row in rows]
    # What begins with a digit in every row is a number.
    numeric = [
        any(row[i][:1].isdigit() for row in lines)
        and all(row[i][:1].isdigit() or row[i] == GAP for row in lines)
        for i in range(len(heads))
    ]
    columns = tuple(Column(head, is_number) for head, is_number in zip(heads, numeric, strict=True))
    return Table("", columns, tuple(tuple(map(Cell, row)) for row in lines)).markdown()


# ---- the op alone --------------------------------------------------------------------------------


def op_results(folder: Path) -> list[OpTimes]:
    """What `python -m fanin.benchmarks.timing.op` wrote below a device's folder."""
    return [each for file in _files(folder / "op") for each in read_op_times(file)]


def op_introduction(results: Sequence[OpTimes]) -> str:
    first = results[0]
    count = len(first.seconds["forward"]["fanin"])
    return (
        f"Random (synthetic) data, {first.machine.processor}, {first.machine.cores} cores, torch, "
        f"float32, {first.labels:,} labels,\nfan-in {first.fan_in}, batch {first.batch}: medians "
        f"of {count} rounds (with the quartiles) in which all took turns; behind\ntorch's times: "
        "how many times fanin's, the median over the rounds. Memory: malloc may give what was "
        "freed back\nto the system and take it anew page by page, as it usually does, or keeps it."
    )


def op_table(results: Sequence[OpTimes]) -> str:
    """One row per shape and work, as Markdown."""
    others = ("CSR int64", "CSR int32", "torch dense")
    heads = ("inputs", "work", "memory", "fanin, ms", *(f"{name}, ms" for name in others))
    rows = []
    for result in results:
        for work, seconds in result.seconds.items():
            memory = "kept" if result.keeps_memory else "as usual"
            cells = [f"{result.inputs:,}", work, memory, _milliseconds(seconds["fanin"])]
            for name in others:
                times = ratio(seconds[name], seconds["fanin"]) if name in seconds else None
                cell = f"{_milliseconds(seconds[name])} {times:.1f} x" if times else GAP
                cells.append(cell)
            rows.append(cells)
    return _table(heads, rows)


def _milliseconds(seconds: Sequence[float]) -> str:
    low, middle, high = (1e3 * q for q in quartiles(seconds))
    return f"{middle:.1f} ({low:.1f}–{high:.1f})"


# ---- training steps ------------------------------------------------------------------------------


def step_results(folder: Path) -> list[StepResult]:
    """What `python -m fanin.benchmarks.timing.step` wrote below a device's folder."""
    return [each for file in _files(folder / "step") for each in read_steps(file)]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.json"))


def step_introduction(results: Sequence[StepResult]) -> str:
    machine = results[0].machine
    return (
        f"Random (synthetic) data, {machine.processor}, {machine.cores} cores: medians of "
        f"{len(results[0].step_seconds)} steps (with the quartiles); memory is the peak resident\n"
        "set above that before the model was made, and what arrays and moments add up to; of "
        "autograd: time\nand memory above the baseline over those of the same backend's autograd; "
        "the last column is the output\nlayer's step alone, with the gradient of its inputs, over "
        "torch's CSR product of it (forward only;\nint64 / int32 indices), turn by turn in one "
        "process."
    )


def step_table(results: Sequence[StepResult]) -> str:
    """One row per process, as Markdown."""
    header = (
        "| inputs of the layer | execution | ms a step | GiB above baseline | GiB counted | "
        "of autograd: ms / GiB | output step / CSR product |"
    )
    return "\n".join([header, "|---|---|---:|---:|---:|---:|---:|", *_step_rows(results)])


def _step_rows(results: Sequence[StepResult]) -> Iterator[str]:
    autograd = {
        (r.contender.backend, r.contender.setup()): r
        for r in results
        if r.contender.execution == "autograd" and not r.contender.keeps_memory
    }
    for result in results:
        contender, memory = result.contender, result.memory
        inputs = f"{contender.intermediate or contender.inputs:,}"
        if contender.intermediate:
            inputs += f" (intermediate, of {contender.inputs})"
        low, middle, high = (1e3 * q for q in quartiles(result.step_seconds))
        counted = (memory.parameter_bytes + memory.optimizer_state_bytes) / GIB
        above, of_autograd = _above_baseline(result), ""
        other = autograd.get((contender.backend, contender.setup()))
        if other and other is not result:
            slower = statistics.median(other.step_seconds)
            more = _above_baseline(other)
            of_memory = above / more if above is not None and more else None
            of_autograd = f"{middle / 1e3 / slower:.2f} / {number(of_memory, 2)}"
        csr = ""
        if result.csr_seconds:
            fused = result.csr_seconds["fused step"]
            csr = " / ".join(
                f"{ratio(fused, result.csr_seconds[f'CSR product, {kind}']):.2f}"
                for kind in ("int64", "int32")
            )
        yield (
            f"| {inputs} | {contender.name} | {middle:.0f} ({low:.0f}–{high:.0f}) | "
            f"{number(above, 2)} | {counted:.2f} | {of_autograd} | {csr} |"
        )


def _above_baseline(result: StepResult) -> float | None:
    """Peak resident set above the baseline, in GiB."""
    peak, baseline = result.memory.host_peak_rss_bytes, result.memory.host_baseline_rss_bytes
    return None if peak is None or baseline is None else (peak - baseline) / GIB
