"""The simulated scanners of the benchmark do what they say."""

from __future__ import annotations

import pytest
import torch

from benchmarks.adaptation.scanners import SCANNERS, Scanner


def test_a_plain_scanner_changes_nothing_and_the_others_stay_between_black_and_white() -> None:
    images = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    for name, scanner in SCANNERS.items():
        made = scanner(images, torch.Generator().manual_seed(1))
        assert 0 <= float(made.min()) <= float(made.max()) <= 1
        assert torch.equal(made, images) == (name == "plain")
        assert torch.equal(made, scanner(images, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    ("scanner", "expected"),
    [
        (Scanner(gamma=2.0), 0.25),
        (Scanner(inverted=True), 0.5),
        (Scanner(blur=1.0), 0.5),
        (Scanner(contrast=8.0), 0.5),
        (Scanner(sharpening=2.0), 0.5),
    ],
)
def test_each_setting_by_itself(scanner: Scanner, expected: float) -> None:
    made = scanner(torch.full((1, 8, 8), 0.5), torch.Generator())
    torch.testing.assert_close(made, torch.full((1, 8, 8), expected))


def test_blur_and_noise() -> None:
    edge = torch.zeros(1, 16, 16)
    edge[..., 8:] = 1.0
    blurred = Scanner(blur=1.0)(edge, torch.Generator())
    assert float(blurred.diff(dim=2).max()) < 0.5
    noisy = Scanner(noise=0.1)(torch.full((1, 64, 64), 0.5), torch.Generator().manual_seed(0))
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.05)


def test_contrast_keeps_black_and_white_and_steepens_the_middle() -> None:
    ramp = torch.linspace(0, 1, 11).repeat(1, 8, 1)
    made = Scanner(contrast=8.0)(ramp, torch.Generator())[0, 0]
    assert made[0] == pytest.approx(0.0, abs=1e-6)
    assert made[-1] == pytest.approx(1.0, abs=1e-6)
    assert float(made[6] - made[5]) > 0.15


def test_sharpening_widens_an_edge_and_shading_and_collimation_darken() -> None:
    edge = torch.full((1, 16, 16), 0.4)
    edge[..., 8:] = 0.6
    sharp = Scanner(sharpening=1.0)(edge, torch.Generator())
    assert float(sharp.max() - sharp.min()) > 0.25
    gray = torch.full((1, 20, 20), 0.5)
    shaded = Scanner(shading=0.5)(gray, torch.Generator())
    assert float(shaded[0, 0, 0]) == pytest.approx(0.5)
    assert float(shaded[0, 0, -1]) == pytest.approx(0.25)
    bordered = Scanner(collimation=0.1)(gray, torch.Generator())
    assert float(bordered[0, :2].max()) == 0.0
    assert float(bordered[0, 2:-2, 2:-2].min()) == pytest.approx(0.5)
