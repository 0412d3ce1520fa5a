from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from medimg.calibration.conformal import (
    check_coverage,
    conformal_quantile,
    conformal_quantiles,
    prediction_set,
)
from medimg.errors import MedimgWarning, TrainingError


def simulated(
    rng: np.random.Generator, patients: int, most: int, classes: int = 4
) -> tuple[Any, Any, list[str]]:
    """Probabilities and labels of images that share much within a patient, some of whom have more of them."""
    counts = rng.integers(1, most + 1, patients)
    whose = np.repeat(np.arange(patients), counts)
    centers = rng.normal(size=(patients, classes)) * 1.5
    logits = centers[whose] + 0.5 * rng.normal(size=(len(whose), classes))
    noisy = centers + rng.gumbel(size=(patients, classes))
    labels = noisy.argmax(axis=1)[whose]
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return proba, labels[:, None] == np.arange(classes), [str(n) for n in whose]


@pytest.mark.parametrize("n", [9, 10, 19, 99, 100])
@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_one_image_each_is_the_usual_rank(n: int, coverage: float) -> None:
    scores = np.random.default_rng(n).random(n)
    rank = math.ceil((n + 1) * coverage - 1e-9)
    expected = np.sort(scores)[rank - 1] if rank <= n else math.inf
    assert conformal_quantile(scores, [str(k) for k in range(n)], coverage) == expected


def test_more_images_of_the_same_patient_tell_no_more() -> None:
    scores = np.random.default_rng(0).random(40)
    names = [str(k) for k in range(40)]
    once = conformal_quantile(scores, names, 0.9)
    assert conformal_quantile(np.tile(scores, 5), names * 5, 0.9) == once
    # one patient with a thousand bad images is still one
    many = np.append(scores, np.full(1000, 5.0))
    assert conformal_quantile(many, [*names, *["x"] * 1000], 0.9) < 1


def test_coverage_of_new_patients() -> None:
    """Of 400 draws of 60 patients each, the mean coverage lies where theory has it."""
    rng = np.random.default_rng(1)
    covered, by_image = [], []
    for _ in range(400):
        proba, truth, patients = simulated(rng, 60, 8)
        new, true, _ = simulated(rng, 200, 1)
        (q,) = conformal_quantiles(proba, truth, patients, "multiclass", 0.9)
        covered.append(prediction_set(new, [q], "multiclass")[true].mean())
        naive = conformal_quantile(1 - proba[truth], [str(n) for n in range(len(proba))], 0.9)
        by_image.append(prediction_set(new, [naive], "multiclass")[true].mean())
    assert 0.895 <= np.mean(covered) <= 0.925
    # images taken for independent promise more than they hold, if only slightly on average
    assert np.mean(by_image) < np.mean(covered)


def test_labels_that_are_there_are_covered() -> None:
    rng = np.random.default_rng(2)
    hits = []
    for _ in range(200):
        logits = rng.normal(size=(260, 2))
        truth = rng.random((260, 2)) < 1 / (1 + np.exp(-2 * logits))
        proba = 1 / (1 + np.exp(-logits))
        names = [str(n) for n in range(60)]
        q = conformal_quantiles(proba[:60], truth[:60], names, "multilabel", 0.8)
        kept = prediction_set(proba[60:], q, "multilabel")
        hits.append([kept[truth[60:, k], k].mean() for k in range(2)])
    assert (np.abs(np.mean(hits, axis=0) - 0.815) < 0.02).all()


def test_sets() -> None:
    proba = np.array([[0.4, 0.35, 0.25], [0.9, 0.06, 0.04]])
    assert prediction_set(proba, [0.05], "multiclass").tolist() == [[True, False, False]] * 2
    assert prediction_set(proba, [1.0], "multiclass").all()
    assert prediction_set(proba, [0.5, 0.7, 0.0], "multilabel").tolist() == [
        [False, True, False], [True, False, False],
    ]  # fmt: skip


def test_too_few_patients() -> None:
    proba = np.tile([0.9, 0.1], (8, 1))
    truth = np.tile([True, False], (8, 1))
    with pytest.warns(MedimgWarning, match="at least 9 patients"):
        assert conformal_quantiles(proba, truth, [*"abcdefgh"], "multiclass", 0.9) == (1.0,)
    with pytest.warns(MedimgWarning, match="for 1 of 2 labels"):
        found = conformal_quantiles(np.tile(proba, (2, 1)), np.tile(truth, (2, 1)), [*"abcdefghijklmnop"],
                                    "multilabel", 0.9)  # fmt: skip
    assert found[1] == 1.0
    assert conformal_quantiles(proba, truth, [*"abcdefgh"], "multiclass", None) == ()


@pytest.mark.parametrize("bad", [0, 1, 90, 10**400, "0.9", True, float("nan")])
def test_unsound_coverage(bad: Any) -> None:
    with pytest.raises(TrainingError, match="coverage must be a number"):
        check_coverage(bad)
