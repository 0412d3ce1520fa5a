"""Networks of users' own, made known by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import list_models

from medimg._validation import check_whole_number
from medimg.errors import TrainingError
from medimg.models.backbones.heads import HeadParts, split_head
from medimg.models.module_mode import module_mode
from medimg.preprocessing.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AS_BUILT", "RegisteredBackbone", "register_backbone", "registered_backbone", "registered_names"]

#: How the weights of an own network are called that come from its function.
AS_BUILT: Final = "as built"

_OWN: Final[dict[str, RegisteredBackbone]] = {}


@dataclass(frozen=True, slots=True)
class RegisteredBackbone:
    """
    A network of a user's own, and what its pictures are like.

    Parameters
    ----------
    name : str
        What it is called.
    make : callable
        Gives the network, without arguments.
    recipe : Preprocess
        Size, mean and standard deviation.
    min_size : int
        The smallest side of a picture that it takes.
    exact_size : int or None
        The only side that it takes.
    head : str or None
        The name of its head; None for the last linear or convolutional layer.
    features : int or None
        Length of its embeddings, if it has no head.
    """

    name: str
    make: Callable[[], nn.Module]
    recipe: Preprocess
    min_size: int
    exact_size: int | None
    head: str | None
    features: int | None

    def build(self) -> HeadParts:
        """
        Make the network, take it apart, and try it on one black picture.

        Raises
        ------
        TrainingError
            If that gives no (1, F) embedding.
        """
        network = self.make()
        if not isinstance(network, nn.Module):
            raise TrainingError(
                f"the function of the backbone {self.name!r} gave a {type(network).__name__}; expected an "
                "nn.Module"
            )
        if self.features is not None:
            parts = HeadParts(network, nn.Linear(self.features, 1), "")
        else:
            parts = split_head(network, self.head)
        self._try(parts)
        return parts

    def _try(self, parts: HeadParts) -> None:
        like = next(parts.body.parameters(), torch.zeros(()))
        picture = torch.zeros(1, 3, *self.recipe.hw, device=like.device, dtype=like.dtype)
        try:
            with module_mode(parts.body, training=False), torch.no_grad():
                found: object = parts.body(picture)
        except Exception as error:  # whatever the user's own code raises
            raise TrainingError(
                f"the backbone {self.name!r} fails on a picture {tuple(picture.shape)}: "
                f"{type(error).__name__}: {error}. Register it with a size that it takes, and the name of "
                "its head, if that is not its last linear or convolutional layer"
            ) from error
        wanted = parts.features
        if not isinstance(found, Tensor) or found.shape != (1, wanted):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise TrainingError(
                f"without its head the backbone {self.name!r} makes {shape} of one picture, expected an "
                f"embedding (1, {wanted}): name the layer that is its head, or, for a network without one, "
                "give the length of its embeddings as features="
            )


def register_backbone(
    name: str,
    build: Callable[[], nn.Module],
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    size: int | None = None,
    min_size: int = 1,
    exact_size: int | None = None,
    head: str | None = None,
    features: int | None = None,
) -> None:
    """
    Make a network of your own known, so that a classifier is made from it by its name.

    Its modules are taken in the order in which it registers them, which should be that of computation. A
    checkpoint holds the name and the parameters, not the network: to load it, register the network first.
    What is registered again under the same name replaces what was.

    Parameters
    ----------
    name : str
        Any name that torchvision has no classification model of.
    build : callable
        Gives the network, without arguments: (B, 3, H, W) to logits or, with `features`, to embeddings
        (B, F). It may load pretrained weights; ``TransferClassifier(name, weights=path)`` replaces them.
    mean, std : tuple of 3 floats
        Normalization of the channels that it expects; by default ImageNet's.
    size : int, optional
        Side of its pictures in pixels; by default `exact_size`, or else 224.
    min_size : int
        The smallest side that it takes.
    exact_size : int, optional
        The only side that it takes; by default there are others.
    head : str, optional
        Name in ``named_modules()`` of the ``nn.Linear`` or ``nn.Conv2d`` to replace; by default the last one
        there is.
    features : int, optional
        Length F of the embeddings of a network that has no head: nothing is replaced then.

    Raises
    ------
    TrainingError
        If the name is taken, or a setting is unsound.
    PreprocessError
        If mean, standard deviation or size are unsound.

    Examples
    --------
    >>> from torch import nn
    >>> def small():
    ...     return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> register_backbone("small", small, size=64, features=8)
    >>> from medimg import TransferClassifier
    >>> TransferClassifier("small", classes=["normal", "pneumonia"]).preprocess.size
    64
    """
    _check(name, build, head, features)
    side = size if size is not None else exact_size or 224
    for what, value in (("size", side), ("min_size", min_size), ("exact_size", exact_size)):
        if value is not None:
            check_whole_number(what, value, least=1)
    if side < min_size or exact_size not in (None, side):
        raise TrainingError(
            f"size={side} contradicts min_size={min_size} or exact_size={exact_size}: pass a size that the "
            "network takes"
        )
    recipe = Preprocess(size=side, mean=mean, std=std)
    _OWN[name] = RegisteredBackbone(name, build, recipe, min_size, exact_size, head, features)


def registered_backbone(name: str) -> RegisteredBackbone | None:
    """Return what was registered under a name; None if nothing was."""
    return _OWN.get(name)


def registered_names() -> tuple[str, ...]:
    """Return the names that were registered."""
    return tuple(_OWN)


def _check(name: object, build: object, head: object, features: object) -> None:
    if not isinstance(name, str) or not name.strip():
        raise TrainingError(f"the name of a backbone is a text; found {name!r}")
    if name in list_models(module=torchvision.models):
        raise TrainingError(f"{name!r} is a model of torchvision: give your own network another name")
    if not callable(build) or isinstance(build, nn.Module):
        raise TrainingError(
            f"build is a function without arguments that gives a new network each time; found a "
            f"{type(build).__name__}. Pass lambda: MyNetwork(...)"
        )
    if head is not None and (not isinstance(head, str) or not head):
        raise TrainingError(f"head is the name of a layer in named_modules(); found {head!r}")
    if features is not None and (type(features) is not int or features < 1):
        raise TrainingError(f"features is the length of an embedding; found {features!r}")
    if head is not None and features is not None:
        raise TrainingError("a network with a head to replace has no use for features=: pass one of them")
