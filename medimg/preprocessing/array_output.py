"""Output arrays, for rendering without torch."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._native.painting import Target
from medimg.core.parallel import available_cores
from medimg.errors import PreprocessError
from medimg.preprocessing._array_windowing import ArrayWindowing

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import numpy.typing as npt

    from medimg.preprocessing.preprocess import Preprocess
    from medimg.preprocessing.resize_plan import ResizePlan

__all__ = ["ArrayOutput"]


class ArrayOutput:
    """The requested output: arrays in the range 0 to 1, of images in 2-D."""

    normalized: Final = False
    is_cpu: Final = True

    def check(self, recipe: Preprocess, count: int) -> None:
        """Raise PreprocessError for volumes, which are resized by torch."""
        if recipe.dims != 2:
            raise PreprocessError(
                "volumes are rendered to tensors alone: expected dims=2; call recipe.render(source)"
            )

    def guard(self) -> AbstractContextManager[object]:
        """Return the context in which to render."""
        return nullcontext()

    def allocate(self, recipe: Preprocess, count: int, channels: int) -> ArrayImages:
        """Allocate `count` images of `channels` channels."""
        return ArrayImages(np.empty((count, channels, *recipe.hw), np.float32))

    def unnormalized(self) -> ArrayOutput:
        """Return a new output of images that are not normalized."""
        return self


class ArrayImages:
    """Images (N, C, H, W) float32 to write."""

    is_cpu: Final = True

    def __init__(self, images: npt.NDArray[np.float32]) -> None:
        # an array, in place of a tensor
        self.images: Any = images

    @property
    def threads(self) -> int:
        """Number of threads of the compiled painter."""
        return available_cores()

    def make_windowing(self, plan: ResizePlan, fill: float) -> ArrayWindowing:
        """Return what windows and resizes slices that the compiled painter does not take."""
        return ArrayWindowing(plan, fill)

    def write(self, images: Any, first: int, channel: int | None = None) -> None:
        """Write n consecutive images (n, 1 or C, H, W) from index `first`; all channels or one."""
        part = self.images[first : first + len(images)]
        for c in range(part.shape[1]) if channel is None else (channel,):
            part[:, c] = images[:, c if images.shape[1] > 1 else 0]

    def list_targets(self, image: int, channel: int | None = None) -> list[Target]:
        """Return where the compiled painter writes an image of one channel: to all channels, or one."""
        address, (_, count, height, width) = self.images.ctypes.data, self.images.shape
        chosen = range(count) if channel is None else (channel,)
        return [Target(address + 4 * height * width * (image * count + c), 1.0, 0.0) for c in chosen]
