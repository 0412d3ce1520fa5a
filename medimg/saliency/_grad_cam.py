"""Class activation maps: how much each cell of a layer speaks for a class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medimg.errors import TrainingError
from medimg.models.backbones.heads import head_logits
from medimg.models.pooling import pool_embeddings
from medimg.saliency._target_layer import Layer, capture_activation

if TYPE_CHECKING:
    from medimg.models.classifier import TransferClassifier

__all__ = ["METHODS", "Method", "activation_maps", "head_gradient", "logits_of"]

Method: TypeAlias = Literal["gradcam", "hirescam"]
METHODS: Final[tuple[str, ...]] = ("gradcam", "hirescam")


def logits_of(model: TransferClassifier, embeddings: Tensor) -> Tensor:
    """Return the logits of all pictures (N, K), or with pooling those of the series (1, K)."""
    if model.pool == "none":
        return head_logits(model.head, embeddings)
    pooled = pool_embeddings(embeddings[None], None, model.pool, model.attention)
    return head_logits(model.head, pooled)


def head_gradient(model: TransferClassifier, embeddings: Tensor, target: int) -> Tensor:
    """
    Return the gradient of a class's logit with respect to the embedding of each picture.

    Parameters
    ----------
    model : TransferClassifier
        In evaluation mode.
    embeddings : Tensor
        (N, F) of all pictures of a source.
    target : int
        The class.

    Returns
    -------
    Tensor
        (N, F): of the logit of the series, through the pooling; without pooling of each picture's own.
    """
    leaves = embeddings.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(logits_of(model, leaves)[:, target].sum(), leaves)
    return gradient


def activation_maps(
    backbone: nn.Module,
    layer: Layer,
    batches: Iterable[tuple[Tensor, Tensor]],
    method: Method = "gradcam",
) -> npt.NDArray[np.float32]:
    """
    Compute the class activation map of each picture.

    "gradcam": ``ReLU(sum_c w_c A_c)`` with the activations A and ``w_c`` the mean over the cells of their
    gradient (Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2). "hirescam":
    ``ReLU(sum_c (dy/dA_c * A_c))``, each cell with its own gradient (Draelos and Carin, HiResCAM, 2020).

    Parameters
    ----------
    backbone : nn.Module
        (B, 3, H, W) to (B, F), in evaluation mode.
    layer : Layer
        Whose activations.
    batches : iterable of (Tensor, Tensor)
        Pictures (B, 3, H, W), and the gradient (B, F) of what is explained with respect to their embeddings.
    method : {"gradcam", "hirescam"}
        How.

    Returns
    -------
    numpy.ndarray
        (N, h, w) float32, 0 or greater.

    Raises
    ------
    TrainingError
        If the network gives numbers that are not finite.
    """
    maps = []
    with capture_activation(backbone, layer) as held:
        for pictures, gradient in batches:
            # the pictures ask for gradients, so that there are some though all parameters are frozen
            embeddings = backbone(pictures.detach().requires_grad_())
            (slope,) = torch.autograd.grad(embeddings, held, gradient.to(embeddings.dtype))
            weights, activations = layer.maps(slope).float(), layer.maps(held[0].detach()).float()
            if method == "gradcam":
                weights = weights.mean(dim=(2, 3), keepdim=True)
            maps.append((weights * activations).sum(dim=1).relu().cpu())
    found: npt.NDArray[np.float32] = torch.cat(maps).numpy()
    if not np.isfinite(found).all():
        raise TrainingError(
            "the network gives numbers that are not finite, and has no heat map; look at its training, or at "
            "the mean and std of its recipe"
        )
    return found
