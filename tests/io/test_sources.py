"""Whatever a series comes in: a folder, an archive, a DICOMDIR, bytes, open files."""

from __future__ import annotations

import gc
import gzip
import io
import os
import pickle
import resource
import shutil
import warnings
import zipfile
from collections.abc import Callable
from itertools import permutations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.fileset import FileSet

import medimg
from medimg.errors import AmbiguousSeriesError, MedimgError, MedimgWarning, NotAnImageError, ReadError
from medimg.io.files.blob import Blob, list_zip_members
from medimg.io.files.zip_archive import Archive
from medimg.io.sources import list_source_files
from tests.dicom_files import make_instance, stack_pixels, total_of, write, write_stack
from tests.models.fakes import classifier
from tests.sampling import SLOW

POSITIONS = [0.0, 2.0, 4.0, 6.0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One series with names that say nothing, in two folders, among junk."""
    root = tmp_path / "scan"
    write_stack(root / "a", POSITIONS[:2], names=["IM1", "IM2"])
    write_stack(root / "a" / "b", POSITIONS[2:], names=["noext", "picture.png"])
    (root / "notes.txt").write_text("no image")
    (root / ".hidden").write_bytes(b"x" * 200)
    (root / "empty").write_bytes(b"")
    return root


def zipped(folder: Path, target: Any, method: int = zipfile.ZIP_DEFLATED) -> Any:
    with zipfile.ZipFile(target, "w", method) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return target


def in_memory(folder: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted((folder / "a").rglob("*")) if p.is_file()]


def as_buffer(folder: Path) -> io.BytesIO:
    return zipped(folder, io.BytesIO())  # type: ignore[no-any-return]  # what was given


SOURCES: dict[str, Callable[[Path], Any]] = {
    "a path as text": str,
    "a list of paths": lambda f: [p for p in sorted((f / "a").rglob("*")) if p.is_file()],
    "a zip archive": lambda f: zipped(f, f.parent / "scan.zip"),
    "an archive that is stored": lambda f: zipped(f, f.parent / "scan.zip", zipfile.ZIP_STORED),
    "an archive of any name": lambda f: zipped(f, f.parent / "export"),
    "an archive in bytes": lambda f: as_buffer(f).getvalue(),
    "an archive in a file object": as_buffer,
    "a list of one archive": lambda f: [zipped(f, f.parent / "scan.zip")],
    "a list of bytes": in_memory,
    "a list of bytearrays": lambda f: [bytearray(b) for b in in_memory(f)],
    "a list of memoryviews": lambda f: [memoryview(b) for b in in_memory(f)],
    "a tuple of file objects": lambda f: tuple(io.BytesIO(b) for b in in_memory(f)),
    "gzipped files": lambda f: [gzip.compress(b) for b in in_memory(f)],
    "a mixture": lambda f: [in_memory(f)[0], io.BytesIO(in_memory(f)[1]), *sorted((f / "a/b").iterdir())],
}


@pytest.mark.parametrize("kind", SOURCES)
def test_any_source_gives_the_same_volume(folder: Path, kind: str) -> None:
    expected = medimg.read(folder)
    assert expected.shape == (1, 4, 12, 16)
    source = SOURCES[kind](folder)
    volume = medimg.read(source)
    assert np.array_equal(volume.array, expected.array)
    assert np.array_equal(volume.affine, expected.affine)
    assert volume.report.sop_instance_uids == expected.report.sop_instance_uids
    (series,) = medimg.scan(source)
    assert series.uid == "1.2.3.4"
    assert np.array_equal(series.read([1, 2]).array, expected.array[:, 1:3])


@pytest.mark.parametrize("name", ["IM1", "a.dcm.gz"])
def test_open_files(tmp_path: Path, name: str) -> None:
    path = write(make_instance(stack_pixels(0)), tmp_path / "one.dcm")
    expected = medimg.read(path)
    data = path.read_bytes()
    target = tmp_path / name
    target.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with target.open("rb") as file:
        file.seek(7)
        assert np.array_equal(medimg.read(file).array, expected.array)
        assert file.tell() == 7
    with pytest.raises(ReadError, match="can't be read"):
        medimg.read(file)
    with target.open("rb", buffering=0) as raw:
        assert np.array_equal(medimg.read(raw).array, expected.array)
    with target.open(encoding="latin-1") as text, pytest.raises(ReadError, match="binary mode"):
        medimg.read(text)


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    data = write(make_instance(stack_pixels(0)), tmp_path / "one.dcm").read_bytes()
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as end:
        end.write(data)
    with os.fdopen(reading, "rb") as file:
        assert medimg.read(file).shape == (1, 1, 12, 16)


def test_names_of_what_is_in_memory(tmp_path: Path) -> None:
    data = write(make_instance(stack_pixels(0)), tmp_path / "one.dcm").read_bytes()
    assert medimg.read(data).report.files == ("<bytes>",)
    index = medimg.scan([data, b"junk"])
    assert index[0].files == ("<bytes 0>",)
    assert index.skipped[0].path == "<bytes 1>"
    assert "<bytes 1>" in index.skipped[0].reason
    assert "SENTINEL" not in repr(index[0])
    assert data[:20].hex() not in repr(Blob("<bytes>", data=data))


@pytest.mark.parametrize(
    "source", [b"", b"junk", b"junk" * 500, bytearray(2000), io.BytesIO(b"PK\x03\x04junk")]
)
def test_junk_in_memory(source: Any) -> None:
    with pytest.raises(MedimgError, match="<bytes>"):
        medimg.read(source)


@pytest.mark.parametrize("source", [None, 7, 1.5, {}, object(), "", []])
def test_what_is_no_source(source: Any) -> None:
    with pytest.raises(ReadError, match="can't read"):
        medimg.read(source)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="there is no"):
        medimg.read(tmp_path / "absent")
    with pytest.raises(ReadError, match="there is no"):
        medimg.read("\0")
    with pytest.raises(ReadError, match="there is no"):
        medimg.read([tmp_path / "absent"])
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ReadError, match="not a regular file"):
        medimg.read(tmp_path / "fifo")
    assert "not a regular file" in medimg.scan(tmp_path).skipped[0].reason


def test_formats_are_told_by_content_in_an_archive(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.fromarray(stack_pixels(0).astype(np.uint8)).save(picture, "PNG")
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Pair(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "p.img")
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("one/no-name", picture.getvalue())
        archive.write(tmp_path / "a.nii.gz", "one/volume")
        archive.write(tmp_path / "p.hdr", "two/p.hdr")
        archive.write(tmp_path / "p.img", "two/p.img")
        archive.writestr("__MACOSX/one/._volume", b"x" * 300)
        archive.writestr("two/.DS_Store", b"x" * 300)
        archive.writestr("two/readme", "text")
    index = medimg.scan(tmp_path / "x.zip")
    assert [(s.format, Path(s.path).name) for s in index] == [
        ("PNG", "no-name"), ("NIfTI", "volume"), ("NIfTI", "p.hdr"),
    ]  # fmt: skip
    assert [Path(s.path).name for s in index.skipped] == ["readme"]
    assert [s.read().shape for s in index] == [(1, 1, 12, 16), (1, 5, 4, 3), (1, 5, 4, 3)]
    with pytest.raises(AmbiguousSeriesError, match="3 series"):
        medimg.read(tmp_path / "x.zip")
    assert medimg.read(tmp_path / "x.zip", series=2).shape == (1, 5, 4, 3)


def test_nothing_is_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(folder, tmp_path / "scan.zip")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    before = sorted(tmp_path.rglob("*"))
    medimg.read(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_archive_in_a_folder_is_not_entered(folder: Path) -> None:
    zipped(folder / "a", folder / "copy.zip")
    index = medimg.scan(folder)
    assert len(index) == 1
    assert index[0].shape == (1, 4, 12, 16)
    (reason,) = [s.reason for s in index.skipped if s.path.endswith("copy.zip")]
    assert "read it by itself" in reason


def test_damaged_archives(folder: Path, tmp_path: Path) -> None:
    path = zipped(folder, tmp_path / "scan.zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ReadError, match="damaged zip"):
        medimg.read(path)
    broken = bytearray(whole)
    start = whole.index(b"IM1") + 200
    broken[start : start + 40] = bytes(40)
    path.write_bytes(broken)
    with pytest.warns(MedimgWarning, match="damaged"):
        volume = medimg.read(path)
    assert volume.shape[1] == 3
    assert "IM1" in volume.report.skipped[0].path


def test_encrypted_and_unknown_compression(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"x" * 300)
    data = path.read_bytes()
    for central, local, value, message in [(8, 6, 1, "encrypted"), (10, 8, 99, "decompressed")]:
        changed = bytearray(data)
        changed[data.index(b"PK\x01\x02") + central] = value
        changed[local] = value
        path.write_bytes(changed)
        with pytest.raises(ReadError, match=message):
            medimg.read(path)


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_bombs_take_no_memory(tmp_path: Path, kind: str) -> None:
    """4 GB of zeros behind a DICOM header whose pixel data would be as long."""
    path = write(make_instance(stack_pixels(0)), tmp_path / "one.dcm")
    data = path.read_bytes()
    at = data.index(b"\xe0\x7f\x10\x00OW") + 8
    header = data[:at] + (2**32 - 4096).to_bytes(4, "little")
    target = tmp_path / "bomb"
    block = bytes(2**24)
    if kind == "zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with archive.open("one", "w", force_zip64=True) as member:
                member.write(header)
                for _ in range(20):
                    member.write(block)
            with archive.open("text", "w", force_zip64=True) as member:
                for _ in range(20):
                    member.write(block)
    else:
        with gzip.open(target, "wb", compresslevel=1) as file:
            file.write(header)
            for _ in range(20):
                file.write(block)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    medimg.scan(target)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000


def test_members_are_read_as_far_as_needed(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(range(256)) * 4000)
    (blob,) = list_zip_members(path)
    with blob.open() as file:
        assert file.read(3) == b"\0\1\2"
        file.seek(1000)
        assert file.read(2) == bytes([1000 % 256, 1001 % 256])
        file.seek(5)
        assert file.read(1) == b"\5"
        assert file.seek(0, io.SEEK_END) == 256 * 4000
        assert file.read() == b""
    assert blob.size() == 256 * 4000
    assert blob.bound() >= blob.size()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_series_of_an_archive_go_to_other_processes(folder: Path, tmp_path: Path, method: str) -> None:
    (series,) = medimg.scan(zipped(folder, tmp_path / "scan.zip"))
    expected = float(series.read().array.sum())
    assert total_of(pickle.loads(pickle.dumps(series))) == expected
    # a process that is spawned imports much first
    with get_context(method).Pool(2 if method == "fork" else 1) as pool:
        assert pool.map(total_of, [series] * 4) == [expected] * 4


@pytest.fixture(scope="module")
def written_medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("medium")
    files = write_stack(folder / "in", POSITIONS, StudyID="1", SeriesNumber=1, PatientName="A")
    file_set = FileSet()
    for n, path in enumerate(files):
        ds = pydicom.dcmread(path)
        ds.InstanceNumber = n + 1
        ds.StudyDate, ds.StudyTime = "20200101", "120000"
        ds.AccessionNumber = ""
        file_set.add(ds)
    root = folder / "medium"
    file_set.write(root)
    with warnings.catch_warnings():
        # it leaves a temporary folder to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        del file_set
        gc.collect()
    return root


@pytest.fixture
def medium(written_medium: Path, tmp_path: Path) -> Path:
    """A DICOM medium with one series."""
    return Path(shutil.copytree(written_medium, tmp_path / "medium"))


def test_a_dicomdir_stands_for_its_files(medium: Path) -> None:
    volume = medimg.read(medium / "DICOMDIR")
    folder = medimg.read(medium)
    assert volume.shape == (1, 4, 12, 16)
    assert np.array_equal(volume.array, folder.array)
    assert folder.report.skipped == ()
    assert len(medimg.scan([medium / "DICOMDIR"])) == 1
    renamed = (medium / "DICOMDIR").rename(medium / "index")
    assert medimg.read(renamed).shape == (1, 4, 12, 16)


def test_a_dicomdir_whose_files_changed_case_or_are_gone(medium: Path) -> None:
    names = sorted(p for p in medium.rglob("*") if p.is_file() and p.name != "DICOMDIR")
    for path in names:
        path.rename(path.with_name(path.name.lower()))
    assert medimg.read(medium / "DICOMDIR").shape == (1, 4, 12, 16)
    names[-1].with_name(names[-1].name.lower()).unlink()
    index = medimg.scan(medium / "DICOMDIR")
    assert index[0].shape[1] == 3
    assert len(index.skipped) == 1
    assert "not there" in index.skipped[0].reason


@pytest.mark.parametrize(
    "place",
    [["..", "secret"], ["..", "..", "secret"], ["/secret"], ["A/../../secret"], ["", "secret"], ["."]],
)
def test_a_dicomdir_does_not_lead_out_of_its_folder(medium: Path, place: list[str]) -> None:
    write(make_instance(stack_pixels(99)), medium.parent / "secret")
    ds = pydicom.dcmread(medium / "DICOMDIR")
    for record in ds.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            record["ReferencedFileID"].validation_mode = pydicom.config.IGNORE
            record.ReferencedFileID = place
    ds.save_as(medium / "DICOMDIR")
    with pytest.raises(ReadError, match="outside of its own folder"):
        medimg.read(medium / "DICOMDIR")


def test_a_dicomdir_without_its_folder(medium: Path) -> None:
    with pytest.raises(ReadError, match="by itself"):
        medimg.read((medium / "DICOMDIR").read_bytes())
    for path in medium.rglob("*"):
        if path.is_file() and path.name != "DICOMDIR":
            path.unlink()
    with pytest.raises(NotAnImageError, match="contains no files"):
        medimg.read(medium)
    with pytest.raises(MedimgError, match="no readable image among"):
        medimg.read(medium / "DICOMDIR")


def test_dicomdirs_of_real_media(real_data: Path) -> None:
    for place, counts in (("dicom_misc/nema_enhmr_dev", (4, 127)), ("dicom_qa/xa60_terra", (59, 1))):
        (path,) = (real_data / place).rglob("DICOMDIR")
        files, absent = list_source_files(path)
        assert (len(files), len(absent)) == counts
        # the other has large headers
        if SLOW or "nema" in place:
            index = medimg.scan(path)
            assert all("not there" in s.reason or s.reason for s in index.skipped)
            assert not any(s.path.endswith("DICOMDIR") for s in medimg.scan(path.parent).skipped)


def test_a_series_is_no_file(folder: Path) -> None:
    (series,) = medimg.scan(folder)
    for source in ([series], [series, series]):
        with pytest.raises(ReadError, match="can't read a Series"):
            medimg.read(source)


def test_predictions_take_bytes_and_open_files(tmp_path: Path) -> None:
    data = write(make_instance(stack_pixels(0)), tmp_path / "one.dcm").read_bytes()
    model = classifier(preprocess=medimg.Preprocess(size=64, window="lung"))
    expected = model.predict(tmp_path / "one.dcm")
    several: list[Any] = [data, io.BytesIO(data), [data], [bytearray(data), io.BytesIO(data)]]
    for sources in several:
        table = model.predict(sources)
        assert table["source"][0] == "<bytes 0>"
        assert (table["p_a"] == expected["p_a"][0]).all()


def test_real_scans_in_an_archive(real_data: Path, tmp_path: Path) -> None:
    """Nine encodings of one mosaic, with their NIfTI references: the same series, from the same files."""
    root = real_data / "dicom_qa/ts"
    path = zipped(root, tmp_path / "ts.zip")
    outside, inside = medimg.scan(root), medimg.scan(path)
    assert len(inside) == len(outside) > 10
    assert len(inside.skipped) == len(outside.skipped)
    members = {os.path.relpath(s.path, path / root.name): s for s in inside}
    for series in outside:
        other = members[os.path.relpath(series.path, root)]
        assert other.shape == series.shape
        assert np.array_equal(other.affine, series.affine)
        assert np.array_equal(other.read().array, series.read().array)


def test_recipes_take_any_source(folder: Path) -> None:
    expected = medimg.to_tensor(folder, window="lung", size=32)
    assert len(expected) == 4
    for kind in ("an archive in bytes", "a tuple of file objects", "a zip archive"):
        assert (medimg.to_tensor(SOURCES[kind](folder), window="lung", size=32) == expected).all()


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_an_archive_in_a_cycle_of_garbage_is_closed(tmp_path: Path, order: tuple[int, ...]) -> None:
    """Python collects such in any order, the file itself before what would close it, too."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("a.png", b"")

    def leave() -> None:
        archive = Archive(str(tmp_path / "a.zip"))
        opened = archive.open_directory()
        things: tuple[object, ...] = (archive, opened, opened.fp)
        cycle = [things[n] for n in order]
        del archive, opened, things
        # a collection orders what it finds by who refers to it first
        gc.collect()
        cycle.append(cycle)

    # a collection takes long where there is much, and what was there before is not its matter
    gc.freeze()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            leave()
            assert gc.collect()
    finally:
        gc.unfreeze()
    assert not caught
