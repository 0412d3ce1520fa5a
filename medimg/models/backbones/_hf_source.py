"""Encoders of Hugging Face's transformers as a source of backbones, such as RAD-DINO."""

from __future__ import annotations

import json
import re
import reprlib
from collections import OrderedDict
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor, nn

from medimg._validation import check_whole_number, printable, printable_error
from medimg.core.logger import get_logger
from medimg.errors import TrainingError, WeightsUnavailableError, also
from medimg.io.files.hub_files import WEIGHT_FILES, cached_file, fetch_file
from medimg.io.files.regular_file import is_regular_file
from medimg.models.backbones.heads import HeadParts
from medimg.models.backbones.source import (
    Architecture,
    SizeRule,
    check_license,
    check_probe,
    import_extra,
)
from medimg.models.backbones.state_matching import strip_prefix
from medimg.models.backbones.stems import input_channels
from medimg.models.backbones.weights import WeightsSource
from medimg.preprocessing.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medimg.models.backbones.weights import WeightsChoice

__all__ = ["HFBackbone", "HFEncoder"]

PREFIX: Final = "hf:"
_CONFIG: Final = "config.json"
_IMAGES: Final = "preprocessor_config.json"
#: Licenses of repositories that don't state them in a form that is read.
_LICENSES: Final = {"microsoft/rad-dino": "MSRLA (research use only)"}
_LICENSE: Final = re.compile(r"^(?:license_name|license):\s*[\"']?([\w.+-]+)", re.MULTILINE)


#: Fields that build nothing; the network has 32 bits anyway.
_NOT_BUILT: Final = ("architectures", "_name_or_path", "dtype", "torch_dtype")
#: Fields by which transformers takes code, weights or configurations from elsewhere.
_REMOTE: Final = frozenset(
    {
        "attribute_map",
        "auto_map",
        "backbone",
        "backbone_kwargs",
        "custom_generate",
        "quantization_config",
        "trust_remote_code",
        "use_kernels",
        "use_pretrained_backbone",
    }
)
#: Ends of fields that name an implementation, which may be a repository's, and those that are built in.
_KERNELS: Final = ("_implementation", "_implementation_internal")
_BUILT_IN: Final = (None, "eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm")
_DEEPEST: Final = 20


