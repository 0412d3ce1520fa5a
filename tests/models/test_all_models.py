"""What is frozen stays as it is, bit by bit, on every classification model that torchvision has."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from medimg import TransferClassifier
from medimg.models.backbones.stages import STEM, split_stages
from tests.models.networks import NAMES, digests, network, shapes, step
from tests.sampling import SLOW


@pytest.fixture
def one_model_at_a_time(narrow: None) -> Iterator[None]:
    yield
    if SLOW:
        gc.collect()


def test_there_are_80() -> None:
    assert len(NAMES) >= 80


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", NAMES)
def test_stages(name: str) -> None:
    model = shapes(name)
    body = model.backbone
    parts = split_stages(body)
    assert 4 <= len(parts) <= 13
    assert parts[0].name == STEM
    assert model.stages == tuple(part.name for part in parts)
    # together they hold everything once, in order
    held = [id(p) for part in parts for p in part.parameters()]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in body.parameters()}
    buffers = [id(b) for part in parts for b in part.buffers()]
    assert len(buffers) == len(set(buffers))
    assert set(buffers) == {id(b) for b in body.buffers()}
    # a name means the same whether it is taken for a stage or for a module
    names = [n for n, _ in body.named_modules()]
    for n, part in enumerate(parts):
        through = {id(p) for before in parts[: n + 1] for p in before.parameters()}
        assert _frozen(model.unfreeze().freeze(upto=part.name)) == through
        below = through - {id(p) for p in part.parameters()}
        assert _frozen(model.freeze().unfreeze(downto=part.name)) == below
        if n:
            last = max(k for k, m in enumerate(names) if m == part.name or m.startswith(f"{part.name}."))
            modules = [body.get_submodule(m) for m in names[: last + 1]]
            assert {id(p) for m in modules for p in m.parameters(recurse=False)} == through


def _frozen(model: TransferClassifier) -> set[int]:
    return {id(p) for p in model.backbone.parameters() if not p.requires_grad}


@pytest.mark.usefixtures("one_model_at_a_time")
@pytest.mark.parametrize("name", NAMES)
def test_frozen_is_bit_identical(name: str) -> None:
    model = network(name).freeze()
    body, head = digests(model.backbone.state_dict()), digests(model.head.state_dict())
    logits = step(model)
    assert logits.shape == (2, 3)
    assert bool(torch.isfinite(logits).all())
    assert digests(model.backbone.state_dict()) == body
    after = digests(model.head.state_dict())
    assert all(after[part] != head[part] for part in head)

    # the first half of the stages frozen, the second half and the head trained
    names = model.stages
    middle = len(names) // 2
    model.unfreeze().freeze(upto=names[middle - 1])
    step(model)
    now = digests(model.backbone.state_dict())
    moved = {key for key in body if now[key] != body[key]}
    owner = _owners(model.backbone)
    assert {owner[key] for key in moved} == set(names[middle:])
    statistics = {key for key in body if key.endswith("running_mean")}
    assert {key for key in statistics if owner[key] in names[middle:]} <= moved, "what is trained goes on"


def _owners(body: nn.Module) -> dict[str, str]:
    """Which stage each tensor belongs to."""
    by_tensor = {
        id(tensor): part.name
        for part in split_stages(body)
        for tensor in (*part.parameters(), *part.buffers())
    }
    named = [*body.named_parameters(), *body.named_buffers()]
    return {name: by_tensor[id(tensor)] for name, tensor in named}
