"""
Checkpoint schema: parameters in a safetensors file, everything else in its JSON header.

Nothing in the file is executed when it is read, and nothing in it identifies patients. Three hashes (of the
tensors, of the header, of all that predictions depend on) detect damage and later changes; they do not prove
origin, because whoever changes a file can update them.
"""

from __future__ import annotations

import platform
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medimg import __version__
from medimg._validation import (
    check_choice,
    check_fields,
    check_text,
    check_texts,
    check_whole_number,
    printable,
    printable_error,
)
from medimg.calibration.mahalanobis import MahalanobisDetector
from medimg.calibration.result import Calibration
from medimg.errors import CheckpointError, MedimgError, MissingDependencyError, WeightsUnavailableError
from medimg.io.files.regular_file import explain_irregular
from medimg.models import safetensors_file
from medimg.models.backbones.compiled import plain_names
from medimg.models.backbones.source import LONGEST_NAME, Architecture
from medimg.models.input_checks import POOLS, TASKS, Pool, Task
from medimg.models.training_distribution import TrainingDistribution
from medimg.models.training_images import TrainingImages
from medimg.preprocessing.preprocess import UNSTATED_REVISION, Preprocess

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

__all__ = [
    "ENSEMBLE_KEY",
    "SCHEMA",
    "Checkpoint",
    "check_parameter_count",
    "check_schema",
    "extend_chain",
    "find",
    "is_ensemble",
    "pack_tensors",
    "parse",
    "read",
    "read_digest",
    "read_header",
    "refuse_ensemble",
    "refuse_unsound",
    "take",
    "take_packed",
]

#: Version of the header. It is raised if older versions could not read the file, or would ignore something
#: that predictions depend on. Version 1 had neither calibration nor ranges, version 2 no calibration but
#: temperature scaling; both are still read.
SCHEMA: Final = 3

