"""Class activation maps by Grad-CAM and HiResCAM."""

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

__all__ = ["METHODS", "Method", "activation_maps", "head_gradient", "source_logits"]

Method: TypeAlias = Literal["gradcam", "hirescam"]
METHODS: Final[tuple[str, ...]] = ("gradcam", "hirescam")


def source_logits(model: TransferClassifier, embeddings: Tensor) -> Tensor:
    """Return the logits (N, K) of embeddings (N, F), or with pooling those of the series (1, K)."""
    if model.pool == "none":
        return head_logits(model.head, embeddings)
    pooled = pool_embeddings(embeddings[None], None, model.pool, model.attention)
    return head_logits(model.head, pooled)


def head_gradient(model: TransferClassifier, embeddings: Tensor, target: int) -> Tensor:
    """
    Return the gradient (N, F) of the logit of a class with respect to the embeddings (N, F) of a source.

    With pooling it is the logit of the series; without it that of each image. The model is in evaluation
    mode.
    """
    leaves = embeddings.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(source_logits(model, leaves)[:, target].sum(), leaves)
    return gradient


def activation_maps(
    backbone: nn.Module,
    layer: Layer,
    batches: Iterable[tuple[Tensor, Tensor]],
    method: Method = "gradcam",
) -> npt.NDArray[np.float32]:
    """
    Return class activation maps (N, h, w) float32 of images (B, C, H, W) with logit gradients (B, F).

    Grad-CAM: ``ReLU(sum_c w_c A_c)``, ``w_c`` the mean gradient over cells (Selvaraju et al., ICCV 2017,
    equations 1 and 2); HiResCAM: ``ReLU(sum_c (dy/dA_c * A_c))`` (Draelos and Carin, 2020).
    """
    maps = []
    with capture_activation(backbone, layer) as held:
        for images, gradient in batches:
            # the images require a gradient, because all parameters may be frozen
            embeddings = backbone(images.detach().requires_grad_())
            (slope,) = torch.autograd.grad(embeddings, held, gradient.to(embeddings.dtype))
            weights, activations = layer.maps(slope).float(), layer.maps(held[0].detach()).float()
            if method == "gradcam":
                weights = weights.mean(dim=(2, 3), keepdim=True)
            maps.append((weights * activations).sum(dim=1).relu().cpu())
    found: npt.NDArray[np.float32] = torch.cat(maps).numpy()
    if not np.isfinite(found).all():
        raise TrainingError(
            "activations or gradients of the network are not finite, so there is no heat map; check its "
            "training, and the mean and std of its preprocessing"
        )
    return found
