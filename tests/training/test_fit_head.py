"""A head fitted on embeddings: it predicts what the regression does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import medimg
from medimg import ImageDataset
from medimg.data.splits.kfold import assign_folds, split_by_fold
from medimg.errors import LeakageError, TrainingError
from medimg.features.dataset_features import item_features
from medimg.models.backbones.heads import head_logits
from medimg.models.probabilities import probabilities
from medimg.training._logistic_regression import LinearProbe, log_loss
from medimg.training.class_weights import class_weights
from medimg.training.linear_probe import STRENGTHS, LabeledEmbeddings, ProbeSearch
from tests.models.fakes import Images, changed, classifier, images, state
from tests.models.images import TINY, picture_data
from tests.models.small_network import small_classifier


@pytest.fixture
def data(tmp_path: Path) -> ImageDataset:
    return picture_data(tmp_path / "pictures", patients=12, each=3)


@pytest.fixture
def three(tmp_path: Path) -> ImageDataset:
    return picture_data(tmp_path / "three", patients=12, each=2, classes=3)


def reference(x: Any, y: Any, C: float, weight: str | None = None) -> Any:
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=C, class_weight=weight, max_iter=5000, tol=1e-8)
    )
    return model.fit(x.astype(np.float64), y)


@pytest.mark.parametrize("make", [classifier, lambda **fields: small_classifier("resnet18", **fields)])
@pytest.mark.parametrize("C", [0.001, 0.1])
@pytest.mark.parametrize("balance", ["loss", None])
def test_two_classes_are_the_regression(data: ImageDataset, make: Any, C: float, balance: Any) -> None:
    model = make(preprocess=TINY)
    part = data.subset(range(24))
    fit = medimg.fit_head(model, part, C=C, balance=balance)
    x = item_features(model, data).embeddings.numpy()
    regression = reference(x[:24], part.labels, C, "balanced" if balance else None)
    expected = regression.predict_proba(x.astype(np.float64))
    assert np.allclose(model.predict_proba(data), expected, atol=1e-3)
    assert (fit.C, fit.tried, fit.items) == (C, (), 24)


def test_folded_weights_give_the_same_probabilities(data: ImageDataset) -> None:
    model = small_classifier("resnet18", preprocess=TINY)
    medimg.fit_head(model, data, C=0.01)
    x = item_features(model, data).embeddings.numpy()
    probe = LinearProbe("multiclass", 2, "logistic", balanced=True, seed=0)
    fit = next(probe.path(x, data.labels, [0.01]))
    scaler = StandardScaler().fit(x.astype(np.float64))
    plain = LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000)
    plain.fit(scaler.transform(x.astype(np.float64)), data.labels)
    expected = plain.predict_proba(scaler.transform(x.astype(np.float64)))
    assert np.allclose(fit.probabilities(x), expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        logits = head_logits(model.head, torch.from_numpy(x))
    assert np.allclose(probabilities(logits, "multiclass"), expected, rtol=0, atol=1e-6)
    # the images pass through the network once more, in another order of memory
    assert np.allclose(model.predict_proba(data), expected, rtol=0, atol=1e-4)


def test_three_classes(three: ImageDataset) -> None:
    model = small_classifier(preprocess=TINY, classes=("a", "b", "c"))
    medimg.fit_head(model, three, C=0.1)
    x = item_features(model, three).embeddings.numpy()
    expected = reference(x, three.labels, 0.1, "balanced").predict_proba(x.astype(np.float64))
    assert np.allclose(model.predict_proba(three), expected, atol=2e-3)


def test_several_labels_are_one_regression_each() -> None:
    labels = np.array([[0, 1], [1, 1], [1, 0], [0, 0]] * 4, np.float32)
    items = Images(labels, task="multilabel")
    model = small_classifier(task="multilabel")
    medimg.fit_head(model, items, C=0.1, balance=None)
    x = item_features(model, items).embeddings.numpy()
    for k in range(2):
        expected = reference(x, labels[:, k], 0.1).predict_proba(x.astype(np.float64))[:, 1]
        assert np.allclose(model.predict_proba(items)[:, k], expected, atol=2e-3)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_bags_are_pooled(pool: str) -> None:
    items = images(12, unit="series", lengths=(2, 3, 1) * 4)
    model = small_classifier(pool=pool)
    medimg.fit_head(model, items, C=0.1, balance=None)
    x = item_features(model, items).pooled(pool).numpy()
    expected = reference(x, items.labels, 0.1).predict_proba(x.astype(np.float64))
    assert np.allclose(model.predict_proba(items), expected, atol=2e-3)


def test_attention_is_refused() -> None:
    with pytest.raises(TrainingError, match="fine_tune"):
        medimg.fit_head(small_classifier(pool="attention"), images(4, unit="series"))


def test_only_the_head_changes(data: ImageDataset) -> None:
    model = small_classifier("resnet18", preprocess=TINY).train()
    before = state(model)
    medimg.fit_head(model, data, C=0.1)
    assert changed(before, model.state_dict()) == {"head.weight", "head.bias"}
    assert not model.training


def test_adam_on_batches_finds_nearly_the_same(data: ImageDataset) -> None:
    x = item_features(small_classifier(preprocess=TINY), data).embeddings.numpy()
    for method in ("logistic", "sgd"):
        probe = LinearProbe("multiclass", 2, method, balanced=True, seed=0)
        *_, fit = probe.path(x, data.labels, [0.001, 0.01])
        if method == "logistic":
            expected = fit.probabilities(x)
    assert np.abs(fit.probabilities(x) - expected).max() < 0.05


def gaussians(n: int = 240, features: int = 20, classes: int = 2, seed: int = 0) -> LabeledEmbeddings:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    x = rng.normal(size=(n, features)) + 0.7 * np.eye(classes, features)[labels]
    return LabeledEmbeddings(x.astype(np.float32), labels, [f"{m // 3}" for m in range(n)])


@pytest.mark.parametrize("method", ["logistic", "knn"])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_setting_is_selected_by_inner_folds(method: str, classes: int) -> None:
    data = gaussians(classes=classes)
    probing = ProbeSearch("multiclass", ("a", "b", "c")[:classes], method)
    chosen = probing.fit(data)
    best = min(chosen.tried, key=lambda row: row["loss"])
    limit = best["loss"] + (best["standard_error"] if method == "logistic" else 0)
    assert chosen.setting == min(row[probing.name] for row in chosen.tried if row["loss"] <= limit)
    alone = ProbeSearch("multiclass", ("a", "b", "c")[:classes], method, chosen.setting).fit(data)
    assert np.allclose(chosen.fit.probabilities(data.x), alone.fit.probabilities(data.x), atol=2e-3)


def test_the_loss_that_chooses_is_that_of_held_out_patients() -> None:
    data = gaussians()
    chosen = ProbeSearch("multiclass", ("a", "b"), setting=(0.01, 0.1)).fit(data)
    fold = assign_folds(data.labels, data.patients, "multiclass", 3, 0)
    proba = np.zeros((len(data.labels), 2))
    for train, test in split_by_fold(fold):
        assert not {data.patients[n] for n in train} & {data.patients[n] for n in test}
        proba[test] = reference(data.x[train], data.labels[train], 0.1).predict_proba(data.x[test])
    assert chosen.tried[1]["loss"] == pytest.approx(sklearn_log_loss(data.labels, proba), abs=1e-4)


def test_trying_stops_where_the_loss_rises() -> None:
    rng = np.random.default_rng(0)
    noise = LabeledEmbeddings(
        rng.normal(size=(120, 40)).astype(np.float32), rng.integers(2, size=120), [str(n) for n in range(120)]
    )
    chosen = ProbeSearch("multiclass", ("a", "b")).fit(noise)
    assert chosen.setting == STRENGTHS[0]
    assert len(chosen.tried) == 3


def test_validation_data_choose(data: ImageDataset) -> None:
    train, val = medimg.split(data, fractions=(0.6, 0.4))
    fit = medimg.fit_head(small_classifier(preprocess=TINY), train, val, C=(0.001, 0.1))
    assert [row["C"] for row in fit.tried] == [0.001, 0.1]
    assert fit.best is not None
    assert fit.best["log_loss"] <= min(row["log_loss"] + row["standard_error"] for row in fit.tried)
    assert list(fit.to_pandas().columns) == ["C", "log_loss", "standard_error", "auroc"]
    with pytest.raises(LeakageError):
        medimg.fit_head(small_classifier(preprocess=TINY), data, val)


def test_a_checkpoint_tells_how_the_head_was_fitted(data: ImageDataset, tmp_path: Path) -> None:
    model = small_classifier(preprocess=TINY)
    fit = medimg.fit_head(model, data, C=(0.01, 0.1))
    loaded = medimg.load(model.save(tmp_path / "model.safetensors"))
    assert loaded.training_summary is not None
    assert loaded.training_summary["fitted"] == "head"
    assert loaded.training_summary["C"] == fit.C
    assert "SENTINEL" not in str(loaded.training_summary)
    assert np.array_equal(loaded.predict_proba(data), model.predict_proba(data))


def test_the_same_seed_gives_the_same_head(data: ImageDataset) -> None:
    heads = []
    for _ in range(2):
        model = small_classifier(preprocess=TINY)
        medimg.fit_head(model, data, method="sgd", C=(0.01, 0.1), seed=3)
        heads.append(model.head.weight.detach().clone())
    assert torch.equal(*heads)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "knn"}, "method"),
        ({"C": 0.0}, "C must be a number, above 0"),
        ({"C": ()}, "C must be a number above 0, or several"),
        ({"C": "big"}, "C must be a number"),
        ({"C": float("nan")}, "C must be a number, above 0"),
        ({"inner_folds": 1}, "inner_folds"),
        ({"balance": "sampler"}, "balance"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_unsound_settings_are_refused_before_any_image_passes(options: dict[str, Any], match: str) -> None:
    model = small_classifier()
    model.backbone.register_forward_pre_hook(lambda *_: pytest.fail("an image passed"))
    with pytest.raises(TrainingError, match=match):
        medimg.fit_head(model, images(8), **options)


def test_too_few_patients_to_choose_by(data: ImageDataset) -> None:
    few = data.subset([0, 1, 2, 3, 4, 5])  # one patient of each class
    with pytest.raises(TrainingError, match="pass C="):
        medimg.fit_head(small_classifier(preprocess=TINY), few)
    medimg.fit_head(small_classifier(preprocess=TINY), few, C=0.1)


def test_features_that_never_change_count_for_nothing() -> None:
    data = gaussians()
    x = np.concatenate([data.x, np.full((len(data.x), 2), 7.25, np.float32)], axis=1)
    fits = [
        next(LinearProbe("multiclass", 2, "logistic", balanced=False, seed=0).path(some, data.labels, [0.1]))
        for some in (data.x, x)
    ]
    assert np.allclose(fits[0].probabilities(data.x), fits[1].probabilities(x), atol=1e-4)
    assert np.allclose(fits[1].weight[:, -2:], 0)


def test_a_class_without_example_gets_no_probability() -> None:
    data = gaussians()
    fit = next(
        LinearProbe("multiclass", 3, "logistic", balanced=True, seed=0).path(data.x, data.labels, [1.0])
    )
    assert fit.probabilities(data.x)[:, 2].max() < 1e-6
    one = np.zeros_like(data.labels)
    fit = next(LinearProbe("multiclass", 2, "logistic", balanced=True, seed=0).path(data.x, one, [1.0]))
    assert fit.probabilities(data.x)[:, 0].min() > 0.999
    labels = np.stack([data.labels, one], axis=1).astype(np.float32)
    fit = next(LinearProbe("multilabel", 2, "logistic", balanced=True, seed=0).path(data.x, labels, [1.0]))
    assert fit.probabilities(data.x)[:, 1].max() < 1e-6


def test_weighted_losses() -> None:
    labels, proba = np.array([0, 0, 0, 1]), np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    weights = class_weights(labels, "multiclass", 2, balanced=True)
    expected = sklearn_log_loss(labels, proba, sample_weight=weights[labels])
    names = ["a", "b", "c", "d"]
    assert log_loss(labels, proba, "multiclass", weights, names)[0] == pytest.approx(expected)
    several = np.eye(2)[labels]
    assert log_loss(several, proba, "multilabel", np.ones((2, 2)), names)[0] == pytest.approx(
        np.mean([sklearn_log_loss(several[:, k], proba[:, k]) for k in range(2)])
    )


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_the_standard_error_of_a_loss_is_that_of_resampled_patients(task: str) -> None:
    rng = np.random.default_rng(0)
    labels, patients = rng.integers(2, size=300), np.array([f"{n // 3}" for n in range(300)])
    proba = rng.dirichlet((2, 2), size=300)
    truth = np.eye(2)[labels] if task == "multilabel" else labels
    weights = np.array([[0.7, 1.5], [2.0, 0.5]]) if task == "multilabel" else np.array([0.7, 2.0])
    _, error = log_loss(truth, proba, task, weights, list(patients))
    losses = []
    for _ in range(300):
        drawn = (rng.integers(100, size=100)[:, None] * 3 + np.arange(3)).ravel()
        losses.append(log_loss(truth[drawn], proba[drawn], task, weights, list(patients[drawn]))[0])
    assert error == pytest.approx(np.std(losses), rel=0.15)


def test_folds_keep_patients_together() -> None:
    data = gaussians(90)
    fold = assign_folds(data.labels, data.patients, "multiclass", 5, 1)
    assert sorted(set(fold)) == [0, 1, 2, 3, 4]
    for patient in set(data.patients):
        assert len({f for f, p in zip(fold, data.patients, strict=True) if p == patient}) == 1
    several = np.eye(2)[data.labels]
    assert len(set(assign_folds(several, data.patients, "multilabel", 5, 1))) == 5
    with pytest.raises(LeakageError, match="folds"):
        assign_folds(data.labels[:6], data.patients[:6], "multiclass", 3, 0)
