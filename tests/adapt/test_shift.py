"""Comparison of source and target: about 0 for equal distributions, about 2 for another scanner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import medimg
from medimg.adapt import proxy_a_distance
from medimg.adapt.shift import STATISTICS, compute_statistics
from medimg.errors import TrainingError
from tests.adapt.test_domains import dataset, study
from tests.models.fakes import SMALL, Images, classifier, images


class Smooth(Images):
    """Smooth images within black and white."""

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        coarse = torch.rand(len(self.labels), 1, 8, 8, generator=generator)
        light = torch.nn.functional.interpolate(coarse, size=self.preprocess.hw, mode="bilinear")
        self.images = list(self.preprocess.normalize(self.scanned(light))[:, None])

    def scanned(self, light: Tensor) -> Tensor:
        return light


class Darker(Smooth):
    def scanned(self, light: Tensor) -> Tensor:
        return light**3


def smooth(kind: type[Smooth], n: int, seed: int, **fields: Any) -> Smooth:
    return kind(np.arange(n) % 2, seed=seed, prefix=f"p{seed}-", **fields)


def test_halves_of_one_distribution_are_alike_and_another_scanner_is_not() -> None:
    model = classifier("squeezenet1_1")
    source = smooth(Smooth, 60, 0)
    alike = medimg.domain_shift(source, smooth(Smooth, 60, 1), model=model)
    apart = medimg.domain_shift(source, smooth(Darker, 60, 2), model=model)
    assert alike.distances is not None
    assert apart.distances is not None
    assert alike.distances.a_distance < 0.5
    assert apart.distances.a_distance > 1.7
    assert abs(alike.distances.mmd) < 0.05 < apart.distances.mmd
    assert alike.distances.coral < apart.distances.coral
    assert "hardly distinguishable" in str(alike)
    assert "adapt" in str(apart)
    sizes = {d.name: d.size for d in apart.images}
    assert sizes["brightness"] > 0.9
    assert max(d.size for d in alike.images) < 0.4


def test_the_model_is_left_as_it_was() -> None:
    model = classifier("resnet18").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    medimg.domain_shift(smooth(Smooth, 12, 0), smooth(Smooth, 12, 1), model=model, folds=2)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_a_distance_is_the_closed_form_of_a_known_error() -> None:
    rng = np.random.default_rng(0)
    apart = proxy_a_distance(rng.normal(0, 1, (2000, 1)), rng.normal(2.0, 1, (2000, 1)), folds=2)
    error = 0.15866  # of the best classifier: half the distance in standard deviations
    assert apart == pytest.approx(2 * (1 - 2 * error), abs=0.06)


def test_patients_are_not_memorized() -> None:
    """Each patient looks different from all others, and not by domain."""
    rng = np.random.default_rng(0)
    looks = rng.normal(size=(40, 30)).repeat(10, axis=0) + 0.01 * rng.normal(size=(400, 30))
    patients = [str(n) for n in np.arange(40).repeat(10)]
    found = proxy_a_distance(
        looks[:200], looks[200:], source_patients=patients[:200], target_patients=patients[200:]
    )
    assert found < 0.6
    assert proxy_a_distance(looks[:200], looks[200:]) > 1.5  # what a split by images would say


def test_too_few_patients_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(TrainingError, match="folds=5"):
        proxy_a_distance(np.zeros((3, 2)), np.zeros((9, 2)))
    with pytest.raises(TrainingError, match="found"):
        proxy_a_distance(np.zeros((9, 3)), np.zeros((9, 2)))
    with pytest.raises(TrainingError, match="patient for each"):
        proxy_a_distance(np.zeros((9, 2)), np.zeros((9, 2)), source_patients=["a"])


def test_statistics_of_images() -> None:
    assert STATISTICS == ("brightness", "contrast", "sharpness", "noise")
    noisy = 0.5 + 0.1 * torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(0))
    found = compute_statistics(noisy)[0]
    assert found[0].item() == pytest.approx(0.5, abs=0.01)
    assert found[1].item() == pytest.approx(0.1, rel=0.02)
    assert found[3].item() == pytest.approx(0.1, rel=0.03)  # all of it is noise
    ramp = torch.linspace(0, 1, 256).expand(1, 256, 256)
    assert compute_statistics(ramp)[0, 3].item() == pytest.approx(0.0, abs=1e-6)  # none of it is


def test_tags_are_counted_by_series(tmp_path: Path) -> None:
    study(tmp_path)
    data = dataset(tmp_path)
    patients = np.asarray(data.patients)
    source, target = (data.subset(np.flatnonzero(np.isin(patients, who))) for who in (["0", "2"], ["1", "3"]))
    report = medimg.domain_shift(source, target)
    tags = {d.name: d for d in report.tags}
    assert (tags["Manufacturer"].source, tags["Manufacturer"].target) == ("Maker A 2", "Maker B 2")
    assert tags["Manufacturer"].size == 1.0
    assert (tags["KVP"].source, tags["KVP"].target, tags["KVP"].size) == ("100", "120", 1.0)
    assert tags["SliceThickness"].size == tags["slice spacing, mm"].size == 0.0
    assert tags["ConvolutionKernel"].source == "not stated 2"
    assert (tags["InstitutionName"].source, tags["InstitutionName"].target) == ("site 1 2", "site 2 2")
    assert [d.size for d in report.tags] == sorted((d.size for d in report.tags), reverse=True)
    assert report.distances is None
    assert "pass model=" in str(report)
    for text in (str(report), repr(report), report.to_pandas().to_csv()):
        for secret in ("SENTINEL", "Sentinel", "Hospital"):
            assert secret not in text


def test_parts_of_one_data_set_say_how_many_patients_they_share(tmp_path: Path) -> None:
    study(tmp_path)
    data = dataset(tmp_path)
    report = medimg.domain_shift(data.subset([0, 1, 3]), data.subset([2, 6]))
    assert (report.items, report.patients, report.shared_patients) == ((3, 2), (2, 2), 1)
    assert "1 in both" in str(report)


def test_bags_and_limits() -> None:
    bags = [
        Images(np.arange(8) % 2, unit="series", lengths=(2, 3) * 4, prefix=p, seed=n)
        for n, p in enumerate("ab")
    ]
    report = medimg.domain_shift(bags[0], bags[1], model=classifier(pool="mean"), folds=2)
    assert report.distances is not None
    assert report.distances.source.shape == (8, 2)
    model = classifier()
    with pytest.raises(TrainingError, match="limit=None"):
        medimg.domain_shift(images(8), images(8, prefix="v"), model=model, limit=4, folds=2)


def test_a_limit_looks_at_some(tmp_path: Path) -> None:
    study(tmp_path)
    data = dataset(tmp_path)
    model = classifier(preprocess=data.preprocess)
    report = medimg.domain_shift(data, data, model=model, limit=10, folds=2)
    assert report.distances is not None
    assert len(report.distances.source) == 10
    assert report.items == (12, 12)


def test_tables_and_figures() -> None:
    model = classifier()
    with_model = medimg.domain_shift(smooth(Smooth, 12, 0), smooth(Darker, 12, 1), model=model, folds=2)
    without = medimg.domain_shift(smooth(Smooth, 12, 0), smooth(Darker, 12, 1))
    table = with_model.to_pandas()
    assert list(table.columns) == ["aspect", "name", "source", "target", "difference"]
    assert list(table["aspect"]) == ["image"] * 4 + ["embedding"] * 3
    assert len(with_model.plot().axes) == 2
    assert len(without.plot().axes) == 1


def test_other_recipes_are_refused() -> None:
    other = images(8, preprocess=SMALL.replace(size=32))
    with pytest.raises(TrainingError, match="with_preprocess"):
        medimg.domain_shift(images(8), other)
