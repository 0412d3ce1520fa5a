"""From a path to a volume."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from medimg.errors import (
    AmbiguousSeriesError,
    MedimgError,
    MedimgWarning,
    NotAnImageError,
    SeriesError,
)
from medimg.io._detect import FORMATS
from medimg.io.scan import build_index
from medimg.io.series import Series, SeriesIndex, ValueKind
from medimg.io.sources import Files, source_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from medimg.core.stacking import Policy
    from medimg.core.volume import Volume

__all__ = ["Source", "find_series", "read", "resolve_source"]

#: All that :func:`read` takes: a path, bytes, an open file, several of these, or a series.
Source: TypeAlias = Files | Series


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
    Read one image: a DICOM series, a NIfTI, NRRD or MetaImage file, a PNG or JPEG picture.

    Parameters
    ----------
    source : str, Path, bytes, binary file object, list of these, or Series
        What to read:

        ==================  ====================================================================
        folder              the one series in it and below; several raise an error that lists them
        file                that file alone, also if others of its series lie beside it; gzip of
                            any of them counts as the file
        zip archive         as a folder, but read in place: nothing is written to disk
        DICOMDIR            the files that it names
        bytes, file object  a file, zip archives included, that is in memory or open; what can be
                            rewound is read from its start
        list of these       the one series that they make up (no folders)
        Series              from :func:`medimg.scan`
        ==================  ====================================================================
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
    values : {"auto", "rescaled", "suv"}
        "rescaled": as the modality LUT or the rescale of the file gives them (PS3.3 C.11.1). "auto": the
        same, but Philips MR in the floating-point values that can be compared between series, where the
        file has their scale, and dose in its units. "suv": PET as standardized uptake values by body weight.
    mapped : bool
        Whether the array may be a view of its file, of which only what is looked at is read: where an
        uncompressed NIfTI, NRRD or MetaImage file holds the values as they are. Such a file must not be
        shortened or overwritten while the volume is in use, which would change its values or end the
        process. Other images are read as ever.

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
    chosen, finish = resolve_source(source, series)
    return finish(
        chosen.read(
            on_missing=on_missing, on_duplicate=on_duplicate, on_tilt=on_tilt, values=values, mapped=mapped
        )
    )


def resolve_source(
    source: Source, series: str | int | None = None
) -> tuple[Series, Callable[[Volume], Volume]]:
    """
    Return the one series of a source, and a function that completes the report of its volume.

    It notes what was skipped beside the series, and warns of what may be lost slices.

    Raises
    ------
    AmbiguousSeriesError, NotAnImageError, ReadError
        See :func:`find_series`.
    """
    chosen, index, errors = _find_in_source(source, series)
    return chosen, partial(_with_skipped, index=index, errors=errors)


def _with_skipped(volume: Volume, index: SeriesIndex, errors: list[MedimgError]) -> Volume:
    if not index.skipped:
        return volume
    note = _skipped_note(errors)
    if note:
        warnings.warn(note, MedimgWarning, stacklevel=3)
    report = replace(
        volume.report,
        skipped=index.skipped,
        warnings=(*volume.report.warnings, note) if note else volume.report.warnings,
    )
    return replace(volume, report=report)


def _skipped_note(errors: list[MedimgError]) -> str:
    """Name files that may be lost slices; a text file beside a series deserves no warning."""
    lost = [e for e in errors if not isinstance(e, NotAnImageError)]
    return f"{len(lost)} file(s) skipped that can't be read, the first: {lost[0]}" if lost else ""


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
    return _find_in_source(source, series)[:2]


def _find_in_source(
    source: Source, series: str | int | None
) -> tuple[Series, SeriesIndex, list[MedimgError]]:
    """Return the series, the index it was found in, and why files were skipped."""
    if isinstance(source, Series):
        return source, SeriesIndex((source,)), []
    index, errors = build_index(source)
    if not index:
        raise _nothing_found(source, index, errors)
    if series is not None:
        return _named(index, series), index, errors
    if len(index) > 1:
        raise AmbiguousSeriesError(
            f"{len(index)} series in {source_name(source)}, expected one:\n{_listing(index)}\n"
            "name one by series=UID or its number, or read each from medimg.scan(path)"
        )
    return index[0], index, errors


def _nothing_found(source: object, index: SeriesIndex, errors: list[MedimgError]) -> MedimgError:
    if len(errors) == 1:
        return errors[0]
    where = source_name(source)
    if not index.skipped:
        return NotAnImageError(f"{where} holds no files; expected {FORMATS}")
    reasons = "\n".join(f"  {s.reason}" for s in index.skipped[:5])
    more = f"\n  and {len(index.skipped) - 5} more" if len(index.skipped) > 5 else ""
    return NotAnImageError(
        f"no image among the {len(index.skipped)} file(s) of {where}; expected {FORMATS}. "
        f"Skipped:\n{reasons}{more}"
    )


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
