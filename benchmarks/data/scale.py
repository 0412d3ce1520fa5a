"""How much data a run is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["FULL", "SCALES", "SMALL", "Scale"]


@dataclass(frozen=True, slots=True)
class Scale:
    """
    Amounts of data.

    Attributes
    ----------
    name : str
        "full" or "small".
    slices, size : int
        Of the CT series: slices, and rows and columns.
    xrays : int
        How many X-rays.
    xray_rows, xray_columns : int
        Of each.
    series, per_series : int
        Of the tree of small files: series, and files of each.
    layouts : int
        How many layouts of headers the tree of many layouts has.
    frames : int
        Of the enhanced CT.
    archive : int
        Files of the archive of many makers.
    """

    name: str
    slices: int
    size: int
    xrays: int
    xray_rows: int
    xray_columns: int
    series: int
    per_series: int
    layouts: int
    frames: int
    archive: int


FULL: Final = Scale("full", 300, 512, 40, 3000, 2500, 20, 250, 2000, 5000, 50_000)
#: For trying out and for tests: ratios of such small work mean nothing.
SMALL: Final = Scale("small", 12, 64, 4, 300, 250, 3, 10, 12, 20, 60)
SCALES: Final = {scale.name: scale for scale in (FULL, SMALL)}
