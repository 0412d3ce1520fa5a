"""Networks of timm (PyTorch Image Models) as a source of backbones."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from medimg._validation import did_you_mean
from medimg.errors import PreprocessError, TrainingError, WeightsUnavailableError, also
from medimg.io.files.regular_file import is_regular_file
from medimg.models.backbones._hub_files import WEIGHT_FILES, cached_file
from medimg.models.backbones.heads import HeadParts
from medimg.models.backbones.source import (
    Architecture,
    SizeRule,
    check_license,
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
                f"{model!r}{did_you_mean(model, timm.list_models(), most=3)}"
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
        weights = next((folder / name for name in WEIGHT_FILES if is_regular_file(folder / name)), None)
        if weights is None:
            raise also(WeightsUnavailableError, FileNotFoundError)(
                f"the folder {folder.name} has none of {', '.join(WEIGHT_FILES)}; pass the name "
                f"{found.name!r}"
            )
        own = dict(settings.get("pretrained_cfg") or {})
        given = {key: own[key] for key in ("input_size", "mean", "std") if key in own}
        return replace(
            found, arguments=settings.get("model_args") or None, stated=given, weights_file=weights
        )

    @classmethod
    def rebuild(cls, architecture: Architecture) -> TimmBackbone:
        """Return the network of a checkpoint, whatever weights it started from."""
        timm = import_extra("timm", "timm", architecture.name)
        model = architecture.name.removeprefix(PREFIX).partition(".")[0]
        if not timm.is_model(model):
            raise TrainingError(f"timm {timm.__version__} has no network {model!r}")
        return cls(architecture.name, arguments=architecture.settings)

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        with torch.device("meta"), _quiet():
            try:
                return sum(p.numel() for p in self._create(None).parameters())
            except Exception:  # some networks can't be built without memory
                return 0

    @property
    def _model(self) -> str:
        """The name in timm without the tag of weights."""
        return self.name.removeprefix(PREFIX).partition(".")[0]

    @cached_property
    def _settings(self) -> Any:
        """The configuration of the weights that the name has, or else of the first ones."""
        from timm.models import get_pretrained_cfg

        model, _, tag = self.name.removeprefix(PREFIX).partition(".")
        named = f"{model}.{tag}" if tag in _tags(model) else model
        return replace(get_pretrained_cfg(named), **(self.stated or {}))

    def resolve_weights(self, choice: WeightsChoice, *, accept_license: bool) -> WeightsSource | None:
        """Return the weights of a tag, or for "DEFAULT" of the tag in the name, else the first one."""
        from timm.models import get_pretrained_cfg

        if self.weights_file is not None and choice == "DEFAULT":
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
        return Preprocess(size=_size(settings), mean=tuple(settings.mean[:3]), std=tuple(settings.std[:3]))

    def plan(
        self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None, recipe: Preprocess
    ) -> Architecture:
        """Return the description; networks with position embeddings are built for the size of the images."""
        rows, columns = recipe.hw
        size = None
        if self._settings.fixed_input_size and (rows, columns) != tuple(self._settings.input_size[1:]):
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
            with torch.device("meta"), _quiet():
                network = self._create(size)
        except Exception as error:  # whatever the network checks
            raise PreprocessError(
                f"{self.name} can't be built for images of {size}×{size} ({type(error).__name__}: {error}); "
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
            return SizeRule(exact=_size(settings))
        return SizeRule(least=min(settings.min_input_size[1:]) if settings.min_input_size else _LEAST_SIZE)

    def build(self, architecture: Architecture, recipe: Preprocess | None, *, initialize: bool) -> HeadParts:
        """Build the network without its head, for which timm has an argument."""
        try:
            with _quiet():
                network = self._create(architecture.image_size, architecture.settings)
        except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
            raise TrainingError(
                f"timm can't build {self.name}: {type(error).__name__}: {error}; another version of timm may"
            ) from error
        features = getattr(network, "head_hidden_size", None) or getattr(network, "num_features", None)
        if features is None:
            raise TrainingError(
                f"{self.name} does not state the length of its embeddings: choose another network"
            )
        head = next(iter(_classifiers(self._settings)), "")
        return HeadParts(network, nn.Linear(int(features), 1, device="meta"), head)

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
                f"({type(error).__name__}: {_shorten(str(error))}); pass the backbone of these weights, or "
                "other weights"
            ) from error
        converted = OrderedDict((f"{prefix}{name}", value) for name, value in network.state_dict().items())
        beside = (n for n in state if not n.startswith(prefix) or n.removeprefix(prefix).startswith(heads))
        converted.update((name, state[name]) for name in beside if name not in converted)
        return converted


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


def _shorten(text: str) -> str:
    return text if len(text) <= 400 else f"{text[:400]}..."


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
