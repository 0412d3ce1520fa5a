"""Adaptive batch normalization."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from medimg.adapt.base import Adaptation, Images
from medimg.errors import TrainingError
from medimg.models.module_mode import module_mode

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AdaBN"]


@dataclass(frozen=True, repr=False, eq=False)
class AdaBN(Adaptation):
    """
    Adaptive batch normalization: after training, the running statistics are replaced by those of the target.

    Li, Wang, Shi, Liu and Hou, Revisiting Batch Normalization for Practical Domain Adaptation, 2016. As in
    ``torch.optim.swa_utils.update_bn``, the statistics are reset and then averaged over the batches; only
    BatchNorm layers are in training mode. Frozen layers are included.

    Parameters
    ----------
    target : ImageDataset
        Images of the target domain; their labels are not used.

    Examples
    --------
    >>> import medimg
    >>> medimg.adapt.AdaBN([None, None])
    AdaBN(target_items=2)
    """

    target: Images = field()
    moves_backbone: ClassVar[bool] = False

    @staticmethod
    def suits(model: nn.Module) -> bool:
        """Return whether a network has a BatchNorm layer that keeps statistics."""
        return bool(_find_batchnorm(model))

    def check_model(self, model: nn.Module) -> None:
        """
        Raise an error if a network has no batch normalization.

        Raises
        ------
        TrainingError
            If it has no BatchNorm layer that keeps statistics.
        """
        if not self.suits(model):
            raise TrainingError(
                "AdaBN replaces the statistics of BatchNorm layers, and this network has none: use a "
                "backbone with batch normalization (resnet, densenet, efficientnet, vgg*_bn), or use CORAL"
            )

    def finish(self, model: nn.Module, device: torch.device, batch_size: int, workers: int) -> None:
        """
        Replace the running statistics by those of the target.

        Parameters
        ----------
        model : nn.Module
            Model to change in place; modes and momenta are restored.
        device : torch.device
            Device of the model.
        batch_size : int
            Largest number of images per batch; batch sizes differ by one at most.
        workers : int
            Number of processes that read the images; 0 for this process.

        Raises
        ------
        TrainingError
            If there is no BatchNorm layer.
        """
        self.check_model(model)
        body = getattr(model, "backbone", model)
        layers = _find_batchnorm(body)
        momenta = [layer.momentum for layer in layers]
        try:
            with module_mode(model, training=False), torch.no_grad():
                for layer in layers:
                    layer.reset_running_stats()
                    layer.momentum = None  # the mean over all batches
                    layer.train()
                for images in _load_batches(self.target, batch_size, workers):
                    body(images.to(device))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum


def _find_batchnorm(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _load_batches(images: Images, batch_size: int, workers: int) -> Iterator[Tensor]:
    """Yield images (B, C, H, W), also the slices of bags, in batches of about the same size."""
    loader: DataLoader[Any] = DataLoader(
        _Unlabeled(images),  # type: ignore[arg-type]  # has a length and items
        batch_size=_split_evenly(len(images), batch_size),
        num_workers=workers,
        collate_fn=_concat_images,
        generator=torch.Generator(),
    )
    for batch in loader:
        yield from batch.split(_split_evenly(len(batch), batch_size))


def _split_evenly(count: int, most: int) -> int:
    """Return the batch size with which all batches, which count equally, have about the same size."""
    return math.ceil(count / math.ceil(count / max(most, 2)))


def _concat_images(items: list[Tensor]) -> Tensor:
    return torch.cat([image if image.ndim == 4 else image[None] for image in items])


class _Unlabeled:
    """Images of a dataset, without labels."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index][0]
