"""Pydicom to read, 8-bit pictures by Pillow, torchvision's transforms: the way of many notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from benchmarks.peers.job import CENTER, MEAN, STD, WIDTH
from benchmarks.peers.pydicom_ import series

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydicom import Dataset

    from benchmarks.peers.job import Job

__all__ = ["tensors", "xrays"]


def tensors(job: Job) -> Callable[[], Any]:
    """One picture after the other, in the order of positions."""
    way = _way(job.size)
    return lambda: torch.stack([way(_picture(ds, CENTER, WIDTH)) for ds in series(job.files)])


def xrays(job: Job) -> Callable[[], Any]:
    """One picture after the other, windowed as declared."""
    import pydicom

    way = _way(job.size)

    def one(ds: Dataset) -> torch.Tensor:
        made: torch.Tensor = way(_picture(ds, float(ds.WindowCenter), float(ds.WindowWidth)))
        return made

    return lambda: torch.stack([one(pydicom.dcmread(path)) for path in job.files])


def _way(size: int) -> Callable[[Image.Image], Any]:
    steps = [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return transforms.Compose(steps)


def _picture(ds: Dataset, center: float, width: float) -> Image.Image:
    values = ds.pixel_array.astype(np.float32) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    shown = np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return Image.fromarray((shown * 255).astype(np.uint8)).convert("RGB")
