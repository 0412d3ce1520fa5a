"""Real radiographs: two halves of one hospital are alike, and what went through another scanner is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import medimg
from benchmarks.adaptation.scanners import SCANNERS
from benchmarks.adaptation.shifts import Scanned
from medimg.data._labels import read_table

pytestmark = pytest.mark.slow


def test_halves_are_alike_and_a_simulated_scanner_is_far(real_data: Path) -> None:
    recipe = medimg.Preprocess(size=64)
    root = real_data / "cls" / "kermany_cxr224_dev"
    table = read_table(root / "labels.csv")
    table = table.drop_duplicates("patient_id").sample(240, random_state=0)
    data = medimg.ImageDataset.from_csv(
        table, path="file", label="label", patient="patient_id", root=root, preprocess=recipe, progress=False
    )
    one, other = medimg.split(data, fractions=(0.5, 0.5))
    weights = next((real_data / "weights" / "squeezenet1_1").glob("*.pth"))
    model = medimg.TransferClassifier(
        "squeezenet1_1", classes=data.classes, weights=weights, preprocess=recipe
    )
    alike = medimg.domain_shift(one, other, model=model)
    planes = torch.stack([other.planes(n)[0] for n in range(len(other))])
    made = SCANNERS["inverted"](planes, torch.Generator().manual_seed(0))
    through = Scanned(made, other.labels, other.patients, ["inverted"] * len(other), other.classes)
    apart = medimg.domain_shift(one, through, model=model)
    assert alike.distances is not None
    assert apart.distances is not None
    assert alike.distances.a_distance < 0.4
    assert apart.distances.a_distance > 1.8
    assert {d.name: d.size for d in apart.images}["noise"] > 0.5
    assert np.isfinite(apart.distances.mmd)
