"""DICOM files as instances, and instances as frames, without their pixels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from medimg.errors import DecodeError, MedimgError, NotAnImageError, ReadError, TruncatedError
from medimg.io.dicom.header import distinguishing_attributes, frame_attributes, frame_vectors
from medimg.io.dicom.header.acquisition import ACQUISITION_TAGS, AcquisitionElements
from medimg.io.dicom.header.attributes import (
    get_code,
    get_description,
    get_identifier,
    get_integer,
    has_value,
    parse_integer,
    parse_text,
    quiet_pydicom,
)
from medimg.io.dicom.header.element_values import collect_findings, note_finding, parse_whole
from medimg.io.dicom.header.functional_groups import Evaluation, FrameViews
from medimg.io.dicom.header.image_pixel import parse_photometric
from medimg.io.dicom.header.mosaic import MOSAIC_TAGS, Mosaic, parse_mosaic
from medimg.io.dicom.header.open import open_header, to_tag_numbers
from medimg.io.dicom.header.pixel_spacing import PIXEL_SPACING_TAGS, PixelSpacing, find_pixel_spacing
from medimg.io.dicom.header.transfer_syntax import NATIVE_SYNTAXES
from medimg.io.files.blob import Blob, as_blob

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydicom.dataset import Dataset

    from medimg.io.dicom.header.distinguishing_attributes import FrameAttributes
    from medimg.io.dicom.header.frame_attributes import FrameOfReference

__all__ = ["ALL_HEADER_TAGS", "HEADER_TAGS", "Frame", "Instance", "read_instance"]

#: Tags that a header-only read includes.
HEADER_TAGS: Final = to_tag_numbers(
    *distinguishing_attributes.DISTINGUISHING_TAGS,
    *frame_attributes.FRAME_ATTRIBUTE_TAGS,
    *PIXEL_SPACING_TAGS,
    *MOSAIC_TAGS,
    *frame_vectors.FRAME_VECTOR_TAGS,
    "BitsAllocated",
    "Columns",
    "InstanceNumber",
    "MediaStorageSOPClassUID",
    "Modality",
    "NumberOfFrames",
    "PatientID",
    "PerFrameFunctionalGroupsSequence",
    "PhotometricInterpretation",
    "Rows",
    "SOPClassUID",
    "SOPInstanceUID",
    "SamplesPerPixel",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SharedFunctionalGroupsSequence",
    "StudyInstanceUID",
    "TotalPixelMatrixColumns",
)

#: The same, and those that describe the acquisition.
ALL_HEADER_TAGS: Final = HEADER_TAGS | ACQUISITION_TAGS
#: The header of an item has 8 bytes, and no codestream is shorter.
_MIN_FRAME_BYTES: Final = 16
_DEFLATION: Final = 1032
_MAX_REMOTE_FRAMES: Final = 2**17
_SLIDE_MICROSCOPY: Final = "1.2.840.10008.5.1.4.1.1.77.1.6"


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """Position, size and type of one frame."""

    number: int  # index in the pixel data
    corner: tuple[int, int] | None  # (row, column) of its first pixel, for a tile of a mosaic
    position: tuple[float, float, float] | None  # LPS millimeters, center of the first pixel
    in_patient: bool  # False if position and orientation are those of an ultrasound volume
    orientation: tuple[float, ...] | None  # directions of rows and of columns (6)
    pixel_spacing: tuple[float, float] | None  # of rows and of columns, in millimeters
    spacing_warning: str  # what is assumed of it, if anything
    spacing_remark: str  # what it refers to, if not to the patient
    slice_spacing: float | None  # Spacing Between Slices, in millimeters
    slice_thickness: float | None  # in millimeters
    image_type: tuple[str, ...]  # Frame Type or Image Type
    series_attributes: FrameAttributes
    temporal_attributes: FrameAttributes


#: Those from the orientation to the attributes of the series.
_SimilarFacts: TypeAlias = (
    "tuple[tuple[float, ...] | None, tuple[float, float] | None, str, str, float | None, float | None,"
    " tuple[str, ...], FrameAttributes]"
)


@dataclass(frozen=True, slots=True)
class Instance:
    """
    A DICOM file that holds images; what identifies the patient is excluded from its repr.

    Fields are named after their DICOM attributes. `rows` and `columns` are those of a frame: of a tile, in a
    mosaic.
    """

    blob: Blob = field(repr=False)
    sop_class_uid: str
    sop_instance_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    study_uid: str = field(repr=False)
    patient_id: str = field(repr=False)
    modality: str
    description: str = field(repr=False)
    series_number: int | str | None  # text if it is no number: it groups files, too
    instance_number: int | None
    rows: int
    columns: int
    samples: int
    photometric: str
    transfer_syntax: str
    facts: tuple[FrameFacts, ...] = field(repr=False)
    times: tuple[float, ...] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    acquisition: AcquisitionElements | None = field(default=None, repr=False, compare=False)

    @property
    def path(self) -> str:
        """Name of the file."""
        return self.blob.name

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Frames in the order of the file."""
        return tuple(Frame(self, f) for f in self.facts)

    @property
    def is_color(self) -> bool:
        """Whether its pixels are read as RGB."""
        return self.samples == 3 or self.photometric == "PALETTE COLOR"


