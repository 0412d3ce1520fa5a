"""``medimg.scan``: the series in a folder or archive, from headers alone."""

from __future__ import annotations

from collections import Counter
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from medimg._public import set_module
from medimg._validation import check_path, check_whole_number
from medimg.core.read_report import Skipped
from medimg.errors import MedimgError, ReadError
from medimg.executors.executor_map import check_executor
from medimg.io._header_scan import scan_headers
from medimg.io._scan_index import ScanIndex
from medimg.io.detect import Unreadable
from medimg.io.dicom.header.instance import Instance
from medimg.io.dicom.series.build import build_all_series, build_regular_series
from medimg.io.dicomweb.server import find_server, separate_resources
from medimg.io.files.object_storage import is_remote_url, refuse_url_as_path
from medimg.io.memory_series import object_series
from medimg.io.series import Series
from medimg.io.series_index import SeriesIndex, SkippedFiles
from medimg.io.sources import Files, is_folder, list_source_files, separate_images

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from medimg.core.progress import Progress
    from medimg.io._header_scan import ReadHeaders
    from medimg.io.detect import Scanned
    from medimg.io.dicom.scanning.series_table import UniformFiles
    from medimg.io.files.blob import Blob

__all__ = ["build_index", "scan"]


@set_module("medimg")
def scan(
    source: Files,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Progress = "auto",
    index: str | os.PathLike[str] | None = None,
) -> SeriesIndex:
    """
    Find all series in a folder and its subfolders, or in a zip archive, without reading pixels.

    The format of a file is detected from its content, not from its name: DICOM with or without preamble,
    NIfTI, NRRD, MetaImage, PNG, JPEG, JPEG 2000, TIFF, BMP, WebP and GIF, each also compressed with gzip.
    DICOM instances are grouped into series that can be stacked: by Series Instance UID, size, orientation,
    and whether they are localizers; images at the same position also by attributes that distinguish them,
    such as echo or acquisition.

    Parameters
    ----------
    source : str, Path, bytes, binary file object, pydicom Dataset, or list of these
        Folder, zip archive (read in place), DICOMDIR (for the files that it references), single files, or
        URLs: of these in object storage (``s3://``, ``gs://``, ``az://``), of files and zip archives on web
        servers, and of studies, series or instances of a DICOMweb server (see :func:`medimg.dicomweb`). A
        zip archive inside a folder is skipped, as the folder often contains its content as well: read it by
        itself. A DICOMDIR inside a folder is ignored.
    workers : int, optional
        Number of threads that read headers; by default one, 16 if files are slow to open, as on network
        drives, or 24 for URLs. Or number of blocks of files that an executor works on at once.
    executor : concurrent.futures.Executor, optional
        Executor whose workers read the headers of files that they see, too; see :doc:`/scale`.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.
    index : str or Path, optional
        SQLite file in which the headers of a folder are saved: the next scan with the same index reads only
        the files whose size or modification time has changed. It contains patient IDs and series
        descriptions: store it where the images are stored.

    Returns
    -------
    SeriesIndex
        Series found, possibly none; ``skipped`` lists every file that belongs to no series, with the reason.

    Raises
    ------
    ReadError
        If the path does not exist, the source has an unsupported type, `workers` is not a positive number, or
        the index is another file or can't be written. If a URL can't be read; it is a ``FileNotFoundError``,
        ``PermissionError``, ``TimeoutError`` or ``ConnectionError``, too.
    ExecutorError
        If the executor can't run tasks; a file that takes its workers down is skipped.

    Examples
    --------
    >>> index = scan("archive")  # doctest: +SKIP
    >>> [s.summary() for s in index]  # doctest: +SKIP
    ['CT CHEST: 1×133×512×512, 2×0.742×0.742 mm, 133 file(s), uid 1.2.840…']
    """
    return build_index(source, workers=workers, executor=executor, progress=progress, index=index)[0]


