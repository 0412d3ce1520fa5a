"""Random changes that a scan might have come with, made on batches, on the model's device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from medimg.errors import TrainingError
from medimg.training.augmentation._library_transforms import (
    LibraryTransform,
    is_of_library,
    same_shape,
)
from medimg.training.augmentation._mr import (
    bias_fields,
    coefficients_of,
    draw_seeds,
    normal_pairs,
    with_rician_noise,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["AugmentChoice", "RandomScanChanges", "make_augmentation"]

#: What ``augment=`` takes.
AugmentChoice: TypeAlias = (
    Literal["auto", "geometric", "CT", "MR", "CR", "DX", "IO", "MG", "PX", "RF", "XA"]
    | Callable[[Tensor], Any]
    | None
)

_XRAY: Final = {"gamma": 0.25}
#: By modality: what is changed beside place and brightness.
_BY_MODALITY: Final[dict[str, dict[str, float]]] = {
    "MR": {"bias": 0.1, "rician": 0.05},
    "CT": {"noise": 0.02},
    **dict.fromkeys(("CR", "DX", "IO", "MG", "PX", "RF", "XA"), _XRAY),
}
_BIAS_DEGREE: Final = 3
# a cache rounds brightness to steps of 1/255
_ROUNDED: Final = 0.75 / 255.0


@dataclass(frozen=True, slots=True)
class RandomScanChanges:
    """
    Turn, shift, scale and re-light pictures a little, each sample in its own way.

    There is no mirroring: left and right differ in the body. All slices of one series change alike, noise
    included. Black stays black, and what a picture was padded with stays as it is: rows and columns at its
    edges that are background all along.

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
    gamma : float
        Largest exponent that brightness is raised to, less 1; the smallest is the inverse of that exponent.
    bias : float
        Largest coefficient of a smooth field of degree 3 that brightness is multiplied by; see
        ``medimg.training.augmentation._mr.bias_fields``.
    rician : float
        Largest standard deviation of Rician noise.
    noise : float
        Largest standard deviation of Gaussian noise.

    Examples
    --------
    >>> from medimg import Preprocess
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
    gamma: float = 0.0
    bias: float = 0.0
    rician: float = 0.0
    noise: float = 0.0

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
        draws = _Draws.make(len(images), generator, images.shape[1] if images.ndim == 5 else 1)
        planes = images.flatten(0, 1) if images.ndim == 5 else images
        with _full_precision(images.device):
            changed = self._changed(planes if planes.element_size() > 2 else planes.float(), draws)
        return changed.to(images.dtype).reshape(images.shape)

    def _changed(self, planes: Tensor, draws: _Draws) -> Tensor:
        mean, std = (planes.new_tensor(v).view(3, 1, 1) for v in (self.recipe.mean, self.recipe.std))
        background = self.recipe.background.to(planes)
        content, inside = self._moved(planes - background, _ROUNDED / std, draws)
        lit = self._lit(content * std + self.recipe.fill_value, draws)
        return torch.lerp(background, (lit - mean) / std, inside)

    def _moved(self, content: Tensor, least: Tensor, draws: _Draws) -> tuple[Tensor, Tensor]:
        """Return what is not padding, where it moves to, and how much of each pixel it covers."""
        inside = _extent((content.abs() > least).any(dim=1)).to(content)
        grid = F.affine_grid(self._theta(content, draws), list(content.shape), align_corners=False)
        # outside of the picture are zeros, which is the background here
        moved = F.grid_sample(torch.cat([content, inside], dim=1), grid, align_corners=False)
        content, inside = moved[:, :3], moved[:, 3:]
        return content / inside.clamp_min(1e-3), inside

    def _theta(self, planes: Tensor, draws: _Draws) -> Tensor:
        height, width = planes.shape[-2:]
        angle = draws.signed[:, 0] * math.radians(self.rotation)
        zoom = 1.0 / (1.0 + draws.signed[:, 1] * self.scale)
        shifts = draws.signed[:, 2:4] * self.shift * 2.0  # grid coordinates run from -1 to 1
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        # coordinates are shares of each side: turning a picture that is not square needs its aspect
        aspect = height / width
        rows = [cos, -sin * aspect, shifts[:, 0]], [sin / aspect, cos, shifts[:, 1]]
        return draws.of_slices(torch.stack([torch.stack(row, dim=1) for row in rows], dim=1), planes)

    def _lit(self, pictures: Tensor, draws: _Draws) -> Tensor:
        """Change brightness as the scanner would, then as who chose the window."""
        size = pictures.shape[-2:]

        def each(values: Tensor) -> Tensor:
            return draws.of_slices(values.view(-1, 1, 1, 1), pictures)

        def normal(largest: float, seeds: Tensor) -> list[Tensor]:
            spread = (draws.spread * largest).view(-1, 1, 1, 1).to(pictures)
            fields = normal_pairs(seeds.to(pictures.device), *size)
            return [draws.of_slices(field * spread, pictures) for field in fields]

        if self.bias:
            fields = bias_fields((draws.coefficients * self.bias).to(pictures.device), *size)
            pictures = pictures * draws.of_slices(fields, pictures)
        if self.rician:
            pictures = with_rician_noise(pictures, *normal(self.rician, draws.seeds[:, 0]))
        if self.noise:
            pictures = pictures + normal(self.noise, draws.seeds[:, 1])[0]
        if self.gamma:
            exponents = torch.exp(draws.exponent * math.log1p(self.gamma))
            pictures = pictures.clamp(0.0, 1.0).pow(each(exponents))
        brightness = each(draws.signed[:, 4] * self.brightness)
        contrast = each(1.0 + draws.signed[:, 5] * self.contrast)
        more = (pictures - 0.5) * (contrast - 1.0) + brightness
        # black stays black, as with any other window; darker than this, less is added, so that order is kept
        full = 2.0 * self.brightness + self.contrast
        if full:
            more = more * (pictures / full).clamp(0.0, 1.0)
        return (pictures + more).clamp(0.0, 1.0)