_KEY: Final = "medimg"
#: Of the header of several models in one file.
ENSEMBLE_KEY: Final = "medimg-ensemble"
_WHAT: Final = (
    "a checkpoint of medimg; to start from plain weights use TransferClassifier(backbone, classes=..., "
    "weights=path)"
)
_MAX_HEADER: Final = 16 * 2**20
_MAX_IMAGE_SIZE: Final = 2048  # a ViT of that size has 100 MB of position embeddings
#: Least fraction of a network's parameters in a file. Heads differ: without its own, ShuffleNet has 1/4.
_LEAST_SHARE: Final = 1 / 20
#: Libraries whose versions are shown, by the source of the network.
_LIBRARIES: Final = {"timm": "timm", "hf": "transformers"}
_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_OUTLIERS: Final = "outliers."
_IMAGES_SEEN: Final = "images_seen."
_ARCHITECTURE: Final = ("name", "transform_input", "image_size")
#: Fields that only networks of other sources, or of one channel, have.
_ARCHITECTURE_ADDED: Final = ("channels", "settings")
_FIELDS: Final = (
    "architecture",
    "classes",
    "task",
    "pool",
    "preprocess",
    "preprocess_fingerprint",
    "weights_name",
    "weights_sha256",
    "versions",
    "training",
)
#: Added by version 2.
_FIELDS_2: Final = ("ranges", "calibration", "images_seen", "model_sha256")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Checkpoint:
    """
    Content of a checkpoint.

    `state` are the network's tensors, `model_sha256` is None in schema 1; `libraries` are versions of those
    that built the network, beside torchvision.
    """

    architecture: Architecture
    classes: tuple[str, ...]
    task: Task
    pool: Pool
    preprocess: Preprocess
    state: Mapping[str, Tensor]
    weights_name: str | None
    weights_sha256: str | None
    #: The initial weights, and what these were trained from in turn; see :func:`extend_chain`.
    weights_chain: tuple[dict[str, Any], ...]
    training_summary: dict[str, Any] | None
    training_ranges: TrainingDistribution | None
    images_seen: TrainingImages | None
    calibration: Calibration | None
    model_sha256: str | None
    libraries: Mapping[str, str]

    def write(self, target: Path | str) -> None:
        """Write the file, atomically."""
        safetensors_file.write(target, _KEY, *self.parts())

    def parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the header and the tensors of a file, which :func:`parse` reads."""
        calibration, ranges, seen = self.calibration, self.training_ranges, self.images_seen
        tensors = {**self.state, **pack_tensors(calibration, seen)}
        header: dict[str, Any] = {
            "schema": SCHEMA,
            "architecture": self.architecture.to_dict(),
            "classes": list(self.classes),
            "task": self.task,
            "pool": self.pool,
            "preprocess": self.preprocess.to_dict(),
            "preprocess_fingerprint": self.preprocess.fingerprint,
            "weights_name": self.weights_name,
            "weights_sha256": self.weights_sha256,
            "weights_chain": list(self.weights_chain),
            "versions": {
                "medimg": __version__,
                "torch": str(torch.__version__),
                "torchvision": version("torchvision"),
                "python": platform.python_version(),
                **self.libraries,
            },
            "training": self.training_summary,
            "ranges": ranges.to_dict() if ranges is not None else None,
            "calibration": calibration.to_dict() if calibration is not None else None,
            "images_seen": seen.to_dict() if seen is not None else None,
            "model_sha256": self.model_sha256,
        }
        return header, tensors

    def _builder(self) -> str:
        """Return the library that built the network, and its version if it is not torchvision."""
        return printable(" ".join(next(iter(self.libraries.items()), ("torchvision",))))

    def state_for(self, own: Mapping[str, Tensor], path: Path | str) -> OrderedDict[str, Tensor]:
        """Return the tensors for a network, in whose state dict they must have the same names and shapes."""
        found = self.state
        wrong = sorted(own.keys() ^ found.keys())
        wrong += [n for n in own if n in found and _shape_and_type(own[n]) != _shape_and_type(found[n])]
        if wrong:
            raise CheckpointError(
                f"{len(wrong)} tensors in {path} don't fit a {self.architecture.name} with "
                f"{len(self.classes)} classes: {', '.join(map(printable, wrong[:3]))}; the file was changed, "
                f"or written with another version of {self._builder()}"
            )
        state = OrderedDict(found)
        # without the layers' versions, load_state_dict takes the tensors for those of the oldest ones
        state._metadata = own._metadata  # type: ignore[attr-defined]  # set by torch, and untyped
        return state


def read(path: Path) -> Checkpoint:
    """Read a checkpoint; its tensors are on the CPU, and each field is checked by its name."""
    header = read_header(path)
    tensors = safetensors_file.read_tensors(path, header)
    with refuse_unsound(path):
        return parse(header, tensors)


def is_ensemble(path: Path) -> bool:
    """Whether a file holds an ensemble."""
    metadata = _read_metadata(path)
    return bool(metadata and ENSEMBLE_KEY in metadata)


def refuse_ensemble(path: Path) -> None:
    """Raise WeightsUnavailableError if a file of weights holds an ensemble."""
    if is_ensemble(path):
        raise WeightsUnavailableError(
            f"{path.name} is an ensemble, expected the weights of one network: save a member by "
            "medimg.load(path).members[0].save(file), and pass that file"
        )


def find(path: Path) -> Checkpoint | None:
    """Read a file if it is a checkpoint of medimg of one model; None if it is another type of file."""
    refuse_ensemble(path)
    metadata = _read_metadata(path)
    return read(path) if metadata and _KEY in metadata else None


def _read_metadata(path: Path) -> Any:
    """Return the metadata of a safetensors file; None for any other file."""
    if explain_irregular(path):
        return None
    try:
        with safe_open(path, framework="pt") as opened:
            return opened.metadata()
    except (SafetensorError, OSError, ValueError):
        return None


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the header of a checkpoint, checked against its hash, without the tensors."""
    file = Path(path)
    return safetensors_file.read_header(
        file, _KEY, _WHAT, check=lambda header: check_schema(header, file), limit=_MAX_HEADER
    )


def read_digest(path: Path) -> str | None:
    """Return the SHA-256 of the model in a checkpoint by its header; CheckpointError if that is damaged."""
    found = read_header(path).get("model_sha256")
    return found if isinstance(found, str) else None


