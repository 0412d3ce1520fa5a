"""
Synthetic chest CT and X-ray studies, written as valid DICOM.

For demos and tests that can't ship real scans: a schematic chest with lungs, vessels, heart, bones and, in
some patients, lesions, imaged by fictional scanners that differ in kernel, spacing, orientation and encoding.

Phantoms depict no real person or scanner, and must not be used for any medical conclusion.

Examples
--------
>>> ct = chest_ct(0, label="consolidation", slices=3, size=64)
>>> ct.array.shape
(3, 64, 64)
"""

from medimg.phantom.ct import PhantomCT, chest_ct
from medimg.phantom.dataset import write_ct_dataset, write_xray_dataset
from medimg.phantom.dicom_ct import WrittenSlice, write_ct_series
from medimg.phantom.dicom_modules import Identity
from medimg.phantom.dicom_xray import write_xray_image
from medimg.phantom.lesions import CLASSES, Lesion
from medimg.phantom.patient import Habitus
from medimg.phantom.scanner import CT_SCANNERS, XRAY_SCANNERS, CTScanner, XrayScanner
from medimg.phantom.xray import PhantomXray, chest_xray

__all__ = [
    "CLASSES",
    "CT_SCANNERS",
    "XRAY_SCANNERS",
    "CTScanner",
    "Habitus",
    "Identity",
    "Lesion",
    "PhantomCT",
    "PhantomXray",
    "WrittenSlice",
    "XrayScanner",
    "chest_ct",
    "chest_xray",
    "write_ct_dataset",
    "write_ct_series",
    "write_xray_dataset",
    "write_xray_image",
]
