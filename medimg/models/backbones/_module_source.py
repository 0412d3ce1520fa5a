"""A network that is passed itself, not by its name, as a source of backbones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from torch import nn

from medimg.errors import TrainingError
from medimg.models.backbones.compiled import unwrap
from medimg.models.backbones.registry import AS_BUILT, RegisteredBackbone
from medimg.models.backbones.source import Architecture, SizeRule, grayscale_recipe
from medimg.models.backbones.stems import input_channels
from medimg.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Mapping

    from torch import Tensor

    from medimg.models.backbones.heads import HeadParts
    from medimg.models.backbones.weights import WeightsChoice, WeightsSource

__all__ = ["ModuleBackbone"]

PREFIX: Final = "module:"


@dataclass(frozen=True, slots=True)
class ModuleBackbone:
    """A network of the user's own; its class is its name, as a checkpoint has no code."""

    name: str
    network: nn.Module = field(repr=False)
    library: None = None
    unnamed_weights: str = AS_BUILT

    @classmethod
    def of(cls, network: nn.Module) -> ModuleBackbone:
        """Return the source of a network."""
        found = unwrap(network)
        return cls(f"{PREFIX}{type(found).__name__}", found)

    @classmethod
    def open(cls, name: str) -> ModuleBackbone:
        """Refuse a name: the network itself is needed."""
        raise TrainingError(
            f"the backbone is a network of your own ({name.removeprefix(PREFIX)}), of which a file has no "
            "code: build it and pass it, as medimg.load(path, backbone=network) does"
        )

    @property
    def channels(self) -> int:
        """Channels that its first convolution takes."""
        return input_channels(self.network)

    def count_parameters(self, architecture: Architecture) -> int:
        """Return 0: the network is the user's own, whatever a file says."""
        return 0

    def resolve_weights(self, choice: WeightsChoice, *, accept_license: bool) -> WeightsSource | None:
        """Return None for the weights that the network has."""
        return self._registered(None).resolve_weights(choice, accept_license=accept_license)

    def default_recipe(self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None) -> Preprocess:
        """Return the preprocessing of ImageNet, for one channel if the network takes one."""
        return grayscale_recipe(Preprocess()) if self.channels == 1 else Preprocess()

    def plan(
        self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None, recipe: Preprocess
    ) -> Architecture:
        """Return the description."""
        return Architecture(self.name, channels=self.channels)

    def size_rule(self, architecture: Architecture) -> SizeRule:
        """Return the sizes that the network takes, which are not known."""
        return SizeRule()

    def build(self, architecture: Architecture, recipe: Preprocess | None, *, initialize: bool) -> HeadParts:
        """Split off the head of the network, which is tried on one image."""
        if recipe is not None and recipe.n_channels != self.channels:  # its stem is folded later
            recipe = self.default_recipe(None, None).replace(size=recipe.size)
        return self._registered(recipe).build(architecture, recipe, initialize=initialize)

    def convert(
        self, parts: HeadParts, architecture: Architecture, state: OrderedDict[str, Tensor]
    ) -> OrderedDict[str, Tensor]:
        """Return the tensors of a file as they are."""
        return state

    def _registered(self, recipe: Preprocess | None) -> RegisteredBackbone:
        wanted = recipe or self.default_recipe(None, None)
        return RegisteredBackbone(self.name, lambda: self.network, wanted, 1, None, None, None)
