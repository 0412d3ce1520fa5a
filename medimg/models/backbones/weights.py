"""Pretrained weights: resolved to a file, downloaded, verified by their hash, and read."""

from __future__ import annotations

import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from medimg._validation import printable
from medimg.core.logger import get_logger
from medimg.core.progress import Progress, shows_bars
from medimg.errors import WeightsUnavailableError, also
from medimg.io.files.atomic import hash_file
from medimg.io.files.regular_file import is_regular_file
from medimg.models.backbones._hub_files import fetch_file, stated_sha256
from medimg.models.backbones.compiled import plain_name

if TYPE_CHECKING:
    from torchvision.models import Weights

__all__ = [
    "LoadedWeights",
    "WeightsChoice",
    "WeightsSource",
    "describe_choice",
    "is_weights_path",
]


#: A name, a member of a torchvision enumeration, a path, or None for random weights.
WeightsChoice: TypeAlias = str | os.PathLike[str] | WeightsEnum | None

_SUFFIXES: Final = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".pth.tar")
# torch.hub's rule for names that end in the first digits of the SHA-256
_HASH_IN_NAME: Final = re.compile(r"-([a-f0-9]{8,64})\.[a-z]+$")
_DEEPEST: Final = 3  # dictionaries within dictionaries
_START: Final = 512
#: Layers whose pickled instances are read inside others, for their tensors.
_LAYERS: Final = (
    nn.AvgPool2d,
    nn.BatchNorm2d,
    nn.Conv2d,
    nn.Linear,
    nn.MaxPool2d,
    nn.ReLU,
    nn.Sequential,
)
#: What may be beside the tensors of a state dict.
_NUMBERS: Final = (int, float, str, type(None))
#: How torch names a class that it does not load.
_GLOBAL: Final = re.compile(r"GLOBAL ([\w.]+)")
#: Modules of the settings and scores that training scripts save beside weights; nothing of them is imported.
_SETTINGS: Final = re.compile(
    r"^(?:argparse\.Namespace|pathlib\.\w*Path|pathlib\._local\.\w*Path|numpy\.(?:dtype|ndarray)|"
    r"numpy\.dtypes\.\w+|numpy\._?core\.multiarray\.(?:scalar|_reconstruct)|omegaconf\.[\w.]+|"
    r"typing\.Any|collections\.defaultdict|builtins\.(?:dict|list|int|float|str)|"
    r"(?:pytorch_)?lightning(?:\.pytorch|_fabric|\.fabric)?\.utilities\.[\w.]*AttributeDict|"
    r"yacs\.config\.CfgNode|easydict\.EasyDict|ml_collections\.[\w.]+|addict\.addict\.Dict)$"
)
_RESUME_KEY: Final = b'"medimg-training"'
#: How files start that are often taken for weights.
_OTHERS: Final = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself (run git lfs pull)"),
    (b"<", "a page of HTML or XML, as a download that failed leaves it"),
    (b"\x89HDF", "an HDF5 file, such as Keras writes"),
)


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """A state dict on the CPU, with the file's ``_metadata`` if it had any, and the SHA-256 of the file."""

    state: OrderedDict[str, Tensor]
    sha256: str


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """
    Weights that were chosen, and may have to be downloaded.

    `name` is the source's or the file's; `url` is None for a user's file; `entry` is torchvision's
    description of weights chosen by name; `license` is its name or URL, None for a file; `repository` of the
    Hugging Face hub has one of `files`; `pickled_classes` are those whose instances are read for their
    tensors.
    """

    name: str
    path: Path
    url: str | None = None
    entry: Weights | None = None
    license: str | None = None
    repository: str | None = None
    files: tuple[str, ...] = ()
    pickled_classes: tuple[str, ...] = ()

    def load(self, *, progress: Progress = "auto") -> LoadedWeights:
        """Read the weights; download them first if they have a URL and are not in the cache."""
        path = self.path
        if self.url is not None and not is_regular_file(path):
            if self.repository is not None:
                path = fetch_file(self.repository, self.files, what=f"the file of the weights {self.name}")
            else:
                _download(self.url, path, progress)
        if not is_regular_file(path):
            raise also(WeightsUnavailableError, FileNotFoundError)(
                f"there is no file of weights at {path}; correct the path, or pass the name of "
                "weights, or weights=None for random weights"
            )
        digest = _verify_digest(path, self.url)
        return LoadedWeights(_read_state(path, self.pickled_classes), digest)


