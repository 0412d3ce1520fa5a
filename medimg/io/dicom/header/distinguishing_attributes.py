"""
Attributes that distinguish images at one position, of classic files and of functional groups.

The tables are in the order in which attributes are tried; docs/reading.rst lists them for readers.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from pydicom.tag import Tag

from medimg.io.dicom.header.attributes import (
    get_code,
    get_floats,
    get_integer,
    get_items,
    get_number,
    get_text,
    get_texts,
)
from medimg.io.dicom.header.datetimes import get_local_datetime, get_time
from medimg.io.dicom.header.frame_attributes import get_length
from medimg.io.dicom.header.private_tags import (
    PrivateTag,
    get_private_integer,
    get_private_text,
    list_private_tags,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from pydicom.dataset import Dataset

    from medimg.io.dicom.header.functional_groups import Evaluation

__all__ = [
    "DISTINGUISHING_TAGS",
    "NAMED_BY_VALUE",
    "SERIES_ATTRIBUTES",
    "TEMPORAL_ATTRIBUTES",
    "UNORDERED",
    "UNPRINTABLE",
    "FrameAttribute",
    "FrameAttributes",
    "get_image_type",
    "get_series_attributes",
    "get_temporal_attributes",
]


class FrameAttribute(NamedTuple):
    """An attribute that distinguishes frames at one position: a name and a hashable value."""

    name: str
    value: Hashable


FrameAttributes: TypeAlias = tuple[FrameAttribute, ...]

_GE_COMPONENT: Final = PrivateTag(0x0043, 0x2F, "GEMS_PARM_01", "SS")
_SIEMENS_COIL: Final = PrivateTag(0x0051, 0x0F, "SIEMENS MR HEADER", "LO")
#: b-value number, gradient number, label of arterial spin labeling, phase.
_PHILIPS: Final = (
    PrivateTag(0x2005, 0x12, "Philips MR Imaging DD 005", "IS"),
    PrivateTag(0x2005, 0x13, "Philips MR Imaging DD 005", "IS"),
    PrivateTag(0x2005, 0x29, "Philips MR Imaging DD 005", "CS"),
    PrivateTag(0x2001, 0x08, "Philips Imaging DD 001", "IS"),
)


class _Attribute(NamedTuple):
    """Name of an attribute, the function that gets it from a view, and the keywords that it reads."""

    name: str
    get: Callable[[Dataset, tuple[str, ...]], Hashable]
    keywords: tuple[str, ...] = ()
    in_classic: bool = True  # False if classic files have it, too, but with another value in each


def _get_number(view: Dataset, keywords: tuple[str, ...]) -> float | None:
    """Return the value of the first of these attributes that is present."""
    return next((n for n in (get_number(view, k) for k in keywords) if n is not None), None)


def _get_numbers(view: Dataset, keywords: tuple[str, ...]) -> tuple[float, ...] | None:
    """Return the values of the first of these attributes that is present."""
    for keyword in keywords:
        if found := get_floats(view, keyword):
            return found
    return None


def _get_integer(view: Dataset, keywords: tuple[str, ...]) -> int | None:
    return next((n for n in (get_integer(view, k) for k in keywords) if n is not None), None)


def _get_integers(view: Dataset, keywords: tuple[str, ...]) -> Hashable:
    """Return the number, or the numbers if there are several, of the first attribute that is present."""
    found = _get_numbers(view, keywords)
    if found is None or not all(number.is_integer() for number in found):
        return found
    return int(found[0]) if len(found) == 1 else tuple(map(int, found))


def _get_code(view: Dataset, keywords: tuple[str, ...]) -> str | None:
    return next(filter(None, (get_code(view, k) for k in keywords)), None)


def _get_text(view: Dataset, keywords: tuple[str, ...]) -> str | None:
    return next(filter(None, (get_text(view, k) for k in keywords)), None)


def _get_texts(view: Dataset, keywords: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the values of all of these attributes, each as one text; None if all are absent."""
    found = tuple("\\".join(get_texts(view, k)) for k in keywords)
    return found if any(found) else None


def _get_coded(view: Dataset, keywords: tuple[str, ...]) -> str | None:
    """Return the code value of the first item of a code sequence."""
    return next(
        filter(None, (get_text(item, "CodeValue") for k in keywords for item in get_items(view, k)[:1])), None
    )