@dataclass(frozen=True, slots=True)
class _Draws:
    """All random numbers of a batch, made on the CPU; one row for each sample."""

    signed: Tensor
    exponent: Tensor
    coefficients: Tensor
    spread: Tensor
    seeds: Tensor
    slices: int

    @classmethod
    def make(cls, samples: int, generator: torch.Generator | None, slices: int) -> _Draws:
        """Draw for so many samples; what is drawn does not depend on what is used."""
        return cls(
            signed=2.0 * torch.rand(samples, 6, generator=generator) - 1.0,
            exponent=2.0 * torch.rand(samples, generator=generator) - 1.0,
            coefficients=torch.rand(samples, coefficients_of(_BIAS_DEGREE), generator=generator),
            spread=torch.rand(samples, generator=generator),
            seeds=draw_seeds(2 * samples, generator).view(samples, 2),
            slices=slices,
        )

    def of_slices(self, values: Tensor, like: Tensor) -> Tensor:
        """Repeat each sample's values for all of its slices, on the device where they are used."""
        return values.to(like).repeat_interleave(self.slices, dim=0) if self.slices > 1 else values.to(like)


def _extent(covered: Tensor) -> Tensor:
    """Return which pixels (B, 1, H, W) lie between the outermost rows and columns with something in them."""

    def between(line: Tensor) -> Tensor:
        from_start = line.cumsum(dim=1) > 0
        from_end = line.flip(1).cumsum(dim=1).flip(1) > 0
        return from_start & from_end

    rows, columns = between(covered.any(dim=2)), between(covered.any(dim=1))
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)


def _full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Keep mixed precision away: with 8 bits of a coordinate, pixels would jump."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def make_augmentation(
    choice: AugmentChoice, recipe: Preprocess, modalities: Sequence[str] = ()
) -> Callable[[Tensor, torch.Generator], Tensor] | None:
    """
    Return a function of a batch and a generator.

    Parameters
    ----------
    choice : "auto", "geometric", modality, callable or None
        "auto": turns, shifts, scales, brightness and contrast; where all data are of one kind also what is
        typical of it: for MR an uneven brightness and Rician noise, for CT a little Gaussian noise, for
        X-rays and pictures that name no modality another gamma. "geometric": turns, shifts and scales. The
        name of a modality ("CT", "MR", "DX", …): as "auto" for data of that one. A transform of torchvision
        or MONAI: on each sample by itself, with brightness from 0 to 1. Another callable takes and gives a
        normalized batch; its randomness is torch's global one, which :func:`medimg.fine_tune` seeds. None: no
        augmentation.
    recipe : Preprocess
        The model's.
    modalities : sequence of str
        Those of the training data, in any order and number; "" where none is known. A batch does not say
        what it holds, so that data of several kinds get only what suits all.

    Returns
    -------
    callable or None

    Raises
    ------
    TrainingError
        If it is none of these, or later if a callable changes the shape of a batch.

    Examples
    --------
    >>> from medimg import Preprocess
    >>> make_augmentation("auto", Preprocess(), ["CT", "CT"]).noise
    0.02
    """
    if choice is None:
        return None
    if isinstance(choice, str):
        return RandomScanChanges(recipe, **_settings(choice, modalities))
    if not callable(choice):
        raise _unknown(choice)
    if is_of_library(choice):
        return LibraryTransform(recipe, choice)

    def checked(images: Tensor, _: torch.Generator) -> Tensor:
        return same_shape(choice(images), images)

    return checked


def _settings(choice: str, modalities: Sequence[str]) -> dict[str, float]:
    if choice == "geometric":
        return {"brightness": 0.0, "contrast": 0.0}
    if choice in _BY_MODALITY:
        return _BY_MODALITY[choice]
    if choice != "auto":
        raise _unknown(choice)
    # pictures without a modality are changed as X-rays are: gamma does no harm to anything
    kinds = [_XRAY if name == "" else _BY_MODALITY.get(name, {}) for name in set(modalities)]
    return kinds[0] if kinds and all(kind == kinds[0] for kind in kinds) else {}


def _unknown(choice: object) -> TrainingError:
    names = ", ".join(map(repr, ("auto", "geometric", *_BY_MODALITY)))
    found = repr(choice) if isinstance(choice, str) else f"a {type(choice).__name__}"
    return TrainingError(f"augment is one of {names}, a function of a batch, or None; found {found}")