def describe_choice(weights: object) -> str:
    """Describe what is no choice of weights; tensors are not shown."""
    if isinstance(weights, Mapping):
        return f"a {type(weights).__name__}, such as a state dict: write it by torch.save and pass the path"
    return repr(weights) if isinstance(weights, bool | int | float) else f"a {type(weights).__name__}"


def is_weights_path(weights: str | os.PathLike[str]) -> bool:
    """Whether weights are given by a path, not by a name."""
    if not isinstance(weights, str):
        return True
    return weights.endswith(_SUFFIXES) or "/" in weights or os.sep in weights


def _download(url: str, path: Path, progress: Progress) -> None:
    match = _HASH_IN_NAME.search(path.name)
    get_logger().info("downloading %s", url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(path), match.group(1) if match else None, shows_bars(progress)
        )
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
    stated = stated_sha256(path)
    if stated not in (None, digest):
        raise WeightsUnavailableError(
            f"{path} is damaged: its SHA-256 starts with {digest[:12]}, but the cache of the Hugging Face "
            f"hub has it as {str(stated)[:12]} ({path.stat().st_size} bytes found); delete it to download it "
            "again"
        )
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


def _read_state(path: Path, classes: tuple[str, ...] = ()) -> OrderedDict[str, Tensor]:
    """
    Read a state dict from a safetensors file, or from one of torch.save without executing code.

    Instances of `classes`, by their full names, are read as modules that can do nothing.
    """
    with path.open("rb") as file:
        start = file.read(_START)
    if start[8:9] == b"{" and _RESUME_KEY in start:
        raise WeightsUnavailableError(
            f"{path} is the resume file of a training; pass best.safetensors, which is beside it"
        )
    stranger = next((what for magic, what in _OTHERS if start.lstrip().startswith(magic)), None)
    if stranger is not None:
        raise WeightsUnavailableError(
            f"{path} is {stranger}; expected a state dict, as torch.save(model.state_dict(), ...) writes it, "
            "or a safetensors file"
        )
    if _is_torchscript(path):
        raise WeightsUnavailableError(
            f"{path} is a TorchScript archive, which has code; in the environment it comes from, save "
            "torch.jit.load(path).state_dict()"
        )
    is_pickle = start[:2] == b"PK" or start[:1] == b"\x80"
    try:
        if start[8:9] == b"{" or (path.suffix == ".safetensors" and not is_pickle):
            from safetensors.torch import load_file

            found: Any = OrderedDict(load_file(path))
        else:
            _check_sums(path)
            # a path would be read by its suffix
            stand_ins = [*_stand_ins(classes), *_list_settings(path)]
            with path.open("rb") as file, torch.serialization.safe_globals(stand_ins):
                found = torch.load(file, map_location="cpu", weights_only=True)
            found = found.state_dict() if isinstance(found, nn.Module) and classes else found
    except WeightsUnavailableError:
        raise
    except Exception as error:  # damaged bytes make either reader raise almost any error
        raise WeightsUnavailableError(
            f"{path} can't be read as weights ({type(error).__name__}): {_explain(path, error)}"
        ) from error
    return _plain_state(found, path)


def _check_sums(path: Path) -> None:
    """Compare the checksums of an archive of torch.save, a piece at a time: torch ignores them."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":  # the format before 2020 has none
            return
    with zipfile.ZipFile(path) as archive:
        # torch.serialization.set_crc32_options(False) leaves them all 0
        stated = any(member.CRC for member in archive.infolist())
        damaged = archive.testzip() if stated else None
    if damaged is not None:
        raise WeightsUnavailableError(
            f"{path} is damaged: the checksum (CRC-32) of its part {printable(damaged)} differs "
            f"({path.stat().st_size} bytes found); download or save it again"
        )


class _Setting(dict[Any, Any]):
    """Stands for a setting of a training script, of whatever class: it takes any value and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Setting:
        """Accept whatever the class would have been given."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        """Ignore the state."""


def _list_settings(path: Path) -> list[Any]:
    """Return stand-ins for the classes of settings in a file, none of which is then imported."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # damaged, or of another format; reading it says so
        return []
    return [(_Setting, name) for name in names if _SETTINGS.match(name)]


