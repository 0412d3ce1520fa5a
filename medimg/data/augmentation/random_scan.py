"""Random augmentation of batches of scans, on the device of the model."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medimg.core.content_hash import describe_callable, name_callable
from medimg.data.augmentation._mr import (
    add_rician_noise,
    bias_fields,
    count_coefficients,
    draw_seeds,
    normal_pairs,
)
from medimg.data.augmentation.library_transforms import (
    LibraryTransform,
    check_shape,
    is_library_transform,
)
from medimg.errors import MedimgError, TrainingError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["AugmentChoice", "RandomScanAugmentation", "describe_augmentation", "make_augmentation"]

#: Values of ``augment=``.
AugmentChoice: TypeAlias = (
    Literal["auto", "geometric", "CT", "MR", "CR", "DX", "IO", "MG", "PX", "RF", "XA"]
    | Callable[[Tensor], Any]
    | None
)

_XRAY: Final = {"gamma": 0.25}
#: By modality: settings besides those of geometry and intensity.
_BY_MODALITY: Final[dict[str, dict[str, float]]] = {
    "MR": {"bias": 0.1, "rician": 0.05},
    "CT": {"noise": 0.02},
    **dict.fromkeys(("CR", "DX", "IO", "MG", "PX", "RF", "XA"), _XRAY),
}
_BIAS_DEGREE: Final = 3
# a cache rounds intensities to steps of 1/255
_ROUNDED: Final = 0.75 / 255.0


@dataclass(frozen=True, slots=True)
class RandomScanAugmentation:
    """
    Random rotation, translation, scaling and intensity changes, drawn for each sample.

    There are no flips, because left and right differ in the body. All slices of a series change alike, noise
    included. Black stays black, and padding stays unchanged: rows and columns at the edges that contain only
    background.

    Examples
    --------
    >>> from medimg import Preprocess
    >>> augmentation = RandomScanAugmentation(Preprocess(size=32))
    >>> batch = torch.zeros(2, 3, 32, 32)
    >>> tuple(augmentation(batch, torch.Generator().manual_seed(0)).shape)
    (2, 3, 32, 32)
    """

    recipe: Preprocess
    #: Largest angle, in degrees.
    rotation: float = 10.0
    #: Largest translation, relative to the image size.
    shift: float = 0.05
    #: Largest relative change of size, intensity (0 to 1) and contrast about mid-gray.
    scale: float = 0.10
    brightness: float = 0.10
    contrast: float = 0.10
    #: Largest exponent less 1; the smallest exponent is the inverse of the largest.
    gamma: float = 0.0
    #: Largest coefficient of a bias field of degree 3.
    bias: float = 0.0
    #: Largest standard deviations of Rician and Gaussian noise.
    rician: float = 0.0
    noise: float = 0.0

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augment normalized images (B, C, H, W) or (B, N, C, H, W); the generator is of the CPU."""
        draws = _Draws.make(len(images), generator, images.shape[1] if images.ndim == 5 else 1)
        slices = images.flatten(0, 1) if images.ndim == 5 else images
        with _full_precision(images.device):
            changed = self._augment(slices if slices.element_size() > 2 else slices.float(), draws)
        return changed.to(images.dtype).reshape(images.shape)

    def _augment(self, images: Tensor, draws: _Draws) -> Tensor:
        """Augment normalized images (B, C, H, W)."""
        mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in self.recipe.normalization)
        background = self.recipe.background.to(images)
        content, inside = self._transform(images - background, _ROUNDED / std, draws)
        lit = self._change_intensity(content * std + self.recipe.fill_value, draws)
        return torch.lerp(background, (lit - mean) / std, inside)

    def _transform(self, content: Tensor, least: Tensor, draws: _Draws) -> tuple[Tensor, Tensor]:
        """Return the transformed image without padding, and the fraction of each pixel that it covers."""
        inside = _find_extent((content.abs() > least).any(dim=1)).to(content)
        grid = F.affine_grid(self._affine_matrices(content, draws), list(content.shape), align_corners=False)
        # outside of the image are zeros, which are the background here
        moved = F.grid_sample(torch.cat([content, inside], dim=1), grid, align_corners=False)
        content, inside = moved[:, :-1], moved[:, -1:]
        return content / inside.clamp_min(1e-3), inside

    def _affine_matrices(self, images: Tensor, draws: _Draws) -> Tensor:
        """Return affine matrices (B, 2, 3) of normalized grid coordinates."""
        height, width = images.shape[-2:]
        angle = draws.signed[:, 0] * math.radians(self.rotation)
        zoom = 1.0 / (1.0 + draws.signed[:, 1] * self.scale)
        shifts = draws.signed[:, 2:4] * self.shift * 2.0  # grid coordinates run from -1 to 1
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        # coordinates are relative to each side: rotating an image that is not square needs its aspect ratio
        aspect = height / width
        rows = [cos, -sin * aspect, shifts[:, 0]], [sin / aspect, cos, shifts[:, 1]]
        return draws.expand(torch.stack([torch.stack(row, dim=1) for row in rows], dim=1), images)

    def _change_intensity(self, images: Tensor, draws: _Draws) -> Tensor:
        """Change intensities (0 to 1) like a scanner, then like another window."""
        size = images.shape[-2:]

        def each(values: Tensor) -> Tensor:
            return draws.expand(values.view(-1, 1, 1, 1), images)

        def normal(largest: float, seeds: Tensor) -> list[Tensor]:
            spread = (draws.spread * largest).view(-1, 1, 1, 1).to(images)
            fields = normal_pairs(seeds.to(images.device), *size)
            return [draws.expand(field * spread, images) for field in fields]

        if self.bias:
            fields = bias_fields((draws.coefficients * self.bias).to(images.device), *size)
            images = images * draws.expand(fields, images)
        if self.rician:
            images = add_rician_noise(images, *normal(self.rician, draws.seeds[:, 0]))
        if self.noise:
            images = images + normal(self.noise, draws.seeds[:, 1])[0]
        if self.gamma:
            exponents = torch.exp(draws.exponent * math.log1p(self.gamma))
            images = images.clamp(0.0, 1.0).pow(each(exponents))
        brightness = each(draws.signed[:, 4] * self.brightness)
        contrast = each(1.0 + draws.signed[:, 5] * self.contrast)
        more = (images - 0.5) * (contrast - 1.0) + brightness
        # black stays black, as with any other window; below `full` less is added, so that the order is kept
        full = 2.0 * self.brightness + self.contrast
        if full:
            more = more * (images / full).clamp(0.0, 1.0)
        return (images + more).clamp(0.0, 1.0)


