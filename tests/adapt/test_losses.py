"""Losses against skada, and where its convention differs against the papers' closed forms in NumPy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from medimg.adapt import (
    adversarial_loss,
    coral_loss,
    entropy_weights,
    gradient_reversal,
    mdan_objective,
    mmd_loss,
    moment_distance,
    multilinear_map,
    ramp,
)
from medimg.errors import TrainingError

Array = NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)


def samples(seed: int, *sizes: int, features: int = 6, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, features, generator=generator, dtype=dtype) * (1 + k) + 0.3 * k
        for k, n in enumerate(sizes)
    ]


def skada_losses() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("skada.deep.losses", reason="skada with skorch is not installed")


@pytest.mark.parametrize("seed", range(5))
def test_coral_is_that_of_skada(seed: int) -> None:
    source, target = samples(seed, 9, 7, dtype=torch.float32)
    expected = skada_losses().deepcoral_loss(source, target)
    assert float(coral_loss(source, target)) == pytest.approx(float(expected), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(2, 12), st.integers(2, 12), st.integers(1, 8))
def test_coral_is_the_closed_form(seed: int, n: int, m: int, features: int) -> None:
    source, target = samples(seed, n, m, features=features)
    one, other = (np.atleast_2d(np.cov(x.numpy(), rowvar=False)) for x in (source, target))
    expected = ((one - other) ** 2).sum() / (4 * features**2)
    assert float(coral_loss(source, target)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def plain_mmd(x: Array, y: Array, bandwidths: tuple[float, ...], *, unbiased: bool) -> float:
    """Every pair one by one."""
    both = np.concatenate([x, y])
    squares = [np.sum((a - b) ** 2) for i, a in enumerate(both) for b in both[i + 1 :]]
    median = np.median(squares)

    def kernel(a: Array, b: Array) -> float:
        return float(np.mean([math.exp(-np.sum((a - b) ** 2) / (w * median)) for w in bandwidths]))

    def within(z: Array) -> float:
        pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if i != j or not unbiased]
        return float(np.mean([kernel(z[i], z[j]) for i, j in pairs]))

    return within(x) + within(y) - 2 * float(np.mean([kernel(a, b) for a in x for b in y]))


@pytest.mark.parametrize("estimate", ["biased", "unbiased"])
@pytest.mark.parametrize("seed", range(3))
def test_mmd_is_the_closed_form(seed: int, estimate: Any) -> None:
    source, target = samples(seed, 6, 5)
    found = mmd_loss(source, target, bandwidths=(0.5, 2.0), estimate=estimate)
    expected = plain_mmd(source.numpy(), target.numpy(), (0.5, 2.0), unbiased=estimate == "unbiased")
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_mmd_is_that_of_skada_where_distances_equal_their_squares(seed: int) -> None:
    """Skada's kernels take the distance, not its square, and are summed, not averaged."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.eye(5) / math.sqrt(2)  # 0 or 1 apart
    source, target = (corners[torch.randint(0, 5, (n,), generator=generator)] for n in (8, 6))
    widths = (0.5, 1.0, 3.0)
    expected = skada_losses().dan_loss(source, target, sigmas=widths) / len(widths)
    found = mmd_loss(source, target, bandwidths=widths, estimate="biased", median=1.0)
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


