"""Curves as SVG that refers to no other file, and the plot of a comparison of backbones."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg._plot_style import (
    COLORS,
    REFERENCE_LINE,
    add_legend,
    choose_line_style,
    fixed_settings,
    make_axes,
    style_axes,
)
from medimg.metrics.curves import Line, Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medimg.evaluation.compare_backbones import Candidate

__all__ = [
    "draw_confusion",
    "draw_curves",
    "draw_reliability",
    "plot_curves",
    "plot_reliability",
    "plot_speed",
    "plot_training",
    "thin_curve",
]

_PANELS: Final = {
    "Loss": {"train_loss": "training", "val_loss": "validation"},
    "Validation score": {"val_auroc": "AUROC", "val_accuracy": "accuracy"},
}
_AXIS_LABELS: Final = {
    "roc": ("1 − specificity (false positive rate)", "Sensitivity (true positive rate)"),
    "precision_recall": ("Recall (sensitivity)", "Precision (positive predictive value)"),
}
_MOST_CELLS_WITH_TEXT: Final = 400
_MARKERS: Final = "osD^vP*X"

CurveType: TypeAlias = Literal["roc", "precision_recall"]
Floats: TypeAlias = NDArray[np.float64]


def plot_curves(lines: Sequence[Line], *, curve_type: CurveType) -> str:
    """Plot ROC or precision-recall curves, each in the style of its number, as a ``data:`` URI."""
    figure, (axes,) = make_axes((4.2, 4.0))
    draw_curves(axes, dict(enumerate(lines)), curve_type=curve_type)
    return _encode_svg(figure)


def draw_curves(axes: Axes, lines: Mapping[Any, Line], *, curve_type: CurveType) -> None:
    """Draw curves by their label, each in the style of its number."""
    is_roc = curve_type == "roc"
    if is_roc:
        axes.plot([0, 1], [0, 1], **REFERENCE_LINE)
    for number, (label, line) in enumerate(lines.items()):
        color, dashes = choose_line_style(number)
        x, y = thin_curve(line.x, line.y) if is_roc else _make_steps(line)
        drawstyle = "default" if is_roc else "steps-pre"
        style: Any = {"color": color, "dashes": dashes or (None, None), "drawstyle": drawstyle}
        axes.plot(x, y, linewidth=2, label=label, **style)
    _set_unit_square(axes, *_AXIS_LABELS[curve_type])


def plot_reliability(curves: Sequence[Reliability]) -> str:
    """Plot observed against predicted frequencies, larger markers for larger bins, as a ``data:`` URI."""
    figure, (axes,) = make_axes((4.2, 4.0))
    draw_reliability(axes, dict(enumerate(curves)))
    return _encode_svg(figure)


def draw_reliability(axes: Axes, curves: Mapping[Any, Reliability]) -> None:
    """Draw reliability curves by their label."""
    axes.plot([0, 1], [0, 1], **REFERENCE_LINE)
    for number, (label, curve) in enumerate(curves.items()):
        color, dashes = choose_line_style(number)
        style: Any = {"color": color, "dashes": dashes or (None, None)}
        axes.plot(curve.predicted, curve.observed, linewidth=1.5, label=label, **style)
        area = 12 + 110 * curve.n / curve.n.max()
        axes.scatter(curve.predicted, curve.observed, s=area, color=color, alpha=0.75, linewidths=0)
    _set_unit_square(axes, "Predicted probability", "Observed frequency")


def draw_confusion(
    axes: Axes, counts: NDArray[np.int64], shares: Floats, rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Draw counts (R, C) in cells as dark as their shares of the row, from 0 to 1."""
    axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    if counts.size > _MOST_CELLS_WITH_TEXT:
        return
    for (i, j), n in np.ndenumerate(counts):
        share = shares[i, j]
        text = f"{n:,}" if np.isnan(share) else f"{n:,}\n{100 * share:.0f} %"
        axes.text(j, i, text, ha="center", va="center", color="white" if share > 0.5 else "black", fontsize=9)


def thin_curve(x: Floats, y: Floats, most: int = 400) -> tuple[Floats, Floats]:
    """
    Keep ends and extremes: the first, lowest, highest and last point of each of `most` / 4 stretches.

    >>> import numpy as np
    >>> thin_curve(np.linspace(0, 1, 9), np.array([0, 1, 1, 1, 9, 1, 1, 1, 1.0]), most=4)[1]
    array([0., 9., 1.])
    """
    if len(x) <= most:
        return x, y
    kept: list[int] = []
    for part in np.array_split(np.arange(len(x)), max(1, most // 4)):
        kept += [part[0], part[y[part].argmin()], part[y[part].argmax()], part[-1]]
    chosen = np.unique(kept)
    return x[chosen], y[chosen]


def _make_steps(line: Line) -> tuple[Floats, Floats]:
    """Take the highest precision of each recall: the area below the steps is the average precision."""
    recall, first = np.unique(line.x, return_index=True)
    precision = np.maximum.reduceat(line.y, first)
    if len(recall) > 1 and recall[0] == 0:  # precision at recall 0 is a convention
        precision[0] = precision[1]
    return thin_curve(recall, precision)


def _set_unit_square(axes: Axes, xlabel: str, ylabel: str) -> None:
    ticks = np.linspace(0, 1, 6)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=ticks, yticks=ticks, aspect="equal")
    axes.set(xlabel=xlabel, ylabel=ylabel)


def plot_training(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Plot losses and validation scores by epoch: alternative text and ``data:`` URI of each."""
    plots = []
    for label, curves in _PANELS.items():
        if not any(row.get(key) is not None for row in history for key in curves):
            continue
        figure, (axes,) = make_axes((4.2, 2.9))
        for color, (key, name) in zip(COLORS, curves.items(), strict=False):
            points = [(i, row[key]) for i, row in enumerate(history, 1) if row.get(key) is not None]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=color, linewidth=2, marker="o", markersize=4, label=name)
        for i in range(1, len(history)):
            if history[i].get("phase") != history[i - 1].get("phase"):
                axes.axvline(i + 0.5, **REFERENCE_LINE)
        ticks = range(1, len(history) + 1, max(1, -(-len(history) // 10)))
        axes.set(xlabel="Epoch", ylabel=label, xticks=ticks, xlim=(0.5, len(history) + 0.5))
        add_legend(axes)
        plots.append((f"{label} by epoch. The table lists the values.", _encode_svg(figure)))
    return plots


def _encode_svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    with fixed_settings():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def plot_speed(candidates: Sequence[Candidate], ci: float, device: str, axes: Axes | None) -> Axes:
    """Plot AUROC with its interval against images per second, without failed candidates."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if axes is None:
        _, (axes,) = make_axes((7.2, 4.2))
    scored = [(one, one.scores.metrics["auroc"]) for one in candidates if one.scores is not None]
    for number, (one, auroc) in enumerate(scored):
        ends = [[max(0.0, auroc.value - auroc.low)], [max(0.0, auroc.high - auroc.value)]]
        axes.errorbar(
            one.images_per_second,
            auroc.value,
            yerr=ends,
            fmt=_MARKERS[number % len(_MARKERS)],
            color=choose_line_style(number)[0],
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
        # beside the points, which may be anywhere
        add_legend(axes, loc="center left", bbox_to_anchor=(1.02, 0.5))
    style_axes(axes)
    axes.margins(x=0.15)
    return axes
