"""
Frames of a multi-frame file as flat datasets, like classic single-frame instances.

An enhanced file has attributes common to all frames in shared functional groups, and others in per-frame
groups (PS3.3 C.7.6.16). The *view* of a frame is a dataset of the attributes of the file, overlaid by those
of the shared groups, overlaid by those of its own groups.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar, cast

from pydicom.charset import default_encoding
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag

from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import parse_items
from medimg.io.dicom.header.element_values import find_tag, intern_tag
from medimg.io.dicom.header.elements import UnusualHeaderError, split_items
from medimg.io.dicom.header.image_pixel import describe_frame_count
from medimg.io.dicom.header.private_tags import is_no_sequence, to_items

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Evaluation", "FrameViews"]

T = TypeVar("T")
P = ParamSpec("P")

#: Elements of a dataset, parsed or raw.
_Elements: TypeAlias = "dict[BaseTag, Any]"

#: Functional groups whose attributes have the same meaning in a classic instance: those of PS3.3 C.7.6.16.2
#: and of the modules of each modality, except what describes pixels in other ways or refers to other images.
_MACROS: Final = frozenset(
    find_tag(keyword)
    for keyword in (
        "CTAcquisitionDetailsSequence",
        "CTAcquisitionTypeSequence",
        "CTGeometrySequence",
        "CTImageFrameTypeSequence",
        "CTReconstructionSequence",
        "CTTableDynamicsSequence",
        "CTXRayDetailsSequence",
        "CardiacSynchronizationSequence",
        "ContrastBolusUsageSequence",
        "DerivationImageSequence",
        "FrameAnatomySequence",
        "FrameContentSequence",
        "FramePixelDataPropertiesSequence",
        "FrameVOILUTSequence",
        "ImageDataTypeSequence",
        "IrradiationEventIdentificationSequence",
        "MRArterialSpinLabelingSequence",
        "MRAveragesSequence",
        "MRDiffusionSequence",
        "MREchoSequence",
        "MRFOVGeometrySequence",
        "MRImageFrameTypeSequence",
        "MRImagingModifierSequence",
        "MRMetaboliteMapSequence",
        "MRModifierSequence",
        "MRReceiveCoilSequence",
        "MRSpectroscopyFrameTypeSequence",
        "MRTimingAndRelatedParametersSequence",
        "MRTransmitCoilSequence",
        "MRVelocityEncodingSequence",
        "MultienergyCTCharacteristicsSequence",
        "MultienergyCTProcessingSequence",
        "PETFrameAcquisitionSequence",
        "PETFrameCorrectionFactorsSequence",
        "PETFrameTypeSequence",
        "PETReconstructionSequence",
        "ParametricMapFrameTypeSequence",
        "PatientPhysiologicalStateSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
        "PlaneOrientationSequence",
        "PlaneOrientationVolumeSequence",
        "PlanePositionSequence",
        "PlanePositionVolumeSequence",
        "ProjectionPixelCalibrationSequence",
        "RadiopharmaceuticalUsageSequence",
        "RespiratorySynchronizationSequence",
        "SegmentIdentificationSequence",
        "TemporalPositionSequence",
        "USImageDescriptionSequence",
        "XAXRFFrameCharacteristicsSequence",
        "XRay3DFrameTypeSequence",
    )
)
#: Groups whose item a frame has exactly once, as a second one would place or scale it otherwise.
_SINGLE: Final = frozenset(
    find_tag(keyword)
    for keyword in (
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
        "PlaneOrientationSequence",
        "PlanePositionSequence",
    )
)
#: Private sequences that repeat private attributes of classic files for each frame: Siemens and Philips.
_PRIVATE_GROUPS: Final = frozenset({0x0021, 0x2005})
_LAST_CREATOR: Final = 0xFF
#: Set in the tag of a private element.
_ODD: Final = 0x10000
#: Attributes without a group in a converted classic file, such as the echo time (PS3.3 C.7.6.16.2.24).
_UNASSIGNED: Final = (
    find_tag("UnassignedSharedConvertedAttributesSequence"),
    find_tag("UnassignedPerFrameConvertedAttributesSequence"),
)
_KEPT_WHOLE: Final = frozenset(
    map(find_tag, ("RealWorldValueMappingSequence", "PixelValueTransformationSequence"))
)
#: Public groups that are part of a view.
_PUBLIC: Final = _MACROS | _KEPT_WHOLE
_PER_FRAME: Final = find_tag("PerFrameFunctionalGroupsSequence")
_EXCLUDED: Final = frozenset(
    find_tag(keyword)
    for keyword in (
        "PerFrameFunctionalGroupsSequence",
        "SharedFunctionalGroupsSequence",
        "PixelData",
        "FloatPixelData",
        "DoubleFloatPixelData",
        "ExtendedOffsetTable",
        "ExtendedOffsetTableLengths",
    )
)


class Evaluation:
    """Calls functions of a view."""

    def __init__(self, view: Dataset) -> None:
        self._view = view

    def __call__(self, function: Callable[Concatenate[Dataset, P], T], *args: P.args, **_: P.kwargs) -> T:
        """Return the value of a function of the view and of hashable arguments."""
        return function(self._view, *args)


#: Noted in place of a tag: which elements there are, and all that they hold.
_PRESENCE: Final = -1
_ALL: Final = -2


class _NotedElements(dict[BaseTag, Any]):
    """Elements of a view that note which of them are read."""

    read: set[int]  # by the function that is being called

    def __getitem__(self, tag: BaseTag) -> Any:
        self.read.add(tag)
        return super().__getitem__(tag)

    def get(self, tag: BaseTag, default: Any = None) -> Any:
        self.read.add(tag)
        return super().get(tag, default)

    def __contains__(self, tag: object) -> bool:
        self.read.add(cast("int", tag))
        return super().__contains__(tag)

    def __iter__(self) -> Iterator[BaseTag]:
        self.read.add(_PRESENCE)
        return super().__iter__()

    def __len__(self) -> int:
        self.read.add(_PRESENCE)
        return super().__len__()

    def keys(self) -> Any:
        self.read.add(_PRESENCE)
        return super().keys()

    def items(self) -> Any:
        self.read.add(_ALL)
        return super().items()

    def values(self) -> Any:
        self.read.add(_ALL)
        return super().values()


class _RepeatedEvaluation(Evaluation):
    """Calls functions of one view after the other, again only if an element that they read has changed."""

    def __init__(self) -> None:
        super().__init__(Dataset())
        self._elements = _NotedElements()
        self._values: dict[Any, tuple[Any, set[int]]] = {}  # with the tags that were read
        self._readers: dict[int, set[Any]] = {}
        self._unused: set[int] = set()

    def show(self, view: Dataset, elements: _NotedElements, changed: set[int]) -> None:
        """Go on to the next view, whose elements differ from those of the last one in these tags."""
        self._view, self._elements = view, elements
        elements.read = self._unused
        for tag in (*changed, _ALL):
            for key in self._readers.pop(tag, ()):
                self._values.pop(key, None)

    def __call__(self, function: Callable[Concatenate[Dataset, P], T], *args: P.args, **_: P.kwargs) -> T:
        """Return the value of a function of the view and of hashable arguments."""
        key = (function, *args)
        found = self._values.get(key)
        if found is None:
            outer, self._elements.read = self._elements.read, set()
            found = function(self._view, *args), self._elements.read
            self._elements.read = outer
            self._values[key] = found
            for tag in found[1]:
                self._readers.setdefault(tag, set()).add(key)
        if self._elements.read is not self._unused:
            # by the function that calls this one
            self._elements.read |= found[1]
        return cast("T", found[0])


class FrameViews:
    """Sequence of the views of all frames; raises DecodeError if functional groups are missing."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self._encoding = dataset.original_character_set or default_encoding
        groups = _split_groups(dataset) or parse_items(dataset, "PerFrameFunctionalGroupsSequence")
        if groups and len(groups) < count:
            raise DecodeError(
                f"functional groups describe {len(groups)} of {count} frames; the file is damaged"
            )
        if len(groups) > count:
            raise DecodeError(
                f"functional groups are those of {len(groups)} frames, but "
                f"{describe_frame_count(count)}; "
                "correct it, or export the file again"
            )
        self._per_frame = groups
        self._count = count
        self._file_meta = getattr(dataset, "file_meta", FileMetaDataset())
        self._parsed: dict[BaseTag, tuple[object, _Elements]] = {}
        self._common: _Elements = {
            intern_tag(int(tag)): dataset.get_item(tag, keep_deferred=True)
            for tag in _list_tags(dataset)
            if tag not in _EXCLUDED
        }
        shared = parse_items(dataset, "SharedFunctionalGroupsSequence")
        if shared:
            self._common = self._overlay(self._list_overlays(shared[0]))
        self._base = self._build_view(self._common)

    @property
    def common(self) -> Dataset:
        """View of the attributes that all frames share."""
        return self._base

    @property
    def has_per_frame_groups(self) -> bool:
        """Whether frames have attributes of their own."""
        return bool(self._per_frame)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Dataset]:
        return (self[number] for number in range(self._count))

    def __getitem__(self, number: int) -> Dataset:
        """Return the view of frame `number`, counted from 0."""
        if not 0 <= number < self._count:
            raise IndexError(number)
        if not self._per_frame:
            return self._base
        return self._build_view(self._overlay(self._list_overlays(self._per_frame[number])))

    def evaluate_each(self) -> Iterator[Evaluation]:
        """Yield the evaluation of each view, to be used before the next; what is unchanged is kept."""
        evaluation = _RepeatedEvaluation()
        last: _Elements = {}
        last_overlays: list[_Elements] = []
        for group in self._per_frame:
            overlays = self._list_overlays(group)
            elements = self._overlay(overlays)
            if len(overlays) == len(last_overlays):
                pairs = zip(last_overlays, overlays, strict=True)
                candidates = {tag for old, new in pairs if old is not new for tag in (*old, *new)}
            else:
                candidates = {*last, *elements}
            changed: set[int] = {tag for tag in candidates if not _is_same(last.get(tag), elements.get(tag))}
            if any(tag not in last or tag not in elements for tag in changed):
                changed.add(_PRESENCE)
            noted = _NotedElements(elements)
            evaluation.show(self._build_view(noted), noted, changed)
            yield evaluation
            last, last_overlays = elements, overlays

    def _overlay(self, overlays: list[_Elements]) -> _Elements:
        elements = dict(self._common)
        for overlay in overlays:
            elements.update(overlay)
        return elements

    def _build_view(self, elements: _Elements) -> Dataset:
        # elements that are assigned one by one would be parsed if private, damaged or not
        view = Dataset(elements)
        view.file_meta = self._file_meta
        return view

    def _list_overlays(self, group: Dataset | _Elements) -> list[_Elements]:
        """Return the elements of each functional group of a frame, unassigned ones first."""
        elements = _get_elements(group) if isinstance(group, Dataset) else group
        tags = [tag for tag in _UNASSIGNED if tag in elements]
        tags += [tag for tag in elements if tag in _PUBLIC or (tag & _ODD and _is_private_group(tag))]
        creators: tuple[object, ...] | None = None
        overlays = []
        for tag in tags:
            element = elements[tag]
            if not isinstance(element, RawDataElement):
                overlays.append(self._parse_group(group, tag, element))
                continue
            if tag & _ODD and creators is None:
                creators = tuple(
                    _get_state(e) for t, e in elements.items() if t & _ODD and t.elem <= _LAST_CREATOR
                )
            state = (*_get_state(element), creators if tag & _ODD else None)
            parsed = self._parsed.get(tag)
            if parsed is None or parsed[0] != state:
                parsed = state, self._parse_group(group, tag, element)
                self._parsed[tag] = parsed
            overlays.append(parsed[1])
        return overlays

    def _parse_group(self, group: Dataset | _Elements, tag: BaseTag, element: Any) -> _Elements:
        """Return the elements of a functional group."""
        found: _Elements = {tag: element} if tag in _KEPT_WHOLE else {}
        if tag in _PUBLIC - _MACROS:
            return found
        item = _split_item(tag, element)
        if item is None:
            dataset = group if isinstance(group, Dataset) else self._build_group(group, element)
            item = _get_elements(_parse_first_item(dataset, tag))
        return found | ({t: e for t, e in item.items() if t.is_private} if tag & _ODD else item)

    def _build_group(self, elements: _Elements, element: RawDataElement) -> Dataset:
        group = Dataset(dict(elements), parent_encoding=self._encoding)
        group.set_original_encoding(element.is_implicit_VR, True, self._encoding)
        return group


