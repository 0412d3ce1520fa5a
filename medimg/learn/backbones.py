"""Any torchvision classification model, or one of a user's own: how it is built, and for which pictures."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torchvision
from torchvision.models import get_model, get_model_weights, list_models

from medimg.errors import PreprocessError, TrainingError
from medimg.learn.parts import Parts, head_logits, new_head, take_apart
from medimg.learn.registry import own_backbone, own_names
from medimg.prep import Preprocess

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision.models import Weights

    from medimg.learn.weights import WeightsSource

__all__ = [
    "Architecture",
    "Parts",
    "architecture_for",
    "backbone_names",
    "check_backbone",
    "check_size",
    "default_recipe",
    "head_logits",
    "new_head",
]

_WITH_AUXILIARY_HEADS: Final = ("googlenet", "inception_v3")
_SWIN_MIN: Final = 32  # it pads to its windows: the training size that its metadata names is no minimum


@dataclass(frozen=True, slots=True)
class Architecture:
    """
    All that is needed to build a network again, without its weights.

    Parameters
    ----------
    name : str
        Name in torchvision, or of a network of one's own.
    transform_input : bool
        Whether GoogLeNet and Inception re-scale their input to what their ImageNet weights were trained on.
    image_size : int or None
        The size a ViT is built for; None for all others.
    """

    name: str
    transform_input: bool = False
    image_size: int | None = None

    def build(self, *, initialize: bool = True) -> Parts:
        """
        Build the network with random weights, and take it apart.

        Parameters
        ----------
        initialize : bool
            False where weights are loaded next: spares GoogLeNet and Inception their slow initialization.

        Returns
        -------
        Parts

        Raises
        ------
        TrainingError
            If a network of one's own is unsound.

        Notes
        -----
        The head is the last ``nn.Linear`` or ``nn.Conv2d`` in ``named_modules()``: so it is in all 80
        classification models of torchvision 0.29.
        """
        own = own_backbone(self.name)
        if own is not None:
            return own.build()
        options: dict[str, Any] = {}
        if self.name in _WITH_AUXILIARY_HEADS:
            options = {
                "aux_logits": False,
                "init_weights": initialize,
                "transform_input": self.transform_input,
            }
        elif self.image_size is not None:
            options = {"image_size": self.image_size}
        return take_apart(get_model(self.name, weights=None, **options))


def backbone_names() -> tuple[str, ...]:
    """
    Return the names of all classification models of the installed torchvision.

    Examples
    --------
    >>> "resnet50" in backbone_names()
    True
    """
    return tuple(list_models(module=torchvision.models))


def check_backbone(name: str) -> None:
    """
    Refuse a name that torchvision has no classification model for, and that was not registered.

    Raises
    ------
    TrainingError
        It names the nearest ones.

    Examples
    --------
    >>> check_backbone("resnet-50")
    Traceback (most recent call last):
    medimg.errors.TrainingError: torchvision has no classification model 'resnet-50'; the nearest ...
    """
    known = (*backbone_names(), *own_names())
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
        hint = f"the nearest are {', '.join(near)}" if near else f"it has {', '.join(known)}"
        raise TrainingError(
            f"torchvision has no classification model {name!r}; {hint}. A network of your own is made known "
            "by medimg.register_backbone, before a checkpoint of it is loaded too"
        )


def default_recipe(
    name: str, source: WeightsSource | None, state: dict[str, Tensor] | None = None
) -> Preprocess:
    """
    Return the recipe that a backbone and its weights ask for.

    Parameters
    ----------
    name : str
        The backbone.
    source : WeightsSource or None
        The weights. Those chosen by name bring their own size, mean and standard deviation; for a file or for
        none the mean and standard deviation of the default weights hold, and 224 pixels.
    state : dict of str to Tensor, optional
        The content of a file: a ViT's tells the only size that it takes.

    Returns
    -------
    Preprocess
    """
    own = own_backbone(name)
    if own is not None:
        return own.recipe
    entry = source.entry if source is not None else None
    transforms = (entry or get_model_weights(name)["DEFAULT"].value).transforms()
    size = transforms.crop_size[0] if entry is not None else _stated_size(name, state) or 224
    return Preprocess(size=size, mean=tuple(transforms.mean), std=tuple(transforms.std))


def architecture_for(
    name: str, *, entry: Weights | None, state: dict[str, Tensor] | None, recipe: Preprocess
) -> Architecture:
    """
    Return what to build for these weights and this recipe.

    Parameters
    ----------
    name : str
        The backbone.
    entry : Weights or None
        torchvision's description of weights chosen by name.
    state : dict of str to Tensor, or None
        The content of a file chosen by path.
    recipe : Preprocess
        The recipe.

    Returns
    -------
    Architecture

    Raises
    ------
    PreprocessError
        If the network takes no pictures of the recipe's size.
    """
    pretrained = entry is not None or state is not None
    transform_input = pretrained and name in _WITH_AUXILIARY_HEADS
    is_vit = name.startswith("vit_") and own_backbone(name) is None
    image_size = _vit_size(name, entry, state, recipe) if is_vit else None
    architecture = Architecture(name, transform_input=transform_input, image_size=image_size)
    check_size(architecture, recipe)
    return architecture


def check_size(architecture: Architecture, recipe: Preprocess) -> None:
    """
    Refuse a recipe whose pictures the network can't take.

    Raises
    ------
    PreprocessError
        It names the size found and the one expected.
    """
    name = architecture.name
    exact, least = _sizes(architecture)
    if exact is not None and recipe.hw != (exact, exact):
        raise PreprocessError(
            f"{name} with these weights takes pictures of {exact} by {exact} only; the recipe makes "
            f"{recipe.hw[0]} by {recipe.hw[1]}: use preprocess.replace(size={exact}), or give no recipe, and "
            "it follows the weights"
        )
    if min(recipe.hw) < least:
        raise PreprocessError(
            f"{name} takes pictures of at least {least} by {least}; the recipe makes "
            f"{recipe.hw[0]} by {recipe.hw[1]}: use preprocess.replace(size={max(least, 224)})"
        )


def _sizes(architecture: Architecture) -> tuple[int | None, int]:
    """Return the only size that a network takes, if there is one, and the least."""
    name = architecture.name
    own = own_backbone(name)
    if own is not None:
        return own.exact_size, own.min_size
    if name == "maxvit_t":
        return 224, 1
    if architecture.image_size is not None:
        return architecture.image_size, 1
    if name.startswith("swin"):
        return None, _SWIN_MIN
    return None, max(get_model_weights(name)["DEFAULT"].value.meta["min_size"])


def _vit_size(name: str, entry: Weights | None, state: dict[str, Tensor] | None, recipe: Preprocess) -> int:
    """Pick the size a ViT is built for: that of the weights, or for none that of the recipe."""
    if entry is not None:
        return int(entry.meta["min_size"][0])
    stated = _stated_size(name, state)
    if stated is not None:
        return stated
    patch = _patch(name)
    rows, columns = recipe.hw
    if rows != columns or rows % patch:
        raise PreprocessError(
            f"{name} takes square pictures whose side is a multiple of {patch}; the recipe makes "
            f"{rows} by {columns}: use preprocess.replace(size=224)"
        )
    return rows


def _stated_size(name: str, state: dict[str, Tensor] | None) -> int | None:
    """Return the size that a ViT's file of weights was made for."""
    positions = (state or {}).get("encoder.pos_embedding")
    if not name.startswith("vit_") or positions is None or positions.ndim != 3 or positions.shape[1] < 2:
        return None
    return math.isqrt(positions.shape[1] - 1) * _patch(name)


def _patch(name: str) -> int:
    return int(name.rsplit("_", 1)[1])
