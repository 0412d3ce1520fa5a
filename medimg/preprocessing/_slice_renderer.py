"""Renders slices to images: windowed, resized and normalized, in batches that stay in cache."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from medimg._native.library import load_library
from medimg._native.painting import PAINTED_DTYPES, paint
from medimg.core.display import choose_voi
from medimg.errors import PreprocessError
from medimg.preprocessing._slice_selection import choose_slices, list_windows, neighbor_indices
from medimg.preprocessing.intensity import (
    compute_luma,
    describe_curve,
    describe_ramp,
    has_curve,
    write_intensity,
)
from medimg.preprocessing.resize import Resizer, compute_fitted_size

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from medimg._native.painting import Curve, Intensity
    from medimg.core.volume import Volume
    from medimg.core.window import Voi
    from medimg.preprocessing.display_orientation import DisplayOrientation
    from medimg.preprocessing.output_buffer import OutputImages
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["SliceRenderer", "count_channels"]

_TORCH_DTYPES: Final = frozenset(map(np.dtype, ("u1", "i1", "u2", "i2", "i4", "f4")))


@dataclass(frozen=True, slots=True)
class _Target:
    """Output of a slice: one channel of an image, or all, with the window of slice `center`."""

    image: int
    channel: int | None
    center: int


@dataclass(slots=True)
class _Content:
    """Whether a pixel was seen that is finite, and one that is no padding."""

    has_finite: bool = False
    has_unpadded: bool = False

    def add(self, values: npt.NDArray[Any], mask: npt.NDArray[Any] | None) -> None:
        """Look at all pixels of slices, unless both were seen: what is cropped counts, too."""
        self.has_finite = self.has_finite or bool(np.isfinite(values).any())
        self.has_unpadded = self.has_unpadded or mask is None or not bool(mask.all())


@dataclass(slots=True)
class _Batch:
    """Consecutive slices of an array with the same windows, and their targets."""

    start: int
    voi: tuple[Voi, ...]
    targets: list[list[_Target]]

    @property
    def slices(self) -> slice:
        """Their range in the array."""
        return slice(self.start, self.start + len(self.targets))


class SliceRenderer:
    """
    Renders slices as they are read; each depends on nothing but itself and its windows.

    `depth` is the number of slices of the whole volume, `image` a piece of it, for size and type. The
    recipe's spacing is ignored.
    """

    def __init__(
        self,
        recipe: Preprocess,
        output: OutputImages,
        depth: int,
        orientation: DisplayOrientation,
        image: Volume,
    ) -> None:
        self._recipe = recipe
        self._output = output
        self._orientation = orientation
        self._depth = depth
        self._targets = _plan_targets(recipe, depth, adjacent=_is_adjacent(recipe, image))
        shape, spacing = orientation.grid(image)
        inner = compute_fitted_size(shape, spacing, recipe.hw, recipe.fit)
        self._device = output.images.device
        self._resizer = Resizer(shape, inner, recipe.hw, orientation.flips, device=self._device)
        self._buffer: torch.Tensor | None = None
        self._content = _Content()

    def check_content(self) -> None:
        """Raise PreprocessError if no pixel of the rendered slices has a value, so that all is black."""
        is_whole = len(self._targets) == self._depth
        if not self._content.has_finite or (is_whole and not self._content.has_unpadded):
            raise PreprocessError("all pixels of this image are padding or not finite")

    def render(self, volume: Volume, stored: Sequence[int]) -> None:
        """Render the images of some slices, given as stored, with their indices in the whole volume."""
        windows = _choose_windows(self._recipe, volume)
        library = self._find_painter(volume, windows)
        for batch in self._group_slices(windows, stored, None if library else self._resizer.at_once):
            if library is not None:
                self._paint_batch(library, volume, batch)
                continue
            images, targets = self._window_batch(volume, batch), batch.targets
            if self._orientation.turned:
                images, targets = images.flip(0), targets[::-1]
            for first, count, target in _group_runs(targets):
                self._output.write(images[first : first + count], target.image, target.channel)

    def _find_painter(self, volume: Volume, windows: tuple[tuple[Voi, ...], ...]) -> ctypes.CDLL | None:
        """Return the compiled library if it paints this volume: on the CPU, with windows that it knows."""
        channels = 3 if volume.is_color else len(windows)
        if self._device.type != "cpu" or channels > self._output.images.shape[1]:
            return None
        used = {voi for of_channel in windows for voi in of_channel}
        dtype = volume.array.dtype
        if not (_is_painted(dtype) and has_curve(dtype)) and any(
            describe_ramp(voi, inverted=volume.inverted) is None for voi in used
        ):
            return None
        return load_library()

    def _paint_batch(self, library: ctypes.CDLL, volume: Volume, batch: _Batch) -> None:
        """Render the slices of a batch by the compiled painter."""
        channels = 3 if volume.is_color else len(batch.voi)
        for c, (stored, mask, voi) in enumerate(self._list_channels(volume, batch)):
            values = stored if _is_painted(stored.dtype) else _to_float32(stored)
            intensity = _describe_intensity(voi, volume)
            targets = [
                [
                    place
                    for target in each
                    for place in self._output.list_targets(
                        target.image, target.channel if channels == 1 else c
                    )
                ]
                for each in batch.targets
            ]
            has_finite, has_unpadded = paint(
                library,
                values,
                mask,
                intensity=intensity,
                layout=self._resizer.describe(self._recipe.fill_value),
                targets=targets,
                threads=torch.get_num_threads(),
            )
            self._content.has_finite |= has_finite
            self._content.has_unpadded |= has_unpadded
            self._content.add(values, mask)

    def _group_slices(
        self, windows: tuple[tuple[Voi, ...], ...], stored: Sequence[int], most: int | None
    ) -> Iterator[_Batch]:
        """Group slices in array order, up to `most` at once; slices that are in no image are skipped."""
        displayed = [self._depth - 1 - s if self._orientation.turned else s for s in stored]
        index = {d: n for n, d in enumerate(displayed)}
        batches: dict[tuple[Voi, ...], _Batch] = {}
        for at, d in enumerate(displayed):
            by_window: dict[tuple[Voi, ...], list[_Target]] = defaultdict(list)
            for target in self._targets.get(d, ()):
                by_window[tuple(w[index[target.center] if len(w) > 1 else 0] for w in windows)].append(target)
            for voi in [v for v in batches if v not in by_window]:
                yield batches.pop(voi)
            for voi, targets in by_window.items():
                batch = batches.setdefault(voi, _Batch(at, voi, []))
                batch.targets.append(targets)
                if len(batch.targets) == most:
                    yield batches.pop(voi)
        yield from batches.values()

    def _window_batch(self, volume: Volume, batch: _Batch) -> torch.Tensor:
        """Return the slices of a batch as (n, 1 or 3, H, W), 0 to 1; one channel if the output has one."""
        channels = 3 if volume.is_color else len(batch.voi)
        if self._buffer is None or self._buffer.shape[1] != channels:
            shape = (self._resizer.at_once, channels, *self._recipe.hw)
            fill = self._recipe.fill_value
            self._buffer = torch.full(shape, fill, dtype=torch.float32, device=self._device)
        images = self._buffer[: len(batch.targets)]
        for c, (values, mask, voi) in enumerate(self._list_channels(volume, batch)):
            load = partial(
                _load_rows,
                values=_to_tensor(values, self._device),
                voi=voi,
                padding=None if mask is None else _to_tensor(mask, self._device),
                inverted=volume.inverted,
                content=self._content,
            )
            self._resizer(load, images[:, c])
            self._content.add(values, mask)
        images.clamp_(0.0, 1.0)
        return compute_luma(images) if channels > self._output.images.shape[1] else images

    def _list_channels(
        self, volume: Volume, batch: _Batch
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any] | None, Voi | float]]:
        """Yield slices, padding and window of each channel; a float is the value of white."""
        if volume.is_color:
            for channel in volume.array[:, batch.slices]:
                yield self._orient(channel), None, volume.white
            return
        padding = None if volume.padding is None else self._orient(volume.padding[0, batch.slices])
        for voi in batch.voi:
            yield self._orient(volume.array[0, batch.slices]), padding, voi

    def _orient(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return slices with the rows of the display first; the resizer flips them."""
        if array.dtype.kind == "b":
            array = array.view(np.uint8)
        if not array.flags.aligned:
            # as a field of a structured array, whose steps are no whole numbers of values
            array = array.copy()
        return array.transpose(0, 2, 1) if self._orientation.swapped else array


