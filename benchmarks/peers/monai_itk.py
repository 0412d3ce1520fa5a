"""MONAI with ITKReader; with its own reader for NIfTI."""

from __future__ import annotations

from functools import partial
from typing import Final

import itk  # noqa: F401  # what ITKReader needs: without it this column can't be run

from benchmarks.peers import monai_common as common

__all__ = [
    "few",
    "nifti",
    "plain_tensors",
    "plain_xrays",
    "resample",
    "resample_linear",
    "tensors",
    "volume",
    "xrays",
]

CANNOT: Final = {"codec": "decodes with the same library as SimpleITK"}

volume = partial(common.volume, "ITKReader")
tensors = plain_tensors = partial(common.tensors, "ITKReader")
few = partial(common.few, "ITKReader")
nifti = common.nifti
xrays = plain_xrays = common.xrays
resample = resample_linear = common.resample
