"""What a series of DICOM files must satisfy, told by the files themselves; other formats pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from medimg.core import geometry
from medimg.testing.checks import contract, require
from medimg.testing.raw import dataset_of, frame_places, is_mosaic, native_values

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from medimg.core.volume import Volume
    from medimg.testing.raw import FramePlace
    from medimg.testing.reading import Reading

__all__ = ["DICOM_CHECKS"]

_MISPLACED_MM: Final = 0.02
_DIRECTION: Final = 2e-3


@contract
def slices_lie_where_their_files_say(reading: Reading) -> None:
    """The affine leads each slice to the position that its file states, or a warning says that it doesn't."""
    volume = reading.volume
    places = _places(volume)
    if not places or volume.report.missing:
        return
    stated = np.stack([p.position for p in places])
    depth = volume.shape[1]
    corners = geometry.index_to_lps(volume.affine, [(d, 0, 0) for d in range(depth)])
    tolerance = max(_MISPLACED_MM, 0.01 * volume.spacing[0])
    if len(places) == depth and len(volume.report.files) == depth:
        off = np.linalg.norm(corners - stated, axis=1)
    else:
        off = np.asarray([np.linalg.norm(stated - corner, axis=1).min() for corner in corners])
    said = bool(volume.report.warnings)
    require(
        said or off.max() <= tolerance, f"slice {off.argmax()} is {off.max():.3g} mm off its stated position"
    )


@contract
def pixels_lie_as_their_files_say(reading: Reading) -> None:
    """Rows and columns have the directions and the spacing that the files state (PS3.3 C.7.6.2.1.1)."""
    volume = reading.volume
    for place in _places(volume)[:1]:
        x, y = place.orientation.reshape(2, 3)
        expected = np.stack([y * place.spacing[0], x * place.spacing[1]], axis=1)
        off = float(np.abs(volume.affine[:3, 1:3] - expected).max())
        require(off <= _DIRECTION * float(place.spacing.max()), f"axes that are {off:.3g} mm off")


@contract
def slices_ascend_along_their_normal(reading: Reading) -> None:
    """Slices of DICOM are sorted along X×Y, rows before columns: the axes (W, H, D) are right-handed."""
    volume = reading.volume
    if reading.series.format != "DICOM" or volume.space != "patient":
        return
    w_h_d = volume.affine[:3, [2, 1, 0]]
    require(np.linalg.det(w_h_d) > 0, "axes (W, H, D) that are left-handed")


@contract
def instances_are_those_of_the_files(reading: Reading) -> None:
    """SOP Instance UIDs of single-frame files are those of the files, in the order of the slices."""
    report = reading.volume.report
    uids = report.sop_instance_uids
    if reading.series.format != "DICOM" or len(report.files) != len(uids):
        return
    headers = [dataset_of(name) for name in report.files]
    stated = [str(h.get("SOPInstanceUID", "")) if h is not None else "" for h in headers]
    wrong = [n for n, (s, found) in enumerate(zip(stated, uids, strict=True)) if found and s != found]
    require(not wrong, f"{len(wrong)} UIDs that are not those of their files, the first at {wrong[:1]}")


@contract
def values_are_rescaled_stored_values(reading: Reading) -> None:
    """Values are slope · stored + intercept: never windowed, inverted or normalized, MONOCHROME1 neither."""
    volume = reading.volume
    c, d = volume.shape[:2]
    files = volume.report.files
    if reading.series.format != "DICOM" or (c, len(files)) != (1, d):
        return
    for place in sorted({0, d // 2, d - 1}):
        header = dataset_of(files[place], pixels=True)
        expected = None if header is None or is_mosaic(header) else native_values(header)
        if expected is None:
            continue
        found = volume.array[0, place].astype(np.float64)
        require(found.shape == expected.shape, f"a slice of the shape {found.shape}")
        if volume.modality == "PT":
            # body weight and dose scale all values of a slice alike
            expected = expected * _ratio(found, expected)
        scale = max(1.0, float(np.abs(expected).max()))
        off = float(np.abs(found - expected).max())
        require(off <= 1e-5 * scale, f"values of slice {place} that are {off:g} off")


def _ratio(found: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> float:
    total = float((expected * expected).sum())
    return float((found * expected).sum()) / total if total else 1.0


def _places(volume: Volume) -> list[FramePlace]:
    """Return where each frame of the files lies; nothing where one doesn't say, or isn't a slice."""
    if volume.report.format != "DICOM" or volume.space != "patient":
        return []
    headers: list[Dataset | None] = [dataset_of(name) for name in dict.fromkeys(volume.report.files)]
    places: list[FramePlace] = []
    for header in headers:
        found = None if header is None or is_mosaic(header) else frame_places(header)
        if found is None:
            return []
        places += found
    return places


#: What series of DICOM must satisfy, beside what all series must.
DICOM_CHECKS: Final = (
    slices_lie_where_their_files_say,
    pixels_lie_as_their_files_say,
    slices_ascend_along_their_normal,
    instances_are_those_of_the_files,
    values_are_rescaled_stored_values,
)
