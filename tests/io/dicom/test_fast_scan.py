"""Headers read in blocks, against each file by itself."""

from __future__ import annotations

import os
import random
import struct
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, ImplicitVRLittleEndian

import medimg
from medimg._native.library import describe_library, load_library
from medimg.errors import MedimgError
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.header.elements import UnusualHeaderError, build_dataset, locate_elements
from medimg.io.dicom.header.instance import HEADER_TAGS, Instance, read_instance
from medimg.io.dicom.header.open import open_dataset, to_tags
from medimg.io.dicom.scanning import series_table
from medimg.io.dicom.scanning.uniform_scan import scan_uniform_files
from medimg.io.files.blob import Blob
from medimg.testing import strategies, studies
from tests.dicom_files import make_instance, write
from tests.io.dicom.kinds import of_each_folder
from tests.io.dicom.plain_scan import differences, parsed_header, plain_scan
from tests.sampling import SLOW, sample

PIXELS = np.zeros((4, 4), np.uint16)
DATA_SETS = ("dicom_misc", "dicom_qa", "malformed", "cls/covid_ct_md_dev")


@pytest.fixture(autouse=True, params=["compiled", "plain"])
def both_walkers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test with the compiled library, and without it."""
    if request.param == "plain":
        monkeypatch.setattr("medimg.io.dicom.scanning.header_groups.load_library", lambda: None)
    elif load_library() is None:
        pytest.skip(f"the compiled library is {describe_library()}")


def every_file(root: Path) -> list[Path]:
    return [path for path in sorted(root.rglob("*")) if path.is_file()]


def parsed(name: str) -> Instance:
    """Return what pydicom makes of the header of a file."""
    with patch("medimg.io.dicom.header.instance.open_header", parsed_header):
        return read_instance(Blob(name))


sound = cache(parsed)


def check(names: list[str], *, workers: int | None = None) -> int:
    """Compare what is collected with each file read by itself; return how many took the fast way."""
    alike, rest = scan_uniform_files(names, workers=workers)
    taken = [n for files in alike for n in files.indices]
    assert sorted(taken + rest) == list(range(len(names)))
    expected = {name: parsed(name) for files in alike for name in set(files.names)}
    for files in alike:
        for row, name in enumerate(files.names):
            assert names[files.indices[row]] == name
            assert files.get_instance(row) == expected[name], name
        positions = [expected[name].facts[0].position for name in files.names]
        if files.positions is not None:
            assert files.positions.tolist() == [list(position or ()) for position in positions]
    return len(taken)


def siblings(folder: Path, count: int = 8, *, syntax: str | None = None, **attributes: Any) -> list[str]:
    """Slices of one series, whose numbers and positions are written in more or fewer letters."""
    names = []
    for n in range(count):
        facts: dict[str, Any] = {
            "SeriesInstanceUID": "1.2.3",
            "SOPInstanceUID": f"1.2.3.{10**n}",
            "InstanceNumber": 3**n,
            "ImagePositionPatient": [-10, -20.5, 2.25 * n],
            "ContentTime": f"1200{n:02d}" + ".5" * (n % 2),
            "SliceLocation": 2.25 * n,
            "SeriesDescription": "chest",
        }
        ds = make_instance(PIXELS, **facts)
        for keyword, value in attributes.items():
            if value is not None:
                setattr(ds, keyword, value)
            elif keyword in ds:
                delattr(ds, keyword)
        if syntax:
            ds.file_meta.TransferSyntaxUID = UID(syntax)
        names.append(str(write(ds, folder / f"{n}.dcm")))
    return names


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian])
def test_siblings_are_read_without_a_parser(tmp_path: Path, syntax: str | None) -> None:
    names = siblings(tmp_path, syntax=syntax)
    assert check(names) == len(names)
    alike, _ = scan_uniform_files(names)
    assert len(alike) == 1
    index = medimg.scan(tmp_path)
    assert index[0].shape == (1, 8, 4, 4)
    assert differences(index, plain_scan(tmp_path)) == []


def test_series_are_told_apart(tmp_path: Path) -> None:
    names = siblings(tmp_path / "a") + siblings(tmp_path / "b", SeriesInstanceUID="1.2.4")
    names += siblings(tmp_path / "c", SeriesInstanceUID="1.2.5", PatientID="other")
    names += siblings(tmp_path / "d", SeriesInstanceUID="1.2.6", StudyInstanceUID="9.9")
    names += siblings(tmp_path / "e", SeriesInstanceUID="1.2.7", ConvolutionKernel="B70")
    assert check(random.Random(1).sample(names, len(names))) == 40
    index = medimg.scan(tmp_path)
    assert [s.uid for s in index] == ["1.2.3", "1.2.4", "1.2.5", "1.2.6", "1.2.7"]
    assert differences(index, plain_scan(tmp_path)) == []


# pydicom warns of values that are no times when it writes them
@pytest.mark.filterwarnings("ignore:.*value for VR:UserWarning")
@pytest.mark.parametrize(
    "attributes",
    [
        {"InstanceNumber": None},
        {"ImagePositionPatient": None},
        {"ImagePositionPatient": [1e6, 0, 0]},
        {"PatientID": "Müller", "SpecificCharacterSet": "ISO_IR 100"},
        {"PatientID": "a~b", "SpecificCharacterSet": "ISO_IR 13"},
        {"SeriesInstanceUID": None},
        {"NumberOfFrames": 1},
        {"ContentTime": "12:00:01", "AcquisitionTime": "240000", "AcquisitionDateTime": "20200101120000.5"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"ImageOrientationPatient": None},
        {"Modality": "MR", "EchoTime": 30, "EchoNumbers": 2, "TriggerTime": 12.5},
    ],
    ids=",".join,
)
def test_every_fact_is_as_a_parser_finds_it(tmp_path: Path, attributes: dict[str, Any]) -> None:
    names = siblings(tmp_path, **attributes)
    check(names)
    assert differences(medimg.scan(tmp_path), plain_scan(tmp_path)) == []


@pytest.mark.parametrize("unplaced", [[0], [3], [0, 1, 2]])
def test_damaged_spacing_matters_to_files_with_a_position(tmp_path: Path, unplaced: list[int]) -> None:
    """A file without one is read with a warning, and says nothing of the others."""
    siblings(tmp_path, PixelSpacing=[0, 0])
    for number in unplaced:
        path = tmp_path / f"{number}.dcm"
        ds = dcmread(path)
        del ds.ImagePositionPatient
        write(ds, path)
    index = medimg.scan(tmp_path)
    assert len(index.skipped) == 8 - len(unplaced)
    assert differences(index, plain_scan(tmp_path)) == []


ODD = {
    "sop_uid": ("SOPInstanceUID", b"1.2 3\\4 "),
    "number": ("InstanceNumber", b"1\\2 "),
    "position": ("ImagePositionPatient", b"1\\2\\3\\4 "),
    "two_numbers": ("ImagePositionPatient", b"1\\2 "),
    "no_number": ("ImagePositionPatient", b"1\\\\3"),
    "infinite": ("ImagePositionPatient", b"1\\2\\1e999 "),
    "words": ("ImagePositionPatient", b"a\\b\\c "),
    "time": ("ContentTime", b"12\\13 "),
    "inner_zero": ("SOPInstanceUID", b"1.2\0003.4"),
    "leading_space": ("SOPInstanceUID", b" 1.2.3"),
    "underscore": ("ImagePositionPatient", b"1_0\\2\\3 "),
    "patient": ("PatientID", b"a\\b\n"),
    "series": ("SeriesInstanceUID", b"1.2\\3."),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_values_of_some_files_go_through_the_parser(tmp_path: Path, name: str) -> None:
    keyword, value = ODD[name]
    names = siblings(tmp_path)
    for number in (2, 5):
        data = Path(names[number]).read_bytes()
        outline = locate_elements(data)
        element = next(e for e in outline.elements if e.tag == tag_for_keyword(keyword))
        changed = data[: element.at] + data[element.at : element.at + 6]
        changed += struct.pack("<H", len(value)) + value + data[element.value + element.length :]
        Path(names[number]).write_bytes(changed)
    assert check(names) >= 6 - 2 * (name in ("patient", "series"))


def nested(value: str, count: int, *, endless: bool) -> Dataset:
    ds = Dataset()
    items = []
    for n in range(count):
        item = Dataset()
        item.ReferencedSOPInstanceUID = f"{value}.{n}"
        item.is_undefined_length_sequence_item = endless
        items.append(item)
    ds.ReferencedImageSequence = DicomSequence(items)
    return ds


@pytest.mark.parametrize("endless", [False, True], ids=["with_length", "without_length"])
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
def test_sequences_are_walked(tmp_path: Path, syntax: str | None, *, endless: bool) -> None:
    names = []
    for n in range(8):
        ds = make_instance(
            PIXELS, SOPInstanceUID=f"1.2.{n}", ImagePositionPatient=[0, 0, n], SeriesDescription="x"
        )
        ds.update(nested("1.2" + ".3" * (n % 3), 1 + (n > 5), endless=endless))
        ds["ReferencedImageSequence"].is_undefined_length = endless
        if syntax:
            ds.file_meta.TransferSyntaxUID = UID(syntax)
        names.append(str(write(ds, tmp_path / f"{n}.dcm")))
    assert check(names) == 8


@pytest.mark.parametrize("endless", [False, True], ids=["with_length", "without_length"])
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
def test_values_within_sequences_are_compared(tmp_path: Path, syntax: str | None, *, endless: bool) -> None:
    names = []
    for n in range(12):
        region = Dataset()
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
        region.RegionSpatialFormat = 1
        region.PhysicalDeltaX, region.PhysicalDeltaY = (0.01, 0.02) if n % 3 else (0.03, 0.04)
        region.ImageComments = "x" * (n % 2)
        region.is_undefined_length_sequence_item = endless
        ds = make_instance(PIXELS, SOPInstanceUID=f"1.2.{n}", PixelSpacing=None, SeriesDescription="x")
        ds.SequenceOfUltrasoundRegions = DicomSequence([region] * (1 + (n > 8)))
        ds["SequenceOfUltrasoundRegions"].is_undefined_length = endless
        if syntax:
            ds.file_meta.TransferSyntaxUID = UID(syntax)
        names.append(str(write(ds, tmp_path / f"{n:02d}.dcm")))
    assert check(names) == 12


def test_headers_longer_than_what_is_read_first(tmp_path: Path) -> None:
    names = siblings(tmp_path / "long", TextValue="x" * 9000)
    names += siblings(tmp_path / "longer", TextValue="y" * 60000, SeriesInstanceUID="1.2.9")
    names += siblings(tmp_path / "short", SeriesInstanceUID="1.2.10")
    assert check(names) == 24


def test_many_layouts(tmp_path: Path) -> None:
    names = []
    for n in range(60):
        ds = make_instance(PIXELS, SOPInstanceUID=f"1.2.{n}", ImagePositionPatient=[0, 0, n])
        block = ds.private_block(0x0011, "TEST", create=True)
        for bit in range(6):
            if n >> bit & 1:
                block.add_new(bit, "LO", f"value {bit}")
        names.append(str(write(ds, tmp_path / f"{n}.dcm")))
    assert check(names * 3) == 180
    assert len(scan_uniform_files(names)[0]) == 1


def test_what_is_no_usual_file_is_left(tmp_path: Path) -> None:
    names = siblings(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello " * 1000)
    (tmp_path / "cut").write_bytes(Path(names[0]).read_bytes()[:300])
    (tmp_path / "bare").write_bytes(Path(names[0]).read_bytes()[132:])
    others = [str(tmp_path / name) for name in ("empty", "text", "cut", "bare", "absent")]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        others.append(str(tmp_path / "pipe"))
    alike, rest = scan_uniform_files([others[0], *names, *others[1:], "null\0character"])
    assert [len(files.names) for files in alike] == [8]
    assert rest == [0, *range(9, 9 + len(others))]


@pytest.mark.parametrize("name", ["null\0character", "half\ud800", "y" * 5000])
def test_a_name_that_the_system_refuses_does_not_hide_others(tmp_path: Path, name: str) -> None:
    names = siblings(tmp_path)
    alike, rest = scan_uniform_files([*names[:3], name, *names[3:]])
    assert [len(files.names) for files in alike] == [8]
    assert rest == [3]


@pytest.mark.skipif(os.open not in os.supports_dir_fd, reason="no file has a longer path than is allowed")
def test_a_path_that_is_too_long_is_left(tmp_path: Path) -> None:
    """Its folder can be opened, but the file can't be read by its path."""
    most = os.pathconf(tmp_path, "PC_PATH_MAX")
    names = siblings(tmp_path / "files", 4)
    folder, path = os.open(tmp_path, os.O_RDONLY), str(tmp_path)
    while len(path) < most - 12:
        name = "d" * min(200, most - 12 - len(path))
        os.mkdir(name, dir_fd=folder)
        outer, folder = folder, os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(outer)
        path += f"/{name}"
    for n, name in enumerate(names):
        os.link(name, f"{n}" * (1 + 20 * (n % 2)), dst_dir_fd=folder)
    found = [f"{path}/{name}" for name in sorted(os.listdir(folder))]  # noqa: PTH208  # by a descriptor
    os.close(folder)
    alike, rest = scan_uniform_files(found)
    assert [files.indices for files in alike] == [[0, 2]]
    assert rest == [1, 3]
    assert differences(medimg.scan(tmp_path), plain_scan(tmp_path)) == []


