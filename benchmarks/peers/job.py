"""What a candidate is asked to do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CENTER", "MEAN", "STD", "WIDTH", "CannotError", "Job"]

#: The window of the CT, in HU (LINEAR, PS3.3 C.11.2.1.2), and the normalization of the pictures.
CENTER, WIDTH = 40.0, 400.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class CannotError(Exception):
    """A library can't do this work; the message says why."""


@dataclass(frozen=True, slots=True)
class Job:
    """
    What to work on.

    Attributes
    ----------
    source : Path
        A folder, or a file.
    size : int
        Rows and columns of pictures.
    antialias : bool
        Whether pictures are to be antialiased.
    scratch : Path or None
        A folder that may be written to.
    """

    source: Path
    size: int = 224
    antialias: bool = True
    scratch: Path | None = None

    @property
    def files(self) -> list[Path]:
        """Every file of the source."""
        if not self.source.is_dir():
            return [self.source]
        # pathlib's rglob takes several times as long, and this is timed
        return [Path(path) for path in sorted(_below(self.source))]


def _below(folder: Path) -> list[str]:
    return [f"{top}{os.sep}{name}" for top, _, names in os.walk(folder) for name in names]
