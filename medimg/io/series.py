"""Series: header data of a stack of images, and a reader of its pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args, overload, runtime_checkable

from medimg._public import set_module
from medimg._validation import check_choice
from medimg.core import geometry
from medimg.core.read_report import Skipped
from medimg.core.stacking import Policy
from medimg.errors import ReadError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from medimg.core.display import WindowChoice
    from medimg.core.volume import Space, Volume

__all__ = ["Policies", "Series", "SeriesIndex", "SliceReader", "ValueKind"]

ValueKind: TypeAlias = Literal["auto", "rescaled", "suv"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """
    Policies for gaps, duplicates and tilt, and the kind of values to read.

    Parameters
    ----------
    on_missing, on_duplicate, on_tilt : {"raise", "warn", "fix", "keep"}
        See :func:`medimg.read`.
    values : {"auto", "rescaled", "suv"}
        See :func:`medimg.read`.
    mapped : bool
        See :func:`medimg.read`.

    Raises
    ------
    ReadError
        If a value is not one of these.
    """

    on_missing: Policy = "raise"
    on_duplicate: Policy = "warn"
    on_tilt: Policy = "warn"
    values: ValueKind = "auto"
    mapped: bool = False

    def __post_init__(self) -> None:
        for name in ("on_missing", "on_duplicate", "on_tilt"):
            check_choice(name, getattr(self, name), get_args(Policy), error=ReadError)
        check_choice("values", self.values, get_args(ValueKind), error=ReadError)


class SliceReader(Protocol):
    """Reader of the pixels of one series."""

    def __call__(self, slices: Sequence[int] | None, policies: Policies) -> Volume:
        """
        Return the volume of some slices, or of all.

        Parameters
        ----------
        slices : sequence of int or None
            Ascending indices along D; None for all.
        policies : Policies
            Policies for gaps, duplicates and tilt, and the kind of values.

        Returns
        -------
        Volume
            (C, D, H, W), with the given slices along D.
        """
        ...


@runtime_checkable
class PieceReader(Protocol):
    """Reader that opens its file once for several pieces."""

    def pieces(self, size: int, slices: Sequence[int] | None, policies: Policies) -> Iterator[Volume]:
        """Yield up to `size` slices at a time; see :meth:`Series.pieces`."""
        ...


@set_module("medimg")
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Series:
    """
    One series of images: a stack of DICOM slices, or a file of another format.

    Returned by :func:`medimg.scan`. Its repr contains nothing that identifies the patient.

    Attributes
    ----------
    uid : str
        Series Instance UID, with "#2", "#3", … if a series of the scanner has several stacks; the path for
        formats without UIDs.
    modality : str
        "CT", "MR", …; "" if the format does not state it.
    description : str
        Series Description.
    shape : tuple of 4 ints
        (C, D, H, W), from the headers. C is 3 for a color PNG or JPEG file; if its three channels turn out to
        be equal, it is read as grayscale, with C = 1, and the report notes it.
    affine : numpy.ndarray
        (4, 4): index (d, h, w) to LPS millimeters, from the headers.
    space : {"patient", "image"}
        Whether the affine maps to patient coordinates.
    files : tuple of str
        Paths, in the order of the slices; duplicates of images are listed last.
    format : str
        "DICOM", "NIfTI", "NRRD", "MetaImage", "PNG", "JPEG", "JPEG 2000", "TIFF", "BMP", "WebP", "GIF", the
        format of a plug-in, the name of the library for its image in memory, or "array" for an array.
    reader : SliceReader
        Reader of the pixels; :meth:`read` calls it.
    patient_id : str
        Patient ID; "" if unknown.
    study_uid : str
        Study Instance UID; "" if unknown.
    frame_times : tuple of float or None
        Seconds from the first time point, for each channel of a time series or each frame of a cine.
    """

    uid: str
    modality: str
    description: str = field(repr=False)
    shape: tuple[int, int, int, int]
    affine: geometry.Affine = field(repr=False)
    space: Space
    files: tuple[str, ...] = field(repr=False)
    format: str
    reader: SliceReader = field(repr=False)
    patient_id: str = field(default="", repr=False)
    study_uid: str = field(default="", repr=False)
    frame_times: tuple[float, ...] | None = field(default=None, repr=False)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighboring voxels along (D, H, W), in millimeters."""
        return geometry.spacing_of(self.affine)

    @property
    def path(self) -> str:
        """Path of the first file."""
        return self.files[0]

    def read(
        self,
        slices: Sequence[int] | None = None,
        *,
        on_missing: Policy = "raise",
        on_duplicate: Policy = "warn",
        on_tilt: Policy = "warn",
        values: ValueKind = "auto",
        mapped: bool = False,
    ) -> Volume:
        """
        Read the pixels.

        Parameters
        ----------
        slices : sequence of int, optional
            Ascending indices along D; only these are decoded. By default all.
        on_missing, on_duplicate, on_tilt : {"raise", "warn", "fix", "keep"}
            See :func:`medimg.read`.
        values : {"auto", "rescaled", "suv"}
            See :func:`medimg.read`.
        mapped : bool
            See :func:`medimg.read`.

        Returns
        -------
        Volume
            (C, D, H, W).

        Raises
        ------
        ReadError
            If a file can't be read or decoded, the volume does not fit into memory, or `values` is "suv" and
            SUV can't be computed.
        SeriesError
            If the slices do not form a regular stack and the policy is "raise".
        """
        policies = Policies(
            on_missing=on_missing, on_duplicate=on_duplicate, on_tilt=on_tilt, values=values, mapped=mapped
        )
        self._check_suv(policies)
        try:
            return self.reader(slices, policies)
        except MemoryError:
            size = "×".join(map(str, self.shape))
            raise ReadError(
                f"{self.path}: no memory for C×D×H×W = {size} values; choose fewer by slices="
            ) from None

    def _check_suv(self, policies: Policies) -> None:
        if policies.values == "suv" and self.format != "DICOM":
            raise ReadError(
                f"{self.path} is {self.format}, which has no data to compute SUV; read the DICOM files"
            )

    def pieces(
        self, size: int, slices: Sequence[int] | None = None, *, policies: Policies | None = None
    ) -> Iterator[Volume]:
        """
        Read the pixels a few slices at a time, so that the volume need not fit into memory.

        Parameters
        ----------
        size : int
            Maximum number of slices in a piece.
        slices : sequence of int, optional
            Ascending indices along D; by default all.
        policies : Policies, optional
            See :func:`medimg.read`; policies that resample the volume are not supported.

        Yields
        ------
        Volume
            Consecutive slices.

        Raises
        ------
        ReadError, SeriesError
            See :meth:`read`.
        """
        self._check_suv(policies or Policies())
        if isinstance(self.reader, PieceReader):
            yield from self.reader.pieces(size, slices, policies or Policies())
            return
        chosen = list(range(self.shape[1]) if slices is None else slices)
        for start in range(0, len(chosen), size):
            yield self.reader(chosen[start : start + size], policies or Policies())

    def plot(self, *, most: int = 12, window: WindowChoice = "auto") -> Figure:
        """
        Return a figure of evenly spaced slices, of which only these are read.

        Parameters
        ----------
        most : int
            Largest number of slices, up to 100.
        window : str, int, Window or LookupTable
            Window, as for :meth:`medimg.Volume.plot`; "percentile" is computed from the slices shown.

        Returns
        -------
        matplotlib.figure.Figure
            Slices in display orientation, the first channel of several; missing slices and tilt are kept as
            they are.

        Raises
        ------
        ReadError
            If a file can't be read or decoded.
        PreprocessError
            If the window is unknown, or all pixels are padding.
        """
        # io doesn't import plotting: reading works without matplotlib
        plot_series: Callable[..., Figure] = import_module("medimg.plotting.montage").plot_series
        return plot_series(self, most=most, window=window)

    def _repr_html_(self) -> str:
        from medimg.plotting.html_repr import facts_html, format_size

        return facts_html("Series", dict(zip(_SHOWN, _list_facts(self, format_size), strict=True)))

    def summary(self) -> str:
        """Return one line with modality, size, spacing, description and UID."""
        size = "×".join(str(n) for n in self.shape)
        spacing = "×".join(f"{v:.3g}" for v in self.spacing)
        kind = " ".join(part for part in (self.modality or self.format, self.description) if part)
        return f"{kind}: {size}, {spacing} mm, {len(self.files)} file(s), uid {self.uid}"


