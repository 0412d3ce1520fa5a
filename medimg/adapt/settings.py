"""Checks of settings that several methods share."""

from __future__ import annotations

import math
from numbers import Integral, Real

from medimg.errors import TrainingError

__all__ = ["check_choice", "check_count", "check_positive"]


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
