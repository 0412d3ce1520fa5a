"""Functional groups of many frames: the fast evaluation equals the plain one."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import Tag
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.values import convert_SQ

from medimg._native.library import load_library
from medimg.errors import MedimgError
from medimg.io.dicom.header import instance, item_elements
from medimg.io.dicom.header import open as open_module
from medimg.io.dicom.header.elements import UnusualHeaderError
from medimg.io.dicom.header.functional_groups import FrameViews
from medimg.io.dicom.header.instance import Instance, read_instance
from medimg.io.dicom.header.item_elements import (
    Item,
    build_raw_elements,
    find_sequence_end,
    locate_items,
    read_only_item,
)
from medimg.io.dicom.header.open import open_dataset
from medimg.io.dicom.pixels import _multi_frame_reader
from medimg.io.dicom.pixels._multi_frame_reader import MultiFrameReader
from medimg.io.files.blob import Blob
from tests.io.dicom.plain_groups import PlainFrameViews
from tests.sampling import SLOW, sample

_EXPLICIT_LONG = frozenset(["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"])
_PER_FRAME = Tag("PerFrameFunctionalGroupsSequence")


def _refuse(data: bytes, *, implicit: bool) -> int:
    raise UnusualHeaderError


def _read(path: Path, *, plain: bool) -> Instance | tuple[type[Exception], str]:
    with pytest.MonkeyPatch.context() as patch:
        if plain:
            patch.setattr(instance, "FrameViews", PlainFrameViews)
            # pydicom parses groups of undefined length at once
            patch.setattr(open_module, "find_sequence_end", _refuse)
        try:
            return read_instance(Blob(str(path)))
        except MedimgError as error:
            return type(error), str(error)


def assert_equal_to_plain(path: Path) -> Instance | tuple[type[Exception], str]:
    found = _read(path, plain=False)
    expected = _read(path, plain=True)
    # the repr tells integers from floats
    assert repr(found) == repr(expected)
    assert found == expected
    if isinstance(found, Instance) and isinstance(expected, Instance):
        assert repr(found.facts) == repr(expected.facts)
        assert repr(found.acquisition) == repr(expected.acquisition)
    return found


def _item(**attributes: Any) -> Dataset:
    item = Dataset()
    for keyword, value in attributes.items():
        _put(item, keyword, value)
    return item


def _put(item: Dataset, keyword: str, value: Any) -> None:
    """Add an attribute, damaged or not."""
    tag = Tag(keyword)
    vr = dictionary_VR(tag)
    known = DicomSequence(value) if vr == "SQ" and not isinstance(value, bytes) else value
    item._dict[tag] = DataElement(tag, vr, known, already_converted=True)


def _encode(dataset: Dataset, *, implicit: bool, undefined: bool) -> bytes:
    """Encode a dataset as it is written; values that are bytes as they are."""
    elements = [dataset._dict[tag] for tag in sorted(dataset.keys())]
    return b"".join(_encode_element(e, implicit=implicit, undefined=undefined) for e in elements)


def _encode_element(element: Any, *, implicit: bool, undefined: bool) -> bytes:
    tag, vr, value = element.tag, element.VR, element.value
    length: int | None = None
    if vr == "SQ" and not isinstance(value, bytes):
        data = b"".join(_encode_item(i, implicit=implicit, undefined=undefined) for i in value)
        if undefined:
            data, length = data + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0), 0xFFFFFFFF
    elif isinstance(value, bytes):
        data = value
    elif vr in {"UL", "US", "FD"}:
        numbers = value if isinstance(value, Sequence) else [value]
        data = struct.pack(f"<{len(numbers)}{ {'UL': 'I', 'US': 'H', 'FD': 'd'}[vr] }", *numbers)
    else:
        several = isinstance(value, Sequence) and not isinstance(value, str)
        text = "\\".join(map(str, value)) if several else str(value or "")
        data = text.encode() + b" " * (len(text) % 2)
    length = len(data) if length is None else length
    if implicit:
        return struct.pack("<HHI", tag.group, tag.elem, length) + data
    if vr in _EXPLICIT_LONG:
        return struct.pack("<HH2sHI", tag.group, tag.elem, vr.encode(), 0, length) + data
    return struct.pack("<HH2sH", tag.group, tag.elem, vr.encode(), length) + data


def _encode_item(item: Dataset, *, implicit: bool, undefined: bool) -> bytes:
    data = _encode(item, implicit=implicit, undefined=undefined)
    if undefined:
        end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
        return struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + data + end
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(data)) + data


def _make_file(
    shared: Dataset, frames: Sequence[Dataset], *, implicit: bool, undefined: bool, **attributes: Any
) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    top = _item(
        SOPClassUID=meta.MediaStorageSOPClassUID,
        SOPInstanceUID="1.2.3.4",
        SeriesInstanceUID="1.2.3",
        Modality="CT",
        ImageType=["ORIGINAL", "PRIMARY"],
        NumberOfFrames=len(frames),
        Rows=2,
        Columns=2,
        BitsAllocated=8,
        BitsStored=8,
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=list(frames),
    )
    for keyword, value in attributes.items():
        _put(top, keyword, value)
    header = _encode(meta, implicit=False, undefined=False)
    pixels = Dataset()
    pixels.add_new("PixelData", "OW", bytes(16 * len(frames)))
    parts = [bytes(128), b"DICM", header, _encode(top, implicit=implicit, undefined=undefined)]
    return b"".join([*parts, _encode(pixels, implicit=implicit, undefined=False)])


def _frame(number: int) -> Dataset:
    return _item(
        FrameContentSequence=[
            _item(
                FrameAcquisitionDateTime=f"2020010112{number:02d}",
                StackID="1",
                DimensionIndexValues=[1, number + 1],
                FrameComments="abc",
            )
        ],
        PlanePositionSequence=[_item(ImagePositionPatient=[0, 0, number])],
        PlaneOrientationSequence=[_item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[_item(PixelSpacing=[1, 1], SliceThickness=1)],
        PixelValueTransformationSequence=[_item(RescaleSlope=1, RescaleIntercept=0)],
        MRDiffusionSequence=[
            _item(
                DiffusionBValue=float(number % 2),
                DiffusionDirectionality="DIRECTIONAL",
                DiffusionGradientDirectionSequence=[_item(DiffusionGradientOrientation=[1.0, 0.0, 0.0])],
            )
        ],
    )


_MACROS: dict[str, dict[str, Sequence[Any]]] = {
    "PixelMeasuresSequence": {
        "PixelSpacing": [[1, 1], [2, 1.5], "", b"1\\x ", [-1, 1]],
        "SliceThickness": [1, 2.5, "", b"thick "],
        "SpacingBetweenSlices": [1, -3, b"1_0 ", 1e9],
    },
    "PlaneOrientationSequence": {
        "ImageOrientationPatient": [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1], "", b"1\\0", [0] * 6],
    },
    "PlanePositionSequence": {"ImagePositionPatient": [[0, 0, 1], [0, 0, 2.5], "", b"0\\0 ", [1e7, 0, 0]]},
    "PlanePositionVolumeSequence": {"ImagePositionVolume": [[0.0, 0.0, 1.0], [1.0, 2.0, 3.0]]},
    "FrameContentSequence": {
        "DimensionIndexValues": [[1, 2], [1, 3], 7, b"\x01\x00"],
        "TemporalPositionIndex": [1, 2, b"\x01\x00\x00"],
        "FrameAcquisitionDateTime": ["20200101120000", "20200101120001.5", "never "],
        "FrameAcquisitionNumber": [1, 2],
        "FrameComments": ["x", "yy", "ä"],
        "StackID": ["1", "2", ""],
    },
    "MRDiffusionSequence": {
        "DiffusionBValue": [0.0, 1000.0, b"\x01\x00\x00"],
        "DiffusionDirectionality": ["ISOTROPIC", "DIRECTIONAL", "~~"],
        "DiffusionGradientDirectionSequence": [
            [],
            [_item(DiffusionGradientOrientation=[1.0, 0.0, 0.0])],
            [_item(DiffusionGradientOrientation=[0.0, 1.0, 0.0])],
            b"damaged ",
        ],
    },
    "CTImageFrameTypeSequence": {
        "FrameType": [["ORIGINAL", "PRIMARY"], ["DERIVED", "PRIMARY"], ""],
        "PixelPresentation": ["MONOCHROME", "COLOR"],
    },
    "RealWorldValueMappingSequence": {
        "LUTLabel": ["HU", "ADC"],
        "MeasurementUnitsCodeSequence": [[_item(CodeValue="[hnsf'U]")], [_item(CodeValue="mm2/s")]],
    },
    "PixelValueTransformationSequence": {"RescaleSlope": [1, 2], "RescaleIntercept": [0, -1024]},
    "FrameAnatomySequence": {"FrameLaterality": ["L", "R", "?!"]},
    "UnassignedPerFrameConvertedAttributesSequence": {
        "EchoTime": [10, 20, b"x "],
        "ImageType": [["A", "B"], ["C"]],
        "TimezoneOffsetFromUTC": ["+0100", "nowhere "],
    },
}


@st.composite
def _macro_items(draw: st.DrawFn, macro: str) -> Any:
    """Draw the items of a macro: mostly one, sometimes none, two, or bytes that are no sequence."""
    values = _MACROS[macro]
    items = []
    for _ in range(draw(st.sampled_from([1] * 8 + [0, 2]))):
        item = Dataset()
        for keyword in draw(st.lists(st.sampled_from(sorted(values)), unique=True)):
            choices = values[keyword]
            # damage is rare
            value = choices[draw(st.sampled_from([0] * 4 + [*range(len(choices))]))]
            _put(item, keyword, value)
        if draw(st.booleans()):
            item.add_new(0x20051010, "LO", "Philips MR Imaging DD 005")
            item.add_new(0x20011010, "LO", draw(st.sampled_from(["Philips Imaging DD 001", "other"])))
            item.add_new(0x20011008, "IS", draw(st.integers(0, 2)))
        items.append(item)
    return items


@st.composite
def _groups(draw: st.DrawFn, macros: Sequence[str]) -> Dataset:
    group = Dataset()
    for macro in macros:
        if draw(st.sampled_from([True] * 9 + [False])):
            _put(group, macro, draw(_macro_items(macro)))
    if draw(st.sampled_from([False, False, True])):
        for number in (0x20050010, 0x20051410):
            creator = draw(st.sampled_from(["Philips MR Imaging DD 005", "other"]))
            if number == 0x20050010:
                group.add_new(number, "LO", creator)
                continue
            item = Dataset()
            item.add_new(0x20050010, "LO", creator)
            item.add_new(0x20051012, "IS", draw(st.integers(0, 3)))
            item.EchoTime = 5
            group.add_new(0x20051014, "SQ", [item])
    return group


_TOP: list[dict[str, Any]] = [{}, {"TimezoneOffsetFromUTC": "+0200"}, {"SliceThickness": 3}]


@st.composite
def _files(draw: st.DrawFn) -> bytes:
    macros = draw(st.lists(st.sampled_from(sorted(_MACROS)), unique=True))
    shared = draw(st.lists(st.sampled_from(sorted(_MACROS)), unique=True))
    pool = [draw(_groups(macros)) for _ in range(draw(st.integers(1, 3)))]
    # a frame repeats one of the pool, but for some macros of another
    frames = []
    for _ in range(draw(st.integers(2, 6))):
        frame, other = draw(st.sampled_from(pool)), draw(st.sampled_from(pool))
        mixed = Dataset()
        for tag in list(frame.keys()):
            mixed._dict[tag] = (other if tag in other and draw(st.booleans()) else frame)._dict[tag]
        frames.append(mixed)
    data = _make_file(
        draw(_groups(shared)),
        frames,
        implicit=draw(st.booleans()),
        undefined=draw(st.booleans()),
        **draw(st.sampled_from(_TOP)),
    )
    if draw(st.sampled_from([False, False, True])):
        start = data.index(struct.pack("<HH", _PER_FRAME.group, _PER_FRAME.elem))
        at = draw(st.integers(start + 8, len(data) - 16 * len(frames) - 13))
        data = data[:at] + draw(st.binary(min_size=1, max_size=1)) + data[at + 1 :]
    return data


@settings(max_examples=2000 if SLOW else 100, deadline=None)
@given(data=_files())
def test_generated(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("groups") / "enhanced.dcm"
    path.write_bytes(data)
    assert_equal_to_plain(path)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("undefined", [False, True])
def test_read_instance_frames(tmp_path: Path, *, implicit: bool, undefined: bool) -> None:
    path = tmp_path / "enhanced.dcm"
    frames = [_frame(number) for number in range(5)]
    path.write_bytes(_make_file(Dataset(), frames, implicit=implicit, undefined=undefined))
    found = assert_equal_to_plain(path)
    assert isinstance(found, Instance)
    assert [facts.position for facts in found.facts] == [(0, 0, number) for number in range(5)]
    diffusion = [dict(facts.temporal_attributes)["diffusion"] for facts in found.facts]
    assert diffusion == [(number % 2, (1, 0, 0)) for number in range(5)]


def test_data_sets(real_data: Path) -> None:
    marked = [path for path in sorted(real_data.rglob("*")) if path.is_file() and _has_groups(path)]
    assert len(marked) > 50
    for path in sample(marked):
        assert_equal_to_plain(path)


def _has_groups(path: Path) -> bool:
    with path.open("rb") as file:
        return struct.pack("<HH", _PER_FRAME.group, _PER_FRAME.elem) in file.read(2**18)


def test_evaluate_each_calls_again_only_what_changed() -> None:
    views = FrameViews(_parse([_frame(number) for number in range(6)]), 6)
    calls: list[float] = []

    def get_thickness(view: Dataset) -> float:
        calls.append(float(view.SliceThickness))
        return calls[-1]

    def get_height(view: Dataset) -> float:
        return float(view.ImagePositionPatient[2])

    found = [(one(get_thickness), one(get_height)) for one in views.evaluate_each()]
    assert found == [(1, number) for number in range(6)]
    assert calls == [1]


def test_evaluate_each_elements_come_and_go() -> None:
    frames = [_frame(number) for number in range(4)]
    del frames[1].PixelMeasuresSequence
    del frames[2].PixelMeasuresSequence
    frames[3].PixelMeasuresSequence[0].SliceThickness = 7
    views = FrameViews(_parse(frames), 4)

    def get_thickness(view: Dataset) -> object:
        return view.get("SliceThickness")

    def list_tags(view: Dataset) -> int:
        return len(view)

    found = [(one(get_thickness), one(list_tags)) for one in views.evaluate_each()]
    plain = [(get_thickness(view), list_tags(view)) for view in views]
    assert found == plain
    assert [thickness for thickness, _ in found] == [1, None, None, 7]


def _parse(frames: Sequence[Dataset]) -> Dataset:
    return pydicom.dcmread(io.BytesIO(_make_file(Dataset(), frames, implicit=False, undefined=False)))


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("undefined", [False, True])
def test_locate_items_as_pydicom(*, implicit: bool, undefined: bool) -> None:
    frames = [_frame(number) for number in range(2)]
    data = b"".join(_encode_item(frame, implicit=implicit, undefined=undefined) for frame in frames)
    expected = convert_SQ(data, implicit, True)
    located = locate_items(data, implicit=implicit)
    found = [build_raw_elements(data, item, implicit=implicit) for item in located]
    assert [list(item) for item in found] == [list(item.keys()) for item in expected]
    assert [Dataset(dict(item)) for item in found] == list(expected)
    first = len(_encode_item(frames[0], implicit=implicit, undefined=undefined))
    for at in {*range(1, len(data))} - {first}:
        with pytest.raises(UnusualHeaderError):
            locate_items(data[:at], implicit=implicit)


#: Bytes that mean something in a sequence.
_TELLING = (
    b"\xff\xff\xff\xff",
    b"\xfe\xff\x00\xe0",
    b"\xfe\xff\x0d\xe0\0\0\0\0",
    b"\xfe\xff\xdd\xe0\0\0\0\0",
    b"SQ\0\0",
    b"UN\0\0",
    b"\x08\0\x05\0",
    b"\0\0\0\0",
)


def _mutate(data: bytes, start: int, draw: random.Random) -> bytes:
    """Return data with one to three changes behind an offset."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(start, max(start + 1, len(changed)))
        kind = draw.randrange(6)
        telling = draw.choice(_TELLING)
        if kind == 0:
            changed[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            changed[at : at + len(telling)] = telling
        elif kind == 2:
            changed[at:at] = telling
        elif kind == 3:
            del changed[at : at + draw.randint(1, 8)]
        elif kind == 4:
            other = draw.randrange(start, max(start + 1, len(changed)))
            changed[at:at] = changed[other : other + draw.randint(1, 64)]
        elif draw.randrange(4) == 0:
            del changed[at:]
    return bytes(changed)


def _private_frame(number: int) -> Dataset:
    """Return a frame with private sequences in sequences."""
    inner = _item(DiffusionBValue=float(number))
    inner.add_new(0x20050010, "LO", "Philips MR Imaging DD 005")
    inner.add_new(0x20051012, "SQ", [_item(EchoTime=number), Dataset()])
    frame = _frame(number)
    frame.add_new(0x20050010, "LO", "Philips MR Imaging DD 005")
    frame.add_new(0x20051014, "SQ", [inner])
    return frame


def _start_of_groups(data: bytes) -> int:
    return data.index(struct.pack("<HH", _PER_FRAME.group, _PER_FRAME.elem))


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("undefined", [False, True])
def test_mutations(tmp_path: Path, *, implicit: bool, undefined: bool) -> None:
    frames = [_private_frame(number) for number in range(3)]
    data = _make_file(Dataset(), frames, implicit=implicit, undefined=undefined)
    draw = random.Random(7)
    path = tmp_path / "enhanced.dcm"
    readable = 0
    for _ in range(1500 if SLOW else 30):
        path.write_bytes(_mutate(data, _start_of_groups(data), draw))
        readable += isinstance(assert_equal_to_plain(path), Instance)
    assert readable


def _outcome(data: bytes, *, implicit: bool, delimited: bool) -> int | list[Item] | str:
    try:
        if delimited:
            return find_sequence_end(data, implicit=implicit)
        return list(locate_items(data, implicit=implicit))
    except UnusualHeaderError as error:
        # whether more bytes help matters only where a sequence has no end
        return "ends" if delimited and error.ends else "unusual"


def _assert_walks_agree(data: bytes, *, implicit: bool, delimited: bool) -> int | list[Item] | str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_elements, "_LONG", 0)
        compiled = _outcome(data, implicit=implicit, delimited=delimited)
        patch.setattr(item_elements, "load_library", lambda: None)
        assert _outcome(data, implicit=implicit, delimited=delimited) == compiled
    return compiled