class HFEncoder(nn.Module):
    """An encoder (B, C, H, W) to embeddings (B, F): pooled output, else class token, else mean."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        arguments = signature(network.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in arguments else {}

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings (B, F) of images (B, C, H, W)."""
        outputs = self.network(pixel_values=x, **self._options)
        pooled: Tensor | None = getattr(outputs, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        hidden: Tensor = outputs.last_hidden_state
        if hidden.ndim == 4:
            return hidden.mean(dim=(2, 3))
        tokens: Tensor = hidden[:, 0] if self._has_class_token() else hidden.mean(dim=1)
        return tokens

    def _has_class_token(self) -> bool:
        names = (name.rpartition(".")[2] for name, _ in self.named_parameters())
        return any(name in ("cls_token", "class_embedding") for name in names)


@dataclass(frozen=True, slots=True)
class HFBackbone:
    """
    An encoder by its configuration, of a repository or a folder.

    `settings` is the configuration; `folder` has the weights of a local folder; `images` is the configuration
    of its image processor.
    """

    name: str
    settings: Mapping[str, Any] = field(repr=False)
    images: Mapping[str, Any] = field(repr=False, default_factory=dict)
    folder: Path | None = field(repr=False, default=None)
    library: str = "transformers"
    unnamed_weights: None = None
    parameter_count: int = 0

    @classmethod
    def open(cls, name: str) -> HFBackbone:
        """Return the encoder of a repository (owner/name), of which the configuration is read."""
        repository = name.removeprefix(PREFIX)
        if len([part for part in repository.split("/") if part]) != 2:
            raise also(TrainingError, KeyError)(
                f"{name!r} is no repository of the Hugging Face hub; expected 'hf:owner/name', such as "
                "'hf:microsoft/rad-dino'; a folder is passed as a path"
            )
        settings = _read_json(
            fetch_file(repository, (_CONFIG,), what=f"the configuration of {name}", is_weights=False)
        )
        images = cached_file(repository, (_IMAGES,))
        if images is None:
            try:
                images = fetch_file(
                    repository, (_IMAGES,), what=f"the image processor of {name}", is_weights=False
                )
            except WeightsUnavailableError as error:
                raise WeightsUnavailableError(
                    f"{name} needs its {_IMAGES} for mean, standard deviation and size; {error}"
                ) from error
        return cls(name, _own_settings(settings, name), _read_json(images))

    @classmethod
    def open_folder(cls, folder: Path) -> HFBackbone:
        """Return the encoder of a folder as ``save_pretrained`` writes it."""
        name = f"{PREFIX}{folder.name}"
        images = folder / _IMAGES
        found = _read_json(images) if is_regular_file(images) else {}
        return cls(name, _own_settings(_read_json(folder / _CONFIG), name), found, folder)

    @classmethod
    def rebuild(cls, architecture: Architecture) -> HFBackbone:
        """Return the encoder of a checkpoint, which has its configuration."""
        if architecture.settings is None:
            raise TrainingError(f"{architecture.name} has no configuration: the file was changed")
        return cls(architecture.name, _own_settings(architecture.settings, architecture.name))

    @property
    def channels(self) -> int:
        """Channels of the images that the network takes as it is: 3, or 1."""
        return 1 if self.settings.get("num_channels") == 1 else 3

    def resolve_weights(self, choice: WeightsChoice, *, accept_license: bool) -> WeightsSource | None:
        """Return the weights of the folder or repository."""
        if choice != "DEFAULT":
            raise also(WeightsUnavailableError, KeyError)(
                f'{self.name} has no weights {choice!r}; expected "DEFAULT", the path of a file, or None'
            )
        if self.folder is not None:
            path = next((self.folder / n for n in WEIGHT_FILES if is_regular_file(self.folder / n)), None)
            if path is None:
                raise also(WeightsUnavailableError, FileNotFoundError)(
                    f"the folder of {self.name} has none of {', '.join(WEIGHT_FILES)}; pass weights=<path of "
                    "the file>, or weights=None for random weights (files in several parts are not read)"
                )
            return WeightsSource(path.name, path)
        repository = self.name.removeprefix(PREFIX)
        where = f"https://huggingface.co/{repository.partition('@')[0]}"
        terms = self._license(repository)
        check_license(self.name, terms, where, accepted=accept_license)
        path = cached_file(repository, WEIGHT_FILES) or Path(WEIGHT_FILES[0])
        return WeightsSource(self.name, path, where, license=terms, repository=repository, files=WEIGHT_FILES)

    def _license(self, repository: str) -> str | None:
        """Return the license that the repository's page states; None if it is not known."""
        known = _LICENSES.get(repository.partition("@")[0])
        card = cached_file(repository, ("README.md",))
        if known is not None or card is None:
            return known
        front = card.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
        found = dict(line.split(":", 1) for line in front.splitlines() if _LICENSE.match(line))
        stated = found.get("license_name") or found.get("license")
        return None if stated is None else stated.strip().strip("\"'")

    def default_recipe(self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None) -> Preprocess:
        """Return the default preprocessing, by the configuration of the image processor."""
        images = self.images
        mean, std = (_per_channel(images.get(f"image_{what}"), what, self.name) for what in ("mean", "std"))
        if images.get("do_normalize", True) is False:
            mean, std = None, None
        elif mean is None or std is None:
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        if self.channels == 1:
            one = tuple(None if v is None else v[0] for v in (mean, std))
            return Preprocess(size=self._size(), channels="single", mean=one[0], std=one[1])
        return Preprocess(size=self._size(), mean=mean, std=std)

    def _size(self) -> int:
        """Return the default image size: that of the crop, or of the images, else of the configuration."""
        for entry in ("crop_size", "size"):
            given = self.images.get(entry)
            if entry == "crop_size" and self.images.get("do_center_crop", True) is False:
                continue
            value = given.get("height", given.get("shortest_edge")) if isinstance(given, dict) else given
            if value is not None:
                return _first_side(value, entry, self.name)
        stated = self.settings.get("image_size")
        return 224 if stated is None else _first_side(stated, "image_size", self.name)

    def plan(
        self, weights: WeightsSource | None, state: Mapping[str, Tensor] | None, recipe: Preprocess
    ) -> Architecture:
        """Return the description, with the configuration."""
        return Architecture(self.name, channels=self.channels, settings=dict(self.settings))

    def size_rule(self, architecture: Architecture) -> SizeRule:
        """Return the sizes that the network takes: multiples of its patches."""
        patch = self.settings.get("patch_size")
        if patch is None or isinstance(patch, list | tuple):
            return SizeRule()
        return SizeRule(multiple=check_whole_number(f"patch_size of {self.name}", patch, least=1))

    def build(self, architecture: Architecture, recipe: Preprocess | None, *, initialize: bool) -> HeadParts:
        """Build the encoder of a configuration with random weights."""
        transformers = import_extra("transformers", "hf", self.name)
        settings = dict(self.settings)
        kind = settings.pop("model_type")
        try:
            config = transformers.AutoConfig.for_model(kind, **settings)
            model_class = transformers.AutoModel._model_mapping[type(config)]
            # the pooler of a ViT is a layer for its former task
            options = {"add_pooling_layer": False} if _has_dense_pooler(model_class) else {}
            network = transformers.AutoModel.from_config(config, trust_remote_code=False, **options)
            encoder = HFEncoder(network.float())
        except Exception as error:  # whatever the code for this network makes of its configuration
            raise TrainingError(
                f"transformers {transformers.__version__} can't build {self.name} ({printable(kind)!r}; "
                f"{printable_error(error)}); another version may"
            ) from error
        tried = recipe or self.default_recipe(None, None)
        if tried.n_channels != input_channels(encoder):
            tried = self.default_recipe(None, None).replace(size=tried.size)
        features = check_probe(encoder, self.name, tried, None)
        return HeadParts(encoder, nn.Linear(features, 1, device="meta"), "")

    def convert(
        self, parts: HeadParts, architecture: Architecture, state: OrderedDict[str, Tensor]
    ) -> OrderedDict[str, Tensor]:
        """
        Return the tensors of a file by the names of the encoder, without those of other heads.

        A file with former names is loaded by transformers itself.
        """
        network: Any = parts.body.network
        own = network.state_dict()
        prefix, found = strip_prefix(state, own, self.name)
        if not all(name in found for name in own):
            found = self._load_by_library(network, state)
        left = [name for name in found if name not in own]
        if left:
            get_logger().info("weights of %s: %d other tensors were left out", self.name, len(left))
        converted = OrderedDict((f"{prefix}network.{name}", found[name]) for name in own)
        converted.update((name, value) for name, value in state.items() if not name.startswith(prefix))
        return converted

    def _load_by_library(self, network: Any, state: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Return what transformers makes of a file with other names; refuse one that lacks tensors."""
        try:
            loaded, facts = type(network).from_pretrained(
                None, config=network.config, state_dict=dict(state), output_loading_info=True
            )
        except Exception as error:  # whatever the library raises
            raise WeightsUnavailableError(
                f"the weights don't fit {self.name} ({printable_error(error)}); pass the backbone of "
                "these weights, or other weights"
            ) from error
        missing = sorted(set(facts.get("missing_keys", ())) & set(network.state_dict()))
        if missing:
            raise WeightsUnavailableError(
                f"the weights don't fit {self.name}: {len(missing)} missing ({', '.join(missing[:3])}); pass "
                "the backbone of these weights, or other weights"
            )
        return OrderedDict(loaded.state_dict())


def _has_dense_pooler(model_class: Any) -> bool:
    """Whether an encoder has a pooling layer that is an argument."""
    return "add_pooling_layer" in signature(model_class.__init__).parameters


def _per_channel(value: object, what: str, name: str) -> tuple[Any, ...] | None:
    """Return the mean or standard deviation of an image processor, one for all channels or one for each."""
    if value is None:
        return None
    several = value if isinstance(value, list | tuple) else (value,) * 3
    if not several or any(isinstance(v, bool) or not isinstance(v, int | float) for v in several):
        raise TrainingError(
            f"image_{what} of {name} must be a number, or one for each channel; found {reprlib.repr(value)}"
        )
    return tuple(several)


def _first_side(value: object, entry: str, name: str) -> int:
    """Return the first side of images of a size."""
    side = value[0] if isinstance(value, list | tuple) and value else value
    return check_whole_number(f"{entry} of {name}", side, least=1)


def _own_settings(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the configuration of the image encoder, which must need no code of the repository."""
    inner = settings.get("vision_config")
    if inner is not None and not isinstance(inner, dict):
        raise TrainingError(
            f"vision_config of {name} must be an object with fields; found a {type(inner).__name__}"
        )
    if isinstance(inner, dict):  # of image and text, such as CLIP
        kind = inner.get("model_type") or f"{settings.get('model_type')}_vision_model"
        settings = {**inner, "model_type": kind}
    if "auto_map" in settings:
        raise TrainingError(
            f"{name} needs code that its repository has, which is not executed; build the network yourself "
            "and register it by medimg.register_backbone"
        )
    _check_local(settings, name)
    if not isinstance(settings.get("model_type"), str):
        raise TrainingError(
            f"the configuration of {name} has no model_type: it is not one of transformers; pass a folder as "
            "save_pretrained writes it"
        )
    return {key: value for key, value in settings.items() if key not in _NOT_BUILT}


def _check_local(value: object, name: str, depth: int = 0) -> None:
    """Refuse a configuration, or one inside it, with which transformers would download or run code."""
    if depth > _DEEPEST:
        raise TrainingError(f"the configuration of {name} is nested deeper than {_DEEPEST} levels")
    if isinstance(value, list | tuple):
        for inner in value:
            _check_local(inner, name, depth + 1)
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key == "model_type" and isinstance(inner, str) and inner.startswith("timm_"):
            raise TrainingError(f"{name} is a network of timm: pass its name there, such as 'timm:resnet50'")
        if (key in _REMOTE and inner) or (key.endswith(_KERNELS) and not _is_built_in(inner)):
            raise TrainingError(
                f"the configuration of {name} has {key!r}, with which transformers can download or run "
                "other code or weights; remove it from the configuration if you trust it"
            )
        _check_local(inner, name, depth + 1)


def _is_built_in(chosen: object) -> bool:
    """Whether an implementation of attention or experts, one or several, is none of a repository."""
    several = chosen.values() if isinstance(chosen, dict) else (chosen,)
    return all(one in _BUILT_IN for one in several if not isinstance(one, list | dict)) and not any(
        isinstance(one, list | dict) for one in several
    )


def _read_json(path: Path) -> dict[str, Any]:
    """Read a configuration."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsUnavailableError(
            f"{path} can't be read as a configuration ({type(error).__name__}); download it again"
        ) from error
    if not isinstance(found, dict):
        raise WeightsUnavailableError(f"{path} is no configuration: expected an object with fields")
    return found
