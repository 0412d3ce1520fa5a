"""Transforms of torchvision and MONAI, applied to normalized batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["LibraryTransform", "check_shape", "is_library_transform"]


def is_library_transform(choice: object) -> bool:
    """Return whether an object is a transform of torchvision or MONAI, or of a subclass of one."""
    return _is_of(choice, "torchvision") or _is_of(choice, "monai")


def check_shape(changed: object, images: Tensor) -> Tensor:
    """Return an augmented batch as a plain tensor; raise TrainingError if it is none of the same shape."""
    if not isinstance(changed, Tensor) or changed.shape != images.shape:
        found = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        raise TrainingError(
            f"the augmentation returned {found} for a batch of shape {tuple(images.shape)}; expected a "
            "tensor of the same shape"
        )
    if not changed.is_floating_point():
        raise TrainingError(
            f"the augmentation returned {changed.dtype} for a batch of {images.dtype}; expected normalized "
            "intensities of a floating-point type"
        )
    return changed.as_subclass(Tensor)


@dataclass(frozen=True, slots=True)
class LibraryTransform:
    """
    Transform of another library, with random numbers of its own for each sample; a bag changes as one.

    It receives intensities from 0 to 1: torchvision's as (C, H, W) or (N, C, H, W), MONAI's as (C, H, W) or
    (C N, H, W).
    """

    recipe: Preprocess
    transform: Callable[[Any], Any]

    def __post_init__(self) -> None:
        if any(cls.__name__ == "MapTransform" for cls in type(self.transform).__mro__):
            raise TrainingError(
                f"{type(self.transform).__name__} is a dictionary transform; expected MONAI's array "
                "transform, of the same name without the d at the end"
            )

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Transform normalized images (B, C, H, W) or (B, N, C, H, W); the generator is of the CPU."""
        mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in self.recipe.normalization)
        seeds = torch.randint(2**31 - 1, (len(images),), generator=generator).tolist()
        with torch.random.fork_rng(devices=[]):
            changed = [
                self._transform_sample(sample, seed)
                for sample, seed in zip(images * std + mean, seeds, strict=True)
            ]
        return (torch.stack(changed).to(images) - mean) / std

    def _transform_sample(self, sample: Tensor, seed: int) -> Tensor:
        # torchvision uses the CPU's global generator, MONAI's transforms have their own
        torch.default_generator.manual_seed(seed)
        if not _is_of(self.transform, "monai"):
            return check_shape(self.transform(sample), sample)
        if hasattr(self.transform, "set_random_state"):
            self.transform.set_random_state(seed=seed)
        channels = sample.flatten(0, -3)
        return check_shape(self.transform(channels), channels).view_as(sample)


def _is_of(transform: object, library: str) -> bool:
    return any(cls.__module__.startswith(f"{library}.transforms") for cls in type(transform).__mro__)
