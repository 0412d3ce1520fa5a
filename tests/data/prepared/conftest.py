"""Scans in folders by class, and a prepared folder of them in object storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from medimg import ImageDataset, Preprocess
from tests.dicom_files import make_instance, write

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = Preprocess(size=40, slices=3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with three series each of five patients."""
    root = tmp_path / "scans"
    rng = np.random.default_rng(2)
    for number in range(6):
        for n in range(4 + number % 2):
            instance = make_instance(
                rng.integers(900, 1300, (12, 16), np.uint16),
                ImagePositionPatient=[-10.0, -20.0, 2.0 * n],
                InstanceNumber=n + 1,
                SeriesInstanceUID=f"1.2.{number}",
                StudyInstanceUID=f"1.3.{min(number, 4)}",
                PatientID=f"SENTINEL-{min(number, 4)}",
            )
            write(instance, root / "ab"[number // 3] / f"{number}" / f"{n}.dcm")
    return root


@pytest.fixture
def dataset(root: Path) -> ImageDataset:
    return ImageDataset.from_folder(root, RECIPE, progress=False)
