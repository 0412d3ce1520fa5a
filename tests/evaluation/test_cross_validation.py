"""Cross-validation on embeddings, and the comparison of backbones by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.models import get_model

import medimg
from medimg import ImageDataset
from medimg.data.splits.kfold import assign_folds
from medimg.errors import DatasetError, LeakageError, TrainingError
from medimg.features.dataset_features import item_features
from medimg.metrics.bootstrap import compute_interval
from tests.models.fakes import Images, changed, classifier, images, state
from tests.models.images import TINY, picture_data, stacks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return picture_data(tmp_path_factory.mktemp("pictures"), patients=20, each=2)


def by_hand(data: ImageDataset, x: Any, estimator: Any, folds: int = 5) -> Any:
    """Out-of-fold probabilities by scikit-learn alone."""
    return cross_val_predict(
        make_pipeline(StandardScaler(), estimator),
        x.astype(np.float64),
        data.labels,
        cv=PredefinedSplit(assign_folds(data.labels, data.patients, data.task, folds, 0)),
        method="predict_proba",
    )


def test_it_is_what_scikit_learn_finds_by_hand(data: ImageDataset) -> None:
    model = classifier(preprocess=TINY)
    x = item_features(model, data).embeddings.numpy()
    found = medimg.cross_validate(model, data, C=0.01, balance=None, n_resamples=50)
    expected = by_hand(data, x, LogisticRegression(C=0.01, max_iter=1000))
    assert np.allclose(found.probabilities, expected, atol=1e-4)
    assert found.metrics["auroc"].value == pytest.approx(roc_auc_score(data.labels, expected[:, 1]))
    assert found.metrics["balanced_accuracy"].value == pytest.approx(
        balanced_accuracy_score(data.labels, expected.argmax(axis=1))
    )
    for n, scores in enumerate(found.fold_metrics):
        part = found.folds == n
        assert scores["auroc"] == pytest.approx(roc_auc_score(data.labels[part], expected[part, 1]))


def test_neighbors_are_what_scikit_learn_finds_by_hand(data: ImageDataset) -> None:
    model = classifier(preprocess=TINY)
    x = item_features(model, data).embeddings.numpy()
    found = medimg.cross_validate(model, data, method="knn", neighbors=3, n_resamples=50)
    expected = by_hand(data, x, KNeighborsClassifier(3, metric="cosine"))
    assert np.allclose(found.probabilities, expected)


def test_every_patient_is_predicted_by_others(data: ImageDataset) -> None:
    found = medimg.cross_validate(classifier(preprocess=TINY), data, folds=4, n_resamples=50)
    for patient in set(data.patients):
        assert len({f for f, p in zip(found.folds, data.patients, strict=True) if p == patient}) == 1
    assert len(found.settings) == 4
    assert np.allclose(found.probabilities.sum(axis=1), 1)
    assert (found.n_units, found.n_patients) == (40, 20)


@pytest.mark.parametrize("method", ["logistic", "sgd", "knn"])
def test_images_pass_once_and_the_model_is_left_alone(data: ImageDataset, method: Any) -> None:
    model = classifier(preprocess=TINY).train()
    before, passed = state(model), []
    model.backbone.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    setting: dict[str, Any] = {"neighbors": 5} if method == "knn" else {"C": 0.1}
    medimg.cross_validate(model, data, method=method, n_resamples=10, **setting)
    assert sum(passed) == len(data)
    assert not changed(before, model.state_dict())
    assert model.training


def test_the_table_and_the_text(data: ImageDataset) -> None:
    found = medimg.cross_validate(classifier(preprocess=TINY), data, folds=3, C=0.1, n_resamples=100)
    table = found.to_pandas()
    assert list(table.columns) == ["value", "low", "high", "fold_1", "fold_2", "fold_3"]
    low, value, high = table.loc["auroc", ["low", "value", "high"]].to_numpy(float)
    assert low <= value <= high
    assert "3 folds of 20 patients, auroc" in repr(found)
    assert "SENTINEL" not in repr(found) + table.to_csv()


def test_scores_of_patients(data: ImageDataset) -> None:
    model = classifier(preprocess=TINY)
    each = medimg.cross_validate(model, data, C=0.1, n_resamples=10)
    whole = medimg.cross_validate(model, data, C=0.1, n_resamples=10, unit="patient")
    assert (each.n_units, whole.n_units) == (40, 20)
    means = [each.probabilities[np.array(data.patients) == p, 1].mean() for p in dict.fromkeys(data.patients)]
    labels = [int(p.split("-")[1]) % 2 for p in dict.fromkeys(data.patients)]
    assert whole.metrics["auroc"].value == pytest.approx(roc_auc_score(labels, means))


def test_several_labels_and_bags() -> None:
    labels = np.array([[0, 1], [1, 1], [1, 0], [0, 0]] * 6, np.float32)
    several = _with_series(Images(labels, task="multilabel"))
    found = medimg.cross_validate(classifier(task="multilabel"), several, folds=3, C=0.1, n_resamples=20)
    assert found.probabilities.shape == (24, 2)
    bags = _with_series(images(18, unit="series", lengths=(1, 3, 2) * 6))
    found = medimg.cross_validate(classifier(pool="mean"), bags, folds=3, C=0.1, n_resamples=20)
    assert (found.unit, found.n_units) == ("series", 18)


def _with_series(items: Images) -> Any:
    names = tuple(f"1.{n}" for n in range(len(items)))
    items.series_uids = items.sources = names  # type: ignore[attr-defined]  # what evaluation asks for as well
    return items


def test_unsound_requests(data: ImageDataset) -> None:
    model = classifier(preprocess=TINY)
    model.backbone.register_forward_pre_hook(lambda *_: pytest.fail("a picture passed"))
    with pytest.raises(DatasetError, match="folds"):
        medimg.cross_validate(model, data, folds=1)
    with pytest.raises(LeakageError, match="20 patient"):
        medimg.cross_validate(model, data, folds=21)
    with pytest.raises(DatasetError, match="ci must be"):
        medimg.cross_validate(model, data, ci=95)
    with pytest.raises(DatasetError, match="ci must be"):
        medimg.cross_validate(model, data, ci="0.95")  # type: ignore[arg-type]  # refused
    with pytest.raises(DatasetError, match="n_resamples must be"):
        medimg.cross_validate(model, data, n_resamples=0)
    with pytest.raises(DatasetError, match="n_resamples must be"):
        medimg.cross_validate(model, data, n_resamples=2.5)  # type: ignore[arg-type]  # refused
    with pytest.raises(DatasetError, match="unit must be"):
        medimg.cross_validate(model, data, unit="study")  # type: ignore[arg-type]  # refused
    with pytest.raises(DatasetError, match="unit must be"):
        medimg.compare(["squeezenet1_1"], data, unit="study")  # type: ignore[arg-type]  # refused
    with pytest.raises(TrainingError, match="method"):
        medimg.cross_validate(model, data, method="svm")  # type: ignore[arg-type]  # refused
    with pytest.raises(TrainingError, match=r"C=1.0 has no effect with method='knn': pass neighbors="):
        medimg.cross_validate(model, data, method="knn", C=1.0)
    with pytest.raises(TrainingError, match=r"neighbors=3 has no effect with method='logistic': pass C="):
        medimg.cross_validate(model, data, neighbors=3)
    with pytest.raises(TrainingError, match="weights= names 'resnet_18', which are no backbones"):
        medimg.compare(["squeezenet1_1"], data, weights={"resnet_18": None})
    with pytest.raises(TrainingError, match="with_preprocess"):
        medimg.cross_validate(classifier(), data)
    with pytest.raises(TrainingError, match="attention"):
        medimg.cross_validate(classifier(pool="attention"), images(8, unit="series"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found, folder = {}, tmp_path_factory.mktemp("weights")
    for name in ("squeezenet1_1", "mobilenet_v3_small"):
        found[name] = folder / f"{name}.safetensors"
        save_file(get_model(name, weights=None).state_dict(), found[name])
    return found


FAILING = ("resnet18", "maxvit_t", "nonsense")


@pytest.fixture(scope="module")
def compared(
    data: ImageDataset, weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> medimg.Comparison:
    """Two networks, and three that can't be compared."""
    folder = tmp_path_factory.mktemp("compared")
    chosen = {**weights, "resnet18": folder / "absent.pth", "maxvit_t": None}
    names = [*weights, *FAILING]
    return medimg.compare(names, data, weights=chosen, folds=3, C=0.1, n_resamples=100, cache=folder / "kept")


