"""Adversarial training by projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from medimg._validation import check_number, check_whole_number
from medimg.adapt.base import Adaptation, Images

if TYPE_CHECKING:
    from medimg.adapt.base import LossOf
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["PGD"]


@dataclass(frozen=True, repr=False, eq=False)
class PGD(Adaptation):
    """
    Adversarial training by projected gradient descent (Madry et al., ICLR 2018).

    Each image is perturbed in a few steps along the sign of the gradient of its loss, from a random start and
    by at most `epsilon` in any pixel, and the model is trained on the result. Intensities stay between black
    and white, and the channels stay equal if the preprocessing repeats one channel.

    Parameters
    ----------
    epsilon : float
        Largest change of a pixel, where black is 0 and white is 1.
    step : float, optional
        Step size; by default ``2.5 epsilon / steps``, as for CIFAR in the paper.
    steps : int
        Number of steps.
    share : float
        Fraction of the batch that is perturbed, above 0 to 1, sampled at random.

    Raises
    ------
    TrainingError
        If a setting is invalid.

    Examples
    --------
    >>> PGD(epsilon=4 / 255, share=0.5)
    PGD(epsilon=0.01568627450980392, step=None, steps=3, share=0.5)
    """

    epsilon: float = 2 / 255
    step: float | None = None
    steps: int = 3
    share: float = 1.0
    target: Images | None = field(default=None, init=False)
    moves_backbone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("epsilon", self.epsilon, above=0, most=1)
        check_number("share", self.share, above=0, most=1)
        check_whole_number("steps", self.steps, least=1)
        if self.step is not None:
            check_number("step", self.step, above=0)

    def perturb(self, images: Tensor, loss_of: LossOf, recipe: Preprocess) -> Tensor:
        """
        Return perturbed images; see :class:`Adaptation`.

        Random numbers are torch's global ones. No gradient remains in the model's parameters.
        """
        chosen = torch.rand(len(images)) < self.share
        if not bool(chosen.any()):
            return images
        mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in recipe.normalization)
        originals = (images.detach() * std + mean).clamp(0.0, 1.0)
        gray = recipe.channels == "repeat"
        shape = (*images.shape[:-3], 1, *images.shape[-2:]) if gray else images.shape
        where = chosen.to(images.device).view(-1, *[1] * (images.ndim - 1))
        change = torch.rand(shape).mul_(2.0).sub_(1.0).mul_(self.epsilon).to(images) * where
        length = self.step if self.step is not None else 2.5 * self.epsilon / self.steps
        for _ in range(self.steps):
            direction = _gradient_sign(originals, change, loss_of, (mean, std))
            change = (change + length * direction).clamp(-self.epsilon, self.epsilon) * where
        changed = ((originals + change).clamp(0.0, 1.0) - mean) / std
        return torch.where(where, changed, images).detach()


def _gradient_sign(
    originals: Tensor, change: Tensor, loss_of: LossOf, scale: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the sign of the gradient of the loss with respect to the change, of one or three channels."""
    mean, std = scale
    with torch.enable_grad():
        inputs = (((originals + change).clamp(0.0, 1.0) - mean) / std).requires_grad_(True)
        # in half precision, the gradient of a mean over the batch would lose digits
        (gradient,) = torch.autograd.grad(loss_of(inputs) * len(inputs), inputs)
    by_channel: Tensor = gradient / std
    return by_channel.sum_to_size(change.shape).sign()
