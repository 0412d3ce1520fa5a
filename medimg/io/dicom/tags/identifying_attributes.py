"""
Attributes that can identify a patient, by the Basic Application Level Confidentiality Profile.

They are those that the profile removes or replaces (PS3.15 Table E.1-1, edition 2026c), all others of the
same value representations, and private and unknown attributes and data.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from pydicom.datadict import dictionary_VR, keyword_for_tag

__all__ = ["is_identifying"]

#: Names, ages, dates and times, network addresses, and texts without a bound.
_VRS: Final = frozenset({"PN", "AS", "DA", "TM", "DT", "AE", "UR", "ST", "LT", "UT", "UC"})
#: UIDs that are those of a standard, not of an object.
_SHARED_UIDS: Final = ("ClassUID", "SOPClasses", "TransferSyntaxUID", "CodingSchemeUID", "ContextUID")
_SHARED_UIDS_BY_NAME: Final = frozenset({"ContextGroupExtensionCreatorUID", "MappingResourceUID"})
#: Group of curves, and of overlays with their data and comments; the last two digits of the group count them.
_CURVES, _OVERLAYS = 0x5000, 0x6000
_OVERLAY_TEXTS: Final = frozenset({0x3000, 0x4000})
#: All others of the table, and Private Information of file meta information.
_TABLE: Final = """
    AccessionNumber AcquisitionContextSequence AcquisitionDeviceProcessingDescription
    AcquisitionFieldOfViewLabel ActualHumanPerformersSequence AdmissionID AdmittingDiagnosesCodeSequence
    AdmittingDiagnosesDescription Allergies AnnotationGroupLabel AuthorObserverSequence BranchOfService
    CassetteID CertificateOfSigner CertifiedTimestamp ChannelDerivationDescription ChannelLabel
    ClinicalTrialCoordinatingCenterName ClinicalTrialProtocolEthicsCommitteeApprovalNumber
    ClinicalTrialProtocolEthicsCommitteeName ClinicalTrialProtocolID ClinicalTrialProtocolName
    ClinicalTrialSeriesDescription ClinicalTrialSeriesID ClinicalTrialSiteID ClinicalTrialSiteName
    ClinicalTrialSponsorName ClinicalTrialSubjectID ClinicalTrialSubjectReadingID ClinicalTrialTimePointID
    ConfidentialityConstraintOnPatientDataDescription ConsultingPhysicianIdentificationSequence
    ContainerComponentID ContainerDescription ContainerIdentifier ContentCreatorIdentificationCodeSequence
    ContentSequence ContrastBolusAgent CountryOfResidence CurrentPatientLocation CustodialOrganizationSequence
    DataSetTrailingPadding DetectorID DeviceDescription DeviceLabel DeviceSerialNumber
    DeviceSettingDescription DigitalSignaturesSequence DischargeDiagnosisDescription
    DisplacementReferenceLabel DistributionAddress DoseReferenceDescription EncapsulatedDocument EntityLabel
    EntityLongLabel EntityName EthnicGroup EthnicGroupCodeSequence FillerOrderNumberImagingServiceRequest
    FlowIdentifier FlowIdentifierSequence FractionGroupDescription FrameOriginTimestamp GPSAltitude
    GPSAltitudeRef GPSAreaInformation GPSDOP GPSDestBearing GPSDestBearingRef GPSDestDistance
    GPSDestDistanceRef GPSDestLatitude GPSDestLatitudeRef GPSDestLongitude GPSDestLongitudeRef GPSDifferential
    GPSImgDirection GPSImgDirectionRef GPSLatitude GPSLatitudeRef GPSLongitude GPSLongitudeRef GPSMeasureMode
    GPSProcessingMethod GPSSpeed GPSSpeedRef GPSStatus GPSTrack GPSTrackRef GPSVersionID GantryID GeneratorID
    GraphicAnnotationSequence HardcopyCreationDeviceID HumanPerformerOrganization IconImageSequence
    InstanceOriginStatus InstitutionCodeSequence InstitutionName InstitutionalDepartmentName
    InstitutionalDepartmentTypeCodeSequence InsurancePlanIdentification
    IntendedRecipientsOfResultsIdentificationSequence InterpretationApproverSequence InterpretationID
    InterpretationIDIssuer IssuerOfAdmissionID IssuerOfAdmissionIDSequence IssuerOfClinicalTrialProtocolID
    IssuerOfClinicalTrialSeriesID IssuerOfClinicalTrialSiteID IssuerOfClinicalTrialSubjectID
    IssuerOfClinicalTrialSubjectReadingID IssuerOfClinicalTrialTimePointID IssuerOfPatientID
    IssuerOfServiceEpisodeID IssuerOfServiceEpisodeIDSequence IssuerOfTheContainerIdentifierSequence
    IssuerOfTheSpecimenIdentifierSequence LensSpecification MAC MakerNote ManufacturerDeviceClassUID
    MedicalAlerts MedicalRecordLocator MilitaryRank ModifiedAttributesSequence ModifiedImageDescription
    ModifyingDeviceID ModifyingSystem MultiplexGroupLabel NonconformingDataElementValue
    NonconformingModifiedAttributesSequence Occupation OperatorIdentificationSequence OrderCallbackPhoneNumber
    OrderEntererLocation OriginalAttributesSequence OtherClinicalTrialProtocolIDsSequence OtherPatientIDs
    OtherPatientIDsSequence ParticipantSequence PatientAddress PatientID PatientInstitutionResidence
    PatientInsurancePlanCodeSequence PatientPrimaryLanguageCodeSequence
    PatientPrimaryLanguageModifierCodeSequence PatientReligiousPreference PatientSex PatientSexNeutered
    PatientSize PatientState PatientTelephoneNumbers PatientTransportArrangements PatientWeight
    PerformedLocation PerformedProcedureStepDescription PerformedProcedureStepID
    PerformedStationGeographicLocationCodeSequence PerformedStationName PerformedStationNameCodeSequence
    PerformingPhysicianIdentificationSequence PersonIdentificationCodeSequence PersonTelephoneNumbers
    PhysiciansOfRecordIdentificationSequence PhysiciansReadingStudyIdentificationSequence
    PlacerOrderNumberImagingServiceRequest PlateID PositionAcquisitionTemplateName PreMedication
    PregnancyStatus PrescriptionNotesSequence PrivateInformation ProtocolName PyramidDescription PyramidLabel
    ROICreatorSequence ROIGenerationDescription ROIInterpreterSequence ROIName ROIObservationLabel
    RTAccessoryDeviceSlotID RTAccessoryHolderSlotID RTPlanLabel RTPlanName RTPrescriptionLabel
    RTToleranceSetLabel RTTreatmentApproachLabel RadiationDoseIdentificationLabel
    RadiationDoseInVivoMeasurementLabel RadiationGenerationModeLabel ReasonForOmissionDescription
    ReasonForRequestedProcedureCodeSequence ReasonForStudy ReasonForTheAttributeModification
    ReasonForTheImagingServiceRequest ReasonForTheRequestedProcedure ReasonForVisitCodeSequence
    ReferencedDigitalSignatureSequence ReferencedImageSequence ReferencedPatientAliasSequence
    ReferencedPatientPhotoSequence ReferencedPatientSequence ReferencedPerformedProcedureStepSequence
    ReferencedSOPInstanceMACSequence ReferencedStudySequence ReferringPhysicianIdentificationSequence
    ReferringPhysicianTelephoneNumbers RegionOfResidence RequestAttributesSequence RequestedContrastAgent
    RequestedProcedureDescription RequestedProcedureID RequestedProcedureLocation RequestedSeriesDescription
    RequestingService ResponsibleOrganization ResultsDistributionListSequence ResultsID ResultsIDIssuer
    ScheduledHumanPerformersSequence ScheduledPatientInstitutionResidence
    ScheduledPerformingPhysicianIdentificationSequence ScheduledProcedureStepDescription
    ScheduledProcedureStepID ScheduledProcedureStepLocation ScheduledStationGeographicLocationCodeSequence
    ScheduledStationName ScheduledStationNameCodeSequence ScheduledStudyLocation SecondaryCaptureDeviceID
    SelectorLOValue SelectorOBValue SelectorSHValue SelectorUNValue SeriesDescription
    ServiceEpisodeDescription ServiceEpisodeID SlideIdentifier SmokingStatus SourceIdentifier
    SourceImageSequence SourceManufacturer SourceOfPreviousValues SourceSerialNumber SpecialNeeds
    SpecimenAccessionNumber SpecimenIdentifier SpecimenPreparationSequence SpecimenShortDescription
    StationName StructureSetLabel StructureSetName StudyDescription StudyID StudyIDIssuer TelephoneNumberTrial
    TextString TimezoneOffsetFromUTC TopicAuthor TopicKeywords TopicTitle TransducerIdentificationSequence
    TreatmentMachineName TreatmentPositionGroupLabel TreatmentSite TreatmentSites UDISequence UserContentLabel
    UserContentLongLabel VerbalSourceIdentifierCodeSequenceTrial VerifyingObserverIdentificationCodeSequence
    VerifyingObserverSequence VerifyingOrganization WaveformAnnotationSequence
"""
_KEYWORDS: Final = frozenset(_TABLE.split())


@lru_cache(maxsize=8192)
def is_identifying(tag: int) -> bool:
    """
    Whether the value of an attribute can identify a patient; private creators don't.

    >>> is_identifying(0x00100010), is_identifying(0x00180060), is_identifying(0x00290010)
    (True, False, False)
    """
    group, element = tag >> 16, tag & 0xFFFF
    if group % 2:
        return not 0x10 <= element <= 0xFF
    if group & 0xFF00 in (_CURVES, _OVERLAYS):
        return group < _OVERLAYS or element in _OVERLAY_TEXTS
    # lengths of groups
    if element == 0:
        return False
    try:
        vr, keyword = dictionary_VR(tag), keyword_for_tag(tag)
    except KeyError:
        return True
    if vr == "UI" and keyword not in _KEYWORDS:
        return not (any(part in keyword for part in _SHARED_UIDS) or keyword in _SHARED_UIDS_BY_NAME)
    return vr in _VRS or keyword in _KEYWORDS
