"""Networks by name, from all sources: which there are, how they are built, and for which image sizes."""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from medimg._validation import did_you_mean, printable
from medimg.errors import PreprocessError, TrainingError, WeightsUnavailableError, also
from medimg.io.files.regular_file import is_regular_file
from medimg.models.backbones._hf_source import HFBackbone
from medimg.models.backbones._module_source import ModuleBackbone
from medimg.models.backbones._radimagenet_source import RadImageNetBackbone
from medimg.models.backbones._timm_source import TimmBackbone
from medimg.models.backbones._torchvision_source import TorchvisionBackbone, backbone_names
from medimg.models.backbones._xrv_source import XrvBackbone
from medimg.models.backbones.heads import HeadParts
from medimg.models.backbones.registry import mark_used, registered_backbone, registered_names
from medimg.models.backbones.source import Architecture, BackboneSource, check_probe, grayscale_recipe
from medimg.models.backbones.state_matching import list_names, match_state
from medimg.models.backbones.stems import fold_stem
from medimg.models.backbones.weights import (
    WeightsChoice,
    WeightsSource,
    describe_choice,
    is_weights_path,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from medimg.models.backbones.state_matching import WeightsReport
    from medimg.preprocessing.preprocess import Preprocess

__all__ = [
    "Architecture",
    "architecture_for",
    "backbone_names",
    "build_backbone",
    "check_backbone",
    "check_images",
    "check_size",
    "convert_state",
    "default_recipe",
    "find_backbone",
    "is_name",
    "load_backbone",
    "open_folder",
    "rebuild_source",
    "resolve_weights",
    "weights_name",
]

#: Sources by what is before the colon in a name, beside torchvision and registered networks.
_SOURCES: Final[dict[str, Callable[[str], BackboneSource]]] = {
    "timm": TimmBackbone.open,
    "hf": HFBackbone.open,
    "torchxrayvision": XrvBackbone.open,
    "radimagenet": RadImageNetBackbone.open,
    "module": ModuleBackbone.open,
}
_BY_USERS: Final = ("timm", "hf", "torchxrayvision", "radimagenet")


def find_backbone(backbone: str | nn.Module | BackboneSource) -> BackboneSource:
    """
    Return the source of a network by its name, or of a network itself.

    Examples
    --------
    >>> find_backbone("torchxrayvision:densenet121-res224-all").channels
    1
    >>> find_backbone("resnet-50")
    Traceback (most recent call last):
    medimg.errors.TrainingError: torchvision has no classification model 'resnet-50', and ...
    """
    if isinstance(backbone, nn.Module):
        return ModuleBackbone.of(backbone)
    if not isinstance(backbone, str):
        if hasattr(backbone, "size_rule"):
            return backbone
        backbone = printable(repr(backbone))
    registered = registered_backbone(backbone)
    if registered is not None:
        return registered
    prefix, colon, rest = backbone.partition(":")
    if colon and rest and prefix in _SOURCES:
        return _SOURCES[prefix](backbone)
    known = (*backbone_names(), *registered_names())
    if backbone in backbone_names():
        return TorchvisionBackbone(backbone)
    hint = did_you_mean(backbone, known, most=3)
    listed = "" if hint else f"; expected one of {', '.join(known)}"
    raise also(TrainingError, KeyError)(
        f"torchvision has no classification model {printable(backbone)!r}, and a network of your own must be "
        "registered by medimg.register_backbone, also before a checkpoint of it is loaded; networks of other "
        f"sources start with {', '.join(f'{name}:' for name in _BY_USERS)}{listed}{hint}"
    )


def is_name(backbone: str) -> bool:
    """Whether a text with a slash is a name nevertheless, by its source or as it is registered."""
    return backbone.partition(":")[0] in _SOURCES or registered_backbone(backbone) is not None


def check_backbone(name: str) -> None:
    """Refuse a name of no network."""
    find_backbone(name)


def rebuild_source(architecture: Architecture, network: nn.Module | None = None) -> BackboneSource:
    """Return the source from which the network of a checkpoint is built; `network` is the user's own."""
    name = architecture.name
    if network is not None:
        if not architecture.is_module:
            raise TrainingError(
                f"the network of this model is {name}, which is built from its name; backbone= is for "
                "networks of your own: omit it"
            )
        return replace(ModuleBackbone.of(network), name=name)
    if registered_backbone(name) is None:
        if name.startswith("hf:"):
            return HFBackbone.rebuild(architecture)
        if name.startswith("timm:"):
            return TimmBackbone.rebuild(architecture)
    return find_backbone(name)


def open_folder(folder: Path) -> BackboneSource:
    """Return the network of a folder that transformers or timm wrote, by its configuration."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(
            f"the folder {folder.name} has no config.json that can be read ({type(error).__name__}); "
            "expected one that transformers (save_pretrained) or timm (save_for_hf) wrote"
        ) from error
    if isinstance(settings, dict) and isinstance(settings.get("architecture"), str):
        return TimmBackbone.open_folder(folder, settings)
    return HFBackbone.open_folder(folder)


def resolve_weights(
    backbone: str | BackboneSource, weights: WeightsChoice, *, accept_license: bool = False
) -> WeightsSource | None:
    """
    Return the source of weights, without reading or downloading it; None for random weights.

    A text is a path if it has a folder, ends like a file of weights, or is no name but a file that exists. A
    registered network's "DEFAULT" are the weights it is built with, also None. Licenses of their own (SWAG:
    CC BY-NC 4.0) must be accepted.

    Examples
    --------
    >>> resolve_weights("resnet50", "DEFAULT").name
    'ResNet50_Weights.IMAGENET1K_V2'
    >>> resolve_weights("resnet50", "weights/resnet50-11ad3fa6.pth").name
    'resnet50-11ad3fa6.pth'
    """
    if weights is None:
        return None
    if not isinstance(weights, str | os.PathLike | Enum):
        raise WeightsUnavailableError(
            f"weights must be a name, a path or None; found {describe_choice(weights)}; torchvision's best "
            "are "
            '"DEFAULT"'
        )
    source = find_backbone(backbone)
    if isinstance(weights, Enum):
        return source.resolve_weights(weights, accept_license=accept_license)
    path = Path(weights).expanduser()
    if not is_weights_path(weights):
        try:
            return source.resolve_weights(weights, accept_license=accept_license)
        except KeyError:  # no name of weights
            if not is_regular_file(path):
                raise
    return WeightsSource(path.name, path, pickled_classes=getattr(source, "pickled_classes", ()))


def weights_name(backbone: str | BackboneSource, source: WeightsSource | None) -> str | None:
    """Return the name of initial weights: None for random ones, "as built" for a registered network's own."""
    return source.name if source is not None else find_backbone(backbone).unnamed_weights


