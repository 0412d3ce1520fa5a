from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from medimg import Preprocess
from medimg.data.augmentation.random_scan import RandomScanAugmentation, make_augmentation
from medimg.errors import TrainingError

RECIPE = Preprocess(size=64)
STILL = {"rotation": 0.0, "shift": 0.0, "scale": 0.0, "brightness": 0.0, "contrast": 0.0}


def pictures(n: int, side: int | tuple[int, int] = 64, at: tuple[float, float] = (0.3, 0.5)) -> torch.Tensor:
    """A bright disc on black at some height and width, as shares of the image; in the range 0 to 1."""
    height, width = (side, side) if isinstance(side, int) else side
    rows = (torch.arange(height) + 0.5)[:, None] / height - at[0]
    columns = (torch.arange(width) + 0.5)[None] / width - at[1]
    disc = ((rows**2 * height**2 + columns**2 * width**2) < 16.0).float() * 0.6
    return disc.expand(n, 3, height, width).clone()


def center(planes: torch.Tensor) -> torch.Tensor:
    """Centroid of intensity (n, 2), as shares of height and width."""
    mass = planes[:, 0].clamp_min(0)
    height, width = mass.shape[-2:]
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    total = mass.sum(dim=(1, 2))
    return torch.stack([(mass.sum(2) * rows).sum(1) / total, (mass.sum(1) * columns).sum(1) / total], dim=1)


def apply(planes: torch.Tensor, seed: int = 0, **changes: float) -> torch.Tensor:
    """Change images in the range 0 to 1, and give them in that range."""
    augment = RandomScanAugmentation(RECIPE, **{**STILL, **changes})
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
    augment = RandomScanAugmentation(recipe, **{**STILL, "shift": 0.3})
    changed = augment(recipe.normalize(planes), torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (recipe.mean, recipe.std))
    corners = (changed * std + mean)[:, :, [0, -1]]
    assert torch.isclose(corners, torch.tensor(0.25), atol=1e-4).any()
    assert corners.min() > 0.25 - 1e-4


def test_intensity_and_contrast_keep_their_bounds() -> None:
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
    augment = RandomScanAugmentation(RECIPE)
    bags = RECIPE.normalize(pictures(6)).unflatten(0, (2, 3))
    changed = augment(bags, torch.Generator().manual_seed(0))
    assert changed.shape == bags.shape
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert torch.equal(changed[:, 0], changed[:, 2])
    assert not torch.equal(changed[0], changed[1])


def test_black_stays_black_and_order_is_kept() -> None:
    ramp = torch.linspace(0, 1, 64).expand(256, 3, 64, 64)
    changed = apply(ramp, brightness=0.1, contrast=0.1)[:, 0, 32]
    assert changed[:, 0].abs().max() < 1e-5
    assert changed.diff(dim=1).min() > -1e-5
    assert (changed[:, 32] - 0.5).abs().max() > 0.09


KINDS = {
    "all": {},
    "MR": {"bias": 0.1, "rician": 0.05},
    "CT": {"noise": 0.02},
    "DX": {"gamma": 0.25},
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, float]:
    return KINDS[request.param]


def gray(n: int, side: int = 32) -> torch.Tensor:
    ramp = torch.linspace(0.2, 0.8, side)
    return (ramp[:, None] * ramp[None] + 0.1).expand(n, 3, side, side).clone()


def changes_of(
    choice: Any, modalities: tuple[str, ...] = (), recipe: Preprocess = RECIPE
) -> RandomScanAugmentation:
    found = make_augmentation(choice, recipe, modalities)
    assert isinstance(found, RandomScanAugmentation)
    return found


