"""Any torchvision classification model, or one of a user's own: how it is built, and for which pictures."""

from __future__ import annotations

import difflib
import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import torchvision
from torchvision.models import get_model, get_model_weights, list_models

from medimg.errors import PreprocessError, TrainingError, WeightsUnavailableError
from medimg.models.backbones.heads import HeadParts, split_head
from medimg.models.backbones.registry import registered_backbone, registered_names
from medimg.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision.models import Weights

    from medimg.models.backbones.weights import WeightsSource

__all__ = [
    "Architecture",
    "architecture_for",
    "backbone_names",
    "check_backbone",
    "check_size",
    "default_recipe",
    "load_backbone",
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

    def build(self, *, initialize: bool = True) -> HeadParts:
        """
        Build the network with random weights, and take it apart.

        Parameters
        ----------
        initialize : bool
            False where weights are loaded next: spares GoogLeNet and Inception their slow initialization.

        Returns
        -------
        HeadParts

        Raises
        ------
        TrainingError
            If a network of one's own is unsound.

        Notes
        -----
        The head is the last ``nn.Linear`` or ``nn.Conv2d`` in ``named_modules()``: so it is in all 80
        classification models of torchvision 0.29.
        """
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
    known = (*backbone_names(), *registered_names())
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
    is_vit = name.startswith("vit_") and registered_backbone(name) is None
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


_AUXILIARY: Final = ("aux1.", "aux2.", "AuxLogits.")
# torchvision's own first DenseNet files spell "norm.1" for "norm1"
_OLD_DENSENET: Final = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")


def load_backbone(parts: HeadParts, state: OrderedDict[str, Tensor], *, backbone: str, source: str) -> None:
    """
    Load pretrained weights into a body; those of the head, of whatever size, are left out.

    Parameters
    ----------
    parts : HeadParts
        The network; its body is changed.
    state : OrderedDict of str to Tensor
        The state dict of the whole network.
    backbone, source : str
        What to call the network and the weights in a message.

    Raises
    ------
    WeightsUnavailableError
        If names or shapes don't fit, or a value is not finite.
    """
    left_out = (f"{parts.head_name}.", *_AUXILIARY)
    wanted = OrderedDict(
        (_OLD_DENSENET.sub(r"\1\2", name), value)
        for name, value in state.items()
        if not name.startswith(left_out)
    )
    # without versions the oldest are assumed, which MNASNet refuses
    metadata = getattr(state, "_metadata", None) or {"": {"version": parts.body._version}}
    wanted._metadata = metadata  # type: ignore[attr-defined]  # set by torch, and untyped
    _check_fit(parts.body.state_dict(), wanted, backbone, source)
    parts.body.load_state_dict(wanted, strict=False)  # strictness is _check_fit's, which can name the causes


def _check_fit(own: dict[str, Tensor], found: dict[str, Tensor], backbone: str, source: str) -> None:
    # files from before 2018 don't count batches, and nothing here depends on the count
    missing = [n for n in own if n not in found and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in found if n not in own]
    shapes = [
        f"{n} {tuple(found[n].shape)} instead of {tuple(own[n].shape)}"
        for n in own
        if n in found and found[n].shape != own[n].shape
    ]
    kinds = [
        f"{n} {found[n].dtype}"
        for n in own
        if n in found and found[n].is_floating_point() != own[n].is_floating_point()
    ]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("of another type", kinds),
        )
        if names
    ]
    if problems:
        raise WeightsUnavailableError(
            f"the weights {source} are not those of a {backbone}: {'; '.join(problems)}. Pass the backbone "
            "they were made for, or other weights"
        )
    broken = [n for n, v in found.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        raise WeightsUnavailableError(
            f"the weights {source} hold values that are not finite in {', '.join(broken[:3])}; they can't be "
            "trained on (torchvision's IMAGENET1K_FEATURES, for one, have no classifier): choose other ones"
        )
