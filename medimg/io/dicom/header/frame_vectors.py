"""
Position, time and labels of frames in multi-frame files without functional groups.

RT Dose: Grid Frame Offset Vector (PS3.3 C.8.8.3.2). Reconstructed nuclear medicine: the first slice in the
Detector Information Sequence (C.8.4.11), Slice Vector, and Spacing Between Slices, whose sign gives the
direction (C.8.4.15); labels are the other vectors (C.8.4.8). Cines: Frame Time (Vector), Cine Rate,
Recommended Display Frame Rate (C.7.6.5).
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from medimg.errors import DecodeError, GeometryError
from medimg.io.dicom.header.attributes import (
    get_code,
    get_codes,
    get_floats,
    get_identifier,
    get_integer,
    get_items,
    get_value,
    has_value,
    parse_number,
)
from medimg.io.dicom.header.element_values import note_finding
from medimg.io.dicom.header.frame_attributes import MAX_COORDINATE_MM

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom.dataset import Dataset

__all__ = [
    "FRAME_VECTOR_TAGS",
    "compute_frame_positions",
    "compute_frame_times",
    "get_frame_orientation",
    "parse_dose_scaling",
    "parse_frame_vectors",
]

Point: TypeAlias = tuple[float, float, float]

_VECTORS: Final = (
    "EnergyWindowVector",
    "DetectorVector",
    "PhaseVector",
    "RotationVector",
    "RRIntervalVector",
    "TimeSlotVector",
    "AngularViewVector",
)

#: Tags that a header-only read must include for this module.
FRAME_VECTOR_TAGS: Final[list[str | int]] = [
    *_VECTORS,
    "CineRate",
    "DetectorInformationSequence",
    "DoseGridScaling",
    "FrameIncrementPointer",
    "FrameTime",
    "FrameTimeVector",
    "GridFrameOffsetVector",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "Modality",
    "NumberOfFrames",
    "RecommendedDisplayFrameRate",
    "SOPClassUID",
    "SliceVector",
    "SpacingBetweenSlices",
]

_RT_DOSE: Final = "1.2.840.10008.5.1.4.1.1.481.2"
_RECONSTRUCTED: Final = frozenset({"RECON TOMO", "RECON GATED TOMO"})
_MAX_FRAMES: Final = 2**20
_FRAME_TIME_VECTOR: Final = 0x00181065
#: Absolute offsets begin with the z of Image Position (Patient), which writers round.
_SAME_PLANE_MM: Final = 1e-2


def compute_frame_positions(dataset: Dataset) -> list[Point] | None:
    """
    Return the LPS positions, in millimeters, of the frames of an RT Dose or reconstructed NM file.

    None for other files and planar nuclear medicine; GeometryError if vectors contradict each other or Number
    of Frames.
    """
    if _is_dose(dataset) and has_value(dataset, "GridFrameOffsetVector"):
        return _compute_dose_positions(dataset)
    if _is_reconstructed(dataset):
        return _compute_reconstructed_positions(dataset)
    return None


def get_frame_orientation(dataset: Dataset) -> tuple[float, ...] | None:
    """Return row and column directions (6) of reconstructed nuclear medicine; None for other files."""
    if not _is_reconstructed(dataset):
        return None
    found = get_floats(_find_first_slice(dataset), "ImageOrientationPatient", 6)
    return found if found is not None and _is_orthonormal(found) else None


def _is_dose(dataset: Dataset) -> bool:
    return get_code(dataset, "Modality") == "RTDOSE" or get_identifier(dataset, "SOPClassUID") == _RT_DOSE


def _is_reconstructed(dataset: Dataset) -> bool:
    image_type = get_codes(dataset, "ImageType")[2:3]
    return (
        bool(image_type)
        and image_type[0] in _RECONSTRUCTED
        and has_value(dataset, "DetectorInformationSequence")
    )


def _get_frame_count(dataset: Dataset) -> int:
    count = get_integer(dataset, "NumberOfFrames") or 1
    if not 1 <= count <= _MAX_FRAMES:
        raise DecodeError(f"NumberOfFrames is {count}, 1 to {_MAX_FRAMES} are expected; the file is damaged")
    return count


def _is_orthonormal(found: tuple[float, ...]) -> bool:
    pair = np.array(found).reshape(2, 3)
    return bool(np.allclose(pair @ pair.T, np.eye(2), atol=1e-3))


def _get_plane(dataset: Dataset) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return position (3,) and normal (3,) of the first frame."""
    position = get_floats(dataset, "ImagePositionPatient", 3)
    orientation = get_floats(dataset, "ImageOrientationPatient", 6)
    if position is None or max(abs(v) for v in position) > MAX_COORDINATE_MM:
        raise GeometryError("ImagePositionPatient of the first frame is missing or unusable")
    if orientation is None or not _is_orthonormal(orientation):
        raise GeometryError("ImageOrientationPatient of the first frame is missing or unusable")
    return np.array(position), np.cross(orientation[:3], orientation[3:])


def _to_points(points: npt.NDArray[np.float64]) -> list[Point]:
    return [(float(p[0]), float(p[1]), float(p[2])) for p in points]


