"""Transforms of torchvision and MONAI, made for single pictures from 0 to 1, on normalized batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["LibraryTransform", "is_of_library", "same_shape"]


def is_of_library(choice: object) -> bool:
    """Whether something is a transform of torchvision or MONAI, or of a class made from one."""
    return _is_of(choice, "torchvision") or _is_of(choice, "monai")


def same_shape(changed: object, images: Tensor) -> Tensor:
    """
    Return a changed batch as a plain tensor.

    Raises
    ------
    TrainingError
        If it is none, or its shape is another one than before.
    """
    if not isinstance(changed, Tensor) or changed.shape != images.shape:
        found = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        raise TrainingError(
            f"the augmentation made {found} of a batch of shape {tuple(images.shape)}; it must give a "
            "tensor of the same shape"
        )
    return changed.as_subclass(Tensor)


@dataclass(frozen=True, slots=True)
class LibraryTransform:
    """
    A transform of another library, drawn anew for each sample; all slices of a bag change alike.

    Parameters
    ----------
    recipe : Preprocess
        What the pictures were normalized by; the transform gets them from 0 to 1, as such transforms expect.
    transform : callable
        torchvision's gets (3, H, W), or a bag (N, 3, H, W), which it changes as one; MONAI's gets (3, H, W),
        or (3 N, H, W), channels first.

    Raises
    ------
    TrainingError
        If it is one of MONAI's for dictionaries.
    """

    recipe: Preprocess
    transform: Callable[[Any], Any]

    def __post_init__(self) -> None:
        if any(cls.__name__ == "MapTransform" for cls in type(self.transform).__mro__):
            raise TrainingError(
                f"{type(self.transform).__name__} is for dictionaries; expected MONAI's transform of "
                "the same name without the d at its end"
            )

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """
        Change a batch.

        Parameters
        ----------
        images : Tensor
            (B, 3, H, W) or (B, N, 3, H, W), normalized.
        generator : torch.Generator, optional
            A generator of the CPU, from which each sample's seed is drawn.

        Returns
        -------
        Tensor
            Of the same shape and type.

        Raises
        ------
        TrainingError
            If the transform changes the shape.
        """
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (self.recipe.mean, self.recipe.std))
        seeds = torch.randint(2**31 - 1, (len(images),), generator=generator).tolist()
        with torch.random.fork_rng(devices=[]):
            changed = [
                self._one(sample, seed) for sample, seed in zip(images * std + mean, seeds, strict=True)
            ]
        return (torch.stack(changed).to(images) - mean) / std

    def _one(self, sample: Tensor, seed: int) -> Tensor:
        # the draws of torchvision are those of the CPU's global generator, MONAI's transforms have their own
        torch.default_generator.manual_seed(seed)
        if not _is_of(self.transform, "monai"):
            return same_shape(self.transform(sample), sample)
        if hasattr(self.transform, "set_random_state"):
            self.transform.set_random_state(seed=seed)
        planes = sample.flatten(0, -3)
        return same_shape(self.transform(planes), planes).view_as(sample)


def _is_of(transform: object, library: str) -> bool:
    return any(cls.__module__.startswith(f"{library}.transforms") for cls in type(transform).__mro__)
