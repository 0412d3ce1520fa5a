"""Patients as a table names them, and as the files do: one grouping, or an error."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, get_args

from medimg.data.cache.keys import hash_files
from medimg.errors import DatasetError, LeakageError
from medimg.io.dicom.series.volume_reader import StackReader

if TYPE_CHECKING:
    from medimg.data._labels import LabeledSeries
    from medimg.io.dicom.header.instance import Frame
    from medimg.io.series import Series

__all__ = ["FilePatients", "ItemId", "KeyedHash", "ids_of", "item_ids", "keyed_hash", "with_file_patients"]

#: What the files' own Patient ID is to a data set whose table names patients.
FilePatients: TypeAlias = Literal["check", "ignore"]
#: Replaces an identifier by a hash that nobody can look up.
KeyedHash: TypeAlias = Callable[[str], str]

_SHOWN: Final = 3
_FEW: Final = 2
#: What anonymizers write for everybody, without punctuation.
_NOBODY: Final = re.compile(
    r"(anon(ym(ous|i[sz]ed)?)?|de?identified|unknown|none|null|na|nn|patient|test|removed|x+|0+)?",
    re.IGNORECASE,
)


def keyed_hash(key: bytes | None = None, *, size: int = 6) -> KeyedHash:
    """
    Return what replaces identifiers by short hashes.

    Parameters
    ----------
    key : bytes, optional
        The salt; a random one that is forgotten by default.
    size : int
        Bytes of a hash; it has two hexadecimal digits for each.

    Examples
    --------
    >>> hidden = keyed_hash()
    >>> hidden("a") == hidden("a") != hidden("b"), hidden("a") == keyed_hash()("a")
    (True, False)
    """
    salt = secrets.token_bytes(32) if key is None else key
    # names of files that are no UTF-8 have surrogates in them
    return lambda name: hashlib.blake2b(
        name.encode(errors="surrogatepass"), key=salt, digest_size=size
    ).hexdigest()


def with_file_patients(
    labeled: Sequence[LabeledSeries], file_patients: FilePatients, unit: str
) -> list[LabeledSeries]:
    """
    Add the files' own Patient ID (0010,0020) to series whose patients a table or a rule names.

    Parameters
    ----------
    labeled : sequence of LabeledSeries
        Series with the patients of the table.
    file_patients : {"check", "ignore"}
        Whether the two have to agree.
    unit : str
        What one of them is called in a message: "row" or "series".

    Returns
    -------
    list of LabeledSeries
        Without the files' Patient ID where it is to be ignored, where it is a word for nobody in particular,
        or where all files have the same, as from some anonymizers, and the table knows more patients.

    Raises
    ------
    LeakageError
        If they contradict each other: two patients of the table share a Patient ID, or one has two.
    DatasetError
        If `file_patients` is unknown.
    """
    if file_patients not in get_args(FilePatients):
        raise DatasetError(f'file_patients is "check" or "ignore"; found {file_patients!r}')
    found = [replace(item, file_patient=_stated(item)) for item in labeled]
    if file_patients == "ignore" or _is_one_for_all(found):
        return [replace(item, file_patient="") for item in labeled]
    _check(found, unit)
    return found


def _stated(item: LabeledSeries) -> str:
    stated = item.series.patient_id.strip()
    return "" if _NOBODY.fullmatch(re.sub(r"[\W_]", "", stated)) else stated


def _is_one_for_all(labeled: Sequence[LabeledSeries]) -> bool:
    """Whether all files that have a Patient ID have the same, and the table knows better."""
    stating = [item for item in labeled if item.file_patient]
    if len({item.file_patient for item in stating}) != 1:
        return False
    known = len({item.patient for item in stating})
    # beside pictures, two files of one patient under two names are no rule
    return known > (1 if len(stating) == len(labeled) else _FEW)


def _check(labeled: Sequence[LabeledSeries], unit: str) -> None:
    of_file: dict[str, dict[str, int]] = defaultdict(dict)
    of_table: dict[str, dict[str, int]] = defaultdict(dict)
    for number, item in enumerate(labeled):
        if item.patient and item.file_patient:
            of_file[item.file_patient].setdefault(item.patient, number)
            of_table[item.patient].setdefault(item.file_patient, number)
    shared = {name: others for name, others in of_file.items() if len(others) > 1}
    several = {name: others for name, others in of_table.items() if len(others) > 1}
    if not shared and not several:
        return
    hidden = keyed_hash()
    shown = [
        *_lines(shared, hidden, f"Patient ID {{}} is patients {{}} of the table ({unit}s {{}})"),
        *_lines(several, hidden, f"patient {{}} of the table has Patient IDs {{}} ({unit}s {{}})"),
    ]
    raise LeakageError(
        f"the table and the files don't agree on who is who: {len(shared)} Patient ID(s) (0010,0020) belong "
        f"to several patients of the table, {len(several)} patient(s) of the table have several Patient IDs. "
        "The first, by hashes:\n"
        + "\n".join(f"  {line}" for line in shown)
        + "\nMend the table, or leave its "
        'patients out to go by the files; pass file_patients="ignore" only if you know the table to be right'
    )


def _lines(groups: dict[str, dict[str, int]], hidden: KeyedHash, text: str) -> list[str]:
    return [
        text.format(
            hidden(name),
            " and ".join(hidden(other) for other in list(others)[:_SHOWN]),
            " and ".join(str(number) for number in list(others.values())[:_SHOWN]),
        )
        for name, others in list(groups.items())[:_SHOWN]
    ]


_DIGITS: Final = 32
_SKETCH: Final = 4
_THREADS: Final = 8


class ItemId(NamedTuple):
    """
    A series by hashes, of 32 hexadecimal digits each.

    Attributes
    ----------
    id : str
        Of the SOP Instance UIDs and numbers of its frames; of the bytes of its files where there are no UIDs.
    content : str
        Of the bytes of its files; "" where they were not read, or are on no disk.
    """

    id: str
    content: str


def item_ids(several: Sequence[Series], *, contents: bool) -> list[ItemId]:
    """
    Return the names of series, by as many threads as disks like.

    Parameters
    ----------
    several : sequence of Series
        Which.
    contents : bool
        Whether the files of those with UIDs are read, too.

    Raises
    ------
    DatasetError
        If a series has no UIDs and its files can't be read.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda series: _name(series, contents=contents), several))


