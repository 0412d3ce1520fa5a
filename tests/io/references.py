"""What dcm2niix makes of DICOM files, compared with what medimg reads."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

import medimg
from medimg.errors import MedimgError, MedimgWarning
from medimg.io.series_index import SeriesIndex

AFFINE_MM = 2e-2
VALUES = 1e-3


@dataclass(frozen=True)
class Image:
    """A volume in the closest canonical orientation (RAS), as nibabel defines it."""

    name: str
    values: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]


def canonical(image: Any, name: str) -> Image:
    turned = nib.as_closest_canonical(image)
    values = np.asanyarray(turned.dataobj)
    if values.dtype.names is not None:
        values = np.stack([values[n] for n in values.dtype.names], axis=-1)
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return Image(name, values, turned.affine)


def reference(path: Path) -> Image:
    return canonical(nib.load(path), path.name)


def of_volume(volume: medimg.Volume, name: str) -> Image:
    """(C, D, H, W) and LPS into (i, j, k, C) and RAS, written out here on purpose."""
    array = np.asarray(volume.array).transpose(3, 2, 1, 0)
    array = array[..., 0] if array.shape[3] == 1 else array
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine[:, [2, 1, 0, 3]]
    values = array.astype(np.float64) if array.dtype.kind in "iub" else array
    return canonical(nib.Nifti1Image(values, affine, dtype=values.dtype), name)


@cache
def scanned(folder: Path) -> SeriesIndex:
    """What is in a folder that does not change: scanned once for all tests."""
    return medimg.scan(folder)


@cache
def images_of(folder: Path, **policies: Any) -> list[Image]:
    """All series of a folder that can be read; it does not change, and is read once for all tests."""
    images = []
    for series in scanned(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MedimgWarning)
            try:
                images.append(of_volume(series.read(**policies), series.summary()))
            except MedimgError:
                continue
    return images


def difference(found: Image, expected: Image) -> str:
    """What is different; empty where the reference is met."""
    if found.values.shape != expected.values.shape:
        return f"shape {found.values.shape} instead of {expected.values.shape}"
    off = float(np.abs(found.affine - expected.affine).max())
    if off > AFFINE_MM:
        return f"affine off by {off:.4g} mm"
    wanted = expected.values.astype(np.float64)
    extent = float(np.ptp(wanted)) or 1.0
    worst = float(np.abs(found.values.astype(np.float64) - wanted).max())
    return f"values off by {worst / extent:.2g} of the range" if worst > VALUES * extent else ""


def met_by(expected: Image, found: list[Image]) -> tuple[str, str]:
    """Name of the image that meets a reference and "", or "" and how the closest one differs."""
    differences = []
    for image in found:
        text = difference(image, expected)
        if not text:
            return image.name, ""
        differences.append(text)
    ranked = sorted(differences, key=lambda text: ("shape" in text, "affine" in text))
    return "", ranked[0] if ranked else "no series"
