"""What a comparison of two data sets found: as text, as a table, as a figure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from medimg._plot_style import COLORS, GRAY, add_legend, make_axes

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


__all__ = ["Difference", "Distances", "ShiftReport", "shift_figure"]

#: Proxy A-distances from which on words change.
_FAR: Final = 1.2
_NEAR: Final = 0.4


@dataclass(frozen=True, slots=True)
class Difference:
    """
    One aspect of two data sets.

    Attributes
    ----------
    name : str
        A DICOM keyword, or a statistic of pictures.
    source, target : str
        Counts, or the median with the range.
    size : float
        0 (alike) to 1 (nothing in common): of words the total variation distance, of numbers the
        Kolmogorov-Smirnov statistic.
    """

    name: str
    source: str
    target: str
    size: float


@dataclass(frozen=True, slots=True)
class Distances:
    """
    How far apart embeddings are.

    Attributes
    ----------
    a_distance : float
        Proxy A-distance, 0 to 2; see :func:`medimg.adapt.proxy_a_distance`.
    coral : float
        See :func:`medimg.adapt.coral_loss`; its scale is that of the network.
    mmd : float
        Squared discrepancy, unbiased; see :func:`medimg.adapt.mmd_loss`.
    source, target : numpy.ndarray
        (n, 2) float32: embeddings in the plane in which all of them vary most.
    """

    a_distance: float
    coral: float
    mmd: float
    source: NDArray[np.float32] = field(repr=False)
    target: NDArray[np.float32] = field(repr=False)

    @property
    def error(self) -> float:
        """How often source and target are taken for each other: 0.5 by chance."""
        return (1.0 - self.a_distance / 2.0) / 2.0


@dataclass(frozen=True, slots=True, repr=False)
class ShiftReport:
    """
    How far a target is from the source; made by :func:`medimg.domain_shift`.

    Attributes
    ----------
    items, patients : tuple of 2 ints
        How many, of source and target.
    shared_patients : int
        How many patients are in both.
    tags : tuple of Difference
        Of the acquisition, the largest first; none where files state none.
    pictures : tuple of Difference
        Of brightness, contrast, sharpness and noise.
    distances : Distances or None
        Of embeddings, where a model was given.
    """

    items: tuple[int, int]
    patients: tuple[int, int]
    shared_patients: int
    tags: tuple[Difference, ...]
    pictures: tuple[Difference, ...]
    distances: Distances | None

    @property
    def meaning(self) -> str:
        """What the distances say, in a sentence or two."""
        if self.distances is None:
            return "No model was given: pass model= for the distance of what the network sees."
        a, wrong = self.distances.a_distance, 100 * self.distances.error
        if a < _NEAR:
            return f"Source and target are hardly told apart ({wrong:.0f} % errors, 50 % by chance)."
        advice = "a score on the source says little about the target: adapt to it, or train on its labels"
        if a >= _FAR:
            return f"The network tells source from target with {wrong:.0f} % errors only; {advice}."
        return (
            f"The network tells source from target with {wrong:.0f} % errors; try adapt.CORAL or adapt.DANN."
        )

    def to_pandas(self) -> pd.DataFrame:
        """
        Return a table.

        Returns
        -------
        pandas.DataFrame
            Columns ``aspect`` ("tag", "picture", "embedding"), ``name``, ``source``, ``target`` and
            ``difference``: 0 to 1 for tags and pictures, the distance for embeddings.
        """
        import pandas as pd

        rows = [("tag", d.name, d.source, d.target, d.size) for d in self.tags]
        rows += [("picture", d.name, d.source, d.target, d.size) for d in self.pictures]
        if self.distances is not None:
            for name in ("a_distance", "coral", "mmd"):
                rows.append(("embedding", name, "", "", getattr(self.distances, name)))
        return pd.DataFrame(rows, columns=["aspect", "name", "source", "target", "difference"])

    def plot(self) -> Figure:
        """
        Return a figure.

        Returns
        -------
        matplotlib.figure.Figure
            On the left the embeddings of both sides in the plane of their largest variance, where a model was
            given; on the right the differences of tags and pictures.
        """
        return shift_figure(self)

    def __str__(self) -> str:
        shared = f", {self.shared_patients} in both" if self.shared_patients else ""
        lines = [
            f"source: {self.items[0]} items of {self.patients[0]} patients; "
            f"target: {self.items[1]} of {self.patients[1]}{shared}"
        ]
        if self.distances is not None:
            d = self.distances
            lines.append(
                f"proxy A-distance {d.a_distance:.2f} (0 alike, 2 apart), CORAL {d.coral:.3g}, "
                f"MMD² {d.mmd:.3g}"
            )
        lines.append(self.meaning)
        shown = [d for d in (*self.tags, *self.pictures) if d.size >= 0.1]
        if shown:
            width = max(len(d.name) for d in shown)
            lines.append("differences from 0 to 1, those below 0.1 left out:")
            lines += [f"  {d.size:.2f}  {d.name:<{width}}  {d.source}  →  {d.target}" for d in shown]
        else:
            lines.append("no tag and no statistic of the pictures differs by 0.1 or more, of 1")
        return "\n".join(lines)

    __repr__ = __str__


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
    several = report.distances is not None
    figure, axes = make_axes((10 if several else 5.5, 4.2), columns=2 if several else 1)
    if report.distances is not None:
        _points(axes[0], report.distances)
    _bars(axes[-1], report)
    return figure


def _points(axes: Axes, distances: Distances) -> None:
    pairs = ((distances.source, COLORS[0], "o", "source"), (distances.target, COLORS[1], "^", "target"))
    for points, color, marker, label in pairs:
        x, y = points.T
        axes.scatter(x, y, s=14, c=color, marker=marker, alpha=0.5, linewidths=0, label=label)
    axes.set_title(f"Embeddings: proxy A-distance {distances.a_distance:.2f} of 2", fontsize="medium")
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")
    add_legend(axes, markerscale=1.6)


def _bars(axes: Axes, report: ShiftReport) -> None:
    shown = sorted((*report.tags, *report.pictures), key=lambda d: d.size)[-_MOST:]
    axes.barh([d.name for d in shown], [d.size for d in shown], color=GRAY)
    axes.set_xlim(0, 1)
    axes.set_title("Tags and pictures", fontsize="medium")
    axes.set_xlabel("difference: 0 alike, 1 nothing in common")
