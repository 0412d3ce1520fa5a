"""Discrepancy-based adaptation: CORAL, MMD."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, get_args

from medimg._validation import check_choice, check_number
from medimg.adapt.base import Adaptation, AdaptationTerm, Images, Side, require_target
from medimg.adapt.distances import BANDWIDTHS, Estimate, coral_loss, mmd_loss
from medimg.adapt.term_weight import TermWeight, cap_field, check_cap, ramped_field

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["CORAL", "MMD"]


class _DistanceTerm(AdaptationTerm):
    """Weighted distance of the embeddings."""

    def __init__(self, name: str, weight: TermWeight, distance: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._name, self._weight, self._distance = name, weight, distance

    def forward(
        self, losses: Tensor, source: Side, target: Side | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the distance; see :class:`AdaptationTerm`."""
        distance = self._distance(source.embeddings, require_target(target).embeddings)
        weight = self._weight.at(progress, losses, distance, source.embeddings)
        return losses.mean() + weight * distance, {self._name: distance.detach()}


@dataclass(frozen=True, repr=False, eq=False)
class CORAL(Adaptation):
    """
    Deep CORAL: alignment of the covariances of source and target.

    Sun and Saenko, ECCV Workshops 2016; see :func:`medimg.adapt.coral_loss`.

    Parameters
    ----------
    target : ImageDataset
        Images of the target domain; their labels are not used.
    weight : float
        Weight of the distance relative to the classification loss.
    relative : bool
        Whether to divide the distance by the size of the covariances, so that `weight` has the same meaning
        for every network; otherwise it is that of the paper, which depends on the scale of the embeddings.
    ramped : bool
        Whether the weight is ramped up from 0 (:func:`medimg.adapt.ramp`).
    cap : float, optional
        Largest norm of the gradient of the weighted distance relative to that of the classification loss,
        both with respect to the embeddings of the source; by default unlimited.

    Raises
    ------
    TrainingError
        If the weight is not positive.

    Examples
    --------
    >>> import medimg
    >>> medimg.adapt.CORAL([None, None], weight=5.0)
    CORAL(target_items=2, weight=5.0, relative=True)
    """

    target: Images = field()
    weight: float = 0.1
    relative: bool = True
    ramped: bool = ramped_field()
    cap: float | None = cap_field()

    def __post_init__(self) -> None:
        check_number("weight", self.weight, above=0)
        check_cap(self.ramped, self.cap)

    def make_term(self, features: int, classes: int, domains: int) -> AdaptationTerm:
        """Create the weighted distance; see :class:`Adaptation`."""
        weight = TermWeight(self.weight, self.ramped, self.cap)
        return _DistanceTerm("coral", weight, partial(coral_loss, relative=self.relative))


@dataclass(frozen=True, repr=False, eq=False)
class MMD(Adaptation):
    """
    Alignment of the distributions of source and target by the maximum mean discrepancy.

    See :func:`medimg.adapt.mmd_loss`.

    Parameters
    ----------
    target : ImageDataset
        Images of the target domain; their labels are not used.
    weight : float
        Weight of the discrepancy relative to the classification loss.
    bandwidths : tuple of float
        Widths of the Gaussian kernels, as multiples of the median squared distance in the batch.
    estimate : {"unbiased", "biased"}
        Estimator of the squared discrepancy.
    ramped : bool
        Whether the weight is ramped up from 0 (:func:`medimg.adapt.ramp`).
    cap : float, optional
        Largest norm of the gradient of the weighted distance relative to that of the classification loss,
        both with respect to the embeddings of the source; by default unlimited.

    Raises
    ------
    TrainingError
        If a setting is invalid.

    Examples
    --------
    >>> import medimg
    >>> medimg.adapt.MMD([None, None], bandwidths=(1.0,))
    MMD(target_items=2, weight=1.0, bandwidths=[1.0], estimate='unbiased')
    """

    target: Images = field()
    weight: float = 1.0
    bandwidths: tuple[float, ...] = BANDWIDTHS
    estimate: Estimate = "unbiased"
    ramped: bool = ramped_field()
    cap: float | None = cap_field()

    def __post_init__(self) -> None:
        object.__setattr__(self, "bandwidths", tuple(self.bandwidths))
        check_number("weight", self.weight, above=0)
        check_number("bandwidths", min(self.bandwidths, default=0.0), above=0)
        check_choice("estimate", self.estimate, get_args(Estimate))
        check_cap(self.ramped, self.cap)

    def make_term(self, features: int, classes: int, domains: int) -> AdaptationTerm:
        """Create the weighted discrepancy; see :class:`Adaptation`."""
        discrepancy = partial(mmd_loss, bandwidths=self.bandwidths, estimate=self.estimate)
        return _DistanceTerm("mmd", TermWeight(self.weight, self.ramped, self.cap), discrepancy)