def test_a_file_that_ends_early_is_not_taken_for_its_neighbor(tmp_path: Path) -> None:
    """A block is used again: behind the end of a short file lie the bytes of another."""
    names = siblings(tmp_path)
    whole = Path(names[3]).read_bytes()
    end = locate_elements(whole).pixels.at
    for count in range(130, end + 1, 7):
        Path(names[3]).write_bytes(whole[:count])
        alike, rest = scan_uniform_files(names)
        assert rest == [3], count
        assert sum(len(files.names) for files in alike) == 7


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_threads_change_nothing(tmp_path: Path, workers: int) -> None:
    names = siblings(tmp_path) * 30
    assert check(names, workers=workers) == 240


def test_slow_files_are_read_by_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medimg.io.dicom.scanning.uniform_scan._LEAST_USE", 1e9)
    names = [*siblings(tmp_path), str(tmp_path / "absent"), str(tmp_path)] * 90
    assert check(names) == 720


@settings(max_examples=25 if SLOW else 12, deadline=None)
@given(study=strategies.studies())
def test_generated_studies(tmp_path_factory: pytest.TempPathFactory, study: studies.Study) -> None:
    folder = tmp_path_factory.mktemp("study")
    studies.write_dicom(study, folder)
    check([str(p) for p in sorted(folder.rglob("*")) if p.is_file()])
    assert differences(medimg.scan(folder), plain_scan(folder)) == []


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return siblings(tmp_path_factory.mktemp("eight"))


