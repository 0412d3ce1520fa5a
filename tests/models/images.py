"""Data sets of small PNG files, and of small DICOM stacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from medimg import ImageDataset, Preprocess
from tests.dicom_files import write_stack

TINY = Preprocess(size=32, window="percentile")


def pixels(label: int, seed: int) -> npt.NDArray[np.uint8]:
    """Noise, and for class 1 faint stripes; class 2 has them the other way."""
    noise = np.random.default_rng(seed).normal(100, 40, (32, 32))
    stripes = 40 * (np.arange(32) % 8 < 4)
    added: npt.NDArray[np.float64] = np.zeros((32, 32))
    if label:
        added = added + (stripes[:, None] if label == 1 else stripes)
    return (noise + added).clip(0, 255).astype(np.uint8)


def write_pictures(root: Path, patients: int = 12, each: int = 2, classes: int = 2) -> pd.DataFrame:
    """One table row for each file; class by patient."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for patient in range(patients):
        for number in range(each):
            name = f"{patient}-{number}.png"
            label = patient % classes
            Image.fromarray(pixels(label, 100 * patient + number)).save(root / name)
            rows.append({"path": name, "label": "abc"[label], "patient": f"SENTINEL-{patient}"})
    return pd.DataFrame(rows)


def picture_data(root: Path, *, preprocess: Preprocess = TINY, **options: Any) -> ImageDataset:
    numbers = {name: options.pop(name) for name in ("patients", "each", "classes") if name in options}
    table = write_pictures(root, **numbers)
    return ImageDataset.from_csv(
        table, root=root, patient="patient", preprocess=preprocess, progress=False, **options
    )


def stacks(root: Path, count: int = 4, start: int = 0) -> list[Path]:
    """Folders with one series of three slices each."""
    for n in range(start, start + count):
        write_stack(root / f"{n}", [0, 2, 4], SeriesInstanceUID=f"1.2.{n}", PatientID=f"SENTINEL-{n}")
    return [root / f"{n}" for n in range(start, start + count)]
