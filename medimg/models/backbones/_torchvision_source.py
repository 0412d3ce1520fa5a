"""Torchvision's classification models as a source of backbones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import torchvision
from torchvision.models import get_model, get_model_weights, list_models

from medimg._validation import did_you_mean
from medimg.errors import PreprocessError, WeightsUnavailableError, also
from medimg.models.backbones.heads import HeadParts, split_head
from medimg.models.backbones.source import Architecture, SizeRule
from medimg.models.backbones.weights import WeightsSource
from medimg.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Mapping

    from torch import Tensor
    from torchvision.models import Weights, WeightsEnum

    from medimg.models.backbones.weights import WeightsChoice

__all__ = ["TorchvisionBackbone", "backbone_names"]

_WITH_AUXILIARY_HEADS: Final = ("googlenet", "inception_v3")
_SWIN_MIN: Final = 32  # it pads to its windows: the training size in its metadata is not a minimum


def backbone_names() -> tuple[str, ...]:
    """Return the names of all classification models of the installed torchvision."""
    return tuple(list_models(module=torchvision.models))


@dataclass(frozen=True, slots=True)
class TorchvisionBackbone:
    """A classification model of torchvision."""

    name: str
    channels: int = 3
    library: None = None
    unnamed_weights: None = None

    def count_parameters(self, architecture: Architecture) -> int:
        """Return the number of parameters with the head."""
        return int(get_model_weights(self.name)["DEFAULT"].value.meta["num_params"])

    def resolve_weights(self, choice: WeightsChoice, *, accept_license: bool) -> WeightsSource | None:
        """Return the weights of a name or member; licenses of their own must be accepted."""
        choices = get_model_weights(self.name)
        member = _find_member(self.name, choices, choice)
        name = f"{choices.__name__}.{member.name}"
        path = Path(torch.hub.get_dir()) / "checkpoints" / member.url.rsplit("/", 1)[-1]
        source = WeightsSource(name, path, member.url, member.value, member.value.meta.get("license"))
        if source.license is not None and not accept_license:
            raise WeightsUnavailableError(
                f"{name} are under a license of their own: {source.license}; read it and pass "
                "accept_license=True, or choose other weights, or weights=None"
            )
        return source

    def default_recipe(self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None) -> Preprocess:
        """
        Return the default preprocessing.

        Weights chosen by name have their own size, mean and standard deviation. For a file or random weights
        those of the default weights are used, with 224 pixels or the size of the ViT in the file.
        """
        entry = weights.entry if weights is not None else None
        transforms = (entry or get_model_weights(self.name)["DEFAULT"].value).transforms()
        size = transforms.crop_size[0] if entry is not None else _stated_size(self.name, state) or 224
        return Preprocess(size=size, mean=tuple(transforms.mean), std=tuple(transforms.std))

    def plan(
        self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None, recipe: Preprocess
    ) -> Architecture:
        """Return the description for weights and the images of a recipe."""
        entry = weights.entry if weights is not None else None
        transform_input = weights is not None and self.name in _WITH_AUXILIARY_HEADS
        image_size = _vit_size(self.name, entry, state, recipe) if self.name.startswith("vit_") else None
        return Architecture(self.name, transform_input=transform_input, image_size=image_size)

    def size_rule(self, architecture: Architecture) -> SizeRule:
        """Return the sizes that the network takes."""
        if self.name == "maxvit_t":
            return SizeRule(exact=224)
        if architecture.image_size is not None:
            return SizeRule(exact=architecture.image_size)
        if self.name.startswith("swin"):
            return SizeRule(least=_SWIN_MIN)
        return SizeRule(least=max(get_model_weights(self.name)["DEFAULT"].value.meta["min_size"]))

    def build(self, architecture: Architecture, recipe: Preprocess | None, *, initialize: bool) -> HeadParts:
        """
        Build the network with random weights, and split off its head.

        `initialize` is False if weights are loaded next, to skip the slow initialization of GoogLeNet and
        Inception. The head is the last ``nn.Linear`` or ``nn.Conv2d`` in ``named_modules()``, as it is in all
        80 classification models of torchvision 0.29.
        """
        options: dict[str, Any] = {}
        if self.name in _WITH_AUXILIARY_HEADS:
            options = {
                "aux_logits": False,
                "init_weights": initialize,
                "transform_input": architecture.transform_input,
            }
        elif architecture.image_size is not None:
            options = {"image_size": architecture.image_size}
        return split_head(get_model(self.name, weights=None, **options))

    def convert(
        self, parts: HeadParts, architecture: Architecture, state: OrderedDict[str, Tensor]
    ) -> OrderedDict[str, Tensor]:
        """Return the tensors of a file as they are."""
        return state


def _vit_size(
    name: str, entry: Weights | None, state: Mapping[str, Tensor] | None, recipe: Preprocess
) -> int:
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


def _stated_size(name: str, state: Mapping[str, Tensor] | None) -> int | None:
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


def _find_member(backbone: str, choices: type[WeightsEnum], weights: Any) -> WeightsEnum:
    """Return the member of an enumeration for a name or a member."""
    if isinstance(weights, Enum):
        if isinstance(weights, choices):
            return weights
        wanted = str(weights)
    else:
        wanted = str(weights)
        prefix, _, short = wanted.rpartition(".")
        # __members__ also has aliases, such as DEFAULT
        if prefix in ("", choices.__name__) and short in choices.__members__:
            return choices.__members__[short]
    names = [member.name for member in choices]
    hint = did_you_mean(wanted.rpartition(".")[2], names)
    raise also(WeightsUnavailableError, KeyError)(
        f"{backbone} has no weights {wanted!r}; expected {', '.join(map(repr, ['DEFAULT', *names]))}, or "
        f"the path of a file such as './weights.pth'{hint}"
    )