def test_backbones_side_by_side(compared: medimg.Comparison, weights: dict[str, Path]) -> None:
    found = compared
    table = found.to_pandas().set_index("backbone")
    assert set(table.index) == {*weights, *FAILING}
    scored = table[table["reason"] == ""]
    assert set(scored.index) == set(weights)
    assert list(scored["auroc"]) == sorted(scored["auroc"], reverse=True)
    assert scored["behind"].iloc[0] == 0
    assert np.isnan(scored["behind_low"].iloc[0])
    assert (scored["behind_low"] <= scored["behind"]).iloc[1:].all()
    pair = [one.scores for one in found.candidates if one.scores is not None]
    samples = pair[0].samples - pair[1].samples
    few = compute_interval(0.0, samples, 0.95, n_patients=20)
    assert (scored["behind_low"].iloc[1], scored["behind_high"].iloc[1]) == (few.low, few.high)
    assert (scored["images_per_second"] > 0).all()
    assert table.loc["squeezenet1_1", "parameters"] == pytest.approx(0.7225, abs=0.001)
    assert table.loc["squeezenet1_1", "megabytes"] == pytest.approx(2.89, abs=0.01)
    failed = table.loc[list(FAILING), "reason"]
    assert failed.str.contains("WeightsUnavailableError|PreprocessError|TrainingError").all()
    assert found.best.backbone == table.index[0]
    assert "Comparison(5 backbones)" in repr(found)
    assert "SENTINEL" not in repr(found)


