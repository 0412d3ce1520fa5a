"""Modules and functions of others, evaluated."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import medimg
from medimg.errors import DatasetError, TrainingError
from tests.evaluation.fakes import FakeDataset, FakeRecipe, make_pair


class Net(nn.Module):
    """A network with batch normalization and dropout, which differ between the modes."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(12), nn.Dropout(0.5))
        self.head = nn.Linear(12, outputs)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(images.shape))
        found: torch.Tensor = self.head(self.body(images.flatten(0, -4)))
        return found.mean(dim=0, keepdim=True) if images.ndim == 5 else found


def data(
    classes: tuple[str, ...] = ("a", "b", "c"), task: Any = "multiclass", unit: str = "slice"
) -> FakeDataset:
    _, dataset = make_pair(task, classes, n_patients=6, per_patient=2, size=16)
    object.__setattr__(dataset, "unit", unit)
    return dataset


def evaluate(model: Any, dataset: FakeDataset, **options: Any) -> medimg.Report:
    given = {"classes": dataset.classes, "outputs": "logits", "n_resamples": 5, "unit": "image", **options}
    return medimg.evaluate(model, dataset, **given)


def columns(report: medimg.Report) -> Any:
    return report.predictions[[f"p_{name}" for name in report.classes]].to_numpy()


def expected(net: Net, dataset: FakeDataset, activation: Any) -> Any:
    net.eval()
    with torch.no_grad():
        images = torch.stack([dataset[n][0] for n in range(len(dataset))])
        return activation(net(images).double()).numpy()


