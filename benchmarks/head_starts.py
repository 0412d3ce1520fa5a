"""
Where end-to-end training starts: ``python -m benchmarks.head_starts``.

A network is fine-tuned from one head epoch (the default), from a head that logistic regression has fitted
(linear probing, then fine-tuning: Kumar et al., ICLR 2022), from a head trained for twenty epochs, and
without a head phase. Two tasks of chest radiographs, small images and few epochs, as it runs on a CPU;
scored on other patients, and on their images as two simulated scanners make them. Intervals resample
patients.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import medimg
from benchmarks.adaptation.scanners import Scanner
from benchmarks.environment import made_with
from benchmarks.head_defaults import BACKBONES, resampled_auroc
from benchmarks.pages import list_table, write_part
from medimg.data.splits.kfold import assign_folds, split_by_fold

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]

TRAINING: Final = Path(__file__).parent.parent / "docs" / "training.rst"
SIZE: Final = 112
EPOCHS: Final = 3
IMAGES: Final = 600
FOLDS: Final = 5
RESAMPLES: Final = 300
REFERENCE: Final = "one head epoch"
SCANNERS: Final = {
    "same scanner": Scanner(),
    "mild shift": Scanner(gamma=0.8, blur=0.5, noise=0.02),
    "strong shift": Scanner(gamma=0.6, blur=0.8, noise=0.06),
}
#: AUROC of the images and of resampled patients, (1 + R,), by start and setting.
Areas = dict[tuple[str, str], list[NDArray[np.float64]]]


class Radiographs:
    """Images in memory as a scanner makes them, with what ``fine_tune`` asks of a dataset."""

    task, unit = "multiclass", "image"

    def __init__(
        self,
        images: Tensor,
        labels: NDArray[np.int64],
        patients: Sequence[str],
        classes: tuple[str, ...],
        preprocess: medimg.Preprocess,
    ) -> None:
        self.images, self.labels, self.patients = images, labels, tuple(patients)
        self.classes, self.preprocess = classes, preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def fit_logistic(model: medimg.TransferClassifier, train: Radiographs) -> None:
    """Fit the head by logistic regression."""
    medimg.fit_head(model, train)


def train_twenty(model: medimg.TransferClassifier, train: Radiographs) -> None:
    """Train the head for twenty epochs."""
    medimg.fine_tune(model, train, head_epochs=20, epochs=0, lr=1e-2, augment=None, progress=False)


def keep_head(model: medimg.TransferClassifier, train: Radiographs) -> None:
    """Leave the head as it is."""


#: What is done before fine-tuning, and the head epochs of fine-tuning itself.
STARTS: Final[dict[str, tuple[Callable[..., None], int]]] = {
    REFERENCE: (keep_head, 1),
    "fitted head (LP-FT)": (fit_logistic, 0),
    "20 head epochs, lr 0.01": (train_twenty, 0),
    "no head phase": (keep_head, 0),
}


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Images (n, H, W) from 0 to 1 of some patients, with the classes to distinguish."""

    classes: tuple[str, ...]
    images: Tensor
    labels: NDArray[np.int64]
    patients: NDArray[np.str_]
    preprocess: medimg.Preprocess

    def take(self, rows: NDArray[np.int64], scanner: Scanner, seed: int) -> Radiographs:
        """Return some images as a scanner makes them."""
        made = scanner(self.images[rows], torch.Generator().manual_seed(seed))
        return Radiographs(
            self.preprocess.normalize(made[:, None]),
            self.labels[rows],
            self.patients[rows].tolist(),
            self.classes,
            self.preprocess,
        )


