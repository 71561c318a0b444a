"""Memory of a process that trains or predicts: it does not grow with time, nor with words that do
not occur."""

from __future__ import annotations

import subprocess
import sys

import pytest

GROWTH = """
import sys
import numpy as np, psutil, scipy.sparse as sp
from fanin.backends.arrays import InitialArrays
from fanin.backends.registry import make_trainer
from fanin.backends.kinds import FixedFanIn
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.harness.fit import predict
from fanin.datasets import Batches

setup = LayerSetup(64, 500, FixedFanIn(8), intermediate=16384)
trainer = make_trainer(sys.argv[1], setup, InitialArrays(setup, 0), execution=sys.argv[2])
rng = np.random.default_rng(0)
x = rng.standard_normal((6400, 64), np.float32)
batches = Batches(x[:3200], sp.csr_array(rng.random((3200, 500)) < 0.008))
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
    # Ids kept block by block pinned hidden values between them: up to 8 MiB for each of 50 blocks.
    assert many - few < 100, (few, many)
    # Losses kept as tensors did likewise, 30 to 100 MiB in 100 steps; early epochs still settle.
    assert not epochs or max(trained[2:]) - min(trained[2:]) < 40, trained


WORDS = """
import sys
import numpy as np, scipy.sparse as sp
from fanin.backends.arrays import InitialArrays
from fanin.backends.interface import Storage
from fanin.backends.registry import make_trainer
from fanin.backends.kinds import FixedFanIn
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.measuring.memory import MemoryWatch
from fanin.datasets import Batch

words, batch = 136_000, 512
setup = LayerSetup(words, 500, FixedFanIn(16), intermediate=512, sparse_features=True)
storage = Storage(row_moments=sys.argv[3] == "rows")
arrays = InitialArrays(setup, 0)
trainer = make_trainer(sys.argv[1], setup, arrays, execution=sys.argv[2], storage=storage)
rng = np.random.default_rng(0)
starts = np.arange(0, 5 * batch + 1, 5)  # five words an instance

def made():
    columns = np.concatenate([rng.choice(words, 5, replace=False) for _ in range(batch)])
    x = sp.csr_array((np.full(5 * batch, 0.4, np.float32), columns, starts), (batch, words))
    return Batch(x, np.arange(batch, dtype=np.int32), rng.integers(0, 500, batch))

def train():
    batches = [made() for _ in range(3)]
    trainer.train(batches, 1e-3)
    trainer.top_k(batches[0].features, 5)

train()
with MemoryWatch() as watch:
    train()
memory = watch.result(trainer)
print(memory.host_peak_rss_bytes - memory.host_baseline_rss_bytes >> 20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
@pytest.mark.parametrize("moments", ["full", "rows"])
@pytest.mark.parametrize("execution, most", [("fused", 40), ("autograd", 120)])
def test_sparse_features_never_become_dense(backend, execution, moments, most):
    """As many words as Amazon-670K has. An array [batch, words] would take 266 MiB, one [words,
    units] 266 MiB; a row for each word that is stored, 5 MiB."""
    command = [sys.executable, "-P", "-c", WORDS, backend, execution, moments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < most
