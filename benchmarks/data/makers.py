"""Headers of several modalities, laid out as many makers do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ImplicitVRLittleEndian

from benchmarks.data.ct import SYNTAXES, encoded
from benchmarks.data.headers import CT_ELEMENTS, ct_header, encapsulate

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

__all__ = ["CLASSES", "MAKERS", "Maker", "shared_header"]


@dataclass(frozen=True, slots=True)
class Maker:
    """
    How a maker lays out headers.

    Attributes
    ----------
    name, modality : str
    codec : str
        "implicit", or one of :data:`~benchmarks.data.ct.SYNTAXES`.
    private : tuple of (int, int)
        Group of each private block, and how many elements it has at most.
    nested : {"none", "lengths", "delimiters"}
        Whether sequences are nested, and how their ends are marked.
    long : int
        Bytes of a private element of group 0029.
    suffix : str
        Of file names.
    """

    name: str
    modality: Literal["CT", "MR", "PT", "CR"]
    codec: str
    private: tuple[tuple[int, int], ...] = ()
    nested: Literal["none", "lengths", "delimiters"] = "none"
    long: int = 0
    suffix: str = ".dcm"

    @property
    def syntax(self) -> UID:
        """The transfer syntax."""
        return ImplicitVRLittleEndian if self.codec == "implicit" else UID(SYNTAXES[self.codec])


MAKERS: Final = (
    Maker("Alder Medical", "CT", "native", ((0x09, 20), (0x19, 40), (0x43, 30)), "lengths"),
    Maker("Birch Healthcare", "MR", "native", ((0x19, 12), (0x51, 20)), "lengths", long=9000),
    Maker("Cedar", "MR", "native", ((0x2001, 60), (0x2005, 80)), "delimiters", suffix=""),
    Maker("Dogwood Systems", "CT", "implicit", ((0x7005, 30),)),
    Maker("Elm Imaging Corporation", "CR", "native", ((0x09, 8), (0x21, 4), (0x29, 30))),
    Maker("Fir", "PT", "implicit", ((0x09, 90), (0x13, 40)), "delimiters"),
    Maker("Ginkgo", "CT", "jpeg_lossless", ((0x19, 8), (0x21, 12), (0x29, 6)), "lengths", long=1500),
    Maker("Hazel X-Ray", "CR", "jpeg_lossless", ((0x19, 10),), "lengths", suffix=""),
    Maker("Ivy MR", "MR", "implicit", ((0x09, 6), (0x19, 30), (0x29, 10)), "delimiters"),
    Maker("Juniper", "CT", "native"),
    Maker("Katsura Medical Systems", "CT", "rle", ((0x45, 16),), "delimiters", suffix=".IMA"),
    Maker("Larch", "PT", "native", ((0x71, 40),), "lengths", long=3000),
)
#: Modality → SOP class.
CLASSES: Final = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
}
_OWN: Final[dict[str, dict[str, Any]]] = {
    "CT": {},
    "MR": {
        "ScanningSequence": ["SE", "IR"],
        "SequenceVariant": "SK",
        "MRAcquisitionType": "2D",
        "RepetitionTime": "4500",
        "EchoTime": "98.3",
        "ImagingFrequency": "123.25",
        "MagneticFieldStrength": "3",
        "EchoTrainLength": "16",
        "FlipAngle": "150",
        "SAR": "0.43",
    },
    "PT": {
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": ["DECY", "ATTN", "SCAT", "NORM"],
        "ActualFrameDuration": "120000",
        "RescaleIntercept": "0",
        "RescaleSlope": "1.5",
    },
    "CR": {"ViewPosition": "PA", "PlateType": "PLATE", "ImagerPixelSpacing": ["0.2", "0.2"]},
}
#: What not every scanner writes.
_OPTIONAL: Final = (
    "InstitutionAddress",
    "StationName",
    "InstitutionalDepartmentName",
    "PatientAge",
    "PatientSize",
    "AdditionalPatientHistory",
    "ProtocolName",
    "PositionReferenceIndicator",
    "ImageComments",
    "BurnedInAnnotation",
    "RequestedProcedureDescription",
    "PerformedProcedureStepDescription",
    "ReferencedStudySequence",
    "ProcedureCodeSequence",
)
#: Attributes of :data:`CT_ELEMENTS` that other modalities with slices have too.
_COMMON: Final = {
    "ImageType",
    "SliceThickness",
    "ImageOrientationPatient",
    "PixelSpacing",
    "WindowCenter",
    "WindowWidth",
    "AcquisitionNumber",
}
_SLICED: Final = {"SliceThickness", "ImageOrientationPatient", "PixelSpacing"}
_SIDE: Final = 16


def shared_header(maker: Maker, series: int) -> FileDataset:
    """
    Everything that the files of one series share.

    Parameters
    ----------
    maker : Maker
    series : int
        From 0; of it depends what is left out, and how long values are.
    """
    rng = np.random.default_rng([17, series])
    pixels = rng.integers(0, 4096, (_SIDE, _SIDE), dtype=np.uint16)
    ds = ct_header(series + 1, pixels)
    ds.remove_private_tags()
    ds.Manufacturer, ds.ManufacturerModelName = maker.name, f"{maker.name.split()[0]} {series % 7}"
    ds.SoftwareVersions = "syn." + ".".join(str(n) for n in range(1, 2 + series % 5))
    ds.PatientID = f"BENCHMARK-{series // 2}"
    _make_modality(ds, maker.modality)
    for keyword in _OPTIONAL:
        if rng.random() < 0.4:
            delattr(ds, keyword)
    _add_private(ds, maker, rng)
    _add_pixels(ds, maker, pixels)
    return ds


def _make_modality(ds: FileDataset, modality: str) -> None:
    """Turn the header of a CT into one of another modality."""
    ds.SOPClassUID = UID(CLASSES[modality])
    if modality != "CT":
        for keyword in set(CT_ELEMENTS) - _COMMON:
            delattr(ds, keyword)
    if modality == "CR":
        for keyword in _SLICED:
            delattr(ds, keyword)
    ds.Modality = modality
    for keyword, value in _OWN[modality].items():
        setattr(ds, keyword, value)


def _add_private(ds: FileDataset, maker: Maker, rng: np.random.Generator) -> None:
    """Private blocks, of whose elements a third is missing, and sequences within them."""
    for group, most in maker.private:
        block = ds.private_block(group, f"{maker.name.upper()} {group:04X}", create=True)
        for n in np.flatnonzero(rng.random(most) < 0.67).tolist():
            vr = ("LO", "DS", "SH", "UN")[n % 4]
            value = "12.5" if vr == "DS" else "x" * (2 * int(rng.integers(1, 9)))
            block.add_new(0x10 + n, vr, value.encode() if vr == "UN" else value)
        if maker.nested != "none":
            block.add_new(0xF0, "SQ", _nested(int(rng.integers(1, 4))))
    if maker.long:
        block = ds.private_block(0x0029, f"{maker.name.upper()} LONG", create=True)
        block.add_new(0x10, "OB", bytes(maker.long))
    if maker.nested == "delimiters":
        _mark_ends(ds)


def _nested(items: int) -> Sequence:
    """Items that hold what matters at the top level too, two levels deep."""
    found = []
    for number in range(items):
        item, inner = Dataset(), Dataset()
        inner.SeriesInstanceUID, inner.InstanceNumber = "1.2.3", str(number)
        item.SOPInstanceUID, item.ReferencedSeriesSequence = "1.2.3.4", Sequence([inner])
        found.append(item)
    return Sequence(found)


def _mark_ends(ds: Dataset) -> None:
    """Write sequences and items of undefined length."""
    for element in ds:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                _mark_ends(item)


def _add_pixels(ds: FileDataset, maker: Maker, pixels: np.ndarray[Any, Any]) -> None:
    if maker.syntax.is_compressed:
        encapsulate(ds, maker.syntax, encoded(pixels, maker.codec))
    else:
        ds.PixelData = pixels.tobytes()