def _compute_dose_positions(dataset: Dataset) -> list[Point]:
    count = _get_frame_count(dataset)
    offsets = get_floats(dataset, "GridFrameOffsetVector")
    position, normal = _get_plane(dataset)
    if offsets is None or len(offsets) != count or max(abs(v) for v in offsets) > MAX_COORDINATE_MM:
        raise GeometryError(
            f"GridFrameOffsetVector does not hold {count} usable numbers, one for each of the NumberOfFrames"
        )
    if offsets[0] == 0:
        return _to_points(position + np.array(offsets)[:, None] * normal)
    if abs(offsets[0] - position[2]) > _SAME_PLANE_MM or abs(normal[2]) < 1 - 1e-6:
        raise GeometryError(
            "GridFrameOffsetVector begins neither with 0 nor with the z of ImagePositionPatient of axial "
            "frames (PS3.3 C.8.8.3.2); the positions of the frames are ambiguous"
        )
    points = np.repeat(position[None], count, axis=0)
    points[:, 2] = offsets
    return _to_points(points)


def _find_first_slice(dataset: Dataset) -> Dataset:
    """Return the dataset with the position of the first slice: that of a detector, or the file itself."""
    detectors = get_items(dataset, "DetectorInformationSequence")[:1]
    return next((d for d in detectors if has_value(d, "ImagePositionPatient")), dataset)


def _compute_reconstructed_positions(dataset: Dataset) -> list[Point]:
    count = _get_frame_count(dataset)
    position, normal = _get_plane(_find_first_slice(dataset))
    slices = _parse_vector(dataset, "SliceVector", count) or tuple(range(1, count + 1))
    if max(slices) == 1:
        return _to_points(np.repeat(position[None], count, axis=0))
    gap = get_floats(dataset, "SpacingBetweenSlices", 1)
    if gap is None or not 0 < abs(gap[0]) * max(slices) <= MAX_COORDINATE_MM:
        raise GeometryError("SpacingBetweenSlices of reconstructed slices is missing or unusable")
    return _to_points(position + (np.array(slices)[:, None] - 1) * gap[0] * normal)


def _parse_vector(dataset: Dataset, keyword: str, count: int) -> tuple[int, ...] | None:
    """Return a frame vector, positive integers, one per frame; None if it is absent."""
    if not has_value(dataset, keyword):
        return None
    found = get_floats(dataset, keyword, count)
    if found is None or not all(v.is_integer() and 1 <= v <= _MAX_FRAMES for v in found):
        raise DecodeError(f"{keyword} does not hold {count} positive whole numbers, one for each frame")
    return tuple(int(v) for v in found)


def parse_frame_vectors(dataset: Dataset) -> list[tuple[int, ...]] | None:
    """Return, per frame, its vector values (energy window, detector, phase, …); None if there are none."""
    if get_code(dataset, "Modality") not in {"NM", "PT"} or (count := _get_frame_count(dataset)) == 1:
        return None
    vectors = [v for v in (_parse_vector(dataset, keyword, count) for keyword in _VECTORS) if v is not None]
    return list(zip(*vectors, strict=True)) if vectors else None


def compute_frame_times(dataset: Dataset) -> tuple[float, ...] | None:
    """Return the times of the frames of a cine in seconds after the first one; None if unknown."""
    count = _get_frame_count(dataset)
    if count == 1:
        return None
    if _has_time_vector_pointer(dataset):
        return _accumulate_times(dataset, count)
    for keyword, per_second in (
        ("FrameTime", False),
        ("CineRate", True),
        ("RecommendedDisplayFrameRate", True),
    ):
        found = get_floats(dataset, keyword, 1)
        if found is not None and found[0] > 0:
            step = 1 / found[0] if per_second else found[0] / 1000
            return tuple(step * n for n in range(count))
        # a rate of 0 is a common way to state none
        if found is not None and (found[0] < 0 or not per_second):
            note_finding(f"{keyword} is {found[0]:g}, more than 0 is expected; it is not used")
    return _accumulate_times(dataset, count)


def _has_time_vector_pointer(dataset: Dataset) -> bool:
    pointer = get_value(dataset, "FrameIncrementPointer")
    several = pointer if isinstance(pointer, list | tuple) or hasattr(pointer, "__iter__") else [pointer]
    return any(tag == _FRAME_TIME_VECTOR for tag in several)


def _accumulate_times(dataset: Dataset, count: int) -> tuple[float, ...] | None:
    """Return the sums of Frame Time Vector, whose first increment precedes the first frame."""
    increments = get_floats(dataset, "FrameTimeVector", count)
    if increments is None or min(increments) < 0 or not any(increments[1:]):
        return None
    return tuple(v / 1000 for v in accumulate((0.0, *increments[1:])))


def parse_dose_scaling(dataset: Dataset) -> float | None:
    """Return Dose Grid Scaling (PS3.3 C.8.8.3), the dose of one stored unit; None if it is not an RT Dose."""
    if not _is_dose(dataset) or not has_value(dataset, "DoseGridScaling"):
        return None
    scaling = parse_number(dataset, "DoseGridScaling", 1)
    if scaling <= 0:
        raise DecodeError("DoseGridScaling is not positive; doses can't be computed")
    return scaling
