"""Pydicom alone."""

from __future__ import annotations

import warnings
from functools import cache, partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pydicom
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from pydicom import Dataset

    from benchmarks.peers.job import Job

__all__ = [
    "archive",
    "best_plugin",
    "codec",
    "frames",
    "hounsfield",
    "in_order",
    "scan",
    "scan_pure",
    "series",
    "volume",
]

#: What it takes to find series and to place their slices.
TAGS: Final = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "SeriesDescription",
    "SeriesNumber",
    "InstanceNumber",
    "AcquisitionNumber",
    "ImageType",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
]
CANNOT: Final = {
    "tensors": "no resizing: see the next two columns",
    "few": "no resizing: see the next two columns",
    "xrays": "no resizing: see the next two columns",
}


def scan(job: Job) -> Callable[[], Any]:
    """Headers up to the pixels, of the tags that matter alone, grouped by series."""
    return partial(_scan, job)


def _scan(job: Job) -> dict[str, list[Dataset]]:
    groups: dict[str, list[Dataset]] = {}
    for path in job.files:
        ds = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
        groups.setdefault(ds.SeriesInstanceUID, []).append(ds)
    return groups


archive = scan_pure = scan


def frames(job: Job) -> Callable[[], Any]:
    """Position, time and indices of each frame of an enhanced file."""
    return partial(_list_frames, job)


def _list_frames(job: Job) -> dict[str, list[tuple[Any, Any, Any]]]:
    ds = pydicom.dcmread(job.files[0], stop_before_pixels=True)
    found = []
    for groups in ds.PerFrameFunctionalGroupsSequence:
        content = groups.FrameContentSequence[0]
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        found.append((position, content.FrameAcquisitionDateTime, content.DimensionIndexValues))
    return {ds.SeriesInstanceUID: found}


def volume(job: Job) -> Callable[[], Any]:
    """All slices in order, in HU."""
    return lambda: hounsfield(series(job.files))


def codec(job: Job) -> Callable[[], Any]:
    """All slices through the fastest of the plugins that are installed."""
    plugin = best_plugin(job.files[0])
    return lambda: hounsfield(series(job.files), plugin)


def series(files: Iterable[Path]) -> list[Dataset]:
    """Read whole files, in the order of their positions."""
    return in_order([pydicom.dcmread(path) for path in files])


def in_order(datasets: Sequence[Dataset]) -> list[Dataset]:
    """Sort axial slices by their positions."""
    return sorted(datasets, key=lambda ds: float(ds.ImagePositionPatient[2]))


def hounsfield(datasets: list[Dataset], plugin: str = "") -> npt.NDArray[np.int16]:
    """Stack slices into (D, H, W) int16, rescaled with whole numbers, which is all these need."""
    first = datasets[0]
    out = np.empty((len(datasets), first.Rows, first.Columns), np.int16)
    for n, ds in enumerate(datasets):
        pixels = pixel_array(ds, decoding_plugin=plugin) if plugin else ds.pixel_array
        out[n] = pixels
        out[n] += int(ds.RescaleIntercept)
    return out


@cache
def best_plugin(path: Path) -> str:
    """Return the plugin that decodes a file fastest; "" where it is not compressed."""
    ds = pydicom.dcmread(path)
    if not ds.file_meta.TransferSyntaxUID.is_compressed:
        return ""
    took: dict[str, float] = {}
    for plugin in get_decoder(ds.file_meta.TransferSyntaxUID).available_plugins:
        try:
            took[plugin] = min(_seconds(ds, plugin) for _ in range(4))
        except (RuntimeError, ValueError, NotImplementedError):
            continue
    return min(took, key=took.__getitem__)


def _seconds(ds: Dataset, plugin: str) -> float:
    start = perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixel_array(ds, decoding_plugin=plugin)
    return perf_counter() - start
