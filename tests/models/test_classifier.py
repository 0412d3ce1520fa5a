from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medimg import TransferClassifier
from medimg.errors import MedimgError, PreprocessError, TrainingError
from medimg.models.backbones.heads import head_logits
from tests.models.fakes import classifier


@pytest.mark.parametrize(
    ("classes", "task"),
    [
        ("ab", "multiclass"),
        ((), "multiclass"),
        (("a",), "multiclass"),
        (("a", "a"), "multiclass"),
        (("a", ""), "multiclass"),
        ((0, 1), "multiclass"),
        (("a", "b"), "regression"),
        ((), "multilabel"),
    ],
)
def test_unsound_classes(classes: Any, task: str) -> None:
    with pytest.raises(TrainingError, match=r"class|task"):
        classifier(classes=classes, task=task)


def test_one_label_is_enough_for_multilabel() -> None:
    assert classifier(classes=("nodule",), task="multilabel").head.weight.shape[0] == 1


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (0, 3, 64, 64), (2, 0, 3, 64, 64)])
def test_shapes_that_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PreprocessError, match="found"):
        classifier(pool="mean")(torch.zeros(shape))


def test_bags_need_pooling() -> None:
    with pytest.raises(PreprocessError, match='pool="none" takes single images'):
        classifier()(torch.zeros(1, 2, 3, 64, 64))


@pytest.mark.parametrize(
    "mask", [torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool)], ids=["shape", "empty"]
)
def test_unsound_masks(mask: torch.Tensor) -> None:
    with pytest.raises(PreprocessError, match="a mask must be"):
        classifier(pool="mean")(torch.zeros(1, 2, 3, 64, 64), mask)


def test_unknown_pool() -> None:
    with pytest.raises(TrainingError, match="pool must be"):
        classifier(pool="median")


@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
def test_pooling_a_bag(pool: str) -> None:
    model = classifier(pool=pool).eval()
    x = torch.randn(2, 3, 3, 64, 64)
    with torch.no_grad():
        logits = model(x)
        slices = torch.stack([model.embed(bag) for bag in x])
    assert logits.shape == (2, 2)
    if pool == "attention":
        assert model.attention is not None
        weights = model.attention.weights(slices)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
        pooled = (weights[..., None] * slices).sum(dim=1)
    else:
        pooled = slices.mean(dim=1) if pool == "mean" else slices.max(dim=1).values
    torch.testing.assert_close(logits, head_logits(model.head, pooled), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
def test_masked_slices_count_for_nothing(pool: str) -> None:
    model = classifier("resnet18", pool=pool).train()
    x = torch.randn(2, 3, 3, 64, 64)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    junk = x.clone()
    junk[0, 2] = 1e3
    means = []
    outputs = []
    for bags in (x, junk):
        fresh = classifier("resnet18", pool=pool).train()
        outputs.append(fresh(bags, mask))
        means.append(fresh.backbone.get_buffer("bn1.running_mean").clone())
    assert torch.equal(*outputs)
    assert torch.equal(*means)  # padding doesn't move batch statistics
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x[:1], mask[:1]), model(x[:1, :2]), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(x[:1], mask[:1]), model(x[:1]), rtol=1e-4, atol=1e-5)


def test_single_pictures_pass_a_pooling_model() -> None:
    model = classifier(pool="mean").eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(x[:, None]), rtol=1e-4, atol=1e-5)


def test_repr_is_short_and_tells_what_is_frozen() -> None:
    model = classifier()
    assert "0.0 % frozen" in repr(model)
    assert "99.9 % frozen" in repr(model.freeze())
    many = classifier(classes=tuple(f"c{n}" for n in range(40)))
    assert "40 classes" in repr(many)
    assert len(repr(many)) < 200


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "vgg11"])
def test_training_starts_from_nearly_equal_probabilities(name: str) -> None:
    model = classifier(name).eval()
    assert model.head.bias is not None
    assert not model.head.bias.any()
    assert float(model.head.weight.detach().std()) == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("wrong", [3, [1], np.ones(2), object()])
def test_other_types_are_errors_of_medimg(wrong: Any) -> None:
    for call in (
        lambda: classifier(wrong),
        lambda: classifier(preprocess=wrong),
        lambda: classifier(weights=wrong),
        lambda: classifier().freeze(wrong),
        lambda: classifier().save(wrong),
        lambda: TransferClassifier.load(wrong),
    ):
        with pytest.raises(MedimgError):
            call()
