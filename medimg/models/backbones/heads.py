"""The head of a network: found, split off, and replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from medimg.models.classifier import TransferClassifier

__all__ = [
    "HeadParts",
    "drop_activations",
    "feature_count",
    "find_head",
    "head_logits",
    "new_head",
    "replace_layer",
    "split_head",
]


@dataclass(frozen=True, slots=True)
class HeadParts:
    """A network (B, C, H, W) to embeddings (B, F), its former head, and its name ("" if it had none)."""

    body: nn.Module
    head: nn.Linear | nn.Conv2d
    head_name: str

    @property
    def features(self) -> int:
        """Length F of an embedding."""
        return self.head.in_channels if isinstance(self.head, nn.Conv2d) else self.head.in_features


def split_head(model: nn.Module, head_name: str | None = None) -> HeadParts:
    """Replace the head of a network (by default its last linear or convolutional layer) by an identity."""
    name, head = find_head(model, head_name)
    if isinstance(head, nn.Conv2d):
        drop_activations(model, name)
    replace_layer(model, name, nn.Identity())
    return HeadParts(model, head, name)


def find_head(model: nn.Module, head_name: str | None = None) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Return name and layer of the head of a network, by default its last linear or convolutional layer."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and name}
    chosen = head_name if head_name is not None else next(reversed(layers), "")
    if chosen not in layers:
        raise TrainingError(
            f"expected a network with a linear or convolutional layer {chosen!r} as its head; found "
            f"{', '.join(map(repr, list(layers)[-3:])) or 'none'} last; register a network without a head "
            "with features=<length of its embeddings>"
        )
    return chosen, layers[chosen]


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put another layer in the position of the named one."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def drop_activations(model: nn.Module, head_name: str) -> dict[str, nn.Module]:
    """Remove the ReLU after SqueezeNet's head, which would clip negative logits; return it by its name."""
    parent, dot, head = head_name.rpartition(".")
    children = list(model.get_submodule(parent).named_children())
    after = [name for name, _ in children].index(head) + 1
    dropped: dict[str, nn.Module] = {
        f"{parent}{dot}{name}": m for name, m in children[after:] if isinstance(m, nn.ReLU)
    }
    for name in dropped:
        replace_layer(model, name, nn.Identity())
    return dropped


def new_head(old: nn.Linear | nn.Conv2d, outputs: int, *, device: str | None = None) -> nn.Linear | nn.Conv2d:
    """
    Return a new layer with the inputs of the old head and K outputs.

    Weights are normal with a standard deviation of 0.01, biases 0, as in most heads of torchvision: training
    starts from nearly equal probabilities, however large the embeddings are.
    """
    head: nn.Linear | nn.Conv2d
    if isinstance(old, nn.Conv2d):
        head = nn.Conv2d(old.in_channels, outputs, kernel_size=1, device=device)
    else:
        head = nn.Linear(old.in_features, outputs, device=device)
    nn.init.normal_(head.weight, std=0.01)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    return head


def head_logits(head: nn.Module, embedding: Tensor) -> Tensor:
    """
    Return the logits (B, K) of embeddings (B, F).

    A 1×1 convolution is applied to the average over positions: both are linear, so this equals the average
    of the logits that SqueezeNet computes at each position.
    """
    if isinstance(head, nn.Conv2d):
        return torch.flatten(head(embedding[:, :, None, None]), 1)
    logits: Tensor = head(embedding)
    return logits


def feature_count(model: TransferClassifier) -> int:
    """Return the length F of an embedding."""
    head = model.head
    return head.in_channels if isinstance(head, nn.Conv2d) else head.in_features
