"""Headers of DICOM JSON equal those of files."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from medimg.errors import ReadError
from medimg.io.dicomweb import dicom_json
from medimg.io.dicomweb.dicom_json import encode_header, has_lost_backslashes, iterate_json, parse_json


def decode(item: dict[str, Any], tags: frozenset[int] | None = None) -> Dataset:
    wanted = frozenset(int(name, 16) for name in item) if tags is None else tags
    data = encode_header(item, wanted, lambda tag, uri: uri.encode())
    return pydicom.dcmread(io.BytesIO(data))


TEXT = st.text(st.characters(blacklist_characters="\\\0", blacklist_categories=("Cs", "Cc")), max_size=30)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=40, deadline=None)
@given(
    positions=st.lists(FLOATS, min_size=3, max_size=3),
    rows=st.integers(0, 65535),
    description=TEXT,
    times=st.lists(FLOATS, max_size=5),
    pointers=st.lists(st.integers(0, 2**32 - 1), max_size=3),
    data=st.binary(max_size=50),
)
def test_values_survive(  # noqa: PLR0917  # drawn by name
    positions: list[float], rows: int, description: str, times: list[float], pointers: list[int], data: bytes
) -> None:
    item = {
        "00200032": {"vr": "DS", "Value": positions},
        "00280010": {"vr": "US", "Value": [rows]},
        "0008103E": {"vr": "LO", "Value": [description]},
        "00189079": {"vr": "FD", "Value": times},
        "00280009": {"vr": "AT", "Value": [f"{n:08X}" for n in pointers]},
        "00281101": {"vr": "OW", "InlineBinary": base64.b64encode(data).decode()},
    }
    found = decode(json.loads(json.dumps(item)))
    assert [float(value) for value in found.ImagePositionPatient] == positions
    assert found.Rows == rows
    assert found.get("SeriesDescription", "") == description.rstrip() or description.strip() != description
    element = found["00189079"].value
    assert ([element] if isinstance(element, float) else list(element or [])) == times
    assert (found["00281101"].value or b"")[: len(data)] == data
    pointed = found["00280009"].value
    assert ([int(pointed)] if len(pointers) == 1 else [int(one) for one in pointed or []]) == pointers


def test_sequences_and_names() -> None:
    item = {
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}]},
        "00081140": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.3"]}}, {}, None]},
        "00100020": {"vr": "LO"},
        "00080008": {"vr": "CS", "Value": ["A", None, "B"]},
    }
    found = decode(item)
    assert found.PatientName == "Yamada^Tarou=山田^太郎"
    assert found.ReferencedImageSequence[0].ReferencedSOPInstanceUID == "1.2.3"
    assert len(found.ReferencedImageSequence) == 3
    assert found.PatientID in ("", None)
    assert list(found.ImageType) == ["A", "", "B"]


def test_only_what_is_wanted() -> None:
    item = {"00280010": {"vr": "US", "Value": [1]}, "00280011": {"vr": "US", "Value": ["no number"]}}
    assert "Columns" not in decode(item, frozenset({0x00280010}))


def test_bulk_data_are_read() -> None:
    item = {"00291010": {"vr": "OB", "BulkDataURI": "abc"}}
    assert decode(item)[0x00291010].value == b"abc\0"


@pytest.mark.parametrize(
    "element",
    [
        {},
        {"vr": "XX"},
        {"vr": 5},
        {"vr": "US", "Value": 5},
        {"vr": "US", "Value": ["x"]},
        {"vr": "US", "Value": [70000]},
        {"vr": "US", "Value": [1.5]},
        {"vr": "US", "Value": [True]},
        {"vr": "US", "Value": [None]},
        {"vr": "FD", "Value": [{}]},
        {"vr": "DS", "Value": [[]]},
        {"vr": "DS", "Value": [True]},
        {"vr": "AT", "Value": ["xyz"]},
        {"vr": "OB", "Value": [1]},
        {"vr": "OB", "InlineBinary": "%"},
        {"vr": "OB", "InlineBinary": 5},
        {"vr": "SQ", "Value": [5]},
        {"vr": "SQ", "Value": [{"x": {}}]},
        {"vr": "PN", "Value": [{"Alphabetic": 5}]},
        {"vr": "LO", "Value": ["x" * 2**17]},
    ],
)
def test_malformed_elements(element: dict[str, Any]) -> None:
    with pytest.raises(ReadError, match="malformed"):
        decode({"00280010": element})


def test_depth_is_bounded() -> None:
    item: dict[str, Any] = {"00280010": {"vr": "US", "Value": [1]}}
    for _ in range(40):
        item = {"00081140": {"vr": "SQ", "Value": [item]}}
    with pytest.raises(ReadError, match="levels"):
        decode(item)


def test_yen_signs_are_noticed() -> None:
    assert has_lost_backslashes({"00080008": {"vr": "CS", "Value": ["ORIGINAL¥PRIMARY"]}})
    assert not has_lost_backslashes({"00080008": {"vr": "CS", "Value": ["ORIGINAL", "PRIMARY"]}})
    assert not has_lost_backslashes({"0008103E": {"vr": "LO", "Value": ["100 ¥"]}})


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_an_error_or_objects(data: bytes) -> None:
    with contextlib.suppress(ReadError):
        assert isinstance(parse_json(data, "it"), list)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    items=st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), max_size=6),
    size=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 2]),
)
def test_long_lists_are_parsed_in_pieces(items: list[Any], size: int, indent: int | None) -> None:
    data = json.dumps(items, indent=indent, ensure_ascii=False).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dicom_json, "_PIECE", size)
        assert list(iterate_json(data, "it")) == items == parse_json(data, "it")
        for cut in range(1, len(data)):
            with pytest.raises(ReadError, match="not JSON"):
                list(iterate_json(data[:cut], "it"))


@settings(max_examples=300, deadline=None)
@given(
    data=st.binary(max_size=30) | st.text('[]{},: 1"a', max_size=20).map(str.encode), size=st.integers(1, 9)
)
def test_pieces_of_anything(data: bytes, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dicom_json, "_PIECE", size)
        found = expected = None
        with contextlib.suppress(ReadError):
            found = list(iterate_json(data, "it"))
        with contextlib.suppress(ReadError):
            expected = parse_json(data, "it")
    assert found == expected


def test_one_object_with_too_many_values_is_not_parsed() -> None:
    data = b'[{"a": [' + b"[]," * (2**21) + b"[]]}]"
    with pytest.raises(ReadError, match="JSON values for one instance"):
        list(iterate_json(data, "it"))