@dataclass(frozen=True, slots=True)
class _Draws:
    """Random numbers of a batch, drawn on the CPU; one row per sample."""

    signed: Tensor
    exponent: Tensor
    coefficients: Tensor
    spread: Tensor
    seeds: Tensor
    slices: int

    @classmethod
    def make(cls, samples: int, generator: torch.Generator | None, slices: int) -> _Draws:
        """Draw the numbers of a batch, whichever of them are used."""
        return cls(
            signed=2.0 * torch.rand(samples, 6, generator=generator) - 1.0,
            exponent=2.0 * torch.rand(samples, generator=generator) - 1.0,
            coefficients=torch.rand(samples, count_coefficients(_BIAS_DEGREE), generator=generator),
            spread=torch.rand(samples, generator=generator),
            seeds=draw_seeds(2 * samples, generator).view(samples, 2),
            slices=slices,
        )

    def expand(self, values: Tensor, like: Tensor) -> Tensor:
        """Repeat each sample's values for all of its slices, on the device and in the dtype of `like`."""
        return values.to(like).repeat_interleave(self.slices, dim=0) if self.slices > 1 else values.to(like)


def _find_extent(covered: Tensor) -> Tensor:
    """Return a mask (B, 1, H, W) of the bounding box of covered pixels (B, H, W)."""

    def between(line: Tensor) -> Tensor:
        from_start = line.cumsum(dim=1) > 0
        from_end = line.flip(1).cumsum(dim=1).flip(1) > 0
        return from_start & from_end

    rows, columns = between(covered.any(dim=2)), between(covered.any(dim=1))
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)