@pytest.mark.parametrize(
    ("modalities", "expected"),
    [
        ((), "all"),
        (("MR", "MR"), "MR"),
        (("CT",), "CT"),
        (("DX", "CR", "XA", "MG", ""), "DX"),
        (("",), "DX"),
        (("US",), "all"),
        (("CT", "MR"), "all"),
        (("CT", "DX", "MR"), "all"),
        (("MR", ""), "all"),
        (("US", "CT"), "all"),
    ],
)
def test_automatic_changes_are_those_that_suit_all_data(modalities: tuple[str, ...], expected: str) -> None:
    assert changes_of("auto", modalities) == RandomScanAugmentation(RECIPE, **KINDS[expected])
    assert changes_of("auto", modalities[::-1]) == changes_of("auto", modalities)


def test_a_modality_can_be_named() -> None:
    assert changes_of("MR", ("CT",)) == changes_of("auto", ("MR",))
    assert changes_of("CT").noise > 0
    assert changes_of("MG") == changes_of("DX")


def test_geometric_changes_leave_intensities_alone() -> None:
    changes = changes_of("geometric", ("MR",))
    assert changes.rotation == 10.0
    planes = RECIPE.normalize(torch.full((8, 3, 64, 64), 0.5))
    changed = changes(planes, torch.Generator().manual_seed(0))
    content = changed[:, :, 16:48, 16:48]
    torch.testing.assert_close(content, planes[:, :, 16:48, 16:48], rtol=0, atol=1e-5)


@pytest.mark.parametrize("choice", ["automatic", "ct", "", 3, ["auto"]])
def test_unknown_choices(choice: Any) -> None:
    with pytest.raises(TrainingError, match="'geometric'"):
        make_augmentation(choice, RECIPE)


def test_each_modality_changes_intensities_in_its_way() -> None:
    planes = gray(64)
    still = {name: apply(planes, 0, **changes) for name, changes in KINDS.items()}
    torch.testing.assert_close(still["all"], planes, rtol=0, atol=1e-5)
    factors = still["MR"] / planes
    assert 0.9 < factors.mean() < 1.3
    assert factors[:, 0, 16, 16].std() > 0.02
    rough = (still["CT"] - planes)[:, 0]
    assert rough.mean().abs() < 1e-3
    spread = rough.flatten(1).std(dim=1)
    assert spread.max() < 0.022
    assert spread.min() < 0.004
    assert (rough[:, :-1] * rough[:, 1:]).mean().abs() < 1e-5  # neighbors have nothing in common
    exponents = still["DX"].log() / planes.log()
    assert exponents.flatten(1).std(dim=1).max() < 1e-3
    assert 0.799 < exponents.min() < 0.82
    assert 1.22 < exponents.max() < 1.251


