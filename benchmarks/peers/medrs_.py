"""Medrs, which reads NIfTI and resamples."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import medrs
import numpy as np

from benchmarks.data.headers import SPACING
from benchmarks.peers.grid import Resampled, placed
from benchmarks.peers.pydicom_ import hounsfield, series

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.peers.job import Job

__all__ = ["nifti", "resample", "resample_linear"]

CANNOT: Final = dict.fromkeys(
    ("scan", "archive", "volume", "tensors", "tensors_into", "few", "codec", "xrays"), "reads NIfTI"
)


def nifti(job: Job) -> Callable[[], Any]:
    """A file into an array of the stored type, int16."""
    return lambda: medrs.load(str(job.source)).to_numpy_native().transpose(2, 1, 0)


def resample(job: Job) -> Callable[[], Any]:
    """Trilinear, of a float32 image in memory; it has no antialiasing."""
    array = hounsfield(series(job.files)).transpose(2, 1, 0).astype(np.float32)
    image = medrs.NiftiImage(array, np.diag([*SPACING[::-1], 1.0]).tolist())
    return partial(_resample, image)


resample_linear = resample


def _resample(image: Any) -> Resampled:
    made = image.resample([1.0, 1.0, 1.0])
    before, after = (np.array(each.affine)[[2, 1, 0, 3]][:, [2, 1, 0, 3]] for each in (image, made))
    return placed(made.to_numpy().transpose(2, 1, 0), before, after)
