"""Pictures through a network whose weights stay as they are."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medimg.models.module_mode import module_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from medimg.models.classifier import TransferClassifier

__all__ = ["feature_extractor", "network_digest", "rebatch"]


def network_digest(model: TransferClassifier) -> str:
    """
    Return 64 hexadecimal digits that differ whenever a backbone's embeddings may.

    They cover its architecture, the kinds and settings of its layers, and every parameter and buffer as it is
    now, frozen or not. What the forward function of a network of one's own does is not seen: give it another
    name when that changes.

    Examples
    --------
    >>> from medimg import TransferClassifier
    >>> model = TransferClassifier("squeezenet1_1", classes=["a", "b"], weights=None)
    >>> before = network_digest(model)
    >>> nn.init.ones_(model.backbone.features[0].bias).sum().item()
    64.0
    >>> network_digest(model) == before
    False
    """
    body = model.backbone
    facts = [asdict(model.architecture), f"{type(body).__module__}.{type(body).__qualname__}", repr(body)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode())
    for kind in (body.named_parameters(), body.named_buffers()):
        for name, value in kind:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            if flat.numel():
                digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def feature_extractor(model: TransferClassifier) -> Iterator[Callable[[Tensor], Tensor]]:
    """
    Give a function that computes embeddings, (n, 3, H, W) to (n, F) float32 on the CPU; then set modes back.

    The backbone is in evaluation mode and in its own precision, whatever autocast says, and gradients are
    off; not in inference mode, so that what is computed can be trained on. Convolutional networks take
    pictures with their channels last, which is faster on a CPU; their weights are left as they lie in memory.
    """
    body = model.backbone
    first = next(body.parameters(), model.head.weight)
    last = sum(isinstance(module, nn.Conv2d) for module in body.modules()) > 1

    def embedded(images: Tensor) -> Tensor:
        x = images.to(first.device, first.dtype, non_blocking=True)
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        rows: Tensor = body(x)
        return rows.float().cpu()

    precision = torch.autocast(first.device.type, enabled=False)
    with module_mode(body, training=False), torch.no_grad(), precision:
        yield embedded


def rebatch(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """
    Yield the same rows in pieces of one size, the last one excepted; what has that size is not copied.

    Examples
    --------
    >>> [len(piece) for piece in rebatch([torch.ones(3, 1), torch.ones(4, 1), torch.ones(1, 1)], 3)]
    [3, 3, 2]
    """
    waiting: list[Tensor] = []
    count = 0
    for part in parts:
        rest = part
        while len(rest):
            taken, rest = rest[: size - count], rest[size - count :]
            waiting.append(taken)
            count += len(taken)
            if count == size:
                yield waiting[0] if len(waiting) == 1 else torch.cat(waiting)
                waiting, count = [], 0
    if waiting:
        yield waiting[0] if len(waiting) == 1 else torch.cat(waiting)
