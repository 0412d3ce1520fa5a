"""Pydicom to read, torch to window, resize and normalize."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pydicom
import torch

from benchmarks.peers.pictures import brightness, normalized, resized, tensors_of
from benchmarks.peers.pydicom_ import hounsfield, in_order, series

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.peers.job import Job

__all__ = ["few", "tensors", "xrays"]


_PLACE: Final = ["ImagePositionPatient"]


def tensors(job: Job) -> Callable[[], Any]:
    """Read all, window, resize and normalize."""
    return lambda: tensors_of(hounsfield(series(job.files)), job.size)


def few(job: Job) -> Callable[[], Any]:
    """Read the headers of all, and the pixels of three slices, evenly spaced."""
    return partial(_few, job)


def _few(job: Job) -> torch.Tensor:
    headers = in_order([pydicom.dcmread(p, stop_before_pixels=True, specific_tags=_PLACE) for p in job.files])
    chosen = [headers[n] for n in evenly(len(headers), 3)]
    return tensors_of(hounsfield([pydicom.dcmread(str(ds.filename)) for ds in chosen]), job.size)


def evenly(total: int, count: int) -> list[int]:
    """Return indices evenly spaced from the first to the last."""
    return [int(i) for i in np.floor(np.linspace(0, total - 1, count) + 0.5)]


def xrays(job: Job) -> Callable[[], Any]:
    """Read one after the other; window as declared, invert, resize and normalize."""
    return lambda: torch.cat([_xray(path, job.size) for path in job.files])


def _xray(path: Path, size: int) -> torch.Tensor:
    ds = pydicom.dcmread(path)
    planes = torch.from_numpy(ds.pixel_array.astype(np.float32))[None]
    planes = brightness(planes, float(ds.WindowCenter), float(ds.WindowWidth))
    if ds.PhotometricInterpretation == "MONOCHROME1":
        planes = 1 - planes
    return normalized(resized(planes, size))
