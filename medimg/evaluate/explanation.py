"""What an explanation holds: heat maps as they lie in the source, and pictures of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medimg.core.display import png
from medimg.core.volume import Volume
from medimg.core.window import Window
from medimg.errors import GeometryError, TrainingError
from medimg.prep import Preprocess

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Explanation"]


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """
    Where in an image a classifier found a class.

    Attributes
    ----------
    heat : numpy.ndarray
        (N, H, W) float32, 0 to 1: rows and columns as they lie in the source's array, zero where the recipe
        cropped. 1 is the greatest heat of all N slices, padding included, so that slices can be compared with
        each other, and sources can't. All zeros where nothing speaks for the class.
    slices : tuple of int
        The N slices, as indices in the volume as it was read, ascending.
    weights : numpy.ndarray
        (N,) float64: how much each slice counts in the prediction. The attention's weights; with "max" the
        share of features whose maximum lies in the slice; else equal shares. They sum to 1 over all slices
        that the recipe takes.
    target : str
        The class.
    probability : float
        That of the class in the whole source, calibrated where the model is.
    outside : float
        Share of the heat that lies in the recipe's padding, where there is no image: a model that looks there
        has learned something else than anatomy.
    method : str
        How the heat was computed.
    layer : str
        The layer whose activations it was made of.
    cells : tuple of 2 ints
        Rows and columns of its grid over a picture: nothing finer is told apart.
    volume : Volume
        The source, as it was read.
    recipe : Preprocess
        How its pictures were made.
    """

    heat: npt.NDArray[np.float32] = field(repr=False)
    slices: tuple[int, ...]
    weights: npt.NDArray[np.float64] = field(repr=False)
    target: str
    probability: float
    outside: float
    method: str
    layer: str
    cells: tuple[int, int]
    volume: Volume = field(repr=False)
    recipe: Preprocess = field(repr=False)

    @property
    def hottest(self) -> int:
        """The slice with the greatest heat, as an index in the volume."""
        return self.slices[int(self.heat.max(axis=(1, 2)).argmax())]

    def of_slice(self, index: int) -> npt.NDArray[np.float32]:
        """
        Return the heat (H, W) of one slice, by its index in the volume.

        Raises
        ------
        TrainingError
            If it has none.
        """
        if index not in self.slices:
            raise TrainingError(
                f"slice {index} has no heat map; these have: {_listed(self.slices)}. "
                "explain(slices=...) chooses them"
            )
        plane: npt.NDArray[np.float32] = self.heat[self.slices.index(index)]
        return plane

    def to_volume(self) -> Volume:
        """
        Return the heat as a volume in the same place in the patient.

        Returns
        -------
        Volume
            (1, N, H, W) float32, with the source's affine, or that of its explained slices.

        Raises
        ------
        GeometryError
            If the explained slices are unevenly spaced, as no affine fits these.
        """
        if len(set(np.diff(self.slices).tolist())) > 1:
            raise GeometryError(
                f"the explained slices {_listed(self.slices)} are unevenly spaced, and make no volume; "
                "explain all of them, or look at heat and slices"
            )
        return _heat_volume(self.volume.take(self.slices), self.heat[None])

    def overlay(
        self, slice: int | None = None, *, alpha: float = 0.6, colormap: str = "inferno"
    ) -> npt.NDArray[np.uint8]:
        """
        Return a picture of a slice with its heat in color.

        Parameters
        ----------
        slice : int, optional
            Index in the volume as it was read; by default the one with the greatest heat.
        alpha : float
            How much of the color is seen where the heat is 1, from 0 to 1; where it is 0, none is.
        colormap : str
            One of matplotlib's. "inferno", "magma", "plasma" and "viridis" are perceptually uniform: equal
            steps of heat look equal, also to those who see fewer colors.

        Returns
        -------
        numpy.ndarray
            (rows, columns, 3) uint8, the way radiologists look at it, in the recipe's window, its pixels as
            high as they are wide.

        Raises
        ------
        TrainingError
            If the slice has no heat map, or `alpha` or `colormap` is unsound.
        """
        from medimg.evaluate.saliency_pictures import overlay

        return overlay(self, self.hottest if slice is None else slice, alpha=alpha, colormap=colormap)

    def plot(self, *, most: int = 6, alpha: float = 0.6, colormap: str = "inferno") -> Figure:
        """
        Return a figure: slices beside the same with their heat, the scale, and the weights of the slices.

        Parameters
        ----------
        most : int
            At most so many slices, those with the greatest heat.
        alpha, colormap
            As for :meth:`overlay`.

        Returns
        -------
        matplotlib.figure.Figure
            Not registered with pyplot, so that nothing keeps it alive; ``figure.savefig(path)`` writes it.
        """
        from medimg.evaluate.saliency_pictures import figure

        return figure(self, most=most, alpha=alpha, colormap=colormap)

    def __repr__(self) -> str:
        n, rows, columns = self.heat.shape
        return (
            f"Explanation({self.target}, probability {self.probability:.3f}, {n}×{rows}×{columns}, "
            f"{self.method} of {self.layer} with {self.cells[0]}×{self.cells[1]} cells, "
            f"{100 * self.outside:.0f} % outside the image)"
        )

    def _repr_png_(self) -> bytes:
        return png(self.overlay())


def _heat_volume(place: Volume, heat: npt.NDArray[np.float32]) -> Volume:
    """Return heat (1, D, H, W) in the place of a volume."""
    return replace(
        place,
        array=heat,
        units="raw",
        photometric="MONOCHROME2",
        inverted=False,
        channels=("heat",),
        voi=((Window.from_range(0.0, 1.0),),),
        padding=None,
        report=place.report.then("replaced by the heat map of a class"),
    )


def _listed(slices: tuple[int, ...]) -> str:
    if len(slices) > 1 and len(slices) == slices[-1] - slices[0] + 1:
        return f"{slices[0]} to {slices[-1]}"
    return ", ".join(map(str, slices[:8])) + (" and more" if len(slices) > 8 else "")
