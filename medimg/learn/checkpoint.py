"""
Checkpoints: one safetensors file that holds parameters, and a JSON header with all else.

Nothing in the file is executed when it is read, and nothing in it is about patients. Two hashes tell damage
and later changes: one of the tensors, one of the header. They prove no origin: who changes a file can hash it
anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import struct
from collections import OrderedDict
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medimg import __version__
from medimg.errors import CheckpointError, MedimgError
from medimg.io.files import atomic_path
from medimg.learn.backbones import Architecture
from medimg.learn.classifier import TransferClassifier
from medimg.prep import Preprocess

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SCHEMA", "load", "read_header", "save"]

#: Version of the header's layout; raised when older versions could no longer read it.
SCHEMA: Final = 1

_KEY: Final = "medimg"
_MAX_HEADER: Final = 16 * 2**20
_MAX_IMAGE_SIZE: Final = 2048  # a ViT of that size has 100 MB of positions: more is no honest file
_PREFIX: Final = 8  # bytes that hold the header's length: safetensors' format


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


_FIELDS: Final[dict[str, Callable[[Any], bool]]] = {
    "architecture": _is_object,
    "classes": _is_names,
    "task": _is_text,
    "pool": _is_text,
    "preprocess": _is_object,
    "preprocess_fingerprint": _is_text,
    "weights_name": _is_text_or_none,
    "weights_sha256": _is_text_or_none,
    "versions": _is_object,
    "training": lambda value: value is None or isinstance(value, dict),
    "tensors_sha256": _is_text,
    "header_sha256": _is_text,
}


def save(model: TransferClassifier, path: str | os.PathLike[str]) -> Path:
    """
    Write a model; see :meth:`medimg.TransferClassifier.save`.

    Parameters
    ----------
    model : TransferClassifier
        On any device, in any mode.
    path : path-like
        The file.

    Returns
    -------
    pathlib.Path
        The file.
    """
    target = Path(path)
    # a copy of each: safetensors refuses tensors that share memory
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    header: dict[str, Any] = {
        "schema": SCHEMA,
        "architecture": {
            "name": model.architecture.name,
            "transform_input": model.architecture.transform_input,
            "image_size": model.architecture.image_size,
        },
        "classes": list(model.classes),
        "task": model.task,
        "pool": model.pool,
        "preprocess": model.preprocess.to_dict(),
        "preprocess_fingerprint": model.preprocess.fingerprint,
        "weights_name": model.weights_name,
        "weights_sha256": model.weights_sha256,
        "versions": {
            "medimg": __version__,
            "torch": str(torch.__version__),
            "torchvision": version("torchvision"),
            "python": platform.python_version(),
        },
        "training": model.training_summary,
        "tensors_sha256": _tensors_sha256(tensors),
    }
    header["header_sha256"] = _header_sha256(header)
    with atomic_path(target) as temporary:
        save_file(tensors, temporary, metadata={_KEY: json.dumps(header, sort_keys=True)})
    return target


def load(path: str | os.PathLike[str]) -> TransferClassifier:
    """
    Read a model that :meth:`medimg.TransferClassifier.save` wrote.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    TransferClassifier
        On the CPU, in evaluation mode, nothing frozen; its outputs are those of the saved model, bit by bit.

    Raises
    ------
    CheckpointError
        If the file is damaged, was changed, is newer than this version, or is no checkpoint of medimg.
    """
    file = Path(path)
    header = read_header(file)
    tensors = _read_tensors(file)
    if _tensors_sha256(tensors) != header["tensors_sha256"]:
        raise CheckpointError(
            f"the parameters in {file} are not those that were saved (their SHA-256 differs): the file was "
            "damaged or changed; fetch it anew or train again"
        )
    try:
        model = _rebuild(header)
    except (MedimgError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} describes a model that can't be built: {error}") from error
    _check_tensors(model, tensors, file)
    state = OrderedDict(tensors)
    # without the layers' versions, load_state_dict takes the tensors for those of the oldest ones
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # set by torch, and untyped
    model.load_state_dict(state, strict=True, assign=True)
    model.training_summary = header["training"]
    return model.eval()


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Read what a checkpoint says of itself, without its parameters.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    dict
        Schema, architecture, classes, task, pool, recipe and its fingerprint, weights and their SHA-256,
        versions, summary of the training, and the two hashes.

    Raises
    ------
    CheckpointError
        If the file is damaged, its header was changed, or it is no checkpoint of medimg.
    """
    file = Path(path)
    _check_envelope(file)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata: Any = opened.metadata()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; fetch it anew or train again") from error
    if not isinstance(metadata, Mapping) or _KEY not in metadata:
        raise CheckpointError(
            f"{file} is a safetensors file, but not a checkpoint of medimg; to start from plain weights use "
            "TransferClassifier(backbone, classes=..., weights=path)"
        )
    try:
        header: Any = json.loads(metadata[_KEY])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the header of {file} is damaged: {error}") from error
    _check_header(header, file)
    checked: dict[str, Any] = header
    return checked


