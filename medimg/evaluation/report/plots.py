"""Curves as self-contained SVG, by matplotlib's object interface: no window, no state shared with pyplot."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.metrics.curves import Line, Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medimg.evaluation.compare_backbones import Candidate

__all__ = [
    "COLORS",
    "DASHES",
    "MOST_STYLES",
    "curve_plot",
    "line_style",
    "reliability_plot",
    "speed_plot",
    "thinned",
    "training_plots",
]

COLORS = ("#0063a6", "#c2410c", "#00785a", "#a21caf", "#8a6d00", "#475569")
"""For curves: told apart by most color-blind people, dark enough on white."""
DASHES: tuple[tuple[int, ...], ...] = ((), (6, 2), (2, 2), (8, 2, 2, 2))
"""Lengths of strokes and gaps; the second round of colors is dashed."""
MOST_STYLES = len(COLORS) * len(DASHES)
"""So many curves can be told apart."""

_INK, _GRAY, _FAINT = "#1b2733", "#8795a3", "#d5dde5"
_PANELS = {
    "Loss": {"train_loss": "training", "val_loss": "validation"},
    "Validation score": {"val_auroc": "AUROC", "val_accuracy": "accuracy"},
}

CurveKind: TypeAlias = Literal["roc", "precision_recall"]
Floats: TypeAlias = NDArray[np.float64]


def line_style(k: int) -> tuple[str, tuple[int, ...]]:
    """
    Choose color and dashes of the k-th curve.

    Parameters
    ----------
    k : int
        Number of the curve, from 0.

    Returns
    -------
    tuple of str and tuple of int
        Color and dashes; they repeat after 24 curves.

    Examples
    --------
    >>> line_style(0), line_style(7)
    (('#0063a6', ()), ('#c2410c', (6, 2)))
    """
    return COLORS[k % len(COLORS)], DASHES[k // len(COLORS) % len(DASHES)]


def curve_plot(lines: Sequence[Line], *, kind: CurveKind) -> str:
    """
    Draw receiver operating characteristics, or precision against recall.

    Parameters
    ----------
    lines : sequence of Line
        Each in the style of its place.
    kind : {"roc", "precision_recall"}
        What they are.

    Returns
    -------
    str
        A ``data:`` address of an SVG.
    """
    figure, axes = _figure((4.2, 4.0))
    is_roc = kind == "roc"
    if is_roc:
        axes.plot([0, 1], [0, 1], color=_GRAY, linewidth=1, dashes=(4, 3))
    for number, line in enumerate(lines):
        color, dashes = line_style(number)
        x, y = thinned(line.x, line.y) if is_roc else _steps(line)
        drawstyle = "default" if is_roc else "steps-pre"
        axes.plot(x, y, color=color, linewidth=2, dashes=dashes or (None, None), drawstyle=drawstyle)
    _unit_square(axes)
    if is_roc:
        axes.set(xlabel="1 − specificity (false positive rate)", ylabel="Sensitivity (true positive rate)")
    else:
        axes.set(xlabel="Recall (sensitivity)", ylabel="Precision (positive predictive value)")
    return _address(figure)


def reliability_plot(curves: Sequence[Reliability]) -> str:
    """
    Draw what occurred against what was predicted; the area of a mark tells how many units it stands for.

    Parameters
    ----------
    curves : sequence of Reliability
        Each in the style of its place.

    Returns
    -------
    str
        A ``data:`` address of an SVG.
    """
    figure, axes = _figure((4.2, 4.0))
    axes.plot([0, 1], [0, 1], color=_GRAY, linewidth=1, dashes=(4, 3))
    for number, curve in enumerate(curves):
        color, dashes = line_style(number)
        axes.plot(curve.predicted, curve.observed, color=color, linewidth=1.5, dashes=dashes or (None, None))
        area = 12 + 110 * curve.n / curve.n.max()
        axes.scatter(curve.predicted, curve.observed, s=area, color=color, alpha=0.75, linewidths=0)
    _unit_square(axes)
    axes.set(xlabel="Predicted probability", ylabel="Observed share")
    return _address(figure)


def thinned(x: Floats, y: Floats, most: int = 400) -> tuple[Floats, Floats]:
    """
    Leave out points of a curve that nobody would see.

    Parameters
    ----------
    x, y : ndarray of float, shape (n,)
        The curve, ascending in x.
    most : int
        Leave a curve of no more points as it is.

    Returns
    -------
    tuple of ndarray and ndarray
        Ends and extremes stay: of each of `most` / 4 stretches the first, lowest, highest and last point.

    Examples
    --------
    >>> import numpy as np
    >>> thinned(np.linspace(0, 1, 9), np.array([0, 1, 1, 1, 9, 1, 1, 1, 1.0]), most=4)[1]
    array([0., 9., 1.])
    """
    if len(x) <= most:
        return x, y
    kept: list[int] = []
    for part in np.array_split(np.arange(len(x)), max(1, most // 4)):
        kept += [part[0], part[y[part].argmin()], part[y[part].argmax()], part[-1]]
    chosen = np.unique(kept)
    return x[chosen], y[chosen]


def _steps(line: Line) -> tuple[Floats, Floats]:
    """Take the highest precision of each recall: the area below the steps is the average precision."""
    recall, first = np.unique(line.x, return_index=True)
    precision = np.maximum.reduceat(line.y, first)
    if len(recall) > 1 and recall[0] == 0:  # where nothing is found, precision is a convention
        precision[0] = precision[1]
    return thinned(recall, precision)


def _unit_square(axes: Axes) -> None:
    ticks = np.linspace(0, 1, 6)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=ticks, yticks=ticks, aspect="equal")


def training_plots(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """
    Draw losses and validation scores by epoch.

    Parameters
    ----------
    history : sequence of mapping
        Rows with ``phase``, ``train_loss``, ``val_loss`` and any of ``val_accuracy``, ``val_auroc``; None
        where a value is missing.

    Returns
    -------
    list of tuple of str and str
        For each plot that has something to show: what it shows, and a ``data:`` address of an SVG.
    """
    plots = []
    for label, curves in _PANELS.items():
        if not any(row.get(key) is not None for row in history for key in curves):
            continue
        figure, axes = _figure((4.2, 2.9))
        _lines(axes, history, curves)
        _phases(axes, history)
        axes.set(xlabel="Epoch", ylabel=label, xticks=_ticks(len(history)), xlim=(0.5, len(history) + 0.5))
        plots.append((f"{label} by epoch. The table gives the numbers.", _address(figure)))
    return plots


def _lines(axes: Axes, history: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> None:
    for number, (key, label) in enumerate(keys.items()):
        points = [(i, row[key]) for i, row in enumerate(history, 1) if row.get(key) is not None]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=COLORS[number], linewidth=2, marker="o", markersize=4, label=label)
    axes.legend(frameon=False, fontsize=9)


def _phases(axes: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    """Mark where the backbone joins the training of the head."""
    for i in range(1, len(history)):
        if history[i].get("phase") != history[i - 1].get("phase"):
            axes.axvline(i + 0.5, color=_GRAY, linewidth=1, dashes=(4, 3))


def _ticks(n: int) -> list[int]:
    step = max(1, -(-n // 10))
    return list(range(1, n + 1, step))


def _figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRAY)
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9, length=3)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _address(figure: Figure) -> str:
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _style() -> AbstractContextManager[None]:
    """Make a drawing the same every time, whatever the user has set for plots of their own."""
    from matplotlib import rc_context

    return rc_context(
        {"svg.hashsalt": "medimg", "svg.fonttype": "path", "text.usetex": False, "font.size": 10}
    )


_MARKERS: Final = "osD^vP*X"


def speed_plot(candidates: Sequence[Candidate], ci: float, device: str, axes: Axes | None) -> Axes:
    """
    Draw AUROC, with its interval, against images per second.

    Parameters
    ----------
    candidates : sequence of Candidate
        Those that failed are left out.
    ci : float
        Of the intervals.
    device : str
        What they were timed on.
    axes : matplotlib Axes or None
        Where to; a new figure, known to no window, by default.

    Returns
    -------
    matplotlib Axes
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if axes is None:
        from matplotlib.figure import Figure

        axes = Figure(figsize=(7.2, 4.2), layout="constrained").subplots()
    scored = [(one, one.scores.metrics["auroc"]) for one in candidates if one.scores is not None]
    for number, (one, found) in enumerate(scored):
        color, _ = line_style(number)
        ends = [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]
        axes.errorbar(
            one.images_per_second,
            found.value,
            yerr=ends,
            fmt=_MARKERS[number % len(_MARKERS)],
            color=color,
            capsize=4,
            markersize=7,
            label=f"{one.backbone}, {one.parameters:.3g} M",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=f"Images per second ({device})", ylabel=f"AUROC, {100 * ci:g} % interval over patients")
    if axes.has_data():
        # beside the points, which may lie anywhere
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)
    axes.grid(color="#d5dde5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    return axes
