"""Attributes of the patient and the study, copied from the source as they are."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from pydicom import charset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.valuerep import PersonName

from medimg.errors import ConversionError
from medimg.io.dicom.header.attributes import quiet_pydicom

if TYPE_CHECKING:
    from collections.abc import Iterator


__all__ = ["STUDY_KEYWORDS", "copy_study", "set_character_set"]

#: Modules Patient, Clinical Trial Subject, General Study, Patient Study and Clinical Trial Study (PS3.3
#: C.7.1.1, C.7.1.3, C.7.2.1, C.7.2.2, C.7.2.3), attributes retired from them, and the time zone of dates.
_TABLE: Final = """
    PatientName PatientID IssuerOfPatientID TypeOfPatientID IssuerOfPatientIDQualifiersSequence
    SourcePatientGroupIdentificationSequence GroupOfPatientsIdentificationSequence PatientBirthDate
    PatientBirthTime PatientBirthDateInAlternativeCalendar PatientDeathDateInAlternativeCalendar
    PatientAlternativeCalendar PatientSex QualityControlSubject StrainDescription StrainNomenclature
    StrainStockSequence StrainAdditionalInformation StrainCodeSequence GeneticModificationsSequence
    OtherPatientIDs OtherPatientNames OtherPatientIDsSequence ReferencedPatientSequence
    ReferencedPatientPhotoSequence EthnicGroup EthnicGroupCodeSequence PatientSpeciesDescription
    PatientSpeciesCodeSequence PatientBreedDescription PatientBreedCodeSequence BreedRegistrationSequence
    ResponsiblePerson ResponsiblePersonRole ResponsibleOrganization PatientComments PatientIdentityRemoved
    DeidentificationMethod DeidentificationMethodCodeSequence



    ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName
    IssuerOfClinicalTrialProtocolID OtherClinicalTrialProtocolIDsSequence ClinicalTrialSiteID
    ClinicalTrialSiteName IssuerOfClinicalTrialSiteID ClinicalTrialSubjectID IssuerOfClinicalTrialSubjectID
    ClinicalTrialSubjectReadingID IssuerOfClinicalTrialSubjectReadingID
    ClinicalTrialProtocolEthicsCommitteeName ClinicalTrialProtocolEthicsCommitteeApprovalNumber

    StudyInstanceUID StudyDate StudyTime AccessionNumber IssuerOfAccessionNumberSequence StudyID
    StudyDescription ReferringPhysicianName ReferringPhysicianIdentificationSequence ConsultingPhysicianName
    ConsultingPhysicianIdentificationSequence ProcedureCodeSequence PhysiciansOfRecord
    PhysiciansOfRecordIdentificationSequence NameOfPhysiciansReadingStudy
    PhysiciansReadingStudyIdentificationSequence ReferencedStudySequence RequestingService
    RequestingServiceCodeSequence ReasonForPerformedProcedureCodeSequence

    AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence PatientAge PatientSize
    PatientSizeCodeSequence PatientBodyMassIndex MeasuredAPDimension MeasuredLateralDimension PatientWeight
    MedicalAlerts Allergies Occupation SmokingStatus AdditionalPatientHistory PregnancyStatus
    LastMenstrualDate PatientSexNeutered ReasonForVisit ReasonForVisitCodeSequence AdmissionID
    IssuerOfAdmissionID IssuerOfAdmissionIDSequence ServiceEpisodeID ServiceEpisodeDescription
    IssuerOfServiceEpisodeID IssuerOfServiceEpisodeIDSequence PatientState

    ClinicalTrialTimePointID ClinicalTrialTimePointDescription LongitudinalTemporalOffsetFromEvent
    LongitudinalTemporalEventType ClinicalTrialTimePointTypeCodeSequence IssuerOfClinicalTrialTimePointID
    ConsentForClinicalTrialUseSequence

    TimezoneOffsetFromUTC
