"""Medimg, by its public names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

import medimg
from benchmarks.peers.epochs import training_epoch
from benchmarks.peers.grid import Resampled, placed

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.peers.job import Job

__all__ = [
    "codec",
    "epoch",
    "few",
    "frames",
    "nifti",
    "plain_tensors",
    "plain_xrays",
    "resample",
    "resample_linear",
    "scan",
    "tensors",
    "volume",
    "xrays",
]


def scan(job: Job) -> Callable[[], Any]:
    """A tree into an index of series."""
    return lambda: medimg.scan(job.source, progress=False)


frames = scan


def volume(job: Job) -> Callable[[], Any]:
    """A folder into a volume in HU."""
    return lambda: medimg.read(job.source).array[0]


codec = nifti = volume


def tensors(job: Job) -> Callable[[], Any]:
    """A folder into pictures."""
    recipe = medimg.Preprocess(window="soft_tissue", size=job.size)
    return lambda: recipe(job.source)


plain_tensors = tensors


def few(job: Job) -> Callable[[], Any]:
    """A folder into three pictures."""
    recipe = medimg.Preprocess(window="soft_tissue", size=job.size, slices=3)
    return lambda: recipe(job.source)


def xrays(job: Job) -> Callable[[], Any]:
    """Many files into one tensor, windowed as declared; stretched, as the other libraries do it."""
    recipe = medimg.Preprocess(window="dicom", size=job.size, fit="stretch")
    return lambda: medimg.read_tensors(job.files, recipe, progress=False).tensor


plain_xrays = xrays


def resample(job: Job) -> Callable[[], Any]:
    """A volume to 1 mm, antialiased along axes that get coarser."""
    return _resample(job, antialias=True)


def resample_linear(job: Job) -> Callable[[], Any]:
    """A volume to 1 mm, by linear interpolation alone, as SimpleITK does it."""
    return _resample(job, antialias=False)


def _resample(job: Job, *, antialias: bool) -> Callable[[], Any]:
    before = medimg.read(job.source)

    def run() -> Resampled:
        after = before.resample(1.0, antialias=antialias)
        return placed(after.array[0], before.affine, after.affine)

    return run


def epoch(job: Job) -> Callable[[], Any]:
    """Batches of pictures from the cache on disk, which the first epoch filled."""
    table = pd.DataFrame({"path": [str(job.source)], "label": ["one"], "patient": ["one"]})
    recipe = medimg.Preprocess(window="soft_tissue", size=job.size)
    items = medimg.ImageDataset.from_csv(table, patient="patient", preprocess=recipe, cache=job.scratch)
    training_epoch(items)
    return lambda: training_epoch(items)
