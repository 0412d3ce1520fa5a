"""Elements of a header that describe acquisition and patient, kept undecoded by the pass over headers."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast

from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element, empty_value_for_VR
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from medimg.io.dicom.header.open import to_tag_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ACQUISITION_TAGS",
    "MAX_VALUE_BYTES",
    "NUMBERED",
    "NUMBERS",
    "TEXTS",
    "AcquisitionElements",
    "pack_element",
]

#: Attributes in words.
TEXTS: Final = (
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "SoftwareVersions",
    "ConvolutionKernel",
    "FilterType",
    "BodyPartExamined",
    "PatientPosition",
    "ViewPosition",
    "PhotometricInterpretation",
    "ScanningSequence",
    "SequenceVariant",
    "MRAcquisitionType",
    "DetectorType",
    "LossyImageCompression",
)
#: Attributes that say where, and are given as "site 1", "site 2", … only.
NUMBERED: Final = {"InstitutionName": "site", "StationName": "station", "DeviceSerialNumber": "device"}
#: Attributes in numbers.
NUMBERS: Final = (
    "SliceThickness",
    "SpacingBetweenSlices",
    "PixelSpacing",
    "KVP",
    "XRayTubeCurrent",
    "Exposure",
    "ReconstructionDiameter",
    "MagneticFieldStrength",
    "RepetitionTime",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "BitsStored",
)
_CHARACTER_SET: Final = 0x00080005
#: Without tube current and exposure, which differ from slice to slice: keeping them would take much memory.
ACQUISITION_TAGS: Final = to_tag_numbers(
    *TEXTS,
    *NUMBERED,
    *NUMBERS,
    "PatientSex",
    "PatientAge",
    "PatientBirthDate",
    "StudyDate",
    "SpecificCharacterSet",
) - to_tag_numbers("XRayTubeCurrent", "Exposure")
#: No element is kept of a header in which one of them is longer.
MAX_VALUE_BYTES: Final = 1024
_ELEMENT: Final = struct.Struct("<I2sI")


def pack_element(tag: int, vr: bytes, value: bytes) -> bytes:
    """Return an element as :class:`AcquisitionElements` has it; `vr` is empty if implicit."""
    return _ELEMENT.pack(tag, vr, len(value)) + value


@dataclass(frozen=True, slots=True)
class AcquisitionElements:
    """
    Values of :data:`ACQUISITION_TAGS`, each after its tag, VR (zeros if implicit) and length.

    They are excluded from the repr, as they can identify.
    """

    packed: bytes = field(repr=False)
    is_little_endian: bool = True

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> AcquisitionElements | None:
        """Pack elements of a dataset; None if one is decoded already or too long."""
        parts: list[bytes] = []
        is_little_endian = True
        for tag in ACQUISITION_TAGS:
            if tag not in dataset:
                continue
            raw: object = dataset.get_item(BaseTag(tag))
            if not isinstance(raw, RawDataElement):
                return None
            value = raw.value or b""
            if len(value) > MAX_VALUE_BYTES:
                return None
            is_little_endian = raw.is_little_endian
            parts.append(pack_element(tag, (raw.VR or "").encode(), value))
        return cls(b"".join(parts), is_little_endian)

    def _split(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield tag, VR (empty if implicit) and value of each element."""
        at = 0
        while at < len(self.packed):
            number, vr, length = _ELEMENT.unpack_from(self.packed, at)
            at += _ELEMENT.size
            yield number, vr, self.packed[at : at + length]
            at += length

    def to_dataset(self) -> Dataset:
        """Return the elements as a dataset that decodes them when they are used."""
        found: dict[BaseTag, DataElement | RawDataElement] = {}
        encodings = default_encoding
        for number, vr, kept in self._split():
            name = vr.rstrip(b"\0").decode() or None
            empty = cast("bytes | None", empty_value_for_VR(name, raw=True))
            length, value = len(kept), kept or empty
            raw = RawDataElement(BaseTag(number), name, length, value, 0, name is None, self.is_little_endian)
            found[raw.tag] = raw
            if number == _CHARACTER_SET:
                encodings = _find_encodings(raw)
        dataset = Dataset(found)
        dataset.set_original_encoding(False, self.is_little_endian, encodings)
        return dataset


def _find_encodings(raw: RawDataElement) -> str:
    # a damaged value raises anything when it is first used
    try:
        # a list of names, where pydicom's own stub of set_original_encoding wants one
        return convert_encodings(convert_raw_data_element(raw).value)  # type: ignore[return-value]
    except Exception:
        return default_encoding
