"""fanin in PyTorch for the conformance tests: NumPy in, NumPy out."""

from __future__ import annotations

import numpy as np
import torch

from fanin.backends.torch import FixedFanInLinear, FusedFanIn, fan_in_linear
from fanin.backends.torch.losses import LOSSES


class Adapter:
    """data_error: what a number in the data raises that cannot be used, on a CPU. ways: whether
    functions are traced; a compiled torch function is tested in tests/backends/torch. load_error:
    what a saved layer raises that does not fit. The rest is how torch's errors are worded."""

    data_error = ValueError
    load_error = RuntimeError
    ways = (False,)
    not_trained = "this Adam does not train the layer's weights"

    def type_text(self, name):
        return f"torch.{name}"

    def shape_text(self, shape):
        return str(list(shape))

    def width_text(self, inputs, shape, *, called=False):
        """called: of a layer that is called, not one of its methods."""
        return f"features must be [..., {inputs}], got {list(shape)}"

    def __init__(self, device):
        self.device = torch.device(device)

    def tensor(self, array):
        if array is None:
            return None
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.astype(np.float32)).bfloat16().to(self.device)
        return torch.from_numpy(np.array(array)).to(self.device)

    def op(self, features, indices, weights, bias=None, *, traced=False):
        arguments = (self.tensor(each) for each in (features, indices, weights, bias))
        return numpy(fan_in_linear(*arguments))

    def op_gradients(self, arrays, grad, *, traced=False, group_size=0):
        """Scores, and the gradients of features, weights and bias (if there is one)."""
        features, indices, weights, bias = map(self.tensor, arrays)
        wanted = [each for each in (features, weights, bias) if each is not None]
        for each in wanted:
            each.requires_grad_()
        scores = fan_in_linear(features, indices, weights, bias, group_size=group_size)
        return numpy(scores), list(
            map(numpy, torch.autograd.grad(scores, wanted, self.tensor(grad)))
        )

    def loss(self, name, scores, positive_instances, positive_labels):
        """A loss, and its gradient by the scores."""
        scores = self.tensor(scores).requires_grad_()
        positives = (self.tensor(each).long() for each in (positive_instances, positive_labels))
        loss = LOSSES[name](scores, *positives)
        return numpy(loss), numpy(torch.autograd.grad(3 * loss, scores)[0]) / 3

    def fixed_layer(self, *sizes, **options):
        return FixedLayer(self, *sizes, **options)

    def fused_layer(self, *sizes, **options):
        return FusedLayer(self, *sizes, **options)


def numpy(tensor):
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()


def generator(seed):
    return None if seed is None else torch.Generator().manual_seed(seed)


class Chosen:
    """A layer whose recipe may look at the data."""

    def start_from(self, *arguments, **options):
        self.layer.start_from(*arguments, **options)

    def rewire_towards_gradients(self, *arguments, **options):
        return self.layer.rewire_towards_gradients(*arguments, **options)

    def feature_arrays(self):
        """The scale and the dictionary of the features, those that there are."""
        arrays = [self.layer.feature_scale, self.layer.feature_dictionary]
        return [numpy(array) for array in arrays if array is not None]


class FixedLayer(Chosen):
    """`FixedFanInLinear`."""

    def __init__(
        self, adapter, inputs, labels, fan_in, *, seed=None, dtype="float32", bias=True, **more
    ):
        self.adapter = adapter
        self.layer = FixedFanInLinear(
            *(inputs, labels, fan_in),
            bias=bias,
            device=adapter.device,
            dtype=getattr(torch, dtype),
            generator=generator(seed),
            **more,
        )

    def __call__(self, features):
        return numpy(self.layer(self.adapter.tensor(features)))

    @property
    def indices(self):
        return numpy(self.layer.indices)

    @property
    def order(self):
        return numpy(self.layer.order)

    @property
    def weights(self):
        return numpy(self.layer.weights)

    @property
    def bias(self):
        return numpy(self.layer.bias)

    def rewire(self, *arguments, **options):
        return self.layer.rewire(*arguments, **options)

    def adam(self, *, untrained=False):
        """An optimizer of this layer; untrained: before its first step."""
        optimizer = torch.optim.Adam(self.layer.parameters())
        if not untrained:
            features = torch.randn(5, self.layer.in_features, device=self.adapter.device)
            self.layer(features).square().sum().backward()
            optimizer.step()
        return optimizer

    def other_adam(self):
        """An optimizer that does not train this layer."""
        return torch.optim.Adam(torch.nn.Linear(2, 2).parameters())

    def moments(self, optimizer):
        state = optimizer.state[self.layer.weights]
        return [numpy(state[name]) for name in ("exp_avg", "exp_avg_sq")]

    def save(self, folder):
        torch.save(self.layer.state_dict(), folder / "layer")

    def load(self, folder):
        self.layer.load_state_dict(torch.load(folder / "layer", weights_only=True))

    def learn(self, features, targets):
        """Train it behind a dense layer; the share of instances whose target is the best label."""
        below = torch.nn.Sequential(
            torch.nn.Linear(features.shape[1], self.layer.in_features), torch.nn.ReLU()
        )
        model = torch.nn.Sequential(below, self.layer).to(self.adapter.device)
        x, y = self.adapter.tensor(features), self.adapter.tensor(targets)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return (model(x).argmax(1) == y).float().mean().item()


class FusedLayer(Chosen):
    """`FusedFanIn`."""

    names = (
        "indices",
        "weights",
        "weights_m",
        "weights_v",
        "order",
        "bias",
        "bias_m",
        "bias_v",
        "steps",
    )

    def __init__(
        self,
        adapter,
        inputs,
        labels,
        fan_in,
        *,
        seed=None,
        dtype="float32",
        moments="float32",
        **more,
    ):
        self.adapter = adapter
        self.layer = FusedFanIn(
            *(inputs, labels, fan_in),
            weights_dtype=getattr(torch, dtype),
            moments_dtype=getattr(torch, moments),
            device=adapter.device,
            generator=generator(seed),
            **more,
        )

    def _given(self, value):
        return self.adapter.tensor(value) if isinstance(value, np.ndarray) else value

    def __call__(self, features):
        return numpy(self.layer(self.adapter.tensor(features)))

    def loss(self, method, features, positive_instances, positive_labels, *, traced=False):
        ask = getattr(self.layer, method)
        positives = map(self._given, (positive_instances, positive_labels))
        return ask(self.adapter.tensor(features), *positives).item()

    def loss_and_gradient(self, method, features, positive_instances, positive_labels, **_):
        """The loss times 3, and its gradient by the features."""
        x = self.adapter.tensor(features).requires_grad_()
        positives = map(self._given, (positive_instances, positive_labels))
        loss = 3 * getattr(self.layer, method)(x, *positives)
        return loss.item(), numpy(torch.autograd.grad(loss, x)[0])

    def top_k(self, features, k):
        return tuple(map(numpy, self.layer.top_k(self.adapter.tensor(features), k)))

    def rewire(self, *arguments):
        return self.layer.rewire(*arguments)

    def arrays(self):
        arrays = {name: getattr(self.layer, name) for name in self.names}
        return {name: numpy(array) for name, array in arrays.items() if array is not None}

    @property
    def learning_rate(self):
        return self.layer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        self.layer.learning_rate = value

    def save(self, folder):
        torch.save(self.layer.state_dict(), folder / "layer")

    def load(self, folder):
        self.layer.load_state_dict(torch.load(folder / "layer", weights_only=True))

    def trained_by_optimizers(self):
        return list(self.layer.parameters())
