"""Layers that two ranks train together, by each of torch's wrappers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from two_ranks import SCENARIOS

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.fixture(scope="module")
def output():
    """What both ranks print of each scenario."""
    script = Path(__file__).parents[2] / "support" / "two_ranks.py"
    command = [sys.executable, str(script)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return run.stdout + run.stderr


@pytest.mark.parametrize("scenario", [scenario.__name__ for scenario in SCENARIOS])
def test_two_ranks(output, scenario):
    assert output.count(f"{scenario}: 'ok'") == 2, output
