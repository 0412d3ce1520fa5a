"""Pretrained weights: which file they are, where it is, and whether it is what it says."""

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
from medimg.models.backbones.registry import AS_BUILT, registered_backbone

if TYPE_CHECKING:
    from torchvision.models import Weights

__all__ = ["LoadedWeights", "WeightsChoice", "WeightsSource", "resolve_weights", "weights_name"]

logger = logging.getLogger("medimg")

#: What ``weights=`` takes: a name, a member of a torchvision enumeration, a path, or None for none.
WeightsChoice: TypeAlias = str | os.PathLike[str] | WeightsEnum | None

_SUFFIXES: Final = (".pth", ".pt", ".bin", ".safetensors")
# torch.hub's own rule for names that end in the first digits of their content's SHA-256
_HASH_IN_NAME: Final = re.compile(r"-([a-f0-9]{8,64})\.[a-z]+$")
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """
    A state dict, and the SHA-256 of the file that held it.

    Parameters
    ----------
    state : dict of str to Tensor
        Parameters and buffers, on the CPU; its ``_metadata`` is kept where the file had it.
    sha256 : str
        64 hexadecimal digits.
    """

    state: OrderedDict[str, Tensor]
    sha256: str


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """
    A file of weights that was chosen and may still have to be fetched.

    Parameters
    ----------
    name : str
        How the weights are called in a repr or a checkpoint: the enumeration's name, or the file's.
    path : Path
        Where the file is, or will be.
    url : str or None
        Where it comes from; None for a file of the user's.
    entry : Weights or None
        torchvision's description, for weights that were chosen by name.
    """

    name: str
    path: Path
    url: str | None = None
    entry: Weights | None = None

    @property
    def license(self) -> str | None:
        """Address of the license, where the weights are not under torchvision's own; None for a file's."""
        return None if self.entry is None else self.entry.meta.get("license")

    def load(self, *, progress: bool = True) -> LoadedWeights:
        """
        Read the weights, downloading them first where they have a URL and are not in the cache.

        Parameters
        ----------
        progress : bool
            Whether a download shows its progress.

        Returns
        -------
        LoadedWeights

        Raises
        ------
        WeightsUnavailableError
            If the file is not to be had, is damaged, or is no state dict.
        """
        if self.url is not None and not self.path.exists():
            _download(self.url, self.path, progress)
        if not self.path.is_file():
            raise WeightsUnavailableError(
                f"there is no file of weights at {self.path}; correct the path, or pass the name of "
                "torchvision's weights, or weights=None to start from random ones"
            )
        digest = _checked_digest(self.path, self.url)
        return LoadedWeights(_read_state(self.path), digest)


