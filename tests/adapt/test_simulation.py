"""The simulated scanners of the benchmark do what they say."""

from __future__ import annotations

import pytest
import torch

from benchmarks.adaptation import SCANNERS, Scanner


def test_a_plain_scanner_changes_nothing_and_the_others_stay_between_black_and_white() -> None:
    pictures = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    for name, scanner in SCANNERS.items():
        made = scanner(pictures, torch.Generator().manual_seed(1))
        assert 0 <= float(made.min()) <= float(made.max()) <= 1
        assert torch.equal(made, pictures) == (name == "plain")
        assert torch.equal(made, scanner(pictures, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    ("scanner", "expected"),
    [(Scanner(gamma=2.0), 0.25), (Scanner(inverted=True), 0.5), (Scanner(blur=1.0), 0.5)],
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