@set_module("medimg")
@dataclass(frozen=True, slots=True)
class SeriesIndex(Sequence[Series]):
    """
    Series found by :func:`medimg.scan`, and the files that were skipped.

    Attributes
    ----------
    series : tuple of Series
        Series, sorted by path.
    skipped : tuple of Skipped
        Files that are not images or are damaged, with the reason.
    """

    series: tuple[Series, ...]
    skipped: tuple[Skipped, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Series: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Series, ...]: ...
    def __getitem__(self, index: int | slice) -> Series | tuple[Series, ...]:
        return self.series[index]

    def __len__(self) -> int:
        return len(self.series)

    def __repr__(self) -> str:
        return f"SeriesIndex({len(self.series)} series, {len(self.skipped)} files skipped)"

    def _repr_html_(self) -> str:
        from medimg.plotting.html_repr import format_size, rows_html

        shown = self.series[:_MOST_ROWS]
        rows = [(n, *_list_facts(series, format_size)) for n, series in enumerate(shown)]
        hidden = len(self.series) - len(shown)
        notes = [f"and {hidden} more; to_pandas() has all of them"] if hidden else []
        return rows_html(repr(self), ("", *_SHOWN), rows, notes=notes)

    def to_pandas(self) -> pd.DataFrame:
        """
        Return a table with one row for each series.

        The column ``patient_id`` identifies patients: store the table where the images are stored.

        Returns
        -------
        pandas.DataFrame
            Columns ``uid``, ``modality``, ``description``, ``channels``, ``slices``, ``rows``, ``columns``,
            ``slice_spacing``, ``row_spacing``, ``column_spacing``, ``files``, ``format``, ``path``,
            ``patient_id`` and ``study_uid``.
        """
        import pandas as pd

        return pd.DataFrame([_to_row(s) for s in self.series], columns=list(_COLUMNS))


#: Columns of the HTML, which has nothing that identifies a patient: no UIDs, descriptions or paths.
_SHOWN = ("modality", "channels", "size (D×H×W)", "spacing in mm", "files", "format")
_MOST_ROWS = 20


def _list_facts(series: Series, format_size: Callable[[Sequence[float]], str]) -> tuple[object, ...]:
    """Return the values of the columns of the HTML."""
    spacing = format_size(series.spacing) if series.space == "patient" else "unknown"
    channels, *size = series.shape
    return series.modality or "–", channels, format_size(size), spacing, len(series.files), series.format


_COLUMNS = (
    "uid", "modality", "description", "channels", "slices", "rows", "columns", "slice_spacing",
    "row_spacing", "column_spacing", "files", "format", "path", "patient_id", "study_uid",
)  # fmt: skip


def _to_row(series: Series) -> dict[str, Any]:
    values = (
        series.uid, series.modality, series.description, *series.shape, *series.spacing, len(series.files),
        series.format, series.path, series.patient_id, series.study_uid,
    )  # fmt: skip
    return dict(zip(_COLUMNS, values, strict=True))
