"""Networks of timm (PyTorch Image Models) as a source of backbones."""

from __future__ import annotations

import logging
import math
import reprlib
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from medimg._validation import did_you_mean, printable, printable_error
from medimg.errors import PreprocessError, TrainingError, WeightsUnavailableError, also
from medimg.io.files.hub_files import WEIGHT_FILES, cached_file
from medimg.io.files.regular_file import is_regular_file
from medimg.models.backbones.build_limits import check_numbers, count_values, limited
from medimg.models.backbones.heads import HeadParts
from medimg.models.backbones.source import (
    Architecture,
    SizeRule,
    check_license,
    grayscale_recipe,
    import_extra,
)
from medimg.models.backbones.state_matching import strip_prefix
from medimg.models.backbones.weights import WeightsSource
from medimg.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from medimg.models.backbones.weights import WeightsChoice

__all__ = ["TimmBackbone"]

PREFIX: Final = "timm:"
#: Arguments that are taken on the way to a network, but are not in a signature.
_RUNTIME: Final = frozenset(
    ("device", "dtype", "features_only", "feature_cls", "out_indices", "pruned", "url", "file")
)
_LEAST_SIZE: Final = 32  # of convolutional networks, whose configuration has none


@dataclass(frozen=True)
class TimmBackbone:
    """
    A network of timm by its name, with the tag of its weights or without.

    `arguments`, `stated` (size, mean, standard deviation) and `weights_file` are those of a folder written by
    timm.
    """

    name: str
    arguments: Mapping[str, Any] | None = None
    stated: Mapping[str, Any] | None = None
    weights_file: Path | None = None
    channels: int = 3
    library: str = "timm"
    unnamed_weights: None = None

    @classmethod
    def open(cls, name: str) -> TimmBackbone:
        """Return the network of a name; refuse one that the installed timm does not have."""
        timm = import_extra("timm", "timm", name)
        model, _, tag = name.removeprefix(PREFIX).partition(".")
        if not timm.is_model(model):
            raise also(TrainingError, KeyError)(
                f"timm {timm.__version__} has no network "
                f"{printable(model)!r}{did_you_mean(model, timm.list_models(), most=3)}"
            )
        tags = _tags(model)
        if tag and tag not in tags:
            raise also(TrainingError, KeyError)(
                f"timm {timm.__version__} has no weights {tag!r} of {model}; expected "
                f"{', '.join(map(repr, tags)) or 'none'}{did_you_mean(tag, tags)}"
            )
        return cls(name)

    @classmethod
    def open_folder(cls, folder: Path, settings: Mapping[str, Any]) -> TimmBackbone:
        """Return the network of a folder as timm's ``save_for_hf`` writes it."""
        model = str(settings["architecture"])
        found = cls.open(f"{PREFIX}{model}")
        files = [folder / name for name in WEIGHT_FILES]
        weights = next(filter(is_regular_file, files), files[0])
        given = _own_images(settings.get("pretrained_cfg"), found.name)
        arguments = _own_arguments(settings.get("model_args"), found.name)
        channels = _image_channels(arguments, found.name)
        return replace(found, arguments=arguments, stated=given, weights_file=weights, channels=channels)

    @classmethod
    def rebuild(cls, architecture: Architecture) -> TimmBackbone:
        """Return the network of a checkpoint, whatever weights it started from."""
        timm = import_extra("timm", "timm", architecture.name)
        model = architecture.name.removeprefix(PREFIX).partition(".")[0]
        if not timm.is_model(model):
            raise TrainingError(f"timm {timm.__version__} has no network {printable(model)!r}")
        arguments = _own_arguments(architecture.settings, architecture.name)
        channels = _image_channels(arguments, architecture.name)
        return cls(architecture.name, arguments=arguments, channels=channels)

    def count_parameters(self, architecture: Architecture) -> int:
        """Return the number of values of parameters and buffers."""
        try:
            with _quiet():
                return count_values(
                    lambda: self._create(architecture.image_size, architecture.settings), self.name
                )
        except TrainingError:
            raise
        except Exception as error:  # whatever the network makes of its arguments
            if architecture.settings is None and architecture.image_size is None:
                return 0  # some networks can't be built without memory
            raise self._not_built(error) from error

    @property
    def _model(self) -> str:
        """The name in timm without the tag of weights."""
        return self.name.removeprefix(PREFIX).partition(".")[0]

    @cached_property
    def _settings(self) -> Any:
        """The configuration of the weights that the name has, or else of the first ones."""
        found = replace(self._named_settings, **(self.stated or {}))
        # folders can state another size than that of the network within
        return replace(found, input_size=(3, *self._built_size)) if self._is_sized else found

    @cached_property
    def _named_settings(self) -> Any:
        """The same without what a folder states, which a checkpoint does not have."""
        from timm.models import get_pretrained_cfg

        model, _, tag = self.name.removeprefix(PREFIX).partition(".")
        return get_pretrained_cfg(f"{model}.{tag}" if tag in _tags(model) else model)

    @property
    def _is_sized(self) -> bool:
        """Whether the arguments of the network have the only size of its images."""
        arguments = self.arguments or {}
        return arguments.get("img_size") is not None and not arguments.get("dynamic_img_size")

    @property
    def _built_size(self) -> tuple[int, ...]:
        """Rows and columns of the images for which the network is built if nothing else is asked for."""
        if not self._is_sized:
            return tuple(self._named_settings.input_size[1:])
        size = (self.arguments or {})["img_size"]
        return tuple(size) if isinstance(size, list | tuple) else (size, size)

    def resolve_weights(self, choice: WeightsChoice, *, accept_license: bool) -> WeightsSource | None:
        """Return the weights of a tag, or for "DEFAULT" of the tag in the name, else the first one."""
        from timm.models import get_pretrained_cfg

        if self.weights_file is not None and choice == "DEFAULT":
            if not is_regular_file(self.weights_file):
                raise also(WeightsUnavailableError, FileNotFoundError)(
                    f"the folder {self.weights_file.parent.name} has none of {', '.join(WEIGHT_FILES)}; pass "
                    f"the name {self.name!r} as the backbone, weights=<path of a file>, or weights=None for "
                    "random weights"
                )
            return WeightsSource(self.weights_file.name, self.weights_file)
        model, tags = self._model, _tags(self._model)
        tag = self.name.partition(".")[2] if choice == "DEFAULT" else str(choice).removeprefix(f"{model}.")
        settings = get_pretrained_cfg(f"{model}.{tag}" if tag else model) if not tag or tag in tags else None
        if settings is None or not (settings.hf_hub_id or settings.url):
            raise also(WeightsUnavailableError, KeyError)(
                f"timm has no weights {tag or choice!r} of {model}; expected "
                f"{', '.join(map(repr, tags)) or 'none'}, the path of a file such as './model.safetensors', "
                f"or None{did_you_mean(tag, tags)}"
            )
        name = f"{PREFIX}{model}.{settings.tag or tag}".rstrip(".")
        terms = settings.license
        if settings.hf_hub_id:
            repository = settings.hf_hub_id
            files = (settings.hf_hub_filename,) if settings.hf_hub_filename else WEIGHT_FILES
            where = f"https://huggingface.co/{repository.partition('@')[0]}"
            check_license(name, terms, where, accepted=accept_license)
            path = cached_file(repository, files) or Path(files[0])
            return WeightsSource(name, path, where, license=terms, repository=repository, files=files)
        check_license(name, terms, settings.url, accepted=accept_license)
        path = Path(torch.hub.get_dir()) / "checkpoints" / settings.url.rsplit("/", 1)[-1]
        return WeightsSource(name, path, settings.url, license=terms)

    def default_recipe(self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None) -> Preprocess:
        """Return the default preprocessing, with the size, mean and standard deviation of the weights."""
        settings = self._settings
        if weights is not None and weights.name.startswith(PREFIX):
            from timm.models import get_pretrained_cfg

            settings = get_pretrained_cfg(weights.name.removeprefix(PREFIX)) or settings
        mean, std = (
            tuple(values[:3]) * (3 if len(values) == 1 else 1) for values in (settings.mean, settings.std)
        )
        recipe = Preprocess(size=_size(settings), mean=mean, std=std)
        return grayscale_recipe(recipe) if self.channels == 1 else recipe

    def plan(
        self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None, recipe: Preprocess
    ) -> Architecture:
        """Return the description; networks with position embeddings are built for the size of the images."""
        rows, columns = recipe.hw
        size = None
        if self._settings.fixed_input_size and (rows, columns) != self._built_size:
            if rows != columns:
                raise PreprocessError(
                    f"{self.name} takes square images; found a recipe with {rows}×{columns}: use "
                    f"preprocess.replace(size={_size(self._settings)})"
                )
            size = rows
            # here and not in `size_rule`, as models of other sizes were saved before
            SizeRule(multiple=self._find_patch_side(size)).check(self.name, recipe)
        return Architecture(
            self.name, image_size=size, settings=dict(self.arguments) if self.arguments else None
        )

    def _find_patch_side(self, size: int) -> int:
        """Return the side of the patches; refuse a size for which timm can't build the network."""
        try:
            with torch.device("meta"), limited(self.name), _quiet():
                network = self._create(size).eval()
                # timm can build some networks that then fail
                network(torch.empty(1, self.channels, size, size))
        except TrainingError:
            raise
        except Exception as error:  # whatever the network checks
            raise PreprocessError(
                f"{self.name} can't be built for images of {size}×{size} ({printable_error(error)}); "
                f"its own size is {_size(self._settings)}: use "
                f"preprocess.replace(size={_size(self._settings)})"
            ) from error
        return next(filter(None, map(_patch_side, network.modules())), 1)

    def size_rule(self, architecture: Architecture) -> SizeRule:
        """Return the sizes that the network takes."""
        settings = self._settings
        if architecture.image_size is not None:
            return SizeRule(exact=architecture.image_size)
        if settings.fixed_input_size:
            return SizeRule(exact=self._built_size[-1])
        return SizeRule(least=min(settings.min_input_size[1:]) if settings.min_input_size else _LEAST_SIZE)

    def build(self, architecture: Architecture, recipe: Preprocess | None, *, initialize: bool) -> HeadParts:
        """Build the network without its head, for which timm has an argument."""
        if architecture.settings is not None:
            self.count_parameters(architecture)  # within the limits of any network
        try:
            with _quiet():
                network = self._create(architecture.image_size, architecture.settings)
        except Exception as error:  # whatever the code for this network makes of its arguments
            raise self._not_built(error) from error
        features = getattr(network, "head_hidden_size", None) or getattr(network, "num_features", None)
        if features is None:
            raise TrainingError(
                f"{self.name} does not state the length of its embeddings: choose another network"
            )
        head = next(iter(_classifiers(self._settings)), "")
        return HeadParts(network, nn.Linear(int(features), 1, device="meta"), head)

    def _not_built(self, error: Exception) -> TrainingError:
        """Return the error of a network that timm can't build."""
        return TrainingError(
            f"timm can't build {self.name}: {printable_error(error)}; another version of timm may"
        )

    def _create(
        self, size: int | None, arguments: Mapping[str, Any] | None = None, **options: Any
    ) -> nn.Module:
        import timm

        own = dict(arguments or self.arguments or {})
        if size is not None:
            own["img_size"] = size
        network: nn.Module = timm.create_model(self._model, num_classes=0, **{**own, **options})
        return network

    def convert(
        self, parts: HeadParts, architecture: Architecture, state: OrderedDict[str, Tensor]
    ) -> OrderedDict[str, Tensor]:
        """
        Return the tensors of a file by the names of the network.

        A file of another form (the original authors', position embeddings for another image size) is loaded
        by timm itself. If timm refuses one that has the network's names, it is returned as it is: its misfit
        is described, or accepted in part, where tensors are matched.
        """
        own = parts.body.state_dict()
        prefix, inside = strip_prefix(state, own, self.name)
        # indexes and masks that older versions of timm saved, and that are computed
        computed = {f"{prefix}{name}" for name, _ in parts.body.named_buffers() if name not in own}
        state = OrderedDict((name, value) for name, value in state.items() if name not in computed)
        heads = tuple(f"{head}." for head in _classifiers(self._settings))
        body = OrderedDict(
            (n, v)
            for n, v in inside.items()
            if n in own or not (n.startswith(heads) or f"{prefix}{n}" in computed)
        )
        # timm knows which further tensors are no other layers
        if body.keys() == own.keys() and all(body[n].shape == value.shape for n, value in own.items()):
            return state
        overlay = {"state_dict": body, "num_classes": 0, "custom_load": False, "source": ""}
        try:
            with _quiet():
                network = self._create(
                    architecture.image_size,
                    architecture.settings,
                    pretrained=True,
                    pretrained_cfg_overlay=overlay,
                )
        except Exception as error:  # whatever the code for this network makes of other tensors
            if any(name in own for name in inside):
                return state
            raise WeightsUnavailableError(
                f"the weights don't fit {self.name}, nor are they of a form that timm converts "
                f"({printable_error(error)}); pass the backbone of these weights, or "
                "other weights"
            ) from error
        converted = OrderedDict((f"{prefix}{name}", value) for name, value in network.state_dict().items())
        beside = (n for n in state if not n.startswith(prefix) or n.removeprefix(prefix).startswith(heads))
        converted.update((name, state[name]) for name in beside if name not in converted)
        return converted