def _get_creators(elements: _Elements) -> tuple[object, ...]:
    return tuple(
        (tag, *_get_state(element))
        for tag, element in elements.items()
        if tag & _ODD and tag.elem <= _LAST_CREATOR
    )


def _get_state(element: Any) -> tuple[object, object]:
    """Return what the value of an element depends on, at any place in a file."""
    return element.VR, element.value


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    both_raw = isinstance(one, RawDataElement) and isinstance(other, RawDataElement)
    return both_raw and _get_state(one) == _get_state(other)


def _list_tags(dataset: Dataset) -> list[BaseTag]:
    """Return the tags of a dataset; iterating over the dataset itself would parse every element."""
    return list(dataset.keys())


def _get_elements(dataset: Dataset) -> _Elements:
    return {intern_tag(int(tag)): dataset.get_item(tag) for tag in _list_tags(dataset)}


@lru_cache(2**14)
def _is_private_group(tag: BaseTag) -> bool:
    return tag.group in _PRIVATE_GROUPS and tag.elem > _LAST_CREATOR


def _split_groups(dataset: Dataset) -> list[_Elements] | list[Dataset]:
    """Return the per-frame groups without parsing them; none if they are unusual."""
    element: Any = dataset.get_item(_PER_FRAME)
    return _split_sequence(element) if isinstance(element, RawDataElement) else []


