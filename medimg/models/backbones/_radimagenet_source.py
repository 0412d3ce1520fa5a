"""RadImageNet's files of weights as a source of backbones: networks of torchvision, names by position."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from medimg._validation import did_you_mean
from medimg.errors import TrainingError, WeightsUnavailableError, also
from medimg.models.backbones._torchvision_source import TorchvisionBackbone
from medimg.models.backbones.source import Architecture, SizeRule
from medimg.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from medimg.models.backbones.heads import HeadParts
    from medimg.models.backbones.weights import WeightsChoice, WeightsSource

__all__ = ["RadImageNetBackbone"]

PREFIX: Final = "radimagenet:"
#: Networks that RadImageNet has weights of, by their names in torchvision.
_NETWORKS: Final = ("resnet50", "densenet121", "inception_v3")
#: Their authors put the layers of a network into a sequence, where they have numbers.
_NUMBERED: Final = re.compile(r"^(?:module\.)?(?:backbone\.)?(\d+)\.(.+)$")
_ADDRESS: Final = "https://github.com/BMEII-AI/RadImageNet"


@dataclass(frozen=True, slots=True)
class RadImageNetBackbone:
    """A network of torchvision for RadImageNet's weights (Mei et al., Radiology: AI 2022)."""

    name: str
    network: TorchvisionBackbone = field(repr=False)
    channels: int = 3
    library: None = None
    unnamed_weights: None = None

    @classmethod
    def open(cls, name: str) -> RadImageNetBackbone:
        """Return the network of a name."""
        model = name.removeprefix(PREFIX)
        if model not in _NETWORKS:
            raise also(TrainingError, KeyError)(
                f"there are no RadImageNet weights of {model!r} in PyTorch that fit a network of "
                f"torchvision; expected one of {', '.join(_NETWORKS)}{did_you_mean(model, _NETWORKS)}"
            )
        return cls(name, TorchvisionBackbone(model))

    def count_parameters(self, architecture: Architecture) -> int:
        """Return the number of parameters with the head."""
        return self.network.count_parameters(architecture)

    def resolve_weights(self, choice: WeightsChoice, *, accept_license: bool) -> WeightsSource | None:
        """Refuse weights by name: there is no address to download them from."""
        raise WeightsUnavailableError(
            f"the weights of {self.name} have no address to download them from; get the file as described at "
            f"{_ADDRESS}, under the terms stated there, and pass weights=<path of the file>, or weights=None "
            "for random weights"
        )

    def default_recipe(self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None) -> Preprocess:
        """Return the preprocessing of RadImageNet's training: intensities from -1 to 1, 224 pixels."""
        return Preprocess(size=224, mean=(0.5,) * 3, std=(0.5,) * 3)

    def plan(
        self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None, recipe: Preprocess
    ) -> Architecture:
        """Return the description."""
        return Architecture(self.name)

    def size_rule(self, architecture: Architecture) -> SizeRule:
        """Return the sizes that the network takes."""
        return self.network.size_rule(architecture)

    def build(self, architecture: Architecture, recipe: Preprocess | None, *, initialize: bool) -> HeadParts:
        """Build the network of torchvision."""
        return self.network.build(architecture, recipe, initialize=initialize)

    def convert(
        self, parts: HeadParts, architecture: Architecture, state: OrderedDict[str, Tensor]
    ) -> OrderedDict[str, Tensor]:
        """Return the tensors by torchvision's names, from their numbers in a sequence of the layers."""
        layers = [name for name, _ in parts.body.named_children()]
        numbered = {name: _NUMBERED.match(name) for name in state}
        if not all(numbered.values()):
            return state
        return OrderedDict(
            (f"{layers[number]}.{match[2]}" if number < len(layers) else name, state[name])
            for name, match in numbered.items()
            if match is not None
            for number in [int(match[1])]
        )