def default_recipe(
    backbone: str | BackboneSource,
    source: WeightsSource | None,
    state: Mapping[str, Tensor] | None = None,
    *,
    channels: int | None = None,
) -> Preprocess:
    """Return the default preprocessing of a backbone and its weights, for one channel if that is wanted."""
    found = find_backbone(backbone)
    recipe = found.default_recipe(source, state)
    return grayscale_recipe(recipe) if channels == 1 else recipe


def architecture_for(
    backbone: str | BackboneSource,
    *,
    weights: WeightsSource | None,
    state: Mapping[str, Tensor] | None,
    recipe: Preprocess,
    channels: int | None = None,
) -> Architecture:
    """Return the architecture for weights, by name or from a file (`state`), and for a recipe."""
    source = find_backbone(backbone)
    wanted = source.channels if channels is None else channels
    if wanted not in (1, 3) or isinstance(wanted, bool) or wanted > source.channels:
        expected = "1 or 3" if source.channels == 3 else "1, as it was made for images of one channel"
        raise TrainingError(f"in_channels of {source.name} must be {expected}; found {channels!r}")
    check_images(source.name, recipe, wanted)
    architecture = replace(source.plan(weights, state, recipe), channels=wanted)
    check_size(architecture, recipe, source)
    return architecture


def check_images(name: str, recipe: Preprocess, channels: int = 3) -> None:
    """Refuse a recipe whose images are not (C, H, W)."""
    if recipe.dims != 2:
        raise PreprocessError(
            f"{name} is a network in 2-D, which takes slices; found a recipe of volumes, dims=3: use "
            "Preprocess(dims=2), with pool= for whole series, or train a 3-D network of your own on an "
            "ImageDataset with this recipe"
        )
    if recipe.n_channels > channels:
        raise PreprocessError(
            f'{name} takes images of one channel; found a recipe with channels="{recipe.channels}": use '
            "model.preprocess.replace(size=...) of a model that was built without preprocess=, or "
            'Preprocess(channels="single")'
        )
    if recipe.n_channels < channels:
        raise PreprocessError(
            f'{name} takes images of three channels; found a recipe with channels="single": use '
            'Preprocess(channels="repeat"), which repeats the one channel, or in_channels=1, which folds the '
            "weights of its first layer"
        )


def check_size(architecture: Architecture, recipe: Preprocess, source: BackboneSource) -> None:
    """Refuse a recipe whose images have a size that the network does not take."""
    check_images(architecture.name, recipe, architecture.channels)
    source.size_rule(architecture).check(architecture.name, recipe)


def build_backbone(
    architecture: Architecture,
    source: BackboneSource | None = None,
    recipe: Preprocess | None = None,
    *,
    initialize: bool = True,
    tried: bool = True,
) -> HeadParts:
    """
    Build a network with random weights, and split off its head.

    `initialize` is False if weights are loaded next; `tried` is whether a network of a library, or with a
    folded stem, is tried on an image of the recipe.
    """
    source = rebuild_source(architecture) if source is None else source
    parts = source.build(architecture, recipe, initialize=initialize)
    folded = architecture.channels < source.channels
    if folded:
        fold_stem(parts.body, architecture.name)
    if recipe is not None and tried and (folded or source.library is not None):
        check_probe(parts.body, architecture.name, recipe, parts.features)
    mark_used(parts.body)
    return parts


def convert_state(
    parts: HeadParts, architecture: Architecture, source: BackboneSource, state: OrderedDict[str, Tensor]
) -> OrderedDict[str, Tensor]:
    """Return the tensors of a file by the names of the network; its stem is not folded yet."""
    if architecture.channels < source.channels:
        # the code of a source knows its network as it was made
        parts = source.build(replace(architecture, channels=source.channels), None, initialize=False)
    return source.convert(parts, architecture, state)


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
    own = parts.body.state_dict()
    # what is infinite in the network's type is found
    found = OrderedDict((name, value.to(own[name].dtype)) for name, value in match.state.items())
    # without versions the oldest are assumed, which MNASNet refuses
    metadata = getattr(state, "_metadata", None) if match.report.is_as_saved else None
    found._metadata = metadata or {"": {"version": parts.body._version}}  # type: ignore[attr-defined]  # set by torch, and untyped
    broken = [n for n, v in found.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        raise WeightsUnavailableError(
            f"the weights {printable(source)} have values that are not finite in {list_names(broken)} "
            "(torchvision's IMAGENET1K_FEATURES, for example, have no classifier): choose other weights"
        )
    parts.body.load_state_dict(found, strict=False)  # strictness is match_state's, which names the causes
    return match.report
