"""Pydicom to read, torch to window, resize and normalize."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pydicom
import torch
from torch.utils.data import Dataset

from benchmarks.peers.epochs import by_loaders
from benchmarks.peers.pictures import brightness, normalized, resized, tensors_of
from benchmarks.peers.pydicom_ import hounsfield, in_order, series

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.peers.job import Job

__all__ = ["busy_tensors", "evenly", "few", "loaders", "tensors", "tensors_into", "xrays"]


_PLACE: Final = ["ImagePositionPatient"]


def tensors(job: Job) -> Callable[[], Any]:
    """Read all, window, resize and normalize."""
    return lambda: tensors_of(hounsfield(series(job.files)), job.size)


busy_tensors = tensors


def tensors_into(job: Job) -> Callable[[], Any]:
    """Read all, window, resize and normalize, into memory that was used before."""
    memory = torch.zeros(len(job.files), 3, job.size, job.size)
    return lambda: tensors_of(hounsfield(series(job.files)), job.size, memory)


class _Files(Dataset[Any]):
    """Files as items, each read when it is asked for."""

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self.files = files
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return tensors_of(hounsfield(series([self.files[number]])), self.size)[0], 0


def loaders(job: Job) -> Callable[[], Any]:
    """Batches of files that are read in each epoch."""
    return by_loaders(_Files(job.files, job.size))


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
