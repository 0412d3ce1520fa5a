"""The volume: an array of quantitative values with its geometry."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medimg._public import set_module
from medimg.core import geometry
from medimg.core.read_report import ReadReport
from medimg.errors import GeometryError, PreprocessError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from matplotlib.figure import Figure

    from medimg.core.display import WindowChoice
    from medimg.core.kernels import Interpolation
    from medimg.core.window import Voi

__all__ = ["Photometric", "Space", "Volume"]

Photometric = Literal["MONOCHROME1", "MONOCHROME2", "RGB"]
Space = Literal["patient", "image"]


@set_module("medimg")
@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """
    An image: values, geometry and the record of reading.

    Values are quantitative: rescaled to modality units, never windowed and never inverted. The array is
    read-only; :meth:`with_array` makes a volume of other values with the same geometry.

    Parameters
    ----------
    array : numpy.ndarray
        (C, D, H, W): channels, slices, rows, columns. C is 1 for a grayscale image, 3 for RGB, or the number
        of echoes or time points.
    affine : numpy.ndarray
        (4, 4) float64: index (d, h, w) to LPS millimeters.
    modality : str
        "CT", "MR", "CR", "DX", "MG", …; "" if unknown.
    units : str
        "HU", or "raw" if the values have no unit.
    photometric : {"MONOCHROME2", "MONOCHROME1", "RGB"}
        Photometric interpretation: MONOCHROME1 is displayed inverted (PS3.3 C.7.6.3.1.2).
    inverted : bool
        Whether a display inverts the windowed values: MONOCHROME1, or Presentation LUT Shape INVERSE; both
        together invert once.
    space : {"patient", "image"}
        "patient" if the affine gives positions in a patient; "image" if only sizes are known, as in a
        photograph or a projection X-ray.
    channels : tuple of str
        Name of each channel.
    voi : tuple of tuple of (Window or LookupTable)
        Windows declared in the file: for each slice the alternatives, the default first; a single entry
        applies to all slices.
    padding : numpy.ndarray, optional
        (C, D, H, W) bool: pixels outside the image (Pixel Padding Value, PS3.3 C.7.5.1.1.2).
    display_range : tuple of 2 floats, optional
        Values displayed as black and white, if the image is ready for display, as one of 8 bits: (0, 255);
        None if the range of values says nothing about the display.
    report : ReadReport
        Record of how the volume was read.

    Raises
    ------
    GeometryError
        If shapes contradict each other or the affine is singular.

    Examples
    --------
    >>> volume = Volume(np.zeros((1, 10, 64, 64), np.int16), geometry.image_affine((2.0, 0.5, 0.5)))
    >>> volume
    Volume(1×10×64×64 int16, raw, spacing 2×0.5×0.5 mm, SPL)
    >>> volume.spacing
    (2.0, 0.5, 0.5)
    """

    array: npt.NDArray[Any]
    affine: geometry.Affine
    modality: str = ""
    units: str = "raw"
    photometric: Photometric = "MONOCHROME2"
    inverted: bool = False
    space: Space = "patient"
    channels: tuple[str, ...] = ()
    voi: tuple[tuple[Voi, ...], ...] = ()
    padding: npt.NDArray[np.bool_] | None = None
    display_range: tuple[float, float] | None = None
    report: ReadReport = field(default_factory=ReadReport)

    def __post_init__(self) -> None:
        array = np.asarray(self.array).view()
        affine = np.array(self.affine, dtype=np.float64)
        if array.ndim != 4 or 0 in array.shape:
            raise GeometryError(
                f"a volume must be (C, D, H, W), none of them 0; found the shape {array.shape}"
            )
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
            raise GeometryError("the affine of a volume must be a finite, invertible 4×4 matrix")
        if len(self.voi) not in {0, 1, array.shape[1]}:
            raise GeometryError(
                f"expected no windows, one set, or one for each slice; "
                f"found {len(self.voi)} for {array.shape[1]} slices"
            )
        array.setflags(write=False)
        affine.setflags(write=False)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", affine)
        if self.padding is not None:
            padding = np.asarray(self.padding, dtype=np.bool_).view()
            if padding.shape != array.shape:
                raise GeometryError(f"the padding has the shape {padding.shape}, the array {array.shape}")
            padding.setflags(write=False)
            object.__setattr__(self, "padding", padding)
        if not self.channels:
            object.__setattr__(self, "channels", self._default_channels())
        if len(self.channels) != array.shape[0]:
            raise GeometryError(f"{len(self.channels)} channel names for {array.shape[0]} channels")

    def _default_channels(self) -> tuple[str, ...]:
        if self.photometric == "RGB":
            return ("R", "G", "B")
        count = self.array.shape[0]
        return ("",) if count == 1 else tuple(str(i) for i in range(count))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (C, D, H, W)."""
        c, d, h, w = self.array.shape
        return c, d, h, w

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbors along (D, H, W), in millimeters."""
        return geometry.spacing_of(self.affine)

    @property
    def orientation(self) -> str:
        """Anatomical direction of the axes (D, H, W), such as "SPL": Superior, Posterior, Left."""
        return geometry.orientation_code(self.affine)

    @property
    def is_color(self) -> bool:
        """Whether the channels are red, green and blue."""
        return self.photometric == "RGB"

    @property
    def white(self) -> float:
        """Maximum of a color channel: that of its integer dtype, or 1 for floating-point numbers."""
        dtype = self.array.dtype
        return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0

    def with_array(
        self, array: npt.NDArray[Any], *, step: str = "values replaced", keep_padding: bool = False
    ) -> Volume:
        """
        Return a volume of other values with the same geometry.

        Parameters
        ----------
        array : numpy.ndarray
            (C, D, H, W) with the same D, H and W.
        step : str
            Description of the step, for the report.
        keep_padding : bool
            Whether the padding mask is kept.

        Returns
        -------
        Volume

        Raises
        ------
        GeometryError
            If D, H or W differ.
        """
        values = np.asarray(array)
        if values.shape[1:] != self.array.shape[1:] or values.ndim != 4:
            raise GeometryError(
                f"with_array keeps the geometry of a volume: expected (C, {self.array.shape[1]}, "
                f"{self.array.shape[2]}, {self.array.shape[3]}), found {values.shape}"
            )
        same = values.shape[0] == self.array.shape[0]
        return replace(
            self,
            array=values,
            channels=self.channels if same else (),
            padding=self.padding if same and keep_padding else None,
            display_range=None,
            report=self.report.then(step),
        )

    def select(self, channel: int | str) -> Volume:
        """
        Return one channel (echo, time point, color) as a volume with C = 1.

        Parameters
        ----------
        channel : int or str
            Index or name of the channel.

        Raises
        ------
        GeometryError
            If there is no such channel.
        """
        if isinstance(channel, str) and channel in self.channels:
            channel = self.channels.index(channel)
        if not isinstance(channel, int) or not -len(self.channels) <= channel < len(self.channels):
            raise GeometryError(f"no channel {channel!r}; expected an index below {len(self.channels)}")
        chosen = range(len(self.channels))[channel]
        report = self.report.then(f"channel {chosen} of {len(self.channels)} selected")
        if not self.is_color:
            report = report.of_channel(chosen, len(self.channels))
        return replace(
            self,
            array=self.array[chosen : chosen + 1],
            channels=(self.channels[chosen],),
            photometric="MONOCHROME2" if self.is_color else self.photometric,
            padding=None if self.padding is None else self.padding[chosen : chosen + 1],
            report=report,
        )

    def take(self, slices: Sequence[int]) -> Volume:
        """
        Return some slices of the volume.

        The step of the affine is the mean distance between them; the report notes uneven spacing.

        Parameters
        ----------
        slices : sequence of int
            Indices along D, ascending and distinct.

        Raises
        ------
        GeometryError
            If one is out of range, none is given, or they are not ascending.
        """
        depth = self.array.shape[1]
        chosen = geometry.ascending_slices(slices, depth)
        uneven = len(set(np.diff(chosen))) > 1
        report = self.report.then(f"{len(chosen)} of {depth} slices taken{', unevenly spaced' * uneven}")
        report = replace(report.at_slices(chosen, depth), missing=())
        return replace(
            self,
            array=self.array[:, chosen],
            affine=geometry.subset_affine(self.affine, chosen),
            voi=tuple(self.voi[i] for i in chosen) if len(self.voi) > 1 else self.voi,
            padding=None if self.padding is None else self.padding[:, chosen],
            report=report,
        )

    def reorient(self, code: str) -> Volume:
        """
        Permute and flip the axes (D, H, W) to another orientation, without interpolation.

        Parameters
        ----------
        code : str
            Three letters for the directions of (D, H, W), one each of L/R, P/A and S/I, such as "SPL" for the
            standard view of axial slices.

        Returns
        -------
        Volume
            Each value keeps its position in the patient. Facts of each slice (windows, SOP Instance UIDs)
            follow a flip of D; they are dropped if another axis becomes D and they differ between slices.

        Raises
        ------
        GeometryError
            If the code is not one of the 48, or the volume has no position in a patient.
        """
        if self.space != "patient":
            raise GeometryError("this image has no known orientation in a patient, and can't be reoriented")
        if code.upper() == self.orientation:
            return self
        array, affine, axes, flipped = geometry.reorient(self.array, self.affine, code)
        padding = None
        if self.padding is not None:
            padding = geometry.reorient(self.padding, self.affine, code)[0]
        report = self.report.then(f"reoriented from {self.orientation} to {code.upper()}")
        voi = self.voi
        if axes[0] != 0:
            voi = voi if len(voi) == 1 else ()
            report = replace(report, sop_instance_uids=(), frame_numbers=(), missing=())
        elif flipped[0]:
            voi = voi[::-1]
            depth = self.array.shape[1]
            report = replace(
                report.at_slices(range(depth - 1, -1, -1), depth),
                missing=tuple(depth - 2 - index for index in reversed(report.missing)),
            )
        return replace(self, array=array, affine=affine, padding=padding, voi=voi, report=report)

    def resample(
        self,
        spacing: float | Sequence[float],
        *,
        interpolation: Interpolation = "linear",
        antialias: bool = True,
    ) -> Volume:
        """
        Resample to another spacing, one axis at a time, on all cores.

        Parameters
        ----------
        spacing : float or sequence of 3 floats
            Distance between neighbors along (D, H, W), in millimeters.
        interpolation : {"linear", "bspline", "nearest"}
            "linear". "bspline": interpolating cubic B-splines, sharper, with overshoots at sharp edges, as
            SimpleITK's ``sitkBSpline``. "nearest": nearest neighbor, for labels.
        antialias : bool
            Whether structures finer than the new spacing are averaged along axes that become coarser, which
            prevents aliasing: the triangle, or the cardinal spline, is widened to the new spacing. "nearest"
            never mixes values.

        Returns
        -------
        Volume
            float32, colors from 0 to 1, covering the same extent, measured from the outer edge of the first
            voxel, which is unchanged; a single slice stays single. Padded pixels and non-finite values count
            as the minimum of the image, as a mixture of tissue and padding would be neither; voxels of which
            they are more than half are padding.

        Raises
        ------
        PreprocessError
            If the spacing is not positive, the interpolation unknown, or the result would be unreasonably
            large.

        Examples
        --------
        >>> volume = Volume(np.zeros((1, 10, 64, 64), np.int16), geometry.image_affine((2.0, 0.5, 0.5)))
        >>> volume.resample(1.0)
        Volume(1×20×32×32 float32, raw, spacing 1×1×1 mm, SPL)
        """
        from medimg.core.resample import resample_volume

        return resample_volume(self, spacing, interpolation=interpolation, antialias=antialias)

    def plot(
        self, *, at: Sequence[int] | None = None, window: WindowChoice = "auto", channel: int | str = 0
    ) -> Figure:
        """
        Return a figure of the axial, coronal and sagittal plane through a voxel, in physical aspect.

        Images without a position in a patient, and single slices, are shown as one slice.

        Parameters
        ----------
        at : sequence of 3 ints, optional
            Indices (d, h, w) of the voxel; by default the middle.
        window : str, int, Window or LookupTable
            Window: "auto", "dicom", "percentile", a preset, the number or the explanation of a window of the
            file, or a :class:`medimg.Window`; not used for colors.
        channel : int or str
            Index or name of the channel; colors are shown together.

        Returns
        -------
        matplotlib.figure.Figure
            Not registered with pyplot; ``figure.savefig(path)`` writes it. Oblique volumes are cut along
            their own axes, each named after the closest one of the patient; letters mark the directions.

        Raises
        ------
        GeometryError
            If `at` is outside the volume, or there is no such channel.
        PreprocessError
            If the window is unknown, or all pixels are padding.
        """
        # core doesn't import plotting: reading works without matplotlib
        plot_volume: Callable[..., Figure] = import_module("medimg.plotting.volume_figure").plot_volume
        return plot_volume(self, at=at, window=window, channel=channel)

    def view(self, *, window: WindowChoice = "auto", height: int = 400) -> Any:
        """
        Return an interactive viewer for a notebook: linked planes, rendering, window by dragging.

        Parameters
        ----------
        window : str, int, Window or LookupTable
            Window at the start, as for :meth:`plot`.
        height : int
            Height in pixels.

        Returns
        -------
        ipyniivue.NiiVue
            Widget; it gets a copy of the values, and its methods and attributes change the view.

        Raises
        ------
        MissingDependencyError
            If ipyniivue is not installed; the extra ``medimg[view]`` installs it.
        """
        view_volume: Callable[..., Any] = import_module("medimg.plotting.volume_viewer").view_volume
        return view_volume(self, window=window, height=height)

    def __repr__(self) -> str:
        size = "×".join(str(n) for n in self.shape)
        spacing = "×".join(f"{v:.4g}" for v in self.spacing)
        facts = [f"{size} {self.array.dtype}", self.modality, self.units, f"spacing {spacing} mm"]
        facts.append(self.orientation if self.space == "patient" else "no patient geometry")
        return f"Volume({', '.join(f for f in facts if f)})"

    def _repr_html_(self) -> str:
        from html import escape

        from medimg.core.display import make_data_uri

        try:
            image = f'<img src="{make_data_uri(self)}" alt="middle slice" style="max-width:256px">'
        except PreprocessError as error:
            image = f"<i>no image: {escape(str(error))}</i>"
        return f"<figure>{image}<figcaption>{escape(repr(self))}</figcaption></figure>"

    def _repr_png_(self) -> bytes:
        from medimg.core.display import encode_png, render

        return encode_png(render(self))