@dataclass(frozen=True, slots=True)
class Frame:
    """One image of a DICOM file: the only one, one of many frames, or a tile of a mosaic."""

    instance: Instance
    facts: FrameFacts

    @property
    def has_geometry(self) -> bool:
        """Whether position and orientation, in the patient or an ultrasound volume, are known."""
        return self.facts.position is not None and self.facts.orientation is not None

    @property
    def is_localizer(self) -> bool:
        """Whether this is a localizer: Image Type value 3 is LOCALIZER (PS3.3 C.8.2.1.1.1)."""
        return "LOCALIZER" in self.facts.image_type[2:]

    @property
    def sort_key(self) -> tuple[bool, int, str, int]:
        """Key that sorts frames by Instance Number, path and frame number."""
        number = self.instance.instance_number
        return number is None, number or 0, self.instance.path, self.facts.number


def read_instance(source: str | Path | Blob, head: bytes | None = None) -> Instance:
    """
    Read the header of a DICOM file; raise NotAnImageError or ReadError, with the name of the file.

    `head` is a file of its elements, if they are at hand.
    """
    blob = as_blob(source)
    header = blob if head is None else Blob(blob.name, data=head)
    try:
        with quiet_pydicom(), collect_findings() as findings:
            found = _build_instance(blob, open_header(header, ALL_HEADER_TAGS))
        return replace(found, notes=(*found.notes, *findings)) if findings else found
    except MedimgError as error:
        if blob.name in str(error):
            raise
        raise type(error)(f"{blob.name}: {error}") from None
    # pydicom raises various errors when a damaged value is used, and their texts quote it
    except Exception as error:
        raise ReadError(f"{blob.name} is damaged ({type(error).__name__} in its header)") from None


def _build_instance(blob: Blob, dataset: Dataset) -> Instance:
    sop_class = get_identifier(dataset, "SOPClassUID")
    sop_class = sop_class or get_identifier(dataset.file_meta, "MediaStorageSOPClassUID")
    rows, columns = parse_integer(dataset, "Rows", 0), parse_integer(dataset, "Columns", 0)
    if rows <= 0 or columns <= 0:
        raise NotAnImageError(f"{blob.name} is a DICOM object without pixels ({_name_sop_class(sop_class)})")
    if _is_slide_image(dataset, sop_class):
        raise NotAnImageError(
            f"{blob.name} is a whole slide image: its frames are tiles of a pyramid, not slices; "
            "read it with a library for whole slide images, such as wsidicom"
        )
    count = _count_frames(blob, dataset)
    views = FrameViews(dataset, count)
    # before values are decoded
    acquisition = AcquisitionElements.from_dataset(views.common)
    mosaic = parse_mosaic(views[0]) if count == 1 else None
    if mosaic is not None:
        rows, columns = mosaic.rows, mosaic.columns
    is_plain_multi_frame = count > 1 and not views.has_per_frame_groups
    return Instance(
        blob=blob,
        sop_class_uid=sop_class,
        sop_instance_uid=get_identifier(dataset, "SOPInstanceUID"),
        series_uid=get_identifier(dataset, "SeriesInstanceUID"),
        study_uid=get_identifier(dataset, "StudyInstanceUID"),
        patient_id=parse_text(dataset, "PatientID"),
        modality=get_code(dataset, "Modality"),
        description=get_description(dataset, "SeriesDescription"),
        series_number=_get_series_number(dataset),
        instance_number=get_integer(dataset, "InstanceNumber"),
        rows=rows,
        columns=columns,
        samples=parse_integer(dataset, "SamplesPerPixel", 1) or 1,
        photometric=parse_photometric(dataset),
        transfer_syntax=get_identifier(dataset.file_meta, "TransferSyntaxUID"),
        facts=_describe_frames(views) if mosaic is None else _describe_tiles(views[0], mosaic),
        times=frame_vectors.compute_frame_times(dataset) if is_plain_multi_frame else None,
        notes=mosaic.notes if mosaic else (),
        acquisition=acquisition,
    )


def _get_series_number(dataset: Dataset) -> int | str | None:
    """Return Series Number, as text if it is no whole number; None if it is absent."""
    found = get_identifier(dataset, "SeriesNumber")
    number = parse_whole(found)
    return (found or None) if number is None else number


def _is_slide_image(dataset: Dataset, sop_class: str) -> bool:
    slide = sop_class == _SLIDE_MICROSCOPY or has_value(dataset, "TotalPixelMatrixColumns")
    return slide and (get_integer(dataset, "NumberOfFrames") or 1) > 1


