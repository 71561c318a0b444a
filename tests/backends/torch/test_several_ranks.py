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


FUSED = [name for name in NAMES if not name.endswith("_autograd")]


# One test for each number of ranks, not for each scenario: workers that share the tests of a module
# would each start all ranks. Four ranks take twice as long as two, so they train fused layers only.
@pytest.mark.parametrize(("ranks", "names"), [(2, NAMES), (4, FUSED)], ids=["2", "4"])
def test_several_ranks(tmp_path, ranks, names):
    torch.save(reference(), tmp_path / "reference.pt")
    support = Path(__file__).parents[2] / "support"
    command = [sys.executable, str(support / "several_ranks.py"), str(ranks), str(tmp_path), *names]
    env = {**os.environ, "PYTHONPATH": str(support)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, env=env)
    lines = (run.stdout + run.stderr).splitlines()
    failed = [name for name in names if lines.count(f"{name}: 'ok'") != ranks]
    assert not failed, run.stdout + run.stderr
