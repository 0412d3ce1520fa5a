"""
Frames of a multi-frame file as flat datasets, like classic single-frame instances.

An enhanced file has attributes common to all frames in shared functional groups, and others in per-frame
groups (PS3.3 C.7.6.16). The *view* of a frame is a dataset of the attributes of the file, overlaid by those
of the shared groups, overlaid by those of its own groups.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar, cast

from pydicom.charset import default_encoding
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag

from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import parse_items
from medimg.io.dicom.header.element_values import find_tag, intern_tag
from medimg.io.dicom.header.elements import UnusualHeaderError
from medimg.io.dicom.header.image_pixel import describe_frame_count
from medimg.io.dicom.header.item_elements import (
    Item,
    ItemElement,
    OnlyItem,
    build_raw_elements,
    locate_items,
    read_only_item,
)
from medimg.io.dicom.header.private_tags import is_no_sequence, to_items

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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
_ONLY_WHOLE: Final = _KEPT_WHOLE - _MACROS
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

    def __call__(
        self, function: Callable[Concatenate[Dataset, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return the value of a function of the view and of hashable arguments."""
        return function(self._view, *args, **kwargs)


#: Noted in place of a tag: which elements there are, and all that they hold.
_PRESENCE: Final = 2**32
_ALL: Final = 2**32 + 1


class _NotedElements(dict[BaseTag, Any]):
    """Elements of a view that note which of them are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()  # by the function that is being called

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

    def __init__(self, view: Dataset, elements: _NotedElements) -> None:
        super().__init__(view)
        self._elements = elements  # those that were used are parsed
        self._values: dict[Any, tuple[Any, set[int]]] = {}  # with the tags that were read
        self._readers: dict[int, set[Any]] = {}
        self._calls = 0
        self._layers: list[_Elements] = []
        self._unparsed: _Elements = {}

    def move_to(self, layers: list[_Elements]) -> None:
        """Take the elements of another view, of several layers the last; forget what was read of others."""
        last, self._unparsed = self._unparsed, {}
        for layer in layers:
            self._unparsed.update(layer)
        changed = _find_changes(last, self._unparsed, _find_candidates(self._layers, layers))
        self._layers = layers
        self._elements.clear()
        self._elements.update(self._unparsed)
        for tag in changed:
            for key in self._readers.pop(tag, ()):
                self._values.pop(key, None)

    def __call__(self, function: Callable[Concatenate[Dataset, P], T], *args: P.args, **_: P.kwargs) -> T:
        """Return the value of a function of the view and of hashable arguments."""
        key = (function, *args)
        found = self._values.get(key)
        if found is None:
            found = self._values[key] = self._call(function, *args)
            for tag in found[1]:
                self._readers.setdefault(tag, set()).add(key)
        if self._calls:
            # by the function that calls this one
            self._elements.read |= found[1]
        value: T = found[0]
        return value

    def _call(self, function: Callable[..., T], *args: object) -> tuple[T, set[int]]:
        outer, self._elements.read = self._elements.read, set()
        self._calls += 1
        try:
            value = function(self._view, *args)
        finally:
            self._calls -= 1
            read, self._elements.read = self._elements.read, outer
        return value, read


class FrameViews:
    """Sequence of the views of all frames; raises DecodeError if functional groups are missing."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self._encoding = dataset.original_character_set or default_encoding
        element: Any = dataset.get_item(_PER_FRAME)
        groups: Sequence[Item] | list[Dataset] = []
        if _is_raw_sequence(element):
            with suppress(UnusualHeaderError):
                groups = locate_items(element.value, implicit=element.is_implicit_VR)
        if groups:
            self._data: bytes = element.value
            self._is_implicit: bool = element.is_implicit_VR
        else:
            groups = parse_items(dataset, "PerFrameFunctionalGroupsSequence")
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
        self._parsed: dict[int, tuple[object, _Elements]] = {}
        self._items: dict[int, OnlyItem] = {}  # of the last frame that has this functional group
        self._common: _Elements = {
            intern_tag(int(tag)): dataset.get_item(tag, keep_deferred=True)
            for tag in _list_tags(dataset)
            if tag not in _EXCLUDED
        }
        shared = parse_items(dataset, "SharedFunctionalGroupsSequence")
        if shared:
            self._common = self._overlay(self._list_overlays(shared[0]))
        self._base = self._build_view(self._common)
        self._evaluation: _RepeatedEvaluation | None = None

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
        """Yield the evaluation of each view, to be used before the next."""
        return map(self.evaluate, range(self._count))

    def evaluate(self, number: int) -> Evaluation:
        """Return the evaluation of a view, to be used before the next; what is unchanged since is kept."""
        if self._evaluation is None:
            noted = _NotedElements()
            self._evaluation = _RepeatedEvaluation(self._build_view(noted), noted)
        overlays = self._list_overlays(self._per_frame[number]) if self._per_frame else []
        self._evaluation.move_to([self._common, *overlays])
        return self._evaluation

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

    def _list_overlays(self, group: Item | Dataset) -> list[_Elements]:
        """Return the elements of each functional group of a frame, unassigned ones first."""
        if isinstance(group, Dataset):
            # elements without a value are parsed when they are asked for, and those that count alone are
            return [
                _parse_group(lambda: group, group.get_item(tag, keep_deferred=tag not in _KEPT_WHOLE))
                for tag in map(intern_tag, _choose_groups(tuple(map(int, _list_tags(group)))))
            ]
        chosen, owners = _choose_elements(tuple([element[0] for element in group]))
        creators = tuple([self._data[group[n].value : group[n].end] for n in owners])
        overlays = []
        for number in chosen:
            tag, vr, _, start, end = element = group[number]
            state = vr, self._data[start:end], creators if tag & _ODD else None
            parsed = self._parsed.get(tag)
            if parsed is None or parsed[0] != state:
                parsed = self._parsed[tag] = state, self._parse_located(group, element)
            overlays.append(parsed[1])
        return overlays

    def _parse_located(self, group: Item, element: ItemElement) -> _Elements:
        """Return the elements of a functional group whose place in the bytes is known."""
        tag, vr, _, start, end = element
        item = None
        if tag not in _KEPT_WHOLE and (vr == b"SQ" or not (vr or tag & _ODD)):
            item = self._read_item(tag, self._data[start:end])
        if item is not None:
            return _choose_attributes(tag, item)
        (raw,) = build_raw_elements(self._data, [element], implicit=self._is_implicit).values()
        return _parse_group(partial(self._build_group, group), raw)

    def _read_item(self, tag: int, data: bytes) -> _Elements | None:
        """Return the only item of a functional group without parsing it; None if it is unusual."""
        last = self._items.get(tag)
        found = (last and last.reread(data)) or read_only_item(data, implicit=self._is_implicit)
        if found is None:
            return None
        self._items[tag] = found
        return cast("_Elements", found.elements)

    def _build_group(self, group: Item) -> Dataset:
        elements: _Elements = dict(build_raw_elements(self._data, group, implicit=self._is_implicit))
        dataset = Dataset(elements, parent_encoding=self._encoding)
        dataset.set_original_encoding(self._is_implicit, True, self._encoding)
        return dataset