def test_an_unbiased_discrepancy_is_zero_on_average() -> None:
    found = [float(mmd_loss(*(torch.randn(2, 8, 3, generator=g)))) for g in generators(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(len(found))
    assert min(found) < 0


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in range(count)]


def test_equal_embeddings_have_no_discrepancy_and_finite_gradients() -> None:
    same = torch.ones(4, 3, requires_grad=True)
    for loss in (
        coral_loss(same, same),
        coral_loss(same, same, relative=True),
        mmd_loss(same, same),
        moment_distance([same], same),
        moment_distance([0 * same], 0 * same, relative=True),
    ):
        (gradient,) = torch.autograd.grad(loss, same)
        assert loss.item() == pytest.approx(0.0, abs=1e-7)
        assert bool(gradient.isfinite().all())


def test_relative_distances_know_no_scale() -> None:
    one, other, target = samples(5, 6, 5, 7)
    coral = coral_loss(one, target, relative=True)
    assert 0 < float(coral) < 4
    assert float(coral_loss(50 * one, 50 * target, relative=True)) == pytest.approx(float(coral))
    first, second = np.cov(one.numpy(), rowvar=False), np.cov(target.numpy(), rowvar=False)
    expected = ((first - second) ** 2).sum() * 2 / ((first**2).sum() + (second**2).sum())
    assert float(coral) == pytest.approx(expected)
    moments = moment_distance([one, other], target, relative=True)
    assert float(moment_distance([9 * one, 9 * other], 9 * target, relative=True)) == pytest.approx(
        float(moments)
    )
    size = torch.cat([one, other, target]).square().mean().sqrt()
    expected = float(moment_distance([one / size, other / size], target / size)) / math.sqrt(6)
    assert float(moments) == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 3))
def test_moment_distance_is_the_closed_form(seed: int, sizes: list[int], moments: int) -> None:
    *sources, target = samples(seed, *sizes, 5)
    arrays, aim = [s.numpy() for s in sources], target.numpy()
    expected = 0.0
    for k in range(1, moments + 1):
        means = [(a**k).mean(axis=0) for a in arrays]
        expected += float(sum(np.linalg.norm(m - (aim**k).mean(axis=0)) for m in means)) / len(means)
        pairs = [(i, j) for j in range(len(means)) for i in range(j)]
        if pairs:
            expected += float(sum(np.linalg.norm(means[i] - means[j]) for i, j in pairs)) / len(pairs)
    assert float(moment_distance(sources, target, moments=moments)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_adversarial_loss_is_that_of_skada(seed: int) -> None:
    skada_losses()
    from skada.deep import DANNLoss

    source, target = (x[:, 0] for x in samples(seed, 9, 7, dtype=torch.float32))
    expected = DANNLoss()(source.sigmoid(), target.sigmoid())
    assert float(adversarial_loss(source, target)) == pytest.approx(float(expected), rel=1e-5)


def test_weights_of_the_adversarial_loss_count() -> None:
    source, target = (x[:, 0] for x in samples(0, 4, 3))
    first, second = torch.rand(4).double() + 1, torch.rand(3).double() + 1
    d_source, d_target = (1 / (1 + np.exp(-x.numpy())) for x in (source, target))
    expected = -np.mean(first.numpy() * np.log(1 - d_source)) - np.mean(second.numpy() * np.log(d_target))
    found = adversarial_loss(source, target, source_weights=first, target_weights=second)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_the_adversarial_loss_stays_finite_for_a_certain_discriminator() -> None:
    assert float(adversarial_loss(torch.tensor([500.0]), torch.tensor([-500.0]))) == pytest.approx(1000.0)


def test_entropy_weights_are_the_closed_form() -> None:
    p = torch.randn(5, 4, dtype=torch.float64).softmax(dim=1)
    expected = 1 + np.exp((p.numpy() * np.log(p.numpy())).sum(axis=1))
    np.testing.assert_allclose(entropy_weights(p).numpy(), expected, rtol=1e-9)


def test_the_multilinear_map_is_the_outer_product_and_that_of_skada_where_randomized() -> None:
    f, g = samples(3, 4, features=6)[0], torch.rand(4, 3, dtype=torch.float64)
    expected = np.einsum("bk,bf->bkf", g.numpy(), f.numpy()).reshape(4, -1)
    np.testing.assert_allclose(multilinear_map(f, g).numpy(), expected, rtol=1e-12)
    skada_losses()
    from skada.deep._adversarial import _RandomLayer

    layer = _RandomLayer(0, [6, 3], output_dim=8)
    found = multilinear_map(f.float(), g.float(), tuple(layer.random_matrix))
    torch.testing.assert_close(found, layer([f.float(), g.float()]), rtol=1e-5, atol=1e-6)


def test_random_projections_keep_inner_products_on_average() -> None:
    f, g = samples(4, 2, features=6)[0].float(), torch.rand(2, 3)
    exact = multilinear_map(f, g)
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(n, 50000, generator=generator) for n in (6, 3)]
    seen = multilinear_map(f, g, (draws[0], draws[1]))
    torch.testing.assert_close(seen @ seen.T, exact @ exact.T, rtol=0.1, atol=0.1)


