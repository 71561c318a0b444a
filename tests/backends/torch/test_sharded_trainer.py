"""A trainer whose labels are cut over ranks gives what one of a single process gives."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from setups import random_batches, trainer
from trained_over_ranks import INPUTS, STEPS, cases, trained

from fanin.backends import drawing, fused
from fanin.backends.arrays import InitialArrays
from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.interface import FLOAT32, Storage
from fanin.backends.kinds import Dense, FixedFanIn, GroupedFanIn, Unstructured
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.backends.torch.sharded import ShardedFanIn
from fanin.backends.torch.sharded import layer as layer_module
from fanin.backends.torch.sharded import trainer as trainer_module
from fanin.backends.torch.sharded.ranks import Ranks

pytestmark = pytest.mark.torch
CASES = {name: case for name, *case in cases()}
# Many ranks take turns on few cores, so four train in one execution only.
EXECUTIONS = {2: ("autograd", "fused"), 4: ("fused",)}
WIDE_KINDS = (
    Dense(),
    FixedFanIn(32),
    GroupedFanIn(32, 8),
    Unstructured(32),
    HeadAndTail(Dense(), Unstructured(32), 999),
    HeadAndTail(FixedFanIn(40), GroupedFanIn(32, 8), 999),
)


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
    setup, execution, storage = CASES[name]
    expected = trained(setup, execution, storage, over_ranks=False)
    with np.load(trained_by(count) / f"{name}.npz") as found:
        assert found["losses"].shape == (STEPS,)
        for key, shape in setup.array_shapes().items():
            assert found[key].shape == shape
        if execution == "fused" and not setup.intermediate:
            # Nothing of a label depends on other labels, nor does how it is rounded.
            assert found.files == [*expected]
            for key in set(found.files) - {"losses", "bytes"}:
                np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
        elif storage == FLOAT32:
            for key in ("top", "all", "moved", "steps"):
                np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
            for key in setup.array_shapes():
                np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=2e-6)
        else:
            check_mostly_equal(setup, found, expected)
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
        if setup.is_rewired:
            assert expected["moved"] > 0
        # Without what lies below, each rank has its share of the parameters.
        if not setup.intermediate and not setup.output.group_size:
            assert found["bytes"] < 1.1 * expected["bytes"] / count


def check_mostly_equal(setup, found, expected):
    """The gradient of an intermediate layer is a sum over the ranks, and its last bits depend on
    their number. At times they decide which way a bfloat16 is rounded: a weight in some hundreds is
    then a unit off."""
    assert found["moved"] == expected["moved"] and found["steps"] == expected["steps"]
    for key in setup.array_shapes():
        off = np.abs(found[key] - expected[key])
        if key.endswith("weights"):
            assert (off > 0).mean() < 0.01, key
            assert off.max() <= 2.0**-7 * np.abs(expected[key]).max(), key
        else:
            assert off.max() <= 2e-6, key


def test_float8_is_never_sorted(monkeypatch):
    monkeypatch.setattr(fused, "sorting_pays", lambda inputs: True)
    setup = LayerSetup(40, 300, FixedFanIn(5))
    options = {"execution": "fused", "storage": Storage("float8", "bfloat16")}
    one = trainer("torch", setup, over_ranks=True, **options)
    other = trainer("torch", setup, **options)
    batches = random_batches(setup, 2)
    np.testing.assert_array_equal(one.train(batches, 0.01), other.train(batches, 0.01))
    np.testing.assert_array_equal(one.array("output.weights"), other.array("output.weights"))


class OneOfFour(Ranks):
    """A rank that has nobody to talk to."""

    def __init__(self, *options):
        self.rank, self.size = 1, 4

    def check_equal(self, what, value):
        pass


def made_by_trainer(setup, execution):
    model = make_trainer(
        "torch", setup, InitialArrays(setup, 0), execution=execution, device="cpu", over_ranks=True
    )
    return sum(model.state_bytes())


def made_as_layer(setup, execution):
    layer = ShardedFanIn(setup.inputs, setup.labels, setup.output, execution=execution)
    return sum(array.nbytes for array in (*layer.parameters(), *layer.buffers()))


@pytest.mark.parametrize("made", [made_by_trainer, made_as_layer])
@pytest.mark.parametrize("execution", ["autograd", "fused"])
@pytest.mark.parametrize("kind", WIDE_KINDS, ids=repr)
def test_a_rank_makes_no_array_of_all_labels(kind, execution, made, monkeypatch):
    """Of four ranks: bytes of NumPy's arrays while a model is made, and of torch's when it is."""
    monkeypatch.setattr(drawing, "BLOCK_VALUES", 2048)
    setup = LayerSetup(INPUTS, 8_000, kind)
    sizes = []
    for ranks in (Ranks, OneOfFour):
        for module in (trainer_module, layer_module):
            monkeypatch.setattr(module, "Ranks", ranks)
        tracemalloc.start()
        bytes_of_torch = made(setup, execution)
        sizes.append(np.array([tracemalloc.get_traced_memory()[1], bytes_of_torch]))
        tracemalloc.stop()
    whole, own = sizes
    assert (own <= (1 / 4 + 0.1) * whole).all(), own / whole
