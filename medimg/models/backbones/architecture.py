"""Architectures of torchvision and registered networks: how they are built, and for which image sizes."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import torchvision
from torchvision.models import get_model, get_model_weights, list_models

from medimg._validation import did_you_mean
from medimg.errors import PreprocessError, TrainingError, WeightsUnavailableError, also
from medimg.models.backbones.heads import HeadParts, split_head
from medimg.models.backbones.registry import mark_used, registered_backbone, registered_names
from medimg.models.backbones.state_matching import match_state
from medimg.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision.models import Weights

    from medimg.models.backbones.state_matching import WeightsReport
    from medimg.models.backbones.weights import WeightsSource

__all__ = [
    "Architecture",
    "architecture_for",
    "backbone_names",
    "check_backbone",
    "check_images",
    "check_size",
    "default_recipe",
    "load_backbone",
]

_WITH_AUXILIARY_HEADS: Final = ("googlenet", "inception_v3")
_SWIN_MIN: Final = 32  # it pads to its windows: the training size in its metadata is not a minimum


@dataclass(frozen=True, slots=True)
class Architecture:
    """
    Description from which a network is built, without its weights.

    `name` is torchvision's or a registered one; `transform_input` makes GoogLeNet and Inception rescale their
    input to the range of their ImageNet weights; `image_size` is the size of a ViT, None for all others.
    """

    name: str
    transform_input: bool = False
    image_size: int | None = None

    def build(self, *, initialize: bool = True) -> HeadParts:
        """
        Build the network with random weights, and split off its head.

        `initialize` is False if weights are loaded next, to skip the slow initialization of GoogLeNet and
        Inception. The head is the last ``nn.Linear`` or ``nn.Conv2d`` in ``named_modules()``, as it is in all
        80 classification models of torchvision 0.29.
        """
        parts = self._build_parts(initialize=initialize)
        mark_used(parts.body)
        return parts

    def _build_parts(self, *, initialize: bool) -> HeadParts:
        own = registered_backbone(self.name)
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
        return split_head(get_model(self.name, weights=None, **options))


def backbone_names() -> tuple[str, ...]:
    """Return the names of all classification models of the installed torchvision."""
    return tuple(list_models(module=torchvision.models))


def check_backbone(name: str) -> None:
    """
    Refuse a name of neither a torchvision classification model nor a registered network.

    Examples
    --------
    >>> check_backbone("resnet-50")
    Traceback (most recent call last):
    medimg.errors.TrainingError: torchvision has no classification model 'resnet-50', and ...
    """
    known = (*backbone_names(), *registered_names())
    if not isinstance(name, str) or name not in known:
        hint = did_you_mean(name, known, most=3)
        listed = "" if hint else f"; expected one of {', '.join(known)}"
        raise also(TrainingError, KeyError)(
            f"torchvision has no classification model {name!r}, and a network of your own must be registered "
            f"by medimg.register_backbone, also before a checkpoint of it is loaded{listed}{hint}"
        )


def default_recipe(
    name: str, source: WeightsSource | None, state: dict[str, Tensor] | None = None
) -> Preprocess:
    """
    Return the default preprocessing of a backbone and its weights.

    Weights chosen by name have their own size, mean and standard deviation. For a file or random weights
    those of the default weights are used, with 224 pixels or the size of the ViT in the file (`state`).
    """
    own = registered_backbone(name)
    if own is not None:
        return own.recipe
    entry = source.entry if source is not None else None
    transforms = (entry or get_model_weights(name)["DEFAULT"].value).transforms()
    size = transforms.crop_size[0] if entry is not None else _stated_size(name, state) or 224
    return Preprocess(size=size, mean=tuple(transforms.mean), std=tuple(transforms.std))


def architecture_for(
    name: str, *, entry: Weights | None, state: dict[str, Tensor] | None, recipe: Preprocess
) -> Architecture:
    """Return the architecture for weights by name (`entry`) or from a file (`state`), and for a recipe."""
    check_images(name, recipe)
    pretrained = entry is not None or state is not None
    transform_input = pretrained and name in _WITH_AUXILIARY_HEADS
    is_vit = name.startswith("vit_") and registered_backbone(name) is None
    image_size = _vit_size(name, entry, state, recipe) if is_vit else None
    architecture = Architecture(name, transform_input=transform_input, image_size=image_size)
    check_size(architecture, recipe)
    return architecture


def check_images(name: str, recipe: Preprocess) -> None:
    """Refuse a recipe whose images are not (3, H, W)."""
    if recipe.dims != 2:
        raise PreprocessError(
            f"{name} is a network in 2-D, which takes slices; found a recipe of volumes, dims=3: use "
            "Preprocess(dims=2), with pool= for whole series, or train a 3-D network of your own on an "
            "ImageDataset with this recipe"
        )
    if recipe.n_channels != 3:
        raise PreprocessError(
            f'{name} takes images of three channels; found a recipe with channels="single": use '
            'Preprocess(channels="repeat"), which repeats the one channel'
        )


def check_size(architecture: Architecture, recipe: Preprocess) -> None:
    """Refuse a recipe whose images have a size that the network does not take."""
    name = architecture.name
    check_images(name, recipe)
    exact, least = _sizes(architecture)
    if exact is not None and recipe.hw != (exact, exact):
        raise PreprocessError(
            f"{name} with these weights takes images of {exact}×{exact} only; found a recipe with "
            f"{recipe.hw[0]}×{recipe.hw[1]}: use preprocess.replace(size={exact}), or no recipe, to use "
            "that of the weights"
        )
    if min(recipe.hw) < least:
        raise PreprocessError(
            f"{name} takes images of at least {least}×{least}; found a recipe with "
            f"{recipe.hw[0]}×{recipe.hw[1]}: use preprocess.replace(size={max(least, 224)})"
        )


def _sizes(architecture: Architecture) -> tuple[int | None, int]:
    """Return the only size that a network takes, or None, and the smallest size."""
    name = architecture.name
    own = registered_backbone(name)
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
    """Return the size of a ViT: that of the weights, or without weights that of the recipe."""
    if entry is not None:
        return int(entry.meta["min_size"][0])
    stated = _stated_size(name, state)
    if stated is not None:
        return stated
    patch = _patch_size(name)
    rows, columns = recipe.hw
    if rows != columns or rows % patch:
        raise PreprocessError(
            f"{name} takes square images with a side that is a multiple of {patch}; found a recipe with "
            f"{rows}×{columns}: use preprocess.replace(size=224)"
        )
    return rows


def _stated_size(name: str, state: dict[str, Tensor] | None) -> int | None:
    """Return the size of a ViT by the position embeddings in its weights; None for others."""
    named = ("encoder.pos_embedding", "pos_embed")  # torchvision's name, and timm's
    positions = next(
        (v for n, v in (state or {}).items() if n in named or n.endswith(tuple(f".{one}" for one in named))),
        None,
    )
    if not name.startswith("vit_") or positions is None or positions.ndim != 3 or positions.shape[1] < 2:
        return None
    return math.isqrt(positions.shape[1] - 1) * _patch_size(name)


def _patch_size(name: str) -> int:
    """Return the patch size of a ViT by its name."""
    return int(name.rsplit("_", 1)[1])


_AUXILIARY: Final = ("aux1.", "aux2.", "AuxLogits.")
# torchvision's first DenseNet files have "norm.1" for "norm1"
_OLD_DENSENET: Final = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")


def load_backbone(
    parts: HeadParts,
    state: OrderedDict[str, Tensor],
    *,
    backbone: str,
    source: str,
    min_match: float = 1.0,
) -> WeightsReport:
    """Load pretrained weights into a body, without those of the head; names are for messages."""
    heads = (f"{parts.head_name}.", *_AUXILIARY) if parts.head_name else _AUXILIARY
    renamed = OrderedDict((_OLD_DENSENET.sub(r"\1\2", name), value) for name, value in state.items())
    match = match_state(parts, renamed, backbone=backbone, source=source, heads=heads, min_match=min_match)
    found = match.state
    # without versions the oldest are assumed, which MNASNet refuses
    metadata = getattr(state, "_metadata", None) if match.report.is_as_saved else None
    found._metadata = metadata or {"": {"version": parts.body._version}}  # type: ignore[attr-defined]  # set by torch, and untyped
    broken = [n for n, v in found.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        raise WeightsUnavailableError(
            f"the weights {source} have values that are not finite in {', '.join(broken[:3])} (torchvision's "
            "IMAGENET1K_FEATURES, for example, have no classifier): choose other weights"
        )
    parts.body.load_state_dict(found, strict=False)  # strictness is match_state's, which names the causes
    return match.report