@pytest.mark.skipif(load_library() is None, reason="the compiled library is not used")
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("undefined", [False, True])
def test_compiled_walk_as_plain(*, implicit: bool, undefined: bool) -> None:
    frames = [_private_frame(number) for number in range(3)]
    items = b"".join(_encode_item(frame, implicit=implicit, undefined=undefined) for frame in frames)
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert _assert_walks_agree(items + end + b"rest", implicit=implicit, delimited=True) == len(items + end)
    assert len(list(locate_items(items, implicit=implicit))) == 3
    draw = random.Random(11)
    for _ in range(50_000 if SLOW else 500):
        mutated = _mutate(items, 0, draw)
        _assert_walks_agree(mutated, implicit=implicit, delimited=False)
        _assert_walks_agree(mutated + end, implicit=implicit, delimited=True)


_SEQUENCE = struct.pack("<HH2sHI", 0x2005, 0x1014, b"SQ", 0, 0xFFFFFFFF)
_ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
_ITEM_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def test_deep_sequences_are_left_to_pydicom() -> None:
    for depth, usual in ((16, True), (17, False), (50_000, False)):
        data = (_ITEM + _SEQUENCE) * depth + _ITEM + _ITEM_END + (_END + _ITEM_END) * depth
        found = _assert_walks_agree(data, implicit=False, delimited=False)
        assert (found != "unusual") == usual