def _get_within(view: Dataset, keywords: tuple[str, ...]) -> float | None:
    """Return a number of a sequence or, in the view of a frame, of the macro itself."""
    *sequences, keyword = keywords
    items = [view, *(item for k in sequences for item in get_items(view, k)[:1])]
    return next((n for n in (get_number(item, keyword) for item in items) if n is not None), None)


def _get_b_matrix(view: Dataset, keywords: tuple[str, ...]) -> tuple[float, ...] | None:
    """Return the six b-values of a diffusion matrix."""
    numbers = tuple(
        get_number(item, f"DiffusionBValue{axes}")
        for item in get_items(view, keywords[0])[:1]
        for axes in ("XX", "XY", "XZ", "YY", "YZ", "ZZ")
    )
    found = tuple(round(n, 4) for n in numbers if n is not None)
    return found or None


def _get_quantity(view: Dataset, keywords: tuple[str, ...]) -> tuple[str | None, ...] | None:
    """Return label and unit of the first real world value mapping."""
    for item in get_items(view, keywords[0])[:1]:
        found = _get_text(item, ("LUTLabel",)), _get_coded(item, ("MeasurementUnitsCodeSequence",))
        return found if any(found) else None
    return None


def get_image_type(view: Dataset) -> tuple[str, ...]:
    """Return the frame's own Frame Type, or else Image Type: texts of any length, not for messages."""
    found = get_texts(view, "FrameType")
    return tuple(v.upper() for v in (found if any(found) else get_texts(view, "ImageType")))


def _get_type(view: Dataset, keywords: tuple[str, ...]) -> Hashable:
    component = get_code(view, "ComplexImageComponent"), get_private_integer(view, _GE_COMPONENT)
    more = tuple(get_code(view, k) for k in keywords)
    return (*get_image_type(view), *component, *(more if any(more) else ()))


def _get_siemens_coil(view: Dataset, keywords: tuple[str, ...]) -> str | None:
    return get_private_text(view, _SIEMENS_COIL) or None


def _is_trace(view: Dataset, keywords: tuple[str, ...]) -> bool:
    """Whether a diffusion image is averaged over directions, and so not a volume of its source series."""
    b_value = _get_number(view, ("DiffusionBValue",))
    return bool(b_value) and get_code(view, "DiffusionDirectionality") == "ISOTROPIC"


def _get_thickness(view: Dataset, keywords: tuple[str, ...]) -> float | None:
    found = get_length(view, "SliceThickness")
    return None if found is None else round(found, 2)


def _get_diffusion(view: Dataset, keywords: tuple[str, ...]) -> Hashable:
    b_value = _get_number(view, ("DiffusionBValue",))
    if b_value is None:
        return None
    direction = get_floats(view, "DiffusionGradientOrientation", 3)
    for item in get_items(view, "DiffusionGradientDirectionSequence")[:1]:
        direction = get_floats(item, "DiffusionGradientOrientation", 3)
    return b_value, None if direction is None else tuple(round(v, 4) for v in direction)


def _get_philips_labels(view: Dataset, keywords: tuple[str, ...]) -> Hashable:
    """Return b-value, gradient, ASL label and phase of classic Philips files, whose order is free."""
    found = tuple(get_private_text(view, tag).zfill(6) for tag in _PHILIPS)
    return found if any(text.strip("0") for text in found) else None


def _get_start(view: Dataset, keywords: tuple[str, ...]) -> float | None:
    for keyword in keywords:
        if (found := get_local_datetime(view, keyword)) is not None:
            return found
    return None


def _get_clock(view: Dataset, keywords: tuple[str, ...]) -> float | None:
    return get_time(view, keywords[0])


