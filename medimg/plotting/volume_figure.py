"""Figure of a volume: its three planes in physical aspect, or one slice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from medimg._plot_style import fixed_settings, make_figure
from medimg._validation import check_whole_number
from medimg.core.display import choose_voi
from medimg.core.geometry import display_code, image_affine
from medimg.core.volume import Volume
from medimg.errors import GeometryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medimg.core.display import WindowChoice
    from medimg.core.window import Voi

__all__ = ["RenderedSlice", "draw_slice", "plot_volume", "render_slice"]

#: Planes by the directions of the axes perpendicular to them.
_PLANES: Final = {"axial": "SI", "coronal": "PA", "sagittal": "LR"}
_OPPOSITE: Final = dict(zip("LRPASI", "RLAPIS", strict=True))
#: Inches of the longest side of a plane.
_SIZE: Final = 3.0
#: Ratio of two spacings beyond which they can't be shown.
_MOST_STRETCHED: Final = 50.0


class RenderedSlice(NamedTuple):
    """Intensity (H, W) or (H, W, 3) from 0 to 1, with the spacing of its rows and columns."""

    values: npt.NDArray[Any]
    spacing: tuple[float, float]
    #: Directions of the rows and columns, such as "PL"; "" if unknown.
    directions: str = ""


def plot_volume(
    volume: Volume, *, at: Sequence[int] | None = None, window: WindowChoice = "auto", channel: int | str = 0
) -> Figure:
    """Plot a volume; see :meth:`medimg.Volume.plot`."""
    if not volume.is_color:
        volume = volume.select(channel)
    where = _check_position(at, volume.shape[1:])
    voi = choose_voi(volume, window) if not volume.is_color else ()
    if volume.space != "patient" or min(volume.shape[1:]) == 1:
        axis = 0 if volume.space != "patient" else int(np.argmin(volume.shape[1:]))
        rendered = render_slice(volume, where[axis], voi, axis)
        title = "" if volume.shape[1 + axis] == 1 else f"slice {where[axis]}"
        return _draw([(rendered, title)])
    shown = []
    for name, letters in _PLANES.items():
        axis = next(n for n, letter in enumerate(volume.orientation) if letter in letters)
        title = f"{name}, {'dhw'[axis]} = {where[axis]}"
        shown.append((render_slice(volume, where[axis], voi, axis), title))
    return _draw(shown)


def render_slice(volume: Volume, index: int, voi: tuple[Voi, ...], axis: int = 0) -> RenderedSlice:
    """Return a slice perpendicular to an axis of the array, windowed, in display orientation."""
    chosen: list[slice] = [slice(None)] * 4
    chosen[1 + axis] = slice(index, index + 1)
    slab = volume.array[tuple(chosen)]
    hidden = None if volume.padding is None else volume.padding[tuple(chosen)]
    if volume.is_color:
        shown = slab / volume.white
    else:
        shown = _apply_window(slab[:1], voi[index : index + 1] if len(voi) > 1 and axis == 0 else voi)
        shown = 1.0 - shown if volume.inverted else shown
        shown = np.where(np.isfinite(slab[:1]), shown, 0.0)
        shown = shown if hidden is None else np.where(hidden[:1], 0.0, shown)
    affine = volume.affine if volume.space == "patient" else image_affine(volume.spacing)
    one = Volume(
        shown.astype(np.float32), affine, photometric="RGB" if volume.is_color else "MONOCHROME2",
        space=volume.space,
    )  # fmt: skip
    if one.space == "patient":
        # the cut axis becomes D
        letters = volume.orientation
        code = letters[axis] + "".join(letters[n] for n in range(3) if n != axis)
        one = one.reorient(code)
        one = one.reorient(display_code(one.affine))
    values = one.array[:, 0].transpose(1, 2, 0) if one.is_color else one.array[0, 0]
    directions = one.orientation[1:] if one.space == "patient" else ""
    return RenderedSlice(np.clip(values, 0.0, 1.0), one.spacing[1:], directions)


def _apply_window(slab: npt.NDArray[Any], voi: tuple[Voi, ...]) -> npt.NDArray[Any]:
    """Window a slab (1, D, H, W), each of its slices by its own window if there are several."""
    values = np.nan_to_num(slab)
    if len(voi) == 1:
        return voi[0].apply(values)
    return np.stack([one.apply(values[:, d]) for d, one in enumerate(voi)], axis=1)


def _check_position(at: Sequence[int] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    if at is None:
        return tuple(size // 2 for size in shape)
    if not isinstance(at, list | tuple | np.ndarray) or len(at) != 3:
        raise GeometryError(f"at must be three indices (d, h, w); found {at!r}")
    for name, index, size in zip("dhw", at, shape, strict=True):
        check_whole_number(f"index {name} of at", index, least=0, most=size - 1, error=GeometryError)
    return tuple(map(int, at))


def _draw(images: Sequence[tuple[RenderedSlice, str]]) -> Figure:
    """Draw planes side by side, all at one scale."""
    extents = [_measure(rendered) for rendered, _ in images]
    scale = _SIZE / max(max(extent) for extent in extents)
    widths = [max(width * scale, 0.3) for _, width in extents]
    height = max(tall for tall, _ in extents) * scale
    figure = make_figure((sum(widths) + 0.35 * len(widths), height + 0.45))
    with fixed_settings():
        grid = figure.subplots(1, len(images), squeeze=False, width_ratios=widths)
    for axes, (rendered, title) in zip(grid[0], images, strict=True):
        draw_slice(axes, rendered, title)
        _draw_directions(axes, rendered)
    return figure


def _measure(rendered: RenderedSlice) -> tuple[float, float]:
    """Return height and width of an image in millimeters; an absurd ratio of spacings is ignored."""
    rows, columns = rendered.spacing
    if not 1 / _MOST_STRETCHED < rows / columns < _MOST_STRETCHED:
        rows = columns
    return rendered.values.shape[0] * rows, rendered.values.shape[1] * columns


def draw_slice(axes: Axes, rendered: RenderedSlice, title: str) -> None:
    """Draw an image with its physical aspect; the title is no formula."""
    height, width = _measure(rendered)
    extent = (0.0, width, height, 0.0)
    axes.imshow(rendered.values, cmap="gray", vmin=0.0, vmax=1.0, extent=extent, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=9).set_parse_math(False)


def _draw_directions(axes: Axes, rendered: RenderedSlice) -> None:
    """Draw the directions of the edges: L and R, A and P, S and I."""
    if not rendered.directions:
        return
    from matplotlib.patheffects import withStroke

    down, right = rendered.directions[0], rendered.directions[1]
    up, left = _OPPOSITE[down], _OPPOSITE[right]
    positions = {down: (0.5, 0.02), up: (0.5, 0.98), right: (0.98, 0.5), left: (0.02, 0.5)}
    for letter, (x, y) in positions.items():
        axes.text(
            x, y, letter, transform=axes.transAxes, color="#ffd166", fontsize=8,
            path_effects=[withStroke(linewidth=1.5, foreground="black")],
            ha="left" if x < 0.1 else "right" if x > 0.9 else "center",
            va="bottom" if y < 0.1 else "top" if y > 0.9 else "center",
        )  # fmt: skip
