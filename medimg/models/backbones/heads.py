"""A network taken apart into a body, which makes embeddings, and the head behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from medimg.models.classifier import TransferClassifier

__all__ = ["HeadParts", "feature_count", "head_logits", "new_head", "split_head"]


@dataclass(frozen=True, slots=True)
class HeadParts:
    """
    A model without its head, and the head.

    Parameters
    ----------
    body : nn.Module
        (B, 3, H, W) to embeddings (B, F); an identity stands where the head was.
    head : nn.Linear or nn.Conv2d
        The layer that was taken out.
    head_name : str
        What it was called in the model; empty for a model that had none.
    """

    body: nn.Module
    head: nn.Linear | nn.Conv2d
    head_name: str

    @property
    def features(self) -> int:
        """Length F of an embedding."""
        return self.head.in_channels if isinstance(self.head, nn.Conv2d) else self.head.in_features


def split_head(model: nn.Module, head_name: str | None = None) -> HeadParts:
    """
    Take the head out of a network.

    Parameters
    ----------
    model : nn.Module
        The whole network; changed in place.
    head_name : str, optional
        The head's name in ``model.named_modules()``; by default the last ``nn.Linear`` or ``nn.Conv2d`` there
        is it.

    Returns
    -------
    HeadParts

    Raises
    ------
    TrainingError
        If there is no such layer.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and name}
    chosen = head_name if head_name is not None else next(reversed(layers), "")
    if chosen not in layers:
        raise TrainingError(
            f"expected a network with a linear or convolutional layer {chosen!r} as its head; "
            f"found {', '.join(map(repr, list(layers)[-3:])) or 'none'} last. A network without a head is "
            "registered with features=<length of its embeddings>"
        )
    head = layers[chosen]
    parent_name, _, child = chosen.rpartition(".")
    parent = model.get_submodule(parent_name)
    setattr(parent, child, nn.Identity())
    if isinstance(head, nn.Conv2d):
        _drop_activations(parent, child)
    return HeadParts(model, head, chosen)


def _drop_activations(parent: nn.Module, head: str) -> None:
    """Take out SqueezeNet's ReLU after its head: with it no logit is ever negative."""
    children = list(parent.named_children())
    after = [name for name, _ in children].index(head) + 1
    for name, child in children[after:]:
        if isinstance(child, nn.ReLU):
            setattr(parent, name, nn.Identity())


def new_head(old: nn.Linear | nn.Conv2d, outputs: int, *, device: str | None = None) -> nn.Linear | nn.Conv2d:
    """
    Return a fresh layer of the same kind and inputs.

    Parameters
    ----------
    old : nn.Linear or nn.Conv2d
        The pretrained head.
    outputs : int
        Number K of outputs.
    device : str, optional
        "meta" for a layer that takes no memory.

    Returns
    -------
    nn.Linear or nn.Conv2d
        Weights normal with a deviation of 0.01, biases 0, as torchvision starts most of its heads: training
        begins from nearly equal probabilities, however large a backbone's embeddings are.
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
    Apply a head to embeddings.

    Parameters
    ----------
    head : nn.Linear or nn.Conv2d
        A convolution's 1 x 1 kernel is applied to the average over the picture: both are linear, so this is
        the average of what SqueezeNet computes at each position.
    embedding : Tensor
        (B, F).

    Returns
    -------
    Tensor
        (B, K).
    """
    if isinstance(head, nn.Conv2d):
        return torch.flatten(head(embedding[:, :, None, None]), 1)
    logits: Tensor = head(embedding)
    return logits


def feature_count(model: TransferClassifier) -> int:
    """Return the length F of an embedding."""
    head = model.head
    return head.in_channels if isinstance(head, nn.Conv2d) else head.in_features
