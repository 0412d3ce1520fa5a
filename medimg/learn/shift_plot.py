"""The figure of a comparison of two data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medimg.learn.shift_report import Distances, ShiftReport

__all__ = ["shift_figure"]

#: Okabe and Ito's colors, which those who see fewer can tell apart.
_SOURCE: Final = "#0072B2"
_TARGET: Final = "#D55E00"
_MOST: Final = 12


def shift_figure(report: ShiftReport) -> Figure:
    """
    Draw embeddings and differences.

    Parameters
    ----------
    report : ShiftReport
        Of :func:`medimg.domain_shift`.

    Returns
    -------
    matplotlib.figure.Figure
        Not registered with pyplot, so that nothing keeps it alive.
    """
    from matplotlib.figure import Figure

    several = report.distances is not None
    figure = Figure(figsize=(10 if several else 5.5, 4.2), layout="constrained")
    axes = figure.subplots(1, 2 if several else 1, squeeze=False)[0]
    if report.distances is not None:
        _points(axes[0], report.distances)
    _bars(axes[-1], report)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure


def _points(axes: Axes, distances: Distances) -> None:
    pairs = ((distances.source, _SOURCE, "o", "source"), (distances.target, _TARGET, "^", "target"))
    for points, color, marker, label in pairs:
        x, y = points.T
        axes.scatter(x, y, s=14, c=color, marker=marker, alpha=0.5, linewidths=0, label=label)
    axes.set_title(f"Embeddings: proxy A-distance {distances.a_distance:.2f} of 2", fontsize="medium")
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")
    axes.legend(frameon=False, markerscale=1.6)


def _bars(axes: Axes, report: ShiftReport) -> None:
    shown = sorted((*report.tags, *report.pictures), key=lambda d: d.size)[-_MOST:]
    axes.barh([d.name for d in shown], [d.size for d in shown], color="0.55")
    axes.set_xlim(0, 1)
    axes.set_title("Tags and pictures", fontsize="medium")
    axes.set_xlabel("difference: 0 alike, 1 nothing in common")