@pytest.mark.parametrize("training", [True, False])
def test_logits_of_a_module(training: bool) -> None:
    torch.manual_seed(0)
    dataset, net = data(), Net(3)
    wanted = expected(net, dataset, lambda x: x.softmax(1))
    net.train(training)
    net.body[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    report = evaluate(net, dataset, batch_size=5, device="cpu")
    np.testing.assert_allclose(columns(report), wanted, atol=1e-6)
    assert [part.training for part in (net, net.body[2], net.head)] == [training, False, training]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.head(torch.ones(1, 12)).sum().backward()
    assert report.provenance["model"] == {"backbone": "Net", "task": "multiclass", "parameters": 63}
    assert "calibration" not in report.provenance
    assert any("not known which images" in note for note in report.notes)


def test_labels_pass_through_a_sigmoid() -> None:
    dataset, net = data(task="multilabel"), Net(3)
    np.testing.assert_allclose(
        columns(evaluate(net, dataset)), expected(net, dataset, torch.sigmoid), atol=1e-6
    )


@pytest.mark.parametrize("squeeze", [True, False])
def test_one_output_is_the_second_of_two_classes(squeeze: bool) -> None:
    dataset, net = data(("no", "yes")), Net(1)
    wanted = expected(net, dataset, torch.sigmoid)[:, 0]
    model = (lambda images: net(images)[:, 0]) if squeeze else net
    np.testing.assert_allclose(columns(evaluate(model, dataset))[:, 1], wanted, atol=1e-6)


def test_a_function_of_probabilities() -> None:
    dataset = data()

    def constant(images: torch.Tensor) -> Any:
        return np.tile(np.array([0.2, 0.5, 0.3], np.float32), (len(images), 1))

    report = evaluate(constant, dataset, outputs="probabilities")
    assert report.provenance["model"]["backbone"] == "constant"
    np.testing.assert_allclose(columns(report), [[0.2, 0.5, 0.3]] * len(dataset), atol=1e-6)


def test_series_come_one_at_a_time() -> None:
    dataset, net = data(unit="series"), Net(3)
    report = evaluate(net, dataset, unit="patient")
    assert set(net.seen) == {(1, 4, 3, 16, 16)}
    assert report.n_images == len(dataset)


def test_scores_are_those_of_its_probabilities() -> None:
    dataset, net = data(), Net(3)
    probabilities = expected(net, dataset, lambda x: x.softmax(1))
    found = evaluate(net, dataset, unit="patient")
    scored = medimg.score(
        dataset.labels, probabilities, classes=dataset.classes, patients=dataset.patients, n_resamples=5
    )
    pd.testing.assert_frame_equal(found.to_pandas(), scored.to_pandas(), atol=1e-6)


def test_a_classifier_and_its_network_are_scored_alike() -> None:
    recipe = medimg.Preprocess(size=32)
    model = medimg.TransferClassifier("squeezenet1_1", classes=["a", "b"], weights=None, preprocess=recipe)
    _, fake = make_pair(classes=("a", "b"), n_patients=3, per_patient=1)
    object.__setattr__(fake, "preprocess", recipe)
    wanted = medimg.evaluate(model, fake, n_resamples=5)
    found = medimg.evaluate(
        model.eval().forward,
        fake,
        classes=["a", "b"],
        outputs="logits",
        preprocess=recipe,
        n_resamples=5,
    )
    pd.testing.assert_frame_equal(found.to_pandas(), wanted.to_pandas())
    with pytest.raises(DatasetError, match="found classes, outputs with a TransferClassifier"):
        medimg.evaluate(model, fake, classes=["a", "b"], outputs="logits")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": None}, "expected classes="),
        ({"outputs": None}, 'outputs="logits" or "probabilities"'),
        ({"outputs": "scores"}, "outputs must be"),
        ({"classes": "abc"}, "list of names"),
        ({"classes": ["b", "a", "c"]}, "same order"),
        ({"preprocess": FakeRecipe(fingerprint="feed")}, "differ in preprocessing"),
        ({"device": "gpu"}, "device must be"),
        ({"saliency": True}, "saliency"),
    ],
)
def test_what_is_refused_before_anything_is_predicted(options: dict[str, Any], message: str) -> None:
    def untouched(_: torch.Tensor) -> torch.Tensor:
        pytest.fail("something was predicted")

    with pytest.raises(DatasetError, match=message):
        evaluate(untouched, data(), **options)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: {"logits": images}, "returned a dict"),
        (lambda images: images, "one column for each class"),
        (lambda images: torch.zeros(len(images), 2), "one column for each class"),
        (lambda images: torch.zeros((len(images), 3), dtype=torch.int64), "values of type torch.int64"),
        (lambda images: np.array([["a", "b", "c"]] * len(images)), "values of type <U1"),
        (lambda images: torch.full((len(images), 3), torch.nan), "not finite"),
    ],
)
def test_outputs_that_are_refused(function: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        evaluate(function, data())


def test_logits_are_not_taken_for_probabilities() -> None:
    with pytest.raises(TrainingError, match="expected probabilities"):
        evaluate(lambda images: images.new_full((len(images), 3), 4.0), data(), outputs="probabilities")


def test_modes_are_restored_after_an_error() -> None:
    net = Net(2).train()
    with pytest.raises(TrainingError):
        evaluate(net, data())
    assert net.training


def test_what_is_no_model() -> None:
    with pytest.raises(DatasetError, match="expected a TransferClassifier"):
        medimg.evaluate(object(), data())  # type: ignore[arg-type]  # on purpose
    with pytest.raises(DatasetError):
        medimg.evaluate(Net, data(), classes=["a"], outputs="logits")  # a class, not a module


def test_models_of_others_are_compared() -> None:
    torch.manual_seed(0)
    model, dataset = make_pair("multiclass", ("a", "b", "c"), n_patients=6, per_patient=2, size=16)
    given: dict[str, Any] = {"unit": "image", "n_resamples": 5}
    named: dict[str, Any] = {"classes": dataset.classes, "outputs": "logits"}
    net, other = Net(3), Net(3)
    values = [
        *(evaluate(one, dataset, **given).metrics["auroc"].value for one in (net, other)),
        medimg.evaluate(model, dataset, **given).metrics["auroc"].value,
    ]
    several: list[Any] = [net, other, model]
    for first, second in ((0, 1), (2, 0), (0, 2)):
        found = medimg.compare_models(several[first], several[second], dataset, **given, **named)
        shown = found.differences["auroc"]
        assert (shown.first, shown.second) == pytest.approx((values[first], values[second]))
    same = medimg.compare_models(net, net.eval().forward, dataset, **given, **named)
    assert same.differences["auroc"].value == 0
    assert any("not known which images" in note for note in same.notes)
    with pytest.raises(DatasetError, match="does not say what it returns"):
        medimg.compare_models(model, net, dataset, **given)
    with pytest.raises(DatasetError, match="found classes, outputs with a"):
        medimg.compare_models(model, model, dataset, **given, **named)
    with pytest.raises(DatasetError, match="expected a TransferClassifier"):
        medimg.compare_models(model, 3, dataset, **given)  # type: ignore[arg-type]  # refused