def resolve_weights(
    backbone: str, weights: WeightsChoice, *, accept_license: bool = False
) -> WeightsSource | None:
    """
    Find out which file is meant, without reading or fetching it.

    Parameters
    ----------
    backbone : str
        Name of a torchvision classification model, or of a network of one's own.
    weights : str, path, WeightsEnum or None
        ``"DEFAULT"``; a name such as ``"IMAGENET1K_V1"`` or ``"ResNet50_Weights.IMAGENET1K_V2"``; a member of
        the model's enumeration; the path of a state dict; or None. A text is a path when it has a folder in
        it or ends like a file of weights.
    accept_license : bool
        Whether weights under a license of their own (SWAG: CC BY-NC 4.0) may be used.

    Returns
    -------
    WeightsSource or None
        None for None; for an own network for "DEFAULT" too: its weights are those that its function gives.

    Raises
    ------
    WeightsUnavailableError
        If the model has no weights of that name, or their license was not accepted.

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
            f"weights is a name, a path or None; found {weights!r}. The best that torchvision has are "
            '"DEFAULT"'
        )
    if not isinstance(weights, Enum) and _is_path(weights):
        path = Path(weights).expanduser()
        return WeightsSource(path.name, path)
    if registered_backbone(backbone) is not None:
        _check_own(backbone, weights)
        return None
    choices = get_model_weights(backbone)
    member = _member(backbone, choices, weights)
    name = f"{choices.__name__}.{member.name}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / member.url.rsplit("/", 1)[-1]
    source = WeightsSource(name, path, member.url, member.value)
    if source.license is not None and not accept_license:
        raise WeightsUnavailableError(
            f"{name} are not under torchvision's license but under their own: {source.license}. "
            "Read it, then pass accept_license=True; or choose other weights, or weights=None"
        )
    return source


def weights_name(backbone: str, source: WeightsSource | None) -> str | None:
    """
    Return how a classifier calls the weights it starts from.

    Parameters
    ----------
    backbone : str
        Its backbone.
    source : WeightsSource or None
        The file that was chosen.

    Returns
    -------
    str or None
        None for random ones; "as built" for those that an own network's function gives.
    """
    if source is not None:
        return source.name
    return AS_BUILT if registered_backbone(backbone) is not None else None


def _check_own(backbone: str, weights: str | os.PathLike[str] | Enum) -> None:
    if weights != "DEFAULT":
        raise WeightsUnavailableError(
            f"{backbone!r} is a network of your own, and has no weights {weights!r}; it starts as its "
            'function gives it ("DEFAULT" or None), or from a file: weights="./weights.pth"'
        )


def _is_path(weights: str | os.PathLike[str]) -> bool:
    if not isinstance(weights, str):
        return True
    return weights.endswith(_SUFFIXES) or "/" in weights or os.sep in weights


def _member(backbone: str, choices: type[WeightsEnum], weights: Any) -> WeightsEnum:
    if isinstance(weights, Enum):
        if isinstance(weights, choices):
            return weights
        wanted = str(weights)
    else:
        wanted = str(weights)
        prefix, _, short = wanted.rpartition(".")
        # __members__ also holds aliases, such as DEFAULT
        if prefix in ("", choices.__name__) and short in choices.__members__:
            return choices.__members__[short]
    names = [member.name for member in choices]
    near = difflib.get_close_matches(wanted.rpartition(".")[2], names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise WeightsUnavailableError(
        f"{backbone} has no weights {wanted!r}; it has {', '.join(map(repr, ['DEFAULT', *names]))}.{hint} "
        "A file is given by its path, such as './weights.pth'"
    )


def _download(url: str, path: Path, progress: bool) -> None:
    match = _HASH_IN_NAME.search(path.name)
    logger.info("downloading %s", url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), match.group(1) if match else None, progress)
    # no network, no right to write; a wrong hash; an answer that is cut short or garbage
    except (OSError, RuntimeError, HTTPException) as error:
        raise WeightsUnavailableError(
            f"could not download {url} to {path} ({type(error).__name__}: {error}). Download that file "
            f"elsewhere and put it there; or pass weights=<path of the file>; or weights=None to train "
            "from random weights"
        ) from error


def _checked_digest(path: Path, url: str | None) -> str:
    """Return the file's SHA-256, after comparing it with the digits that its name may carry."""
    digest = hash_file(path)
    match = _HASH_IN_NAME.search(path.name)
    if match and not digest.startswith(match.group(1)):
        remedy = (
            f"Delete it, and it is downloaded again from {url}; or fetch that file elsewhere and put it there"
            if url is not None
            else "Fetch it anew; or rename it, if these characters are a date or a name and no hash"
        )
        raise WeightsUnavailableError(
            f"{path} is damaged or not the file it says: its SHA-256 starts with "
            f"{digest[: len(match.group(1))]}, its name promises {match.group(1)} "
            f"({path.stat().st_size} bytes found). {remedy}"
        )
    return digest


def _read_state(path: Path) -> OrderedDict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = OrderedDict(load_file(path))
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make either reader raise nearly anything
        raise WeightsUnavailableError(
            f"{path} can't be read as weights ({type(error).__name__}): it is damaged, or no file made by "
            "torch.save(model.state_dict(), ...) or safetensors; fetch it anew or save it again so"
        ) from error
    return _plain_state(found, path)


def _is_plain(name: object, value: object) -> bool:
    dense = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
    return isinstance(name, str) and dense


def _plain_state(found: Any, path: Path) -> OrderedDict[str, Tensor]:
    """Unwrap what training scripts put around a state dict, and check that it is one."""
    for wrapper in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not found or not all(_is_plain(*item) for item in found.items()):
        raise WeightsUnavailableError(
            f"{path} holds a {type(found).__name__}, expected a state dict: names with tensors. Save it "
            "with torch.save(model.state_dict(), ...)"
        )
    if not all(name.startswith("module.") for name in found):
        state = OrderedDict(found)
    else:  # nn.DataParallel's habit
        state = OrderedDict((name.removeprefix("module."), value) for name, value in found.items())
    # load_state_dict reads the versions of layers from this attribute, which a copy loses
    if hasattr(found, "_metadata"):
        state._metadata = found._metadata  # type: ignore[attr-defined]  # set by torch, and untyped
    return state
