"""Saliency maps in the geometry of the source, and figures of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

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
    import os
    from pathlib import Path

    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure


__all__ = ["Explanation", "figure", "image_of", "overlay"]


@set_module("medimg")
@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """
    Saliency map of a class, in the geometry of the source.

    Attributes
    ----------
    heat : numpy.ndarray
        (N, H, W) float32, 0 to 1, with the rows and columns of the source's array; 0 where the preprocessing
        cropped. 1 is the maximum over all N slices and the padding, so that slices of one source can be
        compared, and different sources can't. All zeros if there is no evidence for the class.
    slices : tuple of int
        Indices of the N slices in the volume, ascending.
    weights : numpy.ndarray
        (N,) float64 contributions of the slices to the prediction: attention weights; with "max" the fraction
        of features whose maximum is in the slice; otherwise equal weights. They sum to 1 over all slices that
        the preprocessing uses.
    target : str
        Name of the class.
    probability : float
        Probability of the class in the whole source, calibrated if the model is.
    outside : float
        Fraction of the heat in the padding, outside the image: evidence there is not anatomy.
    method : str
        Method, "gradcam" or "hirescam".
    layer : str
        Layer with the activations.
    cells : tuple of 2 ints
        Rows and columns of the layer's grid over an image, which is the resolution of the map.
    volume : Volume
        Source, as it was read.
    recipe : Preprocess
        Preprocessing of its images.
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
        """Index in the volume of the slice with the maximum heat."""
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
                f"slice {index} has no heat map; expected one of {_slice_words(self.slices)}; choose slices "
                "by explain(slices=...)"
            )
        plane: npt.NDArray[np.float32] = self.heat[self.slices.index(index)]
        return plane

    def to_volume(self) -> Volume:
        """
        Return the heat as a volume at the same position in the patient.

        Returns
        -------
        Volume
            (1, N, H, W) float32, with the affine of the source, or of its explained slices.

        Raises
        ------
        GeometryError
            If the explained slices are unevenly spaced, so that no affine describes them.
        """
        if len(set(np.diff(self.slices).tolist())) > 1:
            raise GeometryError(
                f"the explained slices {_slice_words(self.slices)} are unevenly spaced and don't form a "
                "volume; explain all of them, or use heat and slices"
            )
        return _heat_volume(self.volume.take(self.slices), self.heat[None])

    @overload
    def save(self, path: os.PathLike[str], *, compress: bool = True) -> Path: ...
    @overload
    def save(self, path: str, *, compress: bool = True) -> Path | str: ...
    def save(self, path: str | os.PathLike[str], *, compress: bool = True) -> Path | str:
        """
        Write the heat as an image at the same position in the patient; see :meth:`Volume.save`.

        Parameters
        ----------
        path : str or Path
            File or URL, ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``.
        compress : bool
            Whether the values of NRRD and MetaImage are compressed.

        Returns
        -------
        Path or str
            The file; of a URL the URL.

        Raises
        ------
        GeometryError
            If the explained slices are unevenly spaced.
        ConversionError
            If the format is unknown, or the URL can't be written to.
        OSError
            If the file can't be written; of a URL a :class:`~medimg.errors.StoreError`.
        """
        return self.to_volume().save(path, compress=compress)

    def overlay(
        self, slice: int | None = None, *, alpha: float = 0.6, colormap: str = "inferno"
    ) -> npt.NDArray[np.uint8]:
        """
        Return an image of a slice with its heat in color.

        Parameters
        ----------
        slice : int, optional
            Index in the volume; by default the slice with the maximum heat.
        alpha : float
            Opacity of the color where the heat is 1, from 0 to 1; it is 0 where the heat is 0.
        colormap : str
            Name of a matplotlib colormap; "inferno", "magma", "plasma" and "viridis" are perceptually
            uniform, also with color vision deficiency.

        Returns
        -------
        numpy.ndarray
            (rows, columns, 3) uint8 in display orientation, in the recipe's window, with square pixels.

        Raises
        ------
        TrainingError
            If the slice has no heat map, or `alpha` or `colormap` is invalid.
        """
        return overlay(self, self.hottest if slice is None else slice, alpha=alpha, colormap=colormap)

    def plot(self, *, most: int = 6, alpha: float = 0.6, colormap: str = "inferno") -> Figure:
        """
        Return a figure of slices with and without their heat, a color scale, and the weights of the slices.

        Parameters
        ----------
        most : int
            Largest number of slices; those with the maximum heat are shown.
        alpha, colormap
            As for :meth:`overlay`.

        Returns
        -------
        matplotlib.figure.Figure
            Not registered with pyplot; ``figure.savefig(path)`` writes it.
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


def _heat_volume(source: Volume, heat: npt.NDArray[np.float32]) -> Volume:
    """Return heat (1, D, H, W) in the geometry of a volume."""
    return replace(
        source,
        array=heat,
        units="raw",
        photometric="MONOCHROME2",
        inverted=False,
        channels=("heat",),
        voi=((Window.from_range(0.0, 1.0),),),
        padding=None,
        display_range=(0.0, 1.0),
        report=source.report.then("replaced by the heat map of a class"),
    )


def _slice_words(slices: tuple[int, ...]) -> str:
    """Return slice indices as words."""
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
    Return a slice (rows, columns, 3) uint8 and its heat (rows, columns) float32 in display orientation.

    The slice is in the recipe's window; pixels are square.
    """
    values = explanation.of_slice(index)
    single = explanation.volume.take([index])
    rendered = render(single, window=_window(explanation, index))
    image = rendered if rendered.ndim == 3 else np.repeat(rendered[..., None], 3, axis=2)
    heat = replace(single, array=values[None, None], photometric="MONOCHROME2", channels=(), padding=None)
    if single.space == "patient":
        heat = heat.reorient(display_code(heat.affine))
    size = _square_pixel_size(heat)
    return _resize(image, size), np.clip(_resize(heat.array[0, 0], size), 0.0, 1.0)


