"""Fastdicom, which reads; torch resizes, where pictures are asked for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import fastdicom
import numpy as np
import torch

from benchmarks.peers.pictures import brightness, normalized, resized, tensors_of
from benchmarks.peers.pydicom_ import TAGS
from benchmarks.peers.pydicom_torch import evenly

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from benchmarks.peers.job import Job

__all__ = ["archive", "codec", "few", "scan", "tensors", "volume", "xrays"]


def scan(job: Job) -> Callable[[], Any]:
    """Headers up to the pixels, the tags that matter, grouped by series."""
    return partial(_scan, job)


archive = scan


def _scan(job: Job) -> dict[str, list[list[Any]]]:
    groups: dict[str, list[list[Any]]] = {}
    for path in job.files:
        ds = fastdicom.dcmread(str(path), stop_before_pixels=True)
        values = [ds.get(keyword, None) for keyword in TAGS]
        groups.setdefault(values[3], []).append(values)
    return groups


def _in_order(files: Sequence[Path], **options: bool) -> list[Any]:
    opened = [fastdicom.dcmread(str(path), **options) for path in files]
    return sorted(opened, key=lambda ds: float(ds.ImagePositionPatient[2]))


def volume(job: Job) -> Callable[[], Any]:
    """All slices in order, in HU."""
    return lambda: _stack(_in_order(job.files))


codec = volume


def _stack(datasets: Sequence[Any]) -> npt.NDArray[np.int16]:
    first = datasets[0]
    out = np.empty((len(datasets), first.Rows, first.Columns), np.int16)
    for n, ds in enumerate(datasets):
        out[n] = ds.pixel_array
        out[n] += int(ds.RescaleIntercept)
    return out


def tensors(job: Job) -> Callable[[], Any]:
    """Read all, window, resize and normalize."""
    return lambda: tensors_of(_stack(_in_order(job.files)), job.size)


def few(job: Job) -> Callable[[], Any]:
    """Read the headers of all, and three slices whole."""
    return partial(_few, job)


def _few(job: Job) -> torch.Tensor:
    headers = _in_order(job.files, stop_before_pixels=True)
    chosen = [fastdicom.dcmread(headers[n].file_path) for n in evenly(len(headers), 3)]
    return tensors_of(_stack(chosen), job.size)


def xrays(job: Job) -> Callable[[], Any]:
    """Read one after the other; window as declared, invert, resize and normalize."""
    return lambda: torch.cat([_xray(path, job.size) for path in job.files])


def _xray(path: Path, size: int) -> torch.Tensor:
    ds = fastdicom.dcmread(str(path))
    planes = torch.from_numpy(ds.pixel_array.astype(np.float32))[None]
    planes = brightness(planes, float(ds.WindowCenter), float(ds.WindowWidth))
    if ds.PhotometricInterpretation == "MONOCHROME1":
        planes = 1 - planes
    return normalized(resized(planes, size))
