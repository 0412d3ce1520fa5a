"""Dicomsdl, which reads; torch resizes, where pictures are asked for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import dicomsdl
import numpy as np
import torch

from benchmarks.peers.pictures import brightness, normalized, resized, tensors_of
from benchmarks.peers.pydicom_ import TAGS
from benchmarks.peers.pydicom_torch import evenly

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from benchmarks.peers.job import Job

__all__ = [
    "archive",
    "busy_tensors",
    "codec",
    "few",
    "scan",
    "tensors",
    "tensors_into",
    "volume",
    "xrays",
]

_PIXELS: Final = 0x7FE00000


def scan(job: Job) -> Callable[[], Any]:
    """Headers up to the pixels, the tags that matter, grouped by series."""
    return partial(_scan, job)


archive = scan


def _scan(job: Job) -> dict[str, list[list[Any]]]:
    groups: dict[str, list[list[Any]]] = {}
    for path in job.files:
        ds = dicomsdl.open(str(path), _PIXELS)
        values = ds.getValues(TAGS)
        groups.setdefault(values[3], []).append(values)
    return groups


def _in_order(files: list[Path], load_until: int = 0xFFFFFFFF) -> list[tuple[float, Path, Any]]:
    opened = [(path, dicomsdl.open(str(path), load_until)) for path in files]
    return sorted(((ds.ImagePositionPatient[2], path, ds) for path, ds in opened), key=lambda found: found[0])


def volume(job: Job) -> Callable[[], Any]:
    """All slices in order, straight into one array, in HU."""
    return lambda: _stack([ds for *_, ds in _in_order(job.files)])


codec = volume


def _stack(datasets: list[Any]) -> npt.NDArray[np.int16]:
    first = datasets[0]
    out = np.empty((len(datasets), first.Rows, first.Columns), np.uint16)
    for n, ds in enumerate(datasets):
        ds.copyFrameData(0, out[n])
    values = out.view(np.int16)
    values += int(first.RescaleIntercept)
    return values


def tensors(job: Job) -> Callable[[], Any]:
    """Read all, window, resize and normalize."""
    return lambda: tensors_of(_stack([ds for *_, ds in _in_order(job.files)]), job.size)


busy_tensors = tensors


def tensors_into(job: Job) -> Callable[[], Any]:
    """Read all, window, resize and normalize, into memory that was used before."""
    memory = torch.zeros(len(job.files), 3, job.size, job.size)
    return lambda: tensors_of(_stack([ds for *_, ds in _in_order(job.files)]), job.size, memory)


def few(job: Job) -> Callable[[], Any]:
    """Read the headers of all, and three slices whole."""
    return partial(_few, job)


def _few(job: Job) -> torch.Tensor:
    headers = _in_order(job.files, _PIXELS)
    chosen = [dicomsdl.open(str(headers[n][1])) for n in evenly(len(headers), 3)]
    return tensors_of(_stack(chosen), job.size)


def xrays(job: Job) -> Callable[[], Any]:
    """Read one after the other; window as declared, invert, resize and normalize."""
    return lambda: torch.cat([_xray(path, job.size) for path in job.files])


def _xray(path: Path, size: int) -> torch.Tensor:
    ds = dicomsdl.open(str(path))
    stored = np.empty((ds.Rows, ds.Columns), np.uint16)
    ds.copyFrameData(0, stored)
    planes = torch.from_numpy(stored.astype(np.float32))[None]
    planes = brightness(planes, float(ds.WindowCenter), float(ds.WindowWidth))
    if ds.PhotometricInterpretation == "MONOCHROME1":
        planes = 1 - planes
    return normalized(resized(planes, size))
