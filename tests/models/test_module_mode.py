"""Modes of modules are set for a block and restored one by one, also after an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medimg import TransferClassifier
from medimg.models.module_mode import module_mode


def mixed() -> nn.Sequential:
    inner = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    network = nn.Sequential(nn.Dropout(), inner, nn.Linear(2, 2))
    network[0].eval()
    inner[0].eval()
    return network


@pytest.mark.parametrize("training", [True, False])
def test_mode_of_every_submodule_is_restored(training: bool) -> None:
    network = mixed()
    before = [part.training for part in network.modules()]
    with module_mode(network, training=training):
        assert {part.training for part in network.modules()} == {training}
    assert [part.training for part in network.modules()] == before


def test_mode_is_restored_after_an_error() -> None:
    network = mixed()
    before = [part.training for part in network.modules()]
    with pytest.raises(RuntimeError), module_mode(network, training=False):
        network(torch.ones(1, 7))
    assert [part.training for part in network.modules()] == before


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    model = TransferClassifier("squeezenet1_1", classes=["a", "b"], weights=None).freeze()
    model.eval()
    with module_mode(model, training=True):
        assert model.training
        assert model.head.training
        assert not model.backbone.training
    assert not any(part.training for part in model.modules())


def test_gradients_are_left_to_the_caller() -> None:
    network = mixed()
    with module_mode(network, training=False):
        assert network(torch.ones(1, 2)).requires_grad
    with module_mode(network, training=False), torch.inference_mode():
        assert not network(torch.ones(1, 2)).requires_grad
