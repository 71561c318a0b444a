"""What a one-versus-rest model is, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fanin.backends import checks


@dataclass(frozen=True)
class OneVersusRestSetup:
    """inputs, labels: sizes; fan_in: words of a label on average. The pairs (label, word) are one
    pool: a frequent label may have thousands, a rare one few. Raises ValueError."""

    inputs: int
    labels: int
    fan_in: int

    # As `LayerSetup` has them.
    sparse_features: ClassVar[bool] = True
    intermediate: ClassVar[None] = None

    def __post_init__(self) -> None:
        checks.whole("inputs", self.inputs, 1)
        checks.whole("labels", self.labels, 1)
        checks.whole("fan_in", self.fan_in, 1)

    @property
    def output_inputs(self) -> int:
        return self.inputs

    @property
    def output(self) -> str:
        return f"one-versus-rest, at most {self.fan_in} words a label on average"

    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the trained arrays, at most."""
        return {"output.weights": (self.most_pairs,), "output.bias": (self.labels,)}

    @property
    def most_pairs(self) -> int:
        return self.labels * min(self.fan_in, self.inputs)

    def check_k(self, k: int) -> None:
        """ValueError where there are no k best labels."""
        checks.best(k, self.labels)


@dataclass(frozen=True)
class OneVersusRestRecipe:
    """learning_rate: of AdaGrad, for instances of length 1; it falls linearly to 0 over `epochs`.
    first_share: of the pairs, those that are chosen before the training. The others are added after
    `growths` passes at the full rate, towards gradients. README.md has what this gains."""

    learning_rate: float = 2.0
    epochs: int = 2
    first_share: float = 0.5
    growths: int = 1

    @property
    def passes(self) -> int:
        return self.growths + self.epochs
