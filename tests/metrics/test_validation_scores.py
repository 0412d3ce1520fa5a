"""The scores that training watches, against scikit-learn."""

import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from medimg.metrics.validation_scores import mean_auroc, validation_scores
from tests.metrics.reference import UNCHECKED
from tests.sampling import SLOW

Floats = NDArray[np.float64]


def test_areas_count_ties_one_half_and_leave_absent_classes_out() -> None:
    proba = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.4, 0.1], [0.3, 0.4, 0.3]])
    labels = np.array([0, 1, 1, 0])
    found = validation_scores(labels, proba, "multiclass")
    assert found["val_accuracy"] == 0.5
    # class 0: (.7, .3) against (.1, .5): 3 of 4; class 1: (.6, .4) against (.2, .4): 3.5 of 4; class 2: none
    assert found["val_auroc"] == mean_auroc(labels, proba, "multiclass")
    assert found["val_auroc"] == pytest.approx((0.75 + 0.875) / 2)
    alone = validation_scores(np.zeros(4, dtype=int), proba[:, :2], "multiclass")
    assert alone["val_auroc"] is None
    indicators = np.array([[1, 0], [0, 1]], dtype=np.float32)
    found = validation_scores(indicators, np.array([[0.9, 0.6], [0.2, 0.7]]), "multilabel")
    assert (found["val_accuracy"], found["val_auroc"]) == (0.5, 1.0)


def test_labels_without_an_example_or_a_prediction_have_no_f1() -> None:
    found = validation_scores(np.zeros((3, 2)), np.full((3, 2), 0.1), "multilabel")
    assert found == {"val_accuracy": 1.0, "val_balanced_accuracy": 1.0, "val_f1": 0.0, "val_auroc": None}


def by_sklearn(labels: NDArray[np.int64], proba: Floats, task: str) -> dict[str, float | None]:
    k = proba.shape[1]
    truth = labels.astype(bool) if task == "multilabel" else labels[:, None] == np.arange(k)
    decided = proba >= 0.5 if task == "multilabel" else proba.argmax(axis=1)[:, None] == np.arange(k)
    pairs = list(zip(truth.T, decided.T, strict=True))
    recalls = [recall_score(y, z) for y, z in pairs if y.any()]
    if task == "multilabel":
        recalls += [recall_score(~y, ~z) for y, z in pairs if not y.all()]
    f1 = [f1_score(y, z) for y, z in pairs if y.any() or z.any()]
    areas = [roc_auc_score(y, p) for y, p in zip(truth.T, proba.T, strict=True) if y.any() and not y.all()]
    return {
        "val_accuracy": float((truth == decided).all(axis=1).mean()),
        "val_balanced_accuracy": float(np.mean(recalls)),
        "val_f1": float(np.mean(f1)) if f1 else 0.0,
        "val_auroc": float(np.mean(areas)) if areas else None,
    }


@settings(max_examples=150 if SLOW else 60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 4), st.booleans())
def test_scores_equal_scikit_learn(seed: int, n: int, k: int, several: bool) -> None:
    generator = np.random.default_rng(seed)
    scores = (generator.integers(0, 5, size=(n, k + (not several))) + 0.5) / 5
    if several:
        labels, proba, task = (generator.random((n, k)) < 0.4).astype(int), scores, "multilabel"
    else:
        # of two classes, ties of one are ties of the other
        proba = scores / scores.sum(axis=1, keepdims=True) if k > 1 else scores
        proba = np.column_stack([1 - scores[:, 0], scores[:, 0]]) if k == 1 else proba
        labels, task = generator.integers(k + 1, size=n), "multiclass"
    with sklearn.config_context(**UNCHECKED):
        expected = by_sklearn(labels, proba, task)
    found = validation_scores(labels, proba, task)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-12)), name
    assert mean_auroc(labels, proba, task) == found["val_auroc"]