def read_tasks(root: Path) -> tuple[Task, Task]:
    """Return the tasks: normal or pneumonia, and bacteria or virus."""
    data = medimg.ImageDataset.from_csv(
        root / "cls" / "kermany_cxr224_dev" / "labels.csv",
        path="file",
        label="subtype",
        patient="patient_id",
        preprocess=medimg.Preprocess(size=SIZE),
        progress=False,
    )
    images = torch.cat([data.planes(n)[0].reshape(1, SIZE, SIZE) for n in range(len(data))])
    names, patients = np.array(data.classes)[data.labels], np.array(data.patients)
    pneumonia = (names != "normal").astype(np.int64)
    sick = np.flatnonzero(pneumonia)
    virus = (names[sick] == "virus").astype(np.int64)
    return (
        Task(("normal", "pneumonia"), images, pneumonia, patients, data.preprocess),
        Task(("bacteria", "virus"), images[sick], virus, patients[sick], data.preprocess),
    )


def compare(task: Task, backbone: str, weights: Path, folds: int) -> Areas:
    """Return the AUROCs of a backbone from each start, one for each fold."""
    areas: Areas = defaultdict(list)
    fold = assign_folds(task.labels, task.patients.tolist(), "multiclass", FOLDS, 0)
    for number, (train, test) in enumerate(split_by_fold(fold)):
        if number == folds:
            break
        rng = np.random.default_rng(number)
        names = rng.permutation(np.unique(task.patients[train]))
        chosen = names[: int(len(names) * min(1, IMAGES / len(train)))]
        small = task.take(train[np.isin(task.patients[train], chosen)], SCANNERS["same scanner"], 0)
        tests = {setting: task.take(test, scanner, 1) for setting, scanner in SCANNERS.items()}
        people, patient = np.unique(task.patients[test], return_inverse=True)
        drawn = rng.multinomial(len(people), np.full(len(people), 1 / len(people)), size=RESAMPLES)
        counts = np.concatenate([np.ones((1, len(test)), np.int64), drawn[:, patient]])
        for start, (prepare, head_epochs) in STARTS.items():
            torch.manual_seed(number)
            model = medimg.TransferClassifier(
                backbone, classes=task.classes, weights=weights, preprocess=task.preprocess
            )
            prepare(model, small)
            medimg.fine_tune(model, small, head_epochs=head_epochs, epochs=EPOCHS, progress=False)
            for setting, shifted in tests.items():
                area = resampled_auroc(shifted.labels, _predict(model, shifted), counts)
                areas[start, setting].append(area)
    return areas


def _predict(model: medimg.TransferClassifier, data: Radiographs) -> NDArray[np.float64]:
    with torch.no_grad():
        logits = torch.cat([model(batch) for batch in data.images.split(64)])
    return logits.double().softmax(dim=1).numpy()


def summarize(areas: Areas) -> list[list[str]]:
    """Return a table of mean differences from one head epoch, with their intervals."""
    rows = [["Start", *SCANNERS]]
    for start in STARTS:
        cells = []
        for setting in SCANNERS:
            own, other = np.array(areas[start, setting]), np.array(areas[REFERENCE, setting])
            difference = (own - other).mean(axis=0)
            low, high = np.nanpercentile(difference[1:], [2.5, 97.5])
            cells.append(
                f"AUROC {own[:, 0].mean():.4f}"
                if start == REFERENCE
                else f"{difference[0]:+.4f} ({low:+.4f} to {high:+.4f})"
            )
        rows.append([start, *cells])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write it to the documentation if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head_starts", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDIMG_TEST_DATA"))
    parser.add_argument("--folds", type=int, default=2, help="how many of the five folds")
    parser.add_argument("--write", action="store_true", help="write docs/training.rst")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("--data, or the variable MEDIMG_TEST_DATA, names the folder of the test data")
    root = Path(options.data)
    tasks = read_tasks(root)
    areas: Areas = defaultdict(list)
    for backbone in BACKBONES:
        weights = next((root / "weights" / backbone).glob("*.pth"))
        for task in tasks:
            for key, several in compare(task, backbone, weights, options.folds).items():
                areas[key] += several
    made = made_with()
    text = f"{list_table(summarize(areas))}\n\n{made['machine']}, {made['date']}."
    print(text)
    if options.write:
        write_part(TRAINING, "head starts", text)


if __name__ == "__main__":
    main()