def test_one_backbone_is_what_cross_validation_finds(data: ImageDataset, weights: dict[str, Path]) -> None:
    found = medimg.compare(["squeezenet1_1"], data, weights=weights, folds=3, C=0.1, n_resamples=50)
    model = medimg.TransferClassifier("squeezenet1_1", classes=data.classes, weights=weights["squeezenet1_1"])
    model.preprocess = data.preprocess
    expected = medimg.cross_validate(model, data, folds=3, C=0.1, n_resamples=50)
    assert found.best.scores is not None
    assert np.allclose(found.best.scores.probabilities, expected.probabilities, atol=1e-4)
    assert found.best.scores.metrics["auroc"] == expected.metrics["auroc"]


def test_bags_of_a_part_of_a_data_set(tmp_path: Path, weights: dict[str, Path]) -> None:
    for n, label in enumerate("ab"):
        stacks(tmp_path / "all" / label, 3, start=10 * n)
    part = ImageDataset.from_folder(tmp_path / "all", TINY, unit="series").subset([0, 1, 3, 4])
    found = medimg.compare(["squeezenet1_1"], part, weights=weights, folds=2, C=0.1, n_resamples=10)
    assert found.best.scores is not None
    assert (found.best.scores.unit, found.best.scores.n_units) == ("series", 4)


def test_a_series_of_two_patients_is_refused(tmp_path: Path, weights: dict[str, Path]) -> None:
    for label in "ab":
        stacks(tmp_path / "all" / label, 2)
    twice = ImageDataset.from_folder(tmp_path / "all", TINY, patient=r"(\w/\d)", file_patients="ignore")
    with pytest.raises(LeakageError, match="different patients share"):
        medimg.compare(["squeezenet1_1"], twice, weights=weights, folds=2, C=0.1)


def test_pictures_are_read_once(tmp_path: Path, weights: dict[str, Path], monkeypatch: Any) -> None:
    from medimg.data import image_loader

    read = []
    before = image_loader.ImageLoader.render

    def noted(*arguments: Any) -> Any:
        read.append(1)
        return before(*arguments)

    monkeypatch.setattr(image_loader.ImageLoader, "render", noted)
    data = picture_data(tmp_path / "pictures", patients=20, each=2)
    other = data.with_preprocess(data.preprocess.replace(std=(0.5, 0.5, 0.5))).subset(range(20))
    medimg.compare(list(weights), other, weights=weights, folds=2, C=0.1, n_resamples=10)
    assert len(read) == 20


def test_nothing_could_be_scored(data: ImageDataset, tmp_path: Path) -> None:
    found = medimg.compare(["resnet18"], data, weights=tmp_path / "absent.pth", folds=2)
    with pytest.raises(DatasetError, match="no backbone"):
        _ = found.best
    assert len(found.to_pandas()) == 1
    found.plot()
    unsound: tuple[Any, ...] = ([], "resnet18", [3])
    for nothing in unsound:
        with pytest.raises(DatasetError, match="backbones"):
            medimg.compare(nothing, data)


def test_the_plot(compared: medimg.Comparison, weights: dict[str, Path], tmp_path: Path) -> None:
    found = compared
    before = matplotlib.get_backend()
    axes = found.plot()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel().startswith("AUROC")
    legend = axes.get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert all(any(name in text for text in texts) for name in weights)
    assert matplotlib.get_backend() == before
    assert found.plot(axes) is axes
