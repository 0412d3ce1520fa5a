from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medimg.calibration.mahalanobis import MahalanobisDetector
from medimg.errors import CheckpointError, TrainingError


def data(
    n: int, features: int, seed: int = 0, classes: int = 3
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(classes, features)) * 5
    mixing = np.random.default_rng(98).normal(size=(features, features)) / np.sqrt(features)
    groups = rng.integers(0, classes, n)
    rows = centers[groups] + rng.normal(size=(n, features)) @ mixing
    return rows.astype(np.float32), groups


def fitted(features: int = 20, n: int = 600) -> MahalanobisDetector:
    rows, groups = data(n, features)
    return MahalanobisDetector.fit(rows, groups, data(200, features, seed=1)[0])


def test_distances_are_those_of_scikit_learn() -> None:
    from sklearn.covariance import LedoitWolf

    rows, groups = data(600, 20)
    found = MahalanobisDetector.fit(rows, groups, data(50, 20, seed=1)[0])
    means = np.stack([rows[groups == g].mean(axis=0, dtype=np.float64) for g in range(3)])
    precision = LedoitWolf(assume_centered=True).fit(rows - means[groups]).precision_
    new = data(50, 20, seed=2)[0]
    apart = new[:, None] - means[None]
    expected = np.einsum("ncf,fg,ncg->nc", apart, precision, apart).min(axis=1)
    np.testing.assert_allclose(found.distances(new), expected, rtol=1e-3)


def test_many_features_are_kept_small() -> None:
    """More features than rows, and than axes: what is left out counts by its mean variance."""
    rows, groups = data(400, 700)
    found = MahalanobisDetector.fit(rows, groups, data(200, 700, seed=1)[0])
    assert found.axes.shape == (256, 700)
    assert sum(t.numel() * 4 for t in found.tensors().values()) < 1e6
    inside = found.percentiles(data(200, 700, seed=2)[0])
    outside = found.percentiles(data(200, 700, seed=2)[0] + np.float32(2))
    assert 0.3 < inside.mean() < 0.7
    assert outside.mean() > 0.95


def test_percentiles_of_like_images_are_uniform() -> None:
    found = fitted()
    shares = found.percentiles(data(2000, 20, seed=3)[0])
    assert ((shares >= 0) & (shares <= 1)).all()
    np.testing.assert_allclose(np.quantile(shares, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.1)
    assert found.percentiles(np.full((1, 20), np.nan, np.float32)).tolist() == [1.0]
    assert (found.percentiles(data(50, 20)[0] * 100) == 1).all()


def test_directions_that_never_vary_count() -> None:
    rows, groups = data(300, 20)
    rows[:, 7] = 0.0
    held_out = data(100, 20, seed=1)[0]
    held_out[:, 7] = 0.0
    found = MahalanobisDetector.fit(rows, groups, held_out)
    changed = held_out.copy()
    changed[:, 7] = 50.0
    assert (found.percentiles(changed) == 1).all()


def test_a_single_image_gives_no_mean() -> None:
    rows, groups = data(60, 5, classes=2)
    groups[0] = 7
    found = MahalanobisDetector.fit(rows, groups, rows)
    assert len(found.means) == 2
    assert not any(np.allclose(mean, rows[0]) for mean in found.means)


def test_too_few_or_all_the_same() -> None:
    rows, groups = data(9, 5)
    with pytest.raises(TrainingError, match="at least 10"):
        MahalanobisDetector.fit(rows, groups, data(50, 5)[0])
    with pytest.raises(TrainingError, match="all embeddings"):
        MahalanobisDetector.fit(np.ones((20, 5), np.float32), np.zeros(20, np.int64), data(50, 5)[0])


def test_through_tensors() -> None:
    found = fitted()
    again = MahalanobisDetector.from_tensors(found.tensors(), 20)
    assert again == found
    assert again != fitted(n=500)
    new = data(50, 20, seed=4)[0]
    assert np.array_equal(again.percentiles(new), found.percentiles(new))


@pytest.mark.parametrize("name", ["means", "axes", "variances", "knots"])
def test_unsound_tensors(name: str) -> None:
    tensors = fitted().tensors()
    value = tensors[name]
    short = value[:1] if name in ("variances", "knots") else value[:, :-1]
    for bad, message in (
        ({**tensors, name: value.double()}, rf"outliers\.{name} must be torch\.float32"),
        ({**tensors, name: value.to(torch.float8_e5m2)}, rf"outliers\.{name} must be torch\.float32"),
        ({**tensors, name: short}, rf"outliers\.{name} must .* of shape"),
        ({**tensors, name: torch.full_like(value, torch.nan)}, rf"outliers\.{name} must be finite"),
        ({key: value for key, value in tensors.items() if key != name}, f"found missing {name}"),
        ({**tensors, "more": torch.zeros(1)}, "found unknown 'more'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            MahalanobisDetector.from_tensors(bad, 20)


def test_tensors_of_another_network_or_impossible_values() -> None:
    tensors = fitted().tensors()
    with pytest.raises(
        CheckpointError, match=r"outliers.means must be torch.float32 of shape \(1 or more, 21\)"
    ):
        MahalanobisDetector.from_tensors(tensors, 21)
    with pytest.raises(CheckpointError, match=r"outliers.variances must be above 0; found -"):
        MahalanobisDetector.from_tensors({**tensors, "variances": -tensors["variances"]}, 20)
    with pytest.raises(CheckpointError, match=r"outliers.knots must be in ascending order"):
        MahalanobisDetector.from_tensors({**tensors, "knots": tensors["knots"].flip(0)}, 20)
