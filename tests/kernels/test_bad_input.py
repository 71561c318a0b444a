"""Wrong arguments of training and prediction."""

from __future__ import annotations

import copy
import dataclasses
import re

import numpy as np
import pytest
from kernel_layers import make_batch, make_layer, make_setup, trained

from fanin import kernels
from fanin.kernels import library


class TestBadInput:
    """Each error names what is wrong, and nothing was changed."""

    @pytest.fixture
    def call(self):
        rng = np.random.default_rng(0)
        setup = make_setup("fixed fan-in", 20, 50, 4)
        _, layer = make_layer(rng, setup, "fixed fan-in")
        batch = make_batch(rng, 8, 20, 50)
        arguments = {
            "features": batch.features,
            "weights": layer.weights,
            "bias": layer.bias,
            "positive_instances": np.array([0, 7], np.int32),
            "positive_labels": np.array([1, 49], np.int64),
            "optimizer": kernels.OptimizerStep(1),
            **layer.connections,
        }

        def run(**changes):
            before = layer.weights.values.copy(), layer.bias.values.copy()
            try:
                return kernels.step(**{**arguments, **changes})
            finally:
                np.testing.assert_array_equal(layer.weights.values, before[0])
                np.testing.assert_array_equal(layer.bias.values, before[1])

        run.arguments = arguments
        return run

    @pytest.mark.parametrize(
        "changes, message",
        [
            (
                {"positive_instances": np.array([0, 8], np.int32)},
                r"positive_instances\[1\] is 8, out of range",
            ),
            ({"positive_labels": np.array([0, -1])}, r"positive_labels\[1\] is -1, out of range"),
            ({"positive_labels": np.array([0])}, "positives is 1 here but 2 in positive_instances"),
            (
                {"positive_instances": np.array([0, 1])},
                "positive_instances must be int32, got int64",
            ),
            ({"loss": "hinge"}, "unknown loss 'hinge'; there are squared_hinge, bce"),
            (
                {"mean_labels": 49},
                "mean_labels is 49, but the layer has 50 labels; give 0 or at least as many",
            ),
            ({"mean_labels": -1}, "mean_labels is -1, but the layer has 50 labels"),
            (
                {"mean_labels": 2**64 + 60},
                "mean_labels must be 0 or at least as many as the layer has, got 184",
            ),
            ({"first_weight": -1}, "first_weight must be at least 0, got -1"),
            ({"first_weight": 2**63}, r"first_weight must be at least 0, below 2\^63, got 922"),
            ({"optimizer": kernels.OptimizerStep(0)}, "step counts from 1, got 0"),
            (
                {"optimizer": kernels.OptimizerStep(2**64 + 1)},
                r"step counts from 1, below 2\^63, got 184",
            ),
            ({"optimizer": kernels.OptimizerStep(1, 1e300)}, "learning_rate must be finite"),
            (
                {"optimizer": kernels.OptimizerStep(1, epsilon=0)},
                "epsilon must be finite and above 0, got 0",
            ),
            ({"optimizer": kernels.OptimizerStep(1, np.nan)}, "learning_rate must be finite"),
            ({"optimizer": kernels.OptimizerStep(1, l2=-1)}, "l2 must be finite and at least 0"),
            (
                {"optimizer": kernels.OptimizerStep(1, weight_decay=np.inf)},
                "weight_decay must be finite and at least 0",
            ),
            (
                {"optimizer": kernels.OptimizerStep(1, kind="adagrad")},
                "unknown optimizer 'adagrad'",
            ),
            (
                {"optimizer": kernels.OptimizerStep(1, kind="momentum", momentum=1.0)},
                r"momentum must be in \[0, 1\), got 1",
            ),
            (
                {"optimizer": kernels.OptimizerStep(1, kind="sgd")},
                r"weights\.m is of no use: this optimizer keeps no such moments; leave it out",
            ),
            (
                {"optimizer": kernels.OptimizerStep(1, kind="momentum")},
                r"weights\.v is of no use: this optimizer keeps no such moments; leave it out",
            ),
            ({"weights": kernels.Trained(np.ones((50, 4), np.float32))}, "weights.m is missing"),
            ({"features": np.ones((0, 20), np.float32)}, "the batch is empty"),
            ({"features": np.ones((8, 20))}, "features must be float32, got float64"),
            ({"threads": -1}, r"threads must be 0 \(all\) or 1 to 1024, got -1"),
            ({"threads": 1025}, r"threads must be 0 \(all\) or 1 to 1024, got 1025"),
            ({"threads": 2**32 + 1}, r"threads must be 0 \(all\) or 1 to 1024, got 4294967297"),
            ({"indices": None}, r"weights \[50, 4\] must be \[labels, inputs\]"),
            ({"starts": np.array([0, 4], np.int32)}, "indices must be .connections."),
        ],
    )
    def test_is_named(self, call, changes, message):
        with pytest.raises(ValueError, match=message):
            call(**changes)

    def test_features_that_are_not_finite(self, call):
        features = call.arguments["features"].copy()
        features[3, 5] = np.inf
        with pytest.raises(ValueError, match=r"features\[3, 5\] is inf"):
            call(features=features)

    def test_an_index_out_of_range(self, call):
        indices = call.arguments["indices"].copy()
        indices[49, 3] = 20
        with pytest.raises(ValueError, match=r"indices\[49, 3\] is 20, out of range for 20"):
            kernels.step(**{**call.arguments, "indices": indices})

    def test_starts_that_do_not_ascend(self):
        weights = trained(np.ones(6))
        arguments = (np.ones((2, 5), np.float32), weights, None)
        none = (np.empty(0, np.int32), np.empty(0, np.int64), kernels.OptimizerStep(1))
        indices = np.zeros(6, np.uint16)
        for starts in ([0, 4, 3, 6], [0, 2, 3, 5], [1, 2, 3, 6]):
            with pytest.raises(ValueError, match="starts must ascend from 0 to the 6 connections"):
                kernels.step(*arguments, *none, indices=indices, starts=np.array(starts, np.int32))

    def test_starts_without_data(self, monkeypatch):
        describe = library.describe

        def without_data(pointer, *rest):
            return describe(None if rest[0] == "int32" and rest[1] == (4,) else pointer, *rest)

        monkeypatch.setattr(library, "describe", without_data)
        none = (np.empty(0, np.int32), np.empty(0, np.int64), kernels.OptimizerStep(1))
        layer = {"indices": np.zeros(6, np.uint16), "starts": np.array([0, 2, 4, 6], np.int32)}
        with pytest.raises(ValueError, match="starts has elements but no data"):
            kernels.step(np.ones((2, 5), np.float32), trained(np.ones(6)), None, *none, **layer)
        with pytest.raises(ValueError, match="starts has elements but no data"):
            kernels.top_k(np.ones((2, 5), np.float32), np.ones(6, np.float32), None, 1, **layer)

    @pytest.mark.parametrize("kind", ["out", "bias", "tile_labels"])
    def test_arrays_that_share_memory(self, call, kind):
        given = call.arguments
        x, weights, indices = given["features"], given["weights"], given["indices"]
        if kind == "out":
            square = np.zeros((len(x), len(x)), np.float32)
            some = np.zeros((len(x), len(x)), np.uint16)
            with pytest.raises(ValueError, match="scores and weights share memory"):
                kernels.fan_in_linear(x, some, square, out=square)
        elif kind == "bias":
            inside = trained(np.zeros(len(indices)))
            inside = dataclasses.replace(inside, values=weights.values.reshape(-1)[: len(indices)])
            with pytest.raises(ValueError, match="weights and bias share memory"):
                call(bias=inside)
        else:
            slots = np.empty(indices.shape, np.uint8)
            with pytest.raises(ValueError, match="indices and tile_labels share memory"):
                kernels.sort_connections(indices, indices, slots, weights, x.shape[1])

    def test_undoing_what_was_never_sorted(self):
        indices, weights = np.zeros((30, 6), np.uint16), trained(np.ones((30, 6)))
        tile_labels, slots = np.zeros((30, 6), np.uint16), np.zeros((30, 6), np.uint8)
        with pytest.raises(ValueError, match="position 1 name a place beyond the tile, or one"):
            kernels.sort_connections(indices, tile_labels, slots, weights, 40, undo=True)

    @pytest.mark.parametrize("layer", ["unstructured", "dense"])
    def test_features_without_columns(self, layer):
        weights = trained(np.ones(3 if layer == "unstructured" else (3, 0)))
        arrays = (np.empty(0, np.int32), np.empty(0, np.int64), kernels.OptimizerStep(1))
        some = {"indices": np.zeros(3, np.uint16), "starts": np.array([0, 1, 2, 3], np.int32)}
        connections = some if layer == "unstructured" else {}
        x = np.empty((2, 0), np.float32)
        with pytest.raises(ValueError, match="inputs must be at least 1, but inputs is 0 in feat"):
            kernels.step(x, weights, None, *arrays, **connections)
        with pytest.raises(ValueError, match="inputs must be at least 1, but inputs is 0 in feat"):
            kernels.top_k(x, weights.values, None, 1, **connections)

    @pytest.mark.parametrize("inputs", [-5, -1, 0, 2**31, 2**64 + 5])
    def test_no_such_inputs_to_sort_by(self, inputs):
        indices, weights = np.zeros((3, 2), np.uint32), trained(np.ones((3, 2)))
        tile_labels, slots = np.empty((3, 2), np.uint16), np.empty((3, 2), np.uint8)
        with pytest.raises(ValueError, match=r"inputs must be (at least 1|below 2)"):
            kernels.sort_connections(indices, tile_labels, slots, weights, inputs)

    def test_an_update_of_nothing(self):
        weights = trained(np.ones((4, 5)))
        with pytest.raises(ValueError, match="the batch is empty"):
            kernels.dense_update(
                np.empty((0, 4), np.float32),
                None,
                np.empty((0, 5), np.float32),
                weights,
                None,
                kernels.OptimizerStep(1),
            )

    @pytest.mark.parametrize(
        "name", ["features", "positive_instances", "positive_labels", "indices"]
    )
    def test_an_array_in_another_form_is_named(self, call, name):
        array = call.arguments[name]
        swapped = array.astype(array.dtype.newbyteorder("S"))
        with pytest.raises(ValueError, match=f"{name} must be in this machine's byte order"):
            call(**{name: swapped})
        record = np.zeros(array.shape, [("a", array.dtype), ("b", np.uint8)])
        record["a"] = array
        with pytest.raises(ValueError, match=f"{name} .* is not contiguous"):
            call(**{name: record["a"]})
        shifted = np.frombuffer(b"-" + array.tobytes(), array.dtype, offset=1).reshape(array.shape)
        with pytest.raises(ValueError, match=f"{name} is not aligned to its elements"):
            call(**{name: shifted})

    @pytest.mark.parametrize(
        "name", ["features", "positive_instances", "positive_labels", "indices"]
    )
    def test_a_list_is_no_array(self, call, name):
        """Its numbers would be in an array that is gone when they are read."""
        given = call.arguments[name].tolist()
        with pytest.raises(ValueError, match=f"{name} must be a NumPy array, got list"):
            call(**{name: given})

    @pytest.mark.parametrize("name", ["weights", "bias"])
    def test_what_must_not_be_written_is_not(self, call, name):
        fixed = copy.deepcopy(call.arguments[name])
        fixed.m.flags.writeable = False
        with pytest.raises(
            ValueError, match=rf"{name}\.m is updated in place and must be writeable"
        ):
            call(**{name: fixed})
        with pytest.raises(ValueError, match=f"{name} must be a Trained, got ndarray"):
            call(**{name: fixed.values})

    @pytest.mark.parametrize("part", ["values", "m"])
    def test_moments_have_memory_of_their_own(self, call, part):
        shared = copy.deepcopy(call.arguments["weights"])
        shared = dataclasses.replace(shared, v=getattr(shared, part))
        name = "weights" if part == "values" else "weights.m"
        with pytest.raises(ValueError, match=rf"^{re.escape(name)} and weights\.v share memory"):
            call(weights=shared)

    @pytest.mark.parametrize("number", range(3))
    def test_an_array_without_data(self, call, monkeypatch, number):
        describe, described = library.describe, []

        def without_data(pointer, *rest):
            described.append(pointer)
            return describe(None if len(described) == number + 1 else pointer, *rest)

        monkeypatch.setattr(library, "describe", without_data)
        with pytest.raises(ValueError, match="has elements but no data"):
            call()

    def test_a_size_that_is_not_known(self, call, monkeypatch):
        """Frameworks describe those while they trace; a call with them must not be made."""
        describe = library.describe

        def without_batch(pointer, dtype, shape, *rest):
            return describe(pointer, dtype, [-1 if size == 8 else size for size in shape], *rest)

        monkeypatch.setattr(library, "describe", without_batch)
        with pytest.raises(ValueError, match="a size is not known at the time of the call"):
            call()

    def test_rows_of_another_tile(self):
        weights = trained(np.ones((3, 2)))
        tile_labels = np.array([[0, 1], [2, 3], [0, 1]], np.uint16)
        none = (np.empty(0, np.int32), np.empty(0, np.int64), kernels.OptimizerStep(1))
        with pytest.raises(
            ValueError, match="tile_labels at flat position 3 names a label beyond its tile"
        ):
            kernels.step(
                np.ones((2, 5), np.float32),
                weights,
                None,
                *none,
                indices=np.zeros((3, 2), np.uint16),
                tile_labels=tile_labels,
            )

    @pytest.mark.parametrize("k", [0, 51, -1, 2**62])
    def test_k(self, call, k):
        a = call.arguments
        with pytest.raises(ValueError, match=rf"k must be in 1..50 \(the labels\), got {k}"):
            kernels.top_k(a["features"], a["weights"].values, None, k, indices=a["indices"])

    def test_fraction(self, call):
        a = call.arguments
        with pytest.raises(ValueError, match="fraction must be at least 0 and below 1, got 1"):
            kernels.rewire(a["indices"], a["weights"], 20, 1.0, 0)
