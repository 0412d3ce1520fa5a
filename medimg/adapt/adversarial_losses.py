"""Adversarial losses: gradient reversal, DANN, CDAN, MDAN."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from medimg.adapt.distances import as_full_precision, full_precision
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
    Return `x` unchanged; its gradient is multiplied by ``-scale``.

    Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, section 4.2.

    Parameters
    ----------
    x : Tensor
        Tensor of any shape.
    scale : float
        Factor of the reversed gradient.

    Returns
    -------
    Tensor
        Same values as `x`.

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
    Return the weight of gradient reversal during training: ``2 / (1 + exp(-10 p)) - 1``, from 0 towards 1.

    Ganin et al., JMLR 2016, section 5.2.2: the untrained discriminator has no influence at first.

    Parameters
    ----------
    progress : float
        Completed share p of the training, 0 to 1.
    steepness : float
        Factor of p in the exponent; 10 in the paper.

    Returns
    -------
    float
        Weight, 0 to 1.

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
    Return the loss of a discriminator, whose label is 0 for the source and 1 for the target.

    ``-mean_S w log(1 - D) - mean_T w log D`` with D the sigmoid of the logits (Ganin et al., JMLR 2016,
    equation 9; with weights Long, Cao, Wang and Jordan, Conditional Adversarial Domain Adaptation, NeurIPS
    2018, equation 8, whose D is 1 for the source: the value is the same).

    Parameters
    ----------
    source, target : Tensor
        (B,), (B',) logits of the discriminator.
    source_weights, target_weights : Tensor, optional
        (B,), (B',) weights of the items, see :func:`entropy_weights`.

    Returns
    -------
    Tensor
        Scalar loss; ``2 log 2`` for an uninformative discriminator.

    Examples
    --------
    >>> adversarial_loss(torch.zeros(3), torch.zeros(2))
    tensor(1.3863)
    """
    with full_precision(source):
        one = F.softplus(as_full_precision(source))
        other = F.softplus(-as_full_precision(target))
        if source_weights is not None:
            one = one * source_weights
        if target_weights is not None:
            other = other * target_weights
        return one.mean() + other.mean()


def entropy_weights(probabilities: Tensor) -> Tensor:
    """
    Return weights ``1 + exp(-H)`` of items, higher for more certain predictions; H is their entropy.

    Long et al., NeurIPS 2018, section 3.3 ("CDAN+E").

    Parameters
    ----------
    probabilities : Tensor
        (B, K) probabilities; each row sums to 1.

    Returns
    -------
    Tensor
        (B,) weights, 1 to 2.

    Examples
    --------
    >>> entropy_weights(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    tensor([2.0000, 1.5000])
    """
    return 1.0 + torch.exp(-torch.special.entr(as_full_precision(probabilities)).sum(dim=1))


def multilinear_map(
    embeddings: Tensor, probabilities: Tensor, projections: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """
    Return the outer product of embedding and prediction, the input of a conditional discriminator.

    ``f ⊗ g``, or its randomized form ``(R_f f) ⊙ (R_g g) / sqrt(d)``, which has the same inner products on
    average (Long et al., NeurIPS 2018, section 3.2).

    Parameters
    ----------
    embeddings : Tensor
        (B, F) embeddings.
    probabilities : Tensor
        (B, K) predicted probabilities.
    projections : tuple of 2 Tensors, optional
        R_f (F, d) and R_g (K, d), sampled once from a standard normal distribution.

    Returns
    -------
    Tensor
        (B, K F), or (B, d) with projections.

    Raises
    ------
    TrainingError
        If the shapes don't match.

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
        f, g = as_full_precision(embeddings), as_full_precision(probabilities)
        if projections is None:
            return torch.einsum("bk,bf->bkf", g, f).flatten(1)
        first, second = projections
        return (f @ first.to(f)) * (g @ second.to(g)) / math.sqrt(first.shape[1])


def mdan_objective(losses: Tensor, adversaries: Tensor, *, gamma: float | None = None) -> Tensor:
    """
    Return the objective of MDAN, the worst bound over several sources.

    With ``v_i = losses_i - adversaries_i``: the largest v_i ("hard max"), or ``1/gamma log sum exp(gamma
    v_i)`` ("soft max") (Zhao, Zhang, Wu, Moura, Costeira and Gordon, Adversarial Multiple Source Domain
    Adaptation, NeurIPS 2018, section 4). A source has more weight the worse it is classified, and the more
    easily it is distinguished from the target.

    Parameters
    ----------
    losses : Tensor
        (N,) classification loss of each source.
    adversaries : Tensor
        (N,) loss of each source's discriminator.
    gamma : float, optional
        Sharpness of the soft maximum, 10 in the authors' experiments; None for the hard maximum.

    Returns
    -------
    Tensor
        Scalar objective.

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
        raise TrainingError(f"gamma must be a positive number; found {gamma!r}")
    return torch.logsumexp(gamma * bounds, dim=0) / gamma
