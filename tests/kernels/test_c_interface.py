"""Every function of the C interface, called as another program might: arguments that are null, that
share memory, or that make no sense. None ends the process, and each is refused in words. Under
`nox -s sanitize` the same calls also find reads and writes that do no visible harm."""

from __future__ import annotations

import ctypes
import re
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanin.kernels import library, params

BATCH, INPUTS, LABELS, FAN_IN, POSITIVES = 4, 7, 40, 3, 6


def f32(*shape):
    return np.ones(shape, np.float32)


def trained(name, *shape):
    return {name: f32(*shape), f"{name}.m": f32(*shape), f"{name}.v": f32(*shape)}


# The arguments of a call that is right, by the names that messages have, and those it writes.
FEATURES = {"features": f32(BATCH, INPUTS)}
INDICES = {"indices": np.tile(np.arange(FAN_IN, dtype=np.uint16), (LABELS, 1))}
ADAM = params.Optimizer(1e-3, 0.9, 0.999, 1e-7, step=1, kind=params.OPTIMIZERS["adam"])
STEP = {
    **FEATURES,
    **trained("bias", LABELS),
    "positive_instances": np.zeros(POSITIVES, np.int32),
    "positive_labels": np.zeros(POSITIVES, np.int64),
    "loss": f32(1),
    "grad_features": f32(BATCH, INPUTS),
}
STEP_NUMBERS = {"optimizer": ADAM, "loss_kind": 1}
WEIGHTS = trained("weights", LABELS, FAN_IN)
STEP_WRITES = "weights weights.m weights.v bias bias.m bias.v loss grad_features"
STORED = {"values": f32(9), "columns": np.array([0, 6, 2, 2, 0, 1, 5, 0, 3], np.int32)}
WORD_PAIRS = {
    "starts": np.array([0, 4, 4, 5, 9]),
    "pair_starts": np.arange(3)[:, None] * 3 + np.array([0, 0, 1, 1, 1, 3, 3, 3]),
    "pair_labels": np.array([3, 0, 15, 0, 1, 2, 5, 6, 7], np.uint16),
    "weights": f32(9),
    "bias": f32(LABELS),
}
SPARSE_UPDATE = {
    "grad_outputs": f32(BATCH, LABELS),
    "outputs": f32(BATCH, LABELS),
    "words": np.array([0, 2, 3], np.int32),
    "word_starts": np.array([0, 4, 4, 9]),
    "instances": np.array([0, 1, 1, 3, 0, 1, 2, 3, 3], np.int32),
    "values": f32(9),
    **trained("bias", LABELS),
}
SPARSE_WRITES = "weights weights.m weights.v bias bias.m bias.v"
FORWARD = {**FEATURES, "weights": f32(LABELS, FAN_IN), "bias": f32(LABELS)} | {
    "scores": f32(BATCH, LABELS)
}
BACKWARD = (
    {**FEATURES, "weights": f32(LABELS, FAN_IN), "grad_scores": f32(BATCH, LABELS)}
    | {"grad_features": f32(BATCH, INPUTS), "grad_weights": f32(LABELS, FAN_IN)}
    | {"grad_bias": f32(LABELS)}
)
BACKWARD_WRITES = "grad_features grad_weights grad_bias"
GROUPED = {"indices": INDICES["indices"][:5]}
TOP_K = {**FEATURES, "weights": f32(LABELS, FAN_IN), "bias": f32(LABELS)} | {
    "label_ids": np.arange(LABELS, dtype=np.int32)[::-1].copy(),
    "ids": np.zeros((BATCH, 2), np.int64),
    "scores": f32(BATCH, 2),
}
CALLS = {
    "forward": (params.ForwardParams, FORWARD | INDICES, "scores", {}),
    "grouped forward": (params.ForwardParams, FORWARD | GROUPED, "scores", {"group_size": 8}),
    "backward": (params.BackwardParams, BACKWARD | INDICES, BACKWARD_WRITES, {}),
    "grouped backward": (
        params.BackwardParams,
        BACKWARD | GROUPED,
        BACKWARD_WRITES,
        {"group_size": 8},
    ),
    "step": (params.StepParams, STEP | INDICES | WEIGHTS, STEP_WRITES, STEP_NUMBERS),
    "grouped step": (
        params.StepParams,
        STEP | GROUPED | WEIGHTS,
        STEP_WRITES,
        {**STEP_NUMBERS, "connections": params.Connections(group_size=8)},
    ),
    "dense step": (
        params.StepParams,
        STEP | trained("weights", LABELS, INPUTS),
        STEP_WRITES,
        STEP_NUMBERS,
    ),
    "unstructured step": (
        params.StepParams,
        STEP
        | trained("weights", LABELS)
        | {"indices": np.zeros(LABELS, np.uint32), "starts": np.arange(LABELS + 1, dtype=np.int32)},
        STEP_WRITES,
        STEP_NUMBERS,
    ),
    "dense forward": (
        params.DenseForwardParams,
        {**FEATURES, "weights": f32(LABELS, INPUTS), "bias": f32(LABELS)}
        | {"outputs": f32(BATCH, LABELS)},
        "outputs",
        {"relu": 1},
    ),
    "dense update": (
        params.DenseUpdateParams,
        {"grad_outputs": f32(BATCH, LABELS), "outputs": f32(BATCH, LABELS), **FEATURES}
        | trained("weights", LABELS, INPUTS)
        | trained("bias", LABELS)
        | {"grad_features": f32(BATCH, INPUTS)},
        "weights weights.m weights.v bias bias.m bias.v grad_features",
        {"optimizer": ADAM},
    ),
    "sparse forward": (
        params.SparseForwardParams,
        {**STORED, "weights": f32(INPUTS, LABELS), "bias": f32(LABELS)}
        | {"starts": np.array([0, 3, 3, 8, 9]), "outputs": f32(BATCH, LABELS)},
        "outputs",
        {"relu": 1},
    ),
    "sparse update": (
        params.SparseUpdateParams,
        SPARSE_UPDATE | trained("weights", INPUTS, LABELS),
        SPARSE_WRITES,
        {"optimizer": ADAM},
    ),
    "sparse update by rows": (
        params.SparseUpdateParams,
        SPARSE_UPDATE | {"weights": f32(INPUTS, LABELS), "weights.v": f32(INPUTS)},
        SPARSE_WRITES.replace("weights.m ", ""),
        {"optimizer": ADAM},
    ),
    "top-k": (params.TopKParams, TOP_K | INDICES, "ids scores", {}),
    "grouped top-k": (
        params.TopKParams,
        TOP_K | GROUPED,
        "ids scores",
        {"connections": params.Connections(group_size=8)},
    ),
    "words step": (
        params.WordsStepParams,
        STORED
        | WORD_PAIRS
        | {"positive_starts": np.array([0, 1, 4, 4, 6]), "loss": f32(1)}
        | {"positive_labels": np.array([39, 0, 2, 15, 16, 16], np.int32)}
        | {"squares": f32(9), "bias_squares": f32(LABELS)},
        "weights bias squares bias_squares loss",
        {"block_labels": 16, "learning_rate": 0.1, "bias_rate": 0.1, "loss_kind": 2},
    ),
    "words top-k": (
        params.WordsTopKParams,
        STORED | WORD_PAIRS | {"ids": np.zeros((BATCH, 2), np.int64), "scores": f32(BATCH, 2)},
        "ids scores",
        {"block_labels": 16},
    ),
    "rewire": (
        params.RewireParams,
        INDICES | WEIGHTS,
        "indices weights weights.m weights.v",
        {"inputs": INPUTS, "fraction": 0.5},
    ),
    "sort": (
        params.SortParams,
        {**INDICES, "tile_labels": np.zeros((LABELS, FAN_IN), np.uint16)}
        | {"slots": np.zeros((LABELS, FAN_IN), np.uint8)}
        | WEIGHTS,
        "indices tile_labels slots weights weights.m weights.v",
        {"inputs": INPUTS},
    ),
    "label sums": (
        params.LabelSumsParams,
        {"features": f32(9), "starts": np.array([0, 4, 9]), "columns": np.zeros(9, np.int32)}
        | {"positive_starts": np.minimum(np.arange(LABELS + 1), POSITIVES)}
        | {"positive_instances": np.ones(POSITIVES, np.int32)}
        | {"positive_weights": f32(POSITIVES), "sums": f32(LABELS, INPUTS)},
        "sums",
        {},
    ),
    "choose": (
        params.ChooseSourcesParams,
        {"sums": f32(LABELS, INPUTS), "counts": np.ones(LABELS, np.int64), "mean": f32(INPUTS)}
        | {"scale": f32(INPUTS), "values": f32(LABELS, FAN_IN), **INDICES},
        "indices values",
        {"random": 1},
    ),
    "replace": (
        params.ReplaceSourcesParams,
        {"gradients": f32(LABELS, INPUTS), "moved": np.zeros(LABELS, np.int32)} | INDICES | WEIGHTS,
        "indices weights weights.m weights.v moved",
        {"replaced": 2},
    ),
}


