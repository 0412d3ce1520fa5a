"""Registry of networks other than torchvision's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torchvision.models import list_models

from medimg._public import set_module
from medimg._validation import check_whole_number, printable, printable_error
from medimg.errors import MedimgError, MedimgWarning, TrainingError, WeightsUnavailableError, also
from medimg.models.backbones.compiled import plain_name, unwrap
from medimg.models.backbones.heads import (
    HeadParts,
    drop_activations,
    find_head,
    head_logits,
    replace_layer,
)
from medimg.models.backbones.source import LONGEST_NAME, Architecture, SizeRule, check_repeats
from medimg.models.module_mode import module_mode
from medimg.preprocessing.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Callable, Iterator, Mapping

    from medimg.models.backbones.weights import WeightsChoice, WeightsSource

__all__ = [
    "AS_BUILT",
    "RegisteredBackbone",
    "mark_used",
    "register_backbone",
    "registered_backbone",
    "registered_names",
]

#: Name of the weights with which a registered network is built.
AS_BUILT: Final = "as built"

_OWN: Final[dict[str, RegisteredBackbone]] = {}
#: Layers of the networks of all classifiers.
_USED: Final[WeakSet[nn.Module]] = WeakSet()

#: Largest difference between a network's output and that of its head, relative to the largest logit.
_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class RegisteredBackbone:
    """
    A registered network and its input, as a source of backbones.

    `exact_size` is the only size that it takes, or None; `head` is the name of its head, None for the last
    linear or convolutional layer; `features` is the length of its embeddings if it has no head.
    """

    name: str
    make: Callable[[], nn.Module]
    recipe: Preprocess
    min_size: int
    exact_size: int | None
    head: str | None
    features: int | None
    channels: int = 3
    library: None = None
    unnamed_weights: str = AS_BUILT

    def count_parameters(self, architecture: Architecture) -> int:
        """Return 0: the network is the user's own, whatever a file says."""
        return 0

    def resolve_weights(self, choice: WeightsChoice, *, accept_license: bool) -> WeightsSource | None:
        """Return None for the weights that the network is built with."""
        if choice != "DEFAULT":
            raise also(WeightsUnavailableError, KeyError)(
                f"{self.name!r} is a registered network and has no weights {choice!r}; it starts as it is "
                'built ("DEFAULT" or None), or from a file: weights="./weights.pth"'
            )
        return None

    def default_recipe(self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None) -> Preprocess:
        """Return the preprocessing that the network was registered with."""
        return self.recipe

    def plan(
        self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None, recipe: Preprocess
    ) -> Architecture:
        """Return the description."""
        return Architecture(self.name, channels=self.channels)

    def size_rule(self, architecture: Architecture) -> SizeRule:
        """Return the sizes that the network was registered for."""
        return SizeRule(self.exact_size, self.min_size)

    def convert(
        self, parts: HeadParts, architecture: Architecture, state: OrderedDict[str, Tensor]
    ) -> OrderedDict[str, Tensor]:
        """Return the tensors of a file as they are."""
        return state

    def build(self, architecture: Architecture, recipe: Preprocess | None, *, initialize: bool) -> HeadParts:
        """Build the network, split off its head, and test both on one image."""
        network = self._make_network()
        image = self._make_image(network)
        if self.features is not None:
            parts = HeadParts(network, nn.Linear(self.features, 1), "")
            embedding = self._check_embedding(self._run(network, image), self.features)
            check_repeats(embedding, self._run(network, image, seed=1), f"the backbone {self.name!r}")
        else:
            parts = self._split_head(network, image)
        return parts

    @property
    def _is_module(self) -> bool:
        """Whether the network was passed itself."""
        return self.name.startswith("module:")

    @property
    def _advice(self) -> str:
        """What to do if the head is another layer, or there is none."""
        if self._is_module:
            return (
                'register it: medimg.register_backbone("name", build, head="name of its head"), or for a '
                "network without one features=<length of its embeddings>"
            )
        return (
            "pass the name of its head as head=, or for a network without one the length of its embeddings "
            "as features="
        )

    def _make_network(self) -> nn.Module:
        """Return a new network; refuse one that has layers of another."""
        try:
            network = self.make()
        except MedimgError:
            raise
        except Exception as error:  # whatever the user's own code raises
            raise TrainingError(
                f"the function of the backbone {self.name!r} failed: {printable_error(error)}; "
                "expected a function without arguments that returns a network"
            ) from error
        if not isinstance(network, nn.Module):
            raise TrainingError(
                f"the function of the backbone {self.name!r} returned a {type(network).__name__}; expected "
                "an nn.Module"
            )
        network = unwrap(network)
        if any(map(is_lazy, chain(network.parameters(), network.buffers()))):
            raise TrainingError(
                f"the backbone {self.name!r} has lazy layers, whose parameters have no shape yet: call the "
                "network once on an image in the function that builds it, or state the number of inputs"
            )
        if any(value.is_meta for value in chain(network.parameters(), network.buffers())):
            raise TrainingError(
                f"the backbone {self.name!r} has tensors without values (on the meta device): build it on "
                "the CPU, and load its weights, in the function that builds it"
            )
        if any(layer in _USED for layer in _layers_with_tensors(network)):
            if self._is_module:
                raise TrainingError(
                    "another classifier has layers of this network, so that training one would change the "
                    "other: pass copy.deepcopy(network)"
                )
            raise TrainingError(
                f"the function of the backbone {self.name!r} returned a network of which another classifier "
                "has layers, so that training one would change the other: return a new network each time, "
                "as lambda: MyNetwork(...) or lambda: copy.deepcopy(network) does"
            )
        if any(isinstance(layer, _BatchNorm) and layer.running_mean is None for layer in network.modules()):
            warnings.warn(
                f"the backbone {self.name!r} has BatchNorm layers without statistics "
                "(track_running_stats=False): the prediction of an image will depend on the others in its "
                "batch; build it with track_running_stats=True",
                MedimgWarning,
                stacklevel=2,
            )
        # its new head has 32 bits too
        return network.float()

    def _make_image(self, network: nn.Module) -> Tensor:
        """Return an image (1, C, H, W) of noise, the same each time, for a network."""
        like = next(network.parameters(), torch.zeros(()))
        image = torch.randn(1, *self.recipe.image_shape, generator=torch.Generator().manual_seed(0))
        return image.to(device=like.device, dtype=like.dtype)

    def _split_head(self, network: nn.Module, image: Tensor) -> HeadParts:
        """Replace the head by an identity if the network's output is the head of the embedding, else undo."""
        name, head = find_head(network, None if self.head is None else plain_name(self.head))
        undo = {name: head, **(drop_activations(network, name) if isinstance(head, nn.Conv2d) else {})}
        try:
            with _random_if_zero(head):
                output = self._run(network, image)
                replace_layer(network, name, nn.Identity())
                parts = HeadParts(network, head, name)
                embedding = self._check_embedding(self._run(network, image), parts.features)
                check_repeats(embedding, self._run(network, image, seed=1), f"the backbone {self.name!r}")
                self._check_output(output, self._run(partial(head_logits, head), embedding), name)
        except TrainingError:
            for layer_name, layer in undo.items():
                replace_layer(network, layer_name, layer)
            raise
        return parts

    def _run(self, network: Callable[[Tensor], object], x: Tensor, seed: int = 0) -> object:
        """Return the output of a network or layer in evaluation mode, with a seed."""
        whole = module_mode(network, training=False) if isinstance(network, nn.Module) else nullcontext()
        gpus = [x.device] if x.device.type == "cuda" else []
        try:
            with whole, torch.random.fork_rng(devices=gpus), torch.no_grad():
                torch.manual_seed(seed)
                return network(x)
        except Exception as error:  # whatever the user's own code raises
            raise TrainingError(
                f"the backbone {self.name!r} fails on an image (1, {self.recipe.n_channels}, "
                f"{self.recipe.hw[0]}, {self.recipe.hw[1]}): {printable_error(error)}; "
                f"expected a size that it takes, by {'preprocess=' if self._is_module else 'size='}, and its "
                f"last linear or convolutional layer as its head; else {self._advice}"
            ) from error

    def _check_embedding(self, found: object, wanted: int) -> Tensor:
        """Return the embedding of an image, which must be (1, F)."""
        if not isinstance(found, Tensor) or found.shape != (1, wanted):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise TrainingError(
                f"without its head the backbone {self.name!r} returns {shape} for one image, expected an "
                f"embedding (1, {wanted}): {self._advice}"
            )
        if not bool(found.isfinite().all()):
            raise TrainingError(
                f"the embedding of an image by the backbone {self.name!r} is not finite: initialize it, or "
                "load weights, in the function that builds it"
            )
        return found

    def _check_output(self, output: object, logits: object, head_name: str) -> None:
        """Refuse a network whose output is not what its head makes of the embedding."""
        if isinstance(output, Tensor) and isinstance(logits, Tensor) and output.shape == logits.shape:
            largest = float(logits.abs().max())
            if torch.allclose(output.to(logits), logits, rtol=0.0, atol=_TOLERANCE * largest, equal_nan=True):
                return
        raise TrainingError(
            f"the output of the backbone {self.name!r} is not that of its layer {head_name!r} on the "
            "embedding: its head is another layer, was removed before, or something follows it, such as a "
            f"softmax. Return logits, or {self._advice}"
        )


