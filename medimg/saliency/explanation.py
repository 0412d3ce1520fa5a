"""What an explanation holds: heat maps as they lie in the source, and pictures of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from medimg._plot_style import make_figure, style_axes
from medimg._public import set_module
from medimg._validation import check_number, check_whole_number
from medimg.core.display import choose_voi, encode_png, render
from medimg.core.geometry import display_code
from medimg.core.volume import Volume
from medimg.core.window import Voi, Window
from medimg.errors import GeometryError, TrainingError
from medimg.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure


__all__ = ["Explanation", "figure", "image_of", "overlay"]


@set_module("medimg")
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
        return figure(self, most=most, alpha=alpha, colormap=colormap)

    def __repr__(self) -> str:
        n, rows, columns = self.heat.shape
        return (
            f"Explanation({self.target}, probability {self.probability:.3f}, {n}×{rows}×{columns}, "
            f"{self.method} of {self.layer} with {self.cells[0]}×{self.cells[1]} cells, "
            f"{100 * self.outside:.0f} % outside the image)"
        )

    def _repr_png_(self) -> bytes:
        return encode_png(self.overlay())


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


_Number = TypeVar("_Number", np.uint8, np.float32)
_Panel: TypeAlias = tuple[npt.NDArray[np.uint8], str]


def overlay(
    explanation: Explanation, index: int, *, alpha: float = 0.6, colormap: str = "inferno"
) -> npt.NDArray[np.uint8]:
    """Return a slice with its heat in color; see :meth:`Explanation.overlay`."""
    alpha = check_number("alpha", alpha, least=0, most=1)
    colors = _colormap(colormap)
    gray, heat = image_of(explanation, index)
    share = alpha * heat[..., None]
    blended = (1.0 - share) * gray + share * 255.0 * colors(heat)[..., :3]
    colored: npt.NDArray[np.uint8] = np.rint(blended).astype(np.uint8)
    return colored


def image_of(explanation: Explanation, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """
    Return a slice and its heat as they are looked at.

    Parameters
    ----------
    explanation : Explanation
        What to show.
    index : int
        The slice, as it lies in the volume.

    Returns
    -------
    picture : numpy.ndarray
        (rows, columns, 3) uint8, in the recipe's window, its pixels as high as they are wide.
    heat : numpy.ndarray
        (rows, columns) float32, 0 to 1.
    """
    values = explanation.of_slice(index)
    place = explanation.volume.take([index])
    shown = render(place, window=_window(explanation, index))
    picture = shown if shown.ndim == 3 else np.repeat(shown[..., None], 3, axis=2)
    heat = replace(place, array=values[None, None], photometric="MONOCHROME2", channels=(), padding=None)
    if place.space == "patient":
        heat = heat.reorient(display_code(heat.affine))
    size = _square(heat)
    return _resized(picture, size), np.clip(_resized(heat.array[0, 0], size), 0.0, 1.0)


def _window(explanation: Explanation, index: int) -> Voi:
    """Return what the recipe sees a slice through; of three windows the middle one."""
    volume, recipe = explanation.volume, explanation.recipe
    if volume.is_color:
        return Window.from_range(0.0, 1.0)  # not looked at
    window = recipe.window[1] if isinstance(recipe.window, tuple) else recipe.window
    found = choose_voi(volume, window, recipe.percentiles)
    return found[index if len(found) > 1 else 0]


def _square(volume: Volume) -> tuple[int, int]:
    """Return the rows and columns of a slice whose pixels are as high as they are wide; none are lost."""
    (_, _, height, width), (_, between_rows, between_columns) = volume.shape, volume.spacing
    ratio = between_rows / between_columns
    # what differs by less shows no difference, and an absurd spacing is no picture
    if not 1.01 < max(ratio, 1 / ratio) < 50:
        return height, width
    return (round(height * ratio), width) if ratio > 1 else (height, round(width / ratio))


def _resized(array: npt.NDArray[_Number], size: tuple[int, int]) -> npt.NDArray[_Number]:
    from PIL import Image

    if array.shape[:2] == size:
        return array
    image = Image.fromarray(np.ascontiguousarray(array))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR), dtype=array.dtype)


def _colormap(name: str) -> Colormap:
    from matplotlib import colormaps

    if not isinstance(name, str) or name not in colormaps:
        raise TrainingError(f"matplotlib has no colormap {name!r}; take inferno, magma, plasma or viridis")
    return colormaps[name]


def figure(
    explanation: Explanation, *, most: int = 6, alpha: float = 0.6, colormap: str = "inferno"
) -> Figure:
    """Draw slices without and with their heat; see :meth:`Explanation.plot`."""
    most = check_whole_number("most", most, least=1)
    hottest = np.argsort(-explanation.heat.max(axis=(1, 2)), kind="stable")[:most]
    shown = sorted(explanation.slices[n] for n in hottest)
    weighed = len(explanation.slices) > 1
    plain = [image_of(explanation, n)[0] for n in shown]
    hot = [overlay(explanation, n, alpha=alpha, colormap=colormap) for n in shown]
    aspect = max(picture.shape[0] / picture.shape[1] for picture in plain)
    height = 2 * 2.4 * aspect if weighed else 3.4 * aspect
    width = max(2.4 * len(shown), 4.0) if weighed else 6.8
    whole = make_figure((width + 1.0, height + (1.9 if weighed else 0.5)))
    if not weighed:
        _panels(whole, [[(plain[0], ""), (hot[0], "")]], colormap)
        _title(whole, explanation)
        return whole
    both: Any = whole.subfigures(2, 1, height_ratios=(height + 0.5, 1.4))
    above, below = both
    titles = [f"slice {n}" for n in shown]
    rows = [list(zip(plain, titles, strict=True)), [(picture, "") for picture in hot]]
    _panels(above, rows, colormap)
    _title(above, explanation)
    _weights(below, explanation, shown)
    return whole


def _panels(parent: Figure | SubFigure, rows: Sequence[Sequence[_Panel]], colormap: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    grid = parent.subplots(len(rows), len(rows[0]), squeeze=False)
    for axes, (picture, title) in zip(grid.flat, chain(*rows), strict=True):
        axes.imshow(picture)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    scale = ScalarMappable(Normalize(0.0, 1.0), colormap)
    parent.colorbar(scale, ax=list(grid.flat), label="heat", aspect=40, ticks=[0.0, 0.5, 1.0])


def _title(parent: Figure | SubFigure, explanation: Explanation) -> None:
    said = parent.suptitle(f"{explanation.target}, probability {explanation.probability:.2f}", fontsize=11)
    said.set_parse_math(False)  # names of classes are no formulas


def _weights(parent: SubFigure, explanation: Explanation, shown: Sequence[int]) -> None:
    """How much each slice counts; those above are dark."""
    axes = parent.subplots()
    colors = ["0.25" if n in shown else "0.7" for n in explanation.slices]
    axes.bar(explanation.slices, explanation.weights, width=0.9, color=colors)
    ends = (explanation.slices[0] - 0.7, explanation.slices[-1] + 0.7)
    axes.set(xlabel="slice", ylabel="weight", xlim=ends, ylim=(0.0, None))
    style_axes(axes, grid=False)
