"""What the training data were like, as far as aggregates tell it, and whether an image is unlike them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.core.volume import Volume
from medimg.data.acquisition_tags import read_acquisition_tags
from medimg.errors import CheckpointError, MedimgError

if TYPE_CHECKING:
    from medimg.data.protocols import LabeledDataset
    from medimg.io.series import Series
    from medimg.models.classifier import TransferClassifier

__all__ = ["ImageFacts", "TrainingDistribution", "record_training_distribution"]

#: Of so many series at most headers are read for tags.
_SAMPLED: Final = 500
#: How far outside the range of the training data a spacing may lie.
_TOLERANCE: Final = 1.25
_MOST_NAMES: Final = 50
#: No image has a spacing or a side like that, in millimeters or pixels.
_FAR: Final = 1e30
#: A code string of DICOM (PS3.5 6.2), which names and comments are not.
_CODE: Final = re.compile(r"[A-Z0-9_][A-Z0-9_ ]{0,15}")
_TAGS: Final = ("BodyPartExamined", "PhotometricInterpretation", "SliceThickness")

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """
    What one image says of how it was made.

    Attributes
    ----------
    modality, format, body_part, photometric : str
        "" where unknown; what is no code string is unknown.
    spacing : tuple of float
        Of rows and columns, in millimeters; empty where unknown.
    slice_distance, slice_thickness : float or None
        In millimeters.
    rows, columns : int
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
        """Look at an image's geometry, and at the header of its first file where tags are wanted."""
        spacing = [float(v) for v in image.spacing]
        known = (image.space == "patient" or spacing != [1.0, 1.0, 1.0]) and all(
            math.isfinite(v) and v > 0 for v in spacing
        )
        found: Mapping[str, Any] = {}
        if tags and not isinstance(image, Volume):
            try:
                found = read_acquisition_tags([image], _TAGS)[0]
            except MedimgError:
                # reading the pixels will say what is wrong
                found = {}
        thickness = found.get("SliceThickness")
        return cls(
            modality=_code(image.modality),
            format=image.report.format if isinstance(image, Volume) else image.format,
            body_part=_code(found.get("BodyPartExamined")),
            photometric=_code(found.get("PhotometricInterpretation")),
            spacing=tuple(spacing[1:]) if known else (),
            slice_distance=spacing[0] if known and image.shape[1] > 1 else None,
            slice_thickness=thickness if isinstance(thickness, float) and thickness > 0 else None,
            rows=int(image.shape[2]),
            columns=int(image.shape[3]),
        )


@dataclass(frozen=True, slots=True)
class TrainingDistribution:
    """
    What the training data were like: aggregates only.

    Attributes
    ----------
    series : int
        How many they were of.
    modalities, formats, body_parts, photometric : tuple of str
        What occurs, by the alphabet; without what is unknown.
    spacing, slice_distance, slice_thickness, rows, columns : tuple of 2 floats or None
        Lowest and highest, in millimeters and pixels; None where unknown. The spacing is that of rows and
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
        """Put together what single images say."""
        several = list(facts)
        return cls(
            len(several),
            _names(one.modality for one in several),
            _names(one.format for one in several),
            _names(one.body_part for one in several),
            _names(one.photometric for one in several),
            _range(value for one in several for value in one.spacing),
            _range(one.slice_distance for one in several),
            _range(one.slice_thickness for one in several),
            _range(one.rows for one in several),
            _range(one.columns for one in several),
        )

    def unlike(self, facts: ImageFacts) -> dict[str, str]:
        """
        Return in what an image is unlike the training data, and what it has instead.

        Only what is known of both is compared: modality, body part, and the spacing of rows and columns and
        of slices, which may be a quarter beyond the range.
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

    def describe(self, kind: str) -> str:
        """Put into words what the training data have, by a key of :meth:`unlike`."""
        if kind in ("modality", "body part"):
            return ", ".join(self.modalities if kind == "modality" else self.body_parts)
        limits = self.spacing if kind == "spacing" else self.slice_distance
        return "unknown" if limits is None else f"{limits[0]:.3g} to {limits[1]:.3g} mm"

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingDistribution:
        """
        Take them from a file.

        Raises
        ------
        CheckpointError
            If a field is missing, or none that there is.
        """
        if values.keys() != {one.name for one in fields(cls)} or type(values["series"]) is not int:
            raise CheckpointError("the ranges of the training data lack a field, or have one too many")
        read: dict[str, Any] = {"series": values["series"]}
        for name in ("modalities", "formats", "body_parts", "photometric"):
            names = values[name]
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise CheckpointError(f"{name} of the training data is no list of names")
            read[name] = tuple(names)
        for name in ("spacing", "slice_distance", "slice_thickness", "rows", "columns"):
            limits = values[name]
            numbers = isinstance(limits, list) and all(type(v) in (int, float) and v < _FAR for v in limits)
            if limits is not None and not (numbers and len(limits) == 2 and 0 < limits[0] <= limits[1]):
                raise CheckpointError(f"{name} of the training data is no range")
            read[name] = None if limits is None else tuple(limits)
        return cls(**read)


def record_training_distribution(model: TransferClassifier, train: LabeledDataset) -> None:
    """
    Note what a model is trained on; its calibration, which was another model's, is dropped.

    Parameters
    ----------
    model : TransferClassifier
        Its ``training_ranges`` and ``calibration`` are set.
    train : ImageDataset
        Headers are read of 500 of its series at most, evenly chosen; nothing is noted of other data sets.
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


def _code(value: object) -> str:
    text = str(value or "").strip().upper()
    return text if _CODE.fullmatch(text) else ""


def _names(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(values) - {""}))[:_MOST_NAMES]


def _range(values: Iterable[float | None]) -> Range | None:
    known = [float(f"{value:.6g}") for value in values if value]
    return (min(known), max(known)) if known else None


def _is_outside(value: float, limits: Range | None) -> bool:
    return limits is not None and not limits[0] / _TOLERANCE <= value <= limits[1] * _TOLERANCE
