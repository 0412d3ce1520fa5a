"""The domain shifts of the benchmark: labeled source, validation, unlabeled target and scored images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import medimg
from benchmarks.adaptation.scanners import SCANNERS

__all__ = ["SHIFTS", "Scanned", "Shift"]

SIZE: Final = 64
#: Images of each subset: training, validation, target, scored.
COUNTS: Final = (160, 100, 160, 300)
_SOURCES: Final = ("plain", "soft", "hard")


class Scanned:
    """Images in memory with what ``fine_tune`` asks of a dataset; each belongs to a domain."""

    task, unit = "multiclass", "slice"

    def __init__(
        self,
        images: Tensor,
        labels: NDArray[np.int64],
        patients: Sequence[str],
        domains: Sequence[str],
        classes: tuple[str, ...],
    ) -> None:
        self.preprocess = medimg.Preprocess(size=SIZE)
        self.images = self.preprocess.normalize(images[:, None])
        self.labels, self.classes = labels, classes
        self.patients, self.domains = tuple(patients), tuple(domains)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


@dataclass(frozen=True, slots=True)
class Shift:
    """Subsets of one shift; no patient is in two of train, val and the rest."""

    train: Scanned
    val: Scanned
    #: Images of the target domain whose labels are not used.
    target: Scanned
    #: Images of the target domain that are scored.
    scored: Scanned
    #: Images that are scored for the source; None for the validation images.
    home: Scanned | None = None


@dataclass(frozen=True, slots=True)
class _Radiographs:
    """Images (n, H, W) of kermany_cxr224_dev, and a row of a table for each."""

    images: Tensor
    table: pd.DataFrame

    def take(self, rows: NDArray[np.int64], scanners: Sequence[str], seed: int) -> Scanned:
        """Return some of the images, passed through scanners in turn."""
        names = [scanners[n % len(scanners)] for n in range(len(rows))]
        generator = torch.Generator().manual_seed(seed)
        made = self.images[rows].clone()
        for name in scanners:
            where = torch.tensor([one == name for one in names])
            made[where] = SCANNERS[name](made[where], generator)
        table = self.table.iloc[rows]
        labels = np.asarray(table["label"] == "PNEUMONIA", dtype=np.int64)
        return Scanned(made, labels, table["patient_id"].tolist(), names, ("NORMAL", "PNEUMONIA"))


@cache
def _read_radiographs(root: Path) -> _Radiographs:
    """Read all radiographs, scaled down."""
    folder = root / "cls" / "kermany_cxr224_dev"
    table = pd.read_csv(folder / "labels.csv")
    images = [_read_small(folder / file) for file in table["file"]]
    return _Radiographs(torch.from_numpy(np.stack(images)).float() / 255, table)


def _read_small(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _split_patients(table: pd.DataFrame, tuning: bool) -> list[NDArray[np.int64]]:
    """
    Return the rows of four subsets, of which no two have a patient in common.

    Settings are chosen by scores on patients of their own (`tuning`).
    """
    patients = np.sort(table["patient_id"].unique())
    order = np.random.default_rng(0).permutation(len(patients))
    group = dict(
        zip(patients[order], np.linspace(0, 10, len(patients), endpoint=False).astype(int), strict=True)
    )
    part = table["patient_id"].map(group).to_numpy()
    # tenths of the patients: training, validation, target, scores for tuning, scores
    wanted = ((0, 2), (2, 3), (3, 5), (5, 7) if tuning else (7, 10))
    return [np.flatnonzero((part >= low) & (part < high)) for low, high in wanted]


def _sample(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    order = np.random.default_rng(len(rows)).permutation(len(rows))
    return np.sort(rows[order[:count]])


def _simulated(scanner: str) -> Callable[[Path, bool], Shift]:
    """Return a function that makes the shift of a simulated scanner."""

    def make(root: Path, tuning: bool) -> Shift:
        data = _read_radiographs(root)
        parts = _split_patients(data.table, tuning)
        train, val, target, scored = (_sample(p, count) for p, count in zip(parts, COUNTS, strict=True))
        return Shift(
            train=data.take(train, _SOURCES, 1),
            val=data.take(val, _SOURCES, 5),
            target=data.take(target, (scanner,), 2),
            scored=data.take(scored, (scanner,), 3),
            home=data.take(scored, ("plain",), 4),
        )

    return make


def _cause(root: Path, tuning: bool) -> Shift:
    """Return the shift from bacterial to viral pneumonia, of images as they are."""
    data = _read_radiographs(root)
    viral = (data.table["subtype"] == "virus").to_numpy()
    bacterial = (data.table["subtype"] == "bacteria").to_numpy()
    parts = _split_patients(data.table, tuning)
    kept = [p[~viral[p]] for p in parts[:2]] + [p[~bacterial[p]] for p in parts[2:]]
    train, val, target, scored = (_sample(p, count) for p, count in zip(kept, COUNTS, strict=True))
    home = _sample(parts[3][~viral[parts[3]]], COUNTS[3])
    return Shift(*(data.take(rows, ("plain",), 0) for rows in (train, val, target, scored, home)))


#: Functions of the data folder, and whether settings are being chosen.
SHIFTS: Final[dict[str, Callable[[Path, bool], Shift]]] = {
    "inverted": _simulated("inverted"),
    "processed": _simulated("processed"),
    "cause": _cause,
}
