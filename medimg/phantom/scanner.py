"""Fictional scanners, and the properties of their files."""

from dataclasses import dataclass
from typing import Final

from medimg._validation import did_you_mean
from medimg.errors import DatasetError, also

__all__ = ["CT_SCANNERS", "XRAY_SCANNERS", "CTScanner", "XrayScanner", "find_ct_scanner", "find_xray_scanner"]

EXPLICIT_LE: Final = "1.2.840.10008.1.2.1"
IMPLICIT_LE: Final = "1.2.840.10008.1.2"
RLE_LOSSLESS: Final = "1.2.840.10008.1.2.5"
JPEG_LS_LOSSLESS: Final = "1.2.840.10008.1.2.4.80"


@dataclass(frozen=True)
class CTScanner:
    """
    A CT scanner and its protocol.

    Parameters
    ----------
    name : str
        Short name, used in the tables.
    manufacturer, model : str
        Fictional names, used in the files.
    orientation : str
        "supine", "feet_first", "prone", "coronal" or "oblique".
    kernel : str
        Name of the reconstruction kernel.
    blur, noise, grain : float
        Properties of the kernel: blur (sigma in pixels), noise (standard deviation in HU) and the correlation
        of the noise (sigma in pixels; negative for the high-pass noise of a sharp kernel).
    field_of_view : float
        Width of the image in mm.
    thickness : float
        Slice thickness relative to the distance between slices: above 1 slices overlap, below 1 there are
        gaps between them.
    intercept : int
        Rescale Intercept.
    signed : bool
        Whether stored values are signed.
    padding : int, optional
        Pixel Padding Value outside the round field of view; None for a square one without.
    windows : tuple of tuples
        (center, width, explanation) of each window in the header.
    transfer_syntax : str
        UID of the transfer syntax.
    descending : bool
        Whether Instance Number decreases as the slice position increases.
    kvp : int
        Tube voltage in kV.
    """

    name: str
    manufacturer: str
    model: str
    orientation: str
    kernel: str
    blur: float
    noise: float
    grain: float
    field_of_view: float
    thickness: float = 1.0
    intercept: int = -1024
    signed: bool = False
    padding: int | None = None
    windows: tuple[tuple[float, float, str], ...] = ((40, 400, "SOFT TISSUE"),)
    transfer_syntax: str = EXPLICIT_LE
    descending: bool = False
    kvp: int = 120


@dataclass(frozen=True)
class XrayScanner:
    """
    A digital X-ray (DX) or computed radiography (CR) unit.

    Parameters
    ----------
    name : str
        Short name, used in the tables.
    manufacturer, model : str
        Fictional names, used in the files.
    modality : str
        "DX" or "CR".
    photometric : str
        "MONOCHROME1" or "MONOCHROME2".
    bits_stored : int
        10 to 16.
    voi : str
        "LINEAR" or "SIGMOID" window, or "LUT".
    view : str
        "PA" or "AP"; "both" if the unit is used for either.
    field_of_view : float
        Height of the image in mm, at the detector.
    blur, noise : float
        Blur (sigma in pixels) and noise (standard deviation relative to the range of the image).
    transfer_syntax : str
        UID of the transfer syntax.
    kvp : int
        Tube voltage in kV.
    """

    name: str
    manufacturer: str
    model: str
    modality: str
    photometric: str
    bits_stored: int
    voi: str
    view: str
    field_of_view: float
    blur: float
    noise: float
    transfer_syntax: str = EXPLICIT_LE
    kvp: int = 120


