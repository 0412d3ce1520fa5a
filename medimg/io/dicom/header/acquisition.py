"""Elements of a header that describe acquisition and patient, kept undecoded by the pass over headers."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, cast

from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element, empty_value_for_VR
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from medimg.io.dicom.header.open import to_tag_numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from medimg.io.dicom.header.elements import Element

__all__ = ["ACQUISITION_TAGS", "MAX_VALUE_BYTES", "NUMBERED", "NUMBERS", "TEXTS", "AcquisitionElements"]

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
_EXPLICIT: Final = struct.Struct("<HH2sH")
_IMPLICIT: Final = struct.Struct("<HHI")


@dataclass(frozen=True, slots=True)
class AcquisitionElements:
    """Values of :data:`ACQUISITION_TAGS` as bytes; excluded from the repr, as they can identify."""

    packed: bytes = field(repr=False)
    is_little_endian: bool = True
    #: Whether the elements are as in the header of the file, explicit or implicit; else as packed here.
    header: Literal["explicit", "implicit"] | None = None

    @classmethod
    def from_header(cls, head: bytes, elements: Sequence[Element]) -> AcquisitionElements | None:
        """Copy elements of a little-endian header; None if one is too long."""
        parts, is_short = [], True
        for _, at, value, length, _, _ in elements:
            if length > MAX_VALUE_BYTES:
                return None
            if value - at != _EXPLICIT.size:
                is_short = False
            parts.append(head[at : value + length])
        if not is_short:
            return cls.pack((e.tag, e.vr, head[e.value : e.value + e.length]) for e in elements)
        explicit = bool(elements and elements[0].vr)
        return cls(b"".join(parts), header="explicit" if explicit else "implicit")

    @classmethod
    def pack(cls, elements: Iterable[tuple[int, bytes, bytes]]) -> AcquisitionElements:
        """Pack the tag, VR (empty if implicit) and little-endian value of elements."""
        return cls(b"".join(_ELEMENT.pack(tag, vr, len(value)) + value for tag, vr, value in elements))

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
            parts.append(_ELEMENT.pack(tag, (raw.VR or "").encode(), len(value)) + value)
        return cls(b"".join(parts), is_little_endian)

    def _split(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield tag, VR (empty if implicit) and value of each element."""
        at, vr = 0, b""
        while at < len(self.packed):
            if self.header is None:
                number, vr, length = _ELEMENT.unpack_from(self.packed, at)
                at += _ELEMENT.size
            else:
                if self.header == "explicit":
                    group, element, vr, length = _EXPLICIT.unpack_from(self.packed, at)
                else:
                    group, element, length = _IMPLICIT.unpack_from(self.packed, at)
                number, at = group << 16 | element, at + _EXPLICIT.size
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
