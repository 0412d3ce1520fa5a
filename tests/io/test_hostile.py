"""Sources as hospitals have them and attackers make them: bounded in time and memory, silent on patients."""

from __future__ import annotations

import gzip
import io
import logging
import os
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import imagecodecs
import numpy as np
import pytest
from PIL import Image

import medimg
from medimg.errors import DecodeError, MedimgError, MedimgWarning, ReadError
from medimg.io.dicom.header import open as opening
from medimg.io.dicom.values._color_conversion import expand_segments
from medimg.io.read import find_series
from tests.dicom_files import make_instance, stack_pixels, write, write_stack
from tests.io.dicom.encodings import codestream_size
from tests.sampling import SLOW

ITEM = b"\xfe\xff\x00\xe0\x00\x00\x00\x00"
DELIMITER = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
SEQUENCE = b"\x20\x00\x22\x92SQ\x00\x00"


def dicom_bytes(**attributes: Any) -> bytes:
    file = io.BytesIO()
    make_instance(stack_pixels(0), **attributes).save_as(file, enforce_file_format=True)
    return file.getvalue()


def deflated(data: bytes, *, meta_length: bool, inserted: bytes = b"", times: int = 0) -> bytes:
    """A file with the data set of another, something inserted many times before Samples per Pixel."""
    body = data[data.index(b"\x08\x00\x08\x00CS") :]
    at = body.index(b"\x28\x00\x02\x00US")
    syntax = b"\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.1.99"
    length = b"\x02\x00\x00\x00UL\x04\x00" + struct.pack("<I", len(syntax)) if meta_length else b""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = squeezer.compress(body[:at]) + squeezer.flush(zlib.Z_FULL_FLUSH)
    # after a full flush nothing refers to what is before: it may be repeated
    packed += (squeezer.compress(inserted) + squeezer.flush(zlib.Z_FULL_FLUSH)) * times
    return bytes(128) + b"DICM" + length + syntax + packed + squeezer.compress(body[at:]) + squeezer.flush()


ASKED = pytest.mark.skipif(not os.environ.get("MEDIMG_SLOW"), reason="takes seconds: set MEDIMG_SLOW=1")