def test_sequences_of_many_items_are_left_to_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_elements, "_MAX_LOCATED", 30)
    element = struct.pack("<HH2sH", 0x0018, 0x0050, b"DS", 0)
    for count, usual in ((15, True), (16, False)):
        data = (_ITEM + element + _ITEM_END) * count
        found = _assert_walks_agree(data, implicit=False, delimited=False)
        assert (found != "unusual") == usual
    for count, outcome in ((29, "ends"), (30, "unusual")):
        # the end of an item is not looked for
        found = _assert_walks_agree(_ITEM + element * count, implicit=False, delimited=True)
        assert found == outcome


@pytest.mark.parametrize(
    "groups",
    [
        b"",
        _END,
        _ITEM + _ITEM_END + _END,
        (_ITEM + _ITEM_END) * 2 + _END,
        (_ITEM + _ITEM_END) * 3 + _END,
        struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 2 + _END,
        (_ITEM + _SEQUENCE + _END + _ITEM_END) * 2 + _END,
        (_ITEM + _SEQUENCE + _ITEM + _ITEM_END + _END + _ITEM_END) * 2 + _END,
        struct.pack("<HHI", 0xFFFE, 0xE000, 10**6) * 2 + _END,
        (_ITEM + _ITEM_END) * 2,
        (_ITEM + _ITEM_END) * 2 + struct.pack("<HHI", 0xFFFE, 0xE0DD, 8),
        (_ITEM + struct.pack("<HH2sH", 0x0018, 0x0050, b"DS", 0xFFFE) + _ITEM_END) * 2 + _END,
    ],
    ids=str,
)
def test_unusual_groups_of_undefined_length(tmp_path: Path, groups: bytes) -> None:
    data = _make_file(Dataset(), [Dataset()] * 2, implicit=False, undefined=True)
    start = _start_of_groups(data) + 12
    path = tmp_path / "enhanced.dcm"
    path.write_bytes(data[:start] + groups + data[data.index(_END, start) + 8 :])
    assert_equal_to_plain(path)


