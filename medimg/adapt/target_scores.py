"""Scores of adapted models that need no labels of the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["deep_embedded_risk", "mutual_information"]


def mutual_information(probabilities: NDArray[np.floating]) -> float:
    """
    Return the mutual information of images and predicted classes, in bits.

    The entropy of the mean prediction minus the mean entropy of the predictions (Shi and Sha,
    Information-Theoretical Learning of Discriminative Clusters for Unsupervised Domain Adaptation, ICML
    2012): large if the predictions are certain and all classes are predicted, 0 if all images get the same.

    Parameters
    ----------
    probabilities : numpy.ndarray
        (n, K) probabilities of K classes, which add up to 1.

    Returns
    -------
    float
        0 to log2 K.

    Raises
    ------
    TrainingError
        If the shape or a value is invalid.

    Examples
    --------
    >>> mutual_information(np.array([[1.0, 0.0], [0.0, 1.0]]))
    1.0
    >>> mutual_information(np.array([[0.5, 0.5], [0.5, 0.5]]))
    0.0
    """
    found = np.asarray(probabilities, np.float64)
    if found.ndim != 2 or not len(found) or not (np.isfinite(found).all() and found.min() >= 0):
        raise TrainingError(f"expected probabilities (n, K), n at least 1; found shape {found.shape}")
    return max(0.0, float(_entropy(found.mean(axis=0)) - _entropy(found).mean()))


def _entropy(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return entropies (...) of (..., K), in bits."""
    logs = np.log2(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    entropy: NDArray[np.float64] = -(probabilities * logs).sum(axis=-1)
    return entropy


def deep_embedded_risk(
    losses: NDArray[np.floating],
    validation: NDArray[np.floating],
    train: NDArray[np.floating],
    target: NDArray[np.floating],
) -> float:
    """
    Return an estimate of the loss on the target, by weighted losses of the source.

    You, Wang, Long and Jordan, Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation, ICML
    2019 (deep embedded validation): validation losses are weighted by the density ratio of target and source,
    from a logistic regression of their embeddings, with the weights as control variate. The more the
    embeddings of both domains differ, the fewer images decide, and the less reliable the estimate is.

    Parameters
    ----------
    losses : numpy.ndarray
        (n,) losses of validation images of the source.
    validation : numpy.ndarray
        (n, F) embeddings of the same images.
    train, target : numpy.ndarray
        (m, F), (k, F) embeddings of training and target images.

    Returns
    -------
    float
        Estimated mean loss on the target.

    Raises
    ------
    TrainingError
        If the shapes don't match.

    Examples
    --------
    >>> source = np.array([[-1.0], [1.0]])
    >>> deep_embedded_risk(np.array([0.0, 1.0]), source, source, np.array([[1.0], [1.0]])) > 0.5
    True
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    loss, own, first, other = (np.asarray(v, np.float64) for v in (losses, validation, train, target))
    widths = {e.shape[1] if e.ndim == 2 and len(e) else -1 for e in (own, first, other)}
    if loss.shape != own.shape[:1] or len(widths) != 1 or -1 in widths:
        raise TrainingError(
            "expected losses (n,) and embeddings (n, F), (m, F), (k, F); found "
            f"{[v.shape for v in (loss, own, first, other)]}"
        )
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    classifier.fit(np.concatenate([first, other]), np.repeat([0, 1], [len(first), len(other)]))
    odds = np.exp(classifier.decision_function(own)) * len(first) / len(other)
    weighted = odds * loss
    spread = odds.var()
    control = -np.cov(weighted, odds, ddof=0)[0, 1] / spread if spread > 0 else 0.0
    return float(weighted.mean() + control * (odds.mean() - 1.0))