def _parse_group(build_group: Callable[[], Dataset], element: Any) -> _Elements:
    """Return the elements of a functional group of a frame, given all of its groups and this one."""
    tag = element.tag
    found: _Elements = {tag: element} if tag in _KEPT_WHOLE else {}
    if tag in _ONLY_WHOLE:
        return found
    item: _Elements | None = None
    if _is_raw_sequence(element) and not (element.VR is None and tag & _ODD):
        read = read_only_item(element.value, implicit=element.is_implicit_VR)
        item = read and cast("_Elements", read.elements)
    if item is not None:
        return found | _choose_attributes(tag, item)
    parsed = _parse_first_item(build_group(), tag)
    chosen = [t for t in _list_tags(parsed) if t.is_private or not tag & _ODD]
    return found | {intern_tag(int(t)): parsed.get_item(t) for t in chosen}


def _choose_attributes(tag: int, item: _Elements) -> _Elements:
    """Return what counts of the item of a functional group."""
    return {t: e for t, e in item.items() if t.is_private} if tag & _ODD else item


@lru_cache(256)
def _choose_groups(tags: tuple[int, ...]) -> list[int]:
    """Return the functional groups of a frame that are part of its view, in the order of precedence."""
    unassigned = [int(tag) for tag in _UNASSIGNED if tag in tags]
    return unassigned + [tag for tag in tags if tag in _PUBLIC or _is_private_group(tag)]


@lru_cache(256)
def _choose_elements(tags: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return the places of these groups among the elements of a frame, and those of private creators."""
    places = {tag: number for number, tag in enumerate(tags)}
    return [places[tag] for tag in _choose_groups(tuple(places))], [
        number for number, tag in enumerate(tags) if _is_creator(tag)
    ]


def _is_private_group(tag: int) -> bool:
    return bool(tag & _ODD) and tag >> 16 in _PRIVATE_GROUPS and tag & 0xFFFF > _LAST_CREATOR


def _is_creator(tag: int) -> bool:
    return bool(tag & _ODD) and tag & 0xFFFF <= _LAST_CREATOR


def _find_candidates(old: list[_Elements], new: list[_Elements]) -> set[BaseTag]:
    """Return the tags whose elements may differ between layers."""
    if len(old) != len(new):
        return set().union(*old, *new)
    found: set[BaseTag] = set()
    for one, other in zip(old, new, strict=True):
        if one is not other:
            found.update(one, other)
    return found


def _find_changes(last: _Elements, elements: _Elements, candidates: set[BaseTag]) -> set[int]:
    """Return what those have noted who read an element that differs from the last view."""
    changed: set[int] = set()
    for tag in candidates:
        old, new = last.get(tag), elements.get(tag)
        if old is new:
            continue
        if old is None or new is None:
            changed |= {tag, _PRESENCE}
        # value and representation; the place in the file differs
        elif not (type(old) is type(new) is RawDataElement and old[3] == new[3] and old[1] == new[1]):
            changed.add(tag)
    return changed | {_ALL} if changed else changed


def _list_tags(dataset: Dataset) -> list[BaseTag]:
    """Return the tags of a dataset; iterating over the dataset itself would parse every element."""
    return list(dataset.keys())


def _is_raw_sequence(element: Any) -> bool:
    """Whether an element is an unparsed sequence that is not empty."""
    return (
        isinstance(element, RawDataElement)
        and element.VR in {"SQ", None}
        and element.is_little_endian
        and bool(element.value)
    )


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
