"""All torchvision networks, built fast: shapes first, then plain random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from medimg import Preprocess, TransferClassifier

#: Sides of pictures for networks that don't take 64.
SIDES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 70}


@contextmanager
def no_storage() -> Iterator[None]:
    """Let modules keep only the shapes of their parameters."""
    register = nn.Module.register_parameter

    def shape_only(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, None if param is None else nn.Parameter(param.detach().to("meta")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "register_parameter", shape_only)
        yield


def shapes(name: str) -> TransferClassifier:
    """A classifier of three classes without any numbers."""
    recipe = Preprocess(size=SIDES.get(name, 64))
    with no_storage():
        return TransferClassifier(name, classes=("a", "b", "c"), weights=None, preprocess=recipe)


def network(name: str) -> TransferClassifier:
    """A classifier of three classes with small random weights, much faster than by torchvision's."""
    model = shapes(name)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for key, shape in [(key, p.shape) for key, p in module.named_parameters(recurse=False)]:
            values = torch.empty(shape).uniform_(-0.05, 0.05, generator=generator)
            if key == "weight" and len(shape) == 1:
                values += 1.0
            setattr(module, key, nn.Parameter(values))
    return model


def digests(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    """What tells any changed bit, without a copy."""
    return {
        name: hashlib.sha256(t.detach().reshape(-1).view(torch.uint8).numpy().data).digest()
        for name, t in tensors.items()
    }


def step(model: TransferClassifier, batch: int = 2) -> Tensor:
    """One training step of everything that is not frozen; returns the logits."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, *model.preprocess.hw, generator=generator)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, weight_decay=0.1)
    logits: Tensor = model(x)
    torch.nn.functional.cross_entropy(logits, torch.arange(batch) % 3).backward()
    optimizer.step()
    optimizer.zero_grad()
    return logits.detach()
