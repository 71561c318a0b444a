"""The optimiser of a training: how a gradient changes the weights."""

from __future__ import annotations

from dataclasses import dataclass

from fanin.backends import checks

ADAM_BETAS = (0.9, 0.999)
# Keras' default, and it matters: |dLoss/dscore| is of this order for 670,000 labels. It is added to
# sqrt(v) before the bias correction ("epsilon hat" in Kingma & Ba, 2015, end of section 2), which
# is how the paper's framework does it; both backends do the same.
ADAM_EPSILON = 1e-7


@dataclass(frozen=True)
class Optimizer:
    """Adam, and what holds weights small beside it; by default nothing, as in the paper.

    Both terms are for weights alone, not for biases, as is usual, and read the weights w as they
    are before the step. weight_decay is decoupled from the gradient: w -= learning_rate *
    weight_decay * w, beside the step (AdamW; Loshchilov & Hutter, "Decoupled weight decay
    regularization", ICLR 2019). l2 is a part of it: gradient += l2 * w, before the moments. Of
    weights that are lazily trained, both change the rows of words in the batch alone.
    Raises ValueError for numbers that are not finite or below 0.
    """

    weight_decay: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        checks.not_negative("weight_decay", self.weight_decay)
        checks.not_negative("l2", self.l2)

    @property
    def decays(self) -> bool:
        """Whether anything holds weights small."""
        return self.weight_decay > 0 or self.l2 > 0

    @property
    def numbers(self) -> tuple[float, ...]:
        """As the ops take it: the fields of `fanin_optimizer` from beta1 to l2."""
        return (*ADAM_BETAS, ADAM_EPSILON, float(self.weight_decay), float(self.l2))


ADAM = Optimizer()


def is_decayed(name: str) -> bool:
    """Whether weight decay and L2 are for the trained array of this name."""
    return not name.endswith("bias")