def _stand_ins(classes: tuple[str, ...]) -> list[Any]:
    """Return modules without code, in place of classes, and torch's layers, for the reader of pickles."""
    if not classes:
        return []
    modules: list[Any] = [(type(name.rpartition(".")[2], (nn.Module,), {}), name) for name in classes]
    return [*modules, *_LAYERS, set]


def _is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of torch.jit.save."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _explain(path: Path, error: Exception) -> str:
    """Return why a file can't be read without executing code, and what to do."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # damaged, or of the format before 2020, of which the error names the first one
        names = _GLOBAL.findall(str(error))[:1]
    shown = f"{', '.join(map(printable, names[:3]))}{', ...' if len(names) > 3 else ''}"
    if any(name.startswith("torch.nn.") for name in names):
        return (
            f"it is a whole pickled model ({shown}), whose code is not executed; where its classes are "
            "installed, save torch.load(path, weights_only=False).state_dict()"
        )
    if names:
        return (
            f"it has pickled objects ({shown}), such as a whole model or settings, whose code is not "
            "executed; save its state dict alone, by torch.save(model.state_dict(), ...)"
        )
    return (
        "it is damaged, or was not written by torch.save(model.state_dict(), ...) or safetensors; download "
        "or save it again"
    )


def _is_plain(name: object, value: object) -> bool:
    """Whether an item of a file is a dense tensor on the CPU, with a name."""
    dense = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
    return isinstance(name, str) and dense


def _plain_state(found: Any, path: Path) -> OrderedDict[str, Tensor]:
    """Return the tensors of a file by name, also from inside the dictionaries of training scripts."""
    plain = _find_states(found)
    if not plain:
        kind = (
            f"a dictionary of {_list_keys(found)}" if isinstance(found, dict) else f"a {type(found).__name__}"
        )
        raise WeightsUnavailableError(
            f"{path} has {kind}, expected a state dict (tensors by name); save it with "
            "torch.save(model.state_dict(), ...)"
        )
    if len(plain) == 1:
        (chosen,) = plain.values()
    else:  # the one that fits a network is found by its prefix
        chosen = {f"{name}.{inner}": v for name, tensors in plain.items() for inner, v in tensors.items()}
    state = OrderedDict((plain_name(name), _widen(value, path)) for name, value in chosen.items())
    # load_state_dict reads the versions of layers from this attribute, which is not copied
    if hasattr(chosen, "_metadata") and list(state) == list(chosen):
        state._metadata = chosen._metadata  # type: ignore[attr-defined]  # set by torch, and untyped
    return state


def _widen(value: Tensor, path: Path) -> Tensor:
    """Return numbers of 8 bits, with which torch can hardly compute, as those of 32."""
    # what is expanded in the file would take much more memory than the file
    whole = value.untyped_storage().nbytes() >= value.numel()
    if not value.is_floating_point() or value.element_size() > 1 or not whole:
        return value
    try:
        return value.float()
    except (NotImplementedError, RuntimeError) as error:
        raise WeightsUnavailableError(
            f"{path} has tensors of the type {value.dtype}, which can't be converted to 32 bits; save "
            "them as torch.float32"
        ) from error


def _find_states(found: Any, depth: int = 0) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts in nested dictionaries by their names, joined by dots."""
    if not isinstance(found, dict):
        return {}
    tensors = {name: value for name, value in found.items() if _is_plain(name, value)}
    rest = [value for name, value in found.items() if name not in tensors]
    if any(value.ndim for value in tensors.values()) and all(isinstance(v, _NUMBERS) for v in rest):
        return {"": found if not rest else tensors}
    states: dict[str, dict[str, Tensor]] = {}
    for name, value in found.items() if depth < _DEEPEST else ():
        if isinstance(name, str):
            inner = _find_states(value, depth + 1)
            states.update({f"{name}.{key}".rstrip("."): state for key, state in inner.items()})
    return states


def _list_keys(found: dict[Any, Any]) -> str:
    """Return the first keys of a dictionary, and what they hold."""
    shown = [f"{printable(repr(key))} ({type(value).__name__})" for key, value in list(found.items())[:4]]
    return f"{', '.join(shown) or 'nothing'}{', ...' if len(found) > 4 else ''}"
