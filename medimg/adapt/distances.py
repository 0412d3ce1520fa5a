"""How far apart two sets of embeddings are: how well a classifier tells them apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medimg.data.folds import fold_of_items, splits
from medimg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["proxy_a_distance"]


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
    Return the proxy A-distance: ``2 (1 - 2 e)``, e the error of telling source from target.

    Ben-David, Blitzer, Crammer and Pereira, Analysis of Representations for Domain Adaptation, NeurIPS 2006,
    section 5.2; Ben-David et al., Machine Learning 79, 2010. The classifier is a logistic regression on
    standardized embeddings, cross-validated so that no patient is on both sides; e is the mean of both sides'
    errors, so that sides of unequal size count alike.

    Parameters
    ----------
    source, target : numpy.ndarray
        (n, F), (n', F) embeddings.
    source_patients, target_patients : sequence of str, optional
        Whose they are; by default each is of a patient of its own.
    folds : int
        Of the cross-validation.
    seed : int
        Of the folds.

    Returns
    -------
    float
        0 (alike) to 2 (told apart without error); what is below 0 by chance is 0.

    Raises
    ------
    TrainingError
        If there are fewer patients than folds on a side, or shapes don't fit.

    Examples
    --------
    >>> one, other = np.zeros((10, 2)), np.ones((10, 2))
    >>> proxy_a_distance(one, other)
    2.0
    """
    one, other = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise TrainingError(f"embeddings are (n, F) and (n', F); found {one.shape} and {other.shape}")
    groups = np.asarray([*_groups(source_patients, one, "s"), *_groups(target_patients, other, "t")])
    sides = np.repeat([0, 1], [len(one), len(other)])
    for name, side in (("source", 0), ("target", 1)):
        count = len(set(groups[sides == side]))
        if count < folds:
            raise TrainingError(f"the {name} has {count} patient(s); expected at least folds={folds}")
    wrong = _errors(np.concatenate([one, other]), sides, groups, folds, seed)
    error = (wrong[sides == 0].mean() + wrong[sides == 1].mean()) / 2
    return max(0.0, 2.0 * (1.0 - 2.0 * float(error)))


def _groups(patients: Sequence[str] | None, embeddings: NDArray[np.float64], side: str) -> list[str]:
    if patients is None:
        return [f"{side}{n}" for n in range(len(embeddings))]
    if len(patients) != len(embeddings):
        raise TrainingError(
            f"expected a patient for each of {len(embeddings)} embeddings; found {len(patients)}"
        )
    return list(patients)


def _errors(
    embeddings: NDArray[np.float64], sides: NDArray[np.int64], groups: NDArray[np.str_], folds: int, seed: int
) -> NDArray[np.bool_]:
    """Return which items a classifier that has not seen their patient puts on the wrong side."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    wrong = np.zeros(len(sides), dtype=bool)
    for learned, held in splits(fold_of_items(sides, groups.tolist(), "multiclass", folds, seed)):
        classifier = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000)
        )
        classifier.fit(embeddings[learned], sides[learned])
        wrong[held] = classifier.predict(embeddings[held]) != sides[held]
    return wrong
