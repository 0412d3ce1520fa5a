"""
MedMNIST+ by the published protocol: ``python -m benchmarks.medmnist FOLDER --backbone resnet18``.

FOLDER has the files of MedMNIST+ at 224 pixels, such as ``pneumoniamnist_224.npz``, with their own parts for
training, selection and test. A linear probe is fitted on frozen features, or all layers are trained; accuracy
and AUROC of the test part are those of MedMNIST's evaluator: the mean over classes, each against the rest,
and of labels at 0.5. Beside them are the figures of Doerrich et al. (Sci Rep 2025) for the same training.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

import medimg
from benchmarks.pages import list_table
from medimg.errors import MedimgWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["PUBLISHED", "Score", "main", "measure", "score"]

#: AUROC and accuracy in percent, by training, network and data set: Doerrich et al., 224 pixels.
PUBLISHED: Final[dict[tuple[str, str, str], tuple[float, float]]] = {
    ("end to end", "resnet18", "pneumoniamnist"): (98.04, 91.13),
    ("end to end", "resnet18", "breastmnist"): (89.94, 87.18),
    ("end to end", "resnet18", "organamnist"): (99.70, 96.01),
    ("end to end", "vgg16", "pneumoniamnist"): (98.47, 87.39),
    ("end to end", "vgg16", "breastmnist"): (91.11, 88.03),
    ("end to end", "vgg16", "organamnist"): (99.75, 94.61),
    ("end to end", "densenet121", "pneumoniamnist"): (97.41, 88.94),
    ("end to end", "densenet121", "breastmnist"): (89.67, 87.39),
    ("end to end", "densenet121", "organamnist"): (99.84, 96.72),
    ("linear probe", "resnet18", "pneumoniamnist"): (96.91, 83.17),
    ("linear probe", "resnet18", "breastmnist"): (68.33, 73.08),
    ("linear probe", "resnet18", "organamnist"): (99.35, 90.20),
}
TRAININGS: Final = ("linear probe", "end to end")


@dataclass(frozen=True, slots=True)
class Score:
    """AUROC and accuracy of a test part, 0 to 1."""

    auroc: float
    accuracy: float


def score(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> Score:
    """Return the scores of MedMNIST's evaluator: `labels` (n,) of one class each, or (n, K) of 0 and 1."""
    several = labels.ndim == 2
    indicators = labels if several else np.eye(probabilities.shape[1], dtype=np.int64)[labels]
    columns = range(1, 2) if not several and probabilities.shape[1] == 2 else range(indicators.shape[1])
    auroc = float(np.mean([roc_auc_score(indicators[:, k], probabilities[:, k]) for k in columns]))
    right = (probabilities > 0.5) == labels if several else probabilities.argmax(axis=1) == labels
    return Score(auroc, float(np.mean(right)))


def measure(path: Path, training: str, options: argparse.Namespace) -> Score:
    """Train on one file, select on its validation part, and score its test part."""
    torch.manual_seed(options.seed)
    recipe = None if options.size is None else medimg.Preprocess(size=options.size)
    first = medimg.ImageDataset.from_npz(path, "train", preprocess=recipe)
    model = medimg.TransferClassifier(
        options.backbone,
        classes=first.classes,
        weights=None if options.weights == "none" else options.weights,
        task=first.task,
        preprocess=recipe,
    )
    train, val, test = (
        medimg.ImageDataset.from_npz(path, split, classes=first.classes, preprocess=model.preprocess)
        for split in ("train", "val", "test")
    )
    if training == "linear probe":
        medimg.fit_head(model, train, val, balance=None, seed=options.seed, progress=False)
    else:
        medimg.fine_tune(model, train, val, epochs=options.epochs, seed=options.seed, progress=False)
    return score(np.asarray(test.labels), np.asarray(model.predict_proba(test), dtype=np.float64))


def main(arguments: Sequence[str] | None = None) -> None:
    """Score each file of a folder, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.medmnist", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="DEFAULT", help='as of TransferClassifier, or "none"')
    parser.add_argument("--training", choices=TRAININGS, action="append", help="both by default")
    parser.add_argument("--epochs", type=int, default=100, help="of all layers; the best one is kept")
    parser.add_argument("--size", type=int, help="pixels; by default those of the weights")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    files = sorted(options.folder.glob("*.npz"))
    if not files:
        parser.error(f"{options.folder} has no .npz file; download those of MedMNIST+ from zenodo.org")
    rows: list[list[str]] = []
    with warnings.catch_warnings():
        # the files name no patients, and have parts of their own
        warnings.filterwarnings("ignore", ".*no known patient", MedimgWarning)
        for path in files:
            for training in options.training or TRAININGS:
                found = measure(path, training, options)
                rows.append([path.stem, training, *_describe(path, training, options.backbone, found)])
    head = ["file", "training", "AUROC %", "accuracy %", "published AUROC %", "published accuracy %"]
    print(list_table([head, *rows]))


def _describe(path: Path, training: str, backbone: str, found: Score) -> list[str]:
    name, _, size = path.stem.rpartition("_")
    published: tuple[Any, ...] = PUBLISHED.get((training, backbone, name), ()) if size == "224" else ()
    shown = [f"{value:.2f}" for value in published] or ["", ""]
    return [f"{100 * found.auroc:.2f}", f"{100 * found.accuracy:.2f}", *shown]


if __name__ == "__main__":
    main()