#: Attributes whose difference puts images into different series.
_SERIES_TABLE: Final = (
    _Attribute(
        "type",
        _get_type,
        ("DataType", "VolumetricProperties", "VolumeBasedCalculationTechnique", "DiffusionAnisotropyType"),
    ),
    _Attribute("echo", _get_integers, ("EchoNumbers",)),
    _Attribute("echo time", _get_number, ("EffectiveEchoTime", "EchoTime")),
    _Attribute("directionality", _is_trace, ("DiffusionBValue", "DiffusionDirectionality")),
    _Attribute("coil", _get_siemens_coil),
    _Attribute("kernel", _get_text, ("ConvolutionKernel",)),
    _Attribute("stack", _get_text, ("StackID",)),
    _Attribute("thickness", _get_thickness, ("SliceThickness",)),
    _Attribute("energy", _get_within, ("MultienergyCTCharacteristicsSequence",
                                       "MultienergyCTProcessingSequence", "MonoenergeticEnergyEquivalent"),
               in_classic=False),
    _Attribute("tube voltage", _get_number, ("KVP",)),
    _Attribute("reconstruction", _get_texts, ("ReconstructionAlgorithm", "ReconstructionMethod",
                                              "ReconstructionType", "ImageFilter")),
    _Attribute("correction", _get_texts, ("AttenuationCorrectionMethod", "CorrectedImage",
                                          "AttenuationCorrected", "ScatterCorrected")),
    _Attribute("metabolite", _get_text, ("MetaboliteMapDescription",)),
    _Attribute("receive coil", _get_text, ("ReceiveCoilName",)),
    _Attribute("transmit coil", _get_text, ("TransmitCoilName",)),
    _Attribute("radiopharmaceutical", _get_integer, ("RadiopharmaceuticalAgentNumber",)),
    _Attribute("physiological state", _get_coded, ("PatientPhysiologicalStateCodeSequence",),
               in_classic=False),
    _Attribute("laterality", _get_code, ("FrameLaterality", "ImageLaterality", "Laterality")),
    _Attribute("acquisition type", _get_code, ("AcquisitionType",)),
    _Attribute("tube angle", _get_number, ("TubeAngle",), in_classic=False),
    _Attribute("contrast", _get_texts, ("AcquisitionContrast", "PixelPresentation"), in_classic=False),
    _Attribute("X-ray filter", _get_texts, ("FilterType", "FilterMaterial", "FocalSpots"), in_classic=False),
    _Attribute("reconstruction field", _get_texts, ("ReconstructionDiameter", "ReconstructionFieldOfView",
                                                    "ReconstructionAngle", "DataCollectionDiameter"),
               in_classic=False),
    _Attribute("iterations", _get_texts, ("IterativeReconstructionMethod", "NumberOfIterations",
                                          "NumberOfSubsets"), in_classic=False),
    _Attribute("PET correction", _get_texts, ("DecayCorrected", "DeadTimeCorrected", "RandomsCorrected",
                                              "GantryMotionCorrected", "PatientMotionCorrected",
                                              "CountLossNormalizationCorrected",
                                              "NonUniformRadialSamplingCorrected", "SensitivityCalibrated",
                                              "DetectorNormalizationCorrection"), in_classic=False),
    _Attribute("coil type", _get_texts, ("ReceiveCoilType", "TransmitCoilType"), in_classic=False),
    _Attribute("derivation", _get_coded, ("DerivationCodeSequence",), in_classic=False),
    _Attribute("quantity", _get_quantity, ("RealWorldValueMappingSequence",), in_classic=False),
)  # fmt: skip

