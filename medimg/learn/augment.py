"""Random changes that a scan might have come with, made on batches, on the model's device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from medimg.prep import Preprocess

__all__ = ["AugmentChoice", "RandomScanChanges", "make_augmentation"]

#: What ``augment=`` takes.
AugmentChoice: TypeAlias = Literal["auto"] | Callable[[Tensor], Tensor] | None


@dataclass(frozen=True, slots=True)
class RandomScanChanges:
    """
    Turn, shift, scale and re-light pictures a little, each sample in its own way.

    There is no mirroring: left and right differ in the body. All slices of one series change alike.

    Parameters
    ----------
    recipe : Preprocess
        What the pictures were normalized by: its background fills what moves into the picture, and brightness
        is changed in its range of 0 to 1.
    rotation : float
        Largest angle, in degrees, either way.
    shift : float
        Largest shift, as a share of the picture's side.
    scale : float
        Largest change of scale, as a share.
    brightness : float
        Largest change of brightness, where black is 0 and white is 1.
    contrast : float
        Largest change of contrast, as a share, about mid-gray.

    Examples
    --------
    >>> from medimg.prep import Preprocess
    >>> changes = RandomScanChanges(Preprocess(size=32))
    >>> batch = torch.zeros(2, 3, 32, 32)
    >>> tuple(changes(batch, torch.Generator().manual_seed(0)).shape)
    (2, 3, 32, 32)
    """

    recipe: Preprocess
    rotation: float = 10.0
    shift: float = 0.05
    scale: float = 0.10
    brightness: float = 0.10
    contrast: float = 0.10

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """
        Change a batch.

        Parameters
        ----------
        images : Tensor
            (B, 3, H, W) or (B, N, 3, H, W), normalized.
        generator : torch.Generator, optional
            A generator of the CPU, whatever the device of the images: the same seed gives the same changes.

        Returns
        -------
        Tensor
            Of the same shape and type.
        """
        draws = 2.0 * torch.rand(images.shape[0], 6, generator=generator) - 1.0
        per_sample = images.shape[1] if images.ndim == 5 else 1
        draws = draws.repeat_interleave(per_sample, dim=0)
        planes = images.flatten(0, 1) if images.ndim == 5 else images
        changed = self._relit(self._moved(planes, draws), draws)
        return changed.view_as(images)

    def _moved(self, planes: Tensor, draws: Tensor) -> Tensor:
        height, width = planes.shape[-2:]
        angle = draws[:, 0] * math.radians(self.rotation)
        zoom = 1.0 / (1.0 + draws[:, 1] * self.scale)
        shifts = draws[:, 2:4] * self.shift * 2.0  # grid coordinates run from -1 to 1
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        # coordinates are shares of each side: turning a picture that is not square needs its aspect
        aspect = height / width
        theta = torch.stack(
            [
                torch.stack([cos, -sin * aspect, shifts[:, 0]], dim=1),
                torch.stack([sin / aspect, cos, shifts[:, 1]], dim=1),
            ],
            dim=1,
        ).to(planes)
        grid = F.affine_grid(theta, list(planes.shape), align_corners=False)
        # grid_sample pads with zeros: make the background zero for a moment
        background = self.recipe.background.to(planes)
        return F.grid_sample(planes - background, grid, align_corners=False) + background

    def _relit(self, planes: Tensor, draws: Tensor) -> Tensor:
        mean, std = (planes.new_tensor(v).view(1, 3, 1, 1) for v in (self.recipe.mean, self.recipe.std))
        brightness = (draws[:, 4] * self.brightness).to(planes).view(-1, 1, 1, 1)
        contrast = (1.0 + draws[:, 5] * self.contrast).to(planes).view(-1, 1, 1, 1)
        pictures = (planes * std + mean - 0.5) * contrast + 0.5 + brightness
        return (pictures.clamp(0.0, 1.0) - mean) / std


def make_augmentation(
    choice: AugmentChoice, recipe: Preprocess
) -> Callable[[Tensor, torch.Generator], Tensor] | None:
    """
    Return a function of a batch and a generator.

    Parameters
    ----------
    choice : "auto", callable or None
        A callable of one's own takes and gives a batch; its randomness is torch's global one, which
        :func:`medimg.fine_tune` seeds. None: no augmentation.
    recipe : Preprocess
        The model's.

    Raises
    ------
    TrainingError
        If it is none of these, or later if a callable changes the shape of a batch.
    """
    if choice is None:
        return None
    if choice == "auto":
        return RandomScanChanges(recipe)
    if not callable(choice):
        raise TrainingError(f'augment is "auto", None or a function of a batch; found {choice!r}')

    def checked(images: Tensor, _: torch.Generator) -> Tensor:
        changed = choice(images)
        if not isinstance(changed, Tensor) or changed.shape != images.shape:
            found = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise TrainingError(
                f"the augmentation made {found} of a batch of shape {tuple(images.shape)}; it must give a "
                "tensor of the same shape"
            )
        return changed

    return checked
