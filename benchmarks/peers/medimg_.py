"""Medimg, by its public names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import pandas as pd
import torch

import medimg
from benchmarks.peers.epochs import by_loaders, training_epoch
from benchmarks.peers.grid import Resampled, placed
from benchmarks.peers.plain_medimg import PlainScan

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.peers.job import Job

__all__ = [
    "archive",
    "busy_tensors",
    "codec",
    "each_frame",
    "epoch",
    "few",
    "frames",
    "loaders",
    "nifti",
    "plain_tensors",
    "plain_xrays",
    "resample",
    "resample_linear",
    "scan",
    "scan_pure",
    "tensors",
    "tensors_into",
    "volume",
    "xrays",
]


def scan(job: Job) -> Callable[[], Any]:
    """A tree into an index of series."""
    return lambda: medimg.scan(job.source, progress=False)


frames = archive = scan


def scan_pure(job: Job) -> Callable[[], Any]:
    """The same without the compiled core."""
    return PlainScan(job.source)


def each_frame(job: Job) -> Callable[[], Any]:
    """An enhanced file into an index, each frame evaluated by itself, as medimg did it once."""
    from medimg.io.dicom.header import instance
    from tests.io.dicom.plain_groups import PlainFrameViews

    def run() -> Any:
        with mock.patch.object(instance, "FrameViews", PlainFrameViews):
            return medimg.scan(job.source, progress=False)

    return run


def volume(job: Job) -> Callable[[], Any]:
    """A folder into a volume in HU."""
    return lambda: medimg.read(job.source).array[0]


codec = nifti = volume


def tensors(job: Job) -> Callable[[], Any]:
    """A folder into pictures."""
    recipe = medimg.Preprocess(window="soft_tissue", size=job.size)
    return lambda: recipe(job.source)


plain_tensors = busy_tensors = tensors


def tensors_into(job: Job) -> Callable[[], Any]:
    """A folder into pictures, in memory that was used before."""
    recipe = medimg.Preprocess(window="soft_tissue", size=job.size)
    memory = torch.zeros(len(job.files), 3, job.size, job.size)
    return lambda: recipe(job.source, out=memory)


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


def loaders(job: Job) -> Callable[[], Any]:
    """Batches of files that are read in each epoch: neither memory nor a cache keeps pictures."""
    paths = [str(path) for path in job.files]
    table = pd.DataFrame({"path": paths, "label": "one", "patient": "one"})
    recipe = medimg.Preprocess(window="soft_tissue", size=job.size)
    items = medimg.ImageDataset.from_csv(
        table, patient="patient", preprocess=recipe, memory=0, progress=False
    )
    return by_loaders(items)
