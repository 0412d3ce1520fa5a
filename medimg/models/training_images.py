"""Which images a model has seen in training, so that scores on the same ones are noticed."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import numpy as np
import torch

from medimg.data.identifiers import hash_series_ids, keyed_hash
from medimg.errors import CheckpointError, LeakageError

if TYPE_CHECKING:
    from torch import Tensor

    from medimg.models.classifier import TransferClassifier

__all__ = [
    "Role",
    "Shared",
    "TrainingImages",
    "check_not_trained_on",
    "count_words",
    "record_training_images",
]

#: What images were used for: to learn from, to choose by, or to adapt to without their labels.
Role: TypeAlias = Literal["train", "val", "target"]

_ROLES: Final[tuple[Role, ...]] = get_args(Role)
_BYTES: Final = 8
#: Patients are hashed with what no file holds: they are compared only as long as this process lives.
_hidden: Final = keyed_hash(size=_BYTES)

_Digests: TypeAlias = frozenset[bytes]
_Patients: TypeAlias = frozenset[str]


@dataclass(frozen=True, slots=True)
class Shared:
    """
    What a data set has in common with what a model has seen.

    Attributes
    ----------
    series : mapping of {"train", "val", "target"} to int
        Series of the data set that were used so.
    patients : mapping of {"train", "val", "target"} to int
        Patients of the data set of whom any image was; known only of models trained in this process.
    """

    series: Mapping[Role, int]
    patients: Mapping[Role, int]

    def any(self, role: Role) -> bool:
        """Whether anything was used so."""
        return bool(self.series[role] or self.patients[role])


@dataclass(frozen=True, slots=True)
class TrainingImages:
    """
    The series that a model was trained with, as hashes with a salt of this model.

    Series are named by four of their SOP Instance UIDs, others by samples of the bytes of their files: who
    has an image can tell whether it is among them, and from the hashes nobody can tell which images they are.

    Attributes
    ----------
    salt : bytes
        16 random ones.
    series : mapping of {"train", "val", "target"} to frozenset of bytes
        8 bytes for each name.
    patients : mapping of {"train", "val", "target"} to frozenset of str
        Of this process, and in no file.
    unknown : int
        Training series that can't be named, as they lie on no disk.

    Examples
    --------
    >>> TrainingImages()
    SeenImages(0 train, 0 val, 0 target)
    """

    salt: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    series: Mapping[Role, _Digests] = field(default_factory=lambda: dict.fromkeys(_ROLES, frozenset()))
    patients: Mapping[Role, _Patients] = field(default_factory=lambda: dict.fromkeys(_ROLES, frozenset()))
    unknown: int = 0

    def __repr__(self) -> str:
        return f"SeenImages({', '.join(f'{len(self.series[role])} {role}' for role in _ROLES)})"

    def with_data(self, data: Any, role: Role) -> TrainingImages:
        """Add the images of a data set."""
        several = hash_series_ids(_distinct(data))
        known = frozenset(self._digest(name) for names in several for name in names)
        return replace(
            self,
            series={**self.series, role: self.series[role] | known},
            patients={**self.patients, role: self.patients[role].union(*_patients(data))},
            unknown=self.unknown + (several.count(()) if role == "train" else 0),
        )

    def shared(self, data: Any) -> Shared:
        """Compare a data set with what was seen."""
        series = [{self._digest(name) for name in names} for names in hash_series_ids(_distinct(data))]
        patients = _patients(data)
        return Shared(
            {role: sum(not self.series[role].isdisjoint(one) for one in series) for role in _ROLES},
            {role: sum(not self.patients[role].isdisjoint(one) for one in patients) for role in _ROLES},
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint stores beside :meth:`to_dict`: (n, 8) uint8 each, without patients."""
        return {role: _as_tensor(self.series[role]) for role in _ROLES}

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"salt": self.salt.hex(), "unknown": self.unknown}

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TrainingImages:
        """
        Take them from a file.

        Raises
        ------
        CheckpointError
            If a part is missing, or of another form.
        """
        salt, unknown = values.get("salt"), values.get("unknown")
        sound = (
            values.keys() == {"salt", "unknown"} and isinstance(salt, str) and len(salt) == 32
            and type(unknown) is int and unknown >= 0 and tensors.keys() == set(_ROLES)
            and all(t.dtype == torch.uint8 and t.ndim == 2 and t.shape[1] == _BYTES for t in tensors.values())
        )  # fmt: skip
        if not sound:
            raise CheckpointError("the hashes of the training images are not what medimg writes")
        series = {role: _from_tensor(tensors[role]) for role in _ROLES}
        return cls(bytes.fromhex(str(salt)), series, unknown=int(unknown or 0))

    def _digest(self, name: str) -> bytes:
        return hashlib.blake2b(name.encode(), key=self.salt, digest_size=_BYTES).digest()


def record_training_images(model: TransferClassifier, **data: Any) -> None:
    """
    Add what a model is trained with to what it has seen before.

    Parameters
    ----------
    model : TransferClassifier
        Its ``images_seen`` is set.
    **data : ImageDataset or None
        By role: ``train``, ``val`` and ``target``; sequences of them, too.
    """
    seen = model.images_seen or TrainingImages()
    for role in _ROLES:
        given = data.get(role)
        several = given if isinstance(given, list | tuple) else [given]
        for one in several:
            if one is not None:
                seen = seen.with_data(one, role)
    model.images_seen = seen


def check_not_trained_on(model: TransferClassifier, val: Any) -> None:
    """
    Refuse validation data that a model was trained on.

    Raises
    ------
    LeakageError
        It counts what is shared.
    """
    if model.images_seen is None:
        return
    shared = model.images_seen.shared(val)
    if shared.any("train"):
        raise LeakageError(
            f"the model was trained on {count_words(shared, 'train')} of the validation data, and is surer "
            "of these than of others: fit on images that it has not learned from, such as a part of "
            "medimg.split(dataset)"
        )


def count_words(shared: Shared, role: Role) -> str:
    """
    Put into words how much is shared.

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


def _distinct(data: Any) -> Sequence[Any]:
    return list({id(one): one for one in getattr(data, "series", None) or ()}.values())


def _patients(data: Any) -> list[_Patients]:
    """Return the digests of each patient: of the name in the table, and of those in the files."""
    names: Sequence[str] = getattr(data, "patients", ())
    stated: Sequence[str] = getattr(data, "file_patients", ()) or ("",) * len(names)
    called: dict[str, set[str]] = {}
    for name, file_name in zip(names, stated, strict=True):
        if name:
            called.setdefault(name, {f"table {name}"}).update({f"file {file_name}"} if file_name else ())
    return [frozenset(map(_hidden, several)) for several in called.values()]


def _as_tensor(digests: _Digests) -> Tensor:
    joined = np.frombuffer(b"".join(sorted(digests)), dtype=np.uint8)
    return torch.from_numpy(joined.reshape(-1, _BYTES).copy())


def _from_tensor(rows: Tensor) -> _Digests:
    return frozenset(row.tobytes() for row in rows.numpy())
