"""Interface between training and methods of domain adaptation."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from medimg.errors import TrainingError
from medimg.models.data_checks import check_images, check_same_unit
from medimg.preprocessing.preprocess import check_same_preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from medimg.preprocessing.preprocess import Preprocess

__all__ = [
    "Adaptation",
    "AdaptationTerm",
    "Images",
    "LossOf",
    "Side",
    "require_target",
]

#: Function from a batch of images to its mean loss with the current model.
LossOf: TypeAlias = "Callable[[Tensor], Tensor]"


class Images(Protocol):
    """Dataset of a target domain, such as :class:`medimg.ImageDataset`."""

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of the items."""

    @property
    def unit(self) -> str:
        """Type of an item: ``"image"`` or ``"series"``."""

    @property
    def patients(self) -> tuple[str, ...]:
        """Patient of each item. Never shown."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Any]: ...


class Side(NamedTuple):
    """
    Batch of the source or target domain, as the head sees it.

    Attributes
    ----------
    embeddings : Tensor
        (B, F) embeddings.
    logits : Tensor
        (B, K) logits.
    labels : Tensor or None
        (B,) class indices or (B, K) indicators; None for the target.
    domains : Tensor or None
        (B,) int64 source domain of each item; None for a single source.
    """

    embeddings: Tensor
    logits: Tensor
    labels: Tensor | None = None
    domains: Tensor | None = None


class AdaptationTerm(nn.Module):
    """
    Loss term of a method of domain adaptation; its parameters, such as those of a discriminator, are trained.

    The base class adds nothing to the classification loss.
    """

    def forward(
        self, losses: Tensor, source: Side, target: Side | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Return the total loss.

        Parameters
        ----------
        losses : Tensor
            (B,) classification losses of the source items; their mean is the loss without adaptation.
        source : Side
            Labeled batch of the source.
        target : Side or None
            Unlabeled batch of the target, possibly of another size.
        progress : float
            Completed share of the training, 0 to 1.

        Returns
        -------
        total : Tensor
            Scalar loss, classification included.
        parts : dict of str to Tensor
            Scalars without gradient, for logging.
        """
        return losses.mean(), {}


class Adaptation:
    """
    Base class of the methods that ``fine_tune(adapt=...)`` accepts.

    Subclasses are frozen dataclasses and override what they need.

    Attributes
    ----------
    target : ImageDataset or None
        Images of the target domain; labels are not used, and the images may have none
        (``ImageDataset.from_folder(folder, label=None)``).
    moves_backbone : bool
        Whether the method has no effect on a frozen backbone.
    """

    target: Images | None = None
    moves_backbone: ClassVar[bool] = True

    def check(self, classes: Sequence[str], train: Any) -> None:
        """
        Raise an error if the data are unsuitable.

        Parameters
        ----------
        classes : sequence of str
            Classes of the model.
        train : ImageDataset
            Training data.

        Raises
        ------
        TrainingError
            If the target has less than two items, or another preprocessing or unit than the training data.
        """
        target = self.target
        if target is None:
            return
        check_images(target, f"the target of {type(self).__name__}")
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
        check_same_unit(target, train, (f"the target data of {type(self).__name__}", "the training data"))

    def check_model(self, model: nn.Module) -> None:
        """Raise TrainingError if the method has no effect on a network; accept all by default."""

    def source_domains(self, train: Any) -> Tensor | None:
        """
        Return the source domain of each training item.

        Parameters
        ----------
        train : ImageDataset
            Training data.

        Returns
        -------
        Tensor or None
            (n,) int64 from 0; None if the method has a single source.
        """
        return None

    def make_term(self, features: int, classes: int, domains: int) -> AdaptationTerm | None:
        """
        Create the loss term.

        Parameters
        ----------
        features : int
            Length F of an embedding.
        classes : int
            Number K of outputs.
        domains : int
            Number of source domains.

        Returns
        -------
        AdaptationTerm or None
            None if the method does not change the loss.
        """
        return None

    def perturb(self, images: Tensor, loss_of: LossOf, recipe: Preprocess) -> Tensor:
        """
        Return the images to train on.

        Parameters
        ----------
        images : Tensor
            (B, C, H, W) or (B, N, C, H, W), normalized.
        loss_of : callable
            Function from such images to their mean loss; it does not update batch statistics.
        recipe : Preprocess
            Preprocessing with which the images were normalized.

        Returns
        -------
        Tensor
            Images of the same shape; by default unchanged.
        """
        return images

    def finish(self, model: nn.Module, device: torch.device, batch_size: int, workers: int) -> None:
        """Change the model once, after training; do nothing by default."""

    def settings(self) -> dict[str, Any]:
        """
        Return name and settings of the method, without information on the images.

        Returns
        -------
        dict
            JSON values by name.
        """
        found: dict[str, Any] = {"name": type(self).__name__}
        for field in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, field.name)
            if "before" in field.metadata and value == field.metadata["before"]:
                continue  # as in files of versions without this setting
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
        """Return name and settings, of the target only its size."""
        settings = self.settings()
        name = settings.pop("name")
        return f"{name}({', '.join(f'{key}={value!r}' for key, value in settings.items())})"


def require_target(target: Side | None) -> Side:
    """Return the batch of the target; raise TrainingError if there is none."""
    if target is None:
        raise TrainingError("this method of adaptation needs a batch of the target in every step; found none")
    return target
