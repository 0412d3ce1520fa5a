"""What the headers of many files say: the usual DICOM ones in blocks, the others one by one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from medimg.core.progress import progress_bar
from medimg.io._detect import inspect
from medimg.io.dicom.scanning.block_scan import scan_blocks
from medimg.io.files.blob import as_blob

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tqdm import tqdm

    from medimg.io._detect import Scanned
    from medimg.io.dicom.scanning.series_table import UniformFiles
    from medimg.io.files.blob import Blob

__all__ = ["HeaderScan", "scan_headers"]

#: Fewer files are parsed one by one, as each needs a look anyway.
_FEWEST: Final = 2


class HeaderScan(NamedTuple):
    """
    What files hold.

    Attributes
    ----------
    alike : list of UniformFiles
        Usual DICOM files, by series and kind.
    others : list of (int, Found or None)
        Of all others, the number of the file and what it holds; None for a DICOMDIR.
    """

    alike: list[UniformFiles]
    others: list[tuple[int, Scanned | None]]


def scan_headers(
    files: Sequence[Blob | str],
    chosen: Sequence[int],
    *,
    workers: int | None = None,
    progress: bool | None = None,
) -> HeaderScan:
    """
    Read the headers of files.

    Parameters
    ----------
    files : sequence of Blob or str
        Files, by their paths where they are such.
    chosen : sequence of int
        Which of them to read.
    workers : int, optional
        Threads; see :func:`medimg.scan`.
    progress : bool, optional
        Whether to show a progress bar; see :func:`medimg.scan`.

    Returns
    -------
    HeaderScan
        With the numbers of the files as given.
    """
    with progress_bar(desc="scanning", unit="file", progress=progress, total=len(chosen)) as bar:
        alike, rest = _scan_in_blocks(files, chosen, workers, bar)
        return HeaderScan(alike, list(_inspect_one(files, rest, workers or 1, bar)))


def _scan_in_blocks(
    files: Sequence[Blob | str], chosen: Sequence[int], workers: int | None, bar: tqdm[Any]
) -> tuple[list[UniformFiles], list[int]]:
    """Return what is found of usual DICOM files, and the numbers of the others."""
    numbers = [n for n in chosen if isinstance(files[n], str) or as_blob(files[n]).path is not None]
    names = [file if isinstance(file, str) else file.name for file in map(files.__getitem__, numbers)]
    if len(names) < _FEWEST:
        return [], list(chosen)
    alike, rest = scan_blocks(names, workers=workers, done=bar.update)
    bar.update(-len(rest))
    for some in alike:
        some.indices[:] = [numbers[n] for n in some.indices]
    if len(numbers) == len(chosen):
        return alike, [numbers[n] for n in rest]
    taken = {n for some in alike for n in some.indices}
    return alike, [n for n in chosen if n not in taken]


def _inspect_one(
    files: Sequence[Blob | str], chosen: Sequence[int], workers: int, bar: tqdm[Any]
) -> Iterator[tuple[int, Scanned | None]]:
    blobs = (as_blob(files[n]) for n in chosen)
    with ThreadPoolExecutor(workers) as pool:
        found = map(inspect, blobs) if workers == 1 else pool.map(inspect, blobs)
        for number, result in zip(chosen, found, strict=True):
            bar.update()
            yield number, result
