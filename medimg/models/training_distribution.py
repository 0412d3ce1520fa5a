"""Aggregated acquisition facts of the training data, and the detection of images outside them."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._validation import check_fields, check_number, check_texts, check_whole_number
from medimg.core.volume import Volume
from medimg.data.acquisition_tags import read_acquisition_tags
from medimg.errors import CheckpointError, MedimgError

if TYPE_CHECKING:
    from medimg.data.protocols import LabeledDataset
    from medimg.io.series import Series
    from medimg.models.classifier import TransferClassifier

__all__ = ["ImageFacts", "TrainingDistribution", "record_training_distribution"]

#: Most series whose headers are read for tags.
_SAMPLED: Final = 500
#: Factor by which a spacing may exceed the range of the training data.
_TOLERANCE: Final = 1.25
_MOST_NAMES: Final = 50
#: Above any spacing in millimeters or size in pixels.
_FAR: Final = 1e30
#: A code string of DICOM (PS3.5 6.2), unlike names and comments.
_CODE: Final = re.compile(r"[A-Z0-9_][A-Z0-9_ ]{0,15}")
_TAGS: Final = ("BodyPartExamined", "PhotometricInterpretation", "SliceThickness")

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """
    Acquisition facts of one image: "", None or () if unknown; lengths in millimeters.

    `spacing` is that of rows and columns. A value that is not a DICOM code string counts as unknown.
    """

    modality: str = ""
    format: str = ""
    body_part: str = ""
    photometric: str = ""
    spacing: tuple[float, ...] = ()
    slice_distance: float | None = None
    slice_thickness: float | None = None
    rows: int = 0
    columns: int = 0

    @classmethod
    def of(cls, image: Series | Volume, *, tags: bool = True) -> ImageFacts:
        """Return the facts of an image's geometry, and those of the header of its first file if `tags`."""
        spacing = [float(v) for v in image.spacing]
        known = (image.space == "patient" or spacing != [1.0, 1.0, 1.0]) and all(
            math.isfinite(v) and v > 0 for v in spacing
        )
        found: Mapping[str, Any] = {}
        if tags and not isinstance(image, Volume):
            try:
                found = read_acquisition_tags([image], _TAGS)[0]
            except MedimgError:
                # reading the pixels raises the same error
                found = {}
        thickness = found.get("SliceThickness")
        return cls(
            modality=_code_string(image.modality),
            format=image.report.format if isinstance(image, Volume) else image.format,
            body_part=_code_string(found.get("BodyPartExamined")),
            photometric=_code_string(found.get("PhotometricInterpretation")),
            spacing=tuple(spacing[1:]) if known else (),
            slice_distance=spacing[0] if known and image.shape[1] > 1 else None,
            slice_thickness=thickness if isinstance(thickness, float) and thickness > 0 else None,
            rows=int(image.shape[2]),
            columns=int(image.shape[3]),
        )


