"""A small model and small series, of which results are made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import medimg
from medimg.calibration.operating_points import OperatingPoint
from medimg.models.digest import parameters_digest

pytest.importorskip("highdicom")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model() -> medimg.TransferClassifier:
    torch.manual_seed(0)
    return medimg.TransferClassifier(
        "squeezenet1_1",
        classes=["normal", "nodule"],
        weights=None,
        pool="mean",
        preprocess=medimg.Preprocess(size=64, window="percentile"),
    )


@pytest.fixture
def calibrated(model: medimg.TransferClassifier) -> Iterator[medimg.TransferClassifier]:
    """The model with a temperature, a threshold that every image reaches, and prediction sets."""
    model.calibration = medimg.Calibration(
        unit="series",
        items=20,
        patients=10,
        temperature=(2.0,),
        loss=(0.7, 0.6),
        operating_point="youden",
        points=(OperatingPoint("nodule", 0.001, 0.9, 0.8, 10, 10),),
        coverage=0.9,
        quantiles=(0.9,),
        bins=(),
        parameters_sha256=parameters_digest(model),
    )
    yield model
    model.calibration = None


@pytest.fixture(scope="session")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT of four slices."""
    folder = tmp_path_factory.mktemp("ct")
    phantom = medimg.phantom.chest_ct(1, label="nodule", slices=4, size=40)
    medimg.phantom.write_ct_series(phantom, folder, medimg.phantom.Identity.derive("export", 1))
    return folder


@pytest.fixture(scope="session")
def xray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An X-ray, which has no position in a patient."""
    folder = tmp_path_factory.mktemp("xray")
    return medimg.phantom.write_xray_image(
        medimg.phantom.chest_xray(1, size=(56, 48)), folder, medimg.phantom.Identity.derive("export", 2)
    )


@pytest.fixture(scope="session")
def explanation(model: medimg.TransferClassifier, ct: Path) -> medimg.Explanation:
    return medimg.explain(model, ct, "nodule")