def test_mdan_is_the_closed_form() -> None:
    losses, against = torch.tensor([0.3, 0.9, 0.5]).double(), torch.tensor([1.2, 1.3, 0.2]).double()
    bounds = losses.numpy() - against.numpy()
    assert float(mdan_objective(losses, against)) == pytest.approx(bounds.max())
    expected = math.log(sum(math.exp(5.0 * b) for b in bounds)) / 5.0
    assert float(mdan_objective(losses, against, gamma=5.0)) == pytest.approx(expected, rel=1e-9)
    hard = float(mdan_objective(losses, against))
    assert float(mdan_objective(losses, against, gamma=1e4)) == pytest.approx(hard, rel=1e-4)


CHECKED: dict[str, Callable[..., Tensor]] = {
    "coral": coral_loss,
    "coral relative": lambda s, t: coral_loss(s, t, relative=True),
    "mmd": lambda s, t: mmd_loss(s, t, median=5.0),
    "mmd biased": lambda s, t: mmd_loss(s, t, median=5.0, estimate="biased"),
    "moments": lambda s, t: moment_distance([s[:2], s[2:]], t),
    "moments relative": lambda s, t: moment_distance([s[:2], s[2:]], t, relative=True),
    "adversarial": lambda s, t: adversarial_loss(s[:, 0], t[:, 0]),
    "entropy": lambda s, t: entropy_weights(torch.cat([s, t]).softmax(dim=1)).sum(),
    "multilinear": lambda s, t: multilinear_map(s, s[:, :2]).square().sum() + t.sum(),
    "mdan": lambda s, t: mdan_objective(s[0], t[0], gamma=3.0),
}


@pytest.mark.parametrize("name", CHECKED)
def test_gradients_are_right(name: str) -> None:
    source, target = (x.requires_grad_(True) for x in samples(1, 5, 4, features=3))
    assert torch.autograd.gradcheck(CHECKED[name], (source, target))


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
def test_reversal_changes_the_gradient_alone(scale: float) -> None:
    x = torch.randn(3, 2, requires_grad=True)
    reversed_ = gradient_reversal(x, scale)
    assert torch.equal(reversed_, x)
    reversed_.square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, -scale * 2 * x.detach())


def test_the_ramp_is_that_of_the_paper() -> None:
    for p in (0.0, 0.1, 0.5, 1.0):
        assert ramp(p) == pytest.approx(2 / (1 + math.exp(-10 * p)) - 1)


@pytest.mark.parametrize("name", ["coral", "mmd", "moments"])
def test_losses_keep_their_digits_in_mixed_precision(name: str) -> None:
    source, target = samples(2, 5, 4, features=3, dtype=torch.float32)
    source, target = source + 100, target + 100  # covariances of these cancel in half precision
    expected = CHECKED[name](source, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = CHECKED[name](source, target)
    assert found.dtype == torch.float32
    assert float(found) == float(expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda: coral_loss(torch.ones(1, 3), torch.ones(2, 3)),
        lambda: coral_loss(torch.ones(2, 3), torch.ones(2, 4)),
        lambda: mmd_loss(torch.ones(2, 3), torch.ones(1, 3)),
        lambda: mmd_loss(torch.ones(2, 3), torch.ones(2, 3), bandwidths=()),
        lambda: mmd_loss(torch.ones(2, 3), torch.ones(2, 3), estimate="none"),  # type: ignore[arg-type]  # refused
        lambda: moment_distance([], torch.ones(2, 3)),
        lambda: multilinear_map(torch.ones(2, 3), torch.ones(3, 3)),
        lambda: mdan_objective(torch.ones(2), torch.ones(2), gamma=0.0),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Tensor]) -> None:
    with pytest.raises(TrainingError):
        call()
