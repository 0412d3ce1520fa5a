"""Loss terms of domain adaptation, as one training uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from medimg.data.dataloader import epoch_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medimg.adapt.base import Adaptation
    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier

__all__ = ["AdaptationTerms"]

#: Seed purpose of the initial weights; 0 to 3 are those of an epoch, see ``_lightning_module``.
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
