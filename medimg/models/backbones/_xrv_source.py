"""
Weights of torchxrayvision as a source of backbones: networks of torchvision for one channel.

Its DenseNet and ResNet are torchvision's with another stem, so that neither building them nor loading a
checkpoint needs the library.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medimg._validation import did_you_mean
from medimg.errors import TrainingError, WeightsUnavailableError, also
from medimg.models.backbones._torchvision_source import TorchvisionBackbone
from medimg.models.backbones.source import Architecture, SizeRule
from medimg.models.backbones.stems import fold_stem
from medimg.models.backbones.weights import WeightsSource
from medimg.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from medimg.models.backbones.heads import HeadParts
    from medimg.models.backbones.weights import WeightsChoice

__all__ = ["XrvBackbone"]

PREFIX: Final = "torchxrayvision:"
_ADDRESS: Final = "https://github.com/mlmed/torchxrayvision/releases/download/v1/"
_LICENSE: Final = "apache-2.0"
_DENSENET: Final = "{}-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
#: By the library's names: torchvision's network, image size, and the file of weights.
_NETWORKS: Final[dict[str, tuple[str, int, str]]] = {
    "densenet121-res224-all": (
        "densenet121",
        224,
        "nih-pc-chex-mimic_ch-google-openi-kaggle-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
    ),
    "densenet121-res224-nih": ("densenet121", 224, _DENSENET.format("nih")),
    "densenet121-res224-pc": ("densenet121", 224, _DENSENET.format("pc")),
    "densenet121-res224-chex": ("densenet121", 224, _DENSENET.format("chex")),
    "densenet121-res224-rsna": ("densenet121", 224, _DENSENET.format("kaggle")),
    "densenet121-res224-mimic_nb": ("densenet121", 224, _DENSENET.format("mimic_nb")),
    "densenet121-res224-mimic_ch": ("densenet121", 224, _DENSENET.format("mimic_ch")),
    "resnet50-res512-all": ("resnet50", 512, "pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt"),
}
#: Classes whose pickled instances the files have; nothing of them is executed.
_CLASSES: Final = tuple(
    f"torchxrayvision.models.{name}" for name in ("DenseNet", "_DenseBlock", "_DenseLayer", "_Transition")
)
#: What the library multiplies intensities from -1 to 1 by.
_RANGE: Final = 1024.0


@dataclass(frozen=True, slots=True)
class XrvBackbone:
    """A network for chest X-rays with one channel (Cohen et al., MIDL 2022)."""

    name: str
    network: TorchvisionBackbone = field(repr=False)
    size: int
    file: str = field(repr=False)
    channels: int = 1
    library: None = None
    unnamed_weights: None = None

    @classmethod
    def open(cls, name: str) -> XrvBackbone:
        """Return the network of the library's name of weights."""
        wanted = name.removeprefix(PREFIX)
        if wanted not in _NETWORKS:
            raise also(TrainingError, KeyError)(
                f"torchxrayvision has no classifier {wanted!r} that is a network of torchvision; expected "
                f"one of {', '.join(_NETWORKS)}{did_you_mean(wanted, _NETWORKS)}"
            )
        model, size, file = _NETWORKS[wanted]
        return cls(name, TorchvisionBackbone(model), size, file)

    def count_parameters(self, architecture: Architecture) -> int:
        """Return the number of parameters with the head."""
        return self.network.count_parameters(architecture)

    @property
    def pickled_classes(self) -> tuple[str, ...]:
        """Names of the classes whose instances files of weights have."""
        return _CLASSES

    def resolve_weights(self, choice: WeightsChoice, *, accept_license: bool) -> WeightsSource | None:
        """Return the weights of the name, in the library's cache or at their address."""
        if choice not in ("DEFAULT", self.name.removeprefix(PREFIX)):
            raise also(WeightsUnavailableError, KeyError)(
                f"{self.name} has no weights {choice!r}; expected 'DEFAULT', or the path of a file such as "
                "'./weights.pt'; other weights of torchxrayvision are backbones of their own names"
            )
        path = Path("~/.torchxrayvision/models_data").expanduser() / self.file
        return WeightsSource(
            self.name, path, _ADDRESS + self.file, license=_LICENSE, pickled_classes=_CLASSES
        )

    def default_recipe(self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None) -> Preprocess:
        """Return the preprocessing of the library: one channel, intensities from -1024 to 1024."""
        return Preprocess(size=self.size, channels="single", mean=0.5, std=0.5 / _RANGE)

    def plan(
        self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None, recipe: Preprocess
    ) -> Architecture:
        """Return the description."""
        return Architecture(self.name, channels=1)

    def size_rule(self, architecture: Architecture) -> SizeRule:
        """Return the sizes that the network takes."""
        return self.network.size_rule(architecture)

    def build(self, architecture: Architecture, recipe: Preprocess | None, *, initialize: bool) -> HeadParts:
        """Build the network of torchvision with a stem of one channel."""
        parts = self.network.build(architecture, recipe, initialize=initialize)
        fold_stem(parts.body, self.name)
        return parts

    def convert(
        self, parts: HeadParts, architecture: Architecture, state: OrderedDict[str, Tensor]
    ) -> OrderedDict[str, Tensor]:
        """Return the tensors of a file without the thresholds of the library's classes."""
        return OrderedDict((name, value) for name, value in state.items() if name != "op_threshs")
