"""Report of a domain shift: text, table, figure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from medimg._plot_style import COLORS, GRAY, add_legend, make_axes
from medimg._public import set_module
from medimg._tables import make_table

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


__all__ = ["Difference", "Distances", "ShiftReport", "plot_shift"]

#: Proxy A-distances above which a shift counts as large, or as noticeable.
_FAR: Final = 1.2
_NEAR: Final = 0.4


@dataclass(frozen=True, slots=True)
class Difference:
    """
    Difference between two datasets in one aspect.

    Attributes
    ----------
    name : str
        DICOM keyword, or image statistic.
    source, target : str
        Counts of the values, or median and range.
    size : float
        Size of the difference, 0 (equal distributions) to 1 (disjoint): the total variation distance of
        texts, the Kolmogorov-Smirnov statistic of numbers.
    """

    name: str
    source: str
    target: str
    size: float


@dataclass(frozen=True, slots=True)
class Distances:
    """
    Distances between embeddings.

    Attributes
    ----------
    a_distance : float
        Proxy A-distance, 0 to 2; see :func:`medimg.adapt.proxy_a_distance`.
    coral : float
        CORAL distance, see :func:`medimg.adapt.coral_loss`; it depends on the scale of the embeddings.
    mmd : float
        Unbiased squared maximum mean discrepancy, see :func:`medimg.adapt.mmd_loss`.
    source, target : numpy.ndarray
        (n, 2) float32 projections on the first two principal components of all embeddings.
    """

    a_distance: float
    coral: float
    mmd: float
    source: NDArray[np.float32] = field(repr=False)
    target: NDArray[np.float32] = field(repr=False)

    @property
    def error(self) -> float:
        """Balanced error of the classifier of source versus target; 0.5 by chance."""
        return (1.0 - self.a_distance / 2.0) / 2.0


@set_module("medimg")
@dataclass(frozen=True, slots=True, repr=False)
class ShiftReport:
    """
    Domain shift between source and target; the result of :func:`medimg.domain_shift`.

    Attributes
    ----------
    items, patients : tuple of 2 ints
        Number of items and patients of source and target.
    shared_patients : int
        Number of patients in both.
    tags : tuple of Difference
        Differences of acquisition tags, the largest first; empty if the files have none.
    images : tuple of Difference
        Differences of the image statistics brightness, contrast, sharpness and noise.
    distances : Distances or None
        Distances between embeddings, if a model was given.
    """

    items: tuple[int, int]
    patients: tuple[int, int]
    shared_patients: int
    tags: tuple[Difference, ...]
    images: tuple[Difference, ...]
    distances: Distances | None

    @property
    def meaning(self) -> str:
        """Interpretation of the distances, in one sentence."""
        if self.distances is None:
            return "No model was given: pass model= to compare embeddings."
        a, wrong = self.distances.a_distance, 100 * self.distances.error
        if a < _NEAR:
            return f"Source and target are hardly distinguishable ({wrong:.0f} % errors, 50 % by chance)."
        advice = "scores on the source say little about the target: adapt to it, or train with its labels"
        if a >= _FAR:
            return f"Embeddings distinguish source from target with only {wrong:.0f} % errors; {advice}."
        advice = "try adapt.CORAL or adapt.DANN"
        return f"Embeddings distinguish source from target with {wrong:.0f} % errors; {advice}."

    def to_pandas(self) -> pd.DataFrame:
        """
        Return all differences and distances as a table.

        Returns
        -------
        pandas.DataFrame
            Columns ``aspect`` ("tag", "image", "embedding"), ``name``, ``source``, ``target`` and
            ``difference``: 0 to 1 for tags and image statistics, the distance for embeddings.
        """
        rows = [("tag", d.name, d.source, d.target, d.size) for d in self.tags]
        rows += [("image", d.name, d.source, d.target, d.size) for d in self.images]
        if self.distances is not None:
            for name in ("a_distance", "coral", "mmd"):
                rows.append(("embedding", name, "", "", getattr(self.distances, name)))
        return make_table(rows, ["aspect", "name", "source", "target", "difference"])

    def plot(self) -> Figure:
        """
        Return a figure of embeddings and differences.

        Returns
        -------
        matplotlib.figure.Figure
            Embeddings along their first two principal components on the left, if a model was given;
            differences of tags and image statistics on the right.
        """
        return plot_shift(self)

    def __str__(self) -> str:
        shared = f", {self.shared_patients} in both" if self.shared_patients else ""
        lines = [
            f"source: {self.items[0]} items of {self.patients[0]} patients; "
            f"target: {self.items[1]} of {self.patients[1]}{shared}"
        ]
        if self.distances is not None:
            d = self.distances
            lines.append(
                f"proxy A-distance {d.a_distance:.2f} (0 to 2), CORAL {d.coral:.3g}, MMD² {d.mmd:.3g}"
            )
        lines.append(self.meaning)
        shown = [d for d in (*self.tags, *self.images) if d.size >= 0.1]
        if shown:
            width = max(len(d.name) for d in shown)
            lines.append("differences, 0 to 1 (those below 0.1 are omitted):")
            lines += [f"  {d.size:.2f}  {d.name:<{width}}  {d.source}  →  {d.target}" for d in shown]
        else:
            lines.append("no tag or image statistic differs by 0.1 or more (0 to 1)")
        return "\n".join(lines)

    __repr__ = __str__


_MOST: Final = 12


def plot_shift(report: ShiftReport) -> Figure:
    """Return a figure of embeddings and differences."""
    several = report.distances is not None
    figure, axes = make_axes((10 if several else 5.5, 4.2), columns=2 if several else 1)
    if report.distances is not None:
        _draw_embeddings(axes[0], report.distances)
    _draw_differences(axes[-1], report)
    return figure


def _draw_embeddings(axes: Axes, distances: Distances) -> None:
    pairs = ((distances.source, COLORS[0], "o", "source"), (distances.target, COLORS[1], "^", "target"))
    for points, color, marker, label in pairs:
        x, y = points.T
        axes.scatter(x, y, s=14, c=color, marker=marker, alpha=0.5, linewidths=0, label=label)
    axes.set_title(f"Embeddings: proxy A-distance {distances.a_distance:.2f} of 2", fontsize="medium")
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")
    add_legend(axes, markerscale=1.6)


def _draw_differences(axes: Axes, report: ShiftReport) -> None:
    shown = sorted((*report.tags, *report.images), key=lambda d: d.size)[-_MOST:]
    axes.barh([d.name for d in shown], [d.size for d in shown], color=GRAY)
    axes.set_xlim(0, 1)
    axes.set_title("Tags and image statistics", fontsize="medium")
    axes.set_xlabel("difference (0 equal, 1 disjoint)")