CT_SCANNERS: Final = (
    CTScanner(
        name="aurora-64", manufacturer="Example Medical", model="Aurora 64", orientation="supine",
        kernel="ES30", blur=0.75, noise=14, grain=1.1, field_of_view=390,
        windows=((40, 400, "SOFT TISSUE"), (-600, 1500, "LUNG")),
    ),
    CTScanner(
        name="helix-16", manufacturer="Fictional Imaging", model="Helix 16", orientation="supine",
        kernel="FI70", blur=0.45, noise=34, grain=-0.9, field_of_view=420,
        thickness=1.5, intercept=0, signed=True, windows=((-600, 1600, "LUNG"),),
        transfer_syntax=IMPLICIT_LE,
    ),
    CTScanner(
        name="ring-8", manufacturer="Sample Healthcare", model="Ring 8", orientation="supine",
        kernel="STD", blur=0.7, noise=18, grain=0.8, field_of_view=430,
        thickness=0.5, signed=True, padding=-2000, windows=((50, 350, "MEDIASTINUM"),), descending=True,
    ),
    CTScanner(
        name="aurora-256", manufacturer="Example Medical", model="Aurora 256", orientation="feet_first",
        kernel="ES40", blur=0.6, noise=16, grain=0.7, field_of_view=400,
        thickness=1.25, windows=((-500, 1500, "LUNG"),), transfer_syntax=JPEG_LS_LOSSLESS, kvp=100,
    ),
    CTScanner(
        name="helix-32", manufacturer="Fictional Imaging", model="Helix 32", orientation="prone",
        kernel="FI30", blur=0.75, noise=15, grain=1.0, field_of_view=440,
        intercept=0, signed=True, windows=((35, 450, "SOFT TISSUE"), (-550, 1600, "LUNG")), descending=True,
    ),
    CTScanner(
        name="ring-320", manufacturer="Sample Healthcare", model="Ring 320", orientation="coronal",
        kernel="STD+", blur=0.6, noise=15, grain=0.8, field_of_view=410,
        windows=((40, 400, "SOFT TISSUE"),), transfer_syntax=RLE_LOSSLESS,
    ),
    CTScanner(
        name="aurora-16", manufacturer="Example Medical", model="Aurora 16", orientation="oblique",
        kernel="ES50", blur=0.5, noise=24, grain=-1.2, field_of_view=410,
        thickness=0.8, windows=((-600, 1400, "LUNG"),), kvp=140,
    ),
)  # fmt: skip
"""All CT scanners, the simplest first."""

XRAY_SCANNERS: Final = (
    XrayScanner(
        name="clarity", manufacturer="Example Medical", model="Clarity DR", modality="DX",
        photometric="MONOCHROME2", bits_stored=12, voi="LINEAR", view="PA",
        field_of_view=370, blur=0.6, noise=0.004,
    ),
    XrayScanner(
        name="panel-43", manufacturer="Fictional Imaging", model="Panel 43", modality="DX",
        photometric="MONOCHROME1", bits_stored=14, voi="SIGMOID", view="PA",
        field_of_view=380, blur=0.5, noise=0.005,
        transfer_syntax=JPEG_LS_LOSSLESS, kvp=125,
    ),
    XrayScanner(
        name="plate-10", manufacturer="Sample Healthcare", model="Plate 10", modality="CR",
        photometric="MONOCHROME1", bits_stored=10, voi="LINEAR", view="AP",
        field_of_view=390, blur=1.0, noise=0.008,
        transfer_syntax=IMPLICIT_LE, kvp=90,
    ),
    XrayScanner(
        name="plate-12", manufacturer="Sample Healthcare", model="Plate 12", modality="CR",
        photometric="MONOCHROME2", bits_stored=12, voi="LUT", view="both",
        field_of_view=385, blur=0.8, noise=0.006, kvp=110,
    ),
    XrayScanner(
        name="wing", manufacturer="Example Medical", model="Wing DR", modality="DX",
        photometric="MONOCHROME2", bits_stored=16, voi="LUT", view="PA",
        field_of_view=375, blur=0.55, noise=0.004,
        transfer_syntax=RLE_LOSSLESS, kvp=130,
    ),
)  # fmt: skip
"""All X-ray units, the simplest first."""


def find_ct_scanner(name: str) -> CTScanner:
    """Return a CT scanner by name."""
    for scanner in CT_SCANNERS:
        if scanner.name == name:
            return scanner
    names = [s.name for s in CT_SCANNERS]
    raise also(DatasetError, KeyError)(
        f"unknown CT scanner {name!r}; expected one of {names}{did_you_mean(name, names)}"
    )


def find_xray_scanner(name: str) -> XrayScanner:
    """Return an X-ray unit by name."""
    for scanner in XRAY_SCANNERS:
        if scanner.name == name:
            return scanner
    names = [s.name for s in XRAY_SCANNERS]
    raise also(DatasetError, KeyError)(
        f"unknown X-ray unit {name!r}; expected one of {names}{did_you_mean(name, names)}"
    )
