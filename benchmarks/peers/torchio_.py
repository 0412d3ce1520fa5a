"""TorchIO, whose DICOM series are read by SimpleITK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torchio as tio

from benchmarks.peers.grid import Resampled, placed
from benchmarks.peers.job import CENTER, MEAN, STD, WIDTH

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.peers.job import Job

__all__ = ["nifti", "plain_tensors", "resample", "resample_linear", "volume"]

CANNOT: Final = {
    "tensors": "its Resize does not antialias within the slices alone",
    "few": "reads whole volumes; its Resize does not antialias within the slices alone",
    "codec": "decodes with the same library as SimpleITK",
}


def volume(job: Job) -> Callable[[], Any]:
    """A folder or a file into a volume."""
    return lambda: tio.ScalarImage(job.source).data[0].permute(2, 1, 0)


nifti = volume


def plain_tensors(job: Job) -> Callable[[], Any]:
    """A folder into pictures: window, resize, normalize."""
    low, high = CENTER - 0.5 - (WIDTH - 1) / 2, CENTER - 0.5 + (WIDTH - 1) / 2
    depth = len(job.files)
    way = tio.Compose(
        [
            tio.RescaleIntensity(out_min_max=(0, 1), in_min_max=(low, high)),
            tio.Resize((job.size, job.size, depth), image_interpolation="linear"),
        ]
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))

    def run() -> torch.Tensor:
        stack: torch.Tensor = way(tio.ScalarImage(job.source)).data[0].permute(2, 1, 0)
        return (stack[:, None].to(torch.float32) - mean) / std

    return run


def resample(job: Job) -> Callable[[], Any]:
    """A volume to 1 mm, linearly; it does not antialias unless told to, and then by a Gaussian."""
    image = tio.ScalarImage(job.source)
    image.load()
    way = tio.Resample(1.0, image_interpolation="linear")
    before = _reversed(image.affine)

    def run() -> Resampled:
        made = way(image)
        return placed(made.data[0].permute(2, 1, 0), before, _reversed(made.affine))

    return run


resample_linear = resample


def _reversed(affine: Any) -> Any:
    """Affine of (w, h, d) as one of (d, h, w)."""
    return np.asarray(affine, np.float64)[:, [2, 1, 0, 3]]
