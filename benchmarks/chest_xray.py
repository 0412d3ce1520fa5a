"""
Chest radiographs, five patient-wise folds: ``python -m benchmarks.chest_xray``.

A linear probe, ten epochs of the head, and end-to-end training of two small backbones. A fifth of the
training patients of each fold selects epochs and calibrates. Probe and head use images of 224 pixels,
end-to-end training smaller ones and few epochs, as it runs on a CPU. With ``--before``, intensities by
percentiles and temperature scaling, the earlier defaults.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

import medimg
from benchmarks.environment import made_with
from benchmarks.head_defaults import BACKBONES
from benchmarks.pages import list_table, write_part
from medimg.metrics.calibration_error import bin_probabilities, expected_calibration_error
from medimg.models.backbones.heads import head_logits

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Predictions", "Training", "main", "predict_folds", "summarize"]

TRAINING: Final = Path(__file__).parent.parent / "docs" / "training.rst"
FOLDS: Final = 5
RESAMPLES: Final = 500


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained: the size of the images, and arguments of ``fine_tune``; None for a probe."""

    name: str
    size: int
    settings: dict[str, Any] | None


TRAININGS: Final = (
    Training("linear probe", 224, None),
    Training("head, 10 epochs", 224, {"head_epochs": 10, "epochs": 0}),
    Training("end to end, 3 epochs", 112, {"epochs": 3}),
)


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Out-of-fold probabilities (n, 2) before and after calibration, of images with labels and patients."""

    labels: NDArray[np.int64]
    patients: NDArray[np.str_]
    raw: NDArray[np.float64]
    calibrated: NDArray[np.float64]


def predict_folds(root: Path, backbone: str, training: Training, cache: str, *, before: bool) -> Predictions:
    """Train and calibrate in each fold, and predict its test images."""
    window = "percentile" if before else "auto"
    data = medimg.ImageDataset.from_csv(
        root / "cls" / "kermany_cxr224_dev" / "labels.csv",
        path="file",
        label="label",
        patient="patient_id",
        preprocess=medimg.Preprocess(size=training.size, window=window),
        progress=False,
    )
    weights = next((root / "weights" / backbone).glob("*.pth"))
    item = {source: n for n, source in enumerate(data.sources)}
    raw, calibrated = np.zeros((len(data), 2)), np.zeros((len(data), 2))
    for fold, (rest, test) in enumerate(medimg.kfold(data, FOLDS, seed=0)):
        train, val = medimg.split(rest, fractions=(0.8, 0.2), seed=fold)
        torch.manual_seed(fold)
        model = medimg.TransferClassifier(
            backbone, classes=data.classes, weights=weights, preprocess=data.preprocess
        )
        if training.settings is None:
            medimg.fit_head(model, train, cache=cache)
        else:
            medimg.fine_tune(model, train, val, cache=cache, progress=False, **training.settings)
        logits = _predict(model, test, cache if training.settings is None else None)
        found = medimg.calibrate(model, val, method="temperature" if before else "auto", coverage=None)
        items = [item[source] for source in test.sources]
        raw[items] = logits.softmax(dim=1).numpy()
        mapped = torch.from_numpy(found.logit_map.apply(logits.numpy(), "multiclass"))
        calibrated[items] = mapped.softmax(dim=1).numpy()
    return Predictions(np.asarray(data.labels), np.array(data.patients), raw, calibrated)


def _predict(model: medimg.TransferClassifier, data: medimg.ImageDataset, cache: str | None) -> torch.Tensor:
    """Return the logits (n, 2) of a dataset in float64."""
    found = medimg.embed(model, data, cache=cache).array
    with torch.no_grad():
        return head_logits(model.head, torch.from_numpy(found)).double()


def summarize(found: Predictions) -> list[str]:
    """Return AUROC by image and by patient with intervals, and the ECE before and after calibration."""
    _, patient = np.unique(found.patients, return_inverse=True)
    count = np.bincount(patient)
    mean = np.bincount(patient, found.raw[:, 1]) / count
    truth = np.bincount(patient, found.labels) / count > 0.5
    draws = np.random.default_rng(0).integers(len(count), size=(RESAMPLES, len(count)))
    weights = np.stack([np.bincount(draw, minlength=len(count)) for draw in draws])
    by_image = _auroc(found.labels, found.raw[:, 1], weights[:, patient])
    by_patient = _auroc(truth.astype(np.int64), mean, weights)
    errors = [_calibration_error(found.labels, p) for p in (found.raw, found.calibrated)]
    return [by_image, by_patient, *(f"{error:.4f}" for error in errors)]


def _auroc(labels: NDArray[np.int64], score: NDArray[np.float64], weights: NDArray[np.int64]) -> str:
    from sklearn.metrics import roc_auc_score

    samples = [roc_auc_score(labels, score, sample_weight=row) for row in weights]
    low, high = np.percentile(samples, [2.5, 97.5])
    return f"{roc_auc_score(labels, score):.4f} ({low:.4f} to {high:.4f})"


def _calibration_error(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Return the ECE of the probability of the second class."""
    positive = probabilities[:, 1]
    excess = np.bincount(bin_probabilities(positive), labels - positive)
    return float(expected_calibration_error(excess.astype(np.float64), np.array(len(labels), np.int64)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write it to the documentation if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chest_xray", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDIMG_TEST_DATA"))
    parser.add_argument("--before", action="store_true", help="with the earlier defaults")
    parser.add_argument("--write", action="store_true", help="write docs/training.rst")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("--data, or the variable MEDIMG_TEST_DATA, names the folder of the test data")
    rows = [["Training", "AUROC by image", "AUROC by patient", "ECE", "ECE, calibrated"]]
    with tempfile.TemporaryDirectory() as cache:
        for backbone in BACKBONES:
            for training in TRAININGS:
                found = predict_folds(Path(options.data), backbone, training, cache, before=options.before)
                rows.append([f"{backbone}, {training.name}", *summarize(found)])
                print(*rows[-1], sep="; ", flush=True)
    made = made_with()
    text = f"{list_table(rows)}\n\n{made['machine']}, {made['date']}."
    print(text)
    if options.write:
        write_part(TRAINING, "chest x-ray", text)


if __name__ == "__main__":
    main()