def mark_used(network: nn.Module) -> None:
    """Remember the layers of a classifier, so that no other classifier is built of them."""
    _USED.update(_layers_with_tensors(network))


def _layers_with_tensors(network: nn.Module) -> list[nn.Module]:
    """Return the modules that have parameters or buffers of their own."""
    return [
        module
        for module in network.modules()
        if next(chain(module.parameters(recurse=False), module.buffers(recurse=False)), None) is not None
    ]


@contextmanager
def _random_if_zero(head: nn.Linear | nn.Conv2d) -> Iterator[None]:
    """Give a head of zeros, which makes the same of every embedding, random weights for the block."""
    zero = not bool(head.weight.any())
    if zero:
        with torch.no_grad():
            head.weight.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0)))
    try:
        yield
    finally:
        if zero:
            nn.init.zeros_(head.weight)


@set_module("medimg")
def register_backbone(
    name: str,
    build: Callable[[], nn.Module],
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    size: int | None = None,
    min_size: int = 1,
    exact_size: int | None = None,
    head: str | None = None,
    features: int | None = None,
) -> None:
    """
    Register a network of your own, so that a classifier can be built from its name.

    Its modules are taken in the order in which it registers them, which should be the order of computation. A
    checkpoint has the name and the parameters, not the network: register the network before loading one.
    Registering a name again replaces the former network.

    Parameters
    ----------
    name : str
        Name that no torchvision classification model has.
    build : callable
        Function without arguments that returns a new network each time: (B, C, H, W) to logits, without a
        softmax or sigmoid, or, with `features`, to embeddings (B, F). It may load pretrained weights;
        ``TransferClassifier(name, weights=path)`` replaces them.
    mean, std : tuple of 3 floats, or of 1
        Normalization of the channels; by default ImageNet's. One value each is for a network of one channel.
    size : int, optional
        Image size in pixels; by default `exact_size`, or else 224.
    min_size : int
        Smallest image size that the network takes.
    exact_size : int, optional
        Only image size that the network takes; by default any size.
    head : str, optional
        Name in ``named_modules()`` of the ``nn.Linear`` or ``nn.Conv2d`` to replace; by default the last one.
    features : int, optional
        Length F of the embeddings of a network without a head; nothing is replaced.

    Raises
    ------
    TrainingError
        If the name is taken, or a setting is invalid.
    PreprocessError
        If mean, standard deviation or size are invalid.

    Examples
    --------
    >>> from torch import nn
    >>> def small():
    ...     return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> register_backbone("small", small, size=64, features=8)
    >>> from medimg import TransferClassifier
    >>> TransferClassifier("small", classes=["normal", "pneumonia"]).preprocess.size
    64
    """
    _check_settings(name, build, head, features)
    side = size if size is not None else exact_size or 224
    for what, value in (("size", side), ("min_size", min_size), ("exact_size", exact_size)):
        if value is not None:
            check_whole_number(what, value, least=1)
    if side < min_size or exact_size not in (None, side):
        raise TrainingError(
            f"size={side} contradicts min_size={min_size} or exact_size={exact_size}: pass a size that the "
            "network takes"
        )
    is_single = isinstance(mean, Sequence) and len(mean) == 1
    recipe = Preprocess(size=side, mean=mean, std=std, channels="single" if is_single else "repeat")
    _OWN[name] = RegisteredBackbone(
        name, build, recipe, min_size, exact_size, head, features, recipe.n_channels
    )


