"""Views of images whose probabilities are averaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

import medimg
from medimg import Preprocess, TransferClassifier
from medimg.core import geometry
from medimg.data.augmentation.random_scan import RandomScanAugmentation
from medimg.errors import TrainingError
from medimg.models.test_time_augmentation import make_views
from medimg.models.training_distribution import TrainingDistribution
from tests.models.fakes import classifier, images
from tests.models.small_network import small_classifier, small_network

__all__ = ["small_network"]

SMALL = Preprocess(size=32)


def model_of(augment: Any = "auto", **fields: Any) -> TransferClassifier:
    model = small_classifier(preprocess=SMALL, **fields).eval()
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    model.training_summary = {"augment": augment}
    return model


def volume(slices: int = 5, seed: int = 0) -> medimg.Volume:
    values = np.random.default_rng(seed).normal(size=(1, slices, 48, 40)).astype(np.float32)
    return medimg.Volume(values, geometry.image_affine((2.0, 0.5, 0.5)))


def predicted(model: TransferClassifier, x: Tensor) -> Any:
    with torch.no_grad():
        return model(x).double().softmax(dim=1).numpy()


def test_flips_are_averaged_with_the_image() -> None:
    model, data = model_of(), images(5, preprocess=SMALL)
    x = torch.stack([data[n][0] for n in range(5)])
    views = [x, x.flip(-1), x.flip(-2), x.flip(-1, -2), x * 0.5]
    expected = np.mean([predicted(model, view) for view in views], axis=0)
    tta: Any = ["hflip", "vflip", "rotate180", lambda batch: batch * 0.5]
    found = model.predict_proba(data, tta=tta)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    plain = model.predict_proba(data)
    assert np.abs(found - plain).max() > 1e-4


@pytest.mark.parametrize("pool", ["none", "mean", "attention"])
@pytest.mark.parametrize("unit", ["series", "image"])
def test_tables_of_views_do_not_depend_on_batches(pool: Any, unit: Any) -> None:
    model = model_of(pool=pool)
    model.training_ranges = TrainingDistribution(1, modalities=("CT",))
    plain = model.predict([volume(), volume(2, seed=1)], unit=unit)
    tables = [
        model.predict([volume(), volume(2, seed=1)], unit=unit, batch_size=size, tta=3) for size in (2, 32)
    ]
    names = ["p_a", "p_b"]
    first, second = (table[names].to_numpy() for table in tables)
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert np.abs(tables[0][names].to_numpy() - plain[names].to_numpy()).max() > 1e-5
    if unit == "image":
        np.testing.assert_allclose(tables[0]["weight"], plain["weight"], atol=1e-6)


def test_drawn_views_are_those_of_the_training() -> None:
    model, x = model_of("geometric"), torch.randn(4, 3, 32, 32)
    augment = RandomScanAugmentation(SMALL, brightness=0.0, contrast=0.0)
    views = [x, *(augment(x[None], torch.Generator().manual_seed(n))[0] for n in range(2))]
    expected = np.mean([predicted(model, view) for view in views], axis=0)
    data = images(4, preprocess=SMALL)
    data.images = [one[None] for one in x]
    found = model.predict_proba(data, tta=2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("pool", "transform"),
    [
        ("none", v2.GaussianNoise(sigma=0.3)),
        ("mean", v2.ElasticTransform(alpha=40.0)),
        ("attention", v2.GaussianNoise(sigma=0.3)),
        ("mean", "monai"),
    ],
)
def test_a_transform_of_each_pixel_depends_neither_on_batch_nor_order(pool: Any, transform: Any) -> None:
    """Slices of a bag change alike, and like images alone."""
    if transform == "monai":
        transform = pytest.importorskip("monai.transforms").RandGaussianNoise(prob=1.0, std=0.3)
    model = model_of(pool=pool)
    for unit in ("slice", "series"):
        lengths = (2, 5, 3, 2) if unit == "series" else ()
        data = images(4, preprocess=SMALL, unit=unit, lengths=lengths)
        first, second = (model.predict_proba(data, batch_size=n, tta=[transform]) for n in (1, 4))
        np.testing.assert_allclose(first, second, atol=1e-6)
        assert np.abs(first - model.predict_proba(data)).max() > 1e-4
        data.images.reverse()
        data.lengths = data.lengths[::-1]
        np.testing.assert_allclose(model.predict_proba(data, tta=[transform])[::-1], first, atol=1e-6)
    if pool == "none":
        return
    # bags of unequal lengths in one batch: padding takes no part
    (view,) = make_views([transform], model)[1:]
    bags = [view(one) for one in data.images]
    padded = torch.zeros(4, 5, *bags[0].shape[1:])
    mask = torch.zeros(4, 5, dtype=torch.bool)
    for row, there, bag in zip(padded, mask, bags, strict=True):
        row[: len(bag)], there[: len(bag)] = bag, True
    with torch.no_grad():
        proba = model(padded, mask).softmax(dim=1).double().numpy()
    plain = model.predict_proba(data)
    found = model.predict_proba(data, tta=[transform])
    np.testing.assert_allclose(found, (plain + proba) / 2, atol=1e-6)


def test_bags_and_transforms_of_libraries() -> None:
    model = model_of(pool="mean")
    data = images(3, preprocess=SMALL, unit="series", lengths=(2, 4, 3))
    transform = v2.RandomHorizontalFlip(p=1.0)
    found, flipped = (model.predict_proba(data, tta=[one]) for one in (transform, "hflip"))
    np.testing.assert_allclose(found, flipped, atol=1e-5)


@pytest.mark.parametrize("unit", ["image", "series"])
def test_functions_may_change_images_in_place(unit: Any) -> None:
    model = model_of(pool="none" if unit == "image" else "mean")
    data = images(3, preprocess=SMALL, unit=unit, **({} if unit == "image" else {"lengths": (2, 4, 3)}))
    found, expected = (
        model.predict_proba(data, tta=[change, "hflip"])
        for change in (lambda x: x.mul_(0).add_(1), torch.ones_like)
    )
    np.testing.assert_array_equal(found, expected)
    tables = [model.predict(volume(), tta=[change, "vflip"]) for change in (Tensor.neg_, Tensor.neg)]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize(
    ("augment", "tta", "message"),
    [
        ("auto", 0, "tta must be"),
        ("auto", True, "tta must be a number of views, a list of views"),
        ("auto", "hflip", r"tta must be a number of views, a list of views such as \['hflip'\].*'hflip'"),
        ("auto", [], "tta is empty"),
        ("auto", ["hflp"], "did you mean 'hflip'"),
        ("auto", [3], "tta has 3"),
        ("auto", [lambda batch: batch[:1]], "expected a tensor of the same shape"),
        ("auto", [Tensor.long], "returned torch.int64 for a batch of torch.float32"),
        ("auto", [lambda batch: batch.to(torch.complex64)], "returned torch.complex64"),
        (
            "auto",
            [lambda batch: batch.absent],
            "a function of tta= fails on images of shape .*AttributeError",
        ),
        (None, 4, "was trained without augmentation"),
        ("own", 4, "trained with a function of your own"),
    ],
)
def test_views_that_are_invalid_or_were_not_trained(augment: Any, tta: Any, message: str) -> None:
    model, data = model_of(augment), images(3, preprocess=SMALL)
    with pytest.raises(TrainingError, match=message):
        model.predict_proba(data, tta=tta)
    with pytest.raises(TrainingError, match=message):
        model.predict(volume(), tta=tta)


def test_a_model_that_was_not_fine_tuned_has_no_views_of_its_own() -> None:
    model = model_of()
    model.training_summary = None
    with pytest.raises(TrainingError, match="without augmentation"):
        model.predict(volume(), tta=2)


def test_images_of_one_channel() -> None:
    recipe = Preprocess(size=32, channels="single", mean=0.5, std=0.25)
    model = classifier(in_channels=1, preprocess=recipe).eval()
    data = images(3, preprocess=recipe)
    found, flipped = (
        model.predict_proba(data, tta=[one]) for one in (v2.RandomHorizontalFlip(p=1.0), "hflip")
    )
    np.testing.assert_allclose(found, flipped, atol=1e-5)
    model.training_summary = {"augment": "auto"}
    assert np.isfinite(model.predict_proba(data, tta=2)).all()
