"""Methods whose embeddings are moved so that a discriminator can't tell source from target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from medimg._validation import check_number, check_whole_number
from medimg.adapt.adversarial_losses import (
    adversarial_loss,
    entropy_weights,
    gradient_reversal,
    multilinear_map,
    ramp,
)
from medimg.adapt.base import Adaptation, AdaptationTerm, Images, Side, the_target

__all__ = ["CDAN", "DANN", "discriminator"]

#: The longest outer product that a discriminator is given as it is.
_LONGEST: Final = 4096


def discriminator(inputs: int, hidden: int) -> nn.Sequential:
    """
    Return a network from (B, inputs) to (B,) logits.

    Its inputs are normalized over the batch, source and target together, so that it is as quick to learn from
    embeddings of any scale.
    """
    return nn.Sequential(
        nn.BatchNorm1d(inputs, affine=False, track_running_stats=False),
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 1),
        nn.Flatten(0),
    )


def domain_accuracy(source: Tensor, target: Tensor) -> Tensor:
    """Return how well logits tell the sides apart: the mean of both sides' shares, 0.5 by chance."""
    with torch.no_grad():
        return ((source < 0).float().mean() + (target > 0).float().mean()) / 2


class _Domain(AdaptationTerm):
    """The discriminator of DANN."""

    def __init__(self, features: int, hidden: int, weight: float) -> None:
        super().__init__()
        self.discriminator = discriminator(features, hidden)
        self._weight = weight

    def forward(
        self, losses: Tensor, source: Side, target: Side | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the discriminator's loss; see :class:`AdaptationTerm`."""
        both = torch.cat([source.embeddings, the_target(target).embeddings])
        logits = self.discriminator(gradient_reversal(both, self._weight * ramp(progress)))
        one, other = logits[: len(losses)], logits[len(losses) :]
        loss = adversarial_loss(one, other)
        parts = {"dann": loss.detach(), "dann_accuracy": domain_accuracy(one, other)}
        return losses.mean() + loss, parts


class _Conditional(AdaptationTerm):
    """The discriminator of CDAN, and its random projections."""

    projections: tuple[Tensor, Tensor] | None

    def __init__(self, features: int, classes: int, settings: CDAN) -> None:
        super().__init__()
        self._weight, self._entropy = settings.weight, settings.entropy
        self._randomized = features * classes > _LONGEST
        width = _LONGEST if self._randomized else features * classes
        if self._randomized:
            generator = torch.Generator().manual_seed(settings.seed)
            self.register_buffer("for_embeddings", torch.randn(features, width, generator=generator))
            self.register_buffer("for_predictions", torch.randn(classes, width, generator=generator))
        self.discriminator = discriminator(width, settings.hidden)

    def forward(
        self, losses: Tensor, source: Side, target: Side | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the discriminator's loss; see :class:`AdaptationTerm`."""
        other_side = the_target(target)
        several = source.labels is not None and source.labels.ndim == 2
        embeddings = torch.cat([source.embeddings, other_side.embeddings])
        # as the authors train it: the discriminator moves embeddings, not predictions
        guessed = torch.cat([source.logits, other_side.logits]).detach().float()
        predictions = guessed.sigmoid() if several else guessed.softmax(dim=1)
        seen = multilinear_map(
            gradient_reversal(embeddings, self._weight * ramp(progress)), predictions, self._projections()
        )
        logits = self.discriminator(seen)
        n = len(losses)
        weights = self._weights(predictions, several=several)
        loss = adversarial_loss(
            logits[:n],
            logits[n:],
            source_weights=None if weights is None else weights[:n],
            target_weights=None if weights is None else weights[n:],
        )
        parts = {"cdan": loss.detach(), "cdan_accuracy": domain_accuracy(logits[:n], logits[n:])}
        return losses.mean() + loss, parts

    def _projections(self) -> tuple[Tensor, Tensor] | None:
        if not self._randomized:
            return None
        return self.get_buffer("for_embeddings"), self.get_buffer("for_predictions")

    def _weights(self, predictions: Tensor, *, several: bool) -> Tensor | None:
        if not self._entropy:
            return None
        if not several:
            return entropy_weights(predictions)
        # of several labels: the mean of the weights that each of them gives
        pairs = torch.stack([predictions, 1 - predictions], dim=2)
        return entropy_weights(pairs.flatten(0, 1)).view(predictions.shape).mean(dim=1)


@dataclass(frozen=True, repr=False, eq=False)
class DANN(Adaptation):
    """
    Domain-adversarial training (Ganin et al., JMLR 2016).

    A discriminator learns to tell the embeddings of the target from those of the source; its gradient,
    reversed, teaches the backbone the opposite. How strongly, grows with the training from 0 to `weight`, see
    :func:`medimg.adapt.ramp`. Its loss is :func:`medimg.adapt.adversarial_loss`.

    Parameters
    ----------
    target : ImageDataset
        Images of the target; its labels are never looked at.
    weight : float
        How strongly the backbone is trained against the discriminator in the end; 1 in the paper, which can
        cost more on the source than it gains.
    hidden : int
        Width of the discriminator's two inner layers.

    Raises
    ------
    TrainingError
        If a setting is unsound.

    Examples
    --------
    >>> import medimg
    >>> medimg.adapt.DANN([None, None])
    DANN(target_items=2, weight=0.3, hidden=256)
    """

    target: Images = field()
    weight: float = 0.3
    hidden: int = 256

    def __post_init__(self) -> None:
        check_number("weight", self.weight, above=0)
        check_whole_number("hidden", self.hidden, least=1)

    def make_term(self, features: int, classes: int, domains: int) -> AdaptationTerm:
        """Return the discriminator; see :class:`Adaptation`."""
        return _Domain(features, self.hidden, self.weight)


@dataclass(frozen=True, repr=False, eq=False)
class CDAN(Adaptation):
    """
    Conditional domain-adversarial training (Long, Cao, Wang and Jordan, NeurIPS 2018).

    As :class:`DANN`, but the discriminator sees the outer product of embedding and prediction, so that
    classes are matched with classes; where that is longer than 4096, its randomized form.

    Parameters
    ----------
    target : ImageDataset
        Images of the target; its labels are never looked at.
    weight : float
        How strongly the backbone is trained against the discriminator in the end; 1 in the paper.
    hidden : int
        Width of the discriminator's two inner layers.
    entropy : bool
        Whether items count for more the more certain their prediction is ("CDAN+E").
    seed : int
        Of the random projections.

    Raises
    ------
    TrainingError
        If a setting is unsound.

    Examples
    --------
    >>> import medimg
    >>> medimg.adapt.CDAN([None, None], entropy=False)
    CDAN(target_items=2, weight=1.0, hidden=256, entropy=False, seed=0)
    """

    target: Images = field()
    weight: float = 1.0
    hidden: int = 256
    entropy: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("weight", self.weight, above=0)
        check_whole_number("hidden", self.hidden, least=1)

    def make_term(self, features: int, classes: int, domains: int) -> AdaptationTerm:
        """Return the discriminator; see :class:`Adaptation`."""
        return _Conditional(features, classes, self)