@dataclass(frozen=True, slots=True)
class TrainingDistribution:
    """
    Acquisition facts of the training data, as aggregates.

    Attributes
    ----------
    series : int
        Number of series.
    modalities, formats, body_parts, photometric : tuple of str
        Values that occur, in alphabetical order; unknown ones are left out.
    spacing, slice_distance, slice_thickness, rows, columns : tuple of 2 floats or None
        Lowest and highest value, in millimeters or pixels; None if unknown. `spacing` is that of rows and
        columns.

    Examples
    --------
    >>> seen = TrainingDistribution.of(
    ...     [ImageFacts("CT", spacing=(0.6, 0.6)), ImageFacts("CT", spacing=(0.9, 0.9))]
    ... )
    >>> seen.unlike(ImageFacts("MR", spacing=(0.5, 0.5)))
    {'modality': 'MR'}
    >>> seen.unlike(ImageFacts(spacing=(3.0, 3.0))), seen.describe("spacing")
    ({'spacing': '3 mm'}, '0.6 to 0.9 mm')
    """

    series: int
    modalities: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    photometric: tuple[str, ...] = ()
    spacing: Range | None = None
    slice_distance: Range | None = None
    slice_thickness: Range | None = None
    rows: Range | None = field(default=None)
    columns: Range | None = field(default=None)

    @classmethod
    def of(cls, facts: Iterable[ImageFacts]) -> TrainingDistribution:
        """Aggregate the facts of images."""
        several = list(facts)
        return cls(
            len(several),
            _unique_names(one.modality for one in several),
            _unique_names(one.format for one in several),
            _unique_names(one.body_part for one in several),
            _unique_names(one.photometric for one in several),
            _range(value for one in several for value in one.spacing),
            _range(one.slice_distance for one in several),
            _range(one.slice_thickness for one in several),
            _range(one.rows for one in several),
            _range(one.columns for one in several),
        )

    @classmethod
    def union(cls, several: Sequence[TrainingDistribution]) -> TrainingDistribution:
        """Join what several models were trained on."""
        values: dict[str, Any] = {"series": sum(one.series for one in several)}
        for name in ("modalities", "formats", "body_parts", "photometric"):
            values[name] = _unique_names(text for one in several for text in getattr(one, name))
        for name in ("spacing", "slice_distance", "slice_thickness", "rows", "columns"):
            values[name] = _range(limit for one in several for limit in getattr(one, name) or ())
        return cls(**values)

    def unlike(self, facts: ImageFacts) -> dict[str, str]:
        """
        Return the out-of-distribution facts of an image, by name.

        Modality, body part, and the spacing of rows, columns and slices are compared, if both are known; a
        spacing may exceed the range by a quarter.
        """
        found = {}
        if facts.modality and self.modalities and facts.modality not in self.modalities:
            found["modality"] = facts.modality
        if facts.body_part and self.body_parts and facts.body_part not in self.body_parts:
            found["body part"] = facts.body_part
        outside = [value for value in facts.spacing if _is_outside(value, self.spacing)]
        if outside:
            found["spacing"] = f"{outside[0]:.3g} mm"
        distance = facts.slice_distance
        if distance is not None and _is_outside(distance, self.slice_distance):
            found["slice distance"] = f"{distance:.3g} mm"
        return found

    def describe(self, fact: str) -> str:
        """Describe the training data in words, by a key of :meth:`unlike`."""
        if fact in ("modality", "body part"):
            return ", ".join(self.modalities if fact == "modality" else self.body_parts)
        limits = self.spacing if fact == "spacing" else self.slice_distance
        return "unknown" if limits is None else f"{limits[0]:.3g} to {limits[1]:.3g} mm"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: object) -> TrainingDistribution:
        """Read :meth:`to_dict` of a file, and check each field by its name."""
        found = check_fields("ranges", values, [one.name for one in fields(cls)], error=CheckpointError)
        read: dict[str, Any] = {
            "series": check_whole_number("ranges.series", found["series"], least=0, error=CheckpointError)
        }
        for name in ("modalities", "formats", "body_parts", "photometric"):
            read[name] = check_texts(f"ranges.{name}", found[name], error=CheckpointError)
        for name in ("spacing", "slice_distance", "slice_thickness", "rows", "columns"):
            read[name] = _check_range(f"ranges.{name}", found[name])
        return cls(**read)


def record_training_distribution(model: TransferClassifier, train: LabeledDataset) -> None:
    """
    Set ``model.training_ranges`` from a dataset's series, and drop the calibration of the former parameters.

    Headers are read for at most 500 series, evenly spaced; a dataset without series records nothing.
    """
    model.calibration = None
    series = {id(one): one for one in getattr(train, "series", ())}
    several = list(series.values())
    if not several:
        model.training_ranges = None
        return
    sampled = set(np.linspace(0, len(several) - 1, min(len(several), _SAMPLED)).astype(int).tolist())
    model.training_ranges = TrainingDistribution.of(
        ImageFacts.of(one, tags=n in sampled) for n, one in enumerate(several)
    )


def _check_range(name: str, limits: object) -> Range | None:
    """Return two ascending numbers above 0, or None."""
    if limits is None:
        return None
    if not isinstance(limits, list) or len(limits) != 2:
        raise CheckpointError(f"{name} must be null or two numbers; found {reprlib.repr(limits)}")
    low, high = (check_number(name, value, above=0, below=_FAR, error=CheckpointError) for value in limits)
    if low > high:
        raise CheckpointError(f"{name} must be two ascending numbers; found {low:g} and {high:g}")
    return low, high


def _code_string(value: object) -> str:
    text = str(value or "").strip().upper()
    return text if _CODE.fullmatch(text) else ""


def _unique_names(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(values) - {""}))[:_MOST_NAMES]


def _range(values: Iterable[float | None]) -> Range | None:
    known = [float(f"{value:.6g}") for value in values if value]
    return (min(known), max(known)) if known else None


def _is_outside(value: float, limits: Range | None) -> bool:
    return limits is not None and not limits[0] / _TOLERANCE <= value <= limits[1] * _TOLERANCE
