"""Coded concepts: those of the standard, those given for classes, and private ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pydicom.sr.coding import Code

from medimg._validation import did_you_mean
from medimg.core.content_hash import content_hash
from medimg.errors import ConversionError, also

if TYPE_CHECKING:
    from medimg.models.classifier import TransferClassifier

__all__ = [
    "IN_SET",
    "MAHALANOBIS",
    "NO",
    "NO_UNITS",
    "OPERATING_POINT",
    "OUT_OF_DISTRIBUTION",
    "PREDICTED",
    "PROBABILITY",
    "REACHES_THRESHOLD",
    "SALIENCY",
    "SCHEME",
    "THRESHOLD",
    "UNLIKE",
    "YES",
    "ConceptLike",
    "class_concepts",
    "code_concept",
    "describe_calibration",
    "name_concept",
    "parse_concept",
]

#: A concept: pydicom's or highdicom's, or its value, coding scheme and meaning.
ConceptLike: TypeAlias = "Code | Sequence[str]"

#: Private coding scheme (PS3.16 8: designators that begin with 99).
SCHEME: Final = "99MEDIMG"
PROBABILITY: Final = Code("122157", "DCM", "Probability")
THRESHOLD: Final = Code("122411", "DCM", "Threshold Value")
SALIENCY: Final = Code("130404", "DCM", "Saliency")
NO_UNITS: Final = Code("1", "UCUM", "no units")
YES: Final = Code("373066001", "SCT", "Yes")
NO: Final = Code("373067005", "SCT", "No")
PREDICTED: Final = Code("predicted", SCHEME, "Predicted")
REACHES_THRESHOLD: Final = Code("at-threshold", SCHEME, "Probability reaches the threshold")
IN_SET: Final = Code("in-set", SCHEME, "In the prediction set")
OUT_OF_DISTRIBUTION: Final = Code("ood", SCHEME, "Out-of-distribution score")
UNLIKE: Final = Code("unlike", SCHEME, "Differences from the training data")
# viewers such as OHIF expect every measurement to have content of its own
OPERATING_POINT: Final = Code("operating-point", SCHEME, "Operating point on validation data")
MAHALANOBIS: Final = Code("mahalanobis", SCHEME, "Rank of the Mahalanobis distance of embeddings")
_UNCALIBRATED: Final = Code("uncalibrated", SCHEME, "Uncalibrated probability of a classifier")

#: PS3.5 6.2: SH and LO.
_LONGEST_VALUE, _LONGEST_MEANING = 16, 64
_FIELDS: Final = 3


def describe_calibration(model: TransferClassifier) -> Code:
    """Return whether, and by what method, probabilities are calibrated."""
    calibration = model.calibration
    if calibration is None or calibration.method == "none":
        return _UNCALIBRATED
    return Code(
        f"cal-{calibration.method}"[:_LONGEST_VALUE], SCHEME, f"Calibrated probability ({calibration.method})"
    )


def name_concept(name: str) -> Code:
    """
    Return a private concept of a name; a long name, or one that is not ASCII, has a digest as its value.

    >>> name_concept("nodule").value, name_concept("a name of twenty-six letters").value
    ('nodule', 'sha-639180bc4d04')
    """
    clean = " ".join(name.replace("\\", "/").split())
    fits = clean == name and len(name) <= _LONGEST_VALUE and name.isascii() and name.isprintable()
    value = name if fits else f"sha-{content_hash(name)[:12]}"
    meaning = clean if len(clean) <= _LONGEST_MEANING else f"{clean[: _LONGEST_MEANING - 1]}…"
    return Code(value, SCHEME, meaning or value)


def parse_concept(name: str, given: Any) -> Code:
    """Return a concept as a code; ConversionError says what is wrong with it."""
    fields: tuple[Any, ...] = ()
    if isinstance(given, Code) or hasattr(given, "scheme_designator"):
        fields = (given.value, given.scheme_designator, given.meaning, given.scheme_version)
    elif isinstance(given, Sequence) and not isinstance(given, str):
        fields = tuple(given)
    texts = [text for text in fields[:_FIELDS] if isinstance(text, str) and text and "\\" not in text]
    version = fields[_FIELDS] if len(fields) > _FIELDS else None
    if len(texts) != _FIELDS or len(fields) > _FIELDS + 1 or not isinstance(version, str | None):
        raise ConversionError(
            f'{name} must be a Code, or its value, coding scheme and meaning, such as ("233604007", "SCT", '
            f'"Pneumonia"); found {given!r}'
        )
    value, scheme, meaning = texts
    if len(scheme) > _LONGEST_VALUE or len(meaning) > _LONGEST_MEANING:
        raise ConversionError(
            f"{name} has a coding scheme of {len(scheme)} and a meaning of {len(meaning)} characters; "
            f"expected at most {_LONGEST_VALUE} and {_LONGEST_MEANING}"
        )
    return Code(value, scheme, meaning, version)


def code_concept(sr: Any, given: Code | Sequence[str]) -> Any:
    """Return a concept as highdicom takes it; `sr` is its module."""
    if isinstance(given, Code):
        return sr.CodedConcept(given.value, given.scheme_designator, given.meaning, given.scheme_version)
    return sr.CodedConcept(*given)


def class_concepts(classes: Sequence[str], codes: Mapping[str, ConceptLike] | None) -> dict[str, Code]:
    """Return the concept of each class: the given one, or a private one of its name."""
    given = dict(codes or {})
    unknown = [name for name in given if name not in classes]
    if unknown:
        raise also(ConversionError, KeyError)(
            f"codes has {unknown[0]!r}, which is no class of the model; expected some of "
            f"{', '.join(map(repr, classes))}{did_you_mean(unknown[0], classes)}"
        )
    return {
        name: parse_concept(f"codes[{name!r}]", given[name]) if name in given else name_concept(name)
        for name in classes
    }
