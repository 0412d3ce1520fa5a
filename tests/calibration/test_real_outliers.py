"""Real radiographs: what was changed, and what is of another kind, is more unusual than other radiographs."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

import medimg
from medimg.calibration.mahalanobis import MahalanobisDetector
from medimg.data._labels import read_table
from medimg.errors import MedimgWarning
from tests.sampling import SLOW

pytestmark = pytest.mark.slow

RECIPE = medimg.Preprocess(size=128, window="percentile")


@pytest.fixture(scope="module")
def parts(real_data: Path) -> list[medimg.ImageDataset]:
    root = real_data / "cls" / "kermany_cxr224_dev"
    table = read_table(root / "labels.csv").drop_duplicates("patient_id").sample(320, random_state=0)
    data = medimg.ImageDataset.from_csv(
        table, path="file", label="label", patient="patient_id", root=root, preprocess=RECIPE, progress=False
    )
    return list(medimg.split(data, fractions=(0.5, 0.25, 0.25)))


@pytest.fixture(scope="module")
def model(real_data: Path, parts: list[medimg.ImageDataset]) -> medimg.TransferClassifier:
    weights = next((real_data / "weights" / "squeezenet1_1").glob("*.pth"))
    model = medimg.TransferClassifier(
        "squeezenet1_1", classes=parts[0].classes, weights=weights, preprocess=RECIPE
    )
    medimg.fit_head(model, parts[0], C=0.01)
    medimg.calibrate(model, parts[1], train=parts[0], operating_point={"sensitivity": 0.95})
    return model


def outliers(model: medimg.TransferClassifier) -> MahalanobisDetector:
    assert model.calibration is not None
    assert model.calibration.outliers is not None
    return model.calibration.outliers


def changed(pictures: torch.Tensor, how: str) -> torch.Tensor:
    if how == "inverted":
        return 1 - pictures
    generator = torch.Generator().manual_seed(0)
    if how == "noise":
        return torch.rand(pictures.shape, generator=generator)
    if how == "noisy":
        return (pictures + 0.3 * torch.randn(pictures.shape, generator=generator)).clamp(0, 1)
    return pictures.flip(-2)


def percentiles(model: medimg.TransferClassifier, pictures: torch.Tensor) -> NDArray[np.float64]:
    model.eval()
    with torch.no_grad():
        return outliers(model).percentiles(model.embed(RECIPE.normalize(pictures)).numpy())


@pytest.fixture(scope="module")
def others(parts: list[medimg.ImageDataset]) -> torch.Tensor:
    """Pictures of the third part."""
    return torch.stack([parts[2].planes(n) for n in range(len(parts[2]))])


@pytest.fixture(scope="module")
def usual(model: medimg.TransferClassifier, others: torch.Tensor) -> NDArray[np.float64]:
    return percentiles(model, others)


@pytest.mark.parametrize("how", ["inverted", "noise", "noisy", "upside down"])
def test_changed_pictures(
    model: medimg.TransferClassifier, others: torch.Tensor, usual: NDArray[np.float64], how: str
) -> None:
    unusual = percentiles(model, changed(others, how))
    truth = np.repeat([0, 1], [len(usual), len(unusual)])
    area = roc_auc_score(truth, np.concatenate([usual, unusual]))
    assert area > 0.9
    # of radiographs that were in neither part, percentiles are about uniform
    assert 0.35 < usual.mean() < 0.65


def test_other_modalities(
    model: medimg.TransferClassifier, parts: list[medimg.ImageDataset], real_data: Path
) -> None:
    usual = model.predict(parts[2].series, unit="image")["ood"].to_numpy()
    found: dict[str, list[float]] = {"CT": [], "MR": []}
    roots = {"CT": ("cls/covid_ct_md_dev", 15 if SLOW else 5), "MR": ("dicom_misc", 15)}
    for modality, (root, count) in roots.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MedimgWarning)
            index = medimg.scan(real_data / root, progress=False)
            several = [one for one in index if one.modality == modality][:count]
            table = model.predict(several, unit="image", on_error="collect")
        rows = table[table["error"].isna()].groupby("series_uid").head(10)
        found[modality] = rows["ood"].tolist()
    for modality, scores in found.items():
        assert len(scores) > 20
        truth = np.repeat([0, 1], [len(usual), len(scores)])
        area = roc_auc_score(truth, np.append(usual, scores))
        assert area > 0.9, modality
