"""Montages: slices of a series, items of a dataset."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from medimg._plot_style import fixed_settings, make_figure
from medimg._validation import check_whole_number
from medimg.core.display import choose_voi
from medimg.plotting.volume_figure import RenderedSlice, draw_slice, render_slice

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from matplotlib.figure import Figure

    from medimg.core.display import WindowChoice

__all__ = ["draw_montage", "plot_images", "plot_series"]

#: Inches of an image's longer side.
_SIZE = 1.8
_MOST = 100


def plot_series(series: Any, *, most: int = 12, window: WindowChoice = "auto") -> Figure:
    """Plot evenly spaced slices of a series; see :meth:`medimg.Series.plot`."""
    most = check_whole_number("most", most, least=1, most=_MOST)
    depth = series.shape[1]
    chosen = np.unique(np.linspace(0, depth - 1, min(most, depth)).round().astype(int)).tolist()
    if len(chosen) == 1:
        chosen = [depth // 2]
    volume = series.read(slices=chosen, on_missing="keep", on_tilt="keep")
    if not volume.is_color:
        volume = volume.select(0)
    voi = choose_voi(volume, window) if not volume.is_color else ()
    rendered = [render_slice(volume, n, voi) for n in range(volume.shape[1])]
    titles = [""] if depth == 1 else [f"slice {n}" for n in chosen]
    return draw_montage(rendered, titles)


def plot_images(images: Sequence[npt.NDArray[Any]], titles: Sequence[str]) -> Figure:
    """Plot images (1 or 3, H, W), or the middle ones of bags (N, 1 or 3, H, W), from 0 to 1."""
    return draw_montage([RenderedSlice(_choose_image(image), (1.0, 1.0)) for image in images], titles)


def _choose_image(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the middle one of all images as (H, W) or (H, W, 3)."""
    while image.ndim > 3:
        image = image[len(image) // 2]
    shown = image.transpose(1, 2, 0) if len(image) == 3 else image[len(image) // 2]
    return np.asarray(np.clip(shown, 0.0, 1.0))


def draw_montage(rendered: Sequence[RenderedSlice], titles: Sequence[str]) -> Figure:
    """Draw images in rows, at most six in each."""
    rows = math.ceil(len(rendered) / min(6, math.ceil(math.sqrt(len(rendered) * 1.5))))
    columns = math.ceil(len(rendered) / rows)  # no row much shorter than the others
    aspects = [
        p.values.shape[0] * p.spacing[0] / max(p.values.shape[1] * p.spacing[1], 1e-9) for p in rendered
    ]
    aspect = min(max(*aspects, 0.3), 3.0)
    width, height = (_SIZE, _SIZE * aspect) if aspect <= 1 else (_SIZE / aspect, _SIZE)
    title_height = 0.3 if any(titles) else 0.08
    figure = make_figure((columns * (max(width, 0.9) + 0.1), rows * (height + title_height)))
    with fixed_settings():
        grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, title in zip(grid.flat, rendered, titles, strict=False):
        draw_slice(axes, image, title)
    return figure
