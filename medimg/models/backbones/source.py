"""The protocol of a source of backbones: what it says of a network, and how the network is built."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import Tensor, nn

from medimg._validation import printable_error
from medimg.errors import (
    MedimgError,
    MissingDependencyError,
    PreprocessError,
    TrainingError,
    WeightsUnavailableError,
)
from medimg.models.module_mode import module_mode
from medimg.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medimg.models.backbones.heads import HeadParts
    from medimg.models.backbones.weights import WeightsChoice, WeightsSource

__all__ = [
    "LONGEST_NAME",
    "Architecture",
    "BackboneSource",
    "SizeRule",
    "check_license",
    "check_probe",
    "check_repeats",
    "grayscale_recipe",
    "import_extra",
    "library_version",
]

#: Characters of the name of a network.
LONGEST_NAME: Final = 300
#: Licenses under which weights are used without `accept_license`.
_PERMISSIVE: Final = frozenset(
    {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "bsd", "cc0-1.0", "cc-by-4.0", "unlicense", "isc"}
)
#: Largest difference of two passes, relative to the largest value; kernels of GPUs may add in another order.
_NOISE: Final = 1e-5


@dataclass(frozen=True, slots=True)
class Architecture:
    """
    Description from which a network is built, without its weights.

    `name` has the source before a colon, but for torchvision's and registered ones; `transform_input` makes
    GoogLeNet and Inception rescale their input to the range of their ImageNet weights; `image_size` is the
    only size of a network with position embeddings, None for all others; `channels` are those of an image;
    `settings` is the configuration of networks that are not built by their name alone.
    """

    name: str
    transform_input: bool = False
    image_size: int | None = None
    channels: int = 3
    settings: Mapping[str, Any] | None = None

    @property
    def is_module(self) -> bool:
        """Whether it is a network of the user's own, of which a file has no code."""
        return self.name.startswith("module:")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields; those added later only if they differ from networks saved without them."""
        facts: dict[str, Any] = {
            "name": self.name,
            "transform_input": self.transform_input,
            "image_size": self.image_size,
        }
        if self.channels != 3:
            facts["channels"] = self.channels
        if self.settings is not None:
            facts["settings"] = dict(self.settings)
        return facts


@dataclass(frozen=True, slots=True)
class SizeRule:
    """Sizes that a network takes: exactly one, or at least and a multiple of some number of pixels."""

    exact: int | None = None
    least: int = 1
    multiple: int = 1

    def check(self, name: str, recipe: Preprocess) -> None:
        """Refuse a recipe whose images have another size."""
        rows, columns = recipe.hw
        found = f"found a recipe with {rows}×{columns}"
        if self.exact is not None and (rows, columns) != (self.exact, self.exact):
            raise PreprocessError(
                f"{name} with these weights takes images of {self.exact}×{self.exact} only; {found}: use "
                f"preprocess.replace(size={self.exact}), or no recipe, to use that of the weights"
            )
        if min(rows, columns) < self.least:
            raise PreprocessError(
                f"{name} takes images of at least {self.least}×{self.least}; {found}: use "
                f"preprocess.replace(size={max(self.least, 224)})"
            )
        if rows % self.multiple or columns % self.multiple:
            nearest = math.ceil(max(rows, columns) / self.multiple) * self.multiple
            raise PreprocessError(
                f"{name} takes images with sides that are multiples of {self.multiple}; {found}: use "
                f"preprocess.replace(size={nearest})"
            )


class BackboneSource(Protocol):
    """
    One network of a source, by its name.

    What depends on weights takes those that were chosen (`weights`, None for random ones) and, if they are
    in a file that was read, its tensors (`state`).
    """

    @property
    def name(self) -> str:
        """Name of the network, with the source before a colon."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the images that the network takes as it is: 3, or 1."""
        ...

    @property
    def library(self) -> str | None:
        """Distribution that has the code of the network, if its version is stored in a checkpoint."""
        ...

    @property
    def unnamed_weights(self) -> str | None:
        """Name of the initial weights if none are loaded: None if they are random."""
        ...

    def count_parameters(self, architecture: Architecture) -> int:
        """Return the number of parameters, 0 if no file has a say in what is built: a user's own network."""
        ...

    def resolve_weights(self, choice: WeightsChoice, *, accept_license: bool) -> WeightsSource | None:
        """Return weights by name, neither read nor downloaded; a path or None is not passed."""
        ...

    def default_recipe(self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None) -> Preprocess:
        """Return the default preprocessing."""
        ...

    def plan(
        self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None, recipe: Preprocess
    ) -> Architecture:
        """Return the description for weights and the images of a recipe."""
        ...

    def size_rule(self, architecture: Architecture) -> SizeRule:
        """Return the sizes that the network takes."""
        ...

    def build(self, architecture: Architecture, recipe: Preprocess | None, *, initialize: bool) -> HeadParts:
        """Build the network with random weights, and split off its head; try it on an image of a recipe."""
        ...

    def convert(
        self, parts: HeadParts, architecture: Architecture, state: OrderedDict[str, Tensor]
    ) -> OrderedDict[str, Tensor]:
        """Return the tensors of a file by the names of the network, in its shapes."""
        ...