def test_all_channels_of_a_gray_image_stay_equal(kind: dict[str, float]) -> None:
    changed = apply(gray(4), 0, **{"rotation": 10.0, **kind})
    torch.testing.assert_close(changed[:, 0], changed[:, 1], rtol=0, atol=1e-5)
    torch.testing.assert_close(changed[:, 0], changed[:, 2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("fill", [0.0, 0.25, 1.0])
def test_padding_stays_background(kind: dict[str, float], fill: float) -> None:
    recipe = Preprocess(size=64, fill=fill)
    planes = torch.full((16, 3, 64, 64), fill)
    planes[:, :, 16:48] = gray(16, 64)[:, :, 16:48]
    augment = RandomScanAugmentation(recipe, rotation=0.0, shift=0.0, scale=0.0, **kind)
    images = recipe.normalize(planes)
    changed = augment(images, torch.Generator().manual_seed(0))
    # grids are rounded: rows next to the content may take a millionth of it
    for outside in (slice(0, 15), slice(49, 64)):
        assert torch.equal(changed[:, :, outside], images[:, :, outside])
    torch.testing.assert_close(changed[:, :, [15, 48]], images[:, :, [15, 48]])
    assert not torch.allclose(changed[:, :, 16:48], images[:, :, 16:48], atol=0.02)


def test_padding_moves_with_the_image() -> None:
    """Relit content on its background, moved: as if the background had been laid under it at the end."""
    recipe = Preprocess(size=64, fill=0.0)
    planes = torch.zeros(8, 3, 64, 64)
    planes[:, :, 20:44] = 0.5
    augment = RandomScanAugmentation(recipe, scale=0.0, shift=0.0, contrast=0.0, brightness=0.3)
    changed = augment(recipe.normalize(planes), torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (recipe.mean, recipe.std))
    shown = (changed * std + mean)[:, 0]
    middle = shown[:, 28:36, 28:36].mean(dim=(1, 2))
    for image, brightness in zip(shown, middle, strict=True):
        assert image.min() > -1e-5
        assert image.max() <= brightness + 1e-5
        assert float(image[:8].max()) < 1e-5  # far from the content


def test_an_empty_image_stays_empty(kind: dict[str, float]) -> None:
    images = RECIPE.normalize(torch.zeros(4, 3, 64, 64))
    augment = RandomScanAugmentation(RECIPE, **kind)
    assert torch.equal(augment(images, torch.Generator().manual_seed(0)), images)


def test_bags_and_padded_bags_change_alike(kind: dict[str, float]) -> None:
    augment = RandomScanAugmentation(RECIPE, **kind)
    bags = RECIPE.normalize(gray(6, 64)).unflatten(0, (2, 3))

    def changed(images: torch.Tensor) -> torch.Tensor:
        return augment(images, torch.Generator().manual_seed(0))

    whole = changed(bags)
    assert torch.equal(whole[:, 0], whole[:, 2])
    assert not torch.equal(whole[0], whole[1])
    assert torch.equal(whole[:, 0], changed(bags[:, 0]))  # nor does it matter how many there are
    padded = torch.cat([bags, torch.zeros(2, 2, 3, 64, 64)], dim=1)
    assert torch.equal(changed(padded)[:, :3], whole)


def test_the_seed_decides_all_kinds(kind: dict[str, float]) -> None:
    augment = RandomScanAugmentation(RECIPE, **kind)
    images = RECIPE.normalize(gray(4, 64))
    one, again, other = (augment(images, torch.Generator().manual_seed(n)) for n in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_geometry_and_intensity_do_not_depend_on_the_modality() -> None:
    images = RECIPE.normalize(pictures(4))
    moved = [
        center(RandomScanAugmentation(RECIPE, **{**KINDS[name], "rician": 0.0, "noise": 0.0})(
            images, torch.Generator().manual_seed(0)
        ))
        for name in ("all", "CT")
    ]  # fmt: skip
    assert torch.equal(*moved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(kind: dict[str, float], dtype: torch.dtype) -> None:
    augment = RandomScanAugmentation(RECIPE, **kind)
    images = RECIPE.normalize(gray(2, 64))
    expected = augment(images.to(dtype).float(), torch.Generator().manual_seed(0))
    found = augment(images.to(dtype), torch.Generator().manual_seed(0))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)


def test_mixed_precision_moves_no_pixel(kind: dict[str, float]) -> None:
    augment = RandomScanAugmentation(RECIPE, **kind)
    images = RECIPE.normalize(gray(2, 64))
    plain = augment(images, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(images, torch.Generator().manual_seed(0)), plain)


def test_memory_format_does_not_matter(kind: dict[str, float]) -> None:
    augment = RandomScanAugmentation(RECIPE, **kind)
    images = RECIPE.normalize(gray(2, 64))
    last = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        augment(last, torch.Generator().manual_seed(0)), augment(images, torch.Generator().manual_seed(0))
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_devices_change_alike(kind: dict[str, float]) -> None:
    augment = RandomScanAugmentation(RECIPE, **kind)
    images = RECIPE.normalize(gray(4, 64))
    here = augment(images, torch.Generator().manual_seed(0))
    there = augment(images.cuda(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(here, there.cpu(), rtol=1e-3, atol=2e-3)


def libraries() -> dict[str, Callable[[], Any]]:
    def torchvision() -> Any:
        from torchvision.transforms import v2

        return v2.Compose([v2.RandomRotation([-20.0, 20.0]), v2.ColorJitter(brightness=0.3)])

    def old() -> Any:
        from torchvision import transforms

        return transforms.Compose([transforms.RandomAffine(0, translate=(0.2, 0.2))])

    def monai() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from monai import transforms

            return transforms.Compose(
                [
                    transforms.RandRotate(0.3, prob=1.0, padding_mode="zeros"),
                    transforms.RandBiasField(prob=1.0, coeff_range=(0.1, 0.3)),
                ]
            )

    return {"v2": torchvision, "v1": old, "MONAI": monai}


@pytest.mark.parametrize("library", libraries())
def test_transforms_of_libraries(library: str) -> None:
    augment = make_augmentation(libraries()[library](), RECIPE)
    assert augment is not None
    images = RECIPE.normalize(gray(3))
    before = torch.random.get_rng_state()
    one, again, other = (augment(images, torch.Generator().manual_seed(n)) for n in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert type(one) is torch.Tensor
    assert one.shape == images.shape
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    assert not torch.allclose(one[0], one[1])  # each sample in its own way
    bags = augment(images[:, None].repeat(1, 4, 1, 1, 1), torch.Generator().manual_seed(1))
    torch.testing.assert_close(bags[:, 3], one, rtol=1e-4, atol=1e-4)  # all slices of a bag alike


def test_transforms_of_libraries_get_intensities_from_0_to_1() -> None:
    from torchvision.transforms import v2

    augment = make_augmentation(v2.RandomInvert(p=1.0), RECIPE)
    assert augment is not None
    planes = gray(2)
    expected = RECIPE.normalize(1.0 - planes)
    torch.testing.assert_close(augment(RECIPE.normalize(planes), torch.Generator()), expected)


def test_transforms_that_can_not_be_used() -> None:
    from torchvision.transforms import v2

    with pytest.raises(TrainingError, match="same shape"):
        make_augmentation(v2.Resize(16), RECIPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.transforms import RandBiasFieldd

        of_dictionaries: Any = RandBiasFieldd(keys=["image"])
    with pytest.raises(TrainingError, match="dictionary"):
        make_augmentation(of_dictionaries, RECIPE)


def test_choices() -> None:
    assert make_augmentation(None, RECIPE) is None
    automatic = make_augmentation("auto", RECIPE)
    assert isinstance(automatic, RandomScanAugmentation)
    assert automatic.rotation == 10.0
    assert automatic == RandomScanAugmentation(RECIPE)
    own = make_augmentation(lambda batch: batch + math.pi, RECIPE)
    assert own is not None
    assert float(own(torch.zeros(1), torch.Generator())) == pytest.approx(math.pi)
    with pytest.raises(TrainingError, match="same shape"):
        make_augmentation(lambda batch: batch[0], RECIPE)


ONE_CHANNEL = Preprocess(size=64, channels="single", mean=0.5, std=0.25)
THREE_EQUAL = Preprocess(size=64, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_one_channel_changes_as_each_of_three(kind: dict[str, float]) -> None:
    planes, changes = gray(4)[:, :1], {"rotation": 10.0, "shift": 0.05, **kind}
    one, three = (
        RandomScanAugmentation(recipe, **changes)(recipe.normalize(planes), torch.Generator().manual_seed(2))
        for recipe in (ONE_CHANNEL, THREE_EQUAL)
    )
    assert one.shape == planes.shape
    torch.testing.assert_close(one.expand_as(three), three, rtol=0, atol=1e-4)


@pytest.mark.parametrize("library", libraries())
def test_transforms_of_libraries_take_one_channel(library: str) -> None:
    augment = make_augmentation(libraries()[library](), ONE_CHANNEL)
    assert augment is not None
    images = ONE_CHANNEL.normalize(gray(2)[:, :1])
    bags = images[:, None].repeat(1, 3, 1, 1, 1)
    changed, slices = (augment(batch, torch.Generator().manual_seed(1)) for batch in (images, bags))
    assert changed.shape == images.shape
    assert not torch.allclose(changed, images)
    torch.testing.assert_close(slices[:, 2], changed, rtol=1e-4, atol=1e-4)
