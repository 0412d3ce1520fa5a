"""Output tensors: new ones, or buffers of the caller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from medimg._native.painting import Target
from medimg.errors import PreprocessError, also
from medimg.preprocessing._tensor_windowing import TensorWindowing
from medimg.preprocessing.array_intensity import list_normalization
from medimg.preprocessing.intensity import normalize_channel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from medimg.preprocessing.preprocess import Preprocess
    from medimg.preprocessing.resize_plan import ResizePlan

__all__ = ["Output", "OutputImages", "open_output"]

_CPU: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """The requested output: its device, the caller's buffer, and whether images are normalized."""

    device: torch.device = _CPU
    out: torch.Tensor | None = None
    normalized: bool = False

    @classmethod
    def of(
        cls,
        device: str | torch.device | None = None,
        out: torch.Tensor | None = None,
        *,
        normalized: bool = False,
    ) -> Output:
        """Return the requested output, by default on the device of `out`, or the CPU."""
        if out is not None and not isinstance(out, torch.Tensor):
            raise also(PreprocessError, TypeError)(f"out must be a tensor; found a {type(out).__name__}")
        chosen = _check_device(device if device is not None else _CPU if out is None else out.device)
        if out is not None and not _is_same_device(out.device, chosen):
            raise PreprocessError(f"out is on {out.device}, and device is {chosen}; give only one of them")
        return cls(chosen, out, normalized)

    @property
    def is_cpu(self) -> bool:
        """Whether images are on the CPU."""
        return self.device.type == "cpu"

    def guard(self) -> AbstractContextManager[object]:
        """Return the context in which to render, without gradients."""
        return open_output(self.out)

    def unnormalized(self) -> Output:
        """Return a new output of images on the same device that are not normalized."""
        return Output(self.device)

    def check(self, recipe: Preprocess, count: int) -> None:
        """Raise PreprocessError if the caller's buffer does not take `count` normalized images."""
        if self.out is None:
            return
        found, wanted = tuple(self.out.shape), recipe.image_shape
        if found[1:] != wanted or found[0] < count:
            # in 3-D, the buffer of the caller is that of the one volume
            shapes, several = (wanted, found[1:]), ""
            if recipe.dims == 2:
                shapes, several = ((count, *wanted), found), f", for {count} images"
            at_least = "at least " if recipe.dims == 2 else ""
            raise PreprocessError(
                f"out must have the shape {at_least}{shapes[0]}{several}; found {shapes[1]}"
            )
        if self.out.dtype != torch.float32 or not self.out.is_contiguous():
            layout = "contiguous" if self.out.is_contiguous() else "not contiguous"
            raise PreprocessError(
                f"out must be a contiguous float32 tensor; found {self.out.dtype}, {layout}"
            )
        if self.out.requires_grad:
            raise PreprocessError("out must not require gradients")

    def allocate(self, recipe: Preprocess, count: int, channels: int) -> OutputImages:
        """Allocate `count` images of `channels` channels, all if normalized, or use the caller's buffer."""
        self.check(recipe, count)
        if self.out is not None:
            images = self.out[:count]
        else:
            number = recipe.n_channels if self.normalized else channels
            images = _allocate_uninitialized((count, number, *recipe.image_shape[1:]), self.device)
        return OutputImages(images, recipe.normalization if self.normalized else None)


class OutputImages:
    """Images (N, C, *size) float32 to write, normalized on the way if a mean and std are given."""

    def __init__(
        self,
        images: torch.Tensor,
        normalization: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        self.images = images
        self._normalization = normalization

    @property
    def is_cpu(self) -> bool:
        """Whether the images are on the CPU."""
        return self.images.device.type == "cpu"

    @property
    def threads(self) -> int:
        """Number of threads of the compiled painter."""
        return torch.get_num_threads()

    def make_windowing(self, plan: ResizePlan, fill: float) -> TensorWindowing:
        """Return what windows and resizes slices that the compiled painter does not take."""
        return TensorWindowing(plan, fill, self.images.device)

    def write(self, images: torch.Tensor, first: int, channel: int | None = None) -> None:
        """Write n consecutive images (n, 1 or C, *size), 0 to 1, from index `first`; all channels or one."""
        part = self.images[first : first + len(images)]
        for c in range(part.shape[1]) if channel is None else (channel,):
            image = images[:, c if images.shape[1] > 1 else 0]
            if self._normalization is None:
                part[:, c].copy_(image)
            else:
                mean, std = self._normalization
                normalize_channel(part[:, c], image, mean[c], std[c])

    def list_targets(self, image: int, channel: int | None = None) -> list[Target]:
        """Return where the compiled painter writes an image of one channel: to all channels, or one."""
        if self._normalization is None:
            steps = [(1.0, 0.0)] * self.images.shape[1]
        else:
            steps = list_normalization(*self._normalization)
        address, (_, count, height, width) = self.images.data_ptr(), self.images.shape
        chosen = range(count) if channel is None else (channel,)
        return [Target(address + 4 * height * width * (image * count + c), *steps[c]) for c in chosen]


def _allocate_uninitialized(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Allocate an uninitialized float32 tensor; NumPy's memory uses huge pages if available."""
    if device.type == "cpu":
        return torch.from_numpy(np.empty(shape, np.float32))
    return torch.empty(shape, dtype=torch.float32, device=device)


def open_output(out: torch.Tensor | None) -> AbstractContextManager[object]:
    """Return a context without gradients: inference mode if `out` was made in it, as torch requires."""
    return torch.inference_mode() if out is not None and out.is_inference() else torch.no_grad()


def _is_same_device(found: torch.device, wanted: torch.device) -> bool:
    """Whether a tensor's device is the requested one: "cuda" means any index."""
    return found.type == wanted.type and wanted.index in {None, found.index}


def _check_device(wanted: str | torch.device) -> torch.device:
    """Return a device that is available."""
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device).item()
    # torch raises many types of error for unknown or missing devices
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError, ImportError):
        raise PreprocessError(
            f'no device {wanted!r} is available; expected a device of torch, such as "cpu"'
        ) from None
    return device
