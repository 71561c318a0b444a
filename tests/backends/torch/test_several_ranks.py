"""Layers whose labels are spread over two and four ranks, beside one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from several_ranks import CASES, SCENARIOS
from sharded_cases import reference

pytestmark = [pytest.mark.torch, pytest.mark.slow]

NAMES = [*CASES, *(scenario.__name__ for scenario in SCENARIOS)]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What two and four ranks print of each scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(reference(), folder / "reference.pt")
    support = Path(__file__).parents[2] / "support"

    def output(ranks):
        command = [sys.executable, str(support / "several_ranks.py"), str(ranks), str(folder)]
        env = {**os.environ, "PYTHONPATH": str(support)}
        run = subprocess.run(command, capture_output=True, text=True, timeout=900, env=env)
        return run.stdout + run.stderr

    return {ranks: output(ranks) for ranks in (2, 4)}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_several_ranks(outputs, ranks, name):
    lines = outputs[ranks].splitlines()
    assert lines.count(f"{name}: 'ok'") == ranks, outputs[ranks]