def import_extra(module: str, extra: str, name: str) -> Any:
    """Import an optional library; MissingDependencyError says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"the backbone {name!r} needs {module}, which can't be imported ({error}); install it with: pip "
            f'install "medimg[{extra}]"'
        ) from error


def library_version(library: str | None) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return None if library is None else version(library)
    except PackageNotFoundError:
        return None


def check_license(name: str, stated: str | None, where: str, *, accepted: bool) -> None:
    """Refuse weights under a license that is unknown, or not permissive, unless it was accepted."""
    if accepted or (stated is not None and stated.lower() in _PERMISSIVE):
        return
    what = "whose license is not known here" if stated is None else f"under a license of their own: {stated}"
    raise WeightsUnavailableError(
        f"{name} are weights {what} ({where}); read it and pass accept_license=True, or choose other "
        "weights, or weights=None"
    )


def grayscale_recipe(recipe: Preprocess) -> Preprocess:
    """Return a recipe of one channel, with the average mean and standard deviation."""
    if recipe.n_channels == 1:
        return recipe
    mean, std = (sum(values) / len(values) for values in recipe.normalization)
    return recipe.replace(channels="single", mean=mean, std=std)


def check_probe(network: nn.Module, name: str, recipe: Preprocess, features: int | None) -> int:
    """
    Return the length F of the embedding of one image, on which the network is tried.

    `features` is the length that its library states, if it does.
    """
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    image = torch.randn(1, *recipe.image_shape, generator=torch.Generator().manual_seed(0))
    size = f"{recipe.hw[0]}×{recipe.hw[1]}"
    gpus = [like.device] if like.device.type == "cuda" else []
    try:
        with module_mode(network, training=False), torch.random.fork_rng(devices=gpus), torch.no_grad():
            torch.manual_seed(0)
            found: object = network(image.to(like.device, like.dtype))
            torch.manual_seed(1)
            again: object = network(image.to(like.device, like.dtype))
    except MedimgError:
        raise
    except Exception as error:  # whatever the code of the library raises
        raise PreprocessError(
            f"{name} fails on an image of {size} with {recipe.n_channels} "
            f"channel{'s' * (recipe.n_channels > 1)}: {printable_error(error)}; use the default size, "
            "by preprocess=None, or another one, by Preprocess(size=...)"
        ) from error
    if not isinstance(found, Tensor) or found.ndim != 2 or (features or found.shape[1]) != found.shape[1]:
        shape = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise TrainingError(
            f"{name} returns {shape} for one image, expected an embedding (1, {features or 'F'}): it is no "
            "classifier; choose another network, or register one by medimg.register_backbone"
        )
    check_repeats(found, again, name)
    return int(found.shape[1])


def check_repeats(found: Tensor, again: object, name: str) -> None:
    """Refuse a network that makes something else of the same image with another seed."""
    if isinstance(again, Tensor) and again.shape == found.shape:
        largest = float(found.abs().nan_to_num(0.0).max())
        if torch.allclose(found, again, rtol=0.0, atol=_NOISE * largest, equal_nan=True):
            return
    raise TrainingError(
        f"{name} gives another embedding each time for the same image, also in evaluation mode, as a masked "
        "autoencoder and dropout that is always on do, so that its predictions would be random: choose "
        "another network, or use its weights in one without random parts"
    )
