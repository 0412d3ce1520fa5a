"""From the embeddings of the slices of a series to one embedding."""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from medimg.errors import TrainingError

__all__ = ["POOLS", "GatedAttention", "Pool", "make_pooling", "pool_embeddings", "slice_weights"]

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