def _split_item(tag: BaseTag, element: Any) -> _Elements | None:
    """Return the only item of a group without parsing it; None if it is unusual."""
    if not isinstance(element, RawDataElement) or (element.VR is None and tag & _ODD):
        return None
    items = _split_sequence(element)
    return items[0] if len(items) == 1 else None


def _split_sequence(element: RawDataElement) -> list[_Elements]:
    if element.VR not in {"SQ", None} or not element.value or not element.is_little_endian:
        return []
    try:
        return split_items(element.value, implicit=element.is_implicit_VR)
    except UnusualHeaderError:
        return []


def _parse_first_item(group: Dataset, tag: BaseTag) -> Dataset:
    """Return the item of a functional group, an empty one if there is none; raise DecodeError if damaged."""
    try:
        damaged = is_no_sequence(group, tag)
        value = None if damaged else group[tag].value
        found = to_items(value)
        damaged = damaged or (not found and bool(value))
    # a damaged element can raise anything when it is first used
    except Exception:
        found, damaged = [], True
    several = tag in _SINGLE and len(found) > 1
    if several or (damaged and not tag.is_private):
        what = f"has {len(found)} items, 1 is expected" if several else "can't be parsed"
        raise DecodeError(f"{keyword_for_tag(tag)} of a functional group {what}; the file is damaged")
    return found[0] if found else Dataset()
