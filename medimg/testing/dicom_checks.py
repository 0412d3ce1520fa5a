"""Checks of DICOM series against their files; other formats pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from medimg.core import geometry
from medimg.testing._pydicom_reference import compute_values, list_frames, read_dataset, read_facts
from medimg.testing.check import require, series_check

if TYPE_CHECKING:
    import numpy.typing as npt

    from medimg.core.volume import Volume
    from medimg.testing._pydicom_reference import FramePosition
    from medimg.testing.observed_read import Reading

__all__ = ["DICOM_CHECKS"]

_MISPLACED_MM: Final = 0.02
_DIRECTION: Final = 2e-3
_COMPARED: Final = 5


@series_check
def slices_lie_where_their_files_say(reading: Reading) -> None:
    """The affine maps each slice to the position stated in its file, or a warning says that it does not."""
    volume = reading.volume
    positions = _list_positions(volume)
    if not positions or volume.report.missing:
        return
    depth = volume.shape[1]
    corners = geometry.index_to_lps(volume.affine, [(n % depth, 0, 0) for n in range(len(positions))])
    off = np.linalg.norm(corners - np.stack([p.position for p in positions]), axis=1)
    sound = off.max() <= max(_MISPLACED_MM, 0.01 * volume.spacing[0])
    found = f"slice {off.argmax() % depth} is {off.max():.3g} mm off its stated position"
    require(sound or volume.report.warnings, found)


@series_check
def pixels_lie_as_their_files_say(reading: Reading) -> None:
    """Rows and columns have the directions and the spacing that the files state (PS3.3 C.7.6.2.1.1)."""
    volume = reading.volume
    for frame_position in _list_positions(volume):
        x, y = frame_position.orientation.reshape(2, 3)
        expected = np.stack([y * frame_position.spacing[0], x * frame_position.spacing[1]], axis=1)
        off = float(np.abs(volume.affine[:3, 1:3] - expected).max())
        require(off <= _DIRECTION * float(frame_position.spacing.max()), f"axes that are {off:.3g} mm off")


@series_check
def slices_ascend_along_their_normal(reading: Reading) -> None:
    """DICOM slices are sorted along X×Y, rows before columns: the axes (W, H, D) are right-handed."""
    volume = reading.volume
    if reading.series.format != "DICOM" or volume.space != "patient":
        return
    w_h_d = volume.affine[:3, [2, 1, 0]]
    require(np.linalg.det(w_h_d) > 0, "axes (W, H, D) that are left-handed")


@series_check
def instances_are_those_of_the_files(reading: Reading) -> None:
    """SOP Instance UIDs are those of the files, in order if each file holds one slice."""
    report = reading.volume.report
    uids = report.sop_instance_uids
    if reading.series.format != "DICOM" or not uids:
        return
    stated = [read_facts(name).uid for name in report.files]
    require(set(filter(None, uids)) <= set(stated), "UIDs that are those of no file")
    if len(stated) == len(uids):
        wrong = [n for n, (s, found) in enumerate(zip(stated, uids, strict=True)) if found and s != found]
        require(not wrong, f"{len(wrong)} UIDs of other files, the first at {wrong[:1]}")


@series_check
def values_are_rescaled_stored_values(reading: Reading) -> None:
    """Values are slope · stored + intercept: never windowed, inverted or normalized, not even MONOCHROME1."""
    volume = reading.volume
    c, depth = volume.shape[:2]
    frames = list_frames(volume)
    if volume.is_color or len(frames) not in {depth, c * depth}:
        return
    # SUV, dose and manufacturers' scales multiply all values of a slice, and are in the report
    is_scaled = any(not step.startswith("rescaled") for step in volume.report.transforms)
    name, header = "", None
    for n in sorted({round(share * (len(frames) - 1) / (_COMPARED - 1)) for share in range(_COMPARED)}):
        before, (name, frame) = name, frames[n]
        header = header if name == before else read_dataset(name, pixels=True)
        expected = None if header is None else compute_values(header, frame)
        if expected is None:
            continue
        found = volume.array[n // depth, n % depth].astype(np.float64)
        require(found.shape == expected.shape, f"a slice of the shape {found.shape}")
        if is_scaled:
            expected = expected * max(0.0, _fit_ratio(found, expected))
        scale = max(1.0, float(np.abs(expected).max()))
        off = float(np.abs(found - expected).max())
        require(off <= 1e-5 * scale, f"values of slice {n % depth} that are {off:g} off")


def _fit_ratio(found: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> float:
    total = float((expected * expected).sum())
    return float((found * expected).sum()) / total if total else 1.0


def _list_positions(volume: Volume) -> list[FramePosition]:
    """Return the position of each slice, channel by channel; none if a file does not state it."""
    positions: list[FramePosition] = []
    if volume.space != "patient":
        return positions
    for name, frame in list_frames(volume):
        known = read_facts(name).positions
        if frame >= len(known):
            return []
        positions.append(known[frame])
    return positions


#: Checks of DICOM series, in addition to those of all series.
DICOM_CHECKS: Final = (
    slices_lie_where_their_files_say,
    pixels_lie_as_their_files_say,
    slices_ascend_along_their_normal,
    instances_are_those_of_the_files,
    values_are_rescaled_stored_values,
)
