"""Hashes of the images that a model was trained with, so that their use in evaluation is detected."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import numpy as np
import torch

from medimg._validation import check_choice, check_fields, check_whole_number
from medimg.core.content_hash import keyed_hash
from medimg.core.logger import get_logger
from medimg.data.identifiers import hash_series_ids
from medimg.data.patients import patient_key
from medimg.errors import CheckpointError, LeakageError
from medimg.preprocessing.renderer import Renderer, find_renderer

if TYPE_CHECKING:
    from torch import Tensor

    from medimg.models.classifier import TransferClassifier

__all__ = [
    "JointTrainingImages",
    "Role",
    "Shared",
    "TrainingImages",
    "check_not_trained_on",
    "count_words",
    "note_renderer",
    "record_training_images",
]

#: Use of images: training, model selection, or adaptation without labels.
Role: TypeAlias = Literal["train", "val", "target"]

_ROLES: Final[tuple[Role, ...]] = get_args(Role)
_RENDERERS: Final[dict[Renderer, str]] = {"compiled": "the compiled core", "torch": "torch"}
_BYTES: Final = 8
_SALT: Final = re.compile(r"[0-9a-f]{32}")
#: The key of patients is in no file: they are compared within this process only.
_hash_patient: Final = keyed_hash(size=_BYTES)

_Digests: TypeAlias = frozenset[bytes]
_Patients: TypeAlias = frozenset[str]


@dataclass(frozen=True, slots=True)
class Shared:
    """Numbers of series and patients of a dataset that a model was trained with, by role."""

    series: Mapping[Role, int]
    #: Known only for models trained in this process.
    patients: Mapping[Role, int]

    def any(self, role: Role) -> bool:
        """Whether anything was used in this role."""
        return bool(self.series[role] or self.patients[role])


@dataclass(frozen=True, slots=True)
class TrainingImages:
    """
    The series that a model was trained with, by role, as 8-byte hashes with a salt of this model.

    DICOM series are identified by four of their SOP Instance UIDs, others by samples of the bytes of their
    files: whoever has an image can check whether it was used; the images can't be recovered from the hashes.
    `patients` are hashes of this process, in no file; `unknown` counts training series that are not on disk.

    Examples
    --------
    >>> TrainingImages()
    TrainingImages(0 train, 0 val, 0 target)
    """

    salt: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    series: Mapping[Role, _Digests] = field(default_factory=lambda: dict.fromkeys(_ROLES, frozenset()))
    patients: Mapping[Role, _Patients] = field(default_factory=lambda: dict.fromkeys(_ROLES, frozenset()))
    unknown: int = 0
    #: What rendered the images of training; "" if that is unknown.
    renderer: Renderer | Literal[""] = ""

    def __repr__(self) -> str:
        return f"TrainingImages({', '.join(f'{len(self.series[role])} {role}' for role in _ROLES)})"

    def with_data(self, data: Any, role: Role) -> TrainingImages:
        """Add the images of a dataset."""
        several = hash_series_ids(_distinct_series(data))
        known = frozenset(self.digest(name) for names in several for name in names)
        return replace(
            self,
            series={**self.series, role: self.series[role] | known},
            patients={**self.patients, role: self.patients[role].union(*_hash_patients(data))},
            unknown=self.unknown + (several.count(()) if role == "train" else 0),
            renderer=find_renderer() if role == "train" else self.renderer,
        )

    def shared(self, data: Any) -> Shared:
        """Count the series and patients of a dataset that were used."""
        names, patients = hash_series_ids(_distinct_series(data)), _hash_patients(data)
        return Shared(
            {role: sum(self.series_used(names, role)) for role in _ROLES},
            {role: sum(self.patients_used(patients, role)) for role in _ROLES},
        )

    def series_used(self, several: Sequence[Iterable[str]], role: Role) -> list[bool]:
        """Return of each series, by the identifiers of its images, whether it was used in a role."""
        return [not self.series[role].isdisjoint(map(self.digest, names)) for names in several]

    def patients_used(self, several: Sequence[_Patients], role: Role) -> list[bool]:
        """Return of each patient, by its hashes, whether it was used in a role."""
        return [not self.patients[role].isdisjoint(one) for one in several]

    def digest(self, name: str) -> bytes:
        """Return the salted hash of the identifier of an image, 8 bytes."""
        return bytes.fromhex(keyed_hash(self.salt, size=_BYTES)(name))

    def tensors(self) -> dict[str, Tensor]:
        """Return the hashes of series by role, (n, 8) uint8, which a checkpoint stores as tensors."""
        return {role: _as_tensor(self.series[role]) for role in _ROLES}

    def to_dict(self) -> dict[str, Any]:
        """Return salt, count and renderer as JSON values, without patients."""
        return {"salt": self.salt.hex(), "unknown": self.unknown, "renderer": self.renderer}

    @classmethod
    def from_parts(cls, values: object, tensors: Mapping[str, Tensor]) -> TrainingImages:
        """Read :meth:`to_dict` and :meth:`tensors` of a file, and check each field by its name."""
        # older files do not name the renderer
        given = {"renderer": "", **values} if isinstance(values, Mapping) else values
        fields = check_fields("images_seen", given, ("salt", "unknown", "renderer"), error=CheckpointError)
        renderer = check_choice(
            "images_seen.renderer", fields["renderer"], (*get_args(Renderer), ""), error=CheckpointError
        )
        check_fields("images_seen", tensors, _ROLES, error=CheckpointError)
        salt = fields["salt"]
        if not isinstance(salt, str) or not _SALT.fullmatch(salt):
            raise CheckpointError("images_seen.salt must be 32 hexadecimal digits; found something else")
        unknown = check_whole_number("images_seen.unknown", fields["unknown"], least=0, error=CheckpointError)
        for role, tensor in tensors.items():
            if tensor.dtype != torch.uint8 or tensor.ndim != 2 or tensor.shape[1] != _BYTES:
                raise CheckpointError(
                    f"images_seen.{role} must be torch.uint8 of shape (n, {_BYTES}); found {tensor.dtype} of "
                    f"shape {tuple(tensor.shape)}"
                )
        series = {role: frozenset(row.tobytes() for row in tensors[role].numpy()) for role in _ROLES}
        return cls(bytes.fromhex(salt), series, unknown=unknown, renderer=renderer)


@dataclass(frozen=True, slots=True, repr=False)
class JointTrainingImages(TrainingImages):
    """The series of the members of an ensemble, each with hashes of its own, and those of its calibration."""

    members: tuple[TrainingImages, ...] = ()

    @classmethod
    def of(cls, members: Iterable[TrainingImages | None]) -> JointTrainingImages:
        """Join what the members know."""
        several = tuple(one for one in members if one is not None)
        renderers = {one.renderer for one in several}
        return cls(
            unknown=sum(one.unknown for one in several),
            renderer=renderers.pop() if len(renderers) == 1 else "",
            members=several,
        )

    def series_used(self, several: Sequence[Iterable[str]], role: Role) -> list[bool]:
        """Return of each series whether any member used it."""
        known = [list(names) for names in several]
        each = [TrainingImages.series_used(self, known, role)]
        each += [one.series_used(known, role) for one in self.members]
        return [any(used) for used in zip(*each, strict=True)]

    def patients_used(self, several: Sequence[_Patients], role: Role) -> list[bool]:
        """Return of each patient whether any member used it."""
        each = [TrainingImages.patients_used(self, several, role)]
        each += [one.patients_used(several, role) for one in self.members]
        return [any(used) for used in zip(*each, strict=True)]


def record_training_images(model: TransferClassifier, **data: Any) -> None:
    """Add datasets (one or several, or None) to ``model.images_seen``, by role."""
    seen = model.images_seen or TrainingImages()
    for role in _ROLES:
        given = data.get(role)
        several = given if isinstance(given, list | tuple) else [given]
        for one in several:
            if one is not None:
                seen = seen.with_data(one, role)
    model.images_seen = seen


def note_renderer(model: TransferClassifier) -> None:
    """Say, once in a process, that the images of training were rendered in another way than those to come."""
    trained = model.images_seen.renderer if model.images_seen is not None else ""
    if trained and trained != find_renderer():
        _say_renderer(trained, find_renderer())


@cache
def _say_renderer(trained: Renderer, here: Renderer) -> None:
    get_logger().info(
        "the images of training were rendered by %s, those of this process by %s: intensities differ by up "
        "to 1e-6, and probabilities accordingly",
        *(_RENDERERS[name] for name in (trained, here)),
    )


def check_not_trained_on(model: TransferClassifier, val: Any) -> None:
    """Refuse validation data that a model was trained on."""
    if model.images_seen is None:
        return
    shared = model.images_seen.shared(val)
    if shared.any("train"):
        raise LeakageError(
            f"the model was trained on {count_words(shared, 'train')} of the validation data, on which it "
            "is overconfident: fit on images that it was not trained on, such as a subset of "
            "medimg.split(dataset)"
        )


def count_words(shared: Shared, role: Role) -> str:
    """
    Describe in words how many series and patients are shared.

    Examples
    --------
    >>> none = {"train": 0, "val": 0, "target": 0}
    >>> count_words(Shared(none | {"train": 1}, none | {"train": 2}), "train")
    '1 series and images of 2 patients'
    """
    series, patients = shared.series[role], shared.patients[role]
    parts = [f"{series:,} series"] if series else []
    if patients:
        parts.append(f"images of {patients:,} patient{'s' if patients > 1 else ''}")
    return " and ".join(parts)


def _distinct_series(data: Any) -> Sequence[Any]:
    """Return the series of a dataset, each once."""
    return list({id(one): one for one in getattr(data, "series", None) or ()}.values())


def _hash_patients(data: Any) -> list[_Patients]:
    """Return the hashes of each patient: of the ID in the table, and of those in the files."""
    names: Sequence[str] = getattr(data, "patients", ())
    stated: Sequence[str] = getattr(data, "file_patients", ()) or ("",) * len(names)
    called: dict[str, set[str]] = {}
    for name, file_name in zip(names, stated, strict=True):
        key, file_key = patient_key(name), patient_key(file_name)
        if key:
            called.setdefault(key, {f"table {key}"}).update({f"file {file_key}"} if file_key else ())
    return [frozenset(map(_hash_patient, several)) for several in called.values()]


def _as_tensor(digests: _Digests) -> Tensor:
    """Return hashes as (n, 8) uint8, sorted."""
    joined = np.frombuffer(b"".join(sorted(digests)), dtype=np.uint8)
    return torch.from_numpy(joined.reshape(-1, _BYTES).copy())
