"""From the embeddings of the slices of a series to one embedding."""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from medimg._validation import check_whole_number
from medimg.errors import TrainingError
from medimg.models.module_mode import module_mode

__all__ = [
    "POOLS",
    "GatedAttention",
    "Pool",
    "embed_slices",
    "make_pooling",
    "pool_embeddings",
    "slice_weights",
]

Pool: TypeAlias = Literal["none", "mean", "max", "attention"]

POOLS: Final[tuple[str, ...]] = get_args(Pool)


class GatedAttention(nn.Module):
    """
    Gated attention pooling of a bag of embeddings.

    The weight of slice n is the softmax over n of ``w^T (tanh(V h_n) * sigmoid(U h_n))`` (Ilse, Tomczak and
    Welling, Attention-based Deep Multiple Instance Learning, ICML 2018, equation 9); the result is the
    weighted sum of the embeddings.

    Parameters
    ----------
    features : int
        Length F of an embedding.
    hidden : int
        Length of the attention's inner layer; 128 in the paper.

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
        """
        Return how much each slice counts.

        Parameters
        ----------
        embeddings : Tensor
            (B, N, F).
        mask : Tensor, optional
            (B, N) bool: which slices are there; all by default.

        Returns
        -------
        Tensor
            (B, N), each row sums to 1; 0 where there is no slice.
        """
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
    """
    Return the layer that a pooling needs; None where it needs none.

    Raises
    ------
    TrainingError
        If there is no such pooling.
    """
    if pool not in POOLS:
        raise TrainingError(f"pool is one of {', '.join(map(repr, POOLS))}; found {pool!r}")
    return GatedAttention(features) if pool == "attention" else None


def pool_embeddings(embeddings: Tensor, mask: Tensor | None, pool: str, layer: nn.Module | None) -> Tensor:
    """
    Pool the embeddings of slices.

    Parameters
    ----------
    embeddings : Tensor
        (B, N, F); what is outside the mask must be finite.
    mask : Tensor or None
        (B, N) bool: which slices are there; None for all.
    pool : {"mean", "max", "attention"}
        How. The mean of embeddings has the mean of the slices' logits, since the head is affine.
    layer : nn.Module or None
        The attention.

    Returns
    -------
    Tensor
        (B, F).
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
    Return how much each slice of one bag counts.

    Parameters
    ----------
    embeddings : Tensor
        (N, F).
    pool : {"none", "mean", "max", "attention"}
        "attention": the weights of the sum. "max": the share of the features whose maximum lies in this
        slice; slices that share a maximum share the feature. Else all count alike.
    layer : nn.Module or None
        The attention.

    Returns
    -------
    Tensor
        (N,), sums to 1.

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
    with torch.no_grad(), module_mode(backbone, training=False):
        others = _in_parts(backbone, planes, there & ~kept, _AT_ONCE)
    embeddings = backbone(planes[kept.flatten()])
    return _placed(embeddings, kept) + _placed(others.to(embeddings.dtype), there & ~kept)


def _kept(there: Tensor, grad_slices: int | None) -> Tensor | None:
    """Draw which slices (B, N) keep a gradient; None if all do, or none."""
    if grad_slices is None:
        return None
    grad_slices = check_whole_number("grad_slices", grad_slices, least=1)
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
