"""A trainer whose labels are cut over ranks gives what one of a single process gives."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from trained_over_ranks import STEPS, cases, trained

pytestmark = pytest.mark.torch
CASES = {name: (setup, execution) for name, setup, execution in cases()}
# Many ranks take turns on few cores, so four train in one execution only.
EXECUTIONS = {2: ("autograd", "fused"), 4: ("fused",)}


@pytest.fixture(scope="module")
def trained_by(tmp_path_factory):
    """Of a number of ranks: the folder with what they trained."""

    @functools.cache
    def folder_of(count):
        folder = tmp_path_factory.mktemp("ranks")
        script = Path(__file__).parents[2] / "support" / "trained_over_ranks.py"
        environment = {**os.environ, "PYTHONPATH": str(script.parent)}
        arguments = (str(count), folder, *EXECUTIONS[count])
        processes = [
            subprocess.Popen([sys.executable, script, str(rank), *arguments], env=environment)
            for rank in range(count)
        ]
        assert [process.wait(600) for process in processes] == [0] * count
        return folder

    return folder_of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "name"),
    [(count, name) for count in (2, 4) for name in CASES if CASES[name][1] in EXECUTIONS[count]],
)
def test_several_ranks_train_what_one_process_trains(trained_by, count, name):
    """Losses at every step, best labels, what is rewired, and the arrays that rank 0 gathers after
    the whole model was written and read again."""
    setup, execution = CASES[name]
    expected = trained(setup, execution, over_ranks=False)
    with np.load(trained_by(count) / f"{name}.npz") as found:
        assert found["losses"].shape == (STEPS,)
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
        for key in ("top", "all", "moved", "steps"):
            np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
        for key, shape in setup.array_shapes().items():
            assert found[key].shape == shape
            np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=2e-6, err_msg=key)
        if setup.is_rewired:
            assert expected["moved"] > 0
        # Without what lies below, each rank has its share of the parameters.
        if not setup.intermediate and not setup.output.group_size:
            assert found["bytes"] < 1.1 * expected["bytes"] / count
