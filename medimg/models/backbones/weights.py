"""Pretrained weights: resolved to a file, downloaded, verified by their hash, and read."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights

from medimg.errors import WeightsUnavailableError
from medimg.io.files.atomic import hash_file
from medimg.io.files.regular_file import is_regular_file
from medimg.models.backbones.registry import AS_BUILT, registered_backbone

if TYPE_CHECKING:
    from torchvision.models import Weights

__all__ = ["LoadedWeights", "WeightsChoice", "WeightsSource", "resolve_weights", "weights_name"]

logger = logging.getLogger("medimg")

#: A name, a member of a torchvision enumeration, a path, or None for random weights.
WeightsChoice: TypeAlias = str | os.PathLike[str] | WeightsEnum | None

_SUFFIXES: Final = (".pth", ".pt", ".bin", ".safetensors")
# torch.hub's rule for names that end in the first digits of the SHA-256
_HASH_IN_NAME: Final = re.compile(r"-([a-f0-9]{8,64})\.[a-z]+$")
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """A state dict on the CPU, with the file's ``_metadata`` if it had any, and the SHA-256 of the file."""

    state: OrderedDict[str, Tensor]
    sha256: str


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """
    Weights that were chosen, and may have to be downloaded.

    `name` is the enumeration's or the file's; `url` is None for a user's file; `entry` is torchvision's
    description of weights chosen by name.
    """

    name: str
    path: Path
    url: str | None = None
    entry: Weights | None = None

    @property
    def license(self) -> str | None:
        """URL of the license of weights that are not under torchvision's; None for a file."""
        return None if self.entry is None else self.entry.meta.get("license")

    def load(self, *, progress: bool = True) -> LoadedWeights:
        """Read the weights; download them first if they have a URL and are not in the cache."""
        if self.url is not None and not is_regular_file(self.path):
            _download(self.url, self.path, progress)
        if not is_regular_file(self.path):
            raise WeightsUnavailableError(
                f"there is no file of weights at {self.path}; correct the path, or pass the name of "
                "torchvision weights, or weights=None for random weights"
            )
        digest = _verify_digest(self.path, self.url)
        return LoadedWeights(_read_state(self.path), digest)


def resolve_weights(
    backbone: str, weights: WeightsChoice, *, accept_license: bool = False
) -> WeightsSource | None:
    """
    Return the source of weights, without reading or downloading it; None for random weights.

    A text is a path if it has a folder, or ends like a file of weights. A registered network's "DEFAULT" are
    the weights it is built with, also None. Licenses of their own (SWAG: CC BY-NC 4.0) must be accepted.

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
            f'weights must be a name, a path or None; found {weights!r}; torchvision\'s best are "DEFAULT"'
        )
    if not isinstance(weights, Enum) and _is_path(weights):
        path = Path(weights).expanduser()
        return WeightsSource(path.name, path)
    if registered_backbone(backbone) is not None:
        if weights != "DEFAULT":
            raise WeightsUnavailableError(
                f"{backbone!r} is a registered network and has no weights {weights!r}; it starts as it is "
                "built "
                '("DEFAULT" or None), or from a file: weights="./weights.pth"'
            )
        return None
    choices = get_model_weights(backbone)
    member = _find_member(backbone, choices, weights)
    name = f"{choices.__name__}.{member.name}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / member.url.rsplit("/", 1)[-1]
    source = WeightsSource(name, path, member.url, member.value)
    if source.license is not None and not accept_license:
        raise WeightsUnavailableError(
            f"{name} are under a license of their own: {source.license}; read it and pass "
            "accept_license=True, or choose other weights, or weights=None"
        )
    return source


def weights_name(backbone: str, source: WeightsSource | None) -> str | None:
    """Return the name of initial weights: None for random ones, "as built" for a registered network's own."""
    if source is not None:
        return source.name
    return AS_BUILT if registered_backbone(backbone) is not None else None


def _is_path(weights: str | os.PathLike[str]) -> bool:
    """Whether weights are given by a path, not by a name."""
    if not isinstance(weights, str):
        return True
    return weights.endswith(_SUFFIXES) or "/" in weights or os.sep in weights


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
    near = difflib.get_close_matches(wanted.rpartition(".")[2], names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise WeightsUnavailableError(
        f"{backbone} has no weights {wanted!r}; expected {', '.join(map(repr, ['DEFAULT', *names]))}, or "
        f"the path of a file such as './weights.pth'{hint}"
    )


def _download(url: str, path: Path, progress: bool) -> None:
    match = _HASH_IN_NAME.search(path.name)
    logger.info("downloading %s", url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), match.group(1) if match else None, progress)
    # no network, no permission to write; a wrong hash; a truncated or invalid response
    except (OSError, RuntimeError, HTTPException) as error:
        raise WeightsUnavailableError(
            f"could not download {url} to {path} ({type(error).__name__}: {error}); download that file "
            "elsewhere and copy it there, or pass weights=<path of the file>, or weights=None for random "
            "weights"
        ) from error


def _verify_digest(path: Path, url: str | None) -> str:
    """Return the file's SHA-256, which must agree with the digits in its name, if it has any."""
    digest = hash_file(path)
    match = _HASH_IN_NAME.search(path.name)
    if match and not digest.startswith(match.group(1)):
        remedy = (
            f"delete it to download it again from {url}, or download that file elsewhere and copy it there"
            if url is not None
            else "download it again, or rename it if these characters are not a hash"
        )
        raise WeightsUnavailableError(
            f"{path} is damaged or another file: its SHA-256 starts with {digest[: len(match.group(1))]}, "
            f"expected {match.group(1)} by its name ({path.stat().st_size} bytes found); {remedy}"
        )
    return digest


def _read_state(path: Path) -> OrderedDict[str, Tensor]:
    """Read a state dict from a safetensors file, or from one of torch.save without executing code."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = OrderedDict(load_file(path))
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make either reader raise almost any error
        raise WeightsUnavailableError(
            f"{path} can't be read as weights ({type(error).__name__}): it is damaged, or was not written by "
            "torch.save(model.state_dict(), ...) or safetensors; download or save it again"
        ) from error
    return _plain_state(found, path)


def _is_plain(name: object, value: object) -> bool:
    """Whether an item of a file is a dense tensor on the CPU, with a name."""
    dense = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
    return isinstance(name, str) and dense


def _plain_state(found: Any, path: Path) -> OrderedDict[str, Tensor]:
    """Return the state dict of a file, also from inside the wrappers of training scripts."""
    for wrapper in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not found or not all(_is_plain(*item) for item in found.items()):
        raise WeightsUnavailableError(
            f"{path} has a {type(found).__name__}, expected a state dict (tensors by name); save it with "
            "torch.save(model.state_dict(), ...)"
        )
    if not all(name.startswith("module.") for name in found):
        state = OrderedDict(found)
    else:  # written by nn.DataParallel
        state = OrderedDict((name.removeprefix("module."), value) for name, value in found.items())
    # load_state_dict reads the versions of layers from this attribute, which is not copied
    if hasattr(found, "_metadata"):
        state._metadata = found._metadata  # type: ignore[attr-defined]  # set by torch, and untyped
    return state