@pytest.mark.parametrize("meta_length", [True, False])
@pytest.mark.parametrize("most", [2**25, pytest.param(2**28, marks=ASKED)])
def test_a_deflated_file_is_inflated_only_so_far(
    most: int, meta_length: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the limit, and up to a lower one alike, which takes less time."""
    assert most <= opening._MAX_INFLATED <= 2**28
    monkeypatch.setattr(opening, "_MAX_INFLATED", most)
    sound = deflated(dicom_bytes(), meta_length=meta_length)
    assert np.array_equal(medimg.read(sound).array, medimg.read(dicom_bytes()).array)
    (series,) = medimg.scan(sound)
    assert series.shape == (1, 1, 12, 16)
    bomb = deflated(dicom_bytes(), meta_length=meta_length, inserted=bytes(2**24), times=5 * most // 2**26)
    assert len(bomb) < 2**20
    with pytest.raises(DecodeError, match="inflates to more"):
        medimg.read(bomb)
    with pytest.raises(MedimgError, match=r"damaged|ends"):
        medimg.read(sound[:-20])


@pytest.mark.parametrize("kind", ["plain", "deflated", "gzip", "defined length", "per frame"])
@pytest.mark.parametrize("most", [2**14, pytest.param(2**20, marks=ASKED)])
def test_millions_of_empty_items(most: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Each takes 8 bytes of a file, which an archive packs to nothing, and 600 of memory.

    Millions are as many as the limit lets pass and more; thousands, where it is as much lower.
    """
    assert most <= opening._MIN_READS <= 2**20
    monkeypatch.setattr(opening, "_MIN_READS", most)
    sound = dicom_bytes()
    at = sound.index(b"\x28\x00\x02\x00US")
    items = ITEM * (2 * most)
    if kind == "deflated":
        undefined = SEQUENCE + b"\xff\xff\xff\xff"
        data = deflated(sound, meta_length=True, inserted=undefined + ITEM * most + DELIMITER, times=20)
    elif kind == "defined length":
        data = sound[:at] + SEQUENCE + struct.pack("<I", len(items)) + items + sound[at:]
    elif kind == "per frame":
        at = sound.index(b"\xe0\x7f\x10\x00OW")
        tag = b"\x00\x52\x30\x92SQ\x00\x00"
        data = sound[:at] + tag + struct.pack("<I", len(items)) + items + sound[at:]
    else:
        data = sound[:at] + SEQUENCE + b"\xff\xff\xff\xff" + items + DELIMITER + sound[at:]
        data = gzip.compress(data, 1) if kind == "gzip" else data
    start = time.monotonic()
    if kind == "defined length":
        assert medimg.scan(data)[0].shape == (1, 1, 12, 16)  # one that nobody asks for is not parsed
    else:
        with pytest.raises(DecodeError, match="more elements"):
            medimg.read(data)
    assert time.monotonic() - start < ENDLESS


def test_sequences_nested_a_thousand_times() -> None:
    sound = dicom_bytes()
    at = sound.index(b"\xe0\x7f\x10\x00OW")
    opened = b"\x00\x52\x30\x92SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\x00\x00\x00\x00" + DELIMITER
    for data in (sound[:at] + opened * 2000 + closed * 2000 + sound[at:], sound[:at] + opened * 50_000):
        with pytest.raises(ReadError):
            medimg.read(data)


def test_segments_of_palettes_that_lead_nowhere() -> None:
    """Empty segments, and millions that copy one, once took time without end."""
    start = time.monotonic()
    for data in ([0, 0] * 500_000, [0, 1, 5] + [2, 0, 0, 0] * 200_000, [0, 0, 0] + [2, 0, 0, 0] * 200_000):
        with pytest.raises(DecodeError, match="empty"):
            expand_segments(data, 65536, bytes_each=2)
    copied = expand_segments([0, 1, 5] + [2, 1, 0, 0] * 65535, 65536, bytes_each=2)
    assert copied == [5] * 65536
    assert time.monotonic() - start < ENDLESS


#: Seconds: without the guards each of these takes hours; with them seconds, more on a busy machine.
ENDLESS = 240

META = b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\n"
META_END = b"ElementType = MET_UCHAR\nElementDataFile = LOCAL\n" + bytes(range(8))


def test_headers_of_text_take_no_time() -> None:
    start = time.monotonic()
    volume = medimg.read(META + b"Comment = x" + b" " * 2**20 + b"y\n" + META_END)
    assert volume.array.ravel().tolist() == list(range(8))
    with pytest.raises(DecodeError, match="lines"):
        medimg.read(META + b"a\n" * 2**22 + META_END)
    with pytest.raises(DecodeError, match="lines"):
        medimg.read(b"NRRD0004\n" + b"a\n" * 2**22)
    assert time.monotonic() - start < ENDLESS


@pytest.mark.parametrize(
    "header",
    [
        META.replace(b"2 2 2\n", b"2 2 2 PatientName = Sentinel^N\n"),
        META.replace(b"2 2 2\n", b"2 2 Sentinel\n"),
        META + b"ElementSpacing = 1 1 1\xffPatientName = Sentinel^N\n",
        META + b"BinaryData = True\xffComment = Sentinel\n",
        b"NRRD0004\ntype: uchar\xffcontent: Sentinel\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n\n",
        b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\xffkey:=Sentinel\n\n",
        b"NRRD0004\ntype: uchar\ndimension: 3 key:=Sentinel\nsizes: 2 2 2\nencoding: raw\n\n",
        b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nkinds: domain domain domain\xffkey:=Sentinel\n"
        b"encoding: raw\n\n",
        b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: a\xffk:=Sentinel\n\n",
    ],
)
def test_a_damaged_end_of_a_line_does_not_show_the_next(header: bytes) -> None:
    """A line that swallows the one behind it holds a comment, or who was scanned."""
    with pytest.raises(MedimgError) as caught:
        medimg.read(header + (META_END if header.startswith(b"Object") else bytes(8)))
    assert "sentinel" not in str(caught.value).lower()


def test_logs_of_pillow_hold_no_tags(caplog: pytest.LogCaptureFixture) -> None:
    tags = Image.Exif()
    tags[0x010E], tags[0x013B], tags[0x0112] = "Sentinel^Name", "Sentinel^Doctor", 6
    caplog.set_level(logging.DEBUG)
    for kind in ("PNG", "JPEG"):
        file = io.BytesIO()
        Image.fromarray(np.zeros((8, 9), np.uint8)).save(file, kind, exif=tags)
        caplog.clear()
        assert medimg.read(file.getvalue()).shape == (1, 1, 9, 8)
        assert "Sentinel" not in caplog.text


def test_pictures_raise_no_warnings_of_pillow() -> None:
    """Nor do threads that read them leave the filters of warnings changed."""
    tags = Image.Exif()
    tags[0x013B], tags[0x0112] = "Sentinel^Doctor", 6
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(file, "JPEG", exif=tags)
    data = file.getvalue()
    at = data.index(b"Sentinel") - data.index(b"Exif\0\0") - 6
    place = data.index(b"\x01\x3b\x00\x02") + 8
    assert int.from_bytes(data[place : place + 4], "big") == at
    damaged = data[:place] + b"\x7f\xff\xff\xff" + data[place + 4 :]
    medimg.scan(damaged)  # imports, which may add filters
    before = list(warnings.filters)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            assert len(medimg.scan([damaged] * 40, workers=8)) == 40
            assert list(warnings.filters) == before
    finally:
        sys.setswitchinterval(interval)
        warnings.filters[:] = before  # type: ignore[index]  # a list, which some stubs call a sequence
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        medimg.read(damaged)


def test_names_in_a_dicomdir_that_swallowed_their_neighbors(tmp_path: Path) -> None:
    from pydicom import config
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence
    from pydicom.uid import MediaStorageDirectoryStorage

    ds = make_instance(stack_pixels(0), PixelData=None)
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = MediaStorageDirectoryStorage
    record = Dataset()
    record.add_new("ReferencedFileID", "CS", ["DICOM", "IM1"])
    record["ReferencedFileID"].validation_mode = config.IGNORE
    record.ReferencedFileID = ["DICOM", "IM1 Sentinel^Name"]
    ds.DirectoryRecordSequence = Sequence([record])
    path = write(ds, tmp_path / "DICOMDIR")
    (skipped,) = medimg.scan(path).skipped
    assert "not there" in skipped.reason
    assert "Sentinel" not in str(skipped)


def test_a_codestream_that_another_box_pretends() -> None:
    """What is checked before memory is allocated must be what the decoder decodes."""
    small, large = np.zeros((16, 16), np.uint8), np.zeros((300, 200), np.uint8)
    plain = imagecodecs.jpeg2k_encode(small, codecformat="j2k", level=0, reversible=True)
    boxed = bytes(imagecodecs.jpeg2k_encode(large, codecformat="jp2", level=0, reversible=True))
    at = boxed.index(b"jp2c") - 4
    decoy = struct.pack(">I", len(plain) + 8) + b"uuid" + plain
    assert codestream_size(boxed) == codestream_size(boxed[:at] + decoy + boxed[at:]) == (300, 200, 1)
    plain = imagecodecs.jpegxl_encode(small, lossless=True, usecontainer=False)
    boxed = bytes(imagecodecs.jpegxl_encode(large, lossless=True, usecontainer=True))
    at = 12 + int.from_bytes(boxed[12:16], "big")
    decoy = struct.pack(">I", len(plain) + 8) + b"Exif" + plain
    assert codestream_size(boxed) == codestream_size(boxed[:at] + decoy + boxed[at:]) == (300, 200, 0)
    assert codestream_size(boxed[:at]) is codestream_size(boxed[:at] + decoy) is None


def test_a_blank_picture_that_would_fill_the_memory() -> None:
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless

    stream = bytearray(imagecodecs.jpeg2k_encode(np.zeros((64, 64), np.uint8), codecformat="j2k", level=0))
    for place in (8, 12, 24, 28):
        stream[place : place + 4] = struct.pack(">I", 40_000)
    ds = make_instance(np.zeros((4, 4), np.uint8), Rows=40_000, Columns=40_000)
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.PixelData = encapsulate([bytes(stream)])
    ds["PixelData"].VR = "OB"
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    with pytest.raises(DecodeError, match="unreasonably large"):
        medimg.read(file.getvalue())


def test_numbers_of_text_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    # the pieces that text is taken in grow with the picture
    side = 1024 if SLOW else 512
    monkeypatch.setattr("medimg.io.formats._raster_values._PIECE_BYTES", side**2)
    values = np.random.default_rng(0).integers(-99, 99, side**2)
    header = b"NRRD0004\ntype: short\ndimension: 2\nsizes: %d %d\nencoding: ascii\n\n" % (side, side)
    data = header + b", \n".join(b"%d" % v for v in values)
    tracemalloc.start()
    try:
        volume = medimg.read(data)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(volume.array.ravel(), values)
    assert most < 64 * side**2
    with pytest.raises(DecodeError, match="not numbers"):
        medimg.read(header + b"9" * 2**21)


def test_gzip_of_many_members() -> None:
    """Block-wise gzip, as bgzip writes it, and padding behind a member."""
    data = META + META_END.replace(bytes(range(8)), b"") + os.urandom(8)
    members = b"".join(gzip.compress(data[n : n + 1]) for n in range(len(data)))
    expected = medimg.read(data).array
    for packed in (members, gzip.compress(data[:50]) + bytes(200_001) + gzip.compress(data[50:])):
        assert np.array_equal(medimg.read(packed).array, expected)


def test_more_archives_than_files_can_be_open(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    files = write_stack(tmp_path / "s", [0.0, 1.0, 2.0])
    expected = medimg.read(tmp_path / "s").array
    count = 120 if SLOW else 80
    for n in range(count):
        with zipfile.ZipFile(tmp_path / f"{n}.zip", "w") as archive:
            for path in files:
                archive.write(path, path.name)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 60, before[1]))
    try:
        found = [find_series(tmp_path / f"{n}.zip")[0] for n in range(count)]
        assert all(np.array_equal(series.read().array, expected) for series in found)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_folders_may_be_nested_deeply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stack(tmp_path / "s", [0.0, 1.0])
    monkeypatch.chdir(tmp_path)
    for _ in range(1100):
        Path("d").mkdir()
        os.chdir("d")
    write_stack(Path(), [2.0])
    monkeypatch.chdir(tmp_path)
    try:
        (series,) = medimg.scan(tmp_path)
        assert series.shape[1] == 3
    finally:
        # shutil.rmtree is recursive
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


