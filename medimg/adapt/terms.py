"""Loss terms of all adaptations of one training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from medimg.adapt.base import AdaptationTerm, Side
from medimg.data.dataloader import epoch_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medimg.adapt.base import Adaptation
    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier

__all__ = ["AdaptationTerms", "total_loss"]

#: Seed purpose of the initial weights; 0 to 3 are those of an epoch.
_INITIAL_WEIGHTS: Final = 4


class AdaptationTerms(nn.ModuleList):
    """Loss terms of the adaptations; ``targets`` has the unlabeled dataset of each, or None."""

    def __init__(
        self, adaptations: Sequence[Adaptation], train: LabeledDataset, model: TransferClassifier, seed: int
    ) -> None:
        super().__init__()
        self.domains: Tensor | None = None  # (n,) int64: source domain of each training item
        self.targets: list[Any] = []
        self._on_frozen: list[bool] = []
        head = model.head
        features = head.in_channels if isinstance(head, nn.Conv2d) else head.in_features
        with torch.random.fork_rng(devices=[]):
            # discriminators start at random, and the same seed gives the same ones
            torch.manual_seed(epoch_seed(seed, 0, _INITIAL_WEIGHTS))
            for adaptation in adaptations:
                domains = adaptation.source_domains(train)
                if domains is not None:
                    self.domains = domains
                count = 1 if domains is None else int(domains.max()) + 1
                term = adaptation.make_term(features, len(model.classes), count)
                if term is not None:
                    self.append(term)
                    self.targets.append(adaptation.target)
                    self._on_frozen.append(not adaptation.moves_backbone)

    def find_active(self, *, backbone_trained: bool) -> list[int]:
        """Return the numbers of the terms that have an effect; most have none on a frozen backbone."""
        return [n for n, on_frozen in enumerate(self._on_frozen) if on_frozen or backbone_trained]


def total_loss(
    terms: Sequence[AdaptationTerm],
    losses: Tensor,
    source: Side,
    targets: Sequence[Side | None],
    progress: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """
    Return the loss of several terms, each with its target, in which the classification loss counts once.

    Examples
    --------
    >>> side = Side(torch.zeros(2, 3), torch.zeros(2, 2))
    >>> total, parts = total_loss([AdaptationTerm(), AdaptationTerm()], torch.ones(2), side, [None, None], 0)
    >>> float(total), parts
    (1.0, {})
    """
    plain = losses.mean()
    if len(terms) == 1:
        total, parts = terms[0](losses, source, targets[0], progress)
        return total, parts
    whole, every = plain, {}
    for term, target in zip(terms, targets, strict=True):
        total, parts = term(losses, source, target, progress)
        whole = whole + (total - plain)
        every.update(parts)
    return whole, every