class Call:
    """A call whose arguments may still be changed: `tensors` by name, and `params` as a whole."""

    def __init__(self, which, room=0):
        """room: how many bytes are free behind each array."""
        kind, arrays, written, numbers = CALLS[which]
        self.arrays = {}
        for name, array in arrays.items():
            memory = np.empty(array.nbytes + room, np.uint8)
            self.arrays[name] = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
            self.arrays[name][...] = array
        self.written = written.split()
        self.params = kind(threads=3, **numbers)
        self.tensors = dict(tensors_in(self.params))
        for name, tensor in self.tensors.items():
            array = self.arrays.get(name)
            self.set(tensor, library.absent() if array is None else described(array))
        self.workspace = np.zeros(library.workspace_bytes(self.params), np.uint8)
        self.params.resources.workspace = self.workspace.ctypes.data
        self.params.resources.workspace_bytes = self.workspace.size

    def room_at(self, address):
        """How many bytes there are from an address on, in whichever array it lies."""
        ends = {
            array.ctypes.data: array.ctypes.data + array.nbytes for array in self.arrays.values()
        }
        rooms = (end - address for begin, end in ends.items() if begin <= address <= end)
        return max(rooms, default=0)

    @staticmethod
    def set(tensor, value):
        ctypes.memmove(ctypes.byref(tensor), ctypes.byref(value), ctypes.sizeof(tensor))

    def __call__(self):
        """The status, and what is said about it."""
        message = ctypes.create_string_buffer(512)
        function = getattr(library.load(), self.params.FUNCTION)
        status = function(ctypes.byref(self.params), message, len(message))
        assert bool(status) == bool(message.value)
        return status, message.value.decode()


