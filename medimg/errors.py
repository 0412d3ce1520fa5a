"""
The exceptions and warnings of medimg.

Every error that bad input can cause is a :class:`MedimgError`; its message says what was found, what was
expected and what to do. Names, birth dates and identifiers of patients never appear in one.

::

    MedimgError
    ├── ReadError
    │   ├── NotAnImageError
    │   ├── DecodeError
    │   └── TruncatedError
    ├── SeriesError
    │   ├── AmbiguousSeriesError
    │   ├── MissingSlicesError
    │   ├── DuplicateSlicesError
    │   ├── TiltedGantryError
    │   └── GeometryError
    ├── WriteError
    ├── PreprocessError
    ├── DatasetError
    │   └── LeakageError
    ├── TrainingError
    ├── CheckpointError
    ├── WeightsUnavailableError   (also an OSError)
    └── MissingDependencyError    (also an ImportError)

    MedimgWarning                 (a UserWarning)
"""

__all__ = [
    "AmbiguousSeriesError",
    "CheckpointError",
    "DatasetError",
    "DecodeError",
    "DuplicateSlicesError",
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
    "TiltedGantryError",
    "TrainingError",
    "TruncatedError",
    "WeightsUnavailableError",
    "WriteError",
]


class MedimgError(Exception):
    """Base of every error that medimg raises for bad input or a missing resource."""


class ReadError(MedimgError):
    """A file or folder could not be read as an image."""


class NotAnImageError(ReadError):
    """The file or folder holds nothing that medimg knows as an image."""


class DecodeError(ReadError):
    """The pixel data is there but could not be decoded, or contradicts its header."""


class TruncatedError(ReadError):
    """The file ends before its pixel data does."""


class SeriesError(MedimgError):
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


class WriteError(MedimgError):
    """An image can't be written: the format is unknown, or can't hold its values or colors."""


class PreprocessError(MedimgError):
    """A preprocessing recipe is unsound, or does not fit the image it was given."""


class DatasetError(MedimgError):
    """A table of labels and the images it names don't fit together."""


class LeakageError(DatasetError):
    """A split would put the same patient, study or image on two subsets."""


class TrainingError(MedimgError):
    """Training was asked for with settings or data that can't give a result."""


class CheckpointError(MedimgError):
    """A checkpoint is damaged, has been tampered with, or doesn't fit this version."""


class WeightsUnavailableError(MedimgError, OSError):
    """Pretrained weights are neither in the cache nor to be had from their address."""


class MissingDependencyError(MedimgError, ImportError):
    """An optional dependency is not installed; the message gives the command that installs it."""


class MedimgWarning(UserWarning):
    """Something was read or done that deserves a second look; the report of the result repeats it."""
