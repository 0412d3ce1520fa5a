"""Distances between samples of distributions: CORAL, MMD, moment distance, proxy A-distance."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import combinations
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from medimg._validation import check_choice
from medimg.data.splits.kfold import assign_folds, split_by_fold
from medimg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = [
    "BANDWIDTHS",
    "Estimate",
    "as_full_precision",
    "coral_loss",
    "full_precision",
    "mmd_loss",
    "moment_distance",
    "proxy_a_distance",
]

#: Estimator of a squared discrepancy.
Estimate: TypeAlias = Literal["unbiased", "biased"]

#: Widths of the Gaussian kernels, as multiples of the median squared distance.
BANDWIDTHS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)


@contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """Disable automatic mixed precision, in which covariances and distances lose too many digits."""
    with torch.autocast(tensor.device.type, enabled=False):
        yield


def as_full_precision(embeddings: Tensor) -> Tensor:
    """Convert to float32, unless the dtype is float64."""
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


def _check_embeddings(several: Sequence[Tensor], least: int) -> list[Tensor]:
    """Return embeddings (B, F) in full precision; raise TrainingError if they have less than `least` rows."""
    for embeddings in several:
        if embeddings.ndim != 2 or len(embeddings) < least or embeddings.shape[1] != several[0].shape[1]:
            raise TrainingError(
                f"expected embeddings (B, F) with at least {least} row(s) and the same F; found "
                f"{[tuple(e.shape) for e in several]}: raise batch_size"
            )
    return [as_full_precision(embeddings) for embeddings in several]


def coral_loss(source: Tensor, target: Tensor, *, relative: bool = False) -> Tensor:
    """
    Return the distance between the covariances of source and target.

    ``||C_S - C_T||_F^2 / (4 d^2)``, with C the covariances (divided by n - 1) of d features (Sun and Saenko,
    Deep CORAL, ECCV Workshops 2016, equations 1 to 3).

    Parameters
    ----------
    source, target : Tensor
        (B, F), (B', F) embeddings, at least 2 of each.
    relative : bool
        Whether to divide by ``(||C_S||_F^2 + ||C_T||_F^2) / 2`` instead of ``4 d^2``: the result is 0 to 4
        whatever the scale of the embeddings, and shrinking them does not lower it.

    Returns
    -------
    Tensor
        Scalar, float32 (float64 if the embeddings are).

    Raises
    ------
    TrainingError
        If the shapes don't match.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    >>> coral_loss(x, 2 * x)  # variances 2 and 8
    tensor(2.2500)
    """
    with full_precision(source):
        one, other = _check_embeddings((source, target), 2)
        first, second = torch.cov(one.T), torch.cov(other.T)
        distance: Tensor = (first - second).square().sum()
        if not relative:
            return distance / (4 * one.shape[1] ** 2)
        size = (first.square().sum() + second.square().sum()) / 2
        return distance / size.clamp_min(torch.finfo(size.dtype).tiny ** 0.5)


def mmd_loss(
    source: Tensor,
    target: Tensor,
    *,
    bandwidths: Sequence[float] = BANDWIDTHS,
    estimate: Estimate = "unbiased",
    median: Tensor | float | None = None,
) -> Tensor:
    """
    Return the squared maximum mean discrepancy, by several Gaussian kernels.

    ``MMD^2 = mean k(s, s') + mean k(t, t') - 2 mean k(s, t)`` with k the mean over u of
    ``exp(-||x - y||^2 / (b_u m))``, m the median squared distance between different items of both samples
    (Long, Cao, Wang and Jordan, Learning Transferable Features with Deep Adaptation Networks, ICML 2015, with
    equal weights of the kernels; Gretton et al., A Kernel Two-Sample Test, JMLR 2012, equation 3 for the
    unbiased estimate, 5 for the biased one).

    Parameters
    ----------
    source, target : Tensor
        (B, F), (B', F) embeddings; at least 2 of each.
    bandwidths : sequence of float
        Multiples b_u.
    estimate : {"unbiased", "biased"}
        Estimator. Unbiased: no item is compared with itself; the result is 0 on average, and sometimes
        negative, if the distributions are equal. Biased: never negative.
    median : float, optional
        Median squared distance m; by default that of these samples, without gradient.

    Returns
    -------
    Tensor
        Scalar, float32 (float64 if the embeddings are).

    Raises
    ------
    TrainingError
        If shapes or settings are invalid.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> mmd_loss(x, x, estimate="biased")
    tensor(0.)
    """
    check_choice("estimate", estimate, get_args(Estimate))
    if not bandwidths or min(bandwidths) <= 0:
        raise TrainingError(f"bandwidths must be positive numbers; found {tuple(bandwidths)}")
    with full_precision(source):
        one, other = _check_embeddings((source, target), 2)
        distances = _squared_distances(torch.cat([one, other]))
        width = _find_median(distances) if median is None else median
        kernel = torch.stack([torch.exp(-distances / (b * width)) for b in bandwidths]).mean(dim=0)
        n = len(one)
        within = _mean_within(kernel[:n, :n], estimate) + _mean_within(kernel[n:, n:], estimate)
        return within - 2 * kernel[:n, n:].mean()


def _squared_distances(items: Tensor) -> Tensor:
    """Return squared distances (N, N) of (N, F), which are centered first so that few digits cancel."""
    centered = items - items.detach().mean(dim=0)
    squares = centered.square().sum(dim=1)
    found = (squares[:, None] + squares[None] - 2 * centered @ centered.T).clamp_min(0)
    return found * (1 - torch.eye(len(found), dtype=found.dtype, device=found.device))


def _find_median(distances: Tensor) -> Tensor:
    """Return the median off the diagonal of distances (N, N), without gradient and never 0."""
    n = len(distances)
    off = distances.detach()[torch.triu(torch.ones(n, n, dtype=torch.bool, device=distances.device), 1)]
    return off.quantile(0.5).clamp_min(torch.finfo(off.dtype).tiny ** 0.5)


def _mean_within(kernel: Tensor, estimate: Estimate) -> Tensor:
    if estimate == "biased":
        return kernel.mean()
    n = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))


def moment_distance(
    sources: Sequence[Tensor], target: Tensor, *, moments: int = 2, relative: bool = False
) -> Tensor:
    """
    Return the moment distance between several sources and a target.

    ``sum over k of (1/N sum over i of ||E(X_i^k) - E(X_T^k)||_2
    + 2/(N(N-1)) sum over i < j of ||E(X_i^k) - E(X_j^k)||_2)``, the k-th powers taken of each feature (Peng,
    Bai, Xia, Huang, Saenko and Wang, Moment Matching for Multi-Source Domain Adaptation, ICCV 2019,
    definition 1).

    Parameters
    ----------
    sources : sequence of Tensor
        N arrays of embeddings (B_i, F), at least one row each.
    target : Tensor
        (B', F) embeddings.
    moments : int
        Highest k; 2 in the paper.
    relative : bool
        Whether to divide embeddings by their root mean square, and norms by the square root of F: the result
        does not depend on the scale of the embeddings and hardly on F, and shrinking them does not lower it.

    Returns
    -------
    Tensor
        Scalar, float32 (float64 if the embeddings are).

    Raises
    ------
    TrainingError
        If the shapes don't match, or there is no source.

    Examples
    --------
    >>> one, other = torch.zeros(3, 1), torch.ones(2, 1)
    >>> moment_distance([one, other], other)  # for each k: (1 + 0) / 2 to the target, 1 between the sources
    tensor(3.)
    """
    if not sources or moments < 1:
        raise TrainingError(f"expected at least one source and moment; found {len(sources)} and {moments}")
    with full_precision(target):
        *several, last = _check_embeddings([*sources, target], 1)
        total = last.new_zeros(())
        if relative:
            scale = torch.cat([*several, last]).square().mean().clamp_min(torch.finfo(last.dtype).tiny).sqrt()
            several, last = [embeddings / scale for embeddings in several], last / scale
        pairs = list(combinations(range(len(several)), 2))
        for k in range(1, moments + 1):
            means = [embeddings.pow(k).mean(dim=0) for embeddings in several]
            aim = last.pow(k).mean(dim=0)
            total = total + torch.stack([_norm(m - aim) for m in means]).mean()
            if pairs:
                total = total + torch.stack([_norm(means[i] - means[j]) for i, j in pairs]).mean()
        return total / last.shape[1] ** 0.5 if relative else total


def _norm(vector: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(vector)
    return norm


def proxy_a_distance(
    source: NDArray[np.floating],
    target: NDArray[np.floating],
    *,
    source_patients: Sequence[str] | None = None,
    target_patients: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> float:
    """
    Return the proxy A-distance ``2 (1 - 2 e)``, e the error of a classifier of source versus target.

    Ben-David, Blitzer, Crammer and Pereira, Analysis of Representations for Domain Adaptation, NeurIPS 2006,
    section 5.2; Ben-David et al., Machine Learning 79, 2010. The classifier is a logistic regression on
    standardized embeddings with patient-wise cross-validation; e is its balanced error.

    Parameters
    ----------
    source, target : numpy.ndarray
        (n, F), (n', F) embeddings.
    source_patients, target_patients : sequence of str, optional
        Patient of each embedding; by default each has its own.
    folds : int
        Number of cross-validation folds.
    seed : int
        Seed for the folds.

    Returns
    -------
    float
        0 (indistinguishable) to 2 (perfectly distinguishable); values below 0, which occur by chance, are
        returned as 0.

    Raises
    ------
    TrainingError
        If source or target has fewer patients than folds, or the shapes don't match.

    Examples
    --------
    >>> one, other = np.zeros((10, 2)), np.ones((10, 2))
    >>> proxy_a_distance(one, other)
    2.0
    """
    one, other = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise TrainingError(f"expected embeddings (n, F) and (n', F); found {one.shape} and {other.shape}")
    groups = np.asarray(
        [*_fill_patients(source_patients, one, "s"), *_fill_patients(target_patients, other, "t")]
    )
    sides = np.repeat([0, 1], [len(one), len(other)])
    for name, side in (("source", 0), ("target", 1)):
        count = len(set(groups[sides == side]))
        if count < folds:
            raise TrainingError(f"the {name} has {count} patient(s); expected at least folds={folds}")
    wrong = _cross_validate(np.concatenate([one, other]), sides, groups, folds, seed)
    error = (wrong[sides == 0].mean() + wrong[sides == 1].mean()) / 2
    return max(0.0, 2.0 * (1.0 - 2.0 * float(error)))


def _fill_patients(patients: Sequence[str] | None, embeddings: NDArray[np.float64], side: str) -> list[str]:
    if patients is None:
        return [f"{side}{n}" for n in range(len(embeddings))]
    if len(patients) != len(embeddings):
        raise TrainingError(
            f"expected a patient for each of {len(embeddings)} embeddings; found {len(patients)}"
        )
    return list(patients)


def _cross_validate(
    embeddings: NDArray[np.float64], sides: NDArray[np.int64], groups: NDArray[np.str_], folds: int, seed: int
) -> NDArray[np.bool_]:
    """Return which items (n,) are misclassified by a classifier trained without their patient."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    wrong = np.zeros(len(sides), dtype=bool)
    for learned, held in split_by_fold(assign_folds(sides, groups.tolist(), "multiclass", folds, seed)):
        classifier = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000)
        )
        classifier.fit(embeddings[learned], sides[learned])
        wrong[held] = classifier.predict(embeddings[held]) != sides[held]
    return wrong