def _name_sop_class(sop_class: str) -> str:
    name = UID(sop_class).name
    return name if name != sop_class else "unknown SOP class"


def _count_frames(blob: Blob, dataset: Dataset) -> int:
    """Return Number of Frames if the file is large enough for them."""
    count = max(1, get_integer(dataset, "NumberOfFrames") or 1)
    if count == 1:
        return 1
    if blob.remote_header is not None:
        # the size of the file is not known before it is fetched
        if count > _MAX_REMOTE_FRAMES:
            raise DecodeError(f"{blob.name} declares {count} frames; at most {_MAX_REMOTE_FRAMES} are read")
        return count
    syntax = get_identifier(dataset.file_meta, "TransferSyntaxUID")
    size = blob.size() * (_DEFLATION if syntax == DeflatedExplicitVRLittleEndian else 1)
    if count > size // _MIN_FRAME_BYTES:
        raise DecodeError(f"{blob.name} declares {count} frames, but is only {size} bytes long")
    rows, columns, bits = (
        get_integer(dataset, keyword) or 1 for keyword in ("Rows", "Columns", "BitsAllocated")
    )
    if syntax in NATIVE_SYNTAXES and count * rows * columns * bits > 8 * size:
        raise TruncatedError(
            f"{blob.name} ends before its {count} frames of {rows}×{columns}; copy or export it again"
        )
    return count


def _describe_tiles(view: Dataset, mosaic: Mosaic) -> tuple[FrameFacts, ...]:
    whole = _describe_frame(0, Evaluation(view))
    tiles = zip(mosaic.corners, mosaic.positions, strict=True)
    return tuple(replace(whole, corner=corner, position=position) for corner, position in tiles)


def _describe_frames(views: FrameViews) -> tuple[FrameFacts, ...]:
    count = len(views)
    if views.has_per_frame_groups:
        return tuple(_describe_frame(number, one) for number, one in enumerate(views.evaluate_each()))
    first = _describe_frame(0, Evaluation(views[0]))
    return (first,) if count == 1 else tuple(_describe_by_vectors(views[0], first, count))


def _describe_by_vectors(view: Dataset, first: FrameFacts, count: int) -> Iterator[FrameFacts]:
    """Yield the frames of a file without functional groups: dose, nuclear medicine, and cines."""
    positions = frame_vectors.compute_frame_positions(view)
    repeats = frame_vectors.parse_frame_vectors(view)
    # one position for all frames belongs to none of them
    orientation = (frame_vectors.get_frame_orientation(view) or first.orientation) if positions else None
    for number in range(count):
        vectors = (distinguishing_attributes.FrameAttribute("vectors", repeats[number]),) if repeats else ()
        yield replace(
            first,
            number=number,
            position=positions[number] if positions else None,
            orientation=orientation,
            temporal_attributes=(*first.temporal_attributes, *vectors),
        )


def _describe_frame(number: int, evaluate: Evaluation) -> FrameFacts:
    reference, position = evaluate(_find_position)
    return FrameFacts(
        number,
        None,
        position,
        reference == "Patient",
        *evaluate(_find_similar, evaluate, reference, position is not None),
        distinguishing_attributes.get_temporal_attributes(evaluate),
    )


def _find_similar(
    view: Dataset, evaluate: Evaluation, reference: FrameOfReference, is_placed: bool
) -> _SimilarFacts:
    """Return the facts, in their order, that most frames of a file have in common."""
    spacing = evaluate(_find_spacing, is_placed)
    return (
        evaluate(_find_orientation, reference, is_placed),
        *spacing,
        evaluate(frame_attributes.get_length, "SpacingBetweenSlices"),
        evaluate(frame_attributes.get_length, "SliceThickness"),
        evaluate(distinguishing_attributes.get_image_type),
        distinguishing_attributes.get_series_attributes(evaluate),
    )


def _find_position(view: Dataset) -> tuple[FrameOfReference, tuple[float, float, float] | None]:
    reference = frame_attributes.choose_frame_of_reference(view)
    return reference, frame_attributes.parse_position(view, reference)


# Where an image is in the patient depends on orientation and spacing; without a position, as of an X-ray or a
# photograph, it is read without them.
def _find_orientation(
    view: Dataset, reference: FrameOfReference, is_placed: bool
) -> tuple[float, ...] | None:
    """Return the directions of rows and columns; of a frame without a position, None if they are damaged."""
    try:
        return frame_attributes.parse_orientation(view, reference)
    except DecodeError as error:
        if is_placed:
            raise
        note_finding(str(error).replace("the file is damaged", "it is not used"))
        return None


def _find_spacing(view: Dataset, is_placed: bool) -> PixelSpacing:
    """Return the spacing of pixels; of a frame without a position, none with a warning if it is damaged."""
    try:
        return find_pixel_spacing(view)
    except DecodeError as error:
        if is_placed:
            raise
        return PixelSpacing(None, str(error).replace("the file is damaged", "1 mm is assumed"))
