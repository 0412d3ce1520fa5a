"""Hostile, damaged and changing files: what reviews of scanning and reading found."""

from __future__ import annotations

import os
import sqlite3
import struct
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement

import medimg
from medimg.errors import DecodeError, NotAnImageError, ReadError, TruncatedError
from medimg.io import _scan_index
from medimg.io.detect import Unreadable, inspect_file
from medimg.io.dicom.header.elements import Element, UnusualHeaderError, build_dataset, locate_elements
from medimg.io.dicom.pixels._header_walk import make_header_walker
from medimg.io.dicom.pixels._single_frame_reader import RangeReader, SingleFrameReader
from medimg.io.files.blob import Blob
from tests.dicom_files import write_stack
from tests.io.dicom.plain_scan import differences, plain_scan
from tests.io.dicom.test_fast_reading import compare, pictures, plan_of, write_series
from tests.io.dicom.test_fast_scan import siblings

AGO = time.time() - 1000


def age(root: Path) -> None:
    for path in root.rglob("*"):
        os.utime(path, (AGO, AGO))


def element(data: bytes, keyword: str) -> Element:
    return next(e for e in locate_elements(data).elements if e.tag == tag_for_keyword(keyword))


def changed(path: str | Path, change: Callable[[bytes], bytes]) -> None:
    Path(path).write_bytes(change(Path(path).read_bytes()))


def longer_group_length(data: bytes) -> bytes:
    found = element(data, "FileMetaInformationGroupLength")
    value = struct.pack("<H", 6) + data[found.value : found.value + 4] + b"\0\0"
    return data[: found.value - 2] + value + data[found.value + 4 :]


@pytest.mark.parametrize("chosen", [(0,), (3,), range(8)], ids=len)
def test_a_group_length_that_the_parser_refuses(tmp_path: Path, chosen: tuple[int, ...]) -> None:
    names = siblings(tmp_path)
    for n in chosen:
        changed(names[n], longer_group_length)
    index = medimg.scan(tmp_path)
    assert len(index.skipped) == len(chosen)
    assert differences(index, plain_scan(tmp_path)) == []
    with pytest.raises(UnusualHeaderError):
        make_header_walker({0x00280010}).read_header(Path(names[chosen[0]]).read_bytes())


def test_a_character_set_that_is_no_text(tmp_path: Path) -> None:
    names = siblings(tmp_path, SpecificCharacterSet="ISO_IR 100")

    def other(data: bytes) -> bytes:
        at = element(data, "SpecificCharacterSet").at
        return data[: at + 4] + b"FD" + data[at + 6 :]

    changed(names[5], other)
    data = Path(names[5]).read_bytes()
    with pytest.raises(UnusualHeaderError):
        build_dataset(locate_elements(data), data, ())
    assert differences(medimg.scan(tmp_path), plain_scan(tmp_path)) == []