@settings(max_examples=150 if SLOW else 50, deadline=None)
@given(where=st.floats(0, 1), value=st.integers(0, 255), data=st.data())
def test_any_byte_may_differ(eight: list[str], where: float, value: int, data: st.DataObject) -> None:
    """A changed byte anywhere in a header is seen by both, or by none."""
    name = Path(data.draw(st.sampled_from(eight[1:])))
    before = name.read_bytes()
    at = 128 + int(where * (len(before) - 129))
    try:
        name.write_bytes(before[:at] + bytes([value]) + before[at + 1 :])
        alike, rest = scan_uniform_files(eight)
        for files in alike:
            for row, path in enumerate(files.names):
                # the others are as they were
                expected = parsed(path) if path == str(name) else sound(path)
                assert files.get_instance(row) == expected
        assert len(rest) <= 1 or name == Path(eight[1])
    finally:
        name.write_bytes(before)


#: How many files are taken without a parser, at least.
FAST = {"dicom_misc": 250, "dicom_qa": 1400 if SLOW else 130, "malformed": 80, "cls/covid_ct_md_dev": 40}


@pytest.mark.slow
@pytest.mark.parametrize("part", DATA_SETS)
def test_real_trees_give_the_same_series(real_data: Path, part: str) -> None:
    fast, wrong = 0, []
    for folder in sorted(p for p in (real_data / part).iterdir() if p.is_dir()):
        names = [str(path) for path in every_file(folder)]
        source: Path | list[str] = folder
        if part == "dicom_qa" and not SLOW:
            # without what names the files that are left out
            source = names = [str(path) for path in of_each_folder(folder) if path.name != "DICOMDIR"]
        wrong += differences(medimg.scan(source), plain_scan(source))
        alike, _ = scan_uniform_files(names)
        fast += sum(len(files.names) for files in alike)
    assert wrong == []
    assert fast >= FAST[part]