#: Attributes that distinguish repetitions within a series, the most specific first.
_TEMPORAL_TABLE: Final = (
    _Attribute("time", _get_integer, ("TemporalPositionIndex", "TemporalPositionIdentifier")),
    _Attribute("segment", _get_integer, ("ReferencedSegmentNumber", "SegmentNumber")),
    _Attribute("reference time", _get_number, ("FrameReferenceTime",)),
    _Attribute("trigger", _get_number, ("NominalCardiacTriggerDelayTime", "TriggerTime")),
    _Attribute("diffusion", _get_diffusion, ("DiffusionBValue", "DiffusionGradientOrientation")),
    _Attribute("philips", _get_philips_labels),
    _Attribute("label", _get_code, ("ASLContext",)),
    _Attribute("velocity", _get_numbers, ("VelocityEncodingDirection",)),
    _Attribute("vectors", lambda view, keywords: None),  # of frames; see frame_vectors
    _Attribute("cardiac phase", _get_number, ("NominalPercentageOfCardiacPhase",)),
    _Attribute("cardiac position", _get_code, ("CardiacCyclePosition",)),
    _Attribute("respiratory phase", _get_number, ("NominalPercentageOfRespiratoryPhase",)),
    _Attribute("respiratory trigger", _get_number, ("NominalRespiratoryTriggerDelayTime",)),
    _Attribute("respiratory position", _get_code, ("RespiratoryCyclePosition", "StartingRespiratoryPhase")),
    _Attribute("inversion time", _get_numbers, ("InversionTimes", "InversionTime")),
    _Attribute("flip angle", _get_number, ("FlipAngle",)),
    _Attribute("repetition time", _get_number, ("RepetitionTime",)),
    _Attribute("preparation", _get_texts, ("MagnetizationTransfer", "T2Preparation", "BloodSignalNulling",
                                           "SpectrallySelectedSuppression", "SpectrallySelectedExcitation",
                                           "SpatialPresaturation", "InversionRecovery", "SaturationRecovery",
                                           "Tagging", "FlowCompensation", "ScanOptions")),
    _Attribute("tagging delay", _get_number, ("TaggingDelay",)),
    _Attribute("labeling duration", _get_within, ("ASLSlabSequence", "ASLPulseTrainDuration")),
    _Attribute("velocity encoding", _get_number, ("VelocityEncodingMaximumValue",
                                                  "VelocityEncodingMinimumValue")),
    _Attribute("contrast agent", _get_texts, ("ContrastBolusAgentPhase", "ContrastBolusAgentAdministered",
                                              "ContrastBolusAgentDetected", "ContrastBolusAgent")),
    _Attribute("averages", _get_number, ("NumberOfAverages",)),
    _Attribute("frequency", _get_numbers, ("TransmitterFrequency",), in_classic=False),
    _Attribute("dimensions", _get_numbers, ("DimensionIndexValues",)),
    _Attribute("acquisition", _get_integer, ("AcquisitionNumber",)),
    _Attribute("frame acquisition", _get_integer, ("FrameAcquisitionNumber",)),
    _Attribute("frame label", _get_text, ("FrameLabel",), in_classic=False),
    _Attribute("offset", _get_number, ("TemporalPositionTimeOffset",)),
    _Attribute("before R peak", _get_number, ("NominalCardiacTriggerTimePriorToRPeak",)),
    _Attribute("actual trigger", _get_number, ("ActualCardiacTriggerDelayTime",), in_classic=False),
    _Attribute("actual respiratory trigger", _get_number, ("ActualRespiratoryTriggerDelayTime",),
               in_classic=False),
    _Attribute("respiratory amplitude", _get_number, ("StartingRespiratoryAmplitude",), in_classic=False),
    _Attribute("respiratory end", _get_texts, ("EndingRespiratoryPhase", "EndingRespiratoryAmplitude"),
               in_classic=False),
    _Attribute("respiratory interval", _get_number, ("RespiratoryIntervalTime",), in_classic=False),
    _Attribute("R-R interval", _get_number, ("RRIntervalTimeNominal",), in_classic=False),
    _Attribute("b-matrix", _get_b_matrix, ("DiffusionBMatrixSequence",), in_classic=False),
    _Attribute("contrast agent number", _get_integer, ("ContrastBolusAgentNumber",), in_classic=False),
    _Attribute("pulse sequence", _get_texts, ("EchoTrainLength", "RFEchoTrainLength",
                                              "GradientEchoTrainLength", "GradientOutputType",
                                              "PartialFourier", "PartialFourierDirection",
                                              "ParallelAcquisition", "ParallelAcquisitionTechnique",
                                              "ParallelReductionFactorInPlane",
                                              "ParallelReductionFactorOutOfPlane",
                                              "ParallelReductionFactorSecondInPlane", "Spoiling",
                                              "FlowCompensationDirection",
                                              "WaterReferencedPhaseCorrection",
                                              "InPlanePhaseEncodingDirection",
                                              "MRAcquisitionFrequencyEncodingSteps",
                                              "MRAcquisitionPhaseEncodingStepsInPlane",
                                              "MRAcquisitionPhaseEncodingStepsOutOfPlane",
                                              "PercentSampling", "PercentPhaseFieldOfView"),
               in_classic=False),
    _Attribute("table motion", _get_texts, ("TableSpeed", "TableFeedPerRotation", "SpiralPitchFactor"),
               in_classic=False),
    _Attribute("duration", _get_number, ("FrameAcquisitionDuration",), in_classic=False),
    _Attribute("comments", _get_text, ("FrameComments",), in_classic=False),
    _Attribute("irradiation event", _get_text, ("IrradiationEventUID",), in_classic=False),
    _Attribute("started", _get_start, ("FrameAcquisitionDateTime", "AcquisitionDateTime")),
    _Attribute("referenced", _get_start, ("FrameReferenceDateTime",), in_classic=False),
    _Attribute("acquired", _get_clock, ("AcquisitionTime",)),
    _Attribute("made", _get_clock, ("ContentTime",)),
)  # fmt: skip

