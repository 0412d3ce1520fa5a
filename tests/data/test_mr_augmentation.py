from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from medimg.data.augmentation._mr import (
    add_rician_noise,
    bias_fields,
    count_coefficients,
    draw_seeds,
    normal_pairs,
)
from medimg.errors import TrainingError


@pytest.fixture(scope="module")
def monai() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import monai.transforms

        return monai.transforms


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_bias_fields_are_those_of_monai(monai: Any, degree: int, size: tuple[int, int]) -> None:
    coefficients = (
        torch.rand(4, count_coefficients(degree), generator=torch.Generator().manual_seed(degree)) * 0.1
    )
    picture = torch.rand(1, *size)
    for field, row in zip(bias_fields(coefficients, *size), coefficients, strict=True):
        other = monai.RandBiasField(degree=degree, prob=1.0)
        other.randomize(size)
        other._coeff = row.tolist()  # its own draws, made ours
        expected = torch.as_tensor(np.asarray(other(picture, randomize=False)))
        torch.testing.assert_close(picture * field, expected, rtol=2e-5, atol=1e-6)


def test_there_are_as_many_coefficients_as_monai_draws(monai: Any) -> None:
    other = monai.RandBiasField(degree=3, prob=1.0)
    other.randomize((8, 8))
    assert len(other._coeff) == count_coefficients(3) == 10


@pytest.mark.parametrize("count", [0, 1, 2, 4, 9, 11])
def test_no_degree_with_so_many_coefficients(count: int) -> None:
    with pytest.raises(TrainingError, match="3, 6, 10"):
        bias_fields(torch.zeros(1, count), 8, 8)


def test_no_coefficients_no_field() -> None:
    assert torch.equal(bias_fields(torch.zeros(2, 10), 5, 7), torch.ones(2, 1, 5, 7))


def test_rician_noise_is_that_of_monai(monai: Any) -> None:
    picture = torch.rand(1, 16, 16)
    other = monai.RandRicianNoise(prob=1.0, std=0.1, sample_std=False).set_random_state(seed=3)
    expected = torch.as_tensor(np.asarray(other(picture.clone())))
    first, second = (torch.as_tensor(np.asarray(noise)) for noise in (other._noise1, other._noise2))
    torch.testing.assert_close(add_rician_noise(picture, first, second), expected)
    assert not torch.allclose(add_rician_noise(picture, second, first), expected)


def test_moments_of_rician_noise() -> None:
    """Rayleigh where there is no signal; for strong signals as Gaussian noise on ``A + s^2 / 2A``."""
    first, second = (0.05 * field for field in normal_pairs(torch.tensor([7]), 512, 512))
    nothing = add_rician_noise(torch.zeros(1, 1, 512, 512), first, second)
    assert float(nothing.mean()) == pytest.approx(0.05 * (np.pi / 2) ** 0.5, rel=5e-3)
    assert float(nothing.std()) == pytest.approx(0.05 * (2 - np.pi / 2) ** 0.5, rel=5e-3)
    strong = add_rician_noise(torch.ones(1, 1, 512, 512), first, second)
    assert float(strong.mean()) == pytest.approx(1 + 0.05**2 / 2, abs=3e-4)
    assert float(strong.std()) == pytest.approx(0.05, rel=5e-3)


def plain_pairs(seed: int, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """SplitMix64 in Python's own integers, then Box and Muller in float64."""
    state, firsts, seconds = seed % 2**64, [], []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        bits = state
        bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
        bits ^= bits >> 31
        radius = np.sqrt(-2 * np.log(((bits >> 40) + 0.5) / 2**24))
        angle = 2 * np.pi * (bits % 2**24) / 2**24
        firsts.append(radius * np.cos(angle))
        seconds.append(radius * np.sin(angle))
    return np.array(firsts), np.array(seconds)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 1234567890123456789])
def test_normal_pairs_are_those_of_the_definition(seed: int) -> None:
    found = normal_pairs(torch.tensor([5, seed]), 6, 8)
    for field, expected in zip(found, plain_pairs(seed, 48), strict=True):
        np.testing.assert_allclose(field[1, 0].flatten().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_generator_is_splitmix64() -> None:
    """Its published first numbers from the seed 1234567."""
    state, numbers = 1234567, []
    for _ in range(2):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        bits = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
        numbers.append(bits ^ (bits >> 31))
    assert numbers == [6457827717110365317, 3203168211198807973]


def test_noise_is_normal_and_independent() -> None:
    from scipy import stats

    first, second = normal_pairs(draw_seeds(4, torch.Generator().manual_seed(0)), 200, 200)
    for field in (first, second):
        assert stats.kstest(field.flatten().numpy(), "norm").pvalue > 1e-3
        assert float(stats.kurtosis(field.flatten().numpy())) == pytest.approx(0, abs=0.05)
        rows = field.flatten(1)
        assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.025
        for step in (1, 2, 3, 200):
            near = torch.corrcoef(torch.stack([rows[:, :-step].flatten(), rows[:, step:].flatten()]))
            assert abs(float(near[0, 1])) < 0.015
    assert abs(float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])) < 0.015


def test_neighboring_seeds_give_unlike_noise() -> None:
    first, _ = normal_pairs(torch.arange(8), 64, 64)
    assert torch.corrcoef(first.flatten(1)).fill_diagonal_(0).abs().max() < 0.08


def test_seeds_follow_the_generator() -> None:
    one, two = (draw_seeds(3, torch.Generator().manual_seed(n)) for n in (1, 2))
    assert torch.equal(one, draw_seeds(3, torch.Generator().manual_seed(1)))
    assert not torch.equal(one, two)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_devices_make_the_same_noise_and_fields() -> None:
    seeds, coefficients = draw_seeds(3), torch.rand(3, 10) * 0.1
    for here, there in zip(normal_pairs(seeds, 32, 32), normal_pairs(seeds.cuda(), 32, 32), strict=True):
        torch.testing.assert_close(here, there.cpu(), rtol=1e-4, atol=1e-5)
    there = bias_fields(coefficients.cuda(), 32, 32)
    torch.testing.assert_close(bias_fields(coefficients, 32, 32), there.cpu(), rtol=1e-5, atol=1e-6)
