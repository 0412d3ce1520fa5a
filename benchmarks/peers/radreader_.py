"""Radreader, which reads and windows single X-rays; torch resizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import radreader
import torch

from benchmarks.peers.pictures import normalized, resized

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.peers.job import Job

__all__ = ["xrays"]

CANNOT: Final = {
    **dict.fromkeys(("scan", "archive"), "checks headers one by one, finds no series"),
    **dict.fromkeys(("volume", "tensors", "tensors_into", "few"), "reads single images"),
    "codec": "decodes as pydicom does",
}


def xrays(job: Job) -> Callable[[], Any]:
    """Read one after the other as declared, without checks of quality; resize and normalize."""
    return lambda: torch.cat([_xray(path, job.size) for path in job.files])


def _xray(path: Path, size: int) -> torch.Tensor:
    shown = radreader.read(path, qc="off").pixels
    return normalized(resized(torch.from_numpy(shown)[None], size))
