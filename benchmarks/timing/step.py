"""Times and weighs a training step in both executions: `python -m fanin.benchmarks.timing.step`.

For each backend and execution a process of its own (`contender`) trains a layer of the given shape
on random features and labels (synthetic: nothing here tells anything about precision), and measures
its steps and its memory. Where torch is fused, the same process then lets the output layer's fused
step, with the gradient of its inputs, and torch's CSR product of the same layer take turns: the
forward pass alone, as a measure of the machine.

A framework's own way makes scores and gradients anew in each step. From torch they go back to the
system each time, which takes much of the step; "memory kept" is the same without that, and with
more memory (`measuring.memory.keep_memory`).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from fanin.backends.registry import BACKENDS
from fanin.benchmarks.measuring.process import Child, EndedError
from fanin.benchmarks.records.files import try_writing, write_atomically
from fanin.benchmarks.records.printing import prepare_streams
from fanin.benchmarks.records.timing import Contender, StepResult
from fanin.benchmarks.timing.options import ResultFile, SizeOption, one_of
from fanin.reports.tables.step import step_text

# What `--execution` may be here.
WAYS: dict[str, dict[str, Any]] = {
    "autograd": {"execution": "autograd"},
    "kept": {"execution": "autograd", "keeps_memory": True},
    "fused": {"execution": "fused"},
    "bfloat16": {"execution": "fused", "dtype": "bfloat16"},
}


def in_a_process(contender: Contender) -> StepResult:
    """Measure in a new process: one framework each, and memory that is this contender's alone."""
    with tempfile.TemporaryDirectory(prefix="fanin-step-") as folder:
        log = Path(folder) / "contender.log"
        with Child("fanin.benchmarks.timing.contender", log=log) as child:
            child.send(contender.model_dump(mode="json"))
            try:
                answer = child.receive()
            except EndedError:
                answer = {"error": log.read_text(encoding="utf-8", errors="replace")}
    if "error" in answer:
        raise RuntimeError(f"{contender.name} failed:\n{answer['error']}")
    return StepResult.model_validate_json(json.dumps(answer["result"]))


def main(
    labels: SizeOption = 670_091,
    inputs: SizeOption = 768,
    intermediate: Annotated[
        int | None, typer.Option(min=1, help="Units of an intermediate layer.")
    ] = None,
    fan_in: SizeOption = 32,
    batch: SizeOption = 32,
    steps: SizeOption = 15,
    backend: Annotated[list[str] | None, one_of(BACKENDS, "Repeatable; default both.")] = None,
    execution: Annotated[
        list[str] | None,
        one_of(
            tuple(WAYS),
            "kept: autograd from memory that is kept; bfloat16: fused. Repeatable; default all.",
        ),
    ] = None,
    out: ResultFile = None,
) -> None:
    """Measure a training step: milliseconds, peak memory above the baseline, and the fused step
    against torch's CSR product. Random data."""
    if out:
        try_writing(out.parent)
    results = []
    for name in backend or BACKENDS:
        for way in execution or WAYS:
            contender = Contender.model_validate(
                {
                    "backend": name,
                    **WAYS[way],
                    "labels": labels,
                    "inputs": inputs,
                    "intermediate": intermediate,
                    "fan_in": fan_in,
                    "batch": batch,
                    "steps": steps,
                }
            )
            results.append(in_a_process(contender))
    print(step_text(results))
    if out:
        write_atomically(
            out, json.dumps([r.model_dump(mode="json") for r in results], indent=1) + "\n"
        )


if __name__ == "__main__":
    prepare_streams()
    typer.run(main)
