"""SimpleITK; torch resizes, where pictures are asked for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk  # noqa: N813  # the name that its manual uses
import torch

from benchmarks.peers.grid import Resampled
from benchmarks.peers.pictures import brightness, normalized, resized, tensors_of
from benchmarks.peers.pydicom_torch import evenly

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.peers.job import Job

__all__ = ["codec", "few", "nifti", "resample", "resample_linear", "scan", "tensors", "volume", "xrays"]


class _View(np.ndarray[Any, Any]):
    """An array in the memory of an image, which lives as long as the array does."""

    image: Any = None


def _view(image: Any) -> _View:
    view = sitk.GetArrayViewFromImage(image).view(_View)
    view.image = image
    return view


def scan(job: Job) -> Callable[[], Any]:
    """Series of each folder, and their files in order."""
    return lambda: {
        uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
        for folder in {path.parent for path in job.files}
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    }


def volume(job: Job) -> Callable[[], Any]:
    """Folder to array."""
    return lambda: _view(_read(job.source))


codec = volume


def _names(folder: Path) -> tuple[str, ...]:
    names: tuple[str, ...] = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    return names


def _read(folder: Path) -> Any:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(_names(folder))
    return reader.Execute()


def tensors(job: Job) -> Callable[[], Any]:
    """Folder to array, then torch."""
    return lambda: tensors_of(sitk.GetArrayFromImage(_read(job.source)), job.size)


def few(job: Job) -> Callable[[], Any]:
    """Find the order of all files, read three."""
    return partial(_few, job)


def _few(job: Job) -> torch.Tensor:
    names = _names(job.source)
    slices = [sitk.GetArrayFromImage(sitk.ReadImage(names[n]))[0] for n in evenly(len(names), 3)]
    return tensors_of(np.stack(slices), job.size)


def xrays(job: Job) -> Callable[[], Any]:
    """Read one after the other; window as declared, invert, resize and normalize."""
    return lambda: torch.cat([_xray(path, job.size) for path in job.files])


def _xray(path: Path, size: int) -> torch.Tensor:
    image = sitk.ReadImage(str(path))
    center, width, bits = (float(image.GetMetaData(tag)) for tag in ("0028|1050", "0028|1051", "0028|0101"))
    if image.GetMetaData("0028|0004").strip() == "MONOCHROME1":
        center = 2**bits - center  # ITK inverts the stored values and leaves the window as it was
    values = sitk.GetArrayViewFromImage(image)
    planes = torch.from_numpy(values.astype(np.float32)).reshape(1, *values.shape[-2:])
    return normalized(resized(brightness(planes, center, width), size))


def nifti(job: Job) -> Callable[[], Any]:
    """File to array."""
    return lambda: _view(sitk.ReadImage(str(job.source)))


def resample(job: Job) -> Callable[[], Any]:
    """Linear, to float32, by all threads; it has no antialiasing in this step."""
    return partial(_resample, _read(job.source))


resample_linear = resample


def _resample(image: Any) -> Resampled:
    spacing = image.GetSpacing()
    size = [round(n * s) for n, s in zip(image.GetSize(), spacing, strict=True)]
    made = sitk.Resample(
        image,
        size,
        sitk.Transform(),
        sitk.sitkLinear,
        image.GetOrigin(),
        (1.0, 1.0, 1.0),
        image.GetDirection(),
        0.0,
        sitk.sitkFloat32,
    )
    return Resampled(_view(made), (0.0, 0.0, 0.0), tuple(1 / s for s in spacing[::-1]))
