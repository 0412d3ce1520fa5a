"""Which of many real files a run takes: of alike ones a few, all with ``MEDIMG_SLOW=1``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from functools import cache
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from medimg.io.dicom.header.attributes import quiet_pydicom
from tests.sampling import SLOW, sample

#: Folders of real scans.
SETS = (
    "dcmstack_multiecho",
    "dicom2nifti_dev",
    "fodicom_dev",
    "highdicom",
    "lidc_3pat_excerpt",
    "nema_enhmr_dev",
    "nifti_space_dev",
    "pydicom-data",
    "pydicom_examples",
    "pylibjpeg-data",
    "torchxrayvision_cxr",
    "wg04_dev",
)
#: What tells kinds of images apart: by their values, and by whether there are any.
VALUES = (
    "SOPClassUID", "Modality", "PhotometricInterpretation", "SamplesPerPixel", "PlanarConfiguration",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip
PRESENT = (
    "ExtendedOffsetTable", "ModalityLUTSequence", "NumberOfFrames", "PerFrameFunctionalGroupsSequence",
    "PixelPaddingValue", "PresentationLUTShape", "RealWorldValueMappingSequence", "RescaleSlope",
    "VOILUTFunction", "VOILUTSequence", "WindowCenter",
)  # fmt: skip

#: Files in a folder that are taken for one long series, and how many of these are taken.
LONG, FEW = 30, 12


@cache
def kind(path: Path) -> tuple[object, ...]:
    """What decides how a file is read: its encoding, its form, and which attributes change its values."""
    wanted = ["SpecificCharacterSet", *VALUES, *PRESENT]
    with quiet_pydicom():
        try:
            dataset = pydicom.dcmread(path, force=True, specific_tags=wanted, stop_before_pixels=True)
            syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
            values = (str(dataset.get(name, "")) for name in VALUES)
            return (syntax, *values, *(name in dataset for name in PRESENT))
        except (InvalidDicomError, OSError):
            return ("no DICOM",)
        # damaged files raise anything: each is a kind of its own
        except Exception:
            return (str(path),)


def of_each_kind(paths: Iterable[Path], always: Container[str] = ()) -> list[Path]:
    """Return the smallest file of each kind, and those of some names; all with ``MEDIMG_SLOW=1``."""
    every = list(paths)
    if SLOW:
        return every
    smallest: dict[tuple[object, ...], Path] = {}
    for path in every:
        known = smallest.get(kind(path))
        if known is None or path.stat().st_size < known.stat().st_size:
            smallest[kind(path)] = path
    chosen = set(smallest.values())
    return [path for path in every if path in chosen or path.name in always]


def of_each_folder(root: Path) -> Iterator[Path]:
    """Yield the files of each folder, of long series twelve alone; all with ``MEDIMG_SLOW=1``."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        folders[path.parent].append(path)
    for paths in folders.values():
        yield from paths if len(paths) <= LONG else sample(paths, every=-(-len(paths) // FEW))


def of_first_files(root: Path, most: int = 12) -> list[Path]:
    """Return the first DICOM file of each of some folders of test data."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    first = (next((p for p in sorted(folder.rglob("*")) if _is_dicom(p)), None) for folder in folders[:most])
    return [path for path in first if path is not None]


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
