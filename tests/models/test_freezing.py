from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from medimg import Preprocess, fine_tune
from medimg.errors import TrainingError
from medimg.models.freezing import find_kept_statistics, freeze_batchnorm_statistics, frozen_fraction
from tests.models.fakes import changed, classifier, images, state
from tests.models.networks import shapes

TINY = Preprocess(size=32)
FAMILIES = [
    ("resnet18", "layer2", "layer3."),
    ("squeezenet1_1", "features.6", "features.7."),
    ("mobilenet_v3_small", "features.4", "features.5."),
    ("efficientnet_b0", "features.3", "features.4."),
    ("densenet121", "features.transition1", "features.denseblock2."),
    ("shufflenet_v2_x0_5", "stage2", "stage3."),
    ("mnasnet0_5", "layers.8", "layers.9."),
    ("vit_b_32", "encoder.layers.encoder_layer_9", "encoder.layers.encoder_layer_10."),
]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("name", "upto", "after"), FAMILIES)
def test_frozen_is_bit_identical(name: str, upto: str, after: str) -> None:
    model = classifier(name, preprocess=TINY).freeze()
    before, head = state(model.backbone), state(model.head)
    fine_tune(model, images(4, preprocess=TINY), head_epochs=1, epochs=1, batch_size=4, progress=False)
    assert not changed(before, state(model.backbone))
    assert "weight" in changed(head, state(model.head))
    assert not any(p.requires_grad for p in model.backbone.parameters())


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("name", "upto", "after"), FAMILIES)
def test_partly_frozen(name: str, upto: str, after: str) -> None:
    model = classifier(name, preprocess=TINY).freeze(upto=upto)
    names = [n for n, _ in model.backbone.named_modules()]
    assert upto in names
    frozen = {n for n, p in model.backbone.named_parameters() if not p.requires_grad}
    before = state(model.backbone)
    fine_tune(model, images(4, preprocess=TINY), head_epochs=1, epochs=2, batch_size=4, progress=False)
    moved = changed(before, state(model.backbone))
    assert frozen
    assert not moved & frozen
    first_free = min(n for n, module in enumerate(names) if module.startswith(after))
    frozen_modules = set(names[:first_free])
    assert not {n for n in moved if n.rpartition(".")[0] in frozen_modules}, "statistics moved too"
    assert any(n.startswith(after) for n in moved), "what is not frozen is trained"
    assert {n for n, p in model.backbone.named_parameters() if not p.requires_grad} == frozen


@pytest.mark.usefixtures("narrow")
def test_head_phase_leaves_an_unfrozen_backbone_alone() -> None:
    model = classifier("resnet18", preprocess=TINY)
    before = state(model.backbone)
    fine_tune(model, images(4, preprocess=TINY), head_epochs=2, epochs=0, batch_size=4, progress=False)
    assert not changed(before, state(model.backbone))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.usefixtures("narrow")
def test_full_phase_trains_everything() -> None:
    model = classifier("resnet18", preprocess=TINY)
    before = state(model)
    fine_tune(model, images(4, preprocess=TINY), head_epochs=0, epochs=2, batch_size=4, progress=False)
    assert changed(before, state(model)) == set(before)


@pytest.mark.parametrize(
    ("choice", "pretrained", "kept"),
    [("auto", True, True), ("auto", False, False), ("keep", False, True), ("update", True, False)],
)
def test_statistics_of_batches(tmp_path: Path, choice: Any, pretrained: bool, kept: bool) -> None:
    """Kept means to the last bit, while scales and offsets are trained."""
    weights = tmp_path / "weights.pth"
    if pretrained:
        learned = get_model("mobilenet_v3_small").state_dict()
        for name, value in learned.items():
            if name.endswith("running_mean"):
                value.fill_(0.1)
        torch.save(learned, weights)
    model = classifier("mobilenet_v3_small", weights=weights if pretrained else None, preprocess=TINY)
    before = state(model.backbone)
    fine_tune(
        model, images(8, preprocess=TINY), epochs=2, batch_size=4, batch_statistics=choice, progress=False
    )
    moved = changed(before, state(model.backbone))
    statistics = {name for name in before if "running_" in name or name.endswith("batches_tracked")}
    assert statistics
    assert not statistics & moved if kept else statistics <= moved
    scales = {n.replace("running_mean", "weight") for n in statistics if n.endswith("running_mean")}
    assert scales & moved
    assert not model.training


@pytest.mark.usefixtures("narrow")
def test_statistics_kept_in_training_give_the_outputs_of_evaluation() -> None:
    model = classifier("resnet18").train()
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(model(x), model.eval()(x))
        freeze_batchnorm_statistics(model.train(), find_kept_statistics(model, "keep"))
        kept = model(x)
        assert model.training
        assert torch.equal(kept, model.eval()(x))
    layer = nn.BatchNorm2d(3, track_running_stats=False).train()
    model.backbone.add_module("extra", layer)
    freeze_batchnorm_statistics(model.train(), find_kept_statistics(model, "keep"))
    assert layer.training, "a layer without statistics has none to keep"


@pytest.mark.usefixtures("narrow")
def test_parameters_frozen_by_hand_stay_so() -> None:
    model = classifier("resnet18", preprocess=TINY)
    model.backbone.get_submodule("layer1").requires_grad_(False)
    before = state(model.backbone.get_submodule("layer1"))
    fine_tune(model, images(4, preprocess=TINY), epochs=1, batch_size=4, progress=False)
    assert not changed(before, state(model.backbone.get_submodule("layer1")))


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    model = shapes("vgg11_bn")
    assert any(m.training for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    model.freeze(upto="features").train()
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    drops = [m for m in model.backbone.modules() if isinstance(m, nn.Dropout)]
    assert not any(m.training for m in norms)
    assert all(m.training for m in drops), "dropout of the part that is trained goes on"
    model.freeze().train()
    assert not any(m.training for m in drops)
    assert model.head.training
    model.unfreeze()
    assert all(m.training for m in [*norms, *drops])
    model.eval().freeze()
    assert not model.head.training, "freezing doesn't change the mode of the rest"


def test_unknown_part() -> None:
    with pytest.raises(TrainingError, match=r"no part 'layer9'.*'layer1'"):
        classifier("resnet18").freeze(upto="layer9")
    with pytest.raises(TrainingError, match="no part ''"):
        classifier("resnet18").freeze(upto="")


def test_share() -> None:
    layers = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False))
    layers[0].requires_grad_(False)
    assert frozen_fraction(layers) == 0.75
    assert frozen_fraction(nn.ReLU()) == 0.0
