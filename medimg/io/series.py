"""Series: header data of a stack of images, and a reader of its pixels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, get_args, runtime_checkable

from medimg._public import set_module
from medimg._validation import check_choice
from medimg.core import geometry
from medimg.core.stacking import Policy
from medimg.errors import MedimgWarning, ReadError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pydicom.dataset import Dataset

    from medimg.core.display import WindowChoice
    from medimg.core.volume import Space, Volume
    from medimg.io.files.blob import Blob
    from medimg.io.tag_names import AttributeName, TagName, TagValue, TagValues

__all__ = [
    "HTML_COLUMNS",
    "FileReader",
    "Policies",
    "Series",
    "SliceReader",
    "ValueKind",
    "list_facts",
    "read_series_tags",
]

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


@runtime_checkable
class FileReader(Protocol):
    """Reader of the values in one file."""

    @property
    def blob(self) -> Blob:
        """The file with the values."""
        ...


@runtime_checkable
class HeaderReader(Protocol):
    """Reader of a format with DICOM headers."""

    def read_header(self) -> Dataset:
        """Read the header of the first file; see :attr:`Series.header`."""
        ...

    def read_tags(self, names: Sequence[TagName]) -> TagValues:
        """Read attributes of the first image; see :meth:`Series.tags`."""
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
        Paths, or URLs without secrets, in the order of the slices; duplicates of images are listed last.
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

    uid: str = field(repr=False)
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

    @property
    def is_listed(self) -> bool:
        """Whether it is only listed by a server's search so far: its metadata are read when they are used."""
        return False

    @property
    def header(self) -> Dataset:
        """
        Header of the first DICOM file, read from the file each time: keep it in a variable.

        It is a copy, and has the file's own structure: the functional groups of enhanced multi-frame files
        are sequences, whose attributes :meth:`tags` finds. Pixels are read when ``PixelData`` or
        ``pixel_array`` is used.

        Attributes that can identify a patient are given if they are named, as in ``header.PatientName``,
        ``header["PatientID"]`` or ``header.get_private_item(…)``. All that goes through the header leaves
        them out, in sequences, too: printing (which lists their names), iterating, ``to_json``,
        ``save_as`` and pickling. They are those of the Basic Application Level Confidentiality Profile
        (PS3.15 Table E.1-1), such as names, identifiers, dates, UIDs and descriptions, and private
        attributes, unknown ones and free text.

        Returns
        -------
        pydicom.Dataset

        Raises
        ------
        ReadError
            If the series is not DICOM, or its file can no longer be read or has changed since the scan.

        Examples
        --------
        >>> series.header["RepetitionTime"].value, series.header.KVP  # doctest: +SKIP
        (2000.0, 120.0)
        """
        if not isinstance(self.reader, HeaderReader):
            raise ReadError(
                f"{self.path} is {self.format}, which has no DICOM header; read() and its report give what "
                "its own header says"
            )
        return self.reader.read_header()

    def tags(self, *names: AttributeName) -> dict[str, TagValue]:
        """
        Read DICOM attributes of the first image.

        Parameters
        ----------
        *names : str, int or tuple
            DICOM keywords, such as "RepetitionTime"; numbers, as "0018,0080", 0x00180080 or (0x0018, 0x0080);
            private attributes, whose numbers differ between files, with their creator, as
            "0019,xx0c,SIEMENS MR HEADER" or (0x0019, 0x0c, "SIEMENS MR HEADER"). Any attribute can be named,
            also one that identifies a patient.

        Returns
        -------
        dict
            Value of each attribute by its name: str, int, float, bytes, or a tuple of these if there are
            several; for a sequence, a tuple of pydicom datasets. None if the attribute is absent or blank, or
            the series is not DICOM (only its modality is known). Dates and times are texts as in the file. An
            attribute named by number is called by its keyword.

            In enhanced multi-frame files, the attributes of shared and per-frame functional groups are found
            as in a classic file. Attributes that differ between the images of a series, such as
            XRayTubeCurrent, have the value of the first image, in the order of the slices.

        Raises
        ------
        MedimgError
            If there is no such attribute; it is a ``KeyError``, too, and names the one most like it.
        ReadError
            If the file can no longer be read, or has changed since the scan.

        Warns
        -----
        MedimgWarning
            If an attribute is present but invalid, such as a number with a comma; its value is None.

        Examples
        --------
        >>> series.tags("RepetitionTime", "ImageType")  # doctest: +SKIP
        {'RepetitionTime': 2000.0, 'ImageType': ('ORIGINAL', 'PRIMARY', 'M')}
        """
        from medimg.io.tag_names import parse_tag_names

        found = read_series_tags(self, parse_tag_names(names))
        if found.invalid:
            warnings.warn(
                f"{', '.join(found.invalid)} of {self.path}: present but invalid, given as None; "
                "series.header has what is written",
                MedimgWarning,
                stacklevel=2,
            )
        return found.values

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

        return facts_html("Series", dict(zip(HTML_COLUMNS, list_facts(self, format_size), strict=True)))

    def summary(self) -> str:
        """Return one line with modality, size, spacing, description and UID."""
        size = "×".join(str(n) for n in self.shape)
        spacing = "×".join(f"{v:.3g}" for v in self.spacing)
        kind = " ".join(part for part in (self.modality or self.format, self.description) if part)
        return f"{kind}: {size}, {spacing} mm, {len(self.files)} file(s), uid {self.uid}"


def read_series_tags(series: Series, names: Sequence[TagName]) -> TagValues:
    """Return the values of attributes, and the labels of invalid ones; see :meth:`Series.tags`."""
    if isinstance(series.reader, HeaderReader):
        return series.reader.read_tags(names)
    from medimg.io.tag_names import MODALITY, TagValues

    known = series.modality or None
    return TagValues({name.label: known if name.number == MODALITY else None for name in names})


#: Columns of the HTML, which has nothing that identifies a patient: no UIDs, descriptions or paths.
HTML_COLUMNS = ("modality", "channels", "size (D×H×W)", "spacing in mm", "files", "format")


def list_facts(series: Series, format_size: Callable[[Sequence[float]], str]) -> tuple[object, ...]:
    """Return the values of the columns of the HTML; of a series that a search lists, without reading it."""
    if series.is_listed:
        return series.modality or "–", "", "", "", "", series.format
    spacing = format_size(series.spacing) if series.space == "patient" else "unknown"
    channels, *size = series.shape
    return series.modality or "–", channels, format_size(size), spacing, len(series.files), series.format
