"""One style for all plots: palette, line styles, figures and axes. Matplotlib is imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "GRAY",
    "MOST_STYLES",
    "REFERENCE_LINE",
    "add_legend",
    "choose_line_style",
    "fixed_settings",
    "make_axes",
    "make_figure",
    "style_axes",
]

#: Distinct for most color-blind readers, and dark enough on white.
COLORS: Final = ("#0063a6", "#c2410c", "#00785a", "#a21caf", "#8a6d00", "#475569")
#: Lengths of strokes and gaps; the second round of colors is dashed.
_DASHES: Final[tuple[tuple[int, ...], ...]] = ((), (6, 2), (2, 2), (8, 2, 2, 2))
#: Number of curves with a style of their own.
MOST_STYLES: Final = len(COLORS) * len(_DASHES)

_INK: Final = "#1b2733"
_GRID: Final = "#d5dde5"
GRAY: Final = "#8795a3"
#: A diagonal, a limit, a best epoch.
REFERENCE_LINE: Final[dict[str, Any]] = {"color": GRAY, "linewidth": 1, "dashes": (4, 3)}

_SETTINGS: Final = {"svg.hashsalt": "medimg", "svg.fonttype": "path", "text.usetex": False, "font.size": 10}


def choose_line_style(number: int) -> tuple[str, tuple[int, ...]]:
    """
    Choose color and dashes of a curve by its number, from 0; they repeat after `MOST_STYLES` curves.

    >>> choose_line_style(0), choose_line_style(7)
    (('#0063a6', ()), ('#c2410c', (6, 2)))
    """
    return COLORS[number % len(COLORS)], _DASHES[number // len(COLORS) % len(_DASHES)]


def fixed_settings() -> AbstractContextManager[None]:
    """Set what makes a plot the same every time, whatever the user has set for other plots."""
    from matplotlib import rc_context

    return rc_context(_SETTINGS)  # type: ignore[arg-type]  # the stub's keys are literals


def make_figure(size: tuple[float, float]) -> Figure:
    """
    Make a figure, `size` in inches, that pyplot does not know and so does not keep alive.

    Jupyter shows it, or any of its axes, without ``%matplotlib``: they have ``_repr_png_``.
    """
    from medimg._notebook_figure import NotebookFigure

    with fixed_settings():
        return NotebookFigure(figsize=size, layout="constrained")


def make_axes(size: tuple[float, float], columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Make a figure with styled axes side by side."""
    figure = make_figure(size)
    with fixed_settings():
        axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for one in axes:
        style_axes(one)
    return figure, axes


def style_axes(axes: Axes, *, grid: bool = True) -> None:
    """Leave two spines, a faint grid behind the data, and dark labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRAY)
    if grid:
        axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9, length=3)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)


def add_legend(axes: Axes, **options: Any) -> None:
    """Add a legend without a frame."""
    axes.legend(frameon=False, fontsize=9, **options)
