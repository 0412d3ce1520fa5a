"""Masks as DICOM segmentations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import numpy as np
from pydicom.sr.coding import Code

from medimg._public import set_module
from medimg._validation import check_choice, check_text
from medimg.core.content_hash import content_hash
from medimg.core.volume import Volume
from medimg.errors import ConversionError, GeometryError, also
from medimg.export.dicom._concepts import SCHEME, ConceptLike, code_concept, name_concept, parse_concept
from medimg.export.dicom._derived_uid import derive_uid
from medimg.export.dicom._general_modules import ResultSeries, coding_scheme, import_highdicom, wrap_errors
from medimg.export.dicom._source_images import SourceImages
from medimg.export.dicom.algorithm import Algorithm
from medimg.io.own_results import MANUFACTURER

if TYPE_CHECKING:
    import datetime

    from highdicom.seg import Segmentation
    from numpy.typing import NDArray

    from medimg.io.read import Source
    from medimg.models.classifier import TransferClassifier

__all__ = ["Segment", "segmentation"]

AlgorithmType: TypeAlias = Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"]

_ANATOMY: Final = Code("123037004", "SCT", "Anatomical Structure")
_ARTIFICIAL_INTELLIGENCE: Final = Code("123110", "DCM", "Artificial Intelligence")
_UNSPECIFIED: Final = Code("unspecified", SCHEME, "Unspecified")
_MOST_SEGMENTS: Final = 65535
_LONGEST: Final = 64
_BRIGHTEST: Final = 255
_GOLDEN_RATIO: Final = 0.618034


@set_module("medimg.export")
@dataclass(frozen=True, slots=True)
class Segment:
    """
    What a value of a mask stands for.

    Parameters
    ----------
    name : str
        Name of the segment, up to 64 characters.
    type : Code or tuple of 3 str, optional
        Coded concept of the structure; by default a private one of its name.
    category : Code or tuple of 3 str
        Category of the structure; by default "Anatomical Structure" (SCT 123037004).
    color : tuple of 3 int, optional
        Color that viewers may show it in: red, green and blue from 0 to 255; by default one for each number.

    Raises
    ------
    ConversionError
        If a value is invalid.
    """

    name: str
    type: ConceptLike | None = None
    category: ConceptLike = _ANATOMY
    color: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        name = check_text("name of a segment", self.name, error=ConversionError)
        if not name.strip() or len(name) > _LONGEST or "\\" in name or not name.isprintable():
            raise ConversionError(
                f"the name of a segment must have 1 to {_LONGEST} characters and no backslash; found {name!r}"
            )
        self.list_concepts()
        if self.color is not None:
            _check_color(self.color)

    def list_concepts(self) -> tuple[Code, Code]:
        """Return category and type."""
        kind = name_concept(self.name) if self.type is None else parse_concept("type of a segment", self.type)
        return parse_concept("category of a segment", self.category), kind


@set_module("medimg.export")
def segmentation(
    mask: NDArray[Any] | Volume,
    source: Source,
    segments: Mapping[int, str | Segment],
    *,
    algorithm_type: AlgorithmType = "MANUAL",
    model: TransferClassifier | None = None,
    name: str | None = None,
    description: str = "Segmentation",
    series: str | int | None = None,
    created: datetime.datetime | None = None,
) -> Segmentation:
    """
    Make a DICOM Segmentation (binary) of a mask on the pixels of a series.

    Parameters
    ----------
    mask : numpy.ndarray or Volume
        (D, H, W), or (1, D, H, W), of whole numbers or bool, on the voxels of ``medimg.read(source)``; 0 is
        background.
    source : str, Path, bytes, Series, or list of these
        DICOM images of one series; see :func:`medimg.read`. It has a position in the patient, or is a single
        image.
    segments : mapping of int to str or Segment
        What each value stands for; a name alone is an anatomical structure with a private code.
    algorithm_type : {"MANUAL", "SEMIAUTOMATIC", "AUTOMATIC"}
        How the mask was made; other than "MANUAL" needs `model` or `name`.
    model : TransferClassifier, optional
        Model that the mask was made by.
    name : str, optional
        Name of the algorithm.
    description : str
        Description of the series.
    series : str or int, optional
        UID or index of one of several series of the source.
    created : datetime, optional
        Date and time of the segmentation; by default now. Its UIDs do not depend on it.

    Returns
    -------
    highdicom.seg.Segmentation
        Segments are numbered from 1 in the order of their values; slices without any are left out.

    Raises
    ------
    ConversionError
        If the mask has other values, the source is not DICOM, or lacks an attribute that the segmentation has
        to have, such as FrameOfReferenceUID.
    GeometryError
        If the mask is not on the voxels of the source.
    ReadError, SeriesError
        If the source can't be read.
    MissingDependencyError
        If highdicom is not installed (extra ``dicom-out``).

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import medimg
    >>> folder = Path(tempfile.mkdtemp())
    >>> ct = medimg.phantom.chest_ct(1, slices=3, size=48)
    >>> files = medimg.phantom.write_ct_series(ct, folder, medimg.phantom.Identity.derive("demo", 1))
    >>> volume = medimg.read(folder)
    >>> lung = volume.with_array((volume.array < -500).astype("uint8"))
    >>> segment = medimg.export.Segment("lung", ("39607008", "SCT", "Lung"))
    >>> found = medimg.export.segmentation(lung, folder, {1: segment})
    >>> found.number_of_segments, found.segmentation_type.value
    (1, 'BINARY')
    """
    hd = import_highdicom()
    check_choice("algorithm_type", algorithm_type, get_args(AlgorithmType), error=ConversionError)
    images = SourceImages.of(source, series)
    images.check_placed("segmentation", single=True)
    named = _check_segments(segments)
    numbers = _number_segments(_check_mask(mask, images), named)
    algorithm = None if model is None else Algorithm.of(model, name)
    if algorithm_type != "MANUAL" and algorithm is None and name is None:
        raise ConversionError(f'algorithm_type="{algorithm_type}" needs model= or name=, which made the mask')
    colors = [one.color or _choose_color(number) for number, one in enumerate(named.values(), 1)]
    labels = [
        [one.name, *one.list_concepts(), *color] for one, color in zip(named.values(), colors, strict=True)
    ]
    made = ResultSeries.of(
        images,
        "seg",
        [algorithm.digest if algorithm else "", name or "", algorithm_type, description],
        description=description,
        algorithm=algorithm,
        created=created,
    )
    slices = tuple(range(len(numbers)))
    references = images.refer_to_positions(slices)
    with wrap_errors(images, "segmentation"):
        identification = None
        if algorithm_type != "MANUAL":
            identification = hd.AlgorithmIdentificationSequence(
                name=algorithm.name if algorithm else str(name),
                family=code_concept(hd.sr, _UNSPECIFIED if algorithm is None else _ARTIFICIAL_INTELLIGENCE),
                version=algorithm.version if algorithm else "unknown",
                source=MANUFACTURER,
            )
        descriptions = [
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=one.name,
                segmented_property_category=code_concept(hd.sr, one.list_concepts()[0]),
                segmented_property_type=code_concept(hd.sr, one.list_concepts()[1]),
                algorithm_type=algorithm_type,
                algorithm_identification=identification,
                tracking_id=one.name,
                tracking_uid=derive_uid("segment", made.uid, number, one.name),
                display_color=hd.color.CIELabColor.from_rgb(*colors[number - 1]),
            )
            for number, one in enumerate(named.values(), 1)
        ]
        result = hd.seg.Segmentation(
            source_images=references,
            pixel_array=numbers,
            segmentation_type="BINARY",
            segment_descriptions=descriptions,
            omit_empty_frames=bool(numbers.any()),
            content_label="SEGMENTATION",
            coding_schemes=coding_scheme(),
            **made.arguments(1, content_hash(numbers.tobytes()), labels),
        )
        if not images.is_placed:
            result.PatientOrientation = images.stated_orientation
    made.complete(result)
    # highdicom keeps a table of frames, from before references were complete
    completed: Segmentation = hd.seg.Segmentation.from_dataset(result, copy=False)
    return completed


def _check_color(color: object) -> None:
    if (
        not isinstance(color, Sequence)
        or len(color) != len("RGB")
        or not all(isinstance(part, int) and 0 <= part <= _BRIGHTEST for part in color)
    ):
        raise ConversionError(
            "the color of a segment must be red, green and blue from 0 to 255, as (255, 0, 0); found "
            f"{color!r}"
        )


def _choose_color(number: int) -> tuple[int, int, int]:
    """Return the color of a segment: neighbors in the list are far from each other on the circle of hues."""
    parts = hsv_to_rgb((number - 1) * _GOLDEN_RATIO % 1, 0.7, 0.95)
    red, green, blue = (round(part * _BRIGHTEST) for part in parts)
    return red, green, blue


def _check_segments(segments: Mapping[int, str | Segment]) -> dict[int, Segment]:
    """Return the segments by their values, ascending."""
    found: dict[int, Segment] = {}
    if not isinstance(segments, Mapping) or not segments:
        raise ConversionError('segments must be a mapping of values to names, such as {1: "lung"}')
    for value, one in segments.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise ConversionError(f"segments must have whole numbers from 1 as keys; found {value!r}")
        if not isinstance(one, str | Segment):
            raise also(ConversionError, TypeError)(
                f"segments[{value!r}] must be a name or a Segment; found a {type(one).__name__}"
            )
        found[int(value)] = Segment(one) if isinstance(one, str) else one
    if len(found) > _MOST_SEGMENTS:
        raise ConversionError(f"a segmentation has at most {_MOST_SEGMENTS} segments; found {len(found)}")
    return dict(sorted(found.items()))


def _check_mask(mask: NDArray[Any] | Volume, images: SourceImages) -> NDArray[Any]:
    """Return the values (D, H, W) of a mask."""
    if isinstance(mask, Volume):
        images.check_volume(mask)
        array = mask.array
    elif isinstance(mask, np.ndarray):
        array = mask
    else:
        raise also(ConversionError, TypeError)(
            f"mask must be an array or a Volume; found a {type(mask).__name__}"
        )
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    expected = images.series.shape[1:]
    if array.shape != expected:
        raise GeometryError(
            f"the mask has the shape {array.shape}, the series {images.path} {expected} (D, H, W): a "
            "segmentation is on the pixels of its source"
        )
    if array.dtype.kind not in "biu":
        raise ConversionError(f"the mask must have whole numbers or bool; found {array.dtype}")
    return array


def _number_segments(array: NDArray[Any], named: Mapping[int, Segment]) -> NDArray[np.uint16]:
    """Return the mask with segments numbered from 1, as a segmentation has them."""
    numbers = np.zeros(array.shape, np.uint16)
    covered = array == 0
    for number, value in enumerate(named, 1):
        here = array == value
        numbers[here] = number
        covered |= here
    if not covered.all():
        others = np.unique(array[~covered])[:5].tolist()
        raise ConversionError(
            f"the mask has the value(s) {', '.join(map(str, others))}, which segments does not name; "
            f"expected 0 and {', '.join(map(str, named))}"
        )
    return numbers
