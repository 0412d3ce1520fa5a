from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

import medimg
from medimg import Preprocess, TransferClassifier, fine_tune, register_backbone
from medimg.errors import (
    CheckpointError,
    MedimgWarning,
    PreprocessError,
    TrainingError,
    WeightsUnavailableError,
)
from medimg.models.backbones import registry
from tests.models.fakes import changed, classifier, images, state


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves a network behind."""
    monkeypatch.setattr(registry, "_OWN", {})


def small(features: int = 6, *, head: int | None = 10) -> nn.Module:
    torch.manual_seed(3)
    layers: list[nn.Module] = [
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, features, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, *([nn.Linear(features, head)] if head else []))


def own(name: str = "own", **fields: Any) -> TransferClassifier:
    return TransferClassifier(name, classes=("a", "b", "c"), **fields)


def test_the_last_layer_is_the_head() -> None:
    register_backbone("own", small, size=48, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    model = own()
    assert model.preprocess == Preprocess(size=48, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    assert model.head.weight.shape == (3, 6)
    assert model.weights_name == "as built"
    x = torch.randn(2, 3, 48, 48)
    assert model.eval()(x).shape == (2, 3)
    built = small()
    assert isinstance(built, nn.Sequential)
    with torch.no_grad():
        assert torch.equal(model.embed(x), built.eval()[:-1](x))
    assert not changed(state(model.backbone), state(built[:-1]))


def test_the_head_by_its_name() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small(head=None)
            self.classify = nn.Linear(6, 9)
            self.auxiliary = nn.Linear(4, 9)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.classify(self.body(x))
            return logits

    register_backbone("own", TwoHeads, size=48, head="classify")
    assert own()(torch.zeros(2, 3, 48, 48)).shape == (2, 3)
    register_backbone("own", TwoHeads, size=48)
    with pytest.raises(
        TrainingError, match=r"returns \(1, 9\) for one image, expected an embedding \(1, 4\)"
    ):
        own()
    register_backbone("own", TwoHeads, size=48, head="body")
    with pytest.raises(TrainingError, match=r"layer 'body' as its head; found .*'auxiliary' last"):
        own()


def test_no_head() -> None:
    register_backbone("own", lambda: small(head=None), size=48, features=6)
    model = own(pool="attention")
    assert model.eval()(torch.zeros(2, 5, 3, 48, 48)).shape == (2, 3)
    assert not changed(state(model.backbone), state(small(head=None)))
    register_backbone("own", lambda: small(head=None), size=48, features=7)
    with pytest.raises(
        TrainingError, match=r"returns \(1, 6\) for one image, expected an embedding \(1, 7\)"
    ):
        own()


def test_activations_before_a_convolutional_head_stay() -> None:
    def convolutional() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 9, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    register_backbone("own", convolutional, size=16)
    model = own()
    assert [type(m) for m in model.backbone.children()][:4] == [nn.Conv2d, nn.ReLU, nn.Identity, nn.Identity]
    assert isinstance(model.head, nn.Conv2d)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_training_freezing_and_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_backbone("own", small, size=64)
    model = TransferClassifier("own", classes=("a", "b")).freeze(upto="stem")
    assert model.stages == ("stem", "3")
    before = state(model.backbone)
    fine_tune(model, images(4), head_epochs=1, epochs=1, batch_size=4, progress=False)
    assert {key[0] for key in changed(before, state(model.backbone))} == {"3"}
    path = model.save(tmp_path / "model.safetensors")
    loaded = medimg.load(path)
    assert not changed(state(model), state(loaded))
    assert loaded.weights_name == "as built"
    register_backbone("own", lambda: small(7), size=64)
    with pytest.raises(CheckpointError, match="don't fit a own"):
        medimg.load(path)
    monkeypatch.setattr(registry, "_OWN", {})
    with pytest.raises(CheckpointError, match=r"no classification model 'own'.*medimg\.register_backbone"):
        medimg.load(path)


def test_weights_of_a_file(tmp_path: Path) -> None:
    register_backbone("own", small, size=48)
    torch.manual_seed(9)
    other = small()
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    torch.save(other.state_dict(), tmp_path / "mine.pth")
    model = own(weights=tmp_path / "mine.pth")
    assert model.weights_name == "mine.pth"
    assert torch.equal(model.backbone.get_parameter("0.weight"), other.get_parameter("0.weight"))
    assert own(weights=None).weights_name == "as built"
    with pytest.raises(WeightsUnavailableError, match=r"has no weights 'IMAGENET1K_V1'.*as it is built"):
        own(weights="IMAGENET1K_V1")


def test_sizes() -> None:
    register_backbone("exact", small, exact_size=48)
    register_backbone("least", small, min_size=32)
    assert own("exact").preprocess.size == 48
    assert own("least").preprocess.size == 224
    with pytest.raises(PreprocessError, match="48×48 only"):
        own("exact", preprocess=Preprocess(size=64))
    with pytest.raises(PreprocessError, match="at least 32×32"):
        own("least", preprocess=Preprocess(size=31))


def test_a_name_close_to_a_registered_one() -> None:
    register_backbone("radimagenet", small)
    with pytest.raises(TrainingError, match="radimagenet"):
        own("rad-imagenet")


@pytest.mark.parametrize(
    ("name", "build", "fields", "message"),
    [
        ("resnet18", small, {}, "a model of torchvision"),
        ("", small, {}, "must be text"),
        (3, small, {}, "must be text"),
        ("own", small(), {}, "a function without arguments"),
        ("own", small, {"size": 0}, "size must be a whole number, 1 or more"),
        ("own", small, {"min_size": 2.5}, "min_size must be a whole number, 1 or more"),
        ("own", small, {"size": 32, "min_size": 64}, "contradicts"),
        ("own", small, {"size": 32, "exact_size": 64}, "contradicts"),
        ("own", small, {"head": ""}, "head must be the name"),
        ("own", small, {"features": 0}, "features must be a whole number, 1 or more"),
        ("own", small, {"features": 6, "head": "7"}, "pass one of them"),
    ],
)
def test_unsound_registrations(name: Any, build: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        register_backbone(name, build, **fields)


def test_unsound_normalization() -> None:
    with pytest.raises(PreprocessError, match="std must be positive"):
        register_backbone("own", small, std=(0.0, 1.0, 1.0))


def test_networks_that_fail() -> None:
    register_backbone("own", lambda: "network", size=48)  # type: ignore[arg-type, return-value]  # refused
    with pytest.raises(TrainingError, match=r"returned a str; expected an nn\.Module"):
        own()
    register_backbone("own", nn.Identity, size=48)
    with pytest.raises(TrainingError, match="found none last"):
        own()
    register_backbone("own", lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2)), size=48)
    with pytest.raises(TrainingError, match=r"fails on an image \(1, 3, 48, 48\): RuntimeError"):
        own()


def test_trying_leaves_no_trace() -> None:
    register_backbone("own", small, size=48)
    model = own()
    assert model.backbone.training
    assert torch.equal(model.backbone.get_buffer("1.running_mean"), torch.zeros(4))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_torchvision_network_under_a_name_of_its_own() -> None:
    register_backbone("my_resnet", lambda: get_model("resnet18", weights=None, num_classes=5), size=64)
    model = own("my_resnet")
    assert model.stages == ("stem", "layer1", "layer2", "layer3", "layer4")


class TestBuilders:
    """A builder is not trusted: what it returns is new, and its output is that of its head."""

    def test_the_same_network_twice_is_refused_and_the_first_stays_as_it_was(self, tmp_path: Path) -> None:
        network = small()
        register_backbone("own", lambda: network, size=48)
        first = own()
        x = torch.randn(2, 3, 48, 48)
        before = first.eval()(x)
        with pytest.raises(TrainingError, match="return a new network each time"):
            own()
        with pytest.raises(CheckpointError, match="return a new network each time"):
            medimg.load(first.save(tmp_path / "model.safetensors"))
        assert torch.equal(before, first(x))

    def test_shared_layers_and_networks_without_a_head_count_too(self) -> None:
        trunk = small(head=None)
        register_backbone("own", lambda: nn.Sequential(trunk, nn.Linear(6, 5)), size=48)
        register_backbone("bare", lambda: trunk, size=48, features=6)
        own()
        for name in ("own", "bare"):
            with pytest.raises(TrainingError, match="another classifier"):
                own(name)

    @pytest.mark.parametrize(
        "last",
        [nn.Softmax(1), nn.Sigmoid(), nn.LogSoftmax(1), nn.Tanh(), nn.Softplus()],
        ids=lambda layer: type(layer).__name__,
    )
    @pytest.mark.parametrize("zero", [False, True])
    def test_what_follows_the_head_is_refused(self, last: nn.Module, zero: bool) -> None:
        def followed() -> nn.Module:
            network = small()
            if zero:
                nn.init.zeros_(network[-1].weight)  # type: ignore[index]  # a Sequential
            return nn.Sequential(network, last)

        register_backbone("own", followed, size=48)
        with pytest.raises(TrainingError, match="something follows it, such as a softmax"):
            own()

    def test_a_network_without_its_head_is_refused_and_not_changed(self) -> None:
        network = get_model("resnet18", weights=None)
        network.fc = nn.Identity()
        expected = state(network)
        register_backbone("own", lambda: network, size=64)
        with pytest.raises(TrainingError, match=r"layer 'layer4\.1\.conv2'.*was removed before"):
            own()
        assert not changed(expected, state(network))
        # the same network, with what the message asks for
        register_backbone("own", lambda: network, size=64, features=512)
        assert own().head.in_features == 512

    def test_a_builder_that_fails(self) -> None:
        register_backbone("own", lambda size: small(), size=48)  # type: ignore[misc, arg-type]  # refused
        with pytest.raises(TrainingError, match="the function of the backbone 'own' failed: TypeError"):
            own()

    def test_a_network_that_returns_more_in_training(self) -> None:
        class Auxiliary(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.fc = small(head=None), nn.Linear(6, 5)

            def forward(self, x: Tensor) -> Any:
                logits = self.fc(self.body(x))
                return (logits, logits) if self.training else logits

        register_backbone("own", Auxiliary, size=64)
        model = TransferClassifier("own", classes=("a", "b"))
        with pytest.raises(TrainingError, match="in training mode own returns a tuple"):
            fine_tune(model, images(4), head_epochs=0, epochs=1, progress=False)

    def test_layers_of_a_classifier_of_torchvision_count_too(self) -> None:
        taken = classifier().backbone
        register_backbone("own", lambda: nn.Sequential(taken, nn.Linear(512, 4)), size=48)
        with pytest.raises(TrainingError, match="another classifier"):
            own()

    def test_networks_that_can_give_no_embedding(self) -> None:
        def lazy() -> nn.Module:
            return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(4))

        def broken() -> nn.Module:
            network = small()
            nn.init.constant_(next(network.parameters()), float("nan"))
            return network

        for build, message in ((lazy, "lazy layers"), (broken, "not finite")):
            register_backbone("own", build, size=48)
            with pytest.raises(TrainingError, match=message):
                own()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_networks_of_other_types_get_32_bits_as_all(self, dtype: torch.dtype) -> None:
        register_backbone("own", lambda: small().to(dtype), size=48)
        model = own()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert model.predict_proba(images(3, classes=("a", "b", "c"), preprocess=model.preprocess)).shape == (
            3,
            3,
        )

    def test_batchnorm_without_statistics_is_said(self) -> None:
        def build() -> nn.Module:
            network = small()
            network[1] = nn.BatchNorm2d(4, track_running_stats=False)  # type: ignore[operator]  # a Sequential
            return network

        register_backbone("own", build, size=48)
        with pytest.warns(MedimgWarning, match="track_running_stats"):
            own()