"""
#: Without those of editions that pydicom does not know yet.
STUDY_KEYWORDS: Final = tuple(k for k in _TABLE.split() if tag_for_keyword(k) is not None)
#: Attributes that are present in every object, empty if unknown.
_TYPE_2: Final = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName"),
)
_NUMBERS: Final = frozenset({"DS", "IS"})
_TEXTS: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_UNDECODED: Final = "\ufffd"
_UTF_8: Final = "ISO_IR 192"


def copy_study(header: Dataset, target: Dataset, path: str) -> None:
    """Copy all attributes of patient and study, and remove those that the source does not have."""
    with quiet_pydicom():
        for keyword in STUDY_KEYWORDS:
            tag = Tag(keyword)
            if tag in target:
                del target[tag]
            if tag in header:
                target[tag] = _copy_element(header, tag, keyword, path)
            elif keyword in _TYPE_2:
                setattr(target, keyword, "")


def _copy_element(header: Dataset, tag: int, keyword: str, path: str) -> DataElement:
    raw = header.get_item(tag)
    try:
        found = copy.deepcopy(header[tag])
        if found.VR == "SQ":
            for item in found.value:
                item.remove_private_tags()
                _load(item)
        is_decoded = _UNDECODED not in "".join(_list_texts(found))
    # a damaged element can raise anything, and texts of pydicom quote values
    except Exception:
        number = _copy_number(raw)
        if number is None:
            raise ConversionError(
                f"{path}: {keyword} is present but can't be parsed, so that it can't be copied; correct it"
            ) from None
        return number
    if not is_decoded:
        raise ConversionError(
            f"{path}: {keyword} has characters that are not of its SpecificCharacterSet, so that it can't be "
            "copied without loss; correct one of them"
        )
    return found


def _copy_number(raw: Any) -> DataElement | None:
    """Return a text that is no number, which is copied as it is written."""
    if not isinstance(raw, RawDataElement) or raw.VR not in _NUMBERS or raw.value is None:
        return None
    found = DataElement(raw.tag, raw.VR, None)
    found._value = raw.value.decode("latin-1").rstrip("\0 ")
    return found


def _load(item: Dataset) -> None:
    """Parse all elements of an item, which are then encoded as the copy is."""
    for element in item:
        if element.VR == "SQ":
            for one in element.value:
                _load(one)


def _list_texts(element: DataElement) -> Iterator[str]:
    """Yield the texts of an element, and of the items of a sequence."""
    if element.VR == "SQ":
        for item in element.value:
            for one in item:
                yield from _list_texts(one)
    elif element.VR in _TEXTS:
        value = element.value
        for one in value if isinstance(value, MultiValue | list) else [value]:
            yield str(one) if isinstance(one, str | PersonName) else ""


def set_character_set(header: Dataset, target: Dataset, path: str) -> None:
    """
    Declare the character set of the source, if it has all characters of the result, and else UTF-8.

    Raises ConversionError if the source declares none for texts that need one, and the result has others.
    """
    with quiet_pydicom():
        declared = header.get("SpecificCharacterSet")
        texts = [text for element in target for text in _list_texts(element) if not text.isascii()]
        if _can_encode(declared, texts):
            if declared:
                target.SpecificCharacterSet = declared
            return
        copied = [target[k] for k in STUDY_KEYWORDS if k in target]
        undeclared = not declared and any(not text.isascii() for one in copied for text in _list_texts(one))
        if undeclared:
            raise ConversionError(
                f"{path} has texts that are not ASCII and no SpecificCharacterSet, so that names of classes "
                "that are not ASCII can't be added; give it its character set, or rename the classes"
            )
        target.SpecificCharacterSet = _UTF_8


def _can_encode(declared: Any, texts: list[str]) -> bool:
    """Whether a character set has all characters of texts; none declared is Latin-1, as pydicom reads it."""
    try:
        encodings = charset.convert_encodings(declared)
    except (LookupError, ValueError):
        encodings = ["iso8859"]
    for text in texts:
        try:
            encoded = charset.encode_string(text, encodings)
        except UnicodeError:
            return False
        if charset.decode_bytes(encoded, encodings, set(map(ord, "\r\n\t\f"))) != text:
            return False
    return True
