"""Nibabel, which reads NIfTI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import nibabel
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.peers.job import Job

__all__ = ["nifti"]

CANNOT: Final = dict.fromkeys(("scan", "volume", "tensors", "few", "codec", "xrays"), "reads NIfTI")


def nifti(job: Job) -> Callable[[], Any]:
    """A file into an array of the stored type, int16; uncompressed files are mapped."""
    return lambda: np.asanyarray(nibabel.load(job.source).dataobj).transpose(2, 1, 0)  # type: ignore[attr-defined]  # nibabel's types promise too little
