"""Curves as self-contained SVG, by matplotlib's object interface: no window, no state shared with pyplot."""

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "DASHES", "line_style", "roc_plot", "training_plots"]

COLORS = ("#0063a6", "#c2410c", "#00785a", "#a21caf", "#8a6d00", "#475569")
"""For curves: told apart by most color-blind people, dark enough on white."""
DASHES: tuple[tuple[int, ...], ...] = ((), (6, 2), (2, 2), (8, 2, 2, 2))
"""Lengths of strokes and gaps; the second round of colors is dashed."""

_INK, _FAINT = "#1b2733", "#d5dde5"
_PANELS = {
    "Loss": {"train_loss": "training", "val_loss": "validation"},
    "Validation score": {"val_auroc": "AUROC", "val_accuracy": "accuracy"},
}

Curve = tuple[int, NDArray[np.bool_], NDArray[np.float64]]


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


def roc_plot(curves: Sequence[Curve]) -> str:
    """
    Draw receiver operating characteristics.

    Parameters
    ----------
    curves : sequence of (int, ndarray of bool (n,), ndarray of float (n,))
        Number of the style, which units are positive, and their scores; both kinds must occur.

    Returns
    -------
    str
        A ``data:`` address of an SVG.
    """
    from sklearn.metrics import roc_curve

    figure, axes = _figure((4.2, 4.0))
    axes.plot([0, 1], [0, 1], color="#8795a3", linewidth=1, dashes=(4, 3))
    for number, positive, scores in curves:
        false_rate, true_rate, _ = roc_curve(positive, scores)
        color, dashes = line_style(number)
        axes.plot(false_rate, true_rate, color=color, linewidth=2, dashes=dashes or (None, None))
    ticks = np.linspace(0, 1, 6)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xticks=ticks, yticks=ticks, aspect="equal")
    axes.set(xlabel="1 − specificity (false positive rate)", ylabel="Sensitivity (true positive rate)")
    return _address(figure)


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


def _lines(axes: "Axes", history: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> None:
    for number, (key, label) in enumerate(keys.items()):
        points = [(i, row[key]) for i, row in enumerate(history, 1) if row.get(key) is not None]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=COLORS[number], linewidth=2, marker="o", markersize=4, label=label)
    axes.legend(frameon=False, fontsize=9)


def _phases(axes: "Axes", history: Sequence[Mapping[str, Any]]) -> None:
    """Mark where the backbone joins the training of the head."""
    for i in range(1, len(history)):
        if history[i].get("phase") != history[i - 1].get("phase"):
            axes.axvline(i + 0.5, color="#8795a3", linewidth=1, dashes=(4, 3))


def _ticks(n: int) -> list[int]:
    step = max(1, -(-n // 10))
    return list(range(1, n + 1, step))


def _figure(size: tuple[float, float]) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#8795a3")
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9, length=3)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _address(figure: "Figure") -> str:
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
