"""Highdicom, which makes volumes of data sets that pydicom read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import highdicom
import numpy as np
import pydicom

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.peers.job import Job

__all__ = ["volume"]

CANNOT: Final = {"codec": "decodes as pydicom does"}


def volume(job: Job) -> Callable[[], Any]:
    """A folder into a volume in HU."""
    return lambda: (
        highdicom.get_volume_from_series(
            [pydicom.dcmread(path) for path in job.files], dtype=np.float32
        ).array
    )
