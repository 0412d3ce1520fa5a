"""Patients as a table names them, and as the files do: one grouping, or an error."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from medimg.errors import DatasetError, LeakageError

if TYPE_CHECKING:
    from medimg.data.sources import LabeledSeries

__all__ = ["FilePatients", "Veil", "veil", "with_file_patients"]

#: What the files' own Patient ID is to a data set whose table names patients.
FilePatients: TypeAlias = Literal["check", "ignore"]
#: Replaces an identifier by a hash that nobody can look up.
Veil: TypeAlias = Callable[[str], str]

_SHOWN: Final = 3
_FEW: Final = 2
#: What anonymizers write for everybody, without punctuation.
_NOBODY: Final = re.compile(
    r"(anon(ym(ous|i[sz]ed)?)?|de?identified|unknown|none|null|na|nn|patient|test|removed|x+|0+)?",
    re.IGNORECASE,
)


def veil(key: bytes | None = None, *, size: int = 6) -> Veil:
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
    >>> hidden = veil()
    >>> hidden("a") == hidden("a") != hidden("b"), hidden("a") == veil()("a")
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
    hidden = veil()
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


def _lines(groups: dict[str, dict[str, int]], hidden: Veil, text: str) -> list[str]:
    return [
        text.format(
            hidden(name),
            " and ".join(hidden(other) for other in list(others)[:_SHOWN]),
            " and ".join(str(number) for number in list(others.values())[:_SHOWN]),
        )
        for name, others in list(groups.items())[:_SHOWN]
    ]
