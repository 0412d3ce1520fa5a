"""Out-of-distribution score of embeddings: Mahalanobis distance from the training data."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._validation import check_fields
from medimg.errors import CheckpointError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["MahalanobisDetector"]

_MOST_AXES: Final = 256
_KNOTS: Final = 256
_FEWEST: Final = 10

_Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class MahalanobisDetector:
    """
    Squared Mahalanobis distance from the nearest class mean, with a common covariance, and its percentiles.

    Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks,
    NeurIPS 2018; for several labels at once, the distance from the mean of all. The covariance is shrunk by
    the method of Ledoit and Wolf (2004), and the variances beyond the first R are replaced by their mean, so
    that directions in which the training data hardly vary are included.
    """

    means: _Floats = field(repr=False)  # (C, F): of the classes
    axes: _Floats = field(
        repr=False
    )  # (R, F), R at most 256: directions of the largest variance within classes
    variances: _Floats = field(repr=False)  # (R + 1,): along each axis, and last in every other direction
    knots: _Floats = field(repr=False)  # (Q,), ascending: quantiles of the distances of held-out images

    @classmethod
    def fit(
        cls,
        embeddings: NDArray[np.float32],
        groups: NDArray[np.int64],
        held_out: NDArray[np.float32],
    ) -> MahalanobisDetector:
        """
        Fit embeddings (n, F) of the training data, of classes (n,), and of similar held-out images (m, F).

        Raises TrainingError for fewer than ten rows of either. Classes with a single row have no mean, which
        would be that image.
        """
        if min(len(embeddings), len(held_out)) < _FEWEST:
            raise TrainingError(
                f"out-of-distribution scores need at least {_FEWEST} images for training and validation; "
                f"found {len(embeddings)} and {len(held_out)}: use more, or leave out train="
            )
        kept = [rows for group in np.unique(groups) if len(rows := embeddings[groups == group]) > 1]
        kept = [rows.astype(np.float64) for rows in kept] or [embeddings.astype(np.float64)]
        means = np.stack([rows.mean(axis=0) for rows in kept])
        centered = np.concatenate([rows - mean for rows, mean in zip(kept, means, strict=True)])
        axes, variances = _estimate_covariance(centered)
        rough = cls(means.astype(np.float32), axes, variances, np.zeros(0, np.float32))
        distances = np.sort(rough.distances(held_out))
        # quantiles, not the distances themselves, where there are many
        ranks = np.linspace(0, 1, min(len(distances), _KNOTS))
        knots = np.quantile(distances, ranks).astype(np.float32)
        return cls(rough.means, axes, variances, knots)

    def distances(self, embeddings: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return squared Mahalanobis distances from the nearest mean: (n,) for (n, F)."""
        rows = embeddings.astype(np.float64)
        axes, rest = self.axes.astype(np.float64), float(self.variances[-1])
        gains = 1.0 / self.variances[:-1].astype(np.float64) - 1.0 / rest
        found = np.full(len(rows), np.inf)
        for mean in self.means.astype(np.float64):
            difference = rows - mean
            along = difference @ axes.T
            found = np.minimum(found, (difference**2).sum(axis=1) / rest + (along**2) @ gains)
        return found

    def percentiles(self, embeddings: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the fraction of held-out images that are nearer, (n,) from 0 to 1."""
        distances = self.distances(embeddings)
        shares = np.interp(distances, self.knots.astype(np.float64), np.linspace(0, 1, len(self.knots)))
        return np.asarray(np.where(np.isfinite(distances), shares, 1.0))

    def tensors(self) -> dict[str, Tensor]:
        """Return the arrays as a checkpoint stores them."""
        import torch

        return {one.name: torch.from_numpy(getattr(self, one.name)) for one in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], features: int) -> MahalanobisDetector:
        """Read the arrays of a file, for embeddings (F,), and check each by its name."""
        check_fields("outliers", tensors, [one.name for one in fields(cls)], error=CheckpointError)

        def array(name: str, *sizes: tuple[int, int | None]) -> _Floats:
            return _check_array(f"outliers.{name}", tensors[name], sizes)

        means = array("means", (1, None), (features, features))
        axes = array("axes", (0, _MOST_AXES), (features, features))
        variances = array("variances", (len(axes) + 1, len(axes) + 1))
        knots = array("knots", (2, _KNOTS))
        if not (variances > 0).all():
            raise CheckpointError(f"outliers.variances must be above 0; found {float(variances.min()):g}")
        if (np.diff(knots) < 0).any():
            raise CheckpointError(
                "outliers.knots must be in ascending order; found a smaller one after another"
            )
        return cls(means, axes, variances, knots)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MahalanobisDetector):
            return NotImplemented
        return all(np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    __hash__ = None  # type: ignore[assignment]  # it holds arrays

    def __repr__(self) -> str:
        (groups, features), axes = self.means.shape, len(self.axes)
        return f"MahalanobisDetector({groups} means of {features} features, {axes} axes)"


def _check_array(name: str, tensor: Tensor, sizes: tuple[tuple[int, int | None], ...]) -> _Floats:
    """Return a finite float32 tensor as an array, if each of its sizes is within its limits."""
    import torch

    fits = tensor.ndim == len(sizes) and all(
        least <= n and (most is None or n <= most)
        for n, (least, most) in zip(tensor.shape, sizes, strict=True)
    )
    if not fits or tensor.dtype != torch.float32:
        shape = [f"{a}" if a == b else f"{a} or more" if b is None else f"{a} to {b}" for a, b in sizes]
        raise CheckpointError(
            f"{name} must be torch.float32 of shape ({', '.join(shape)}); found {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}"
        )
    bad = int((~tensor.isfinite()).sum())
    if bad:
        raise CheckpointError(f"{name} must be finite; found {bad:,} values that are not")
    found: _Floats = tensor.numpy()
    return found


def _estimate_covariance(centered: NDArray[np.float64]) -> tuple[_Floats, _Floats]:
    """Return axes (R, F) and variances (R + 1,) of a shrunk covariance of centered embeddings (n, F)."""
    from sklearn.covariance import ledoit_wolf_shrinkage
    from sklearn.decomposition import PCA

    n, features = centered.shape
    total = float((centered**2).sum() / n)
    if not total > 0:
        raise TrainingError("all embeddings of a class are the same: the network does not distinguish images")
    shrinkage = float(ledoit_wolf_shrinkage(centered, assume_centered=True))
    count = min(_MOST_AXES, n - 1, features)
    solver = "full" if min(n, features) <= 2 * _MOST_AXES else "randomized"
    found = PCA(count, svd_solver=solver, random_state=0).fit(centered)
    along = (found.singular_values_**2) / n
    rest = max(total - float(along.sum()), 0.0) / max(features - count, 1)
    variances = (1 - shrinkage) * np.append(along, rest) + shrinkage * total / features
    floor = 1e-6 * total / features
    return found.components_.astype(np.float32), np.maximum(variances, floor).astype(np.float32)
