"""Every method through ``fine_tune``, end to end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medimg import Preprocess, adapt, fine_tune
from medimg.errors import TrainingError
from tests.adapt.test_methods import METHODS
from tests.models.fakes import changed, classifier, images, state
from tests.models.small_network import small_classifier


def trained(method: Any, backbone: str = "squeezenet1_1") -> tuple[Any, Any]:
    model = small_classifier(backbone)
    result = fine_tune(
        model, domained(8), head_epochs=0, epochs=1, batch_size=4, augment=None, adapt=method, progress=False
    )
    return model, result


def domained(n: int) -> Any:
    data: Any = images(n)
    data.domains = tuple("xy"[k % 2] for k in range(n))
    return data


@pytest.mark.parametrize("name", METHODS)
def test_methods_train_and_are_named_in_the_summary(name: str) -> None:
    method = METHODS[name](images(6, prefix="t", seed=3))
    model, result = trained(method)
    assert result.history[0]["adapt_loss"] is not None
    assert changed(state(trained(None)[0]), state(model))
    assert method.settings()["name"] in str(model.training_summary)


@pytest.mark.parametrize(
    "make",
    [
        lambda target, **cap: adapt.CORAL(target, weight=5.0, **cap),
        lambda target, **cap: adapt.MMD(target, weight=5.0, ramped=True, **cap),
        lambda target, **cap: adapt.MultiSource(target, domain="column", weight=5.0, **cap),
    ],
)
def test_a_cap_takes_part_in_training(make: Any) -> None:
    target = images(6, prefix="t", seed=3)
    free, high, low = (state(trained(make(target, **cap))[0]) for cap in ({}, {"cap": 1e9}, {"cap": 1e-3}))
    assert not changed(free, high)
    assert changed(free, low)


def test_adabn_after_training_changes_nothing_but_statistics() -> None:
    plain, _ = trained(None, "resnet18")
    model, _ = trained(adapt.AdaBN(images(6, prefix="t", seed=3)), "resnet18")
    moved = changed(state(plain), state(model))
    assert moved
    assert {name.rsplit(".", 1)[1] for name in moved} <= {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def test_pgd_trains_on_other_images() -> None:
    assert changed(state(trained(None)[0]), state(trained(adapt.PGD(steps=1))[0]))


def test_labels_of_the_target_play_no_part() -> None:
    first, second = images(6, prefix="t", seed=3), images(6, prefix="t", seed=3)
    second.labels = 1 - second.labels  # the images stay as they were made
    for name in ("coral", "cdan", "mdan"):
        one, other = (trained(METHODS[name](target))[0] for target in (first, second))
        assert not changed(state(one), state(other))


def test_a_frozen_backbone_is_an_error() -> None:
    model = small_classifier().freeze()
    target = images(6, prefix="t", seed=3)
    with pytest.raises(TrainingError):
        fine_tune(model, images(8), epochs=1, adapt=adapt.CORAL(target), progress=False)
    assert torch.isfinite(next(model.parameters())).all()


@pytest.mark.parametrize("method", [None, adapt.PGD(steps=1)], ids=["plain", "pgd"])
@pytest.mark.parametrize("pool", ["none", "mean"])
def test_a_network_of_one_channel_learns(method: Any, pool: Any) -> None:
    recipe = Preprocess(size=32, channels="single", mean=0.5, std=0.25)
    model = classifier(in_channels=1, preprocess=recipe, pool=pool)
    before = state(model)
    bags = {"unit": "series", "lengths": (2, 1, 2, 2)} if pool == "mean" else {}
    data = images(4, preprocess=recipe, **bags)
    result = fine_tune(model, data, head_epochs=1, epochs=1, batch_size=2, adapt=method, progress=False)
    assert changed(before, state(model))
    assert all(np.isfinite(epoch["train_loss"]) for epoch in result.history)


def test_a_perturbation_of_one_channel_is_that_of_three_equal_ones() -> None:
    one = Preprocess(size=8, channels="single", mean=0.5, std=0.25)
    three = Preprocess(size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    planes = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for recipe in (one, three):
        torch.manual_seed(3)
        found.append(
            adapt.PGD().perturb(recipe.normalize(planes), lambda x: x.mean(dim=1).sin().sum(), recipe)
        )
    assert found[0].shape == planes.shape
    torch.testing.assert_close(found[0].expand_as(found[1]), found[1])