@pytest.mark.parametrize("name", ["x" * 300, "é" * 130, "a/" * 2100 + "x"])
@pytest.mark.parametrize("header", ["x.mhd", "x.nhdr"])
def test_a_header_may_name_a_file_that_cannot_exist(tmp_path: Path, header: str, name: str) -> None:
    write_stack(tmp_path, [0.0, 1.0, 2.0])
    write_header(tmp_path / header, name)
    index = medimg.scan(tmp_path)
    assert [s.shape[1] for s in index] == [3]
    assert "it is not there" in index.skipped[0].reason
    assert len(index.skipped[0].reason) < 1000


def write_header(path: Path, name: str) -> None:
    """A header of 4 × 5 × 6 bytes in another file."""
    texts = {
        ".mhd": "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_UCHAR\nElementDataFile = ",
        ".nhdr": "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 6 5 4\nencoding: raw\ndata file: ",
    }
    path.write_text(texts[path.suffix] + name + "\n\n", encoding="utf-8")


@pytest.mark.parametrize("header", ["x.mhd", "x.nhdr"])
def test_values_are_not_read_behind_a_link_out_of_the_folder(tmp_path: Path, header: str) -> None:
    within, secret = tmp_path / "set", tmp_path / "secret.raw"
    (within / "below").mkdir(parents=True)
    secret.write_bytes(bytes(120))
    write_header(within / header, "below/v.raw")
    (within / "below/v.raw").symlink_to(secret)
    with pytest.raises(ReadError, match="link out of its own folder"):
        medimg.read(within / header)
    (within / "below/v.raw").unlink()
    (within / "own.raw").write_bytes(bytes(120))
    (within / "below/v.raw").symlink_to("../own.raw")
    assert medimg.read(within / header).shape == (1, 4, 5, 6)
    # a folder of links to headers and values elsewhere
    (tmp_path / "links/below").mkdir(parents=True)
    for name in (header, "below/v.raw"):
        (tmp_path / "links" / name).symlink_to(within / name)
    assert medimg.read(tmp_path / "links" / header).shape == (1, 4, 5, 6)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write_stack(tmp_path / "data/p1", [0.0, 1.0, 2.0])
    (tmp_path / "set").mkdir()
    (tmp_path / "set/one").symlink_to(tmp_path / "data/p1")
    (tmp_path / "set/again").symlink_to(tmp_path / "data")
    (tmp_path / "set/round").symlink_to(tmp_path / "set")
    assert medimg.read(tmp_path / "set").shape == (1, 3, 12, 16)
    (tmp_path / "set/nowhere").symlink_to(tmp_path / "absent")
    (tmp_path / "set/itself").symlink_to("itself")
    with pytest.warns(MedimgWarning, match="2 unreadable file"):
        assert medimg.read(tmp_path / "set").shape == (1, 3, 12, 16)


