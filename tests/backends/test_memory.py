"""Memory of a process that trains or predicts for long: it does not grow."""

from __future__ import annotations

import subprocess
import sys

import pytest

GROWTH = """
import sys
import numpy as np, psutil, scipy.sparse as sp
from fanin.backends.arrays import InitialArrays
from fanin.backends.registry import make_trainer
from fanin.backends.setup import FixedFanIn, LayerSetup
from fanin.benchmarks.harness.fit import predict
from fanin.datasets import Batches

setup = LayerSetup(512, 2000, FixedFanIn(32), intermediate=16384)
trainer = make_trainer(sys.argv[1], setup, InitialArrays(setup, 0), execution=sys.argv[2])
rng = np.random.default_rng(0)
x = rng.standard_normal((12800, 512), np.float32)
batches = Batches(x[:3200], sp.csr_array(rng.random((3200, 2000)) < 0.002))
resident = []
def note():
    resident.append(psutil.Process().memory_info().rss >> 20)
predict(trainer, x[:512])
note()
predict(trainer, x)
note()
for epoch in range(int(sys.argv[3])):
    trainer.train(batches.epoch(epoch), 1e-3)
    note()
print(*resident)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
@pytest.mark.parametrize("execution, epochs", [("fused", 5), ("autograd", 0)])
def test_neither_prediction_nor_training_grows(backend, execution, epochs):
    command = [sys.executable, "-P", "-c", GROWTH, backend, execution, str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    few, many, *trained = [int(mib) for mib in done.stdout.split()[-2 - epochs :]]
    # Ids kept block by block pinned hidden values between them: up to 8 MiB for each of 100 blocks.
    assert many - few < 100, (few, many)
    # Losses kept as tensors did likewise, 30 to 100 MiB in 100 steps; early epochs still settle.
    assert not epochs or max(trained[2:]) - min(trained[2:]) < 40, trained
