"""Attributes that identify: by the standard's profile, and nothing that describes images alone."""

from __future__ import annotations

import pytest
from pydicom._dicom_dict import DicomDictionary
from pydicom.tag import Tag

from medimg.data.acquisition_tags import NUMBERS, TEXTS
from medimg.io.dicom.tags.identifying_attributes import _TABLE, is_identifying


@pytest.mark.parametrize(
    "name",
    [
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientWeight",
        "OtherPatientIDs", "StudyDate", "AcquisitionDateTime", "SeriesTime", "AccessionNumber",
        "StudyDescription",
        "SeriesDescription", "ProtocolName", "InstitutionName", "StationName", "DeviceSerialNumber",
        "SOPInstanceUID",
        "StudyInstanceUID", "FrameOfReferenceUID", "MediaStorageSOPInstanceUID",
        "SourceApplicationEntityTitle", "ImageComments",
        "RequestAttributesSequence", "ContentSequence", "OriginalAttributesSequence", "IconImageSequence",
        0x50003000, 0x60003000, 0x60024000, 0x00291010, 0x00290001, 0x00081234,
    ],
)  # fmt: skip
def test_is_identifying(name: str | int) -> None:
    assert is_identifying(int(Tag(name)))


@pytest.mark.parametrize(
    "name",
    [
        *TEXTS, *NUMBERS, "ImageType", "SOPClassUID", "MediaStorageSOPClassUID", "TransferSyntaxUID",
        "ReferencedSOPClassUID", "CodingSchemeUID", "SpecificCharacterSet", "InstanceNumber", "Rows",
        "ImagePositionPatient", "SharedFunctionalGroupsSequence", "RadiopharmaceuticalInformationSequence",
        0x00290010, 0x60000010, 0x00280000,
    ],
)  # fmt: skip
def test_is_not_identifying(name: str | int) -> None:
    assert not is_identifying(int(Tag(name)))


def test_the_table_has_keywords_only() -> None:
    known = {entry[4]: tag for tag, entry in DicomDictionary.items()}
    names = _TABLE.split()
    assert names == sorted(set(names))
    assert all(is_identifying(known[name]) for name in names)
