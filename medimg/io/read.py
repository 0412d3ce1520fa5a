"""From a path to a volume."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from medimg.errors import (
    AmbiguousSeriesError,
    MedimgError,
    MedimgWarning,
    NotAnImageError,
    ReadError,
    SeriesError,
)
from medimg.io.dicom.assemble import dicom_series
from medimg.io.dicom.header import Instance
from medimg.io.scan import identify, index_files, scan
from medimg.io.series import Series, SeriesIndex

if TYPE_CHECKING:
    from medimg.core.stacking import Policy
    from medimg.core.volume import Volume

__all__ = ["Source", "find_series", "read"]

Source: TypeAlias = str | os.PathLike[str] | Series | Sequence[str | os.PathLike[str]]


def read(
    source: Source,
    *,
    series: str | int | None = None,
    on_missing: Policy = "raise",
    on_duplicate: Policy = "warn",
    on_tilt: Policy = "warn",
) -> Volume:
    """
    Read one image: a DICOM series, a NIfTI file, a PNG or JPEG picture.

    Parameters
    ----------
    source : str, Path, list of these, or Series
        What to read:

        ================  ======================================================================
        folder            the one series in it and below; several raise an error that lists them
        file              that file alone, also if others of its series lie beside it
        list of files     the one series that they make up
        Series            from :func:`medimg.scan`
        ================  ======================================================================
    series : str or int, optional
        Which one of several: its UID, or its place in the list that the error shows.
    on_missing : {"raise", "warn", "fix", "keep"}
        What to do about missing or unevenly spaced slices; "fix" interpolates them.
    on_duplicate : {"raise", "warn", "fix", "keep"}
        What to do about the same image twice at one position; "warn" and "fix" use one of them. Different
        images at one position are an error unless "keep" stacks them all.
    on_tilt : {"raise", "warn", "fix", "keep"}
        What to do about a tilted gantry; "warn" and "keep" keep the shear in the affine, "fix" resamples
        onto a perpendicular grid.

    Returns
    -------
    Volume
        (C, D, H, W) in modality units, slices sorted by position; its ``report`` says what was done.

    Raises
    ------
    AmbiguousSeriesError
        If several series are there and none is named.
    NotAnImageError
        If there is no image.
    TruncatedError, DecodeError
        If an image is damaged.
    MissingSlicesError, DuplicateSlicesError, TiltedGantryError, GeometryError
        If the slices make up no sound stack, as the policies say.

    Examples
    --------
    >>> volume = read("scans/patient-17/chest")  # doctest: +SKIP
    >>> volume  # doctest: +SKIP
    Volume(1×133×512×512 int16, CT, HU, spacing 2×0.742×0.742 mm, SPL)
    """
    chosen, index = find_series(source, series)
    volume = chosen.read(on_missing=on_missing, on_duplicate=on_duplicate, on_tilt=on_tilt)
    if not index.skipped:
        return volume
    note = _skipped_note(index)
    if note:
        warnings.warn(note, MedimgWarning, stacklevel=2)
    report = replace(
        volume.report,
        skipped=index.skipped,
        warnings=(*volume.report.warnings, note) if note else volume.report.warnings,
    )
    return replace(volume, report=report)


def _skipped_note(index: SeriesIndex) -> str:
    """Name damaged images that were skipped; a text file beside a series deserves no warning."""
    damaged = [s for s in index.skipped if "damaged" in s.reason or "ends" in s.reason]
    return f"{len(damaged)} damaged file(s) skipped, the first: {damaged[0].reason}" if damaged else ""


def find_series(source: Source, series: str | int | None = None) -> tuple[Series, SeriesIndex]:
    """
    Return the one series of a source, and the index it was found in.

    Raises
    ------
    AmbiguousSeriesError
        If several are there and none is named.
    NotAnImageError
        If there is none.
    ReadError
        If the source does not exist or is of a kind that can't be read.
    """
    if isinstance(source, Series):
        return source, SeriesIndex((source,))
    index = _index(source)
    if not index:
        raise _nothing_found(source, index)
    if series is not None:
        return _named(index, series), index
    if len(index) > 1:
        raise AmbiguousSeriesError(
            f"{len(index)} series in {_named_source(source)}, expected one:\n{_listing(index)}\n"
            "name one by series=UID or its number, or read each from medimg.scan(path)"
        )
    return index[0], index


def _index(source: object) -> SeriesIndex:
    if isinstance(source, str | os.PathLike) and os.fspath(source):
        return scan(Path(source))
    if isinstance(source, Sequence) and source and all(isinstance(s, str | os.PathLike) for s in source):
        files = [Path(s) for s in source]
        folder = next((path for path in files if path.is_dir()), None)
        if folder is not None:
            raise ReadError(f"{folder} is a folder in a list of files; read a folder by itself")
        return index_files(files)
    raise ReadError(
        f"can't read a {type(source).__name__}; expected a folder, a file, a list of files or a Series"
    )


def _named_source(source: object) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else "these files"


def _nothing_found(source: object, index: SeriesIndex) -> MedimgError:
    if len(index.skipped) == 1:
        return _error_of(Path(index.skipped[0].path))
    where = _named_source(source)
    if not index.skipped:
        return NotAnImageError(f"{where} holds no files; expected DICOM, NIfTI, PNG or JPEG")
    reasons = "\n".join(f"  {s.reason}" for s in index.skipped[:5])
    more = f"\n  and {len(index.skipped) - 5} more" if len(index.skipped) > 5 else ""
    return NotAnImageError(
        f"no image among the {len(index.skipped)} file(s) of {where}; expected DICOM, NIfTI, PNG or JPEG. "
        f"Skipped:\n{reasons}{more}"
    )


def _error_of(path: Path) -> MedimgError:
    """Return what is wrong with the only file that there is, in its own class of error."""
    try:
        found = identify(path)
        if isinstance(found, Instance):
            dicom_series(found.series_uid, [found])
    except MedimgError as error:
        return error
    return ReadError(f"{path} could not be read at first, but could a moment later: is it being written?")


def _listing(index: SeriesIndex) -> str:
    lines = [f"  [{n}] {s.summary()}" for n, s in enumerate(index[:20])]
    return "\n".join([*lines, f"  and {len(index) - 20} more"] if len(index) > 20 else lines)


def _named(index: SeriesIndex, series: str | int) -> Series:
    if isinstance(series, int) and 0 <= series < len(index):
        return index[series]
    for candidate in index:
        if candidate.uid == series:
            return candidate
    raise SeriesError(f"no series {series!r} here; there are\n{_listing(index)}")
