"""Synthetic files that are read in the benchmarks, written once and kept."""

from __future__ import annotations

from benchmarks.data.scale import FULL, SCALES, SMALL, Scale
from benchmarks.data.store import CODECS, Data

__all__ = ["CODECS", "FULL", "SCALES", "SMALL", "Data", "Scale"]
