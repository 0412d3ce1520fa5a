"""Every attribute that distinguishes images at one position does so, wherever the standard puts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.datadict import dictionary_description, dictionary_VM, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

import medimg
from medimg.errors import DuplicateSlicesError, MedimgWarning
from medimg.io.dicom.header import distinguishing_attributes
from medimg.io.dicom.header.functional_groups import Evaluation, FrameViews
from tests.dicom_files import make_instance, write
from tests.sampling import sample

PLACES = (0.0, 2.0)
#: Attributes by the sequence that holds them in functional groups (PS3.3 C.7.6.16.2 and the modules of IODs).
MACROS = {
    "CTAcquisitionTypeSequence": ("AcquisitionType", "TubeAngle"),
    "CTAcquisitionDetailsSequence": ("DataCollectionDiameter",),
    "CTReconstructionSequence": (
        *("ConvolutionKernel", "ReconstructionAlgorithm", "ImageFilter", "ReconstructionDiameter"),
        *("ReconstructionFieldOfView", "ReconstructionAngle"),
    ),
    "CTTableDynamicsSequence": ("TableSpeed", "TableFeedPerRotation", "SpiralPitchFactor"),
    "CTXRayDetailsSequence": ("KVP", "FilterType", "FilterMaterial", "FocalSpots"),
    "CardiacSynchronizationSequence": (
        *("NominalPercentageOfCardiacPhase", "NominalCardiacTriggerDelayTime"),
        *("NominalCardiacTriggerTimePriorToRPeak", "ActualCardiacTriggerDelayTime", "RRIntervalTimeNominal"),
    ),
    "ContrastBolusUsageSequence": (
        *("ContrastBolusAgentPhase", "ContrastBolusAgentAdministered", "ContrastBolusAgentDetected"),
        "ContrastBolusAgentNumber",
    ),
    "DerivationImageSequence": ("DerivationCodeSequence",),
    "FrameAnatomySequence": ("FrameLaterality",),
    "FrameContentSequence": (
        *("CardiacCyclePosition", "RespiratoryCyclePosition", "StackID", "TemporalPositionIndex"),
        *("DimensionIndexValues", "FrameAcquisitionNumber", "FrameLabel", "FrameAcquisitionDateTime"),
        *("FrameReferenceDateTime", "FrameAcquisitionDuration", "FrameComments"),
    ),
    "ImageDataTypeSequence": ("DataType",),
    "IrradiationEventIdentificationSequence": ("IrradiationEventUID",),
    "MRArterialSpinLabelingSequence": ("ASLContext", "ASLSlabSequence"),
    "MRAveragesSequence": ("NumberOfAverages",),
    "MRDiffusionSequence": (
        *(
            "DiffusionBValue",
            "DiffusionDirectionality",
            "DiffusionAnisotropyType",
            "DiffusionBMatrixSequence",
        ),
    ),
    "MREchoSequence": ("EffectiveEchoTime",),
    "MRFOVGeometrySequence": (
        *("InPlanePhaseEncodingDirection", "MRAcquisitionFrequencyEncodingSteps", "PercentSampling"),
        *("MRAcquisitionPhaseEncodingStepsInPlane", "MRAcquisitionPhaseEncodingStepsOutOfPlane"),
        "PercentPhaseFieldOfView",
    ),
    "MRImageFrameTypeSequence": (
        *("FrameType", "ComplexImageComponent", "AcquisitionContrast", "PixelPresentation"),
    ),
    "MRImagingModifierSequence": (
        *("MagnetizationTransfer", "BloodSignalNulling", "Tagging", "TaggingDelay", "TransmitterFrequency"),
    ),
    "MRMetaboliteMapSequence": ("MetaboliteMapDescription",),
    "MRModifierSequence": (
        *("InversionTimes", "InversionRecovery", "FlowCompensation", "SpatialPresaturation"),
        *("T2Preparation", "SpectrallySelectedExcitation", "PartialFourier", "PartialFourierDirection"),
        *("ParallelAcquisition", "ParallelAcquisitionTechnique", "ParallelReductionFactorInPlane"),
        *("ParallelReductionFactorOutOfPlane", "ParallelReductionFactorSecondInPlane", "Spoiling"),
        *("FlowCompensationDirection", "WaterReferencedPhaseCorrection"),
    ),
    "MRReceiveCoilSequence": ("ReceiveCoilName", "ReceiveCoilType"),
    "MRSpectroscopyFrameTypeSequence": ("FrameType",),
    "MRTimingAndRelatedParametersSequence": (
        *("RepetitionTime", "FlipAngle", "EchoTrainLength", "RFEchoTrainLength", "GradientEchoTrainLength"),
        "GradientOutputType",
    ),
    "MRTransmitCoilSequence": ("TransmitCoilName", "TransmitCoilType"),
    "MRVelocityEncodingSequence": (
        *("VelocityEncodingDirection", "VelocityEncodingMaximumValue", "VelocityEncodingMinimumValue"),
    ),
    "MultienergyCTCharacteristicsSequence": ("MonoenergeticEnergyEquivalent",),
    "PETFrameCorrectionFactorsSequence": (
        *("AttenuationCorrected", "ScatterCorrected", "DecayCorrected", "DeadTimeCorrected"),
        *("RandomsCorrected", "GantryMotionCorrected", "PatientMotionCorrected", "SensitivityCalibrated"),
        *("CountLossNormalizationCorrected", "NonUniformRadialSamplingCorrected"),
        "DetectorNormalizationCorrection",
    ),
    "PETReconstructionSequence": (
        *("ReconstructionType", "IterativeReconstructionMethod", "NumberOfIterations", "NumberOfSubsets"),
    ),
    "PatientPhysiologicalStateSequence": ("PatientPhysiologicalStateCodeSequence",),
    "PixelMeasuresSequence": ("SliceThickness",),
    "RadiopharmaceuticalUsageSequence": ("RadiopharmaceuticalAgentNumber",),
    "RespiratorySynchronizationSequence": (
        *("NominalPercentageOfRespiratoryPhase", "NominalRespiratoryTriggerDelayTime"),
        *("ActualRespiratoryTriggerDelayTime", "StartingRespiratoryAmplitude", "StartingRespiratoryPhase"),
        *("EndingRespiratoryAmplitude", "EndingRespiratoryPhase", "RespiratoryIntervalTime"),
    ),
    "": ("RealWorldValueMappingSequence",),
    "SegmentIdentificationSequence": ("ReferencedSegmentNumber",),
    "TemporalPositionSequence": ("TemporalPositionTimeOffset",),
    "USImageDescriptionSequence": ("FrameType", "VolumetricProperties", "VolumeBasedCalculationTechnique"),
    "XRay3DFrameTypeSequence": ("FrameType",),
}
_TABLE = (*distinguishing_attributes._SERIES_TABLE, *distinguishing_attributes._TEMPORAL_TABLE)
SERIES_KEYWORDS = {
    *(k for row in distinguishing_attributes._SERIES_TABLE for k in row.keywords),
    *("FrameType", "ImageType", "ComplexImageComponent"),
} - {"DiffusionBValue"}
#: Attributes that have a meaning only beside others.
BESIDE: dict[str, dict[str, Any]] = {
    "DiffusionDirectionality": {"DiffusionBValue": 1000},
    "DiffusionGradientOrientation": {"DiffusionBValue": 1000},
}
VALUES: dict[str, tuple[Any, Any]] = {
    "DiffusionDirectionality": ("ISOTROPIC", "DIRECTIONAL"),
    "DiffusionGradientOrientation": ([1, 0, 0], [0, 1, 0]),
    "FrameType": (["ORIGINAL", "PRIMARY", "X" * 30], ["ORIGINAL", "PRIMARY", "Y" * 30]),
    "ImageType": (["ORIGINAL", "PRIMARY", "A", *"BCDEFGH"], ["ORIGINAL", "PRIMARY", "A", *"BCDEFGI"]),
    "DimensionIndexValues": ([1, 1], [1, 2]),
    "EchoNumbers": ([1, 2], [3, 4]),
    "TransmitterFrequency": ([63.8, 25.7], [63.8, 16.7]),
}
#: What distinguishes the items of sequences other than codes.
IN_ITEMS = {
    "ASLSlabSequence": "ASLPulseTrainDuration",
    "DiffusionBMatrixSequence": "DiffusionBValueXY",
    "RealWorldValueMappingSequence": "LUTLabel",
}
BY_VR: dict[str, tuple[Any, Any]] = {
    "CS": ("AB", "CD"),
    "LT": ("one", "other"),
    "SH": ("one (a)", "one (b)"),
    "LO": ("one (a)", "one (b)"),
    "ST": ("one {a}", "one {b}"),
    "UI": ("1.2.3", "1.2.4"),
    "DT": ("20260101101010", "20260101101110"),
    "TM": ("101010", "101110"),
}


def find_values(keyword: str) -> tuple[Any, Any]:
    if keyword in VALUES:
        return VALUES[keyword]
    vr = dictionary_VR(keyword)
    if vr == "SQ":
        content = (Dataset(), Dataset())
        inside = IN_ITEMS.get(keyword, "CodeValue")
        for item, value in zip(content, find_values(inside), strict=True):
            setattr(item, inside, value)
        return Sequence([content[0]]), Sequence([content[1]])
    if vr in BY_VR:
        return BY_VR[vr]
    return ([1, 0, 0], [0, 1, 0]) if dictionary_VM(keyword) == "3" else (10, 20)


def make_pixels(z: float, number: int) -> np.ndarray[Any, Any]:
    return np.full((4, 5), 100 * number + int(z), np.uint16)


def write_classic(folder: Path, keyword: str) -> Path:
    # without Instance Number, nothing but the attribute distinguishes the files
    for number, value in enumerate(find_values(keyword)):
        for z in PLACES:
            ds = make_instance(
                make_pixels(z, number),
                Modality="MR",
                ImagePositionPatient=[0, 0, z],
                **{**BESIDE.get(keyword, {}), keyword: value},
            )
            write(ds, folder / f"{z:g}-{number}.dcm")
    return folder


def set_group(group: Dataset, macro: str, content: Dataset) -> None:
    """Put attributes into the sequence of a macro, or, if they are one, into the group itself."""
    if macro:
        setattr(group, macro, Sequence([content]))
    else:
        group.update(content)


def write_enhanced(path: Path, macro: str, keyword: str) -> Path:
    frames = []
    for number, value in enumerate(find_values(keyword)):
        for z in PLACES:
            group, content, position = Dataset(), Dataset(), Dataset()
            for name, other in {**BESIDE.get(keyword, {}), keyword: value}.items():
                setattr(content, name, other)
            position.ImagePositionPatient = [0, 0, z]
            group.PlanePositionSequence = Sequence([position])
            set_group(group, macro, content)
            frames.append((group, make_pixels(z, number)))
    ds = make_instance(frames[0][1], Modality="MR", ImagePositionPatient=None, NumberOfFrames=len(frames))
    ds.PixelData = b"".join(pixels.tobytes() for _, pixels in frames)
    ds.PerFrameFunctionalGroupsSequence = Sequence([group for group, _ in frames])
    return write(ds, path)


def check_separated(source: Path, keyword: str) -> None:
    """The images of each value are a series or a channel of their own, with nothing interleaved."""
    index = medimg.scan(source)
    assert len(index) == (2 if keyword in SERIES_KEYWORDS else 1)
    volumes = [volume for series in index for volume in series.read(values="rescaled").array]
    expected = [[int(z) + 100 * number - 1024 for z in PLACES] for number in range(2)]
    assert sorted(v[:, 0, 0].tolist() for v in volumes) == expected
    assert all(series.affine[2, 0] == 2 for series in index)
    if len(index) == 1:
        assert len(set(index[0].read().channels)) == 2


CLASSIC = sorted(
    {"ImageType", "ComplexImageComponent"}
    | {k for row in _TABLE if row.in_classic for k in row.keywords} - {"FrameAcquisitionDateTime"}
)
GROUPED = [(macro, keyword) for macro, keywords in MACROS.items() for keyword in keywords]


@pytest.mark.parametrize("keyword", sample(CLASSIC))
def test_attributes_of_classic_files_distinguish_images(tmp_path: Path, keyword: str) -> None:
    check_separated(write_classic(tmp_path, keyword), keyword)


@pytest.mark.filterwarnings("ignore:The value length")
def test_every_attribute_of_a_view_is_read() -> None:
    for macro, keyword in [*((None, keyword) for keyword in CLASSIC), *GROUPED]:
        found = []
        for value in find_values(keyword):
            content, ds = Dataset(), Dataset()
            for name, other in {**BESIDE.get(keyword, {}), keyword: value}.items():
                setattr(content, name, other)
            if macro is not None:
                group = Dataset()
                set_group(group, macro, content)
                ds.PerFrameFunctionalGroupsSequence = Sequence([group])
            view = FrameViews(content if macro is None else ds, 1)[0]
            attributes = distinguishing_attributes.get_series_attributes(Evaluation(view))
            if keyword not in SERIES_KEYWORDS:
                attributes = distinguishing_attributes.get_temporal_attributes(Evaluation(view))
            found.append(attributes)
        assert found[0] != found[1], keyword


@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.parametrize(("macro", "keyword"), sample(GROUPED))
def test_attributes_of_functional_groups_distinguish_frames(tmp_path: Path, macro: str, keyword: str) -> None:
    check_separated(write_enhanced(tmp_path / "enhanced.dcm", macro, keyword), keyword)


@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.parametrize(
    ("keyword", "value"), [("ImageType", "X" * 40), ("StackID", "a (stack), of any text: {é}")]
)
def test_texts_of_any_length_distinguish_images(tmp_path: Path, keyword: str, value: str) -> None:
    for number in range(2):
        for z in PLACES:
            text = f"{value}{number}"
            ds = make_instance(
                make_pixels(z, number),
                ImagePositionPatient=[0, 0, z],
                SpecificCharacterSet="ISO_IR 192",
                **{keyword: ["ORIGINAL", "PRIMARY", text] if keyword == "ImageType" else text},
            )
            write(ds, tmp_path / f"{z:g}-{number}.dcm")
    check_separated(tmp_path, keyword)


def test_frames_that_only_their_order_distinguishes_are_noted(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "enhanced.dcm", "FrameContentSequence", "FrameReferenceTime")
    ds = dcmread(path)
    for group in ds.PerFrameFunctionalGroupsSequence:
        del group.FrameContentSequence
    with pytest.warns(MedimgWarning, match="distinguished by their order in the file alone"):
        assert medimg.read(write(ds, path)).shape == (2, 2, 4, 5)


def test_every_attribute_for_functional_groups_alone_is_tried_in_its_macro() -> None:
    grouped = {keyword for keywords in MACROS.values() for keyword in keywords}
    only = {
        k for row in _TABLE if not row.in_classic for k in row.keywords if not k.startswith("Multienergy")
    }
    assert only <= grouped | {*IN_ITEMS.values()}


def test_an_attribute_that_is_not_asked_leaves_duplicates(tmp_path: Path) -> None:
    with pytest.raises(DuplicateSlicesError):
        medimg.read(write_classic(tmp_path, "ImageComments"), values="rescaled")


def test_what_distinguishes_images_that_form_no_repetition_is_named(tmp_path: Path) -> None:
    for n, (z, phase) in enumerate([(0, 0), (2, 0), (4, 0), (2, 50)]):
        ds = make_instance(
            make_pixels(z, n), ImagePositionPatient=[0, 0, z], NominalPercentageOfRespiratoryPhase=phase
        )
        write(ds, tmp_path / f"{n}.dcm")
    with pytest.raises(
        DuplicateSlicesError, match=r"distinguishes them \(respiratory phase\) forms no complete"
    ):
        medimg.read(tmp_path)


@pytest.mark.parametrize(
    "places",
    [((0, 2, 4), (2,)), ((0, 2), (4, 6)), ((0, 2), (2, 4)), ((0,), (0, 2)), ((0, 2), (0, 2)), ((0,), (2,))],
)
def test_segments_are_never_mixed(tmp_path: Path, places: tuple[tuple[float, ...], ...]) -> None:
    for number, some in enumerate(places):
        for z in some:
            ds = make_instance(
                make_pixels(z, number), ImagePositionPatient=[0, 0, z], ReferencedSegmentNumber=number + 1
            )
            write(ds, tmp_path / f"{number}-{z}.dcm")
    found = {}
    for series in medimg.scan(tmp_path):
        volume = series.read(values="rescaled")
        for name, values in zip(volume.channels, volume.array, strict=True):
            found[name] = [int(v) + 1024 for v in values[:, 0, 0]]
    assert found == {
        f"segment {number + 1}": [100 * number + z for z in some] for number, some in enumerate(places)
    }


def test_two_attributes_distinguish_images_together(tmp_path: Path) -> None:
    for number, (angle, delay) in enumerate([(5, 0), (5, 50), (20, 0), (20, 50)]):
        for z in PLACES:
            ds = make_instance(
                make_pixels(z, number),
                ImagePositionPatient=[0, 0, z],
                FlipAngle=angle,
                NominalPercentageOfCardiacPhase=delay,
            )
            write(ds, tmp_path / f"{z:g}-{number}.dcm")
    volume = medimg.read(tmp_path, values="rescaled")
    assert volume.array.shape[:2] == (4, 2)
    assert {tuple(v.tolist()) for v in volume.array[:, :, 0, 0]} == {
        (100 * n - 1024, 100 * n + 2 - 1024) for n in range(4)
    }


def test_channels_bear_the_numbers_that_distinguish_them(tmp_path: Path) -> None:
    volume = medimg.read(write_classic(tmp_path, "InversionTime"), values="rescaled")
    assert volume.channels == ("inversion time 10", "inversion time 20")


def test_frame_labels_name_no_channel(tmp_path: Path) -> None:
    volume = medimg.read(write_enhanced(tmp_path / "f.dcm", "FrameContentSequence", "FrameLabel"))
    assert volume.channels == ("frame label 0", "frame label 1")


def test_the_guide_lists_every_attribute_in_order() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "reading.rst").read_text(encoding="utf-8")
    at = 0
    for row in _TABLE:
        at = guide.index(f"   * - {row.name}\n", at)
        entry = guide[at : guide.index("\n   * -", at + 1)]
        for keyword in row.keywords:
            name = dictionary_description(keyword)
            assert keyword.startswith("Multienergy") or name in " ".join(entry.split()), keyword