@pytest.mark.parametrize("implicit", [False, True])
def test_groups_of_undefined_length_are_not_parsed(tmp_path: Path, *, implicit: bool) -> None:
    path = tmp_path / "enhanced.dcm"
    frames = [_private_frame(number) for number in range(3)]
    path.write_bytes(_make_file(Dataset(), frames, implicit=implicit, undefined=True))
    found = open_dataset(path)
    assert isinstance(found.get_item(_PER_FRAME), RawDataElement)
    assert found == pydicom.dcmread(path)
    assert "PixelData" in found


def test_sequences_of_undefined_length_within_short_items() -> None:
    frames = [_private_frame(number) for number in range(2)]
    for implicit in (False, True):
        first, second = (_encode_item(frame, implicit=implicit, undefined=True) for frame in frames)
        read = read_only_item(first, implicit=implicit)
        assert read is not None
        assert read.reread(first + first) is None
        again = read.reread(second)
        expected = read_only_item(second, implicit=implicit)
        # sequences within items differ, and are not compared value by value
        assert again is None
        assert expected is not None
        assert expected.reread(second) == expected


def test_reread_item() -> None:
    for implicit in (False, True):
        first, second = (
            _encode_item(_item(StackID=name, FrameComments="abc"), implicit=implicit, undefined=False)
            for name in ("1 ", "2 ")
        )
        read = read_only_item(first, implicit=implicit)
        assert read is not None
        again = read.reread(second)
        expected = read_only_item(second, implicit=implicit)
        assert again is not None
        assert expected is not None
        assert again.elements == expected.elements
        kept = Tag("FrameComments")
        assert again.elements[kept] is read.elements[kept]
        longer = _encode_item(_item(StackID="1", FrameComments="abcde"), implicit=implicit, undefined=False)
        assert read.reread(longer) is None


