"""A figure and axes that Jupyter shows without pyplot. Imports matplotlib: import it inside functions."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["NotebookAxes", "NotebookFigure", "render_png"]

_DPI = 100


def render_png(figure: Figure) -> bytes:
    """Render a figure as PNG, cut to its content as in Jupyter's inline backend."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


class NotebookAxes(Axes):
    """Axes whose whole figure is shown if they are the result of a cell."""

    def _repr_png_(self) -> bytes | None:
        return render_png(self.figure) if isinstance(self.figure, Figure) else None


class NotebookFigure(Figure):
    """A figure that is shown if it is the result of a cell, and whose axes are."""

    def add_subplot(self, *args: Any, **kwargs: Any) -> Axes:
        """Add axes; those without a projection are `NotebookAxes`."""
        if not {"axes_class", "projection", "polar"} & kwargs.keys():
            kwargs["axes_class"] = NotebookAxes
        axes: Axes = super().add_subplot(*args, **kwargs)
        return axes

    def _repr_png_(self) -> bytes:
        return render_png(self)