def build_index(
    source: object,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Progress = "auto",
    index: str | os.PathLike[str] | None = None,
) -> tuple[SeriesIndex, list[MedimgError]]:
    """Return the series of a source, and the error of each of its skipped files; see :func:`scan`."""
    if workers is not None:
        check_whole_number("workers", workers, least=1, error=ReadError)
    check_executor(executor)
    saved = None if index is None else _open_index(source, check_path("index", index, error=ReadError))
    images, rest, has_rest = separate_images(source)
    found = SeriesIndex(tuple(map(object_series, images)))
    errors: list[MedimgError] = []
    resources, rest, has_rest = separate_resources(rest) if has_rest else ([], rest, False)
    for resource in resources:
        index_of_one, errors_of_one = find_server(resource).scan_resource(resource)
        found, errors = _join(found, index_of_one), errors + errors_of_one
    if not has_rest:
        return found, errors
    files, absent = list_source_files(rest)
    read = partial(scan_headers, workers=workers, executor=executor, progress=progress)
    grouped, lost = _group_files(files, read, saved)
    errors += [*lost, *(ReadError(skipped.reason) for skipped in absent)]
    return _join(_join(found, grouped), SeriesIndex((), SkippedFiles(absent))), errors


def _join(one: SeriesIndex, other: SeriesIndex) -> SeriesIndex:
    return SeriesIndex((*one.series, *other.series), SkippedFiles((*one.skipped, *other.skipped)))


def _open_index(source: object, path: Path) -> ScanIndex:
    refuse_url_as_path(path)
    if is_remote_url(source):
        raise ReadError("index= is for scans of a folder on this machine; scan a URL without it")
    if not is_folder(source):
        raise ReadError("index= is for scans of a folder; scan a file, an archive or a list without it")
    return ScanIndex(path, Path(str(source)))


def _group_files(
    files: Sequence[Blob | str], read: ReadHeaders, saved: ScanIndex | None
) -> tuple[SeriesIndex, list[MedimgError]]:
    headers = read(files, range(len(files))) if saved is None else saved.refresh(files, read)
    others = [(n, f) for n, f in headers.others if f is not None]
    series, instances = _separate_regular(headers.uniform, others)
    found = _drop_companions([f for _, f in others if not isinstance(f, Instance)])
    series += [f for f in found if isinstance(f, Series)]
    failed = [(f.name, f.error) for f in found if isinstance(f, Unreadable)]
    stacks, unplaced = build_all_series(instances)
    series += stacks
    failed += unplaced
    skipped = SkippedFiles(Skipped(name, str(error)) for name, error in failed)
    return SeriesIndex(tuple(sorted(series, key=lambda s: s.path)), skipped), [error for _, error in failed]


def _separate_regular(
    uniform: Sequence[UniformFiles], others: Sequence[tuple[int, Scanned]]
) -> tuple[list[Series], list[Instance]]:
    """Return the series that need no grouping, and the files of all others, in their order."""
    instances = [(n, f) for n, f in others if isinstance(f, Instance)]
    shared = Counter(some.prototype.series_uid for some in uniform)
    shared.update(instance.series_uid for _, instance in instances)
    series: list[Series] = []
    for some in uniform:
        found = build_regular_series(some) if shared[some.prototype.series_uid] == 1 else None
        if found is None:
            instances += ((n, some.get_instance(row)) for row, n in enumerate(some.indices))
        else:
            series.append(found)
    return series, [instance for _, instance in sorted(instances, key=itemgetter(0))]


def _drop_companions(found: list[Series | Unreadable]) -> list[Series | Unreadable]:
    """Drop files that only hold the values of a header beside them."""
    companions = {name for f in found if isinstance(f, Series) for name in f.files[1:]}
    kept: dict[str, Series | Unreadable] = {}
    for number, item in enumerate(found):
        if isinstance(item, Unreadable) and item.name in companions:
            continue
        # an .img yields the series of its pair
        kept.setdefault(item.uid if isinstance(item, Series) else f"{number}", item)
    return list(kept.values())
