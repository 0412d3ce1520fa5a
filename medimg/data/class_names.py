"""Names of classes: their spelling, order and comparison."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from medimg.data.patients import normalize_number
from medimg.errors import DatasetError, MedimgWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "are_same_classes",
    "find_class",
    "list_names",
    "number_classes",
    "sort_classes",
    "warn_of_similar_classes",
]

_WHOLE: Final = re.compile(r"[+-]?\d+")
_NUMBER: Final = re.compile(r"[+-]?\d+(\.\d+)?")
#: What programs write for a value that is missing, or failed; "None" is also the name of a finding.
_ABSENT: Final = re.compile(
    r"nan|<na>|#?n[./]a\.?|nat|null|missing|[?.]+|[-–—]+|#(null|value|ref|num|name|div/0)[!?]",
    re.IGNORECASE,
)
_SPLITS: Final = re.compile(
    r"(train(ing)?|val(id(ation)?)?|dev(elopment)?|test(ing)?|tuning|holdout|fold|split|part)"
    r"[\W_]*(set|data)?[\W_]*\d*",
    re.IGNORECASE,
)


def sort_classes(names: Iterable[str]) -> list[str]:
    """
    Sort class names in natural order: numbers by value, also within names.

    >>> sort_classes(["10", "9", "-1"]), sort_classes(["grade 10", "grade 2", "benign"])
    (['-1', '9', '10'], ['benign', 'grade 2', 'grade 10'])
    """
    several = set(names)
    if all(map(_NUMBER.fullmatch, several)):
        return sorted(several, key=lambda name: (float(name), name))
    return sorted(several, key=lambda name: (_split_digits(name), name))


def _split_digits(name: str) -> list[tuple[int, int, str]]:
    """Return the runs of digits and of other characters of a name, such that numbers come first."""
    runs = re.findall(r"\d+|\D+", name)
    return [(0, int(run), "") if run.isdecimal() else (1, 0, run) for run in runs]


def find_class(name: str) -> str:
    """
    Return what names of one class have in common: whole numbers are compared as numbers.

    >>> find_class("01"), find_class("1.0"), find_class(" a"), find_class("A")
    ('1', '1', 'a', 'A')
    """
    text = normalize_number(name)
    return str(int(text)) if _WHOLE.fullmatch(text) else text


def are_same_classes(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists name the same classes in the same order."""
    return list(map(find_class, one)) == list(map(find_class, other))


def number_classes(classes: Sequence[str]) -> Mapping[str, int]:
    """
    Return the index of each class by its name, and by other spellings of it that are not names.

    >>> number_classes(["01", "2.0"])
    {'1': 0, '2': 1, '01': 0, '2.0': 1}
    """
    found = {find_class(name): n for n, name in enumerate(classes)}
    return found | {name: n for n, name in enumerate(classes)}


def warn_of_similar_classes(classes: Sequence[str]) -> None:
    """Warn if names differ only by case, blanks or leading zeros, or mean splits or missing values."""
    alike: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(classes):
        alike[_find_letters(find_class(name))].append(number)
    several = [" and ".join(map(str, numbers)) for numbers in alike.values() if len(numbers) > 1]
    if several:
        warnings.warn(
            f"classes {', '.join(several)} of dataset.classes have names that differ only by case, blanks or "
            "leading zeros: if they are one class, correct the labels",
            MedimgWarning,
            stacklevel=4,
        )
    absent = [name for name in classes if _ABSENT.fullmatch(name.strip())]
    if absent:
        warnings.warn(
            f"the classes {' and '.join(map(repr, absent))} are named like missing values: if they are, "
            "correct the labels, or remove these rows",
            MedimgWarning,
            stacklevel=4,
        )
    splits = [name for name in classes if _SPLITS.fullmatch(name)]
    if splits and (len(splits) > 1 or len(splits) == len(classes)):
        warnings.warn(
            f"the classes {' and '.join(map(repr, splits))} are named like splits of a dataset: if they are, "
            'make a dataset of each, such as ImageDataset.from_folder(root / "train")',
            MedimgWarning,
            stacklevel=4,
        )


def _find_letters(name: str) -> str:
    """Return what similar names have in common; the sign of a number is not a hyphen."""
    return name if _NUMBER.fullmatch(name) else re.sub(r"[\s_-]", "", name).casefold()


def list_names(classes: object) -> tuple[str, ...]:
    """Return class names of a list, tuple or array; DatasetError for a set, which has no order, or text."""
    if isinstance(classes, str | bytes | set | frozenset | Mapping) or not isinstance(classes, Iterable):
        raise DatasetError(
            f"classes must be a list of names, in the order of the outputs; found a {type(classes).__name__}"
        )
    return tuple(name if isinstance(name, str) else normalize_number(name) for name in classes)
