"""Optimizers and schedules: which parameter learns how fast, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from medimg.models.backbones.stages import split_stages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from medimg.models.classifier import TransferClassifier

__all__ = ["make_optimizer"]
#: What decays: the weights of layers that multiply. Not norms, biases, embeddings of positions or scales.
_DECAYING: Final = ("weight", "in_proj_weight")


def make_optimizer(
    model: TransferClassifier,
    lr: float,
    backbone_lr: float,
    *,
    layer_decay: float = 1.0,
    weight_decay: float = 0.01,
    others: nn.Module | None = None,
) -> torch.optim.AdamW:
    """
    Return AdamW over the trainable parameters.

    Parameters
    ----------
    model : TransferClassifier
        Whatever is frozen in it takes no part.
    lr, backbone_lr : float
        Of head and pooling; of the backbone's last stage.
    layer_decay : float
        Each stage before that learns as many times as fast as the next (Howard and Ruder, ULMFiT, ACL 2018:
        discriminative fine-tuning).
    weight_decay : float
        Of weights that multiply: norms, biases, embeddings of positions and scales of layers don't decay.
    others : nn.Module, optional
        What else is trained, at the head's rate.

    Returns
    -------
    torch.optim.AdamW
        The first group is the head's.
    """
    backbone = set(model.backbone.parameters())
    head = [(n, p) for n, p in model.named_parameters() if p not in backbone]
    head += [] if others is None else list(others.named_parameters())
    parts = list(split_stages(model.backbone))
    named = {parameter: name for name, parameter in model.backbone.named_parameters()}
    groups = [*_groups(head, lr, weight_decay)]
    for depth, stage in enumerate(reversed(parts)):
        members = [(named[p], p) for p in stage.parameters()]
        groups += _groups(members, backbone_lr * layer_decay**depth, weight_decay)
    return torch.optim.AdamW(groups, lr=lr)


def _groups(
    named: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float
) -> Iterator[dict[str, Any]]:
    trainable = [(name, p) for name, p in named if p.requires_grad]
    decaying = [p for name, p in trainable if p.ndim > 1 and name.rpartition(".")[2] in _DECAYING]
    chosen = set(decaying)
    others = [p for _, p in trainable if p not in chosen]
    for members, decay in ((decaying, weight_decay), (others, 0.0)):
        if members:
            yield {"params": members, "lr": lr, "weight_decay": decay}
