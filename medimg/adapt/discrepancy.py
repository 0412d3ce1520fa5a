"""Methods that move statistics of the embeddings of source and target together."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, get_args

from medimg._validation import check_choice, check_number
from medimg.adapt.base import Adaptation, AdaptationTerm, Images, Side, the_target
from medimg.adapt.distances import BANDWIDTHS, Estimate, coral_loss, mmd_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["CORAL", "MMD"]


class _Distance(AdaptationTerm):
    """A distance of the embeddings, weighed."""

    def __init__(self, name: str, weight: float, distance: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._name, self._weight, self._distance = name, weight, distance

    def forward(
        self, losses: Tensor, source: Side, target: Side | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the distance; see :class:`AdaptationTerm`."""
        distance = self._distance(source.embeddings, the_target(target).embeddings)
        return losses.mean() + self._weight * distance, {self._name: distance.detach()}


@dataclass(frozen=True, repr=False, eq=False)
class CORAL(Adaptation):
    """
    Deep CORAL: source and target get the same covariances.

    Sun and Saenko, ECCV Workshops 2016; see :func:`medimg.adapt.coral_loss`.

    Parameters
    ----------
    target : ImageDataset
        Images of the target; its labels are never looked at.
    weight : float
        How much the distance counts against the classification loss.
    relative : bool
        Whether the distance is one of shares of the covariances, so that `weight` means the same for every
        network; without it, it is that of the paper, whose scale is that of the embeddings.

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

    def __post_init__(self) -> None:
        check_number("weight", self.weight, above=0)

    def make_term(self, features: int, classes: int, domains: int) -> AdaptationTerm:
        """Return the weighed distance; see :class:`Adaptation`."""
        return _Distance("coral", self.weight, partial(coral_loss, relative=self.relative))


@dataclass(frozen=True, repr=False, eq=False)
class MMD(Adaptation):
    """
    Maximum mean discrepancy, by several Gaussian kernels: source and target get the same distribution.

    See :func:`medimg.adapt.mmd_loss`.

    Parameters
    ----------
    target : ImageDataset
        Images of the target; its labels are never looked at.
    weight : float
        How much the discrepancy counts against the classification loss.
    bandwidths : tuple of float
        Widths of the kernels, as multiples of the median squared distance in the batch.
    estimate : {"unbiased", "biased"}
        Of the squared discrepancy.

    Raises
    ------
    TrainingError
        If a setting is unsound.

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "bandwidths", tuple(self.bandwidths))
        check_number("weight", self.weight, above=0)
        check_number("bandwidths", min(self.bandwidths, default=0.0), above=0)
        check_choice("estimate", self.estimate, get_args(Estimate))

    def make_term(self, features: int, classes: int, domains: int) -> AdaptationTerm:
        """Return the weighed discrepancy; see :class:`Adaptation`."""
        discrepancy = partial(mmd_loss, bandwidths=self.bandwidths, estimate=self.estimate)
        return _Distance("mmd", self.weight, discrepancy)
