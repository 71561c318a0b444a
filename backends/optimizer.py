"""The optimiser of a training: how a gradient changes the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fanin.backends import checks
from fanin.kernels import params

OptimizerKind = Literal["adam", "sgd", "momentum"]

ADAM_BETAS = (0.9, 0.999)
# Keras' default, and it matters: |dLoss/dscore| is of this order for 670,000 labels. It is added to
# sqrt(v) before the bias correction ("epsilon hat" in Kingma & Ba, 2015, end of section 2), which
# is how the paper's framework does it; both backends do the same.
ADAM_EPSILON = 1e-7


@dataclass(frozen=True)
class Optimizer:
    """How a gradient changes the weights; by default as in the paper, by Adam alone.

    kind: "adam", which keeps two moments m and v for each weight; "sgd", w -= learning_rate *
    gradient, which keeps none; "momentum", m = momentum * m + gradient, w -= learning_rate * m
    (`torch.optim.SGD` without dampening or Nesterov's step), which keeps m. Only this last kind
    uses momentum.

    Two terms hold weights small, but, as is usual, not biases. Both read the weights w as they are
    before the step. weight_decay is decoupled from the gradient: w -= learning_rate * weight_decay
    * w, beside the step (AdamW; Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR
    2019). l2 is a part of the gradient: gradient += l2 * w, before the moments. Of weights that are
    lazily trained, both change only the rows of words in the batch.
    Raises ValueError for another kind, for terms that are not finite or below 0, and for a momentum
    that is not above 0 and below 1.
    """

    kind: OptimizerKind = "adam"
    weight_decay: float = 0.0
    l2: float = 0.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.kind not in get_args(OptimizerKind):
            kinds = ", ".join(get_args(OptimizerKind))
            raise ValueError(f"optimizer must be one of {kinds}, got {self.kind!r}")
        checks.not_negative("weight_decay", self.weight_decay)
        checks.not_negative("l2", self.l2)
        if not 0 < checks.not_negative("momentum", self.momentum) < 1:
            raise ValueError(f"momentum must be above 0 and below 1, got {self.momentum!r}")

    @property
    def keeps(self) -> tuple[Literal["m", "v"], ...]:
        """The moments that it keeps for each weight."""
        moments: dict[OptimizerKind, tuple[Literal["m", "v"], ...]] = {
            "adam": ("m", "v"),
            "sgd": (),
            "momentum": ("m",),
        }
        return moments[self.kind]

    @property
    def decays(self) -> bool:
        """Whether anything holds weights small."""
        return self.weight_decay > 0 or self.l2 > 0

    @property
    def numbers(self) -> tuple[float, ...]:
        """As the ops take it: the number of its kind, then the fields of `fanin_optimizer` from
        beta1 to l2."""
        kind = float(params.OPTIMIZERS[self.kind])
        decays = (float(self.weight_decay), float(self.l2))
        return (kind, *ADAM_BETAS, ADAM_EPSILON, float(self.momentum), *decays)


ADAM = Optimizer()


def is_decayed(name: str) -> bool:
    """Whether weight decay and L2 are for the trained array of this name."""
    return not name.endswith("bias")


def check_row_moments(optimizer: Optimizer) -> None:
    """ValueError for an optimizer that has no row moments."""
    if optimizer.kind != "adam":
        raise ValueError(
            f"row moments are of optimizer 'adam', and {optimizer.kind!r} has none: leave them out"
        )
