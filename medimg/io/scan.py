"""Finding out what is in a tree of files: headers only, no pixels."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from medimg.core.report import Skipped
from medimg.errors import MedimgError, NotAnImageError, ReadError
from medimg.io.dicom.assemble import dicom_series
from medimg.io.dicom.grouping import group_instances
from medimg.io.dicom.header import Instance, looks_like_dicom, read_instance
from medimg.io.nifti import is_nifti_name, nifti_series
from medimg.io.picture import looks_like_picture, picture_series
from medimg.io.series import Series, SeriesIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["identify", "index_files", "scan"]

_Found: TypeAlias = Instance | Series | Skipped


def scan(path: str | Path, *, workers: int | None = None, progress: bool | None = None) -> SeriesIndex:
    """
    Find all series in a folder and below, without touching their pixels.

    Files are told apart by what they hold, not by their names: DICOM with or without preamble and
    extension, PNG and JPEG; NIfTI goes by ``.nii`` and ``.nii.gz``. Instances are grouped into series that
    can be stacked: by Series Instance UID, size, orientation, localizer or not, and by echo or acquisition
    where these tell images at the same position apart.

    Parameters
    ----------
    path : str or Path
        A folder, or a single file.
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
        If the path does not exist.

    Examples
    --------
    >>> index = scan("archive")  # doctest: +SKIP
    >>> [s.summary() for s in index]  # doctest: +SKIP
    ['CT CHEST: 1×133×512×512, 2×0.742×0.742 mm, 133 file(s), uid 1.2.840…']
    """
    root = Path(path)
    if not root.exists():
        raise ReadError(f"there is no file or folder {root}")
    files = list(_walk(root)) if root.is_dir() else [root]
    return index_files(files, workers=workers, progress=progress)


def index_files(
    files: Sequence[str | Path], *, workers: int | None = None, progress: bool | None = None
) -> SeriesIndex:
    """Group files into series; see :func:`scan`."""
    instances: list[Instance] = []
    series: list[Series] = []
    skipped: list[Skipped] = []
    for found in _inspected(files, workers or 1, progress):
        if isinstance(found, Instance):
            instances.append(found)
        elif isinstance(found, Series):
            series.append(found)
        else:
            skipped.append(found)
    for uid, group in group_instances(instances):
        try:
            series.append(dicom_series(uid, group))
        except MedimgError as error:
            skipped += [Skipped(i.path, str(error)) for i in group]
    return SeriesIndex(tuple(sorted(series, key=lambda s: s.path)), tuple(skipped))


def _inspected(files: Sequence[str | Path], workers: int, progress: bool | None) -> Iterator[_Found]:
    from tqdm import tqdm

    def shown(results: Iterable[_Found]) -> Iterable[_Found]:
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


def _walk(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _inspect(path: str | Path) -> _Found:
    try:
        return identify(Path(path))
    except MedimgError as error:
        return Skipped(str(path), str(error))


def identify(path: Path) -> Instance | Series:
    """
    Return what a file holds, told by its content.

    Raises
    ------
    ReadError
        If it holds no image, or can't be read.
    """
    if not path.is_file():
        raise ReadError(f"there is no file {path}")
    if is_nifti_name(path.name):
        return nifti_series(path)
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as error:
        raise ReadError(f"{path} can't be opened: {error.strerror or type(error).__name__}") from None
    if looks_like_picture(start):
        return picture_series(path)
    if looks_like_dicom(start):
        return read_instance(path)
    raise NotAnImageError(f"{path} is none of DICOM, NIfTI, PNG and JPEG")
