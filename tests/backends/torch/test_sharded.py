"""`ShardedFanIn` in a process alone: what it trains, saves and refuses. `test_several_ranks` has it
on several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from setups import random_batch, starting
from sharded_cases import KINDS, LABELS, UNITS

from fanin.backends.arrays import drawn_seed
from fanin.backends.kinds import ORDER, FixedFanIn, GroupedFanIn
from fanin.backends.optimizer import Optimizer
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.backends.torch import FixedFanInLinear, FusedFanIn
from fanin.backends.torch.sharded import ShardedFanIn

pytestmark = pytest.mark.torch

each_kind = pytest.mark.parametrize("kind", KINDS)
each_execution = pytest.mark.parametrize("execution", ["fused", "autograd"])


def batches(count):
    setup = LayerSetup(UNITS, LABELS, FixedFanIn(4))
    return [random_batch(setup, 12, [3, step]) for step in range(count)]


def given(batch):
    features = torch.from_numpy(batch.features).requires_grad_()
    return features, batch.positive_instances, batch.positive_labels


def in_an_order(layer, seed=3):
    """The layer, with labels at random positions where it has them."""
    state = layer.full_state_dict()
    if "order" in state:
        state["order"] = torch.from_numpy(starting(layer.setup, seed)[ORDER])
        layer.load_full_state_dict(state)
    return layer


@each_kind
@each_execution
def test_it_starts_and_trains_as_a_trainer_does(kind, execution):
    """By plain gradient descent, in which torch and the kernels differ by rounding alone."""
    setup = LayerSetup(UNITS, LABELS, KINDS[kind], loss="bce")
    trainer = make_trainer(
        "torch",
        setup,
        starting(setup, 3),
        execution=execution,
        optimizer=Optimizer("sgd"),
        device="cpu",
    )
    layer = ShardedFanIn(
        UNITS,
        LABELS,
        KINDS[kind],
        execution=execution,
        loss="bce",
        optimizer="sgd",
        learning_rate=3.0,
        seed=3,
    )
    in_an_order(layer)
    optimizers = [torch.optim.SGD(layer.parameters(), 3.0)] if execution == "autograd" else []
    for batch in batches(20):
        (expected,) = trainer.train([batch], 3.0)
        loss = layer.training_step(*given(batch))
        for optimizer in optimizers:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    if setup.is_rewired:
        moved = trainer.rewire(0.3, drawn_seed(6))
        assert layer.rewire(0.3, rng=6) == moved > 0
        state = layer.full_state_dict()
        for part in setup.rewired_parts:
            found = state[part.source_array.removeprefix("output.")].numpy()
            expected = np.ascontiguousarray(trainer.array(part.source_array))
            found = found.view(expected.dtype) if found.dtype == np.uint8 else found
            np.testing.assert_array_equal(found, expected)
    features = batches(21)[-1].features
    scores, ids = layer.top_k(torch.from_numpy(features), 5)
    np.testing.assert_array_equal(ids.numpy(), trainer.top_k(features, 5))
    by_label = layer(torch.from_numpy(features)).detach()[:, layer.label_ids.argsort()]
    torch.testing.assert_close(scores, by_label.gather(1, ids))


@pytest.mark.parametrize("group_size", [None, 16])
def test_its_whole_state_is_that_of_a_fused_layer(group_size):
    """Each goes on from what the other has saved, to the same numbers, and rewires alike."""
    torch.manual_seed(0)
    kind = FixedFanIn(4) if group_size is None else GroupedFanIn(4, group_size)
    plain = FusedFanIn(UNITS, LABELS, 4, group_size=group_size, learning_rate=2e-3)
    if group_size:
        plain.order.copy_(torch.from_numpy(starting(LayerSetup(UNITS, LABELS, kind), 1)[ORDER]))
    for batch in batches(3):
        plain.training_step(*given(batch))
    layer = ShardedFanIn(UNITS, LABELS, kind)
    layer.load_full_state_dict(plain.state_dict())
    for batch in batches(3):
        assert torch.equal(plain.training_step(*given(batch)), layer.training_step(*given(batch)))
    assert plain.rewire(0.2, rng=4) == layer.rewire(0.2, rng=4) > 0
    state, expected = layer.full_state_dict(), plain.state_dict()
    assert {*state} == {*expected}
    for name, array in expected.items():
        assert state[name].dtype == array.dtype
        assert torch.equal(state[name], array), name
    again = FusedFanIn(UNITS, LABELS, 4, group_size=group_size)
    again.load_state_dict(state)
    features = torch.from_numpy(batches(1)[0].features)
    assert torch.equal(again.top_k(features, 5)[1], layer.top_k(features, 5)[1])


def test_its_whole_state_is_that_of_an_ordinary_layer():
    layer = in_an_order(ShardedFanIn(UNITS, LABELS, GroupedFanIn(4, 16), execution="autograd"))
    plain = FixedFanInLinear(UNITS, LABELS, 4, group_size=16)
    plain.load_state_dict(layer.full_state_dict())
    features = torch.from_numpy(batches(1)[0].features)
    by_label = layer(features)[:, layer.label_ids.argsort()]
    torch.testing.assert_close(by_label, plain(features))


def test_bfloat16_survives_files():
    kinds = {"weights_dtype": torch.bfloat16, "moments_dtype": torch.bfloat16}
    layer = ShardedFanIn(UNITS, LABELS, KINDS["head"], **kinds)
    layer.training_step(*given(batches(1)[0]))
    state = layer.full_state_dict()
    assert state["head.weights_m"].dtype == torch.bfloat16
    other = ShardedFanIn(UNITS, LABELS, KINDS["head"], seed=1, **kinds)
    other.load_full_state_dict(state)
    for name, array in other.full_state_dict().items():
        assert torch.equal(array, state[name]), name


def test_it_changes_neither_types_nor_numbers_when_a_model_is_cast():
    layer = ShardedFanIn(UNITS, LABELS, KINDS["grouped"])
    before = layer.full_state_dict()
    after = torch.nn.Sequential(layer).half().double()[0].full_state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    loss = layer.training_step(torch.ones(2, UNITS, dtype=torch.bfloat16), [0], [0])
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: s.pop("weights_m"), "missing"),
        (lambda s: s.update(others=s["bias"]), "not known here"),
        (lambda s: s.update(weights=s["weights"][1:]), "weights must be"),
        (lambda s: s.update(bias_v=s["bias_v"][1:]), "bias_v must be"),
        (lambda s: s["indices"].fill_(255), "indices has values"),
        (lambda s: s["order"].fill_(1), "must have each label once"),
    ],
)
def test_states_of_other_models_are_refused(change, what):
    layer = ShardedFanIn(UNITS, LABELS, KINDS["grouped"])
    before = {name: array.clone() for name, array in layer.state_dict().items()}
    state = layer.full_state_dict()
    change(state)
    with pytest.raises(ValueError, match=what):
        layer.load_full_state_dict(state)
    assert all(torch.equal(array, before[name]) for name, array in layer.state_dict().items())


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"in_features": 0}, "in_features must be"),
        ({"labels": 0}, "labels must be"),
        ({"output": FixedFanIn(UNITS + 1)}, "larger than"),
        ({"execution": "quick"}, "execution must be one of fused, autograd"),
        ({"batch": "whole"}, "batch must be one of same, split"),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"weights_dtype": torch.float16}, "weights_dtype must be"),
        ({"execution": "autograd", "moments_dtype": torch.bfloat16}, "moments_dtype must be"),
        ({"seed": -1}, "seed must be"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_what_makes_no_layer_is_refused(options, what):
    options = {"in_features": UNITS, "labels": LABELS, "output": FixedFanIn(4)} | options
    with pytest.raises(ValueError, match=what):
        ShardedFanIn(**options)


@each_execution
def test_a_wrong_batch_is_refused(execution):
    layer = ShardedFanIn(UNITS, LABELS, FixedFanIn(4), execution=execution)
    for features, instances, label_ids, what in (
        (torch.ones(2, UNITS + 1), [0], [0], "features must be"),
        (torch.ones(UNITS), [0], [0], "features must be"),
        (torch.ones(2, UNITS), [2], [0], "positive_instances"),
        (torch.ones(2, UNITS), [0], [LABELS], "positive_labels"),
        (torch.ones(0, UNITS), [], [], "the batch is empty"),
        (torch.full((2, UNITS), torch.nan), [0], [0], "finite"),
    ):
        with pytest.raises(ValueError, match=what):
            layer.training_step(features, instances, label_ids)
    assert execution == "autograd" or int(layer.steps) == 0
    with pytest.raises(ValueError, match="k must be"):
        layer.top_k(torch.ones(2, UNITS), LABELS + 1)
