"""Learning curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medimg.learn.history import FitResult

__all__ = ["learning_curves"]

_LOSSES: Final = {"train_loss": "training", "val_loss": "validation", "adapt_loss": "adaptation"}
_SCORES: Final = {
    "val_auroc": "AUROC",
    "val_balanced_accuracy": "balanced accuracy",
    "val_f1": "F1",
    "val_accuracy": "accuracy",
}
#: Okabe and Ito's colors, which those who see fewer can tell apart.
_COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def learning_curves(result: FitResult) -> Figure:
    """
    Draw losses and scores by epoch.

    Parameters
    ----------
    result : FitResult
        Of a training.

    Returns
    -------
    matplotlib.figure.Figure
        Not registered with pyplot, so that nothing keeps it alive.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for one, lines, title in zip(axes, (_LOSSES, _SCORES), ("Loss", "Score (validation)"), strict=True):
        _draw(one, result.history, lines.items())
        one.set_title(title)
        one.set_xlabel("epoch")
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        one.spines[["top", "right"]].set_visible(False)
        one.axvline(result.best_epoch, color="0.6", linestyle=":", label="best epoch")
        one.legend(frameon=False, fontsize="small")
    axes[0].set_ylim(bottom=0)
    return figure


def _draw(axes: Axes, rows: Iterable[dict[str, Any]], lines: Iterable[tuple[str, str]]) -> None:
    rows = list(rows)
    for color, (name, label) in zip(_COLORS, lines, strict=False):
        points = [(row["epoch"], row[name]) for row in rows if row[name] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, label=label, marker="o", markersize=3)