def _own_arguments(given: object, name: str) -> dict[str, Any] | None:
    """
    Return the arguments of a network that a file states; refuse those of timm's functions that build it.

    These download weights, read other files, or change what is built.
    """
    if given is None:
        return None
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise TrainingError(
            f"the arguments of {name} must be an object with fields; found a {type(given).__name__}: the "
            "file was changed"
        )
    from timm import create_model
    from timm.models import build_model_with_cfg

    stated = {*signature(create_model).parameters, *signature(build_model_with_cfg).parameters}
    refused = next((k for k in given if k in stated | _RUNTIME or k.startswith("pretrained")), None)
    if refused is not None:
        raise TrainingError(
            f"{name} has the argument {printable(refused)!r} in its file, which does not belong to a "
            "network: with it, timm can download weights, or read other files; remove it from the file if "
            "you trust it"
        )
    check_numbers(given, name)
    size = given.get("img_size")
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    if size is not None and any(type(side) is not int or side < 1 for side in sides):
        raise TrainingError(
            f"img_size of {name} must be one or two positive whole numbers; found {reprlib.repr(size)}"
        )
    # a new head has its own classes
    return {key: value for key, value in given.items() if key != "num_classes"} or None


def _own_images(given: object, name: str) -> dict[str, Any]:
    """Return size, mean and standard deviation of the images as a file states them."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise TrainingError(
            f"pretrained_cfg of {name} must be an object with fields; found a {type(given).__name__}"
        )
    found = {key: given[key] for key in ("input_size", "mean", "std") if key in given}
    for key, value in found.items():
        whole = key == "input_size"
        kinds = (int,) if whole else (int, float)
        numbers = isinstance(value, list) and len(value) in ((3,) if whole else (1, 3))
        if not numbers or any(type(v) not in kinds or (whole and v < 1) for v in value):
            raise TrainingError(
                f"{key} of {name} must be a list of {'three whole' if whole else 'one or three'} numbers; "
                f"found {reprlib.repr(value)}"
            )
    return found


def _image_channels(arguments: Mapping[str, Any] | None, name: str) -> int:
    """Return the channels of the images of a network with arguments."""
    found = (arguments or {}).get("in_chans", 3)
    if type(found) is not int or found not in (1, 3):
        raise TrainingError(
            f"{name} takes images of {reprlib.repr(found)} channels by its file; expected 1 or 3"
        )
    return found


def _patch_side(module: nn.Module) -> int:
    """Return the side of the patches that a layer splits images into, 0 for other layers."""
    patches = next((layer for layer in module.children() if isinstance(layer, nn.Conv2d)), None)
    if patches is None or not hasattr(module, "patch_size") or getattr(module, "dynamic_img_pad", False):
        return 0
    # overlapping patches are padded, but for those of PiT
    whole = patches.padding == (0, 0) and all(
        k % step == 0 for k, step in zip(patches.kernel_size, patches.stride, strict=True)
    )
    return math.lcm(*patches.stride) if whole else 0


def _tags(model: str) -> list[str]:
    """Return the tags of the weights of a network."""
    from timm.models import list_pretrained

    return [tag for _, _, tag in (n.partition(".") for n in list_pretrained(f"{model}.*")) if tag]


def _size(settings: Any) -> int:
    """Return the default image size."""
    return int(settings.input_size[-1])


def _classifiers(settings: Any) -> tuple[str, ...]:
    """Return the names of the heads that files have."""
    named = settings.classifier or ()
    return (named,) if isinstance(named, str) else tuple(named)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what timm logs while a network is built."""
    logger = logging.getLogger("timm")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
