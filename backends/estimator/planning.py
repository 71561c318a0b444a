"""What a fit will need, before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from fanin.backends.auxiliary import cluster_count
from fanin.backends.estimate import (
    Estimate,
    Sizes,
    TooLargeError,
    TrainingOptions,
    bytes_of_instances,
    estimate,
    with_choosing,
)
from fanin.backends.estimator.fitting import Instances
from fanin.backends.estimator.predictor import AnySetup
from fanin.backends.estimator.settings import AnyRecipe, Settings
from fanin.backends.recipes import Recipe
from fanin.backends.setup import LayerSetup
from fanin.backends.words.estimate import words_estimate, words_kept_bytes
from fanin.backends.words.fitting import steps_of
from fanin.backends.words.setup import OneVersusRestRecipe, OneVersusRestSetup
from fanin.datasets.dataset import array_bytes
from fanin.datasets.memory import available_bytes, size_text


@dataclass(frozen=True)
class Plan:
    """Bytes and arithmetic of a fit on a CPU; `print(plan)` shows them.

    expected: of the training, by what bytes are for. data_bytes: of the copies that are made of
    features and labels, where they have another form than the training reads. kept_bytes: of the
    copies of trained arrays that are kept for predictions. keeps_early: whether they count while
    training goes on, as a copy of the best epoch so far does. available_bytes: that this process
    can still take. steps: of training, in all epochs.
    """

    setup: AnySetup
    recipe: AnyRecipe
    backend: str
    execution: str
    instances: int
    positives: int
    steps: int
    expected: Estimate
    data_bytes: int
    kept_bytes: int
    keeps_early: bool
    available_bytes: int

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        shapes = self.setup.array_shapes().items()
        return sum(math.prod(s) for name, s in shapes if name.endswith(("weights", "bias")))

    @property
    def epochs(self) -> int:
        """How many epochs the history of the fit will have, early stopping aside."""
        recipe = self.recipe
        return recipe.passes if isinstance(recipe, OneVersusRestRecipe) else recipe.epochs

    @property
    def peak_bytes(self) -> int:
        """Expected peak above what is in memory now, the framework's own code aside."""
        expected, early = self.expected, self.keeps_early
        return expected.peak_with_copy(self.kept_bytes, while_training=early) + self.data_bytes

    @property
    def flops(self) -> int:
        """Floating-point operations of all steps' products."""
        return self.expected.flops * self.steps

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.available_bytes

    def check(self) -> None:
        """TooLargeError, with what to change, where it does not fit."""
        if self.fits:
            return
        advice = "a smaller fan_in needs less"
        if isinstance(self.setup, LayerSetup):
            advice = (
                "a smaller fan_in or intermediate, execution='fused', or bfloat16 weights and "
                "moments need less"
            )
        raise TooLargeError(
            f"needs about {size_text(self.peak_bytes)}, and {size_text(self.available_bytes)} "
            f"are available here; {advice}\n{self}"
        )

    def __str__(self) -> str:
        setup, expected = self.setup, self.expected
        intermediate = f", {setup.intermediate} intermediate units" if setup.intermediate else ""
        lines = {
            "data": f"{self.instances} instances, {setup.inputs} inputs, {setup.labels} labels, "
            f"{self.positives} positives",
            "model": f"{setup.output}{intermediate}, {self.parameters} parameters",
            "training": f"{self.backend}, {self.execution}, {self.epochs} epochs, "
            f"{self.steps} steps, {self.flops:.3g} floating-point operations",
            "parameters": size_text(expected.parameter_bytes),
            "optimiser state": size_text(expected.optimizer_bytes),
            "gradients": size_text(expected.gradient_bytes),
            "temporary": size_text(expected.temporary_bytes + expected.overhead_bytes),
            "copies of data": size_text(self.data_bytes),
            "kept arrays": size_text(self.kept_bytes),
            "peak": f"{size_text(self.peak_bytes)} of {size_text(self.available_bytes)} available: "
            + ("fits" if self.fits else "DOES NOT FIT"),
        }
        return "\n".join(f"{name + ':':<17}{text}" for name, text in lines.items())


def make_plan(settings: Settings, data: Instances, data_bytes: int) -> Plan:
    """The plan of a fit on these data. data_bytes: of the copies that were made already."""
    features, positives = data
    (instances, inputs), labels = features.shape, positives.shape[1]
    setup, recipe = settings.model(inputs, labels, isinstance(features, sp.csr_array))
    if isinstance(setup, OneVersusRestSetup):
        assert isinstance(recipe, OneVersusRestRecipe) and isinstance(features, sp.csr_array)
        backend = "no backend"
        expected = words_estimate(setup, features, positives, settings.cpu_threads)
        steps = steps_of(recipe, instances)
        kept = words_kept_bytes(setup, recipe, settings.early_stopping)
        # What adding pairs took is not returned to the system before the copy is made.
        keeps_early = True
    else:
        assert isinstance(recipe, Recipe)
        backend = settings.known_backend()
        steps_per_epoch = -(-instances // settings.batch_size)
        recipe = recipe.for_steps(steps_per_epoch)
        expected = _estimate(settings, backend, setup, recipe, data)
        steps = recipe.epochs * steps_per_epoch
        # Copies are in float32, whatever the training stores. There is one: that of the best epoch,
        # or of the last.
        as_float32 = replace(settings, weights_dtype="float32", moments_dtype="float32")
        kept = _estimate(as_float32, backend, setup, recipe, data).parameter_bytes
        keeps_early = settings.early_stopping
    if settings.early_stopping:  # training and validation instances are copies
        data_bytes += array_bytes(features) + array_bytes(positives)
    return Plan(
        setup=setup,
        recipe=recipe,
        backend=backend,
        execution=settings.execution,
        instances=instances,
        positives=int(positives.nnz),
        steps=steps,
        expected=expected,
        data_bytes=data_bytes,
        kept_bytes=kept,
        keeps_early=keeps_early,
        available_bytes=available_bytes(),
    )


def _estimate(
    settings: Settings, backend: str, setup: LayerSetup, recipe: Recipe, data: Instances
) -> Estimate:
    """Of a model that a backend trains."""
    features, positives = data
    instances, inputs = features.shape
    words = features.nnz / instances if isinstance(features, sp.csr_array) else None
    is_mapped = isinstance(features, np.memmap)
    sizes = Sizes(inputs, setup.labels, instances, 0, int(positives.nnz), is_mapped, words)
    options = TrainingOptions(
        settings.execution,
        settings.storage,
        settings.optimizer_values,
        settings.batch_size,
        settings.cpu_threads,
        words,
        bytes_of_instances(sizes),
        cluster_count(recipe, setup.labels),
    )
    expected = estimate(setup, backend, options)
    batch, threads = settings.batch_size, settings.cpu_threads
    return with_choosing(expected, recipe, setup, sizes, batch, threads)
