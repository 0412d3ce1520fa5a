"""The X-rays: large single pictures with declared windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from benchmarks.data.headers import write, xray_header

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from benchmarks.data.scale import Scale

__all__ = ["write_xrays"]


def write_xrays(folder: Path, scale: Scale) -> None:
    """Write X-rays of 12, 13 and 14 bits, MONOCHROME1 and MONOCHROME2 mixed, one file for each."""
    folder.mkdir(parents=True)
    for number in range(scale.xrays):
        bits = 12 + number % 3
        pixels = _picture(number, (scale.xray_rows, scale.xray_columns), bits)
        write(xray_header(number, pixels, bits), folder / f"DX{number:03d}.dcm")


def _picture(number: int, shape: tuple[int, int], bits: int) -> npt.NDArray[np.uint16]:
    """Soft shapes and noise: a coarse random field made large."""
    rng = np.random.default_rng([11, number])
    coarse = ndimage.gaussian_filter(rng.standard_normal((40, 34)), 2)
    coarse = (coarse - coarse.min()) / np.ptp(coarse)
    factors = [n / m for n, m in zip(shape, coarse.shape, strict=True)]
    soft = ndimage.zoom(coarse.astype(np.float32), factors, order=1)
    noisy = soft * 0.8 + 0.1 + 0.01 * rng.standard_normal(shape, dtype=np.float32)
    return np.asarray(np.clip(noisy * 2**bits, 0, 2**bits - 1), np.uint16)
