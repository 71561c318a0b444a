"""The executions in TensorFlow beside what both frameworks have."""

from __future__ import annotations

import pytest
import tensorflow as tf
from setups import every_setup, random_batch, trainer

from fanin.backends.kinds import FixedFanIn, Unstructured
from fanin.backends.setup import LayerSetup

pytestmark = pytest.mark.tensorflow

SETUPS = every_setup(12, 40, 9)


def test_steps_are_traced_once():
    one = trainer("tensorflow", SETUPS[-1])
    for size, rate in ((32, 1e-3), (5, 1e-4), (1, 0.5)):
        one.train([random_batch(one.setup, size, size)], rate)
    assert one._executor._step_function.experimental_get_tracing_count() == 1


def test_sparse_tensors_take_two_int64_a_connection():
    trained = 4 * (40 * 4 + 40)
    for kind, index_bytes in ((FixedFanIn(4), 2), (Unstructured(4), 16)):
        counted = trainer("tensorflow", LayerSetup(12, 40, kind)).state_bytes()
        assert counted == (trained + index_bytes * 40 * 4, 2 * trained)


@pytest.mark.parametrize("execution", ["autograd", "fused"])
def test_description_and_device(execution):
    device = trainer("tensorflow", SETUPS[0], execution=execution).device
    device.synchronize()
    assert device.description() == {"framework": f"tensorflow {tf.__version__}", "device": "cpu"}
    assert set(device.memory().values()) == {None}
    if not tf.config.list_physical_devices("GPU"):
        with pytest.raises(RuntimeError, match="TensorFlow sees none here"):
            trainer("tensorflow", SETUPS[0], device="cuda", execution=execution)