def test_warnings_of_the_parser_stay_inside(tmp_path: Path) -> None:
    """They quote values, and where warnings are errors they would end the reading."""

    def change(ds: Any, n: int) -> None:
        ds.SpecificCharacterSet = "ISO_IR 100"

    series = write_series(tmp_path, pictures(4, 0, 1000), change)
    for name in series.files:
        changed(name, lambda data: data.replace(b"ISO_IR 100", b"Name^Of^Pa"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert series.read().shape == (1, 4, 9, 11)
    assert not compare(series)


@pytest.mark.skipif(sys.byteorder != "little", reason="files are read ahead on little-endian machines only")
def test_no_more_is_read_ahead_than_a_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is much longer than the one before costs no memory for that."""
    series = write_series(tmp_path, pictures(6, 0, 1000))
    with Path(series.files[4]).open("ab") as file:
        file.write(b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", 3 * 2**20) + bytes(3 * 2**20))
    most: list[int] = []
    plain, both = RangeReader.read, RangeReader.read_both

    def read(self: RangeReader, offset: int, length: int) -> bytes:
        most.append(length)
        return plain(self, offset, length)

    def read_both(self: RangeReader, length: int, array: Any) -> bytes:
        most.append(length)
        return both(self, length, array)

    monkeypatch.setattr(RangeReader, "read", read)
    monkeypatch.setattr(RangeReader, "read_both", read_both)
    assert not compare(series)
    assert max(most) <= 2**20


def test_a_compressed_file_with_much_behind_its_picture(tmp_path: Path) -> None:
    def change(ds: Any, n: int) -> None:
        ds.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)

    series = write_series(tmp_path, pictures(3, 0, 1000), change)
    with Path(series.files[1]).open("ab") as file:
        file.write(b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", 2**21) + bytes(2**21))
    known = SingleFrameReader("auto", None)
    frames = plan_of(series).channels[0]
    assert [known.load(frame.instance) is None for frame in frames] == [False, True, False]
    assert not compare(series)


def test_a_header_of_nifti_that_promises_countless_points_in_time(tmp_path: Path) -> None:
    image = nib.nifti2.Nifti2Image(np.zeros((2, 2, 2, 3), np.int16), np.eye(4))
    image.header.set_xyzt_units("mm", "sec")
    data = bytearray(image.to_bytes())
    data[48:56] = struct.pack("<q", 2**60)
    (tmp_path / "x.nii").write_bytes(data)
    with pytest.raises((TruncatedError, DecodeError)):
        medimg.read(tmp_path / "x.nii")


def test_a_header_of_nrrd_that_promises_countless_points_in_time(tmp_path: Path) -> None:
    header = (
        "NRRD0004\ntype: uchar\ndimension: 4\nsizes: 2 2 2 4000000000\nspacings: 1 1 1 2\n"
        'kinds: domain domain domain time\nunits: "mm" "mm" "mm" "s"\nencoding: raw\n\n'
    )
    (tmp_path / "x.nrrd").write_bytes(header.encode() + bytes(100))
    with pytest.raises((TruncatedError, DecodeError)):
        medimg.read(tmp_path / "x.nrrd")


def test_times_of_nifti_are_still_listed(tmp_path: Path) -> None:
    image = nib.nifti1.Nifti1Image(np.zeros((2, 2, 2, 3), np.int16), np.eye(4))
    image.header.set_xyzt_units("mm", "sec")
    nib.loadsave.save(image, tmp_path / "x.nii")
    (series,) = medimg.scan(tmp_path)
    assert series.frame_times == (0.0, 1.0, 2.0)


def paired(folder: Path) -> tuple[Path, Path]:
    folder.mkdir()
    image = nib.nifti1.Nifti1Pair(np.zeros((4, 5, 6), np.int16), np.eye(4))
    nib.loadsave.save(image, folder / "x.img")
    age(folder)
    return folder, folder / "x.img"


def test_an_index_follows_values_beside_their_header(tmp_path: Path) -> None:
    """That there is a file with the values is no fact of the file with the header."""
    tree, values = paired(tmp_path / "tree")
    path, away = tmp_path / "index", tmp_path / "away"
    assert len(medimg.scan(tree, index=path)) == 1
    for _ in range(2):
        values.rename(away)
        assert len(medimg.scan(tree, index=path)) == 0
        away.rename(values)
        assert len(medimg.scan(tree, index=path)) == 1


def test_what_the_system_refused_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, path = tmp_path / "tree", tmp_path / "index"
    write_stack(tree, [0.0, 2.0, 4.0])
    age(tree)

    plain = Path.open

    def refused(self: Path, *args: Any, **options: Any) -> Any:
        if self.suffix == ".dcm":
            raise OSError(24, "Too many open files")
        return plain(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        patch.setattr("medimg.io.dicom.header.open.read_start", lambda name, count: b"")
        found = inspect_file(Blob(str(tree / "000.dcm")))
        assert isinstance(found, Unreadable)
        assert not found.is_permanent
        assert len(medimg.scan(tree, index=path)) == 0
    assert len(medimg.scan(tree, index=path)) == 1


def test_errors_of_many_files_keep_none_of_them_in_memory(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing to see " * 1000)
    (tmp_path / "cut").write_bytes(bytes(128) + b"DICM\x08\0\x05\0CS" + b"x" * 50000)
    for name, kind in (("text", NotAnImageError), ("cut", ReadError)):
        found = inspect_file(Blob(str(tmp_path / name)))
        assert isinstance(found, Unreadable)
        assert isinstance(found.error, kind)
        assert found.error.__traceback__ is None
        assert found.error.__context__ is None
        assert found.is_permanent


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_an_index_of_files_whose_names_are_no_text(tmp_path: Path) -> None:
    tree, path = tmp_path / "tree", tmp_path / "index"
    write_stack(tree, [0.0, 2.0, 4.0])
    (tree / "001.dcm").rename(tree / os.fsdecode(b"\xff.dcm"))
    age(tree)
    for _ in range(2):
        (series,) = medimg.scan(tree, index=path)
        assert series.shape[1] == 3
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM files").fetchone() == (2,)
    database.close()


@pytest.mark.parametrize("name", ["x" * 300, "null\0character"])
def test_an_index_that_no_file_can_be(tmp_path: Path, name: str) -> None:
    write_stack(tmp_path / "tree", [0.0, 2.0])
    with pytest.raises(ReadError, match="the index"):
        medimg.scan(tmp_path / "tree", index=tmp_path / name)


def test_an_index_is_written_only_where_something_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, _ = paired(tmp_path / "tree")
    write_stack(tree / "chest", [0.0, 2.0])
    age(tree)
    medimg.scan(tree, index=tmp_path / "index")

    def none(*_: object) -> None:
        raise AssertionError("the index is written")

    monkeypatch.setattr(_scan_index.SavedIndex, "save", none)
    assert len(medimg.scan(tree, index=tmp_path / "index")) == 2


def test_views_leave_private_elements_as_they_are() -> None:
    from pydicom.dataset import Dataset
    from pydicom.tag import Tag

    from medimg.io.dicom.header.functional_groups import FrameViews

    dataset = Dataset()
    dataset.add_new(0x00290010, "LO", "SIEMENS MEDCOM HEADER")
    raw = RawDataElement(Tag(0x00291034), "SL", 2, b"\x01\x00", 0, False, True)
    dataset._dict[raw.tag] = raw
    found: Any = FrameViews(dataset, 1)[0].get_item(raw.tag)
    assert found is raw


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_is_not_quiet_for_threads_it_does_not_have() -> None:
    from medimg.io.dicom.header.attributes import quiet_pydicom

    filters = list(warnings.filters)
    with quiet_pydicom():
        child = os.fork()
        if not child:
            os._exit(0 if list(warnings.filters) == filters else 1)
    assert os.waitpid(child, 0)[1] == 0
