"""Identifiers: patients of a table against the files' Patient ID, and hashes that identify series."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, get_args

from medimg._validation import check_choice
from medimg.core.content_hash import KeyedHash, content_hash, keyed_hash
from medimg.data.cache.keys import hash_files
from medimg.data.patients import FILE_PLACEHOLDER, is_placeholder, patient_key
from medimg.errors import DatasetError, LeakageError
from medimg.io.dicom.series.volume_reader import StackReader

if TYPE_CHECKING:
    from medimg.data._labels import LabeledSeries
    from medimg.io.dicom.header.instance import Frame
    from medimg.io.series import Series
    from medimg.preprocessing.preprocess import Preprocess

__all__ = [
    "FilePatients",
    "ItemId",
    "add_file_patients",
    "compute_item_ids",
    "hash_series_ids",
    "identifier_digest",
]

#: Use of the files' own Patient ID in a dataset whose patients are in a table.
FilePatients: TypeAlias = Literal["check", "ignore"]

_SHOWN: Final = 3
_FEW: Final = 2


def add_file_patients(
    labeled: Sequence[LabeledSeries], file_patients: FilePatients, unit: str
) -> list[LabeledSeries]:
    """
    Add the files' Patient ID (0010,0020) to series whose patients come from a table or a rule.

    Patients that differ only in case get one spelling. The Patient ID is left out if it is to be ignored, if
    it is a placeholder ("ANON"), or if all files have the same, as some anonymizers write, and the table has
    more patients. LeakageError if the two contradict each other.
    """
    check_choice("file_patients", file_patients, get_args(FilePatients), error=DatasetError)
    spelled: dict[str, str] = {}
    labeled = [
        replace(item, patient=spelled.setdefault(patient_key(item.patient), item.patient)) for item in labeled
    ]
    found = [replace(item, file_patient=_read_patient_id(item)) for item in labeled]
    if file_patients == "ignore" or _is_same_for_all(found):
        return [replace(item, file_patient="") for item in labeled]
    _check_agreement(found, unit)
    return found


def _read_patient_id(item: LabeledSeries) -> str:
    stated = item.series.patient_id
    return "" if is_placeholder(stated, FILE_PLACEHOLDER) else stated


def _is_same_for_all(labeled: Sequence[LabeledSeries]) -> bool:
    """Whether all files with a Patient ID have the same, while the table distinguishes patients."""
    stating = [item for item in labeled if item.file_patient]
    if len({item.file_patient for item in stating}) != 1:
        return False
    known = len({item.patient for item in stating})
    # if other images have no Patient ID, two files of one patient under two names are too few
    return known > (1 if len(stating) == len(labeled) else _FEW)


def _check_agreement(labeled: Sequence[LabeledSeries], unit: str) -> None:
    of_file: dict[str, dict[str, int]] = defaultdict(dict)
    of_table: dict[str, dict[str, int]] = defaultdict(dict)
    for number, item in enumerate(labeled):
        if item.patient and item.file_patient:
            of_file[patient_key(item.file_patient)].setdefault(item.patient, number)
            of_table[item.patient].setdefault(patient_key(item.file_patient), number)
    shared = {name: others for name, others in of_file.items() if len(others) > 1}
    several = {name: others for name, others in of_table.items() if len(others) > 1}
    if not shared and not several:
        return
    hash_text = keyed_hash()
    shown = [
        *_list_conflicts(shared, hash_text, f"Patient ID {{}} is patients {{}} of the table ({unit}s {{}})"),
        *_list_conflicts(
            several, hash_text, f"patient {{}} of the table has Patient IDs {{}} ({unit}s {{}})"
        ),
    ]
    raise LeakageError(
        f"the table and the files define different patients: {len(shared)} Patient ID(s) (0010,0020) belong "
        f"to several patients of the table, {len(several)} patient(s) of the table have several Patient IDs; "
        "the first, by hash:\n"
        + "\n".join(f"  {line}" for line in shown)
        + "\ncorrect the table, or omit patient= to use "
        'the files; pass file_patients="ignore" only if the table is known to be right'
    )


def _list_conflicts(groups: dict[str, dict[str, int]], hash_text: KeyedHash, text: str) -> list[str]:
    return [
        text.format(
            hash_text(name),
            " and ".join(hash_text(other) for other in list(others)[:_SHOWN]),
            " and ".join(str(number) for number in list(others.values())[:_SHOWN]),
        )
        for name, others in list(groups.items())[:_SHOWN]
    ]


_DIGITS: Final = 32
_SKETCH: Final = 4
_THREADS: Final = 8


class ItemId(NamedTuple):
    """Identity of a series, as hashes of 32 hexadecimal digits."""

    id: str  # of SOP Instance UIDs and frame numbers; of file contents if there are no UIDs
    content: str  # of the bytes of its files; "" if they were not read, or are not on disk


def compute_item_ids(several: Sequence[Series], *, contents: bool) -> list[ItemId]:
    """Return the identity of each series, by several threads; DatasetError if one can't be identified."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda series: _identify_series(series, contents=contents), several))


def identifier_digest(data: Any, recipe: Preprocess | None = None) -> str:
    """
    Return a hash of labels, identifiers and recipe of a dataset, 32 hexadecimal digits; no file is opened.

    It is in reports, and in resume files of schema 1. `recipe` is by default that of the dataset.
    """
    digest = hashlib.sha256(getattr(recipe or data.preprocess, "fingerprint", "").encode())
    digest.update(data.labels.tobytes())
    for name in ("series_uids", "patients"):
        digest.update("\0".join(getattr(data, name, ())).encode(errors="surrogatepass"))
    return digest.hexdigest()[:_DIGITS]


def hash_series_ids(several: Sequence[Series]) -> list[tuple[str, ...]]:
    """
    Return hashes of the SOP Instance UIDs of each series, the four lowest.

    Any other choice of the same images, such as each as a series of its own, or all but one, shares some of
    them. Without UIDs it is one hash of samples of the files' bytes; none if they are not on disk.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_sketch_ids, several))


def _sketch_ids(series: Series) -> tuple[str, ...]:
    instances = {frame.instance.sop_instance_uid for frame in _find_identified_frames(series)}
    if instances:
        return tuple(sorted(_hash_lines([uid]) for uid in instances)[:_SKETCH])
    found = hash_files(series, "blocks")
    return () if found is None else (_hash_lines(sorted(set(found))),)


def _identify_series(series: Series, *, contents: bool) -> ItemId:
    frames = _list_frames(series)
    content = ""
    if contents or not frames:
        found = hash_files(series, "bytes")
        # copies of a file do not change what a series is
        content = "" if found is None else _hash_lines(sorted(set(found)))
    if not frames and not content:
        raise DatasetError(
            f"{series.path} has no SOP Instance UIDs and can't be read from disk, so it can't be identified: "
            "save it to disk"
        )
    return ItemId(_hash_lines(frames) if frames else content, content)


def _list_frames(series: Series) -> list[str]:
    """Return a text that identifies each frame of a series; none if a frame has no UID."""
    found = _find_identified_frames(series)
    return sorted(str((f.instance.sop_instance_uid, f.facts.number, f.facts.corner)) for f in found)


def _find_identified_frames(series: Series) -> list[Frame]:
    """Return the frames of a series; none if one has no SOP Instance UID."""
    if not isinstance(series.reader, StackReader):
        return []
    found = [frame for channel in series.reader.plan.channels for frame in channel]
    return found if all(frame.instance.sop_instance_uid for frame in found) else []


def _hash_lines(lines: list[str]) -> str:
    return content_hash("\n".join(lines))[:_DIGITS]
