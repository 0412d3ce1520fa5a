"""
Checkpoints: one safetensors file that holds parameters, and a JSON header with all else.

Nothing in the file is executed when it is read, and nothing in it tells who the patients are. Three hashes
tell damage and later changes: one of the tensors, one of the header, one of all that predictions depend on.
They prove no origin: who changes a file can hash it anew.
"""

from __future__ import annotations

import platform
from collections import OrderedDict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from medimg import __version__
from medimg.calibration.mahalanobis import MahalanobisDetector
from medimg.calibration.result import Calibration
from medimg.errors import CheckpointError, MedimgError
from medimg.models import safetensors_file
from medimg.models.backbones.architecture import Architecture, backbone_names
from medimg.models.backbones.heads import feature_count
from medimg.models.classifier import TransferClassifier
from medimg.models.digest import model_digest
from medimg.models.training_distribution import TrainingDistribution
from medimg.models.training_images import TrainingImages
from medimg.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

__all__ = ["SCHEMA", "load", "read_header", "save"]

#: Version of the header's layout; raised when older versions could no longer read it, or would read less than
#: predictions depend on. Version 1 had neither calibration nor ranges, and is still read.
SCHEMA: Final = 2

_KEY: Final = "medimg"
_WHAT: Final = (
    "a checkpoint of medimg; to start from plain weights use TransferClassifier(backbone, classes=..., "
    "weights=path)"
)
_MAX_HEADER: Final = 16 * 2**20
_MAX_IMAGE_SIZE: Final = 2048  # a ViT of that size has 100 MB of positions: more is no honest file
#: Of a network's numbers a file holds this share at least. Heads differ: without its own, ShuffleNet has 1/4.
_LEAST_SHARE: Final = 1 / 20
_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_OUTLIERS: Final = "outliers."
_SEEN: Final = "images_seen."


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_object_or_none(value: Any) -> bool:
    return value is None or isinstance(value, dict)


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
    "training": _is_object_or_none,
    "tensors_sha256": _is_text,
    "header_sha256": _is_text,
}
#: Those that version 2 added.
_FIELDS_2: Final[dict[str, Callable[[Any], bool]]] = {
    "ranges": _is_object_or_none,
    "calibration": _is_object_or_none,
    "images_seen": _is_object_or_none,
    "model_sha256": _is_text,
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
    calibration, ranges, seen = model.calibration, model.training_ranges, model.images_seen
    tensors = dict(model.state_dict())
    if calibration is not None and calibration.outliers is not None:
        tensors |= {f"{_OUTLIERS}{name}": value for name, value in calibration.outliers.tensors().items()}
    if seen is not None:
        tensors |= {f"{_SEEN}{role}": value for role, value in seen.tensors().items()}
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
        "ranges": ranges.to_dict() if ranges is not None else None,
        "calibration": calibration.to_dict() if calibration is not None else None,
        "images_seen": seen.to_dict() if seen is not None else None,
        "model_sha256": model_digest(model),
    }
    safetensors_file.write(target, _KEY, header, tensors)
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
    tensors = safetensors_file.read_tensors(file, header)
    try:
        model = _rebuild(header, tensors)
        _add_decisions(model, header, tensors)
    except (MedimgError, ArithmeticError, AssertionError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} describes a model that can't be built: {error}") from error
    _check_tensors(model, tensors, file)
    state = OrderedDict(tensors)
    # without the layers' versions, load_state_dict takes the tensors for those of the oldest ones
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # set by torch, and untyped
    model.load_state_dict(state, strict=True, assign=True)
    model.training_summary = header["training"]
    if header["schema"] > 1 and model_digest(model) != header["model_sha256"]:
        raise CheckpointError(
            f"the model in {file} is not the one that was saved (its SHA-256 differs): the file was changed, "
            "or this version of medimg would predict otherwise"
        )
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
        versions, summary of the training, ranges of the training data, calibration, what names the images
        seen, and the hashes.

    Raises
    ------
    CheckpointError
        If the file is damaged, its header was changed, or it is no checkpoint of medimg.
    """
    file = Path(path)

    def check(header: Any) -> None:
        _check_header(header, file)

    return safetensors_file.read_header(file, _KEY, _WHAT, check=check, limit=_MAX_HEADER)


def _check_header(header: Any, file: Path) -> None:
    schema = header.get("schema") if isinstance(header, dict) else None
    if type(schema) is not int or schema < 1:
        raise CheckpointError(f"the header of {file} names no schema: it was damaged or changed")
    if schema > SCHEMA:
        raise CheckpointError(
            f"{file} was written by a newer medimg: its schema is {schema}, this version knows up to "
            f"{SCHEMA}; update medimg"
        )
    expected = _FIELDS if schema == 1 else _FIELDS | _FIELDS_2
    wrong = [name for name, test in expected.items() if name not in header or not test(header[name])]
    if wrong:
        raise CheckpointError(f"the header of {file} lacks a sound {', '.join(map(repr, wrong))}")


def _add_decisions(model: TransferClassifier, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Give a model what else was saved of it, and take what is not the network's out of the tensors."""
    if header["schema"] == 1:
        return
    found = _taken(tensors, _OUTLIERS)
    outliers = MahalanobisDetector.from_tensors(found, feature_count(model)) if found else None
    seen = _taken(tensors, _SEEN)
    if seen or header["images_seen"] is not None:
        model.images_seen = TrainingImages.from_parts(header["images_seen"] or {}, seen)
    if header["calibration"] is not None:
        model.calibration = Calibration.from_dict(header["calibration"], outliers, model.classes, model.task)
    if header["ranges"] is not None:
        model.training_ranges = TrainingDistribution.from_dict(header["ranges"])


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _check_numbers(name: str, tensors: dict[str, Tensor]) -> None:
    """Refuse a small file of a large network, before that takes memory."""
    if name not in backbone_names():
        return
    whole = get_model_weights(name)["DEFAULT"].value.meta["num_params"]
    held = sum(t.numel() for t in tensors.values())
    if held < _LEAST_SHARE * whole:
        raise CheckpointError(f"it holds {held:,} numbers, and a {name} has {whole:,}")


def _rebuild(header: dict[str, Any], tensors: dict[str, Tensor]) -> TransferClassifier:
    preprocess = Preprocess.from_dict(header["preprocess"])
    if preprocess.fingerprint != header["preprocess_fingerprint"]:
        raise CheckpointError(
            f"the recipe gives fingerprint {preprocess.fingerprint}, {header['preprocess_fingerprint']} was "
            "saved: it would make other pictures than those trained on (the file was changed, or this "
            "version of medimg preprocesses otherwise)"
        )
    architecture = _architecture(header["architecture"])
    _check_numbers(architecture.name, tensors)
    # building draws random parameters, all replaced: the caller's random numbers stay what they were
    with torch.random.fork_rng(devices=[]):
        return TransferClassifier.rebuild(
            architecture,
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


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype | None]:
    return tensor.shape, None if tensor.dtype in _DTYPES else tensor.dtype
