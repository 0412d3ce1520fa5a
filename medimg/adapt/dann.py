"""Domain-adversarial training: DANN, CDAN."""

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
from medimg.adapt.base import Adaptation, AdaptationTerm, Images, Side, require_target

__all__ = ["CDAN", "DANN", "make_discriminator"]

#: Longest outer product of embedding and prediction that is not randomized.
_LONGEST: Final = 4096


def make_discriminator(inputs: int, hidden: int) -> nn.Sequential:
    """
    Create a network from (B, inputs) to (B,) logits.

    Its inputs are normalized over the batch, source and target together, so that it learns equally fast from
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
    """Return the balanced accuracy of a discriminator's logits (B,), (B',); 0.5 by chance."""
    with torch.no_grad():
        return ((source < 0).float().mean() + (target > 0).float().mean()) / 2


class _DANNTerm(AdaptationTerm):
    """Discriminator of DANN."""

    def __init__(self, features: int, hidden: int, weight: float) -> None:
        super().__init__()
        self.discriminator = make_discriminator(features, hidden)
        self._weight = weight

    def forward(
        self, losses: Tensor, source: Side, target: Side | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the discriminator's loss; see :class:`AdaptationTerm`."""
        both = torch.cat([source.embeddings, require_target(target).embeddings])
        logits = self.discriminator(gradient_reversal(both, self._weight * ramp(progress)))
        one, other = logits[: len(losses)], logits[len(losses) :]
        loss = adversarial_loss(one, other)
        parts = {"dann": loss.detach(), "dann_accuracy": domain_accuracy(one, other)}
        return losses.mean() + loss, parts


class _CDANTerm(AdaptationTerm):
    """Discriminator of CDAN, and its random projections."""

    def __init__(self, features: int, classes: int, settings: CDAN) -> None:
        super().__init__()
        self._weight, self._entropy = settings.weight, settings.entropy
        self._randomized = features * classes > _LONGEST
        width = _LONGEST if self._randomized else features * classes
        if self._randomized:
            generator = torch.Generator().manual_seed(settings.seed)
            self.register_buffer("for_embeddings", torch.randn(features, width, generator=generator))
            self.register_buffer("for_predictions", torch.randn(classes, width, generator=generator))
        self.discriminator = make_discriminator(width, settings.hidden)

    def forward(
        self, losses: Tensor, source: Side, target: Side | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the discriminator's loss; see :class:`AdaptationTerm`."""
        other = require_target(target)
        multilabel = source.labels is not None and source.labels.ndim == 2
        embeddings = torch.cat([source.embeddings, other.embeddings])
        # as in the authors' code: the gradient of the discriminator reaches embeddings, not predictions
        outputs = torch.cat([source.logits, other.logits]).detach().float()
        predictions = outputs.sigmoid() if multilabel else outputs.softmax(dim=1)
        inputs = multilinear_map(
            gradient_reversal(embeddings, self._weight * ramp(progress)), predictions, self._get_projections()
        )
        logits = self.discriminator(inputs)
        n = len(losses)
        weights = self._compute_weights(predictions, multilabel=multilabel)
        loss = adversarial_loss(
            logits[:n],
            logits[n:],
            source_weights=None if weights is None else weights[:n],
            target_weights=None if weights is None else weights[n:],
        )
        parts = {"cdan": loss.detach(), "cdan_accuracy": domain_accuracy(logits[:n], logits[n:])}
        return losses.mean() + loss, parts

    def _get_projections(self) -> tuple[Tensor, Tensor] | None:
        if not self._randomized:
            return None
        return self.get_buffer("for_embeddings"), self.get_buffer("for_predictions")

    def _compute_weights(self, predictions: Tensor, *, multilabel: bool) -> Tensor | None:
        if not self._entropy:
            return None
        if not multilabel:
            return entropy_weights(predictions)
        # the mean over labels of each one's weight
        pairs = torch.stack([predictions, 1 - predictions], dim=2)
        return entropy_weights(pairs.flatten(0, 1)).view(predictions.shape).mean(dim=1)


@dataclass(frozen=True, repr=False, eq=False)
class DANN(Adaptation):
    """
    Domain-adversarial training (Ganin et al., JMLR 2016).

    A discriminator learns to distinguish embeddings of target and source, and its reversed gradient trains
    the backbone to make them indistinguishable. The weight of the reversed gradient is ramped up from 0 to
    `weight` (:func:`medimg.adapt.ramp`). The loss is :func:`medimg.adapt.adversarial_loss`.

    Parameters
    ----------
    target : ImageDataset
        Images of the target domain; their labels are not used.
    weight : float
        Final weight of the reversed gradient; 1 in the paper, which can lose more on the source than it gains
        on the target.
    hidden : int
        Width of the discriminator's two hidden layers.

    Raises
    ------
    TrainingError
        If a setting is invalid.

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
        """Create the discriminator; see :class:`Adaptation`."""
        return _DANNTerm(features, self.hidden, self.weight)


@dataclass(frozen=True, repr=False, eq=False)
class CDAN(Adaptation):
    """
    Conditional domain-adversarial training (Long, Cao, Wang and Jordan, NeurIPS 2018).

    Like :class:`DANN`, but the discriminator receives the outer product of embedding and prediction, so that
    each class is aligned with itself; if it is longer than 4096, a randomized form of it.

    Parameters
    ----------
    target : ImageDataset
        Images of the target domain; their labels are not used.
    weight : float
        Final weight of the reversed gradient; 1 in the paper.
    hidden : int
        Width of the discriminator's two hidden layers.
    entropy : bool
        Whether to weight items by the certainty of their prediction ("CDAN+E").
    seed : int
        Seed for the random projections.

    Raises
    ------
    TrainingError
        If a setting is invalid.

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
        """Create the discriminator; see :class:`Adaptation`."""
        return _CDANTerm(features, classes, self)
