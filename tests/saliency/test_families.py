"""The heat lies on a planted patch, on one model of each family that torchvision has."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from torch import nn

from medimg import explain
from medimg.saliency._receptive_field import Axis, ReceptiveField
from tests.saliency.planted import (
    classifier,
    depend_on_patch,
    on_patch,
    planted,
    see_late,
    see_plainly,
    see_without_attention,
    tell_brightness,
)
from tests.sampling import SLOW

PICTURES = 40 if SLOW else 20


@dataclass(frozen=True)
class Family:
    """A model, its size, its layer, and what is done so that a random network tells places apart."""

    model: str
    layer: str
    size: int = 128
    contrast: float = 0.05
    prepare: Callable[[nn.Module], None] | None = see_plainly


FAMILIES = {
    "AlexNet": Family("alexnet", "avgpool", 224),
    "ConvNeXt": Family("convnext_tiny", "features", contrast=3.0, prepare=None),
    "DenseNet": Family("densenet121", "features"),
    "EfficientNet": Family("efficientnet_b0", "features"),
    "EfficientNetV2": Family("efficientnet_v2_s", "features"),
    "GoogLeNet": Family("googlenet", "inception5b", 160),
    "Inception v3": Family("inception_v3", "Mixed_7c", 192),
    "MaxViT": Family("maxvit_t", "blocks.3", 224, prepare=see_without_attention),
    "MNASNet": Family("mnasnet0_5", "layers"),
    "MobileNet v2": Family("mobilenet_v2", "features"),
    "MobileNet v3": Family("mobilenet_v3_small", "features"),
    "RegNet X": Family("regnet_x_400mf", "trunk_output"),
    "RegNet Y": Family("regnet_y_400mf", "trunk_output"),
    "ResNet": Family("resnet18", "layer4"),
    "ResNeXt": Family("resnext50_32x4d", "layer4"),
    "ShuffleNet v2": Family("shufflenet_v2_x0_5", "conv5"),
    "SqueezeNet": Family("squeezenet1_1", "classifier.2"),
    "Swin": Family("swin_t", "permute", 224, contrast=1.0, prepare=tell_brightness),
    "Swin v2": Family("swin_v2_t", "permute", 256, contrast=1.0, prepare=tell_brightness),
    "VGG": Family("vgg11", "features"),
    "ViT": Family("vit_b_16", "encoder.layers.encoder_layer_11.ln_1", contrast=3.0, prepare=see_late),
    "Wide ResNet": Family("wide_resnet50_2", "layer4"),
}
QUICK = ("MNASNet", "MobileNet v3", "ResNet", "ShuffleNet v2", "SqueezeNet")
ASKED = pytest.mark.skipif(not SLOW, reason="a large network: set MEDIMG_SLOW=1")


@pytest.fixture(autouse=True)
def one_model_at_a_time(narrow: None) -> Iterator[None]:
    yield
    if SLOW:
        gc.collect()


def test_there_are_22() -> None:
    assert len(FAMILIES) == 22


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in QUICK else (pytest.mark.slow, ASKED)) for name in FAMILIES],
)
def test_the_heat_lies_on_the_patch(family: str, record_property: Callable[[str, object], None]) -> None:
    chosen = FAMILIES[family]
    side = 3 * chosen.size // 8
    model = classifier(chosen.model, chosen.size, chosen.contrast)
    if chosen.prepare is not None:
        chosen.prepare(model.backbone)
    depend_on_patch(model, chosen.size, side)
    volume, places = planted(PICTURES, chosen.size, side)
    found = explain(model, volume, "patch")
    assert found.layer == chosen.layer
    assert found.heat.shape == (PICTURES, chosen.size, chosen.size)
    assert found.heat.max() == 1.0
    hits = on_patch(found, places, side)
    record_property("pointing", float(hits.mean()))
    print(f"{family}: {chosen.model}, {found.cells[0]}×{found.cells[1]} cells, {hits.mean():.1%}")
    assert hits.mean() >= 0.95
    # what speaks for one class does not speak for the other
    against = explain(model, volume, "plain", slices=range(4))
    assert not on_patch(against, places[:4], side).any()


def test_half_a_cell_is_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The game is lost if a ResNet's map is stretched over the picture, as is common."""
    monkeypatch.setattr(ReceptiveField, "of", lambda self, cells: tuple(map(Axis.tiles, self.size, cells)))
    model = classifier("resnet18", 128, 0.05)
    see_plainly(model.backbone)
    depend_on_patch(model, 128, 48)
    volume, places = planted(40, 128, 48)
    assert on_patch(explain(model, volume, "patch"), places, 48).mean() < 0.9
