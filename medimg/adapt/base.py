"""What every way of adapting has in common, and what training asks of it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from medimg.errors import TrainingError
from medimg.preprocessing.preprocess import check_same_preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from medimg.preprocessing.preprocess import Preprocess

__all__ = [
    "Adaptation",
    "AdaptationTerm",
    "Images",
    "LossOf",
    "Side",
    "hold_statistics",
    "the_target",
    "total_loss",
]

#: The mean loss of a batch of images, as the model is now.
LossOf: TypeAlias = "Callable[[Tensor], Tensor]"


class Images(Protocol):
    """What adaptation asks of a data set; :class:`medimg.ImageDataset` is one."""

    @property
    def preprocess(self) -> Preprocess:
        """The recipe the items are made by."""

    @property
    def unit(self) -> str:
        """What an item is: ``"slice"`` or ``"series"``."""

    @property
    def patients(self) -> tuple[str, ...]:
        """Patient of each item. Never shown."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Any]: ...


class Side(NamedTuple):
    """
    A batch of the source, or of the target, as the head sees it.

    Attributes
    ----------
    embeddings : Tensor
        (B, F).
    logits : Tensor
        (B, K).
    labels : Tensor or None
        (B,) or (B, K); None for the target.
    domains : Tensor or None
        (B,) int64: which source each item is of; None where there is but one.
    """

    embeddings: Tensor
    logits: Tensor
    labels: Tensor | None = None
    domains: Tensor | None = None


class AdaptationTerm(nn.Module):
    """
    What a way of adapting adds to the loss; its own parameters are those of discriminators.

    The base class adds nothing.
    """

    def forward(
        self, losses: Tensor, source: Side, target: Side | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Return the loss to descend.

        Parameters
        ----------
        losses : Tensor
            (B,) classification losses of the source items; their mean is the loss of plain training.
        source : Side
            The labeled batch.
        target : Side or None
            The batch of the target; its size may be another one.
        progress : float
            How far training is, 0 to 1.

        Returns
        -------
        total : Tensor
            Scalar.
        parts : dict of str to Tensor
            Scalars without gradient, for the log.
        """
        return losses.mean(), {}


class Adaptation:
    """
    Base of all ways of adapting, as ``fine_tune(adapt=...)`` takes them.

    Subclasses are frozen dataclasses; what a method has no use for stays as it is here.

    Attributes
    ----------
    target : ImageDataset or None
        Images of the target; its labels are never looked at.
    moves_backbone : bool
        Whether the method has no effect on a frozen backbone.
    """

    target: Images | None = None
    moves_backbone: ClassVar[bool] = True

    def check(self, classes: Sequence[str], train: Any) -> None:
        """
        Refuse data that don't fit.

        Parameters
        ----------
        classes : sequence of str
            Of the model.
        train : ImageDataset
            The training data.

        Raises
        ------
        TrainingError
            If the target is empty, or made by another recipe or of other units than the training data.
        """
        target = self.target
        if target is None:
            return
        if not hasattr(target, "preprocess") or not hasattr(target, "__len__"):
            raise TrainingError(
                f"the target of {type(self).__name__} is a {type(target).__name__}; expected an ImageDataset"
            )
        if len(target) < 2:
            raise TrainingError(
                f"the target of {type(self).__name__} has {len(target)} item(s); expected at least 2"
            )
        check_same_preprocessing(
            target.preprocess,
            train.preprocess,
            name=f"the target of {type(self).__name__}",
            other="the training data",
            hint="use target.with_preprocess(train.preprocess)",
            error=TrainingError,
        )
        if target.unit != train.unit:
            raise TrainingError(
                f"the target of {type(self).__name__} gives items of unit={target.unit!r}, the training data "
                f"of {train.unit!r}: make both the same"
            )

    def check_model(self, model: nn.Module) -> None:
        """Refuse a network that the method can do nothing with; by default none is refused."""

    def source_domains(self, train: Any) -> Tensor | None:
        """
        Return which source each training item is of.

        Parameters
        ----------
        train : ImageDataset
            The training data.

        Returns
        -------
        Tensor or None
            (n,) int64 from 0; None where the method knows but one source.
        """
        return None

    def make_term(self, features: int, classes: int, domains: int) -> AdaptationTerm | None:
        """
        Return what is added to the loss.

        Parameters
        ----------
        features : int
            Length F of an embedding.
        classes : int
            Number K of outputs.
        domains : int
            Number of sources, 1 where the method knows but one.

        Returns
        -------
        AdaptationTerm or None
            None where the loss stays as it is.
        """
        return None

    def perturb(self, images: Tensor, loss_of: LossOf, recipe: Preprocess) -> Tensor:
        """
        Return the images to train on.

        Parameters
        ----------
        images : Tensor
            (B, 3, H, W) or (B, N, 3, H, W), normalized.
        loss_of : callable
            The loss of such images; the caller keeps statistics where they are, see
            ``hold_statistics``.
        recipe : Preprocess
            What the images were normalized by.

        Returns
        -------
        Tensor
            Of the same shape; by default the images as they are.
        """
        return images

    def finish(self, model: nn.Module, device: torch.device, batch_size: int, num_workers: int) -> None:
        """Do what is done once, after training; nothing by default."""

    def settings(self) -> dict[str, Any]:
        """
        Return the method and its settings: names and numbers only, nothing on the images.

        Returns
        -------
        dict
            Of values that JSON knows.
        """
        found: dict[str, Any] = {"name": type(self).__name__}
        for field in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, field.name)
            if field.name == "target":
                found.update({} if value is None else {"target_items": len(value)})
            elif value is None or isinstance(value, bool | int | float | str):
                found[field.name] = value
            elif isinstance(value, tuple) and all(isinstance(v, int | float) for v in value):
                found[field.name] = list(value)
            else:
                found[field.name] = "own"
        return found

    def __repr__(self) -> str:
        """Show the settings; of the target only its size."""
        settings = self.settings()
        name = settings.pop("name")
        return f"{name}({', '.join(f'{key}={value!r}' for key, value in settings.items())})"


def the_target(target: Side | None) -> Side:
    """
    Return the target's side, which the method can't do without.

    Raises
    ------
    TrainingError
        If there is none.
    """
    if target is None:
        raise TrainingError("this way of adapting needs a batch of the target in every step; found none")
    return target


def total_loss(
    terms: Sequence[AdaptationTerm],
    losses: Tensor,
    source: Side,
    targets: Sequence[Side | None],
    progress: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """
    Return the loss of several terms together: the classification loss counts once.

    Parameters
    ----------
    terms : sequence of AdaptationTerm
        Possibly none.
    losses, source, progress
        As a term takes them.
    targets : sequence of Side or None
        One for each term.

    Returns
    -------
    total : Tensor
        Scalar: the mean of the losses, and what each term adds to it.
    parts : dict of str to Tensor
        Of all terms.

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


@contextmanager
def hold_statistics(model: nn.Module) -> Iterator[None]:
    """
    Keep batch statistics and dropout still for a while: passes don't move them.

    Parameters
    ----------
    model : nn.Module
        All of it is in evaluation mode inside the block; each module's mode is restored.

    Examples
    --------
    >>> norm = nn.BatchNorm1d(2)
    >>> with hold_statistics(norm):
    ...     _ = norm(torch.randn(4, 2))
    >>> norm.running_mean.tolist(), norm.training
    ([0.0, 0.0], True)
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
