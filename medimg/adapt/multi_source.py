"""Adaptation from several source domains: M3SDA, MDAN."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medimg._validation import check_choice, check_number, check_whole_number
from medimg.adapt.adversarial_losses import adversarial_loss, mdan_objective, ramp
from medimg.adapt.base import Adaptation, AdaptationTerm, Images, Side, require_target
from medimg.adapt.dann import make_discriminator
from medimg.adapt.distances import moment_distance
from medimg.adapt.domain_labels import domains_of
from medimg.adapt.term_weight import TermWeight, cap_field, check_cap, ramped_field
from medimg.errors import TrainingError

if TYPE_CHECKING:
    from medimg.adapt.domain_labels import DomainRule

__all__ = ["MultiSource", "MultiSourceMethod"]

#: Methods of adaptation from several sources.
MultiSourceMethod: TypeAlias = Literal["m3sda", "mdan", "mdan-hard"]


def _split_sources(source: Side) -> list[tuple[int, Tensor]]:
    """Return the number of each source in a batch, and a mask (B,) of its items."""
    if source.domains is None:
        return [(0, torch.ones(len(source.embeddings), dtype=torch.bool, device=source.embeddings.device))]
    return [(int(n), source.domains == n) for n in sorted(set(source.domains.tolist()))]


class _MomentTerm(AdaptationTerm):
    """Moment distance of M3SDA."""

    def __init__(self, weight: TermWeight, *, relative: bool) -> None:
        super().__init__()
        self._weight, self._relative = weight, relative

    def forward(
        self, losses: Tensor, source: Side, target: Side | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the distance; see :class:`AdaptationTerm`."""
        several = [source.embeddings[where] for _, where in _split_sources(source)]
        distance = moment_distance(several, require_target(target).embeddings, relative=self._relative)
        weight = self._weight.at(progress, losses, distance, source.embeddings)
        return losses.mean() + weight * distance, {"m3sda": distance.detach()}


class _MDANTerm(AdaptationTerm):
    """Discriminator for each source, and the objective of MDAN."""

    def __init__(self, features: int, domains: int, settings: MultiSource) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(
            make_discriminator(features, settings.hidden) for _ in range(domains)
        )
        self._weight = settings.strength
        self._gamma = settings.gamma if settings.method == "mdan" else None

    def forward(
        self, losses: Tensor, source: Side, target: Side | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the objective instead of the mean of the losses; see :class:`AdaptationTerm`."""
        other = require_target(target).embeddings
        present = _split_sources(source)
        by_source = torch.stack([losses[where].mean() for _, where in present])
        # two passes: the backbone is trained with fixed discriminators, these with fixed embeddings
        against = torch.stack(
            [self._discriminate(n, source.embeddings[w], other, fixed=True) for n, w in present]
        )
        learning = torch.stack(
            [self._discriminate(n, source.embeddings[w].detach(), other.detach()) for n, w in present]
        ).sum()
        strength = self._weight * ramp(progress)
        objective = mdan_objective(by_source, strength * against, gamma=self._gamma)
        absent = set(range(len(self.discriminators))) - {n for n, _ in present}
        # distributed training waits for a gradient of every parameter
        idle = sum(
            (p.sum() for n in absent for p in self.discriminators[n].parameters()), losses.new_zeros(())
        )
        total = objective + (learning - learning.detach()) + 0.0 * idle
        return total, {"mdan": against.detach().mean()}

    def _discriminate(self, number: int, source: Tensor, target: Tensor, *, fixed: bool = False) -> Tensor:
        """Return the loss of a source's discriminator, whose parameters are `fixed` or trained."""
        network = self.discriminators[number]
        both = torch.cat([source, target])
        if fixed:
            parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
            logits = functional_call(network, parameters, (both,))
        else:
            logits = network(both)
        return adversarial_loss(logits[: len(source)], logits[len(source) :])


@dataclass(frozen=True, repr=False, eq=False)
class MultiSource(Adaptation):
    """
    Adaptation from several source domains, such as scanners of several manufacturers.

    Parameters
    ----------
    target : ImageDataset
        Images of the target domain; their labels are not used.
    method : {"m3sda", "mdan", "mdan-hard"}
        Method. "m3sda": moment matching of all sources and the target, see
        :func:`medimg.adapt.moment_distance` (Peng et al., ICCV 2019, without the classifier pairs of the
        variant "beta"). "mdan": a discriminator for each source, see :func:`medimg.adapt.mdan_objective`
        (Zhao et al., NeurIPS 2018, soft max). "mdan-hard": only the source with the worst bound counts in
        each step.
    domain : str, callable or sequence
        Source of each training item: a DICOM keyword, "column", a function of a series, or a name for each
        item; see :func:`medimg.adapt.domains_of`.
    weight : float, optional
        Weight of the distance, by default 0.1; or final weight of the reversed gradient, by default 1.
    relative : bool
        For "m3sda": whether to scale embeddings by their root mean square, so that `weight` has the same
        meaning for every network; otherwise the distance is that of the paper.
    gamma : float
        For "mdan": sharpness of the soft maximum over sources.
    hidden : int
        For "mdan": width of the discriminators' two hidden layers.
    ramped, cap : bool and float, optional
        For "m3sda": as of :class:`CORAL`. The weight of "mdan" is always ramped up.

    Raises
    ------
    TrainingError
        If a setting is invalid.

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
    ramped: bool = ramped_field()
    cap: float | None = cap_field()

    def __post_init__(self) -> None:
        check_choice("method", self.method, get_args(MultiSourceMethod))
        check_number("weight", self.strength, above=0)
        check_number("gamma", self.gamma, above=0)
        check_whole_number("hidden", self.hidden, least=1)
        check_cap(self.ramped, self.cap)

    @property
    def strength(self) -> float:
        """Weight, or its default."""
        if self.weight is not None:
            return self.weight
        return 0.1 if self.method == "m3sda" else 1.0

    def source_domains(self, train: Any) -> Tensor:
        """
        Return the source domain of each training item; see :class:`Adaptation`.

        Raises
        ------
        TrainingError
            If there are less than two domains.
        """
        indices, names = domains_of(train, self.domain)
        if len(names) < 2:
            raise TrainingError(
                "MultiSource needs training data from at least two sources; found one: use DANN or CORAL, or "
                "distinguish the sources by another domain="
            )
        return torch.from_numpy(indices)

    def make_term(self, features: int, classes: int, domains: int) -> AdaptationTerm:
        """Create the distance, or discriminators; see :class:`Adaptation`."""
        if self.method == "m3sda":
            weight = TermWeight(self.strength, self.ramped, self.cap)
            return _MomentTerm(weight, relative=self.relative)
        return _MDANTerm(features, domains, self)
