"""Renders slices to images: windowed, resized and normalized, in batches that stay in cache."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from medimg._native.library import load_library
from medimg._native.painting import PAINTED_DTYPES, paint
from medimg.core.display import choose_voi
from medimg.errors import PreprocessError
from medimg.preprocessing._slice_selection import choose_slices, list_windows, neighbor_indices
from medimg.preprocessing.array_intensity import describe_curve, describe_ramp, has_curve, to_float32
from medimg.preprocessing.resize_plan import ResizePlan, compute_fitted_size

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from medimg._native.painting import Curve, Intensity
    from medimg.core.volume import Volume
    from medimg.core.window import Voi
    from medimg.preprocessing.array_output import ArrayImages
    from medimg.preprocessing.display_orientation import DisplayOrientation
    from medimg.preprocessing.output_buffer import OutputImages
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["PixelContent", "SliceChannel", "SliceRenderer", "count_channels"]


@dataclass(frozen=True, slots=True)
class _Target:
    """Output of a slice: one channel of an image, or all, with the window of slice `center`."""

    image: int
    channel: int | None
    center: int


@dataclass(slots=True)
class PixelContent:
    """Whether a pixel was seen that is finite, and one that is no padding."""

    has_finite: bool = False
    has_unpadded: bool = False

    def add(self, values: npt.NDArray[Any], mask: npt.NDArray[Any] | None) -> None:
        """Look at all pixels of slices, unless both were seen: what is cropped counts, too."""
        self.has_finite = self.has_finite or bool(np.isfinite(values).any())
        self.has_unpadded = self.has_unpadded or mask is None or not bool(mask.all())


class SliceChannel(NamedTuple):
    """One channel of slices (n, H, W), their padding, and their window; a float is the value of white."""

    values: npt.NDArray[Any]
    padding: npt.NDArray[Any] | None
    voi: Voi | float


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
        output: OutputImages | ArrayImages,
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
        self._plan = ResizePlan(shape, inner, recipe.hw, orientation.flips)
        self._windowing: Any = None
        self._content = PixelContent()

    def check_content(self) -> None:
        """Raise PreprocessError if no pixel of the rendered slices has a value, so that all is black."""
        is_whole = len(self._targets) == self._depth
        if not self._content.has_finite or (is_whole and not self._content.has_unpadded):
            raise PreprocessError("all pixels of this image are padding or not finite")

    def render(self, volume: Volume, stored: Sequence[int]) -> None:
        """Render the images of some slices, given as stored, with their indices in the whole volume."""
        windows = _choose_windows(self._recipe, volume)
        library = self._find_painter(volume, windows)
        if library is not None:
            for batch in self._group_slices(windows, stored, None):
                self._paint_batch(library, volume, batch)
            return
        if self._windowing is None:
            self._windowing = self._output.make_windowing(self._plan, self._recipe.fill_value)
        for batch in self._group_slices(windows, stored, self._windowing.at_once):
            images, targets = self._window_batch(volume, batch), batch.targets
            if self._orientation.turned:
                images, targets = self._windowing.reverse(images), targets[::-1]
            for first, count, target in _group_runs(targets):
                self._output.write(images[first : first + count], target.image, target.channel)

    def _find_painter(self, volume: Volume, windows: tuple[tuple[Voi, ...], ...]) -> ctypes.CDLL | None:
        """Return the compiled library if it paints this volume: on the CPU, with windows that it knows."""
        channels = 3 if volume.is_color else len(windows)
        if not self._output.is_cpu or channels > self._output.images.shape[1]:
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
            values = stored if _is_painted(stored.dtype) else to_float32(stored)
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
                layout=self._plan.describe(self._recipe.fill_value),
                targets=targets,
                threads=self._output.threads,
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

    def _window_batch(self, volume: Volume, batch: _Batch) -> Any:
        """Return the slices of a batch as (n, 1 or 3, H, W), 0 to 1; one channel if the output has one."""
        channels = list(self._list_channels(volume, batch))
        luma = len(channels) > self._output.images.shape[1]
        return self._windowing(channels, inverted=volume.inverted, luma=luma, content=self._content)

    def _list_channels(self, volume: Volume, batch: _Batch) -> Iterator[SliceChannel]:
        """Yield the channels of the slices of a batch."""
        if volume.is_color:
            for channel in volume.array[:, batch.slices]:
                yield SliceChannel(self._orient(channel), None, volume.white)
            return
        padding = None if volume.padding is None else self._orient(volume.padding[0, batch.slices])
        for voi in batch.voi:
            yield SliceChannel(self._orient(volume.array[0, batch.slices]), padding, voi)

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