def ids_of(several: Sequence[Series]) -> list[tuple[str, ...]]:
    """
    Return what tells series from each other, without reading much.

    Parameters
    ----------
    several : sequence of Series
        Which.

    Returns
    -------
    list of tuple of str
        Hashes of SOP Instance UIDs, the four lowest of a series: another choice of the same images, such as
        each as a series of its own, or all but one, shares some of them. Where there are no UIDs, one hash of
        samples of the bytes of the files; none where these are on no disk.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_ids, several))


def _ids(series: Series) -> tuple[str, ...]:
    instances = {frame.instance.sop_instance_uid for frame in _identified(series)}
    if instances:
        return tuple(sorted(_hash([uid]) for uid in instances)[:_SKETCH])
    found = hash_files(series, "blocks")
    return () if found is None else (_hash(sorted(found)),)


def _name(series: Series, *, contents: bool) -> ItemId:
    frames = _frames(series)
    content = ""
    if contents or not frames:
        found = hash_files(series, "bytes")
        content = "" if found is None else _hash(sorted(found))
    if not frames and not content:
        raise DatasetError(
            f"{series.path} has no SOP Instance UIDs, and can't be read from a disk, so that nothing tells "
            "it from others: put it there"
        )
    return ItemId(_hash(frames) if frames else content, content)


def _frames(series: Series) -> list[str]:
    """Return what tells each frame of a series; nothing where one has no UID."""
    found = _identified(series)
    return sorted(str((f.instance.sop_instance_uid, f.facts.number, f.facts.corner)) for f in found)


def _identified(series: Series) -> list[Frame]:
    """Return the frames of a series; none where one has no SOP Instance UID."""
    if not isinstance(series.reader, StackReader):
        return []
    found = [frame for channel in series.reader.plan.channels for frame in channel]
    return found if all(frame.instance.sop_instance_uid for frame in found) else []


def _hash(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:_DIGITS]
