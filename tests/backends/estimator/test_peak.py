"""The peak memory of a fit is what its plan says, early stopping and its copies included."""

from __future__ import annotations

import subprocess
import sys

import pytest

FIT = """
import sys
import numpy as np, scipy.sparse as sp
from fanin import FanInClassifier
from fanin.backends.estimator import fitting
from fanin.benchmarks.measuring.memory import MemoryWatch

backend, early, kind = sys.argv[1], sys.argv[2] == "early", sys.argv[3]
# The first epoch is the best, so that it is kept to the end.
falling = lambda *given: next(precisions)
fitting._precision = fitting.precision_at = falling
rng = np.random.default_rng(0)
instances, labels, words = {
    "words": (20_000, 20_000, 20_000),
    "rows": (5_000, 50_000, 100_000),
    "chosen": (4_000, 200_000, 256),
}.get(kind, (400, 400_000, 64))
y = sp.random_array((instances, labels), density=8 / labels, format="csr", rng=rng).astype(bool)
if kind in ("words", "rows"):
    x = sp.random_array((instances, words), density=60 / words, format="csr", dtype="f4", rng=rng)
else:
    x = rng.standard_normal((instances, words), np.float32)
given = {"backend": backend, "threads": 1, "epochs": 3}
if kind == "words":
    given = {"fan_in": 256, "threads": 4}
elif kind == "rows":
    given |= {"intermediate": 512, "moments": "row"}
elif kind != "chosen":
    given |= {"fan_in": None, "weights_dtype": kind, "moments_dtype": kind}
model = FanInClassifier(early_stopping=early, random_state=0, **given)
precisions = iter([0.3, 0.2, 0.1] * 2)
model.fit(x[:300], y[:300, :1000])  # loads all code
plan = model.plan(x, y)
with MemoryWatch() as watch:
    model.fit(x, y)
assert model.best_epoch_ == (1 if early else 3)
before, peak = watch.host()
print(plan.peak_bytes / (peak - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize("early", ["early", "last"])
@pytest.mark.parametrize(
    "case",
    [
        ("none", "words"),
        pytest.param(("torch", "float32"), marks=pytest.mark.torch),
        pytest.param(("torch", "bfloat16"), marks=pytest.mark.torch),
        pytest.param(("torch", "chosen"), marks=pytest.mark.torch),
        pytest.param(("torch", "rows"), marks=pytest.mark.torch),
        pytest.param(("tensorflow", "float32"), marks=pytest.mark.tensorflow),
    ],
    ids="-".join,
)
def test_the_peak_is_that_of_the_plan(case, early):
    backend, kind = case
    command = [sys.executable, "-P", "-c", FIT, backend, early, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.93 < float(done.stdout.split()[-1]) < 1.15
