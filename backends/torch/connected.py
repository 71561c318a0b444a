"""`Connected`: what both fixed fan-in layers have in common. That is their connections, and what a
recipe adds: a transform of the features, and a start from the training data."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from fanin.backends import checks
from fanin.backends.arrays import Rewiring, drawn_seed
from fanin.backends.features import DICTIONARY, SCALE, FeatureTransform, inputs_as_atoms
from fanin.backends.gradients import OutputLayer, plan_for_layer
from fanin.backends.kinds import ORDER, ConnectionKind, FixedFanIn, GroupedFanIn, index_dtype
from fanin.backends.moments import Resets
from fanin.backends.recipes import Recipe, RecipeName, recipe_of
from fanin.backends.setup import LayerSetup, Loss
from fanin.backends.starting import arrays_for_layer, atoms_of
from fanin.backends.torch.linear import fan_in_linear, known_features, widened
from fanin.backends.torch.ops import refuse_other_devices, top_k
from fanin.backends.torch.tools import ranks
from fanin.backends.torch.tools.indexed import Indexed


class Connected(Indexed):
    """A layer with `indices` [labels, fan_in], and, where its recipe changes features, with buffers
    `feature_scale` [in_features] and `feature_dictionary` [in_features, atoms]: labels read atoms
    then. Where labels share their sources, a buffer `order` int32 [labels] has the label at each
    position."""

    in_features: int
    bias: Tensor | None
    feature_scale: Tensor | None
    feature_dictionary: Tensor | None
    order: Tensor | None
    group_size: int | None = None
    recipe: RecipeName = "paper"
    not_averaged: ClassVar[tuple[str, ...]] = ("feature_scale", "feature_dictionary", "order")
    own_moments: tuple[str, ...] = ()
    """Names of the buffers that belong to the connections, of a layer that trains itself."""
    own_progress: tuple[str, ...] = ()
    """Names of the other buffers that are 0 before the training."""

    @property
    def _setup(self) -> LayerSetup:
        """The layer as a model; before `_follow`, without what its recipe adds."""
        kind: ConnectionKind = FixedFanIn(self.fan_in)
        if self.group_size is not None:
            kind = GroupedFanIn(self.fan_in, self.group_size)
        atoms = None
        if (dictionary := self._buffers.get("feature_dictionary")) is not None:
            atoms = dictionary.shape[1]
        return LayerSetup(self.in_features, self.labels, kind, atoms=atoms)

    def _follow(
        self, recipe_name: RecipeName, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> Recipe:
        """Take over a recipe, with the buffers that it needs; sizes have to be known. ValueError
        for a recipe that is none."""
        recipe = recipe_of(recipe_name, self._setup)
        self.recipe = recipe_name
        inputs, scale, dictionary = self.in_features, None, None
        if recipe.feature_scaling != "none":
            scale = torch.empty(inputs, device=device, dtype=dtype)
        if atoms := atoms_of(recipe, inputs, self.labels, self.fan_in):
            dictionary = torch.empty(inputs, atoms, device=device, dtype=dtype)
        for name, buffer in (("feature_scale", scale), ("feature_dictionary", dictionary)):
            if buffer is None:
                setattr(self, name, None)  # torch.export miscounts buffers that are None (2.13)
            else:
                self.register_buffer(name, buffer)
        return recipe

    def _add_order(self, device: torch.device | str | None) -> None:
        """The buffer of which label stands where, not filled, where there is to be one."""
        if self.group_size is None:
            self.order = None  # as above
            return
        made = torch.empty(self.labels, dtype=torch.int32, device=device)
        self.register_buffer("order", made)

    def _reset_order(self) -> None:
        """Have each label at its own position."""
        if self.order is not None:
            self.order.copy_(torch.arange(self.labels, dtype=torch.int32, device="cpu"))

    def _positions(self) -> Tensor | None:
        """Where each label stands, int32 [labels]; None where that is its own number."""
        if self.order is None:
            return None
        self._settle()
        places = torch.arange(self.labels, dtype=torch.int32, device=self.order.device)
        return places.scatter(0, self.order.long(), places)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Features are changed in float32 at least: a scale can be too large for float16."""
        before = {name: self._buffers.get(name) for name in self.not_averaged}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers.get(name)
            if buffer is not None and after is not None and after.itemsize < 4:
                self._buffers[name] = buffer.to(after.device)
        return self

    def _reset_features(self) -> None:
        """Leave features as they are."""
        if self.feature_scale is not None:
            nn.init.ones_(self.feature_scale)
        if self.feature_dictionary is not None:
            self.feature_dictionary.copy_(
                torch.from_numpy(inputs_as_atoms(*self.feature_dictionary.shape))
            )

    def _read(self, features: Tensor) -> Tensor:
        """Features [..., in_features] as the ops read them: dense, contiguous, at least float32,
        and transformed where the recipe says so. ValueError for others."""
        return self._transformed(widened(known_features(features, self.in_features))).contiguous()

    def _scores(self, features: Tensor, weights: Tensor) -> Tensor:
        """[..., labels] of features [..., in_features]."""
        read = self._read(features)
        flat = read if read.ndim == 2 else read.reshape(-1, read.shape[-1])
        bias = None if self.bias is None else widened(self.bias).contiguous()
        size = self.group_size or 0
        scores = fan_in_linear(
            flat, self.indices, widened(weights).contiguous(), bias, group_size=size
        )
        if (positions := self._positions()) is not None:
            scores = scores.index_select(1, positions)
        # Reshaped only where it has to be, so that it is no view.
        return scores if read.ndim == 2 else scores.reshape(*read.shape[:-1], self.labels)

    def _transformed(self, features: Tensor) -> Tensor:
        """Features [..., in_features] as the labels read them. What is no float stays as it is, so
        that an op can name it."""
        if self.feature_scale is None or not features.is_floating_point():
            return features
        self._settle()
        refuse_other_devices(features, feature_scale=self.feature_scale)
        device = "cpu" if features.is_meta else features.device.type  # "meta" has no autocast
        with torch.autocast(device, enabled=False):
            features = features * self.feature_scale.to(features.dtype)
            if self.feature_dictionary is not None:
                features = features @ self.feature_dictionary.to(features.dtype)
        return features

    @torch.no_grad()
    def start_from(self, features: Any, labels: Any, *, seed: int = 0) -> None:
        """Choose scale, dictionary, connections, weights and biases by the training data, as the
        layer's recipe says, and take them over. A layer that trains itself begins anew.

        features: float32 [instances, in_features], a NumPy array or CSR; labels: the positives,
        SciPy sparse [instances, labels]; seed: of sources that no positive tells. ValueError for
        others, and for the recipe "paper", which does not look at data; nothing has changed then.
        """
        ranks.check_whole(self.weights, (self.labels, self.fan_in))
        threads = torch.get_num_threads()
        given = arrays_for_layer(
            features, labels, self.recipe, self._setup, seed=seed, threads=threads
        )
        given = ranks.from_first(given, self._groups)
        if "output.indices" in given:
            self.set_connections(given["output.indices"])
        targets = {
            ORDER: self.order,
            SCALE: self.feature_scale,
            DICTIONARY: self.feature_dictionary,
            "output.weights": self.weights,
            "output.bias": self.bias,
        }
        for name, target in targets.items():
            if target is not None and name in given:
                ranks.assign(target, torch.from_numpy(given[name]))
        for name in (*self.own_moments, *self.own_progress):
            getattr(self, name).zero_()

    @torch.no_grad()
    def set_connections(self, indices: np.ndarray | Tensor) -> None:
        """Take over the sources of all connections, integers [labels, fan_in], or [label groups,
        fan_in] where labels share them, each below in_features, or the atoms of a dictionary: as
        `fanin.backends.choosing.choose_sources` gives them, say.

        Weights keep their value, and in a layer that trains itself the moments of connections whose
        source has changed become 0. ValueError for others; nothing has changed then.
        """
        given = indices.cpu().numpy() if isinstance(indices, Tensor) else indices
        own = self._indices_as_they_are()
        before = own.cpu().numpy()
        sources = checks.connections(given, before.shape, self._setup.output_inputs)
        sources = ranks.from_first(sources.astype(before.dtype), self._groups)
        moved = np.flatnonzero(sources != before)
        where = torch.from_numpy(self._setup.output.connections_of(moved, self.labels))
        own.copy_(torch.from_numpy(sources))
        self._stamp()
        for name in self.own_moments:
            getattr(self, name).view(-1)[where.to(own.device)] = 0

    def _rewire_towards_gradients(
        self,
        features: Any,
        labels: Any,
        fraction: float,
        rng: np.random.Generator | int | None,
        loss: Loss,
        resets: Resets,
    ) -> int:
        order, size = self.order, self.group_size or 0
        bias = self.bias

        def best(asked: np.ndarray, k: int) -> np.ndarray:
            read = self._transformed(torch.from_numpy(asked).to(weights.device)).float()
            ids: Tensor = top_k(read, self.indices, None, None, weights, biases, k, order, size)[1]
            return ids.cpu().numpy()

        weights = self._whole_weights().float()
        biases = weights.new_zeros(self.labels)
        if bias is not None:
            biases = ranks.whole(bias.detach()).float()
        named = {SCALE: self.feature_scale, DICTIONARY: self.feature_dictionary}
        transform = {n: widened(a).cpu().numpy() for n, a in named.items() if a is not None}
        layer = OutputLayer(
            indices=self.indices.cpu().numpy(),
            weights=weights.cpu().numpy(),
            bias=biases.cpu().numpy(),
            loss=loss,
            transform=FeatureTransform.from_arrays(transform),
            top_k=best,
            group_size=size,
            order=None if order is None else order.cpu().numpy(),
        )
        threads = torch.get_num_threads()
        plan = plan_for_layer(
            features, labels, layer, self._setup, fraction, seed=drawn_seed(rng), threads=threads
        )
        return self._move(plan, resets)

    @torch.no_grad()
    def _move(self, rewiring: Rewiring, resets: Resets) -> int:
        """Give the connections their new sources, and weights where they get some, and reset what
        an optimizer keeps of them, all in place; how many moved. Where several ranks train this
        layer, all do what rank 0 would."""
        self._take_from_first()
        rewiring = ranks.from_first(rewiring, self._groups)
        # torch has no such assignment for unsigned types; int16 and int32 are the same bits.
        signed = torch.int16 if self.indices.dtype == torch.uint16 else torch.int32
        in_indices = torch.from_numpy(rewiring.positions).to(self.indices.device)
        sources = torch.from_numpy(rewiring.sources.astype(index_dtype(self._setup.output_inputs)))
        moved = sources.view(signed).to(in_indices.device)
        self.indices.view(signed).view(-1)[in_indices] = moved
        self._stamp()
        of_weights = self._setup.output.connections_of(rewiring.positions, self.labels)
        where = torch.from_numpy(of_weights).to(in_indices.device)
        if rewiring.weight is not None:
            ranks.put(self.weights, where, rewiring.weight)
        now = ranks.whole(self.weights.detach()).view(-1)[where]
        for array, start in resets:
            ranks.put(array, where, now if start is None else start)
        return len(rewiring.positions)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, labels={self.labels}, fan_in={self.fan_in}"
        if self.group_size is not None:
            sizes += f", group_size={self.group_size}"
        return sizes if self.recipe == "paper" else f"{sizes}, recipe={self.recipe!r}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        given = state_dict.get(f"{prefix}order")
        if isinstance(given, Tensor) and not given.is_meta and self.order is not None:
            try:
                self._setup.check_array(ORDER, given.cpu().numpy())
            except ValueError as error:
                others[-1].append(f"{prefix}order: {error}")
                return
        super()._load_from_state_dict(state_dict, prefix, *others)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in ("feature_scale", "feature_dictionary", "order"):
            if name not in self._buffers:
                setattr(self, name, None)  # pickled by a version without it
