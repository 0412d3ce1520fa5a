"""Finding out what is in a tree of files: headers only, no pixels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from medimg.core.report import Skipped
from medimg.errors import MedimgError, NotAnImageError, ReadError
from medimg.io.blob import Blob, as_blob
from medimg.io.dicom.assemble import dicom_series
from medimg.io.dicom.dicomdir import looks_like_dicomdir
from medimg.io.dicom.grouping import group_frames
from medimg.io.dicom.header import Instance, looks_like_dicom, read_instance
from medimg.io.metaimage import looks_like_metaimage, metaimage_series
from medimg.io.nifti import header_beside, looks_like_nifti, nifti_series
from medimg.io.nrrd import looks_like_nrrd, nrrd_series
from medimg.io.picture import looks_like_picture, picture_series
from medimg.io.series import Series, SeriesIndex
from medimg.io.sources import Files, looks_like_zip, source_files

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["FORMATS", "identify", "indexed", "scan"]

#: What can be read, for messages.
FORMATS = "DICOM, NIfTI, NRRD, MetaImage, PNG or JPEG"


@dataclass(frozen=True, slots=True)
class _Failed:
    """A file that holds no image, or a damaged one."""

    blob: Blob
    error: MedimgError


_Found: TypeAlias = Instance | Series | _Failed


def scan(source: Files, *, workers: int | None = None, progress: bool | None = None) -> SeriesIndex:
    """
    Find all series in a folder and below, or in a zip archive, without touching their pixels.

    Files are told apart by what they hold, not by their names: DICOM with or without preamble and
    extension, NIfTI, NRRD, MetaImage, PNG and JPEG, each by itself or compressed with gzip. Instances are
    grouped into series that can be stacked: by Series Instance UID, size, orientation, localizer or not, and
    by echo or acquisition where these tell images at the same position apart.

    Parameters
    ----------
    source : str, Path, bytes, binary file object, or list of these
        A folder, a zip archive (read in place), a DICOMDIR (which stands for the files that it names), or
        single files. A zip archive inside a folder is listed among those skipped, as it often lies beside
        what it holds: read it by itself. A DICOMDIR inside a folder needs no reading.
    workers : int, optional
        Threads that read headers; more than the default of 1 pay on network drives.
    progress : bool, optional
        Whether to show a progress bar; by default only where a person watches and it takes longer.

    Returns
    -------
    SeriesIndex
        Possibly empty; its ``skipped`` lists every file that belongs to no series, with the reason.

    Raises
    ------
    ReadError
        If the path does not exist, or the source is of a kind that can't be read.

    Examples
    --------
    >>> index = scan("archive")  # doctest: +SKIP
    >>> [s.summary() for s in index]  # doctest: +SKIP
    ['CT CHEST: 1×133×512×512, 2×0.742×0.742 mm, 133 file(s), uid 1.2.840…']
    """
    return indexed(source, workers=workers, progress=progress)[0]


def indexed(
    source: object, *, workers: int | None = None, progress: bool | None = None
) -> tuple[SeriesIndex, list[MedimgError]]:
    """Return the series of a source, and the error behind each of its skipped files; see :func:`scan`."""
    files, absent = source_files(source)
    index, errors = _grouped(files, workers or 1, progress)
    if absent:
        index = SeriesIndex(index.series, (*index.skipped, *absent))
        errors += [ReadError(skipped.reason) for skipped in absent]
    return index, errors


def _grouped(
    files: Sequence[Blob], workers: int, progress: bool | None
) -> tuple[SeriesIndex, list[MedimgError]]:
    found = _without_companions([f for f in _inspected(files, workers, progress) if f is not None])
    instances = [f for f in found if isinstance(f, Instance)]
    series = [f for f in found if isinstance(f, Series)]
    failed = [(f.blob.name, f.error) for f in found if isinstance(f, _Failed)]
    for group in group_frames(instances):
        try:
            series.append(dicom_series(group))
        except MedimgError as error:
            failed += [(i.path, error) for i in group.instances]
    skipped = tuple(Skipped(name, str(error)) for name, error in failed)
    return SeriesIndex(tuple(sorted(series, key=lambda s: s.path)), skipped), [error for _, error in failed]


def _without_companions(found: list[_Found]) -> list[_Found]:
    """Drop files that merely hold the values of a header beside them."""
    companions = {name for f in found if isinstance(f, Series) for name in f.files[1:]}
    kept: dict[str, _Found] = {}
    for number, item in enumerate(found):
        if isinstance(item, _Failed) and item.blob.name in companions:
            continue
        # an .img is found as the pair that it belongs to
        kept.setdefault(item.uid if isinstance(item, Series) else f"{number}", item)
    return list(kept.values())


def _inspected(files: Sequence[Blob], workers: int, progress: bool | None) -> Iterator[_Found | None]:
    from tqdm import tqdm

    def shown(results: Iterable[_Found | None]) -> Iterable[_Found | None]:
        disable = None if progress is None else not progress
        bar = tqdm(
            results, total=len(files), desc="scanning", unit="file", disable=disable, delay=1.0, leave=False
        )
        return iter(bar)

    if workers == 1:
        yield from shown(map(_inspect, files))
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from shown(pool.map(_inspect, files))


def _inspect(blob: Blob) -> _Found | None:
    """Return what a file holds; None for a DICOMDIR, which merely lists what lies around it."""
    try:
        return identify(blob)
    except _DirectoryError:
        return None
    except MedimgError as error:
        return _Failed(blob, error)


class _DirectoryError(NotAnImageError):
    """The file is a DICOMDIR."""


def identify(source: str | os.PathLike[str] | Blob) -> Instance | Series:
    """
    Return what a file holds, told by its content.

    Raises
    ------
    ReadError
        If it holds no image, or can't be read.
    """
    blob = as_blob(source)
    start = blob.start()
    if start[:2] == b"\x1f\x8b":
        blob = blob.unzipped()
        start = blob.start()
    if not start:
        raise NotAnImageError(f"{blob.name} is empty")
    if start[128:132] != b"DICM":
        found = _other_format(blob, start)
        if found is not None:
            return found
    if looks_like_dicomdir(start):
        raise _DirectoryError(f"{blob.name} is a DICOMDIR: read it by itself")
    if looks_like_dicom(start):
        return read_instance(blob)
    if looks_like_zip(start):
        raise NotAnImageError(
            f"{blob.name} is a zip archive, which is not entered from outside: read it by itself"
        )
    header = header_beside(blob)
    if header is not None:
        return nifti_series(header)
    raise NotAnImageError(f"{blob.name} is none of {FORMATS.replace(' or ', ' and ')}")


def _other_format(blob: Blob, start: bytes) -> Series | None:
    if looks_like_picture(start):
        return picture_series(blob)
    if looks_like_nifti(start):
        return nifti_series(blob)
    if looks_like_nrrd(start):
        return nrrd_series(blob)
    if looks_like_metaimage(start):
        return metaimage_series(blob)
    return None
