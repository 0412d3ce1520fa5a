"""From the slices of bags to their embeddings, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from medimg.errors import TrainingError
from medimg.learn.checks import whole_number

__all__ = ["embed_slices"]

#: Slices that pass at once where no gradient is kept.
_AT_ONCE: Final = 32


def embed_slices(
    backbone: nn.Module, bags: Tensor, mask: Tensor | None = None, *, grad_slices: int | None = None
) -> Tensor:
    """
    Compute the embeddings of all slices of some bags.

    What keeps no gradient passes a few slices at a time, so that its memory does not grow with their number.
    Padding does not pass at all: it would move the statistics of batch normalization.

    Parameters
    ----------
    backbone : nn.Module
        (B, 3, H, W) to (B, F).
    bags : Tensor
        (B, N, 3, H, W).
    mask : Tensor, optional
        (B, N) bool: which slices are there; all by default.
    grad_slices : int, optional
        How many slices of each bag keep a gradient, at most; all by default. They are drawn anew in each call
        from torch's global generator, and pass in the mode in which the backbone is. The other slices pass in
        evaluation mode, as they will when the model predicts: batch normalization uses its running statistics
        and does not move them, nothing is dropped, and no slice depends on which ones pass beside it.

    Returns
    -------
    Tensor
        (B, N, F); zeros outside the mask.

    Raises
    ------
    TrainingError
        If `grad_slices` is not a positive number.

    Examples
    --------
    >>> backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    >>> tuple(embed_slices(backbone, torch.zeros(2, 7, 3, 2, 2), grad_slices=3).shape)
    (2, 7, 5)
    """
    there = bags.new_ones(bags.shape[:2], dtype=torch.bool) if mask is None else mask
    kept = _kept(there, grad_slices)
    planes = bags.flatten(0, 1)
    if kept is None:
        at_once = len(planes) if _passes_at_once(backbone, bags) else _AT_ONCE
        embeddings = _in_parts(backbone, planes, mask, at_once)
        return embeddings.view(*bags.shape[:2], -1) if mask is None else _placed(embeddings, mask)
    with torch.no_grad(), _evaluating(backbone):
        others = _in_parts(backbone, planes, there & ~kept, _AT_ONCE)
    embeddings = backbone(planes[kept.flatten()])
    return _placed(embeddings, kept) + _placed(others.to(embeddings.dtype), there & ~kept)


def _kept(there: Tensor, grad_slices: int | None) -> Tensor | None:
    """Draw which slices (B, N) keep a gradient; None if all do, or none."""
    if grad_slices is None:
        return None
    if whole_number("grad_slices", grad_slices) < 1:
        raise TrainingError(f"grad_slices is a positive number of slices, or None; found {grad_slices!r}")
    if not torch.is_grad_enabled() or int(there.sum(dim=1).max()) <= grad_slices:
        return None
    # one number for each slice that is there, so that padding does not change which are drawn
    keys = torch.full(there.shape, -1.0)
    places = there.cpu()
    keys[places] = torch.rand(int(places.sum()))
    first = keys.argsort(dim=1, descending=True)[:, :grad_slices]
    return torch.zeros_like(places).scatter_(1, first, True).to(there.device) & there


def _passes_at_once(backbone: nn.Module, bags: Tensor) -> bool:
    """Whether slices have to pass together: for gradients, or for the statistics of a batch."""
    needed = bags.requires_grad or any(parameter.requires_grad for parameter in backbone.parameters())
    return backbone.training or (torch.is_grad_enabled() and needed)


def _in_parts(backbone: nn.Module, planes: Tensor, chosen: Tensor | None, at_once: int) -> Tensor:
    if chosen is None:
        return torch.cat([backbone(part) for part in torch.split(planes, at_once)])
    indices = chosen.flatten().nonzero().squeeze(1)
    return torch.cat([backbone(planes[part]) for part in torch.split(indices, at_once)])


def _placed(embeddings: Tensor, places: Tensor) -> Tensor:
    """Return (B, N, F) with embeddings at their places, and zeros elsewhere."""
    result = embeddings.new_zeros(*places.shape, embeddings.shape[1])
    result[places] = embeddings
    return result


@contextmanager
def _evaluating(backbone: nn.Module) -> Iterator[None]:
    training = [module for module in backbone.modules() if module.training]
    backbone.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
