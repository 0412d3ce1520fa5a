"""The volume: an array of quantitative values with its geometry."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np

from medimg._public import set_module
from medimg._validation import check_choice, check_text, check_texts
from medimg.core import geometry
from medimg.core.read_report import ReadReport
from medimg.errors import GeometryError, PreprocessError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from matplotlib.figure import Figure

    from medimg.core._volume_indexing import Index
    from medimg.core.array_volume import Convention
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
    read-only; :meth:`with_array` makes a volume of other values with the same geometry, :meth:`from_array`
    one of an array from elsewhere.

    ``volume[c, d, h, w]`` is a part of the volume, ``np.asarray(volume)`` and ``torch.as_tensor(volume)``
    are copies of its values, and ``len(volume)`` and iteration go by the first axis, the channels.

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

    @classmethod
    def from_array(
        cls,
        array: npt.ArrayLike,
        *,
        affine: npt.ArrayLike | None = None,
        spacing: float | Sequence[float] | None = None,
        convention: Convention = "LPS",
        modality: str = "",
        units: str = "raw",
        photometric: Photometric = "MONOCHROME2",
        channels: Sequence[str] = (),
        copy: bool = True,
    ) -> Volume:
        """
        Make a volume of an array.

        Parameters
        ----------
        array : array_like
            Real numbers, or truth values, which become 0 and 1: an image (H, W), slices (D, H, W), or
            channels of slices (C, D, H, W). Colors, with ``photometric="RGB"``, are in the last or the first
            axis: (H, W, 3), (3, H, W), (D, H, W, 3) or (3, D, H, W).
        affine : array_like, optional
            (4, 4): index (d, h, w) of the array to millimeters in the patient, in the given convention. The
            columns follow the axes of the array, whichever direction each of them has.
        spacing : float or sequence of float, optional
            Distance between neighbors along (D, H, W), or along (H, W) of an image, in millimeters; 1 by
            default. Without an affine the volume has sizes, but no position in a patient: ``space`` is
            "image".
        convention : {"LPS", "RAS"}
            Patient coordinate system of the affine: "LPS" in DICOM and SimpleITK, "RAS" in NIfTI and nibabel.
        modality : str
            "CT", "MR", "CR", "DX", "MG", …; "" if unknown.
        units : str
            "HU", …; "raw" if the values have no unit.
        photometric : {"MONOCHROME2", "MONOCHROME1", "RGB"}
            "RGB" if the array has colors; "MONOCHROME1" if its lowest values are displayed as white.
        channels : sequence of str, optional
            Name of each channel.
        copy : bool
            Whether the values are copied. Otherwise the volume shares the memory of the array, if its type
            allows that, and the array must not be changed any more.

        Returns
        -------
        Volume
            (C, D, H, W). 8-bit values without an affine and units are taken as ready for display, from 0
            (black) to 255 (white), as those of a PNG file.

        Raises
        ------
        NotAnImageError
            If the array is masked, or has no real numbers.
        GeometryError
            If its shape, the affine or the spacing is invalid, or both of the latter are given.

        Examples
        --------
        Axial slices as in DICOM, from the head down:

        >>> array = np.zeros((10, 64, 64), np.int16)
        >>> affine = [[0, 0, 0.5, -16], [0, 0.5, 0, -20], [-2, 0, 0, 90], [0, 0, 0, 1]]
        >>> Volume.from_array(array, affine=affine, modality="CT", units="HU")
        Volume(1×10×64×64 int16, CT, HU, spacing 2×0.5×0.5 mm, IPL)

        An array of nibabel, whose axes and affine are (i, j, k) to RAS:

        >>> Volume.from_array(np.zeros((64, 64, 10)), affine=np.diag([0.5, 0.5, 2, 1]), convention="RAS")
        Volume(1×64×64×10 float64, raw, spacing 0.5×0.5×2 mm, RAS)

        A photograph:

        >>> Volume.from_array(np.zeros((64, 48, 3), np.uint8), photometric="RGB")
        Volume(3×1×64×48 uint8, raw, spacing 1×1×1 mm, no patient geometry)
        """
        from medimg.core.array_volume import as_numbers, make_affine, move_axes

        check_choice("photometric", photometric, get_args(Photometric), error=GeometryError)
        for name, text in (("modality", modality), ("units", units)):
            check_text(name, text, error=GeometryError)
        values = as_numbers(array, copy=copy)
        is_ready = values.dtype == np.uint8 and affine is None and units == "raw" and photometric != "RGB"
        return cls(
            array=move_axes(values, color=photometric == "RGB"),
            affine=make_affine(affine, spacing, convention, values.ndim),
            modality=modality,
            units=units,
            photometric=photometric,
            inverted=photometric == "MONOCHROME1",
            space="image" if affine is None else "patient",
            channels=check_texts("channels", channels or (), error=GeometryError),
            display_range=(0.0, 255.0) if is_ready else None,
        )

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

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return a writable copy of the values (C, D, H, W), or with ``copy=False`` the array itself."""
        if copy is not False:
            return np.array(self.array, dtype=dtype)
        if dtype is not None and np.dtype(dtype) != self.array.dtype:
            raise ValueError(f"values of type {self.array.dtype} can't be {np.dtype(dtype)} without a copy")
        return self.array

    def __dlpack__(self, *, copy: bool | None = None, **options: Any) -> Any:
        """Return a copy of the values as a DLPack capsule, which is how ``torch.as_tensor`` takes them."""
        if copy is False:
            raise BufferError("the array of a volume is read-only; expected copy=None or copy=True")
        # as NumPy and torch agreed before versions; every consumer takes it
        native = self.array.dtype.newbyteorder("=")
        return np.array(self.array, dtype=native).__dlpack__(stream=options.get("stream"))

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the device of the values, the CPU."""
        return 1, 0

    def __len__(self) -> int:
        return int(self.array.shape[0])

    def __iter__(self) -> Iterator[Volume]:
        return (self[channel] for channel in range(len(self)))

    def __getitem__(self, index: Index) -> Volume:
        """
        Return a part of the volume, each voxel at its position in the patient.

        Parameters
        ----------
        index : int, slice, ..., or tuple of up to four of these
            Positions along (C, D, H, W), as for an array, but for one thing: an int keeps its axis, of
            size 1, as a volume always has four. Slices may have a step, which increases the spacing, and a
            negative step flips an axis.

        Returns
        -------
        Volume
            Windows, padding, SOP Instance UIDs and gaps of the chosen slices follow; colors of which some
            are left out become grayscale. The values are shared, not copied.

        Raises
        ------
        GeometryError
            If the index selects nothing, or is not a number or slice. For a number out of range it is an
            IndexError as well.

        Examples
        --------
        >>> volume = Volume(np.zeros((1, 10, 64, 64), np.int16), geometry.image_affine((2.0, 0.5, 0.5)))
        >>> volume[:, 2:8:2, 16:48]
        Volume(1×3×32×64 int16, raw, spacing 4×0.5×0.5 mm, SPL)
        >>> volume[0, 5]
        Volume(1×1×64×64 int16, raw, spacing 2×0.5×0.5 mm, SPL)
        """
        from medimg.core._volume_indexing import index_volume

        return index_volume(self, index)

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
            report = report.of_channels([chosen], len(self.channels))
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
        report = report.at_slices(chosen, depth)
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
            report = report.at_slices(range(depth - 1, -1, -1), depth)
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

    @overload
    def save(self, path: os.PathLike[str], *, compress: bool = True) -> Path: ...
    @overload
    def save(self, path: str, *, compress: bool = True) -> Path | str: ...
    def save(self, path: str | os.PathLike[str], *, compress: bool = True) -> Path | str:
        """
        Write the volume to a file; an existing one is replaced, in one step.

        Parameters
        ----------
        path : str or Path
            File, or URL of object storage such as ``s3://bucket/ct.nii.gz``. Its name chooses the format:
            ``.nii.gz`` or ``.nii`` (NIfTI), ``.nrrd`` (NRRD) or ``.mha`` (MetaImage). Missing folders are
            made.
        compress : bool
            Whether the values of NRRD and MetaImage are compressed, without loss. Uncompressed files are
            larger, and can be read with ``mapped=True``.

        Returns
        -------
        Path or str
            The file; of a URL the URL.

        Raises
        ------
        ConversionError
            If the format is unknown, or can't hold the values: truth values, complex numbers, 16-bit
            floating-point numbers, colors of more than 8 bits; or if the URL can't be written to.
        OSError
            If the file can't be written; of a URL a :class:`~medimg.errors.StoreError`.

        Notes
        -----
        Values, their type, positions, channels, colors, modality and units are those of the volume again
        when the file is read by :func:`medimg.read`, and the first five when other programs read it. NIfTI
        rounds positions to 32 bits, by less than a thousandth of a voxel; if that is not possible, or an axis
        is longer than 32,767, the file is NIfTI-2. Windows, padding and the report are not stored, nor is
        anything that identifies a patient.
        """
        # by name, as writing is above this layer
        write: Callable[..., Path | str] = import_module("medimg.io.write").write
        return write(self, path, compress=compress)

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
