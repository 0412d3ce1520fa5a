"""All torchvision networks, built fast: shapes first, then plain random numbers; or a few channels wide."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import (
    convnext,
    densenet,
    get_model_builder,
    get_model_weights,
    maxvit,
    resnet,
    swin_transformer,
    vgg,
    vision_transformer,
)

from medimg import Preprocess, TransferClassifier
from medimg.models import checkpoint
from medimg.models.backbones.architecture import backbone_names
from tests.sampling import SLOW

#: Sides of pictures for networks that don't take 64.
SIDES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 70}


def _smallest() -> set[str]:
    families: dict[str, list[str]] = {}
    for name in backbone_names():
        families.setdefault(get_model_builder(name).__module__, []).append(name)
    return {
        min(names, key=lambda name: int(get_model_weights(name)["DEFAULT"].value.meta["num_params"]))
        for names in families.values()
    }


#: The smallest network of each family.
SMALLEST = _smallest()
#: All networks; only the smallest of each family unless asked for all.
NAMES = [
    name
    if name in SMALLEST
    else pytest.param(
        name,
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not SLOW, reason="all networks: set MEDIMG_SLOW=1"),
        ],
    )
    for name in backbone_names()
]


def _eighth(channels: int) -> int:
    """An eighth of the channels, but all colors."""
    return max(channels // 8, 3)


class _Conv2d(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int, *args: Any, **options: Any) -> None:
        super().__init__(_eighth(inputs), _eighth(outputs), *args, **options)


class _Linear(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(_eighth(inputs), _eighth(outputs))


class _BatchNorm2d(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(_eighth(channels))


def _with_eighths(build: Callable[..., nn.Module], **settings: Any) -> Callable[..., nn.Module]:
    """What builds a network with other settings."""

    def narrow(*args: Any, **options: Any) -> nn.Module:
        changed = {name: change(options[name]) for name, change in settings.items()}
        return build(*args, **options | changed)

    return narrow


def _narrow_blocks(blocks: list[convnext.CNBlockConfig], *args: Any, **options: Any) -> nn.Module:
    eighths = [
        convnext.CNBlockConfig(b.input_channels // 8, b.out_channels and b.out_channels // 8, b.num_layers)
        for b in blocks
    ]
    return _build_convnext(eighths, *args, **options)


_build_convnext = convnext._convnext


@contextmanager
def narrowed() -> Iterator[None]:
    """
    Let the largest families of torchvision have an eighth of their channels.

    Layers, strides and names are those of the network that is asked for.
    """
    layers = SimpleNamespace(
        **{**vars(nn), "Conv2d": _Conv2d, "Linear": _Linear, "BatchNorm2d": _BatchNorm2d}
    )
    width: dict[str, Any] = {"hidden_dim": _eighth, "mlp_dim": _eighth}
    channels: dict[str, Any] = {
        "stem_channels": _eighth,
        "head_dim": _eighth,
        "block_channels": lambda sizes: [_eighth(n) for n in sizes],
    }
    with pytest.MonkeyPatch.context() as patch:
        # the function alexnet hides its module
        for module in (sys.modules["torchvision.models.alexnet"], densenet, resnet, vgg):
            patch.setattr(module, "nn", layers)
        for owner, name, settings in (
            (vision_transformer, "_vision_transformer", width),
            (swin_transformer, "_swin_transformer", {"embed_dim": _eighth}),
            (maxvit, "_maxvit", channels),
        ):
            patch.setattr(owner, name, _with_eighths(getattr(owner, name), **settings))
        patch.setattr(convnext, "_convnext", _narrow_blocks)
        # a checkpoint may be smaller than the network that it is of
        patch.setattr(checkpoint, "_LEAST_SHARE", 0.0)
        yield


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
