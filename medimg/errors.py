"""
The exceptions and warnings of medimg.

Every error that bad input can cause is a :class:`MedimgError`; its message says what was found, what was
expected and what to do. Names, birth dates and identifiers of patients never appear in one.

::

    MedimgError
    ├── ReadError                 (also an OSError)
    │   ├── NotAnImageError
    │   ├── DecodeError
    │   └── TruncatedError        (also an EOFError)
    ├── SeriesError               (also a ValueError)
    │   ├── AmbiguousSeriesError
    │   ├── MissingSlicesError
    │   ├── DuplicateSlicesError
    │   ├── TiltedGantryError
    │   └── GeometryError
    ├── ConversionError           (also a ValueError)
    ├── PreprocessError           (also a ValueError)
    ├── DatasetError              (also a ValueError)
    │   └── LeakageError
    ├── TrainingError             (also a ValueError)
    ├── CheckpointError           (also a ValueError)
    ├── StoreError                (also an OSError)
    ├── ExecutorError             (also a RuntimeError)
    ├── WeightsUnavailableError   (also an OSError)
    └── MissingDependencyError    (also an ImportError)

    MedimgWarning                 (a UserWarning)

An error is also the built-in one that fits its cause: a missing file is a ``FileNotFoundError``, a file that
may not be read a ``PermissionError``, an unknown column, tag or name a ``KeyError``, a value of the wrong
type a ``TypeError``. ``except`` clauses for these work as for other libraries.
"""

import copyreg
from collections.abc import Mapping
from typing import Any, TypeVar, cast

__all__ = [
    "AmbiguousSeriesError",
    "CheckpointError",
    "ConversionError",
    "DatasetError",
    "DecodeError",
    "DuplicateSlicesError",
    "ExecutorError",
    "GeometryError",
    "LeakageError",
    "MedimgError",
    "MedimgWarning",
    "MissingDependencyError",
    "MissingSlicesError",
    "NotAnImageError",
    "PreprocessError",
    "ReadError",
    "SeriesError",
    "StoreError",
    "TiltedGantryError",
    "TrainingError",
    "TruncatedError",
    "WeightsUnavailableError",
]


class MedimgError(Exception):
    """Base of every error that medimg raises for bad input or a missing resource."""

    def __str__(self) -> str:
        # KeyError would quote the message
        return BaseException.__str__(self)


class ReadError(MedimgError, OSError):
    """A file or folder could not be read as an image."""


class NotAnImageError(ReadError):
    """The file or folder holds nothing that medimg knows as an image."""


class DecodeError(ReadError):
    """The pixel data is there but could not be decoded, or contradicts its header."""


class TruncatedError(ReadError, EOFError):
    """The file ends before its pixel data does."""


class SeriesError(MedimgError, ValueError):
    """The files are readable, but don't make up one series with a sound geometry."""


class AmbiguousSeriesError(SeriesError):
    """Several series were found where one was asked for; the message lists them."""


class MissingSlicesError(SeriesError):
    """The positions of the slices leave gaps."""


class DuplicateSlicesError(SeriesError):
    """Several images are at the same position."""


class TiltedGantryError(SeriesError):
    """The direction from slice to slice is not perpendicular to the slices."""


class GeometryError(SeriesError):
    """Positions, orientations or sizes contradict each other."""


class ConversionError(MedimgError, ValueError):
    """A volume has something that a file format or an image of another library can't hold."""


class PreprocessError(MedimgError, ValueError):
    """A preprocessing recipe is unsound, or does not fit the image it was given."""


class DatasetError(MedimgError, ValueError):
    """A table of labels and the images it names don't fit together."""


class LeakageError(DatasetError):
    """A split would put the same patient, study or image on two subsets."""


class TrainingError(MedimgError, ValueError):
    """Training was asked for with settings or data that can't give a result."""


class CheckpointError(MedimgError, ValueError):
    """A checkpoint is damaged, has been tampered with, or doesn't fit this version."""


class StoreError(MedimgError, OSError):
    """
    Nothing was written to a URL, or instances were not stored on a server: ``result`` lists these.

    It is a ConnectionError or TimeoutError, too, if the server failed: send them again later; a
    PermissionError if it does not accept the credentials; and neither if it refuses the instances.
    """

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result

    @property
    def causes(self) -> frozenset[str]:
        """Causes of the instances that were not stored; see :class:`medimg.FailedInstance`."""
        return frozenset() if self.result is None else frozenset(one.cause for one in self.result.failed)


class ExecutorError(MedimgError, RuntimeError):
    """An executor can't run tasks, or has lost one with the worker that ran it."""


class WeightsUnavailableError(MedimgError, OSError):
    """Pretrained weights are neither in the cache nor to be had from their address."""


class MissingDependencyError(MedimgError, ImportError):
    """An optional dependency is not installed; the message gives the command that installs it."""


_Error = TypeVar("_Error", bound=MedimgError)
_MADE: dict[tuple[type[MedimgError], type[BaseException]], type[MedimgError]] = {}


def also(error: type[_Error], builtin: type[BaseException]) -> type[_Error]:
    """
    Return an error that is a built-in one, too, under the same name.

    >>> raise also(DatasetError, KeyError)("the table has no column 'x'")
    Traceback (most recent call last):
    medimg.errors.DatasetError: the table has no column 'x'
    """
    if issubclass(error, builtin):
        return error
    if builtin.__module__ != "builtins":
        return also(error, builtin.__mro__[1])
    if issubclass(builtin, UnicodeError):  # made of five arguments, not of a message
        builtin = ValueError
    if (error, builtin) not in _MADE:
        members = {"__module__": error.__module__, "__doc__": error.__doc__, "__reduce__": _reduce}
        made: Any = _BothErrors(error.__name__, (error, builtin), members)
        _MADE[error, builtin] = made
    return cast("type[_Error]", _MADE[error, builtin])


class _BothErrors(type):
    """Types that :func:`also` makes, which processes pass on by what they are made of."""


def _reduce_type(made: Any) -> Any:
    return also, made.__bases__


copyreg.pickle(_BothErrors, _reduce_type)


def _reduce(error: MedimgError) -> tuple[Any, ...]:
    """Let processes pass errors on, whose classes no module has."""
    bases = type(error).__bases__
    return _rebuild, (*bases, error.args, vars(error))


def _rebuild(
    error: type[MedimgError], builtin: type[BaseException], args: tuple[Any, ...], state: Mapping[str, Any]
) -> MedimgError:
    found: MedimgError = also(error, builtin)(*args)
    vars(found).update(state)
    return found


class MedimgWarning(UserWarning):
    """Something was read or done that deserves a second look; the report of the result repeats it."""
