"""Results of medimg (see ``medimg.export``) among images: no input of models and datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from medimg.core.read_report import Skipped
from medimg.errors import MedimgError, NotAnImageError
from medimg.io.series_index import SeriesIndex, SkippedFiles

if TYPE_CHECKING:
    from medimg.io.series import Series

__all__ = ["MANUFACTURER", "is_own_result", "leave_out_results"]

#: Manufacturer (0008,0070) of all results.
MANUFACTURER: Final = "medimg"
#: Modalities of those that have pixels: secondary captures, parametric maps and segmentations.
_MODALITIES: Final = frozenset({"OT", "SEG"})


def is_own_result(series: Series) -> bool:
    """Whether a series has heat maps or masks that medimg made of other images."""
    if series.format != "DICOM" or series.modality not in _MODALITIES:
        return False
    try:
        return series.tags("Manufacturer")["Manufacturer"] == MANUFACTURER
    except MedimgError:  # reading it will say why
        return False


def leave_out_results(index: SeriesIndex, errors: list[MedimgError]) -> tuple[SeriesIndex, list[MedimgError]]:
    """Return an index, and the errors of its skipped files, with own results among these."""
    results = [series for series in index if is_own_result(series)]
    if not results:
        return index, errors
    names = [name for series in results for name in series.files]
    reasons = [
        NotAnImageError(
            f"{name} is a result that medimg made of other images; to use it as an image, pass its Series"
        )
        for name in names
    ]
    skipped = [Skipped(name, str(reason)) for name, reason in zip(names, reasons, strict=True)]
    left = tuple(series for series in index if all(series is not one for one in results))
    return SeriesIndex(left, SkippedFiles((*index.skipped, *skipped))), [*errors, *reasons]
