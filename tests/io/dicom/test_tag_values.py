"""``Series.tags``: values of classic and enhanced files, absent, valid and invalid ones."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ImplicitVRLittleEndian

import medimg
from medimg.errors import MedimgWarning
from medimg.io.dicom.header.attributes import quiet_pydicom
from tests.dicom_files import make_instance, write
from tests.io.dicom.kinds import of_first_files

PIXELS = np.zeros((4, 4), np.int16)


def tags_of(ds: FileDataset, *names: Any) -> list[Any]:
    return list(medimg.scan(ds)[0].tags(*names).values())


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian])
def test_values_have_the_types_of_python(syntax: str | None, tmp_path: Path) -> None:
    ds = make_instance(PIXELS, KVP="1.2e2", EchoNumbers=[1, 2], PatientComments="one\\two\nthree")
    ds.SmallestImagePixelValue = -5
    ds["SmallestImagePixelValue"].VR = "SS"
    ds.FrameIncrementPointer = [0x00181063, 0x00181065]
    ds.RedPaletteColorLookupTableData = b"\1\0\2\0"
    ds.SpecificCharacterSet, ds.PatientName = "ISO_IR 100", "Müller^Jörg"
    ds.FrameReferenceDateTime = "20200101"
    ds.MagneticFieldStrength = None
    ds.add_new(0x00189073, "FD", 1.5)
    block = ds.private_block(0x0019, "MAKER", create=True)
    block.add_new(0x0C, "DS", "1.5")
    source: Any = ds
    if syntax is not None:
        ds.file_meta.TransferSyntaxUID = UID(syntax)
        source = write(ds, tmp_path / "a.dcm")
    found = medimg.scan(source)[0].tags(
        "KVP", "EchoNumbers", "PatientComments", "SmallestImagePixelValue", "FrameIncrementPointer",
        "RedPaletteColorLookupTableData", "PatientName", "Rows", "PixelSpacing", "FrameReferenceDateTime",
        "MagneticFieldStrength", "AcquisitionDuration", "SOPClassUID", "TransferSyntaxUID", "PatientAge",
    )  # fmt: skip
    assert list(found.values()) == [
        120.0, (1, 2), "one\\two\nthree", -5, ("0018,1063", "0018,1065"), b"\1\0\2\0", "Müller^Jörg", 4,
        (0.8, 0.6), "20200101", None, 1.5, str(ds.SOPClassUID), str(ds.file_meta.TransferSyntaxUID), None,
    ]  # fmt: skip
    assert [type(value) for value in found.values()][:4] == [float, tuple, str, int]
    private = medimg.scan(source)[0].tags(
        "0019,xx0c,maker", (0x0019, 0x0C, "MAKER"), "0019,xx0c,OTHER", 0x0019100C
    )
    # without VRs, nobody knows what a private element is
    value = b"1.5 " if syntax == ImplicitVRLittleEndian else 1.5
    assert list(private.values()) == [value, value, None, value]


@pytest.mark.parametrize(
    ("vr", "keyword", "value"),
    [
        ("DS", "KVP", b"1,5 "),
        ("DS", "KVP", b"nan "),
        ("IS", "EchoNumbers", b"1.5 "),
        ("FD", "AcquisitionDuration", np.float64("nan").tobytes()),
        ("LO", "Manufacturer", b"a\0b\1"),
        ("SQ", "RadiopharmaceuticalInformationSequence", b"no sequence"),
        ("FD", "Manufacturer", b"\1\2\3\4\5\6\7\x08"),
    ],
)
def test_invalid_values_are_neither_absent_nor_given(
    vr: str, keyword: str, value: bytes, tmp_path: Path
) -> None:
    # pydicom would write the value anew
    path = write(make_instance(PIXELS), tmp_path / "a.dcm")
    tag = Tag(keyword)
    element = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little") + vr.encode()
    element += (
        (b"\0\0" + len(value).to_bytes(4, "little")) if vr == "SQ" else len(value).to_bytes(2, "little")
    )
    data = path.read_bytes()
    before = [e.tag for e in pydicom.dcmread(path, stop_before_pixels=True)]
    following = min((t for t in [*before, Tag("PixelData")] if t > tag), key=int)
    start = following.group.to_bytes(2, "little") + following.element.to_bytes(2, "little")
    at = data.index(start, 132 + 12)
    path.write_bytes(data[:at] + element + value + data[at:])
    series = medimg.scan(path)[0]
    with pytest.warns(MedimgWarning, match=f"{keyword} of .*a.dcm: present but invalid"):
        assert series.tags(keyword, "Rows") == {keyword: None, "Rows": 4}
    with pytest.warns(MedimgWarning, match=f"{keyword} is present but invalid in 1 of 1 series"):
        table = medimg.scan(path).to_pandas(tags=[keyword])
    assert table[keyword].isna().all()
    with pytest.warns(MedimgWarning):
        assert not len(medimg.scan(path).where(**{keyword: None}))


def test_blank_is_absent() -> None:
    ds = make_instance(PIXELS, KVP="", Manufacturer="  ", RadiopharmaceuticalInformationSequence=[])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            tags_of(ds, "KVP", "Manufacturer", "RadiopharmaceuticalInformationSequence", "EchoTime")
            == [None] * 4
        )


def test_items_of_a_sequence_withhold_what_identifies() -> None:
    item = Dataset()
    item.OperatorsName, item.RadionuclideTotalDose = "Sentinel^Name", 370
    ds = make_instance(PIXELS, RadiopharmaceuticalInformationSequence=[item])
    ((found,),) = tags_of(ds, "RadiopharmaceuticalInformationSequence")
    assert "Sentinel" not in repr(found)
    assert found.OperatorsName == "Sentinel^Name"
    assert found.RadionuclideTotalDose == 370


def make_enhanced(orders: tuple[float, ...] = (0.0, 2.0, 4.0)) -> FileDataset:
    """Three frames with echo times of their own, and one repetition time."""
    shared, timing = Dataset(), Dataset()
    timing.RepetitionTime = 2000
    shared.MRTimingAndRelatedParametersSequence = [timing]
    groups = []
    for z in orders:
        group, position, echo = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, z]
        echo.EffectiveEchoTime = 10.0
        group.PlanePositionSequence, group.MREchoSequence = [position], [echo]
        content = Dataset()
        content.FrameComments = f"z {z:g}"
        group.FrameContentSequence = [content]
        groups.append(group)
    ds = make_instance(PIXELS, Modality="MR", ImagePositionPatient=None, NumberOfFrames=len(groups))
    ds.PixelData = PIXELS.tobytes() * len(groups)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], groups
    return ds


@pytest.mark.parametrize("orders", [(0.0, 2.0, 4.0), (4.0, 2.0, 0.0)])
def test_functional_groups_are_those_of_the_first_slice(orders: tuple[float, ...]) -> None:
    series = medimg.scan(make_enhanced(orders))[0]
    first = series.reader.plan.first.facts.position[2]  # type: ignore[attr-defined]  # of DICOM
    found = series.tags(
        "RepetitionTime", "EffectiveEchoTime", "ImagePositionPatient", "FrameComments", "Modality"
    )
    assert list(found.values()) == [2000.0, 10.0, (0.0, 0.0, first), f"z {first:g}", "MR"]
    assert len(series.tags("PerFrameFunctionalGroupsSequence").popitem()[1]) == 3  # type: ignore[arg-type]  # a tuple
    assert "RepetitionTime" not in series.header
    assert series.header.SharedFunctionalGroupsSequence[0].MRTimingAndRelatedParametersSequence


def test_first_slice_of_a_stack_gives_the_value(tmp_path: Path) -> None:
    for number, z in enumerate((4.0, 0.0, 2.0)):
        ds = make_instance(PIXELS, ImagePositionPatient=[0, 0, z], XRayTubeCurrent=100 + number)
        write(ds, tmp_path / f"{number}.dcm")
    index, saved = medimg.scan(tmp_path), tmp_path.with_suffix(".sqlite")
    first = int(Path(index[0].path).stem)
    assert index[0].tags("XRayTubeCurrent") == {"XRayTubeCurrent": 100 + first}
    for _ in range(2):
        again = medimg.scan(tmp_path, index=saved)
        assert again.to_pandas(tags=["XRayTubeCurrent"]).equals(index.to_pandas(tags=["XRayTubeCurrent"]))
        assert again[0].header == index[0].header


def test_values_of_real_files_are_those_of_pydicom(real_data: Path) -> None:
    """All top-level attributes of a series' first file, against pydicom's values."""
    several = [series for path in of_first_files(real_data) for series in medimg.scan(path)]
    assert sum(map(compare_with_pydicom, several)) > 100


def compare_with_pydicom(series: medimg.Series) -> int:
    with quiet_pydicom():
        plain = pydicom.dcmread(series.path, force=True, stop_before_pixels=True)
        if "PerFrameFunctionalGroupsSequence" in plain:
            return 0
        expected = {tag: plain[tag] for tag in map(BaseTag, list(plain.keys()))}
        values = series.tags(*(f"{tag:08x}" for tag in expected)).values()
    found = dict(zip(expected, values, strict=True))
    count = 0
    for tag, element in expected.items():
        if element.VR in ("DS", "IS", "US", "SS", "FD", "FL", "UL", "SL") and element.value not in (None, ""):
            several = tuple(element.value) if element.VM > 1 else (element.value,)
            value = found[tag]
            assert (value if isinstance(value, tuple) else (value,)) == tuple(map(float, several)), tag
            count += 1
        elif element.VR in ("CS", "LO", "SH", "UI", "DA", "TM", "AS") and element.VM == 1:
            assert found[tag] in (str(element.value).strip(" \0") or None, None), tag
            count += 1
    return count
