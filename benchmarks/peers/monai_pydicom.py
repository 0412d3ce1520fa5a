"""MONAI with PydicomReader."""

from __future__ import annotations

from functools import partial
from typing import Final

from benchmarks.peers import monai_common as common

__all__ = ["few", "plain_tensors", "tensors", "volume"]

CANNOT: Final = {
    "codec": "decodes as pydicom does",
    "nifti": "reads DICOM only",
    "resample": "same as with the other reader",
    "resample_linear": "same as with the other reader",
    "xrays": "differs from the other reader only in reading",
}

volume = partial(common.volume, "PydicomReader")
tensors = plain_tensors = partial(common.tensors, "PydicomReader")
few = partial(common.few, "PydicomReader")