#: Names in the order in which they are tried.
SERIES_ATTRIBUTES: Final = tuple(attribute.name for attribute in _SERIES_TABLE)
TEMPORAL_ATTRIBUTES: Final = tuple(attribute.name for attribute in _TEMPORAL_TABLE)
#: Repetitions that these distinguish are ordered by Instance Number, not by value.
UNORDERED: Final = frozenset(
    {
        *("diffusion", "velocity", "dimensions", "cardiac position", "respiratory position", "preparation"),
        *("contrast agent", "frame label", "irradiation event", "respiratory end", "b-matrix"),
        *("pulse sequence", "table motion", "comments"),
    }
)
#: Free text, which names no channel: it could identify.
UNPRINTABLE: Final = frozenset({"frame label", "irradiation event", "comments"})
#: Numbers that name a channel by themselves; others are counted.
NAMED_BY_VALUE: Final = frozenset(
    {
        *("cardiac phase", "respiratory phase", "inversion time", "flip angle", "repetition time"),
        *("velocity encoding", "averages", "labeling duration", "tagging delay"),
    }
)
#: Read from functional groups only: the time of a file is that of its acquisition.
_NOT_IN_CLASSIC: Final = frozenset({"FrameAcquisitionDateTime"})
#: Tags that a header-only read must include for this module.
DISTINGUISHING_TAGS: Final[list[str | int]] = [
    "ComplexImageComponent",
    "ImageType",
    *(
        k
        for attribute in (*_SERIES_TABLE, *_TEMPORAL_TABLE)
        if attribute.in_classic
        for k in attribute.keywords
        if k not in _NOT_IN_CLASSIC
    ),
    *list_private_tags(_GE_COMPONENT, _SIEMENS_COIL, *_PHILIPS),
]


def get_series_attributes(evaluate: Evaluation) -> FrameAttributes:
    """Return attributes whose difference puts images into different series."""
    return _get_attributes(evaluate, "series")


def get_temporal_attributes(evaluate: Evaluation) -> FrameAttributes:
    """Return attributes that distinguish repetitions within a series, the most specific first."""
    return _get_attributes(evaluate, "temporal")


def _index_tags(table: tuple[_Attribute, ...]) -> dict[int, frozenset[int]]:
    """Return the numbers of the attributes that read each tag; under tag 0 those that are always read."""
    rows: dict[int, set[int]] = defaultdict(set)
    for number, attribute in enumerate(table):
        is_always = attribute.get in {_get_type, _is_trace} or not attribute.keywords
        for tag in (0,) if is_always else map(int, map(Tag, attribute.keywords)):
            rows[tag].add(number)
    return {tag: frozenset(numbers) for tag, numbers in rows.items()}


#: Attributes by the kind of distinction, with their numbers by tag.
_TABLES: Final = {
    "series": (_SERIES_TABLE, _index_tags(_SERIES_TABLE)),
    "temporal": (_TEMPORAL_TABLE, _index_tags(_TEMPORAL_TABLE)),
}


def _list_present(view: Dataset, kind: str) -> list[int]:
    """Return the numbers of the attributes that read a tag which is present."""
    rows = _TABLES[kind][1]
    return sorted(rows[0].union(*[rows[tag] for tag in view.keys() & rows.keys()]))


def _get_attribute(view: Dataset, kind: str, number: int) -> FrameAttribute | None:
    attribute = _TABLES[kind][0][number]
    value = attribute.get(view, attribute.keywords)
    return None if value is None else FrameAttribute(attribute.name, value)


def _get_attributes(evaluate: Evaluation, kind: str) -> FrameAttributes:
    """Return the attributes of a view; as few have a tag that is present, only these are looked at."""
    found = [evaluate(_get_attribute, kind, number) for number in evaluate(_list_present, kind)]
    return tuple([attribute for attribute in found if attribute is not None])
