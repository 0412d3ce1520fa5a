"""Functional groups of many frames: the fast evaluation equals the plain one."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import Tag
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.values import convert_SQ

from medimg.errors import MedimgError
from medimg.io.dicom.header import instance
from medimg.io.dicom.header.elements import UnusualHeaderError
from medimg.io.dicom.header.functional_groups import FrameViews
from medimg.io.dicom.header.instance import Instance, read_instance
from medimg.io.dicom.header.item_elements import build_raw_elements, locate_items
from medimg.io.files.blob import Blob
from tests.io.dicom.plain_groups import PlainFrameViews
from tests.sampling import SLOW, sample

_EXPLICIT_LONG = frozenset(["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"])
_PER_FRAME = Tag("PerFrameFunctionalGroupsSequence")


def _read(path: Path, views: type[Any]) -> Instance | tuple[type[Exception], str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instance, "FrameViews", views)
        try:
            return read_instance(Blob(str(path)))
        except MedimgError as error:
            return type(error), str(error)


def assert_equal_to_plain(path: Path) -> Instance | tuple[type[Exception], str]:
    found = _read(path, FrameViews)
    expected = _read(path, PlainFrameViews)
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
