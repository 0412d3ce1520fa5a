"""Any torchvision classification model, taken apart into a body and a head by one rule."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from medimg.errors import PreprocessError, TrainingError
from medimg.prep import Preprocess

if TYPE_CHECKING:
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
class Parts:
    """
    A model without its head, and the head.

    Parameters
    ----------
    body : nn.Module
        (B, 3, H, W) to embeddings (B, F); an identity stands where the head was.
    head : nn.Linear or nn.Conv2d
        The layer that was taken out.
    head_name : str
        What it was called in the model.
    """

    body: nn.Module
    head: nn.Linear | nn.Conv2d
    head_name: str


@dataclass(frozen=True, slots=True)
class Architecture:
    """
    All that is needed to build a network again, without its weights.

    Parameters
    ----------
    name : str
        Name in torchvision.
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

        Notes
        -----
        The head is the last ``nn.Linear`` or ``nn.Conv2d`` in ``named_modules()``: so it is in all 80
        classification models of torchvision 0.29.
        """
        options: dict[str, Any] = {}
        if self.name in _WITH_AUXILIARY_HEADS:
            options = {
                "aux_logits": False,
                "init_weights": initialize,
                "transform_input": self.transform_input,
            }
        elif self.image_size is not None:
            options = {"image_size": self.image_size}
        return _take_apart(get_model(self.name, weights=None, **options))


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
    Refuse a name that torchvision has no classification model for.

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
    known = backbone_names()
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
        hint = f"the nearest are {', '.join(near)}" if near else f"it has {', '.join(known)}"
        raise TrainingError(f"torchvision has no classification model {name!r}; {hint}")


def default_recipe(name: str, source: WeightsSource | None) -> Preprocess:
    """
    Return the recipe that a backbone and its weights ask for.

    Parameters
    ----------
    name : str
        The backbone.
    source : WeightsSource or None
        The weights. Those chosen by name bring their own size, mean and standard deviation; for a file or for
        none the mean and standard deviation of the default weights hold, and 224 pixels.

    Returns
    -------
    Preprocess
    """
    entry = source.entry if source is not None else None
    transforms = (entry or get_model_weights(name)["DEFAULT"].value).transforms()
    size = transforms.crop_size[0] if entry is not None else 224
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
    image_size = _vit_size(name, entry, state, recipe) if name.startswith("vit_") else None
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
    exact = 224 if name == "maxvit_t" else architecture.image_size
    if exact is not None:
        if recipe.hw != (exact, exact):
            raise PreprocessError(
                f"{name} with these weights takes pictures of {exact} by {exact} only; the recipe makes "
                f"{recipe.hw[0]} by {recipe.hw[1]}: use preprocess.replace(size={exact})"
            )
        return
    meta = get_model_weights(name)["DEFAULT"].value.meta
    least = _SWIN_MIN if name.startswith("swin") else max(meta["min_size"])
    if min(recipe.hw) < least:
        raise PreprocessError(
            f"{name} takes pictures of at least {least} by {least}; the recipe makes "
            f"{recipe.hw[0]} by {recipe.hw[1]}: use preprocess.replace(size=224)"
        )


def _vit_size(name: str, entry: Weights | None, state: dict[str, Tensor] | None, recipe: Preprocess) -> int:
    """Pick the size a ViT is built for: that of the weights, or for none that of the recipe."""
    if entry is not None:
        return int(entry.meta["min_size"][0])
    patch = int(name.rsplit("_", 1)[1])
    positions = (state or {}).get("encoder.pos_embedding")
    if positions is not None and positions.ndim == 3:
        return math.isqrt(positions.shape[1] - 1) * patch
    rows, columns = recipe.hw
    if rows != columns or rows % patch:
        raise PreprocessError(
            f"{name} takes square pictures whose side is a multiple of {patch}; the recipe makes "
            f"{rows} by {columns}: use preprocess.replace(size=224)"
        )
    return rows


def _take_apart(model: nn.Module) -> Parts:
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    head_name, head = linear[-1]
    parent_name, _, child = head_name.rpartition(".")
    parent = model.get_submodule(parent_name)
    setattr(parent, child, nn.Identity())
    if isinstance(head, nn.Conv2d):
        _drop_activations(parent)
    return Parts(model, head, head_name)


def _drop_activations(parent: nn.Module) -> None:
    """Take out SqueezeNet's ReLU after its head: with it no logit is ever negative."""
    for name, child in parent.named_children():
        if isinstance(child, nn.ReLU):
            setattr(parent, name, nn.Identity())


def new_head(old: nn.Linear | nn.Conv2d, outputs: int) -> nn.Linear | nn.Conv2d:
    """
    Return a fresh layer of the same kind and inputs.

    Parameters
    ----------
    old : nn.Linear or nn.Conv2d
        The pretrained head.
    outputs : int
        Number K of outputs.

    Returns
    -------
    nn.Linear or nn.Conv2d
        Weights normal with a deviation of 0.01, biases 0, as torchvision starts most of its heads: training
        begins from nearly equal probabilities, however large a backbone's embeddings are.
    """
    head: nn.Linear | nn.Conv2d
    if isinstance(old, nn.Conv2d):
        head = nn.Conv2d(old.in_channels, outputs, kernel_size=1)
    else:
        head = nn.Linear(old.in_features, outputs)
    nn.init.normal_(head.weight, std=0.01)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    return head


def head_logits(head: nn.Module, embedding: Tensor) -> Tensor:
    """
    Apply a head to embeddings.

    Parameters
    ----------
    head : nn.Linear or nn.Conv2d
        A convolution's 1 x 1 kernel is applied to the average over the picture: both are linear, so this is
        the average of what SqueezeNet computes at each position.
    embedding : Tensor
        (B, F).

    Returns
    -------
    Tensor
        (B, K).
    """
    if isinstance(head, nn.Conv2d):
        return torch.flatten(head(embedding[:, :, None, None]), 1)
    logits: Tensor = head(embedding)
    return logits
