"""
An attribute that is present but unusual is used rightly, or named in an error or a warning.

Each case is a small study that depends on one attribute. The attribute is then written blank, too long, with
another VR, with another separator, or with two values too many.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    MRImageStorage,
    SegmentationStorage,
)

import medimg
from medimg.errors import DecodeError, MedimgError, MedimgWarning
from medimg.io.dicom.header.attributes import get_codes, get_floats, get_identifier, get_integer
from medimg.io.dicom.header.element_values import collect_findings, parse_decimal
from tests.dicom_files import make_instance, stack_pixels, write
from tests.io.dicom.plain_scan import differences, plain_scan

_LONG_LENGTHS = frozenset({b"UT", b"UN", b"OB", b"OW", b"UC", b"UR", b"SV"})
_LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
_NUMBERS = {"US": "H", "SS": "h", "FD": "d", "FL": "f"}


def _make_slice(z: float = 0.0, number: int = 1, **attributes: Any) -> FileDataset:
    pixels = (stack_pixels(z, (4, 6)) + 7 * number).astype(np.uint16)
    found = {"ImagePositionPatient": [-10.0, -20.0, z], "InstanceNumber": number}
    return make_instance(pixels, **{**found, **attributes})


def _make_single(**attributes: Any) -> list[FileDataset]:
    return [_make_slice(**attributes)]


def _make_xray(**attributes: Any) -> list[FileDataset]:
    without: dict[str, Any] = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient"))
    kind = {"SOPClassUID": DigitalXRayImageStorageForPresentation, "Modality": "DX"}
    return [_make_slice(**{**kind, **without, **attributes})]


def _make_pair(keyword: str, one: Any, other: Any, **attributes: Any) -> list[FileDataset]:
    """Two images at one position that a single attribute distinguishes."""
    both = {"SOPClassUID": MRImageStorage, "Modality": "MR", "InstanceNumber": 5, **attributes}
    return [_make_slice(**{**both, keyword: one}), _make_slice(number=2, **{**both, keyword: other})]


def _make_unplaced() -> list[FileDataset]:
    without: dict[str, Any] = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient"))
    return [_make_slice(number=n, **without) for n in (2, 3, 1)]


#: Studies whose content depends on an attribute.
_STUDIES: dict[str, Callable[[], list[FileDataset]]] = {
    "PixelSpacing": _make_single,
    "ImagerPixelSpacing": lambda: _make_xray(PixelSpacing=None, ImagerPixelSpacing=[0.5, 0.25]),
    "PixelAspectRatio": lambda: _make_xray(PixelSpacing=None, PixelAspectRatio=[3, 2]),
    "ImagePositionPatient": lambda: [_make_slice(z) for z in (0.0, 2.5, 5.0)],
    "ImageOrientationPatient": lambda: _make_single(ImageOrientationPatient=[0.0, 1.0, 0.0, 0.0, 0.0, -1.0]),
    "SliceThickness": lambda: _make_single(SliceThickness=2.5),
    "SpacingBetweenSlices": lambda: _make_single(SpacingBetweenSlices=2.5),
    "RescaleSlope": lambda: _make_single(RescaleSlope="2.5"),
    "RescaleIntercept": _make_single,
    "RescaleType": lambda: _make_single(Modality="MR", RescaleType="US1"),
    "WindowCenter": lambda: _make_single(WindowCenter="40.5", WindowWidth="400"),
    "WindowWidth": lambda: _make_single(WindowCenter="40", WindowWidth="400.5"),
    "VOILUTFunction": lambda: _make_single(WindowCenter=40, WindowWidth=400, VOILUTFunction="SIGMOID"),
    "PresentationLUTShape": lambda: _make_xray(PresentationLUTShape="INVERSE"),
    "PhotometricInterpretation": lambda: _make_xray(PhotometricInterpretation="MONOCHROME1"),
    "Modality": _make_single,
    "Rows": _make_single,
    "Columns": _make_single,
    "BitsStored": lambda: _make_single(BitsStored=12, HighBit=11, PixelRepresentation=1),
    "HighBit": lambda: _make_single(BitsStored=12, HighBit=14),
    "PixelRepresentation": lambda: _make_single(PixelRepresentation=1, BitsStored=10, HighBit=9),
    "PixelPaddingValue": lambda: _make_single(PixelPaddingValue=1011),
    "SeriesInstanceUID": lambda: _make_pair("SeriesInstanceUID", "1.2.3.4.5", "1.2.3.4.6"),
    "StudyInstanceUID": lambda: _make_pair("StudyInstanceUID", "1.2.3.4.5", "1.2.3.4.6"),
    "SeriesNumber": lambda: _make_pair("SeriesNumber", 17, 18),
    "PatientID": lambda: _make_pair("PatientID", "P17", "P18"),
    "ImageType": lambda: _make_pair("ImageType", ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]),
    "EchoNumbers": lambda: _make_pair("EchoNumbers", 1, 2),
    "EchoTime": lambda: _make_pair("EchoTime", "12.5", "14.5"),
    "ConvolutionKernel": lambda: _make_pair("ConvolutionKernel", "B30f", "B60f"),
    "AcquisitionNumber": lambda: _make_pair("AcquisitionNumber", 11, 12),
    "TemporalPositionIdentifier": lambda: _make_pair("TemporalPositionIdentifier", 11, 12),
    "TriggerTime": lambda: _make_pair("TriggerTime", "10.5", "20.5"),
    "FrameReferenceTime": lambda: _make_pair("FrameReferenceTime", "10.5", "20.5"),
    "DiffusionBValue": lambda: _make_pair("DiffusionBValue", 0.5, 1000.5),
    "AcquisitionTime": lambda: _make_pair("AcquisitionTime", "101010.5", "101020.5"),
    "ContentTime": lambda: _make_pair("ContentTime", "101010.5", "101020.5"),
    "AcquisitionDateTime": lambda: _make_pair("AcquisitionDateTime", "20200131101010.5", "20200131101020.5"),
    "InversionTime": lambda: _make_pair("InversionTime", "100.5", "200.5"),
    "FlipAngle": lambda: _make_pair("FlipAngle", "10.5", "20.5"),
    "RepetitionTime": lambda: _make_pair("RepetitionTime", "100.5", "200.5"),
    "KVP": lambda: _make_pair("KVP", "80.5", "120.5", Modality="CT"),
    "NominalPercentageOfCardiacPhase": lambda: _make_pair("NominalPercentageOfCardiacPhase", 10.5, 20.5),
    "ScanOptions": lambda: _make_pair("ScanOptions", "FS", "FC"),
    "ReceiveCoilName": lambda: _make_pair("ReceiveCoilName", "HEAD 1", "HEAD 2"),
    "ImageLaterality": lambda: _make_pair("ImageLaterality", "L", "R"),
    "InstanceNumber": _make_unplaced,
}
_WAYS = ("blank", "too long", "text VR", "unknown VR", "separator", "two too many", "garbled")


def _split(element: pydicom.dataelem.RawDataElement) -> tuple[str, bytes]:
    assert element.VR is not None
    return element.VR, element.value or b""


def _make_unusual(vr: str, value: bytes, way: str) -> tuple[str, bytes]:
    """Return another VR and value for an element; binary numbers become text where a way needs one."""
    if way == "blank":
        return vr, b"" if vr in _NUMBERS else b"    "
    if way == "unknown VR":
        return "UN", value
    if vr in _NUMBERS:
        letter = _NUMBERS[vr]
        (number,) = struct.unpack(f"<{letter}", value)
        if way == "two too many":
            return vr, value * 3
        shapes = {"text VR": f"{number:g}", "too long": f"{number:020g}"}
        return "DS", shapes.get(way, f"{number:g},").encode()
    return _make_unusual_text(vr, value, way)


def _make_unusual_text(vr: str, value: bytes, way: str) -> tuple[str, bytes]:
    text = value.decode("ascii").strip(" \0")
    parts = text.split("\\")
    if way == "two too many":
        text = "\\".join((*parts, parts[-1], parts[-1]))
    elif way == "too long":
        text = "\\".join(_lengthen(vr, part) for part in parts)
    elif way == "garbled":
        text = f"~\x01{text}"
    elif way == "separator":
        other = text.replace("\\", ",").replace(".", ",")
        text = other if other != text else f"{text[:1]},{text[1:]}"
    return "UT" if way == "text VR" else vr, text.encode()


def _lengthen(vr: str, text: str) -> str:
    if vr in {"DS", "IS"}:
        sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
        return sign + digits.rjust(24, "0")
    if vr in {"TM", "DT"}:
        return text + "0" * 20
    return "1" * 70 + text


def _rewrite(path: Path, keyword: str, way: str) -> None:
    """Replace an element of a file."""
    parsed = pydicom.dcmread(path)
    element: Any = parsed.get_item(keyword)
    assert isinstance(element, pydicom.dataelem.RawDataElement)
    vr, value = _make_unusual(*_split(element), way)
    value += b"\0" * (len(value) % 2) if vr in {"UI", "UN", "OB"} else b" " * (len(value) % 2)
    tag, form = struct.pack("<HH", element.tag.group, element.tag.elem), vr.encode()
    size = struct.pack("<2xI" if form in _LONG_LENGTHS else "<H", len(value))
    data = path.read_bytes()
    at = element.value_tell - 8
    assert data[at : at + 4] == tag
    path.write_bytes(data[:at] + tag + form + size + value + data[element.value_tell + element.length :])


def _save(folder: Path, study: list[FileDataset]) -> list[Path]:
    return [write(ds, folder / f"{n}.dcm") for n, ds in enumerate(study)]


def _describe(folder: Path) -> tuple[list[Any], str]:
    """Return what each series of a folder says and holds, and all errors and warnings."""
    said: list[str] = []
    found: list[Any] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MedimgWarning)
        index = medimg.scan(folder)
        said += [s.reason for s in index.skipped]
        for series in index:
            try:
                volume = series.read()
            except MedimgError as error:
                said.append(str(error))
                found.append(("unread", series.shape))
                continue
            said += volume.report.warnings
            facts = (volume.modality, volume.units, volume.photometric, volume.inverted, volume.space)
            masked = None if volume.padding is None else volume.padding.tolist()
            values = volume.affine.round(9).tolist(), volume.array.tolist(), masked, str(volume.voi)
            found.append((facts, *values, len(volume.report.files), series.frame_times))
    said += [str(w.message) for w in caught if issubclass(w.category, MedimgWarning)]
    found.sort(key=str)
    return found, "; ".join(said)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keyword", _STUDIES)
def test_an_unusual_attribute_is_used_or_named(tmp_path: Path, keyword: str) -> None:
    study = _STUDIES[keyword]()
    _save(tmp_path / "usual", study)
    usual, _ = _describe(tmp_path / "usual")
    for ds in study:
        delattr(ds, keyword)
    _save(tmp_path / "absent", study)
    absent, _ = _describe(tmp_path / "absent")
    assert usual != absent, "the study does not depend on the attribute"
    for way in _WAYS:
        folder = tmp_path / way
        for path in _save(folder, _STUDIES[keyword]()):
            _rewrite(path, keyword, way)
        found, said = _describe(folder)
        is_named = keyword in said.replace(" ", "")
        if way == "blank":
            assert found == absent or is_named, (way, said)
        else:
            assert found == usual or is_named, (way, said)
        assert differences(medimg.scan(folder), plain_scan(folder)) == []
        assert "sentinel" not in said.lower()


@given(st.text(st.sampled_from("0123456789+-.eE, _\\nainf"), max_size=12))
@settings(max_examples=200, deadline=None)
def test_numbers_are_decimal_strings_or_noted(text: str) -> None:
    """PS3.5 6.2: digits, a sign, a point, an exponent; values are separated by backslashes."""
    ds = Dataset()
    ds.add(pydicom.DataElement("WindowCenter", "UT", text))
    with collect_findings() as findings:
        found = get_floats(ds, "WindowCenter")
    parts = [part.strip() for part in text.split("\\")]
    if not any(parts):
        assert found is None
        assert not findings
        return
    sound = all(set(part) <= set("0123456789+-.eE") for part in parts)
    assert (found is None) is bool(findings)
    if found is not None:
        assert sound
        assert found == tuple(float(part) for part in parts)


@pytest.mark.parametrize(
    "text", ["1_0", "nan", "inf", "Infinity", "1,5", "0x10", "１", "1e999", "", "1 2", "--1", "e5", "."]
)
def test_numbers_of_python_only_are_none(text: str) -> None:
    assert parse_decimal(text) is None


@pytest.mark.parametrize("text", ["1", "+1.", "-.5", "1E5", " 2 ", "00000000000000000000000001", "1e-999"])
def test_decimal_strings_are_numbers(text: str) -> None:
    assert parse_decimal(text) == float(text)


def test_large_whole_numbers_are_not_rounded() -> None:
    ds = Dataset()
    ds.add(pydicom.DataElement("InstanceNumber", "LO", "12345678901234567891"))
    assert get_integer(ds, "InstanceNumber") == 12345678901234567891


@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
@settings(max_examples=100, deadline=None)
def test_any_text_identifies(one: str, other: str) -> None:
    """Identifiers are equal exactly if their texts are, and never show what a wrong length swallowed."""
    found = []
    for text in (one, other):
        ds = Dataset()
        ds.add(pydicom.DataElement("SeriesInstanceUID", "UT", text))
        found.append(get_identifier(ds, "SeriesInstanceUID"))
        assert all(c.isprintable() or ord(c) > 0x7F for c in found[-1])
        assert "^" not in found[-1]
    same = [[p.strip(" \0") for p in t.split("\\")] for t in (one, other)]
    blank = [not any(parts) for parts in same]
    assert [not uid for uid in found] == blank
    assert (found[0] == found[1]) == (same[0] == same[1] or all(blank))


def test_image_types_of_any_text_differ() -> None:
    ds = Dataset()
    ds.add(pydicom.DataElement("ImageType", "LO", ["DERIVED", "X" * 40, "X" * 39 + "Y", "a^b"]))
    found = get_codes(ds, "ImageType")
    assert found[1:3] == ("X" * 40, "X" * 39 + "Y")
    assert "^" not in found[3]
    assert found[3] != ""


@pytest.mark.parametrize("value", [b"nan\\nan ", b"inf\\1 ", b"0\\0 ", b"-1\\-1 ", b"1e9\\1 ", b"1_0\\1 "])
def test_a_pixel_spacing_that_no_pixel_has_is_damage(tmp_path: Path, value: bytes) -> None:
    path = write(_make_slice(PixelSpacing=[0.1234, 0.5]), tmp_path / "one.dcm")
    data = path.read_bytes()
    old = b"DS\x0a\x000.1234\\0.5"
    assert old in data
    path.write_bytes(data.replace(old, b"DS" + struct.pack("<H", len(value)) + value))
    with pytest.raises(DecodeError, match="PixelSpacing"):
        medimg.read(path)


def test_an_xray_with_damaged_spacing_is_read_with_a_warning(tmp_path: Path) -> None:
    (ds,) = _make_xray(PixelSpacing=[0, 0])
    write(ds, tmp_path / "one.dcm")
    with pytest.warns(MedimgWarning, match="PixelSpacing is 0 and 0") as caught:
        volume = medimg.read(tmp_path / "one.dcm")
    assert volume.space == "image"
    assert not any("no pixel spacing" in str(w.message) for w in caught)


@pytest.mark.parametrize("value", ["nan", "1e6", "1_0"])
def test_a_position_that_is_none_is_damage(tmp_path: Path, value: str) -> None:
    path = write(_make_slice(ImagePositionPatient=["12345", "0", "7"]), tmp_path / "one.dcm")
    path.write_bytes(path.read_bytes().replace(b"12345\\0\\7", value.encode().ljust(5) + b"\\0\\7"))
    with pytest.raises(DecodeError, match="ImagePositionPatient"):
        medimg.read(path)


@pytest.mark.parametrize(
    ("slope", "intercept"),
    [("1e308", "0"), ("1", "1e39"), ("1e36", "-1"), ("0.5", "-1e300"), ("1e-320", "0")],
)
def test_values_beyond_float32_are_an_error(tmp_path: Path, slope: str, intercept: str) -> None:
    for number in (1, 2):
        ds = _make_slice(float(number), number, RescaleSlope=slope, RescaleIntercept=intercept)
        write(ds, tmp_path / f"{number}.dcm")
    with pytest.raises(DecodeError, match=r"Rescale ?Slope"):
        medimg.read(tmp_path)


def test_a_large_rescale_that_float32_holds_is_read(tmp_path: Path) -> None:
    ds = _make_slice(RescaleSlope="1e30", RescaleIntercept="0")
    volume = medimg.read(write(ds, tmp_path / "one.dcm"))
    assert np.isfinite(volume.array).all()
    assert volume.array.max() == np.float32(1e30 * float(stack_pixels(0, (4, 6)).max() + 7))


@pytest.mark.parametrize("sop_class", [SegmentationStorage, _LABEL_MAP, "1.2.3.4"])
@pytest.mark.parametrize("values", ["auto", "rescaled"])
def test_a_palette_does_not_change_segment_numbers(tmp_path: Path, sop_class: str, values: Any) -> None:
    labels = np.array([[0, 1], [2, 3]], np.uint8)
    ds = make_instance(
        labels,
        SOPClassUID=sop_class,
        Modality="SEG",
        PhotometricInterpretation="PALETTE COLOR",
        RescaleSlope=None,
        RescaleIntercept=None,
        SpacingBetweenSlices=1,
    )
    for color, table in (("Red", (0, 9, 0, 0)), ("Green", (0, 0, 9, 0)), ("Blue", (0, 0, 0, 9))):
        setattr(ds, f"{color}PaletteColorLookupTableDescriptor", [4, 0, 16])
        setattr(ds, f"{color}PaletteColorLookupTableData", np.array(table, "<u2").tobytes())
        ds[f"{color}PaletteColorLookupTableData"].VR = "OW"
    for number in (1, 2):
        ds.ImagePositionPatient, ds.SOPInstanceUID = [0, 0, number], f"1.2.{number}"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        write(ds, tmp_path / f"{number}.dcm")
    volume = medimg.read(tmp_path, values=values)
    assert volume.shape == (1, 2, 2, 2)
    assert np.array_equal(volume.array[0, 0], labels)
    ds.SOPClassUID, ds.Modality = DigitalXRayImageStorageForPresentation, "DX"
    assert medimg.read(write(ds, tmp_path / "color" / "one.dcm")).photometric == "RGB"


def test_a_narrow_window_is_used_and_noted(tmp_path: Path) -> None:
    (ds,) = _make_xray(WindowCenter="0.4565", WindowWidth="0.913")
    with pytest.warns(MedimgWarning, match="WindowWidth is 0.913"):
        volume = medimg.read(write(ds, tmp_path / "one.dcm"))
    assert volume.voi == ((medimg.Window(0.4565, 0.913, "LINEAR_EXACT"),),)
    (ds,) = _make_xray(WindowCenter="1", WindowWidth="0")
    with pytest.warns(MedimgWarning, match="WindowWidth is 0"):
        assert medimg.read(write(ds, tmp_path / "two.dcm")).voi == ()


def test_a_damaged_modality_lut_is_no_absent_one(tmp_path: Path) -> None:
    ds = _make_slice()
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4, 0, 16], np.arange(4, dtype="<u2").tobytes()
    ds.ModalityLUTSequence = [item]
    path = write(ds, tmp_path / "one.dcm")
    data = path.read_bytes()
    at = data.index(b"\x28\x00\x00\x30SQ") + 4
    path.write_bytes(data[:at] + b"OB" + data[at + 2 :].replace(b"\xfe\xff\x00\xe0", b"\xfe\xff\x01\xe0", 1))
    with pytest.raises(MedimgError):
        medimg.read(path)


@pytest.mark.parametrize("vr", [b"SQ", b"OB", b"UN"])
@pytest.mark.parametrize(
    ("keyword", "is_error"),
    [("VOILUTSequence", False), ("ModalityLUTSequence", True), ("SharedFunctionalGroupsSequence", True)],
)
def test_bytes_that_are_no_sequence_are_named(
    tmp_path: Path, keyword: str, is_error: bool, vr: bytes
) -> None:
    """Pydicom makes an item without attributes of them, which is not the same as an empty sequence."""
    ds = _make_slice()
    ds.add(pydicom.DataElement(keyword, "OB", b"no items"))
    path = write(ds, tmp_path / "one.dcm")
    data = path.read_bytes()
    at = data.index(b"no items") - 8
    path.write_bytes(data[:at] + vr + data[at + 2 :])
    found, said = _describe(tmp_path)
    assert f"{keyword} is present but is not a sequence" in said
    assert (found == [] or found[0][0] == "unread") is is_error


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("LUTData", (1, 2.5, 3, 4)), ("LUTData", (1, 2, 3, 65536)), ("LUTDescriptor", (4, 0.5, 16))],
)
def test_tables_hold_whole_numbers(tmp_path: Path, keyword: str, value: tuple[float, ...]) -> None:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4, 0, 16], [1, 2, 3, 4]
    item["LUTData"].VR = "US"
    item[keyword] = pydicom.DataElement(keyword, "FD", list(value))
    ds = _make_slice(VOILUTSequence=[item])
    with pytest.warns(MedimgWarning, match="VOILUTSequence: a lookup table"):
        assert medimg.read(write(ds, tmp_path / "one.dcm")).voi == ()


def test_series_numbers_of_many_digits_differ(tmp_path: Path) -> None:
    for number in (1, 2):
        ds = _make_slice(number=number)
        ds.add(pydicom.DataElement("SeriesNumber", "LO", f"9999999999999999999{number}"))
        write(ds, tmp_path / f"{number}.dcm")
    index = medimg.scan(tmp_path)
    assert [len(series.files) for series in index] == [1, 1]
    assert differences(index, plain_scan(tmp_path)) == []


def test_several_echo_numbers_are_valid(tmp_path: Path) -> None:
    """Echo Number(s) has one or more values (PS3.6)."""
    for n, ds in enumerate(_make_pair("EchoNumbers", [1, 2], [3, 4])):
        write(ds, tmp_path / f"{n}.dcm")
    found, said = _describe(tmp_path)
    assert len(found) == 2
    assert "EchoNumbers" not in said
