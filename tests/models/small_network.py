"""A small network for tests of anything but networks: what training treats in its own way, and no more."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
from torch import nn

import medimg
from medimg import TransferClassifier
from medimg.models.backbones import registry
from tests.models.fakes import classifier
from tests.sampling import SLOW

SMALL_NETWORK = "small"


def make_network() -> nn.Module:
    """Stages named like those of a ResNet, batch normalization, dropout, and a linear head."""

    def stage(inputs: int, outputs: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, 8, 5, stride=2, padding=2),
        "bn1": nn.BatchNorm2d(8),
        "relu": nn.ReLU(),
        **{f"layer{n}": stage(8 if n == 1 else 16, 16) for n in (1, 2, 3, 4)},
        "avgpool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "dropout": nn.Dropout(0.2),
        "fc": nn.Linear(16, 10),
    }
    return nn.Sequential(OrderedDict(layers))


def register_small_network() -> None:
    medimg.register_backbone(SMALL_NETWORK, make_network, size=64)


def stand_in(backbone: str) -> str:
    """The name of the small network, or with ``MEDIMG_SLOW=1`` that of the one it stands for."""
    return backbone if SLOW else SMALL_NETWORK


def small_classifier(instead_of: str = "squeezenet1_1", **fields: Any) -> TransferClassifier:
    """A classifier with the small network, or with ``MEDIMG_SLOW=1`` the one it stands for."""
    model = classifier(stand_in(instead_of), **fields)
    model.weights_name = None  # they are random: statistics of batches are updated
    return model


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small network can be built by its name, in tests whose folder imports this."""
    monkeypatch.setattr(registry, "_OWN", {})
    register_small_network()