def registered_backbone(name: str) -> RegisteredBackbone | None:
    """Return the registered network of a name, or None."""
    return _OWN.get(name)


def registered_names() -> tuple[str, ...]:
    """Return the names of the registered networks."""
    return tuple(_OWN)


def _check_settings(name: object, build: object, head: object, features: object) -> None:
    """Refuse settings of another type, and names of torchvision's models."""
    if not isinstance(name, str) or not name.strip() or printable(name, LONGEST_NAME) != name:
        raise TrainingError(
            f"the name of a backbone must be text of at most {LONGEST_NAME} characters, without control "
            f"characters; found {printable(repr(name))}"
        )
    if name in list_models(module=torchvision.models):
        raise TrainingError(f"{name!r} is a model of torchvision: choose another name")
    if not callable(build) or isinstance(build, nn.Module):
        raise TrainingError(
            f"build must be a function without arguments that returns a new network each time; found a "
            f"{type(build).__name__}; pass lambda: MyNetwork(...)"
        )
    if head is not None and (not isinstance(head, str) or not head):
        raise TrainingError(f"head must be the name of a layer in named_modules(); found {head!r}")
    if features is not None:
        check_whole_number("features", features, least=1)
    if head is not None and features is not None:
        raise TrainingError(
            "head= and features= exclude each other: features= is for networks without a head; pass one of "
            "them"
        )
