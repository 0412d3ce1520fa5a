"""AdamW with parameter groups: discriminative learning rates, weight decay of some parameters only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from medimg.models.backbones.stages import split_stages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from medimg.models.classifier import TransferClassifier
    from medimg.training.optimization.custom import OptimizerFactory

__all__ = ["make_optimizer"]

#: Parameters with weight decay: not those of normalization layers, biases, position embeddings, layer scales.
_DECAYING: Final = ("weight", "in_proj_weight", "down", "up")


def make_optimizer(
    model: TransferClassifier,
    lr: float,
    backbone_lr: float,
    *,
    layer_decay: float = 1.0,
    weight_decay: float = 0.01,
    others: nn.Module | None = None,
    factory: OptimizerFactory | None = None,
) -> torch.optim.Optimizer:
    """
    Return AdamW, or what `factory` makes, over the trainable parameters of the model and of `others`.

    `lr` is that of head, pooling and `others`, the first group's; `backbone_lr` that of the last stage. Each
    stage before has `layer_decay` times the rate of the next (Howard and Ruder, ULMFiT, ACL 2018).
    """
    backbone = set(model.backbone.parameters())
    head = [(n, p) for n, p in model.named_parameters() if p not in backbone]
    head += [] if others is None else list(others.named_parameters())
    named = {parameter: name for name, parameter in model.backbone.named_parameters()}
    groups = [*_make_groups(head, lr, weight_decay)]
    for depth, stage in enumerate(reversed(list(split_stages(model.backbone)))):
        # what several stages share is the last one's
        members = [(named.pop(p), p) for p in stage.parameters() if p in named]
        groups += _make_groups(members, backbone_lr * layer_decay**depth, weight_decay)
    return torch.optim.AdamW(groups, lr=lr) if factory is None else factory(groups)


def _make_groups(
    named: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float
) -> Iterator[dict[str, Any]]:
    """Yield a parameter group with weight decay and one without, if they have trainable parameters."""
    trainable = [(name, p) for name, p in named if p.requires_grad]
    decaying = [p for name, p in trainable if p.ndim > 1 and name.rpartition(".")[2] in _DECAYING]
    chosen = set(decaying)
    others = [p for _, p in trainable if p not in chosen]
    for members, decay in ((decaying, weight_decay), (others, 0.0)):
        if members:
            yield {"params": members, "lr": lr, "weight_decay": decay}
