"""Embeddings of the slices of bags, and their pooling to one embedding per bag."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

from medimg._validation import check_choice, check_whole_number
from medimg.models.input_checks import POOLS
from medimg.models.module_mode import module_mode

__all__ = [
    "GatedAttention",
    "embed_slices",
    "make_pooling",
    "pool_embeddings",
    "slice_weights",
]


class GatedAttention(nn.Module):
    """
    Gated attention pooling of a bag of embeddings (length F; `hidden` is 128 in the paper).

    The weight of slice n is the softmax over n of ``w^T (tanh(V h_n) * sigmoid(U h_n))`` (Ilse, Tomczak and
    Welling, Attention-based Deep Multiple Instance Learning, ICML 2018, equation 9); the result is the
    weighted sum of the embeddings.

    Examples
    --------
    >>> pooled = GatedAttention(4)(torch.ones(2, 5, 4))
    >>> tuple(pooled.shape)
    (2, 4)
    """

    def __init__(self, features: int, hidden: int = 128) -> None:
        super().__init__()
        self.value = nn.Linear(features, hidden)
        self.gate = nn.Linear(features, hidden)
        self.score = nn.Linear(hidden, 1)

    def weights(self, embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return weights (B, N) of embeddings (B, N, F); rows sum to 1, with 0 outside the mask (B, N)."""
        hidden = torch.tanh(self.value(embeddings)) * torch.sigmoid(self.gate(embeddings))
        scores = self.score(hidden).squeeze(-1)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return torch.softmax(scores, dim=1)

    def forward(self, embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool (B, N, F) to (B, F)."""
        weights = self.weights(embeddings, mask).to(embeddings.dtype)
        return torch.einsum("bn,bnf->bf", weights, embeddings)


def make_pooling(pool: str, features: int) -> GatedAttention | None:
    """Return the layer of a pooling; None if it has no parameters."""
    check_choice("pool", pool, POOLS)
    return GatedAttention(features) if pool == "attention" else None


def pool_embeddings(embeddings: Tensor, mask: Tensor | None, pool: str, layer: nn.Module | None) -> Tensor:
    """
    Pool embeddings (B, N, F) of slices to (B, F); padding, where the mask (B, N) is False, must be finite.

    The head is affine: the logits of the mean embedding are the mean of the logits of the slices.
    """
    if layer is not None:
        pooled: Tensor = layer(embeddings, mask)
        return pooled
    if mask is None:
        return embeddings.mean(dim=1) if pool == "mean" else embeddings.amax(dim=1)
    there = mask.unsqueeze(-1)
    if pool == "max":
        return embeddings.masked_fill(~there, -math.inf).amax(dim=1)
    return (embeddings * there).sum(dim=1) / there.sum(dim=1)


def slice_weights(embeddings: Tensor, pool: str, layer: nn.Module | None) -> Tensor:
    """
    Return the weights (N,) of the slices of one bag (N, F), which sum to 1.

    They are those of the attention; with "max" the fraction of features whose maximum is in the slice,
    divided between slices that share a maximum; otherwise equal.

    Examples
    --------
    >>> slice_weights(torch.tensor([[1.0, 0.0, 5.0, 2.0], [3.0, 4.0, 6.0, 2.0]]), "max", None)
    tensor([0.1250, 0.8750])
    """
    if isinstance(layer, GatedAttention):
        return layer.weights(embeddings[None])[0]
    if pool == "max":
        highest = embeddings == embeddings.amax(dim=0)
        return (highest / highest.sum(dim=0)).mean(dim=1)
    return embeddings.new_full((len(embeddings),), 1.0 / len(embeddings))


#: Slices that pass at once without a gradient.
_AT_ONCE: Final = 32


def embed_slices(
    backbone: nn.Module, bags: Tensor, mask: Tensor | None = None, *, grad_slices: int | None = None
) -> Tensor:
    """
    Compute the embeddings (B, N, F) of bags (B, N, C, H, W), zeros outside the mask (B, N).

    Slices without a gradient pass a few at a time, so that memory does not grow with their number. Padding
    does not pass, because it would change the statistics of batch normalization. With `grad_slices` at most
    that many slices of each bag, drawn from torch's global generator, keep a gradient and pass in the mode of
    the backbone; the others pass in evaluation mode, as they do in prediction.

    Examples
    --------
    >>> backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    >>> tuple(embed_slices(backbone, torch.zeros(2, 7, 3, 2, 2), grad_slices=3).shape)
    (2, 7, 5)
    """
    there = bags.new_ones(bags.shape[:2], dtype=torch.bool) if mask is None else mask
    kept = _draw_gradient_slices(there, grad_slices)
    planes = bags.flatten(0, 1)
    if kept is None:
        at_once = len(planes) if _must_pass_together(backbone, bags) else _AT_ONCE
        embeddings = _embed_in_parts(backbone, planes, mask, at_once)
        return embeddings.view(*bags.shape[:2], -1) if mask is None else _scatter(embeddings, mask)
    with torch.no_grad(), module_mode(backbone, training=False):
        others = _embed_in_parts(backbone, planes, there & ~kept, _AT_ONCE)
    embeddings = backbone(planes[kept.flatten()])
    return _scatter(embeddings, kept) + _scatter(others.to(embeddings.dtype), there & ~kept)


def _draw_gradient_slices(there: Tensor, grad_slices: int | None) -> Tensor | None:
    """Draw the slices (B, N) bool that keep a gradient; None if all do, or none."""
    if grad_slices is None:
        return None
    grad_slices = check_whole_number("grad_slices", grad_slices, least=1)
    if not torch.is_grad_enabled() or int(there.sum(dim=1).max()) <= grad_slices:
        return None
    # one random number per slice, so that padding does not change which ones are drawn
    keys = torch.full(there.shape, -1.0)
    on_cpu = there.cpu()
    keys[on_cpu] = torch.rand(int(on_cpu.sum()))
    first = keys.argsort(dim=1, descending=True)[:, :grad_slices]
    return torch.zeros_like(on_cpu).scatter_(1, first, True).to(there.device) & there


def _must_pass_together(backbone: nn.Module, bags: Tensor) -> bool:
    """Whether slices must pass together, for gradients or the statistics of a batch."""
    needed = bags.requires_grad or any(parameter.requires_grad for parameter in backbone.parameters())
    return backbone.training or (torch.is_grad_enabled() and needed)


def _embed_in_parts(backbone: nn.Module, planes: Tensor, chosen: Tensor | None, at_once: int) -> Tensor:
    """Return the embeddings (n, F) of the chosen planes (B·N, C, H, W), `at_once` at a time."""
    if chosen is None:
        return torch.cat([backbone(part) for part in torch.split(planes, at_once)])
    indices = chosen.flatten().nonzero().squeeze(1)
    return torch.cat([backbone(planes[part]) for part in torch.split(indices, at_once)])


def _scatter(embeddings: Tensor, mask: Tensor) -> Tensor:
    """Return (B, N, F) with embeddings (n, F) where the mask (B, N) is True, and zeros elsewhere."""
    result = embeddings.new_zeros(*mask.shape, embeddings.shape[1])
    result[mask] = embeddings
    return result
