"""Finding out what is in a tree of files: headers only, no pixels."""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from medimg.core.read_report import Skipped
from medimg.errors import MedimgError, ReadError
from medimg.io._detect import Unreadable
from medimg.io._header_scan import scan_headers
from medimg.io._scan_index import ScanIndex
from medimg.io.dicom.header.instance import Instance
from medimg.io.dicom.series.build import dicom_series, regular_series
from medimg.io.dicom.series.grouping import group_frames
from medimg.io.series import Series, SeriesIndex
from medimg.io.sources import Files, is_folder, source_files

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from medimg.io._detect import Scanned
    from medimg.io.dicom.scanning.series_table import UniformFiles
    from medimg.io.files.blob import Blob

__all__ = ["build_index", "scan"]


def scan(
    source: Files,
    *,
    workers: int | None = None,
    progress: bool | None = None,
    index: str | os.PathLike[str] | None = None,
) -> SeriesIndex:
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
        Threads that read headers; by default one, and 16 where files turn out to be slow to open, as on
        network drives.
    progress : bool, optional
        Whether to show a progress bar; by default only where a person watches and it takes longer.

    index : str or Path, optional
        Where to keep what the headers of a folder said, a SQLite file: the next scan with the same one reads
        only the files whose size or time of modification has changed. It holds the patients' IDs and the
        descriptions of series: keep it where the images are kept.

    Returns
    -------
    SeriesIndex
        Possibly empty; its ``skipped`` lists every file that belongs to no series, with the reason.

    Raises
    ------
    ReadError
        If the path does not exist, the source is of a kind that can't be read, or the index is another file
        or can't be written.

    Examples
    --------
    >>> index = scan("archive")  # doctest: +SKIP
    >>> [s.summary() for s in index]  # doctest: +SKIP
    ['CT CHEST: 1×133×512×512, 2×0.742×0.742 mm, 133 file(s), uid 1.2.840…']
    """
    return build_index(source, workers=workers, progress=progress, index=index)[0]


def build_index(
    source: object,
    *,
    workers: int | None = None,
    progress: bool | None = None,
    index: str | os.PathLike[str] | None = None,
) -> tuple[SeriesIndex, list[MedimgError]]:
    """Return the series of a source, and the error behind each of its skipped files; see :func:`scan`."""
    memory = None if index is None else _memory(source, Path(index))
    files, absent = source_files(source)
    found, errors = _grouped(files, workers, progress, memory)
    if absent:
        found = SeriesIndex(found.series, (*found.skipped, *absent))
        errors += [ReadError(skipped.reason) for skipped in absent]
    return found, errors


def _memory(source: object, path: Path) -> ScanIndex:
    if not is_folder(source):
        raise ReadError("an index is kept of a folder; scan a file, an archive or a list without index=")
    return ScanIndex(path, Path(str(source)))


def _grouped(
    files: Sequence[Blob | str], workers: int | None, progress: bool | None, memory: ScanIndex | None
) -> tuple[SeriesIndex, list[MedimgError]]:
    if memory is None:
        findings = scan_headers(files, range(len(files)), workers=workers, progress=progress)
    else:
        findings = memory.refreshed(files, workers=workers, progress=progress)
    others = [(n, f) for n, f in findings.others if f is not None]
    series, instances = _by_series(findings.alike, others)
    found = _without_companions([f for _, f in others if not isinstance(f, Instance)])
    series += [f for f in found if isinstance(f, Series)]
    failed = [(f.name, f.error) for f in found if isinstance(f, Unreadable)]
    for group in group_frames(instances):
        try:
            series.append(dicom_series(group))
        except MedimgError as error:
            failed += [(i.path, error) for i in group.instances]
    skipped = tuple(Skipped(name, str(error)) for name, error in failed)
    return SeriesIndex(tuple(sorted(series, key=lambda s: s.path)), skipped), [error for _, error in failed]


def _by_series(
    alike: Sequence[UniformFiles], others: Sequence[tuple[int, Scanned]]
) -> tuple[list[Series], list[Instance]]:
    """Return the series that are plain to see, and the files of all others, in their order."""
    instances = [(n, f) for n, f in others if isinstance(f, Instance)]
    shared = Counter(some.prototype.series_uid for some in alike)
    shared.update(instance.series_uid for _, instance in instances)
    series: list[Series] = []
    for some in alike:
        found = regular_series(some) if shared[some.prototype.series_uid] == 1 else None
        if found is None:
            instances += ((n, some.instance(row)) for row, n in enumerate(some.indices))
        else:
            series.append(found)
    return series, [instance for _, instance in sorted(instances, key=itemgetter(0))]


def _without_companions(found: list[Series | Unreadable]) -> list[Series | Unreadable]:
    """Drop files that merely hold the values of a header beside them."""
    companions = {name for f in found if isinstance(f, Series) for name in f.files[1:]}
    kept: dict[str, Series | Unreadable] = {}
    for number, item in enumerate(found):
        if isinstance(item, Unreadable) and item.name in companions:
            continue
        # an .img is found as the pair that it belongs to
        kept.setdefault(item.uid if isinstance(item, Series) else f"{number}", item)
    return list(kept.values())