def _is_painted(dtype: np.dtype[Any]) -> bool:
    """Whether the compiled painter takes arrays of this type as they are."""
    return dtype in PAINTED_DTYPES and dtype.isnative


def _describe_intensity(voi: Voi | float, volume: Volume) -> Intensity | Curve:
    """Return the intensity of the values of a volume that the painter takes."""
    ramp = describe_ramp(voi, inverted=volume.inverted)
    if ramp is not None:
        return ramp
    assert not isinstance(voi, float)  # which has a ramp
    return describe_curve(voi, volume.array.dtype, inverted=volume.inverted)


def _load_rows(
    rows: slice,
    buffer: torch.Tensor,
    *,
    values: torch.Tensor,
    voi: Voi | float,
    padding: torch.Tensor | None,
    inverted: bool,
    content: _Content,
) -> float:
    """Write rows as intensity above black into a buffer, and return their scale; a float is a white."""
    part = values[:, rows]
    if isinstance(voi, float):
        buffer.copy_(part)
        scale = 1.0 / voi
    else:
        scale = write_intensity(buffer, part, voi, inverted=inverted)
    # a sum is twenty times faster than a mask, and few images need the mask
    if part.is_floating_point() and not math.isfinite(float(part.sum())):
        finite = torch.isfinite(part)
        content.has_finite = content.has_finite or bool(finite.any())
        buffer.masked_fill_(~finite, 0.0)
    else:
        content.has_finite = True
    if padding is None:
        content.has_unpadded = True
    else:
        content.has_unpadded = content.has_unpadded or not bool(padding[:, rows].all())
        # the same as masked_fill_ for what is finite, ten times faster
        buffer.addcmul_(buffer, padding[:, rows].to(torch.float32), value=-1.0)
    return scale