def _load_transforms(path: Path, order: Sequence[int], views: type[Any]) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_multi_frame_reader, "FrameViews", views)
        found = read_instance(Blob(str(path)))
        reader = MultiFrameReader(found, "rescaled", None, numbers=order)
        return [reader.load(found.frames[number]).transform for number in order]


@pytest.mark.parametrize("undefined", [False, True])
def test_transforms_of_frames(tmp_path: Path, *, undefined: bool) -> None:
    frames = [_frame(number) for number in range(8)]
    for number, frame in enumerate(frames):
        frame.PixelValueTransformationSequence[0].RescaleSlope = str(1 + number // 3)
        if number % 4:
            window = _item(WindowCenter=str(40 + number % 2), WindowWidth="400")
            frame.FrameVOILUTSequence = DicomSequence([window])
    path = tmp_path / "enhanced.dcm"
    size = {"Rows": 4, "Columns": 4}
    path.write_bytes(_make_file(Dataset(), frames, implicit=False, undefined=undefined, **size))
    order = [0, 1, 2, 7, 6, 3, 0, 5, 5, 4]
    found = _load_transforms(path, order, FrameViews)
    assert list(map(repr, found)) == list(map(repr, _load_transforms(path, order, PlainFrameViews)))
    assert {transform.slope for transform in found} == {1, 2, 3}
    assert found[7] is found[8]
