"""Checks of settings that several methods share."""

from __future__ import annotations

import math
import operator
from numbers import Integral, Real
from typing import Final

import numpy as np

from medimg.errors import DatasetError, TrainingError

__all__ = ["check_choice", "check_count", "check_positive", "checked_seed", "real_number", "whole_number"]

_MOST_SEED: Final = 2**32 - 1  # scikit-learn's, which draws the folds


def checked_seed(seed: object) -> int:
    """
    Return a seed as an int, NumPy's integers too.

    Raises
    ------
    DatasetError
        If it is none: without one a split could not be had again.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= _MOST_SEED:
        raise DatasetError(f"seed is a whole number from 0 to 2³² - 1; found {seed!r}")
    return int(seed)


def whole_number(name: str, value: object) -> int:
    """
    Return a setting as an int, NumPy's integers too.

    Raises
    ------
    TrainingError
        If it is no whole number.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]  # anything is given, and most of it refused
    except TypeError:
        raise TrainingError(f"{name} is a whole number; found {value!r}") from None


def real_number(name: str, value: object) -> float:
    """
    Return a setting as a float, NumPy's too.

    Raises
    ------
    TrainingError
        If it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TrainingError(f"{name} is a number; found {value!r}")
    return float(value)


def check_positive(method: object, **values: object) -> None:
    """
    Refuse what is no positive number.

    Raises
    ------
    TrainingError
        It names the setting.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
            raise TrainingError(f"{name} of {type(method).__name__} is a positive number; found {value!r}")


def check_count(method: object, **values: object) -> None:
    """
    Refuse what is no whole number from 1.

    Raises
    ------
    TrainingError
        It names the setting.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
            raise TrainingError(
                f"{name} of {type(method).__name__} is a whole number from 1; found {value!r}"
            )


def check_choice(method: object, name: str, value: object, choices: tuple[str, ...]) -> None:
    """
    Refuse what is none of the choices.

    Raises
    ------
    TrainingError
        It names the setting.
    """
    if value not in choices:
        raise TrainingError(
            f"{name} of {type(method).__name__} is one of {', '.join(map(repr, choices))}; found {value!r}"
        )
