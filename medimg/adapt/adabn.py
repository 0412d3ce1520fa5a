"""Batch normalization with the statistics of the target."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from medimg.adapt.base import Adaptation, Images, hold_statistics
from medimg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AdaBN"]


@dataclass(frozen=True, repr=False, eq=False)
class AdaBN(Adaptation):
    """
    Adaptive batch normalization: after training, the statistics of all layers become those of the target.

    Li, Wang, Shi, Liu and Hou, Revisiting Batch Normalization for Practical Domain Adaptation, 2016. As in
    ``torch.optim.swa_utils.update_bn``, the statistics start anew and are the mean over the batches;
    nothing but BatchNorm layers is in training mode meanwhile. Frozen ones take part: this is asked for.

    Parameters
    ----------
    target : ImageDataset
        Images of the target; its labels are never looked at.

    Examples
    --------
    >>> import medimg
    >>> medimg.adapt.AdaBN([None, None])
    AdaBN(target_items=2)
    """

    target: Images = field()
    moves_backbone: ClassVar[bool] = False

    def check_model(self, model: nn.Module) -> None:
        """
        Refuse a network without batch normalization.

        Raises
        ------
        TrainingError
            If it has no BatchNorm layer that keeps statistics.
        """
        if not _layers(model):
            raise TrainingError(
                "AdaBN replaces the statistics of BatchNorm layers, and this network has none: use a "
                "backbone with batch normalization (resnet, densenet, efficientnet, vgg*_bn), or CORAL"
            )

    def finish(self, model: nn.Module, device: torch.device, batch_size: int, num_workers: int) -> None:
        """
        Take the statistics from the target.

        Parameters
        ----------
        model : nn.Module
            Changed in place; its modes and momenta are restored.
        device : torch.device
            Where it is.
        batch_size : int
            The most pictures at once; all batches get the same number, give or take one.
        num_workers : int
            Processes that read.

        Raises
        ------
        TrainingError
            If there is no BatchNorm layer.
        """
        self.check_model(model)
        body = getattr(model, "backbone", model)
        layers = _layers(body)
        momenta = [layer.momentum for layer in layers]
        try:
            with hold_statistics(model), torch.no_grad():
                for layer in layers:
                    layer.reset_running_stats()
                    layer.momentum = None  # the mean over all batches
                    layer.train()
                for images in _batches(self.target, batch_size, num_workers):
                    body(images.to(device))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum


def _layers(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _batches(images: Images, batch_size: int, num_workers: int) -> Iterator[Tensor]:
    """Yield pictures (B, 3, H, W), those of bags one by one, in batches of about one size."""
    loader: DataLoader[Any] = DataLoader(
        _Unlabeled(images),  # type: ignore[arg-type]  # has a length and items
        batch_size=_even(len(images), batch_size),
        num_workers=num_workers,
        collate_fn=_together,
        generator=torch.Generator(),
    )
    for pictures in loader:
        size = _even(len(pictures), batch_size)
        yield from pictures.split(size)


def _even(count: int, most: int) -> int:
    """Return a size that makes batches alike: each counts as much, the last one too."""
    return math.ceil(count / math.ceil(count / max(most, 2)))


def _together(items: list[Tensor]) -> Tensor:
    return torch.cat([image if image.ndim == 4 else image[None] for image in items])


class _Unlabeled:
    """The images of a data set alone."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index][0]
