"""Heads on real embeddings: as good as by hand, and better than neighbors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import medimg
from benchmarks.probes import by_hand, dataset, plain_features
from medimg import ImageDataset, Preprocess, TransferClassifier
from medimg.data._labels import read_table
from medimg.features.dataset_features import item_features
from tests.sampling import SLOW

PATIENTS = 200 if SLOW else 120


def part(real_data: Path, patients: int, size: int = 128) -> ImageDataset:
    """All images of so many patients, of each class its share; no others are read."""
    root = real_data / "cls" / "kermany_cxr224_dev"
    table = read_table(root / "labels.csv")
    chosen: set[str] = set()
    rng = np.random.default_rng(0)
    for _, names in table.groupby("label")["patient_id"]:
        those = sorted(set(names))
        share = round(patients * len(those) / table["patient_id"].nunique())
        chosen |= {those[n] for n in rng.permutation(len(those))[:share]}
    return ImageDataset.from_csv(
        table[table["patient_id"].isin(chosen)],
        path="file",
        label="label",
        patient="patient_id",
        root=root,
        preprocess=Preprocess(size=size),
        progress=False,
    )


@pytest.fixture(scope="module")
def weights(real_data: Path) -> Path:
    return next((real_data / "weights" / "squeezenet1_1").glob("*.pth"))


def compared(data: ImageDataset, weights: Path, cache: Path, tolerance: float, size: int) -> None:
    model = TransferClassifier(
        "squeezenet1_1", classes=data.classes, weights=weights, preprocess=data.preprocess
    )
    probe = medimg.cross_validate(model, data, cache=cache, balance=None, C=0.01, n_resamples=200)
    hand = by_hand(plain_features(data.sources, weights, size), data.labels, data.patients, 0.01)
    assert probe.metrics["auroc"].value >= hand - tolerance
    model.backbone.register_forward_pre_hook(lambda *_: pytest.fail("an image passed once more"))
    # on the same embeddings, to the last digits
    x = item_features(model, data, cache=cache).embeddings.numpy()
    again = by_hand(x, data.labels, data.patients, 0.01)
    assert probe.metrics["auroc"].value == pytest.approx(again, abs=1e-4)
    chosen = medimg.cross_validate(model, data, cache=cache, n_resamples=200)
    assert chosen.metrics["auroc"].value >= hand - tolerance
    neighbors = medimg.cross_validate(model, data, cache=cache, method="knn", n_resamples=200)
    assert chosen.metrics["auroc"].value >= neighbors.metrics["auroc"].value
    assert chosen.metrics["auroc"].low > 0.9


def test_a_probe_of_some_patients(real_data: Path, weights: Path, tmp_path: Path) -> None:
    compared(part(real_data, PATIENTS), weights, tmp_path, 0.02, 128)


@pytest.mark.slow
@pytest.mark.skipif(not SLOW, reason="2,547 images twice: set MEDIMG_SLOW=1")
def test_a_probe_of_all_patients(real_data: Path, weights: Path, tmp_path: Path) -> None:
    data = dataset(real_data)
    assert (len(data), len(set(data.patients))) == (2547, 1364)
    compared(data, weights, tmp_path, 0.002, 224)


def test_a_fitted_head_predicts_other_patients(real_data: Path, weights: Path) -> None:
    from sklearn.metrics import roc_auc_score

    train, test = medimg.split(part(real_data, 120), fractions=(0.6, 0.4))
    model = TransferClassifier(
        "squeezenet1_1", classes=train.classes, weights=weights, preprocess=train.preprocess
    )
    fit = medimg.fit_head(model, train)
    assert fit.best is not None
    assert fit.best["auroc"] > 0.9
    assert roc_auc_score(test.labels, model.predict_proba(test)[:, 1]) > 0.9