def test_what_is_no_file_does_not_stop_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stack(tmp_path, [0.0, 1.0, 2.0])
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)
        server.bind("socket")
    index = medimg.scan(tmp_path)
    assert index[0].shape == (1, 3, 12, 16)
    assert {Path(s.path).name for s in index.skipped} == {"pipe", "endless", "socket"}


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may read everything")
def test_folders_that_may_not_be_opened(tmp_path: Path) -> None:
    write_stack(tmp_path / "a", [0.0, 1.0])
    write_stack(tmp_path / "b", [2.0, 3.0])
    (tmp_path / "b").chmod(0)
    try:
        check_closed(tmp_path)
        with pytest.raises(ReadError, match="Permission"):
            medimg.read(tmp_path / "b" / "000.dcm")
    finally:
        (tmp_path / "b").chmod(0o755)


def check_closed(folder: Path) -> None:
    with pytest.warns(MedimgWarning, match="can't be opened"):
        volume = medimg.read(folder)
    assert volume.shape == (1, 2, 12, 16)
    assert volume.report.skipped[0].path == str(folder / "b")


def test_folders_that_the_system_does_not_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the tests run as root."""
    write_stack(tmp_path / "a", [0.0, 1.0])
    write_stack(tmp_path / "b", [2.0, 3.0])
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    check_closed(tmp_path)


def test_names_of_folders_are_no_reasons(tmp_path: Path) -> None:
    """A note that was found by words of the reason took the name of the folder for one."""
    folder = tmp_path / "friends of damaged things"
    write_stack(folder, [0.0, 1.0])
    (folder / "notes.txt").write_text("some words " * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volume = medimg.read(folder)
    assert len(volume.report.skipped) == 1


class Trickle(io.RawIOBase):
    """A file that gives a few bytes at a time, as sockets do."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._rest = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._rest.read(min(len(buffer), 100))
        buffer[: len(data)] = data
        return len(data)


def test_file_objects_that_give_less_than_asked() -> None:
    data = dicom_bytes()
    assert np.array_equal(medimg.read(cast("BinaryIO", Trickle(data))).array, medimg.read(data).array)


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"/nowhere"


@pytest.mark.parametrize("source", [BytesPath(), "x" * 5000, "x/" * 2000])
def test_paths_that_the_system_refuses(source: Any) -> None:
    with pytest.raises(ReadError):
        medimg.read(source)


def test_a_file_replaced_between_scan_and_read(tmp_path: Path) -> None:
    write_stack(tmp_path, [0.0, 1.0, 2.0])
    (series,) = medimg.scan(tmp_path)
    write(make_instance(stack_pixels(9), ImagePositionPatient=[0, 0, 99]), tmp_path / "001.dcm")
    with pytest.raises(DecodeError, match="scan again"):
        series.read()


def test_no_memory_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (series,) = medimg.scan(write(make_instance(stack_pixels(0)), tmp_path / "a.dcm"))

    def none(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("medimg.io.dicom.series.volume_reader.FrameReader.read", none)
    with pytest.raises(ReadError, match="no memory"):
        series.read()
