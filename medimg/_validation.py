"""Argument checks: each returns the checked value or raises an error that says what was expected."""

from __future__ import annotations

import difflib
import math
import operator
import os
import re
import reprlib
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from medimg.errors import DatasetError, MedimgError, TrainingError, also

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = [
    "check_batch_size",
    "check_choice",
    "check_fields",
    "check_item_unit",
    "check_number",
    "check_path",
    "check_processes",
    "check_seed",
    "check_text",
    "check_texts",
    "check_whole_number",
    "did_you_mean",
    "printable",
    "printable_error",
    "stored_unit",
]

_MOST_SEED: Final = 2**32 - 1  # scikit-learn's, which draws the folds
_LARGEST_BATCH: Final = 2**31 - 1  # torch counts in 64 bits
#: URLs, chained ones, and what Path makes of them; a drive of Windows has one letter.
_URL: Final = re.compile(r"([a-z][a-z0-9+.:-]+):[/\\]", re.IGNORECASE)
_Choice = TypeVar("_Choice")


def check_whole_number(
    name: str,
    value: object,
    *,
    least: int | None = None,
    most: int | None = None,
    hint: str = "",
    error: type[MedimgError] = TrainingError,
) -> int:
    """Return a whole number (NumPy's too) from `least` to `most` as an int."""
    number = None
    if not isinstance(value, bool):
        try:
            number = operator.index(value)  # type: ignore[arg-type]  # anything is given, and most of it refused
        except TypeError:
            number = None
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        bounds = "" if least is None else f", {least} or more" if most is None else f" from {least} to {most}"
        found = error if isinstance(value, Real) else also(error, TypeError)
        raise found(f"{name} must be a whole number{bounds}{hint}; found {printable(repr(value))}")
    return number


def check_path(name: str, value: object, *, error: type[MedimgError] = TrainingError) -> Path:
    """Return a path-like value as a Path; a URL would make a folder of its scheme."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise also(error, TypeError)(f"{name} must be a path; found a {type(value).__name__}")
    url = _URL.match(os.fspath(value))
    if url is not None:
        raise error(f"{name} must be a path on this machine; found one that begins like a URL, {url[1]}:")
    return Path(value)


def check_number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    hint: str = "",
    error: type[MedimgError] = TrainingError,
) -> float:
    """Return a finite number (NumPy's too) within bounds as a float; `above` and `below` are exclusive."""
    number = _as_float(value)
    inside = (
        math.isfinite(number)
        and (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
        and (below is None or number < below)
    )
    if not inside:
        parts = [
            f"{number:g} or more" if word == "least" else f"{word} {number:g}"
            for word, number in {"least": least, "above": above, "at most": most, "below": below}.items()
            if number is not None
        ]
        bounds = f", {' and '.join(parts)}" if parts else ""
        found = error if isinstance(value, Real) else also(error, TypeError)
        raise found(f"{name} must be a number{bounds}{hint}; found {printable(repr(value))}")
    return number


def check_choice(
    name: str, value: object, choices: Collection[_Choice], *, error: type[MedimgError] = TrainingError
) -> _Choice:
    """Return one of the choices."""
    for choice in choices:
        if value is choice or (type(value) is type(choice) and value == choice):
            return choice
    listed = [f'"{choice}"' if isinstance(choice, str) else repr(choice) for choice in choices]
    hint = did_you_mean(value, [choice for choice in choices if isinstance(choice, str)])
    raise error(
        f"{name} must be {', '.join(listed[:-1])} or {listed[-1]}; found {printable(repr(value))}{hint}"
    )


def check_text(name: str, value: object, *, error: type[MedimgError] = TrainingError) -> str:
    """Return a text."""
    if not isinstance(value, str):
        raise also(error, TypeError)(f"{name} must be text; found {reprlib.repr(value)}")
    return value


def check_texts(name: str, value: object, *, error: type[MedimgError] = TrainingError) -> tuple[str, ...]:
    """Return the texts of a list or tuple."""
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise also(error, TypeError)(f"{name} must be a list of texts; found {reprlib.repr(value)}")
    return tuple(value)


def check_fields(
    name: str,
    value: object,
    fields: Collection[str],
    *,
    others: bool = False,
    error: type[MedimgError] = TrainingError,
) -> Mapping[str, Any]:
    """Return a mapping that has all of these fields, and no others unless these are allowed."""
    if not isinstance(value, Mapping):
        raise also(error, TypeError)(f"{name} must be an object with fields; found {reprlib.repr(value)}")
    missing = [field for field in fields if field not in value]
    unknown = [] if others else [str(field) for field in value if field not in fields]
    if missing or unknown:
        parts = [f"missing {', '.join(missing)}"] if missing else []
        parts += [f"unknown {reprlib.repr(', '.join(unknown))}"] if unknown else []
        raise error(f"{name} must have the fields {', '.join(fields)}; found {' and '.join(parts)}")
    return value


def check_item_unit(
    value: object, *, name: str = "unit", error: type[MedimgError] = DatasetError
) -> Literal["image", "series"]:
    """Return the unit of items; "slice" is another word for an image."""
    if isinstance(value, str) and value == "slice":
        return "image"
    return "series" if check_choice(name, value, ("image", "series"), error=error) == "series" else "image"


def stored_unit(unit: str) -> str:
    """Return the word for a unit of items in files and digests, which stays what it was first."""
    return "series" if unit == "series" else "slice"


def did_you_mean(value: object, known: Iterable[str], *, most: int = 1) -> str:
    """
    Return a hint, for the end of a message, at the names most like one that is not known; "" if none is.

    >>> did_you_mean("Resnet 50", ["resnet18", "resnet50"]), did_you_mean("x", ["mean", "max"])
    ("; did you mean 'resnet50'?", '')
    """
    if not isinstance(value, str):
        return ""
    # upper case and blanks are the commonest differences
    names = {name.casefold(): name for name in reversed(list(known))}
    near = difflib.get_close_matches(value.strip().casefold(), names, n=most, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(names[name]) for name in near)}?" if near else ""


def printable(text: object, most: int = 120) -> str:
    r"""
    Return a text of a file for a message: its control characters escaped, and shortened.

    Examples
    --------
    >>> printable("layer\x1b[31m.weight")
    'layer\\x1b[31m.weight'
    """
    whole = str(text)
    shown = whole if len(whole) <= most else f"{whole[: most // 2]}...{whole[-(most // 2) :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def printable_error(error: Exception) -> str:
    """Return the type of a library's error and its text in one line."""
    text = printable(" ".join(str(error).split()), 400)
    return f"{type(error).__name__}: {text}"


def check_seed(seed: object, *, error: type[MedimgError] = DatasetError) -> int:
    """Return a seed from 0 to 2³² - 1 as an int."""
    return check_whole_number("seed", seed, least=0, most=_MOST_SEED, error=error)


def check_batch_size(batch_size: object, *, error: type[MedimgError] = TrainingError) -> int:
    """Return a batch size, at least 1, as an int."""
    return min(check_whole_number("batch_size", batch_size, least=1, error=error), _LARGEST_BATCH)


def check_processes(workers: object, *, error: type[MedimgError] = TrainingError) -> int:
    """Return the number of processes that read a dataset, 0 for None: then this process reads it."""
    if workers is None:
        return 0
    return check_whole_number("workers", workers, least=0, hint=", or None for this process", error=error)


def _as_float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf
