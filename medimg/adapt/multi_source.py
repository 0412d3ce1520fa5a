"""Several sources: each has a distance of its own to the target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medimg._validation import check_choice, check_number, check_whole_number
from medimg.adapt.adversarial_losses import adversarial_loss, mdan_objective, ramp
from medimg.adapt.base import Adaptation, AdaptationTerm, Images, Side, the_target
from medimg.adapt.dann import discriminator
from medimg.adapt.distances import moment_distance
from medimg.adapt.domain_labels import domains_of
from medimg.errors import TrainingError

if TYPE_CHECKING:
    from medimg.adapt.domain_labels import DomainRule

__all__ = ["MultiSource", "MultiSourceMethod"]

#: How several sources are brought together with the target, and each other.
MultiSourceMethod: TypeAlias = Literal["m3sda", "mdan", "mdan-hard"]


def _sources(source: Side) -> list[tuple[int, Tensor]]:
    """Return which sources are in a batch, and which of its items are theirs."""
    if source.domains is None:
        return [(0, torch.ones(len(source.embeddings), dtype=torch.bool, device=source.embeddings.device))]
    return [(int(n), source.domains == n) for n in sorted(set(source.domains.tolist()))]


class _Moments(AdaptationTerm):
    """The moment distance."""

    def __init__(self, weight: float, *, relative: bool) -> None:
        super().__init__()
        self._weight, self._relative = weight, relative

    def forward(
        self, losses: Tensor, source: Side, target: Side | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the distance; see :class:`AdaptationTerm`."""
        several = [source.embeddings[where] for _, where in _sources(source)]
        distance = moment_distance(several, the_target(target).embeddings, relative=self._relative)
        return losses.mean() + self._weight * distance, {"m3sda": distance.detach()}


class _Bounds(AdaptationTerm):
    """A discriminator for each source, and the objective of MDAN."""

    def __init__(self, features: int, domains: int, settings: MultiSource) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(discriminator(features, settings.hidden) for _ in range(domains))
        self._weight = settings.strength
        self._gamma = settings.gamma if settings.method == "mdan" else None

    def forward(
        self, losses: Tensor, source: Side, target: Side | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the objective instead of the mean of the losses; see :class:`AdaptationTerm`."""
        other = the_target(target).embeddings
        present = _sources(source)
        by_source = torch.stack([losses[where].mean() for _, where in present])
        # the backbone is moved against discriminators as they are, these learn from embeddings as they are
        against = torch.stack([self._told(n, source.embeddings[w], other, held=True) for n, w in present])
        learning = torch.stack(
            [self._told(n, source.embeddings[w].detach(), other.detach()) for n, w in present]
        ).sum()
        strength = self._weight * ramp(progress)
        objective = mdan_objective(by_source, strength * against, gamma=self._gamma)
        absent = set(range(len(self.discriminators))) - {n for n, _ in present}
        # processes that train together wait for a gradient of every parameter
        idle = sum(
            (p.sum() for n in absent for p in self.discriminators[n].parameters()), losses.new_zeros(())
        )
        total = objective + (learning - learning.detach()) + 0.0 * idle
        return total, {"mdan": against.detach().mean()}

    def _told(self, number: int, source: Tensor, target: Tensor, *, held: bool = False) -> Tensor:
        judge = self.discriminators[number]
        both = torch.cat([source, target])
        if held:
            fixed = {name: parameter.detach() for name, parameter in judge.named_parameters()}
            logits = functional_call(judge, fixed, (both,))
        else:
            logits = judge(both)
        return adversarial_loss(logits[: len(source)], logits[len(source) :])


@dataclass(frozen=True, repr=False, eq=False)
class MultiSource(Adaptation):
    """
    Adaptation from several sources at once, such as scanners of several manufacturers.

    Parameters
    ----------
    target : ImageDataset
        Images of the target; its labels are never looked at.
    method : {"m3sda", "mdan", "mdan-hard"}
        "m3sda": moments of all sources and the target are brought together, see
        :func:`medimg.adapt.moment_distance` (Peng et al., ICCV 2019; its moment matching, without the pairs
        of classifiers of the variant "beta"). "mdan": a discriminator for each source, see
        :func:`medimg.adapt.mdan_objective` (Zhao et al., NeurIPS 2018, soft max); "mdan-hard": only the
        source with the worst bound counts in each step.
    domain : str, callable or sequence
        Which source each training item is of: a DICOM keyword, "column", a function of a series, or a name
        for each item; see :func:`medimg.adapt.domains_of`.
    weight : float, optional
        How much the distance counts, by default 0.1; or how strongly the backbone is trained against the
        discriminators in the end, by default 1.
    relative : bool
        For "m3sda": whether embeddings are taken in units of their own size, so that `weight` means the same
        for every network; without it, the distance is that of the paper.
    gamma : float
        For "mdan": how much more the worst sources count.
    hidden : int
        For "mdan": width of the discriminators' two inner layers.

    Raises
    ------
    TrainingError
        If a setting is unsound.

    Examples
    --------
    >>> import medimg
    >>> medimg.adapt.MultiSource([None, None], method="mdan", domain="column")
    MultiSource(target_items=2, method='mdan', domain='column', weight=None,
        relative=True, gamma=10.0, hidden=256)
    """

    target: Images = field()
    method: MultiSourceMethod = "m3sda"
    domain: DomainRule = "Manufacturer"
    weight: float | None = None
    relative: bool = True
    gamma: float = 10.0
    hidden: int = 256

    def __post_init__(self) -> None:
        check_choice("method", self.method, get_args(MultiSourceMethod))
        check_number("weight", self.strength, above=0)
        check_number("gamma", self.gamma, above=0)
        check_whole_number("hidden", self.hidden, least=1)

    @property
    def strength(self) -> float:
        """The weight, or its default."""
        if self.weight is not None:
            return self.weight
        return 0.1 if self.method == "m3sda" else 1.0

    def source_domains(self, train: Any) -> Tensor:
        """
        Return which source each training item is of; see :class:`Adaptation`.

        Raises
        ------
        TrainingError
            If there are less than two.
        """
        indices, names = domains_of(train, self.domain)
        if len(names) < 2:
            raise TrainingError(
                "MultiSource needs training data of two sources or more, and all of them are of one: take "
                "DANN or CORAL, or tell the sources apart by another domain="
            )
        return torch.from_numpy(indices)

    def make_term(self, features: int, classes: int, domains: int) -> AdaptationTerm:
        """Return the distance, or discriminators; see :class:`Adaptation`."""
        if self.method == "m3sda":
            return _Moments(self.strength, relative=self.relative)
        return _Bounds(features, domains, self)