def described(array):
    strides = [stride // array.itemsize for stride in array.strides]
    return library.describe(array.ctypes.data, array.dtype.name, array.shape, strides)


def tensors_in(struct, prefix=""):
    """The tensors of a struct by the names that messages have."""
    for name, kind, *_ in struct._fields_:
        part = getattr(struct, name)
        if kind is params.Tensor:
            yield prefix + ("" if name == "values" and prefix else name), part
        elif kind in (params.Connections, params.WordPairs):
            yield from tensors_in(part)
        elif kind is params.Trained:
            for inner, tensor in tensors_in(part, f"{name}."):
                yield inner.rstrip("."), tensor


def test_each_function_is_called_here():
    assert {CALLS[which][0] for which in CALLS} == set(params.PARAMS)


@pytest.mark.parametrize("which", CALLS)
class TestCall:
    def test_is_right(self, which):
        assert Call(which)() == (0, "")

    def test_null_params_or_message(self, which):
        function = CALLS[which][0].FUNCTION
        message = ctypes.create_string_buffer(512)
        assert getattr(library.load(), function)(None, message, len(message)) == 1
        assert message.value == b"params is null"
        assert getattr(library.load(), function)(None, None, 0) == 1
        assert getattr(library.load(), function)(None, None, 512) == 1
        assert getattr(library.load(), f"{function}_workspace")(None) == 0
        call = Call(which)
        assert getattr(library.load(), function)(ctypes.byref(call.params), None, 0) == 0

    def test_null_data(self, which):
        for name in Call(which).arrays:
            call = Call(which)
            call.tensors[name].data = None
            assert call() == (1, f"{name} has elements but no data")
            assert library.workspace_bytes(call.params) == 0

    def test_null_workspace(self, which):
        call = Call(which)
        call.params.resources.workspace = None
        needed = call.workspace.size
        text = f"workspace has 0 bytes but {needed} are needed" if needed else ""
        assert call() == (int(needed > 0), text)

    def test_no_memory_is_shared_with_what_is_written(self, which):
        for name, other in permutations(Call(which).arrays, 2):
            call = Call(which, room=2048)
            if not {name, other} & {*call.written}:
                continue
            # One begins within the last eight bytes of the other.
            last = (call.arrays[name].nbytes - 1) // 8 * 8
            call.tensors[other].data = call.tensors[name].data + last
            status, text = call()
            assert status == 1
            assert text in {
                f"{a} and {b} share memory; each needs its own"
                for a, b in ((name, other), (other, name))
            }
            assert library.workspace_bytes(call.params) == 0
            for each, array in call.arrays.items():
                np.testing.assert_array_equal(array, CALLS[which][1][each])

    def test_no_memory_is_shared_with_the_workspace(self, which):
        call = Call(which)
        for array in call.arrays.values():
            call.params.resources.workspace = array.ctypes.data
            status, text = call()
            if call.workspace.size:
                assert status == 1 and re.search(r"\bworkspace\b.* share memory", text)
        # It is not asked about one that an earlier call has left.
        assert library.workspace_bytes(call.params) == call.workspace.size

    def test_moments_are_named(self, which):
        """Their names are made while they are checked, and said when that is done."""
        for name in ("weights.m", "weights.v", "bias.m", "bias.v"):
            call = Call(which)
            if name in call.arrays:
                call.tensors[name].device = 2
                assert f"{name} is on cuda:0 but " in call()[1]

    def test_more_than_any_memory(self, which):
        for name, array in Call(which).arrays.items():
            call = Call(which)
            for d in range(array.ndim):
                call.tensors[name].shape[d] = 2**62
            assert call()[0] == 1


CHANGES = st.one_of(
    st.tuples(st.just("data"), st.sampled_from([None, "odd", "other"])),
    st.tuples(st.just("dtype"), st.integers(-1, 15)),
    st.tuples(st.just("device"), st.integers(-1, 3)),
    st.tuples(st.just("rank"), st.sampled_from([-(2**31), -1, 0, 1, 2, 3, 4, 5, 2**31 - 1])),
    st.tuples(st.just("shape"), st.sampled_from([-(2**63), -1, 0, 1, 2, 2**31, 2**62, 2**63 - 1])),
    st.tuples(st.just("strides"), st.sampled_from([-(2**63), -1, 0, 2, 2**63 - 1])),
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_arguments(data):
    """Calls are refused, or write nothing but what is theirs; none ends the process."""
    which = data.draw(st.sampled_from(sorted(CALLS)))
    call = Call(which)
    names = sorted(call.tensors)
    for name in data.draw(st.lists(st.sampled_from(names), max_size=3)):
        tensor = call.tensors[name]
        field, value = data.draw(CHANGES)
        if field == "data":
            other = call.tensors[data.draw(st.sampled_from(names))].data
            tensor.data = {None: None, "odd": (tensor.data or 0) + 1, "other": other}[value]
        elif field in ("shape", "strides"):
            getattr(tensor, field)[data.draw(st.integers(0, 3))] = value
        else:
            setattr(tensor, field, value)
    call.params.resources.threads = data.draw(st.sampled_from([0, 1, 3, -1, 2000]))
    call.params.resources.workspace_bytes -= data.draw(st.sampled_from([0, 0, 1]))
    numbers = "inputs random replaced first_label block_labels group_size undo loss_kind fraction"
    for field in numbers.split():
        if hasattr(call.params, field) and data.draw(st.integers(0, 9)) == 0:
            number = data.draw(st.sampled_from([-(2**31), -1, 0, 1, 3, 2**31 - 1]))
            setattr(call.params, field, number)
    # The library cannot see that a tensor claims more memory than its array has.
    honest = all(
        tensor.rank < 0 or not tensor.data or claimed_bytes(tensor) <= call.room_at(tensor.data)
        for tensor in call.tensors.values()
    )
    if honest:
        assert call()[0] in (0, 1, 2)
    else:
        library.workspace_bytes(call.params)


def claimed_bytes(tensor):
    """By its shape and type; 0 where a size is negative, which the library refuses."""
    sizes = list(tensor.shape[: max(0, min(tensor.rank, 4))])
    widths = (1, 4, 8, 2, 4, 2, 2, 1, 8, 1, 2, 4, 8, 1)
    width = widths[tensor.dtype] if 0 < tensor.dtype < len(widths) else 1
    size = width
    for each in sizes:
        size *= max(each, 0)
    return size