def _window(explanation: Explanation, index: int) -> Voi:
    """Return the recipe's window for a slice; the middle one of three."""
    volume, recipe = explanation.volume, explanation.recipe
    if volume.is_color:
        return Window.from_range(0.0, 1.0)  # not used
    # a recipe makes Windows of pairs: a tuple is three windows
    window: Any = recipe.window
    window = window[1] if isinstance(window, tuple) else window
    found = choose_voi(volume, window, recipe.percentiles, full_range=recipe.has_full_range)
    return found[index if len(found) > 1 else 0]


def _square_pixel_size(volume: Volume) -> tuple[int, int]:
    """Return the rows and columns of a slice with square pixels, not fewer than it has."""
    (_, _, height, width), (_, between_rows, between_columns) = volume.shape, volume.spacing
    ratio = between_rows / between_columns
    # smaller differences are invisible, and an absurd spacing is ignored
    if not 1.01 < max(ratio, 1 / ratio) < 50:
        return height, width
    return (round(height * ratio), width) if ratio > 1 else (height, round(width / ratio))


def _resize(array: npt.NDArray[_Number], size: tuple[int, int]) -> npt.NDArray[_Number]:
    from PIL import Image

    if array.shape[:2] == size:
        return array
    image = Image.fromarray(np.ascontiguousarray(array))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR), dtype=array.dtype)


def _colormap(name: str) -> Colormap:
    from matplotlib import colormaps

    if not isinstance(name, str) or name not in colormaps:
        raise TrainingError(f"matplotlib has no colormap {name!r}; use inferno, magma, plasma or viridis")
    return colormaps[name]


def figure(
    explanation: Explanation, *, most: int = 6, alpha: float = 0.6, colormap: str = "inferno"
) -> Figure:
    """Plot slices without and with their heat; see :meth:`Explanation.plot`."""
    most = check_whole_number("most", most, least=1)
    hottest = np.argsort(-explanation.heat.max(axis=(1, 2)), kind="stable")[:most]
    shown = sorted(explanation.slices[n] for n in hottest)
    has_weights = len(explanation.slices) > 1
    plain = [image_of(explanation, n)[0] for n in shown]
    hot = [overlay(explanation, n, alpha=alpha, colormap=colormap) for n in shown]
    aspect = max(image.shape[0] / image.shape[1] for image in plain)
    height = 2 * 2.4 * aspect if has_weights else 3.4 * aspect
    width = max(2.4 * len(shown), 4.0) if has_weights else 6.8
    whole = make_figure((width + 1.0, height + (1.9 if has_weights else 0.5)))
    if not has_weights:
        _draw_panels(whole, [[(plain[0], ""), (hot[0], "")]], colormap)
        _draw_title(whole, explanation)
        return whole
    both: Any = whole.subfigures(2, 1, height_ratios=(height + 0.5, 1.4))
    above, below = both
    titles = [f"slice {n}" for n in shown]
    rows = [list(zip(plain, titles, strict=True)), [(image, "") for image in hot]]
    _draw_panels(above, rows, colormap)
    _draw_title(above, explanation)
    _draw_weights(below, explanation, shown)
    return whole


def _draw_panels(parent: Figure | SubFigure, rows: Sequence[Sequence[_Panel]], colormap: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    grid = parent.subplots(len(rows), len(rows[0]), squeeze=False)
    for axes, (image, title) in zip(grid.flat, chain(*rows), strict=True):
        axes.imshow(image)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    scale = ScalarMappable(Normalize(0.0, 1.0), colormap)
    parent.colorbar(scale, ax=list(grid.flat), label="heat", aspect=40, ticks=[0.0, 0.5, 1.0])


def _draw_title(parent: Figure | SubFigure, explanation: Explanation) -> None:
    """Draw the class and its probability."""
    title = parent.suptitle(f"{explanation.target}, probability {explanation.probability:.2f}", fontsize=11)
    title.set_parse_math(False)  # class names are not formulas


def _draw_weights(parent: SubFigure, explanation: Explanation, shown: Sequence[int]) -> None:
    """Draw the weights of the slices, dark for those shown."""
    from matplotlib.ticker import MaxNLocator

    axes = parent.subplots()
    colors = ["0.25" if n in shown else "0.7" for n in explanation.slices]
    axes.bar(explanation.slices, explanation.weights, width=0.9, color=colors)
    ends = (explanation.slices[0] - 0.7, explanation.slices[-1] + 0.7)
    axes.set(xlabel="slice", ylabel="weight", xlim=ends, ylim=(0.0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes, grid=False)
