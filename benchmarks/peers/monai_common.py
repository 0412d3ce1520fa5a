"""MONAI's transforms, behind one or the other of its readers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai import data, transforms

from benchmarks.peers.grid import Resampled, placed
from benchmarks.peers.job import CENTER, MEAN, STD, WIDTH
from benchmarks.peers.pydicom_torch import evenly

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.peers.job import Job

__all__ = ["few", "nifti", "resample", "tensors", "volume", "xrays"]

_LOW, _HIGH = CENTER - 0.5 - (WIDTH - 1) / 2, CENTER - 0.5 + (WIDTH - 1) / 2


def _loader(reader: str, **options: Any) -> Any:
    made = getattr(data, reader)(**options)
    return transforms.LoadImage(reader=made, image_only=True, ensure_channel_first=True)


def _stack(image: Any) -> Any:
    """Turn (1, W, H, D) into (D, H, W)."""
    return image[0].permute(2, 1, 0)


def volume(reader: str, job: Job) -> Callable[[], Any]:
    """A folder into a volume."""
    load = _loader(reader)
    return lambda: _stack(load(str(job.source)))


def nifti(job: Job) -> Callable[[], Any]:
    """A file into a volume; MONAI's own reader of NIfTI goes through nibabel."""
    return volume("NibabelReader", job)


def tensors(reader: str, job: Job) -> Callable[[], Any]:
    """A folder into pictures: one chain of transforms over the volume."""
    way = transforms.Compose(
        [
            _loader(reader),
            transforms.ScaleIntensityRange(_LOW, _HIGH, 0.0, 1.0, clip=True),
            transforms.Resize((job.size, job.size, -1), mode="trilinear", anti_aliasing=job.antialias),
        ]
    )
    return lambda: _normalized(_stack(way(str(job.source))))


def _normalized(stack: torch.Tensor) -> torch.Tensor:
    """Turn (N, H, W) into (N, 3, H, W)."""
    finish = transforms.Compose(
        [transforms.RepeatChannel(3), transforms.NormalizeIntensity(MEAN, STD, channel_wise=True)]
    )
    made: torch.Tensor = finish(stack[None]).as_tensor()
    return made.transpose(0, 1).contiguous()


def few(reader: str, job: Job) -> Callable[[], Any]:
    """Three pictures of a folder: it reads whole volumes only."""
    load = _loader(reader)
    shrink = transforms.Compose(
        [
            transforms.ScaleIntensityRange(_LOW, _HIGH, 0.0, 1.0, clip=True),
            transforms.Resize((job.size, job.size, -1), mode="trilinear", anti_aliasing=True),
        ]
    )

    def run() -> torch.Tensor:
        image = load(str(job.source))
        return _normalized(_stack(shrink(image[..., evenly(image.shape[-1], 3)])))

    return run


def xrays(job: Job) -> Callable[[], Any]:
    """One file after the other, by ITKReader; the declared window is looked up in its metadata."""
    load = _loader("ITKReader")
    shrink: Any = transforms.Resize((job.size, job.size), mode="bilinear", anti_aliasing=job.antialias)

    def one(path: str) -> torch.Tensor:
        image = load(path)
        center, width, bits = (float(image.meta[tag]) for tag in ("0028|1050", "0028|1051", "0028|0101"))
        if str(image.meta["0028|0004"]).strip() == "MONOCHROME1":
            center = 2**bits - center  # ITK inverts the stored values and leaves the window as it was
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
        scale = transforms.ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)
        flat = image[..., 0] if image.ndim == 4 else image
        return _normalized(shrink(scale(flat)).transpose(1, 2))

    return lambda: torch.cat([one(str(path)) for path in job.files])


def resample(job: Job) -> Callable[[], Any]:
    """A volume to 1 mm, linearly."""
    image = _loader("ITKReader")(str(job.source))
    space: Any = transforms.Spacing(pixdim=(1.0, 1.0, 1.0), mode="bilinear")
    before = _reversed(image.affine)

    def run() -> Resampled:
        made = space(image)
        return placed(_stack(made), before, _reversed(made.affine))

    return run


def _reversed(affine: Any) -> Any:
    """Affine of (w, h, d) as one of (d, h, w)."""
    return np.asarray(affine, np.float64)[:, [2, 1, 0, 3]]