def _full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Disable mixed precision: with 8 bits per coordinate, pixels would jump."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def make_augmentation(
    choice: AugmentChoice, recipe: Preprocess, modalities: Sequence[str] = ()
) -> Callable[[Tensor, torch.Generator], Tensor] | None:
    """
    Return the augmentation of a choice, a function of a batch and a generator.

    "auto": rotation, translation, scaling, intensity and contrast; if all data have the same modality also
    its typical changes: a bias field and Rician noise for MR, Gaussian noise for CT, gamma for X-rays and
    images without a modality. "geometric": rotation, translation and scaling. A modality ("CT", "MR", "DX",
    …): as "auto" for data of this one. A transform of torchvision or MONAI: on each sample, with intensities
    from 0 to 1. Another callable receives and returns a normalized batch; it uses torch's global generator.

    Examples
    --------
    >>> from medimg import Preprocess
    >>> make_augmentation("auto", Preprocess(), ["CT", "CT"]).noise
    0.02
    """
    if choice is None:
        return None
    if isinstance(choice, str):
        return RandomScanAugmentation(recipe, **_choose_settings(choice, modalities))
    if not callable(choice):
        raise _unknown_choice(choice)

    def wrap(own: Callable[..., Any]) -> _OwnAugmentation:
        if is_library_transform(own):
            return _OwnAugmentation(own, LibraryTransform(recipe, own))
        return _OwnAugmentation(own, lambda images, _: check_shape(own(images), images))

    _try_augmentation(wrap(_copy_state(choice)), recipe)
    return wrap(_copy_state(choice))


def _copy_state(choice: Callable[..., Any]) -> Callable[..., Any]:
    """Return a copy of a module with buffers, which belong to one training; otherwise the object itself."""
    has_state = isinstance(choice, nn.Module) and bool(choice.state_dict())
    return copy.deepcopy(choice) if has_state else choice


@dataclass(frozen=True, slots=True)
class _OwnAugmentation:
    """The user's augmentation of batches, of which any error names it."""

    choice: Callable[..., Any]
    apply: Callable[[Tensor, torch.Generator], Tensor]

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment normalized images (B, C, H, W) or (B, N, C, H, W)."""
        try:
            return self.apply(images, generator)
        except (MedimgError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the user's own code raises
            raise TrainingError(
                f"augment={name_callable(self.choice)}: the augmentation fails on a batch "
                f"{tuple(images.shape)}: {type(error).__name__}: {error}; expected a function that takes and "
                "returns a batch of normalized images (B, C, H, W), or a transform of tensors of torchvision "
                "or MONAI"
            ) from error


def _try_augmentation(augment: Callable[[Tensor, torch.Generator], Tensor], recipe: Preprocess) -> None:
    """Raise TrainingError if the user's augmentation fails on a batch; global random states are restored."""
    images = torch.rand(2, *recipe.image_shape, generator=torch.Generator().manual_seed(0))
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # the user's code may use it
    try:
        with torch.random.fork_rng(devices=[]):
            augment(images, torch.Generator().manual_seed(0))
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002  # as above


def describe_augmentation(choice: AugmentChoice, modalities: Sequence[str] = ()) -> Any:
    """
    Return what identifies an augmentation, as JSON values: settings, or a digest of a callable.

    A function is identified by its compiled code and defaults, a transform by its text.

    Examples
    --------
    >>> describe_augmentation("CT")
    {'noise': 0.02}
    >>> describe_augmentation(lambda x: x) == describe_augmentation(lambda x: x * 0)
    False
    """
    if choice is None:
        return None
    if isinstance(choice, str):
        return dict(_choose_settings(choice, modalities))
    return describe_callable(choice)


def _choose_settings(choice: str, modalities: Sequence[str]) -> dict[str, float]:
    if choice == "geometric":
        return {"brightness": 0.0, "contrast": 0.0}
    if choice in _BY_MODALITY:
        return _BY_MODALITY[choice]
    if choice != "auto":
        raise _unknown_choice(choice)
    # images without a modality are augmented like X-rays: gamma is harmless for any of them
    kinds = [_XRAY if name == "" else _BY_MODALITY.get(name, {}) for name in set(modalities)]
    return kinds[0] if kinds and all(kind == kinds[0] for kind in kinds) else {}


def _unknown_choice(choice: object) -> TrainingError:
    names = ", ".join(map(repr, ("auto", "geometric", *_BY_MODALITY)))
    found = repr(choice) if isinstance(choice, str) else f"a {type(choice).__name__}"
    return TrainingError(f"augment must be one of {names}, a function of a batch, or None; found {found}")