def _check_envelope(file: Path) -> None:
    """Look at the first bytes, before anything is parsed or allocated."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(_PREFIX + 1)
    except OSError as error:
        raise CheckpointError(f"{file} can't be opened: {error.strerror}; check the path") from error
    if start[:2] == b"PK" or start[:1] == b"\x80":
        raise CheckpointError(
            f"{file} is a file of torch.save, not a checkpoint of medimg; to start from plain weights use "
            "TransferClassifier(backbone, classes=..., weights=path)"
        )
    if len(start) <= _PREFIX or start[_PREFIX:] != b"{":
        raise CheckpointError(f"{file} ({size} bytes) is no safetensors file, so no checkpoint of medimg")
    (length,) = struct.unpack("<Q", start[:_PREFIX])
    if length > min(_MAX_HEADER, size - _PREFIX):
        raise CheckpointError(
            f"{file} is truncated or damaged: it announces a header of {length} bytes, and has {size} bytes "
            f"in all; headers have at most {_MAX_HEADER}"
        )


def _check_header(header: Any, file: Path) -> None:
    schema = header.get("schema") if isinstance(header, dict) else None
    if type(schema) is not int or schema < 1:
        raise CheckpointError(f"the header of {file} names no schema: it was damaged or changed")
    if schema > SCHEMA:
        raise CheckpointError(
            f"{file} was written by a newer medimg: its schema is {schema}, this version knows up to "
            f"{SCHEMA}; update medimg"
        )
    wrong = [name for name, test in _FIELDS.items() if name not in header or not test(header[name])]
    if wrong:
        raise CheckpointError(f"the header of {file} lacks a sound {', '.join(map(repr, wrong))}")
    if _header_sha256(header) != header["header_sha256"]:
        raise CheckpointError(
            f"the header of {file} is not the one that was saved (its SHA-256 differs): classes, recipe or "
            "another field were changed; fetch it anew or train again"
        )


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            # a copy: what is read lies in a map of the file, which may be replaced later
            return {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118  # no dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; fetch it anew or train again") from error


def _rebuild(header: dict[str, Any]) -> TransferClassifier:
    preprocess = Preprocess.from_dict(header["preprocess"])
    if preprocess.fingerprint != header["preprocess_fingerprint"]:
        raise CheckpointError(
            f"the recipe gives fingerprint {preprocess.fingerprint}, {header['preprocess_fingerprint']} was "
            "saved: it would make other pictures than those trained on (the file was changed, or this "
            "version of medimg preprocesses otherwise)"
        )
    # building draws random parameters, all replaced: the caller's random numbers stay what they were
    with torch.random.fork_rng(devices=[]):
        return TransferClassifier.rebuild(
            _architecture(header["architecture"]),
            classes=header["classes"],
            preprocess=preprocess,
            task=header["task"],
            pool=header["pool"],
            weights_name=header["weights_name"],
            weights_sha256=header["weights_sha256"],
        )


def _architecture(fields: dict[str, Any]) -> Architecture:
    name, transform, size = (fields.get(key) for key in ("name", "transform_input", "image_size"))
    sized = size is None or (type(size) is int and 0 < size <= _MAX_IMAGE_SIZE)
    if not (isinstance(name, str) and isinstance(transform, bool) and sized and len(fields) == 3):
        raise CheckpointError(f"expected an architecture of three fields; found {fields!r}")
    return Architecture(name, transform_input=transform, image_size=size)


def _check_tensors(model: TransferClassifier, tensors: dict[str, Tensor], file: Path) -> None:
    own = model.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += [n for n in own if n in tensors and _kind(own[n]) != _kind(tensors[n])]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors in {file} don't fit a {model.backbone_name} with {len(model.classes)} "
            f"classes: {', '.join(wrong[:3])}; it was changed, or made by another version of torchvision"
        )


def _kind(tensor: Tensor) -> tuple[torch.Size, bool]:
    return tensor.shape, tensor.is_floating_point()


def _tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _header_sha256(header: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in header.items() if name != "header_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