@pytest.mark.slow
@pytest.mark.parametrize("part", DATA_SETS)
def test_a_data_set_of_an_outline_is_that_of_the_parser(real_data: Path, part: str) -> None:
    compared = 0
    for path in sample(every_file(real_data / part)[::3], 5 if part == "dicom_qa" else 1):
        head = path.read_bytes()[:65536]
        try:
            found = build_dataset(locate_elements(head), head, HEADER_TAGS)
            expected = open_dataset(path, tags=to_tags(*HEADER_TAGS))
        except (UnusualHeaderError, MedimgError):
            continue
        assert found.keys() == expected.keys()
        assert found.file_meta.keys() == expected.file_meta.keys()
        with quiet_pydicom():
            for tag in list(expected.keys()):
                assert found[tag].VR == expected[tag].VR
                assert repr(found[tag].value) == repr(expected[tag].value)
        compared += 1
    assert compared > 10


_ROWS = st.tuples(
    *(
        st.from_regex(grammar, fullmatch=True).filter(lambda v: len(v) < 64)
        | st.text(letters, max_size=12).map(str.encode)
        for grammar, letters in zip(
            series_table._GRAMMARS,
            ("1.a _\\", "0123 +-", "019.eE-+\\ ", "0123569.+ ", "01256.: ", "01256.: "),
            strict=True,
        )
    )
)