def _choose_windows(recipe: Preprocess, volume: Volume) -> tuple[tuple[Voi, ...], ...]:
    """Return for each channel the window of all slices (one), or of each."""
    if volume.is_color:
        return ()
    return tuple(
        choose_voi(volume, window, recipe.percentiles, full_range=recipe.has_full_range)
        for window in list_windows(recipe)
    )


def count_channels(recipe: Preprocess, image: Volume) -> int:
    """Return the number of distinct channels: 3, or 1 if all are equal or only one is wanted."""
    if recipe.channels == "single":
        return 1
    return 3 if image.is_color or recipe.channels != "repeat" else 1


def _is_adjacent(recipe: Preprocess, image: Volume) -> bool:
    """Whether neighboring slices are channels; color images have channels of their own."""
    return recipe.channels == "adjacent" and not image.is_color


def _plan_targets(recipe: Preprocess, depth: int, *, adjacent: bool) -> dict[int, list[_Target]]:
    """Return the targets of each slice, by its display index."""
    targets: dict[int, list[_Target]] = defaultdict(list)
    for image, center in enumerate(choose_slices(depth, recipe.slices)):
        if adjacent:
            for channel, d in enumerate(neighbor_indices(center, depth)):
                targets[d].append(_Target(image, channel, center))
        else:
            targets[center].append(_Target(image, None, center))
    return targets


def _group_runs(targets: list[list[_Target]]) -> Iterator[tuple[int, int, _Target]]:
    """Group slices of consecutive images: (first slice, count, first target)."""
    pairs = sorted(
        ((t.channel or 0, t.image, index, t) for index, each in enumerate(targets) for t in each),
        key=itemgetter(0, 1),
    )
    for _, run in groupby(enumerate(pairs), lambda p: (p[1][0], p[1][1] - p[0], p[1][2] - p[0])):
        (_, (_, _, index, target)), *rest = run
        yield index, 1 + len(rest), target


def _to_tensor(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array as a read-only tensor, without copying if device and dtype allow."""
    if array.dtype == np.uint16 and device.type != "cpu":
        # few operations on devices take uint16
        return _to_tensor(array.view(np.int16), device).to(torch.int32).bitwise_and_(0xFFFF)
    if array.dtype not in _TORCH_DTYPES or not array.dtype.isnative or min(array.strides) < 0:
        array = _to_float32(array)
    return torch.from_numpy(np.asarray(_Readable(array))).to(device, non_blocking=True)


def _to_float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Convert an array to float32; values beyond its range become the largest number."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = np.ascontiguousarray(array, np.float32)
        # a sum is faster than a mask, and few images need the mask
        if array.dtype.itemsize > 4 and not math.isfinite(float(single.sum())):
            beyond = np.isinf(single) & np.isfinite(array)
            single[beyond] = np.copysign(np.finfo(np.float32).max, single[beyond])
    return single


class _Readable:
    """A read-only array that claims to be writable, since torch warns of read-only ones."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
