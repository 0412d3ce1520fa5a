"""Forward pass of images through a frozen backbone."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medimg.models.module_mode import module_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from medimg.models.classifier import TransferClassifier

__all__ = ["feature_extractor", "rebatch"]


@contextmanager
def feature_extractor(model: TransferClassifier) -> Iterator[Callable[[Tensor], Tensor]]:
    """
    Give a function from images (n, C, H, W) to embeddings (n, F) float32 on the CPU, and restore modes after.

    The backbone is in evaluation mode and in its own precision, whatever autocast says, without gradients;
    not in inference mode, so that embeddings can be trained on. Convolutional networks get images with
    channels last, which is faster on a CPU; the memory format of their weights is not changed.
    """
    body = model.backbone
    first = next(body.parameters(), model.head.weight)
    channels_last = sum(isinstance(module, nn.Conv2d) for module in body.modules()) > 1

    def embed_images(images: Tensor) -> Tensor:
        x = images.to(first.device, first.dtype, non_blocking=True)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        rows: Tensor = body(x)
        return rows.float().cpu()

    precision = torch.autocast(first.device.type, enabled=False)
    with module_mode(body, training=False), torch.no_grad(), precision:
        yield embed_images


def rebatch(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """
    Yield the same rows in pieces of one size, except for the last; a part of that size is not copied.

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