#: What all files have in common is read from the first.
_FIRST = (b"1.2", b"1", b"0\\0\\0", b"", b"", b"")


def pad(element: tuple[int, bytes], value: bytes) -> bytes:
    return value + (b"\0" if element[1] == b"UI" else b" ") * (len(value) % 2)


def write_values(template: bytes, values: tuple[bytes, ...], path: Path) -> str:
    """Insert values of FILE_ELEMENTS in a header without them."""
    elements = {e.tag: e.at for e in locate_elements(template).elements}
    inserted = []
    for (tag, vr), value in zip(series_table.FILE_ELEMENTS, values, strict=True):
        head = struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value))
        inserted.append((min(at for other, at in elements.items() if other > tag), tag, head + value))
    written = template
    for at, _, element in sorted(inserted, reverse=True):
        written = written[:at] + element + written[at:]
    path.write_bytes(written)
    return str(path)


@settings(max_examples=300 if SLOW else 60, deadline=None)
@given(rows=st.lists(_ROWS, min_size=1, max_size=6))
@example(rows=[(b"1.2.3", b"2", b"0\\0\\1", b"", b"12:", b"")])
@example(rows=[(b"", b"", b"", b"0000", b"0", b"00"), (b"", b"0", b"", b"0000", b"00", b"00")])
def test_a_file_is_regular_if_each_value_is(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[bytes, ...]]
) -> None:
    """The values of files as each grammar has them, and positions rounded as by Python, to the bit."""
    folder = tmp_path_factory.mktemp("rows")
    ds = make_instance(PIXELS, SOPInstanceUID=None, ImagePositionPatient=None)
    template = write(ds, folder / "template").read_bytes()
    rows = [tuple(map(pad, series_table.FILE_ELEMENTS, row)) for row in (_FIRST, *rows)]
    names = [write_values(template, values, folder / str(n)) for n, values in enumerate(rows)]
    alike, rest = scan_uniform_files(names)
    expected = {
        number
        for number, values in enumerate(rows)
        if all(
            not value.rstrip(b"\0") or grammar.fullmatch(value.rstrip(b"\0"))
            for grammar, value in zip(series_table._GRAMMARS, values, strict=True)
        )
        and not series_table._is_far(values[2])
    }
    assert {n for files in alike for n in files.indices} == expected
    assert set(rest) == set(range(len(rows))) - expected
    for files in alike:
        written = [rows[n][2] for n in files.indices]
        if all(written):
            assert files.positions is not None
            exact = [[float(v) for v in value.split(b"\\")] for value in written]
            assert files.positions.tobytes() == np.array(exact).tobytes()
        else:
            assert files.positions is None


_CLOCKS = st.from_regex(rb"(?:[01][0-9]|2[0-3])[0-5][0-9][0-5][0-9](?:\.[0-9]{1,3})? {0,2}", fullmatch=True)
_ODD = [b"120000.0 5", b"250000"]
_ALMOST_CLOCKS = st.text(" .0125:6", max_size=10).map(str.encode) | st.sampled_from(_ODD)


@given(
    st.lists(_CLOCKS, max_size=6), st.lists(_ALMOST_CLOCKS, max_size=1), st.sampled_from([b"", b"20240105"])
)
def test_whole_columns_of_times_are_regular_only_if_each_is(
    regular: list[bytes], odd: list[bytes], date: bytes
) -> None:
    number = series_table._STARTED if date else series_table._ACQUIRED
    column = [date + value for value in (*regular, *odd)] + [b""]
    is_regular = series_table._TIME_COLUMNS[number].fullmatch(b"\n".join(column) + b"\n") is not None
    are_regular = all(not v or series_table._GRAMMARS[number].fullmatch(v) for v in column)
    assert is_regular <= are_regular
    if not odd:
        assert is_regular


def test_a_header_of_countless_elements_is_left_to_the_parser() -> None:
    """Empty elements take eight bytes each, and much more memory once they are noted."""
    meta = b"\x02\x00\x10\x00UI\x14\x00" + b"1.2.840.10008.1.2.1\0"
    many = b"".join(struct.pack("<HH2sH", 9 + 2 * (n >> 16), n & 0xFFFF, b"LO", 0) for n in range(70_000))
    pixels = b"\xe0\x7f\x10\x00OW\0\0\x02\0\0\0\0\0"
    assert locate_elements(bytes(128) + b"DICM" + meta + many[:80_000] + pixels).pixels.length == 2
    with pytest.raises(UnusualHeaderError):
        locate_elements(bytes(128) + b"DICM" + meta + many + pixels)
