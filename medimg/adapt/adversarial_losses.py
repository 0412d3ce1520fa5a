"""Adversarial losses: a discriminator tells domains apart, and the embeddings are moved so that it can't."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from medimg.adapt.distances import full_precision
from medimg.errors import TrainingError

__all__ = [
    "adversarial_loss",
    "entropy_weights",
    "gradient_reversal",
    "mdan_objective",
    "multilinear_map",
    "ramp",
]


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


def gradient_reversal(x: Tensor, scale: float = 1.0) -> Tensor:
    """
    Return `x` as it is; its gradient is multiplied by ``-scale``.

    Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, section 4.2.

    Parameters
    ----------
    x : Tensor
        Of any shape.
    scale : float
        How strongly what lies before is trained against what lies behind.

    Returns
    -------
    Tensor
        The same values.

    Examples
    --------
    >>> x = torch.ones(1, requires_grad=True)
    >>> (3 * gradient_reversal(x, 0.5)).backward()
    >>> x.grad
    tensor([-1.5000])
    """
    return cast("Tensor", _Reversal.apply(x, float(scale)))


def ramp(progress: float, steepness: float = 10.0) -> float:
    """
    Return how strongly an adversary counts: ``2 / (1 + exp(-10 p)) - 1``, from 0 towards 1.

    Ganin et al., JMLR 2016, section 5.2.2: early on, when discriminators know nothing, they are not obeyed.

    Parameters
    ----------
    progress : float
        Share p of the training that is done, 0 to 1.
    steepness : float
        10 in the paper.

    Examples
    --------
    >>> ramp(0.0), round(ramp(0.5), 4), round(ramp(1.0), 4)
    (0.0, 0.9866, 0.9999)
    """
    return 2.0 / (1.0 + math.exp(-steepness * min(max(progress, 0.0), 1.0))) - 1.0


def adversarial_loss(
    source: Tensor,
    target: Tensor,
    *,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
) -> Tensor:
    """
    Return the loss of a discriminator, which calls the source 0 and the target 1.

    ``-mean_S w log(1 - D) - mean_T w log D`` with D the sigmoid of the logits (Ganin et al., JMLR 2016,
    equation 9; with weights Long, Cao, Wang and Jordan, Conditional Adversarial Domain Adaptation, NeurIPS
    2018, equation 8, whose D is 1 for the source: the value is the same).

    Parameters
    ----------
    source, target : Tensor
        (B,), (B',) logits.
    source_weights, target_weights : Tensor, optional
        (B,), (B',): see :func:`entropy_weights`.

    Returns
    -------
    Tensor
        Scalar: ``2 log 2`` where the discriminator knows nothing.

    Examples
    --------
    >>> adversarial_loss(torch.zeros(3), torch.zeros(2))
    tensor(1.3863)
    """
    with full_precision(source):
        one = F.softplus(_whole(source))
        other = F.softplus(-_whole(target))
        if source_weights is not None:
            one = one * source_weights
        if target_weights is not None:
            other = other * target_weights
        return one.mean() + other.mean()


def entropy_weights(probabilities: Tensor) -> Tensor:
    """
    Return how much each item counts: ``1 + exp(-H)``, more where the prediction is certain.

    Long et al., NeurIPS 2018, section 3.3 ("CDAN+E").

    Parameters
    ----------
    probabilities : Tensor
        (B, K), each row sums to 1.

    Returns
    -------
    Tensor
        (B,), 1 to 2.

    Examples
    --------
    >>> entropy_weights(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    tensor([2.0000, 1.5000])
    """
    return 1.0 + torch.exp(-torch.special.entr(_whole(probabilities)).sum(dim=1))


def multilinear_map(
    embeddings: Tensor, probabilities: Tensor, projections: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """
    Return what a conditional discriminator sees: the outer product of embedding and prediction.

    ``f ⊗ g``, or where that is too long its randomized form ``(R_f f) ⊙ (R_g g) / sqrt(d)``, which has
    the same inner products on average (Long et al., NeurIPS 2018, section 3.2).

    Parameters
    ----------
    embeddings : Tensor
        (B, F).
    probabilities : Tensor
        (B, K).
    projections : tuple of 2 Tensors, optional
        R_f (F, d) and R_g (K, d), drawn once from a normal distribution of variance 1.

    Returns
    -------
    Tensor
        (B, K F), or (B, d).

    Raises
    ------
    TrainingError
        If shapes don't fit.

    Examples
    --------
    >>> multilinear_map(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.25, 0.75]]))
    tensor([[0.2500, 0.5000, 0.7500, 1.5000]])
    """
    if embeddings.ndim != 2 or probabilities.ndim != 2 or len(embeddings) != len(probabilities):
        raise TrainingError(
            "expected embeddings (B, F) and probabilities (B, K); found "
            f"{tuple(embeddings.shape)} and {tuple(probabilities.shape)}"
        )
    with full_precision(embeddings):
        f, g = _whole(embeddings), _whole(probabilities)
        if projections is None:
            return torch.einsum("bk,bf->bkf", g, f).flatten(1)
        first, second = projections
        return (f @ first.to(f)) * (g @ second.to(g)) / math.sqrt(first.shape[1])


def mdan_objective(losses: Tensor, adversaries: Tensor, *, gamma: float | None = None) -> Tensor:
    """
    Return the objective of several sources, whose worst bound is improved.

    With ``v_i = losses_i - adversaries_i``: the largest v_i ("hard max"), or ``1/gamma log sum
    exp(gamma v_i)`` ("soft max") (Zhao, Zhang, Wu, Moura, Costeira and Gordon, Adversarial Multiple Source
    Domain Adaptation, NeurIPS 2018, section 4). A source counts for more the worse it is
    classified, and the easier it is told from the target.

    Parameters
    ----------
    losses : Tensor
        (N,) classification loss of each source.
    adversaries : Tensor
        (N,) loss of each source's discriminator.
    gamma : float, optional
        For the soft version; 10 in the authors' experiments.

    Returns
    -------
    Tensor
        Scalar.

    Raises
    ------
    TrainingError
        If gamma is not positive.

    Examples
    --------
    >>> mdan_objective(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5]))
    tensor(1.5000)
    """
    bounds = losses - adversaries
    if gamma is None:
        return bounds.amax()
    if not gamma > 0:
        raise TrainingError(f"gamma is a positive number; found {gamma!r}")
    return torch.logsumexp(gamma * bounds, dim=0) / gamma


def _whole(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