def check_schema(header: Any, file: Path | str, *, newest: int = SCHEMA, whose: str = "its schema") -> None:
    """Raise CheckpointError if a header is not of a schema that this version reads, up to `newest`."""
    schema = header.get("schema") if isinstance(header, dict) else None
    if type(schema) is not int or schema < 1:
        raise CheckpointError(f"the header of {file} has no schema: the file was damaged or changed")
    if schema > newest:
        raise CheckpointError(
            f"{file} was written by a newer medimg: {whose} is {schema}, this version reads up to "
            f"{newest}; update medimg"
        )


@contextmanager
def refuse_unsound(path: Path | str, saved: Checkpoint | None = None) -> Iterator[None]:
    """Raise errors of what a file describes, whether ours, Python's or torchvision's, as CheckpointError."""
    try:
        yield
    except MissingDependencyError:
        raise
    except (MedimgError, ArithmeticError, AssertionError, TypeError, ValueError, KeyError) as error:
        used = saved.libraries.items() if saved is not None else ()
        by = "".join(f"; it was saved with {name} {printable(number)}" for name, number in used)
        why = str(error) if isinstance(error, MedimgError) else printable_error(error)
        raise CheckpointError(f"{path} describes a model that can't be built: {why}{by}") from error


def parse(header: Mapping[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    """Return the content of a header and its tensors, of which those of other objects are taken out."""
    expected = _FIELDS if header["schema"] == 1 else _FIELDS + _FIELDS_2
    check_fields("the header", header, expected, others=True, error=CheckpointError)
    classes = check_texts("classes", header["classes"], error=CheckpointError)
    task = check_choice("task", header["task"], TASKS, error=CheckpointError)
    newer = {name: header[name] if header["schema"] > 1 else None for name in _FIELDS_2}
    outliers, seen = take_packed(tensors) if header["schema"] > 1 else ({}, {})
    architecture = _parse_architecture(header["architecture"])
    calibration, ranges = newer["calibration"], newer["ranges"]
    detector = MahalanobisDetector.from_tensors(outliers, _count_features(tensors)) if outliers else None
    state = plain_names(tensors)
    sha256 = None
    if header["schema"] > 1:
        sha256 = check_text("model_sha256", header["model_sha256"], error=CheckpointError)
    return Checkpoint(
        architecture=architecture,
        classes=classes,
        task=task,
        pool=check_choice("pool", header["pool"], POOLS, error=CheckpointError),
        preprocess=_parse_preprocess(header["preprocess"], header["preprocess_fingerprint"]),
        state=state,
        weights_name=_optional_text("weights_name", header),
        weights_sha256=_optional_text("weights_sha256", header),
        weights_chain=_parse_chain(header),
        training_summary=_parse_summary(header["training"]),
        training_ranges=None if ranges is None else TrainingDistribution.from_dict(ranges),
        images_seen=TrainingImages.from_parts(newer["images_seen"], seen)
        if seen or newer["images_seen"] is not None
        else None,
        calibration=None
        if calibration is None
        else Calibration.from_dict(calibration, detector, classes, task),
        libraries=_parse_libraries(header["versions"], architecture.name),
        # that of a compiled network was of other names
        model_sha256=sha256 if state.keys() == tensors.keys() else None,
    )


def pack_tensors(calibration: Calibration | None, seen: TrainingImages | None) -> dict[str, Tensor]:
    """Return the tensors of a calibration and of hashes of images, which :func:`take_packed` takes out."""
    outliers = calibration.outliers if calibration is not None else None
    several = {_OUTLIERS: outliers, _IMAGES_SEEN: seen}
    return {
        f"{prefix}{name}": value
        for prefix, one in several.items()
        if one is not None
        for name, value in one.tensors().items()
    }


def take_packed(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Remove the tensors of a calibration and of hashes of images, and return both."""
    return take(tensors, _OUTLIERS), take(tensors, _IMAGES_SEEN)


def take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove the tensors whose names have a prefix, and return them by the rest of their names."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _parse_architecture(value: object) -> Architecture:
    added = [name for name in _ARCHITECTURE_ADDED if isinstance(value, Mapping) and name in value]
    fields = check_fields("architecture", value, (*_ARCHITECTURE, *added), error=CheckpointError)
    size, settings = fields["image_size"], fields.get("settings")
    if size is not None:
        size = check_whole_number(
            "architecture.image_size", size, least=1, most=_MAX_IMAGE_SIZE, error=CheckpointError
        )
    if settings is not None and not isinstance(settings, dict):
        raise CheckpointError(f"architecture.settings must be an object; found a {type(settings).__name__}")
    name = check_text("architecture.name", fields["name"], error=CheckpointError)
    if printable(name, LONGEST_NAME) != name:
        raise CheckpointError(f"architecture.name is no name of a network; found {printable(name)!r}")
    return Architecture(
        name,
        transform_input=check_choice(
            "architecture.transform_input", fields["transform_input"], (True, False), error=CheckpointError
        ),
        image_size=size,
        channels=check_choice(
            "architecture.channels", fields.get("channels", 3), (1, 3), error=CheckpointError
        ),
        settings=settings,
    )


def _parse_libraries(versions: object, name: str) -> dict[str, str]:
    """Return the version of the library that a network of another source was built by."""
    stated = versions if isinstance(versions, dict) else {}
    library = _LIBRARIES.get(name.partition(":")[0])
    found = stated.get(library)
    return {library: found} if library is not None and isinstance(found, str) else {}


def check_parameter_count(
    state: Mapping[str, Tensor],
    architecture: Architecture,
    whole: int,
    *,
    what: str = "it",
    least: float = 1.0,
    error: type[MedimgError] = CheckpointError,
) -> None:
    """Refuse a small file of a large network, of which `least` must be there, before memory is allocated."""
    held = sum(tensor.numel() for tensor in state.values())
    if held < _LEAST_SHARE * least * whole:
        raise error(f"{what} has {held:,} parameters, but a {architecture.name} has {whole:,}")


def _count_features(tensors: Mapping[str, Tensor]) -> int:
    """Return the length F of an embedding by the weight of the head: (K, F) or (K, F, 1, 1)."""
    weight = tensors.get("head.weight")
    if weight is None or weight.ndim < 2:
        raise CheckpointError("head.weight must have a shape (classes, features, ...); found none")
    return weight.shape[1]


def _parse_preprocess(value: object, stated: object) -> Preprocess:
    if not isinstance(value, dict):
        raise CheckpointError(f"preprocess must be an object with fields; found a {type(value).__name__}")
    fingerprint = check_text("preprocess_fingerprint", stated, error=CheckpointError)
    preprocess = Preprocess.from_dict({"revision": UNSTATED_REVISION, **value})
    if preprocess.fingerprint != fingerprint:
        raise CheckpointError(
            f"the recipe has fingerprint {preprocess.fingerprint}, but {fingerprint} was saved: images "
            "would be preprocessed differently than in training (the file was changed, or this version of "
            "medimg preprocesses differently)"
        )
    return preprocess


def _optional_text(name: str, header: Mapping[str, Any]) -> str | None:
    return None if header[name] is None else check_text(name, header[name], error=CheckpointError)


def extend_chain(
    name: str | None, sha256: str | None, earlier: Checkpoint | None
) -> tuple[dict[str, Any], ...]:
    """Return where initial weights come from: themselves, then what a checkpoint had started from."""
    if name is None:
        return ()
    own: dict[str, Any] = {"name": name, "sha256": sha256}
    if earlier is None:
        return (own,)
    own |= {
        "model_sha256": earlier.model_sha256,
        "classes": list(earlier.classes),
        "train_items": (earlier.training_summary or {}).get("train_items"),
    }
    return (own, *earlier.weights_chain)


def _parse_chain(header: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return the chain of a header; older files name the initial weights alone."""
    if "weights_chain" not in header:
        return extend_chain(_optional_text("weights_name", header), header["weights_sha256"], None)
    value = header["weights_chain"]
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise CheckpointError(f"weights_chain must be a list of objects; found a {type(value).__name__}")
    return tuple(
        dict(check_fields("weights_chain", one, ("name", "sha256"), others=True, error=CheckpointError))
        for one in value
    )


def _parse_summary(value: object) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"training must be null or an object; found a {type(value).__name__}")
    return value


def _shape_and_type(tensor: Tensor) -> tuple[torch.Size, torch.dtype | None]:
    """Return what must agree between a network and a file; floating-point types may differ."""
    return tensor.shape, None if tensor.dtype in _DTYPES else tensor.dtype
