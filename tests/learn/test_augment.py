from __future__ import annotations

import math

import pytest
import torch

from medimg import Preprocess
from medimg.learn.augment import RandomScanChanges, make_augmentation

RECIPE = Preprocess(size=64)
STILL = {"rotation": 0.0, "shift": 0.0, "scale": 0.0, "brightness": 0.0, "contrast": 0.0}


def pictures(n: int, side: int | tuple[int, int] = 64, at: tuple[float, float] = (0.3, 0.5)) -> torch.Tensor:
    """A bright disc on black at some height and width, as shares of the picture; in the range 0 to 1."""
    height, width = (side, side) if isinstance(side, int) else side
    rows = (torch.arange(height) + 0.5)[:, None] / height - at[0]
    columns = (torch.arange(width) + 0.5)[None] / width - at[1]
    disc = ((rows**2 * height**2 + columns**2 * width**2) < 16.0).float() * 0.6
    return disc.expand(n, 3, height, width).clone()


def center(planes: torch.Tensor) -> torch.Tensor:
    """Centroid of brightness (n, 2), as shares of height and width."""
    mass = planes[:, 0].clamp_min(0)
    height, width = mass.shape[-2:]
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    total = mass.sum(dim=(1, 2))
    return torch.stack([(mass.sum(2) * rows).sum(1) / total, (mass.sum(1) * columns).sum(1) / total], dim=1)


def apply(planes: torch.Tensor, seed: int = 0, **changes: float) -> torch.Tensor:
    """Change pictures in the range 0 to 1, and give them in that range."""
    augment = RandomScanChanges(RECIPE, **{**STILL, **changes})
    changed = augment(RECIPE.normalize(planes), torch.Generator().manual_seed(seed))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (RECIPE.mean, RECIPE.std))
    return changed * std + mean


def test_no_change_is_no_change() -> None:
    planes = pictures(2)
    torch.testing.assert_close(apply(planes), planes, rtol=0, atol=1e-5)


def test_shift_keeps_its_bounds_and_differs_by_sample() -> None:
    planes = pictures(64)
    moved = center(apply(planes, shift=0.05)) - center(planes)
    assert moved.abs().max() <= 0.05 + 1e-3
    assert moved.abs().max() > 0.04
    assert moved.std(dim=0).min() > 0.01
    assert len(torch.unique(moved[:, 0].round(decimals=5))) == 64


@pytest.mark.parametrize("side", [64, (64, 128), (128, 64)])
def test_rotation_is_rigid_and_keeps_its_bounds(side: int | tuple[int, int]) -> None:
    planes = pictures(64, side)
    height, width = planes.shape[-2:]
    turned = apply(planes, rotation=10.0)
    offset = (center(turned) - 0.5) * torch.tensor([height, width])
    distance = 0.2 * height
    torch.testing.assert_close(offset.norm(dim=1), torch.full((64,), distance), rtol=0.03, atol=0.2)
    angles = torch.rad2deg(torch.atan2(offset[:, 1], -offset[:, 0]))
    assert angles.abs().max() <= 10.5
    assert angles.min() < -8
    assert angles.max() > 8


def test_scale_keeps_its_bounds() -> None:
    planes = pictures(64)
    factors = (0.5 - center(apply(planes, scale=0.10))[:, 0]) / (0.5 - center(planes)[:, 0])
    assert 0.89 < factors.min() < 0.93
    assert 1.07 < factors.max() < 1.11


def test_left_stays_left() -> None:
    at = center(apply(pictures(64, at=(0.5, 0.2)), rotation=10.0, shift=0.05, scale=0.1))
    assert (at[:, 1] < 0.4).all()


def test_what_moves_in_is_background() -> None:
    planes = torch.full((8, 3, 64, 64), 0.7)
    recipe = Preprocess(size=64, fill=0.25)
    augment = RandomScanChanges(recipe, **{**STILL, "shift": 0.3})
    changed = augment(recipe.normalize(planes), torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (recipe.mean, recipe.std))
    corners = (changed * std + mean)[:, :, [0, -1]]
    assert torch.isclose(corners, torch.tensor(0.25), atol=1e-4).any()
    assert corners.min() > 0.25 - 1e-4


def test_brightness_and_contrast_keep_their_bounds() -> None:
    planes = torch.full((256, 3, 8, 8), 0.5)
    bright = apply(planes, brightness=0.1)[:, 0, 0, 0]
    assert 0.4 - 1e-5 <= bright.min() < 0.42
    assert 0.58 < bright.max() <= 0.6 + 1e-5
    edges = torch.cat([planes * 0.4, planes * 1.6], dim=-1)
    contrast = apply(edges, contrast=0.1)
    span = contrast[:, 0, 0, -1] - contrast[:, 0, 0, 0]
    assert 0.54 - 1e-4 <= span.min() < 0.56
    assert 0.64 < span.max() <= 0.66 + 1e-4
    full = apply(torch.cat([planes * 0, planes * 2], dim=-1), brightness=0.3, contrast=0.3)
    assert full.min() >= -1e-5
    assert full.max() <= 1 + 1e-5


def test_seed_decides() -> None:
    planes = pictures(4)
    changes = {"rotation": 10.0, "brightness": 0.1}
    assert torch.equal(apply(planes, seed=1, **changes), apply(planes, seed=1, **changes))
    assert not torch.equal(apply(planes, seed=1, **changes), apply(planes, seed=2, **changes))


def test_slices_of_a_bag_change_alike() -> None:
    augment = RandomScanChanges(RECIPE)
    bags = RECIPE.normalize(pictures(6)).unflatten(0, (2, 3))
    changed = augment(bags, torch.Generator().manual_seed(0))
    assert changed.shape == bags.shape
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert torch.equal(changed[:, 0], changed[:, 2])
    assert not torch.equal(changed[0], changed[1])


def test_choices() -> None:
    assert make_augmentation(None, RECIPE) is None
    automatic = make_augmentation("auto", RECIPE)
    assert isinstance(automatic, RandomScanChanges)
    assert automatic.rotation == 10.0
    own = make_augmentation(lambda batch: batch + math.pi, RECIPE)
    assert own is not None
    assert float(own(torch.zeros(1), torch.Generator())) == pytest.approx(math.pi)
