"""``medimg.read``: one image as a volume, from any source."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from medimg._public import set_module
from medimg.errors import (
    AmbiguousSeriesError,
    MedimgError,
    MedimgWarning,
    NotAnImageError,
    ReadError,
    SeriesError,
    also,
)
from medimg.io.detect import FORMATS
from medimg.io.own_results import leave_out_results
from medimg.io.scan import build_index
from medimg.io.series import Series, ValueKind
from medimg.io.series_index import SeriesIndex
from medimg.io.sources import Files, name_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from medimg.core.stacking import Policy
    from medimg.core.volume import Volume

__all__ = ["Source", "find_series", "read", "resolve_source", "resolve_sources"]

#: All that :func:`read` takes: a path, bytes, an open file, several of these, or a series.
Source: TypeAlias = "Files | Series"


@set_module("medimg")
def read(
    source: Source,
    *,
    series: str | int | None = None,
    on_missing: Policy = "raise",
    on_duplicate: Policy = "warn",
    on_tilt: Policy = "warn",
    values: ValueKind = "auto",
    mapped: bool = False,
) -> Volume:
    """
    Read one image: a DICOM series, or a file of another format.

    Parameters
    ----------
    source : str, Path, bytes, binary file object, pydicom Dataset, list of these, Series, or other image
        Source of the image:

        ==================  ====================================================================
        folder              the one series in it and its subfolders; several raise an error that
                            lists them
        file                that file alone, even if the folder has more files of its series;
                            compressed with gzip or not
        zip archive         as a folder, but read in place: nothing is written to disk
        DICOMDIR            the files that it references
        bytes, file object  a file or zip archive in memory, or an open one; seekable files are
                            read from the start
        pydicom Dataset     an instance in memory, with its pixels
        list of these       the one series that they form (no folders)
        URL                 ``s3://``, ``gs://`` or ``az://``: a folder, file, zip archive or DICOMDIR in
                            object storage; ``https://``: a file or zip archive of a web server, or a study,
                            series or instance of a DICOMweb server (see :func:`medimg.dicomweb`)
        Series              from :func:`medimg.scan`
        other image         of SimpleITK, nibabel, MONAI, TorchIO, highdicom, Pillow or xarray, in memory; see
                            :func:`medimg.from_sitk` and the others
        ==================  ====================================================================
    series : str or int, optional
        UID of one of several series, or its index in the list that the error shows.
    on_missing : {"raise", "warn", "fix", "keep"}
        Policy for missing or unevenly spaced slices; "fix" interpolates them.
    on_duplicate : {"raise", "warn", "fix", "keep"}
        Policy for identical images at one position; "warn" and "fix" use one of them. Different images at
        one position raise an error, except with "keep", which stacks them all.
    on_tilt : {"raise", "warn", "fix", "keep"}
        Policy for a tilted gantry; "warn" and "keep" keep the shear in the affine, "fix" resamples onto a
        perpendicular grid.
    values : {"auto", "rescaled", "suv"}
        Values of the volume. "rescaled": output of the modality LUT or rescale of the file (PS3.3 C.11.1).
        "auto": the same, except for Philips MR, in floating-point values that are comparable across series if
        the file has their scale, and dose, in its units. "suv": PET as standardized uptake values by body
        weight.
    mapped : bool
        Whether the array may be a memory map of its file, so that only accessed values are read: for
        uncompressed NIfTI, NRRD or MetaImage files whose values need no conversion. Such a file must not be
        shortened or overwritten while the volume is in use, which would change its values or end the
        process. Other images are read into memory.

    Returns
    -------
    Volume
        (C, D, H, W) in modality units, slices sorted by position; ``report`` records how it was read.

    Raises
    ------
    AmbiguousSeriesError
        If the source has several series and `series` is not given.
    NotAnImageError
        If it has no image.
    TruncatedError, DecodeError
        If an image is damaged.
    MissingSlicesError, DuplicateSlicesError, TiltedGantryError, GeometryError
        If the slices do not form a regular stack and the policy is "raise", or the geometry is invalid.

    Examples
    --------
    >>> volume = read("scans/patient-17/chest")  # doctest: +SKIP
    >>> volume  # doctest: +SKIP
    Volume(1×133×512×512 int16, CT, HU, spacing 2×0.742×0.742 mm, SPL)
    """
    chosen, finish = resolve_source(source, series)
    return finish(
        chosen.read(
            on_missing=on_missing, on_duplicate=on_duplicate, on_tilt=on_tilt, values=values, mapped=mapped
        )
    )


def resolve_source(
    source: Source, series: str | int | None = None
) -> tuple[Series, Callable[[Volume], Volume]]:
    """Return the one series of a source, and a function that adds skipped files to the report of a volume."""
    chosen, index, errors = _find_in_source(source, series)
    return chosen, partial(_add_skipped, index=index, errors=errors)


def resolve_sources(
    source: Source,
) -> tuple[list[tuple[Series, Callable[[Volume], Volume]]], list[tuple[str, MedimgError]]]:
    """
    Return all series of a source as :func:`resolve_source` does, and the files that may be lost images.

    Results of medimg among them are left out, unless one is passed as a Series: they are no input of models.
    The report of a volume has the skipped files if there is one series, and no files are returned then.
    """
    if isinstance(source, Series):
        return [resolve_source(source)], []
    index, errors = leave_out_results(*build_index(source))
    if not index:
        raise _make_error(source, index, errors)
    if len(index) == 1:
        return [(index[0], partial(_add_skipped, index=index, errors=errors))], []
    named = zip(index.skipped, errors, strict=True)
    lost = [(skipped.path, error) for skipped, error in named if not isinstance(error, NotAnImageError)]
    return [resolve_source(series) for series in index], lost


def _add_skipped(volume: Volume, index: SeriesIndex, errors: list[MedimgError]) -> Volume:
    if not index.skipped:
        return volume
    note = _describe_skipped(errors)
    if note:
        warnings.warn(note, MedimgWarning, stacklevel=3)
    report = replace(
        volume.report,
        skipped=index.skipped,
        warnings=(*volume.report.warnings, note) if note else volume.report.warnings,
    )
    return replace(volume, report=report)


def _describe_skipped(errors: list[MedimgError]) -> str:
    """Return a note on files that may be lost slices; other files, such as text, need none."""
    lost = [e for e in errors if not isinstance(e, NotAnImageError)]
    return f"{len(lost)} unreadable file(s) skipped, the first: {lost[0]}" if lost else ""


def find_series(source: Source, series: str | int | None = None) -> tuple[Series, SeriesIndex]:
    """
    Return the one series of a source, and the index it was found in.

    Raises AmbiguousSeriesError if there are several and none is named, NotAnImageError if there is none, and
    ReadError if the source does not exist or has an unsupported type.
    """
    return _find_in_source(source, series)[:2]


def _find_in_source(
    source: Source, series: str | int | None
) -> tuple[Series, SeriesIndex, list[MedimgError]]:
    """Return the series, the index it was found in, and the errors of skipped files."""
    if isinstance(source, Series):
        return source, SeriesIndex((source,)), []
    index, errors = build_index(source)
    if not index:
        raise _make_error(source, index, errors)
    if series is not None:
        return _select_series(index, series), index, errors
    if len(index) > 1:
        raise AmbiguousSeriesError(
            f"{len(index)} series in {name_source(source)}, expected one:\n{_list_series(index)}\n"
            "choose one of medimg.scan(path), or with medimg.read by series=UID or its number"
        )
    return index[0], index, errors


def _make_error(source: object, index: SeriesIndex, errors: list[MedimgError]) -> MedimgError:
    if len(errors) == 1:
        return errors[0]
    where = name_source(source)
    lost = [error for error in errors if not isinstance(error, NotAnImageError)]
    if not index.skipped:
        return NotAnImageError(f"{where} contains no files; expected {FORMATS}")
    reasons = "\n".join(f"  {s.reason}" for s in index.skipped[:5])
    more = f"\n  and {len(index.skipped) - 5} more" if len(index.skipped) > 5 else ""
    if lost:
        # damaged images are no absent ones
        kinds = {type(error) for error in lost}
        error_type = kinds.pop() if len(kinds) == 1 else ReadError
        return error_type(
            f"no readable image among the {len(index.skipped)} file(s) of {where}. Skipped:\n{reasons}{more}"
        )
    return NotAnImageError(
        f"no image among the {len(index.skipped)} file(s) of {where}; expected {FORMATS}. "
        f"Skipped:\n{reasons}{more}"
    )


def _list_series(index: SeriesIndex) -> str:
    lines = [f"  [{n}] {s.summary()}" for n, s in enumerate(index[:20])]
    return "\n".join([*lines, f"  and {len(index) - 20} more"] if len(index) > 20 else lines)


def _select_series(index: SeriesIndex, series: str | int) -> Series:
    if isinstance(series, int) and 0 <= series < len(index):
        return index[series]
    for candidate in index:
        if candidate.uid == series:
            return candidate
    raise also(SeriesError, KeyError)(
        f"no series {series!r} in the source; expected one of\n{_list_series(index)}"
    )
