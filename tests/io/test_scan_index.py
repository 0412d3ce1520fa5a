"""An index that is kept, and only what has changed is read again."""

from __future__ import annotations

import json
import os
import sqlite3
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import medimg
from medimg.errors import MedimgWarning, ReadError
from medimg.io import _header_scan, _scan_index
from medimg.io import scan as scan_module
from medimg.io._scan_index import compute_crc32, deserialize_content, serialize_content
from medimg.io.detect import Unreadable
from medimg.io.dicom.scanning.series_table import UniformFiles
from medimg.io.files.blob import Blob
from tests.dicom_files import make_instance, write, write_stack
from tests.io.dicom.plain_scan import differences, plain_scan
from tests.sampling import SLOW, sample

AGO = time.time() - 1000


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files of all kinds, which were written a while ago."""
    root = tmp_path / "tree"
    write_stack(root / "chest", [0.0, 2.0, 4.0, 6.0])
    write_stack(root / "repeated", [0.0, 2.0, 0.0, 2.0], SeriesInstanceUID="1.2.9")
    write(make_instance(np.zeros((4, 4), np.uint8), Modality="DX", SeriesInstanceUID="1.3"), root / "x.dcm")
    nib.save(nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), root / "v.nii.gz")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(root / "p.png")
    (root / "notes.txt").write_text("nothing to see")
    (root / "cut.dcm").write_bytes((root / "x.dcm").read_bytes()[:200])
    age(root)
    return root


def age(root: Path) -> None:
    for path in root.rglob("*"):
        os.utime(path, (AGO, AGO))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read."""
    names: list[str] = []
    plain = _header_scan.scan_headers

    def noted(files: Any, chosen: Any, **options: Any) -> _header_scan.HeaderScan:
        names.extend(Path(str(getattr(files[n], "name", files[n]))).name for n in chosen)
        return plain(files, chosen, **options)

    monkeypatch.setattr(scan_module, "scan_headers", noted)
    return names


def facts(index: medimg.SeriesIndex) -> list[Any]:
    return [
        (
            s.uid, s.modality, s.description, s.shape, s.affine.tolist(), s.space, s.files, s.format,
            s.patient_id, s.study_uid, s.frame_times,
        )
        for s in index
    ] + [tuple(sorted((s.path, s.reason) for s in index.skipped))]  # fmt: skip


def test_what_is_unchanged_is_not_read_again(tree: Path, tmp_path: Path, opened: list[str]) -> None:
    path = tmp_path / "index.sqlite"
    first = medimg.scan(tree, index=path)
    assert len(opened) == 13
    opened.clear()
    again = medimg.scan(tree, index=path)
    assert opened == []
    assert facts(first) == facts(again) == facts(medimg.scan(tree))
    assert differences(again, plain_scan(tree)) == []


def test_series_of_an_index_read_the_same_pixels(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    medimg.scan(tree, index=path)
    for one, other in zip(medimg.scan(tree, index=path), medimg.scan(tree), strict=True):
        if "repeated" not in one.path:
            assert np.array_equal(one.read().array, other.read().array)
            pieces = [piece.array for piece in one.pieces(2)]
            assert np.array_equal(np.concatenate(pieces, axis=1), other.read().array)


def test_only_what_changed_is_read(tree: Path, tmp_path: Path, opened: list[str]) -> None:
    path = tmp_path / "index.sqlite"
    medimg.scan(tree, index=path)
    opened.clear()
    write_stack(tree / "chest", [8.0], names=["new.dcm"])
    (tree / "notes.txt").unlink()
    (tree / "p.png").write_bytes((tree / "p.png").read_bytes() + b"\0")
    index = medimg.scan(tree, index=path)
    assert sorted(opened) == ["new.dcm", "p.png"]
    assert facts(index) == facts(medimg.scan(tree))
    assert differences(index, plain_scan(tree)) == []


def test_what_was_written_just_now_is_read_again(tree: Path, tmp_path: Path, opened: list[str]) -> None:
    """Within the grain of a clock, a file can change without a change of its time."""
    path = tmp_path / "index.sqlite"
    os.utime(tree / "x.dcm")
    medimg.scan(tree, index=path)
    opened.clear()
    medimg.scan(tree, index=path)
    assert opened == ["x.dcm"]


def test_a_tree_can_be_moved(tree: Path, tmp_path: Path, opened: list[str]) -> None:
    path = tmp_path / "index.sqlite"
    medimg.scan(tree, index=path)
    opened.clear()
    moved = tree.rename(tmp_path / "elsewhere")
    index = medimg.scan(moved, index=path)
    assert not {name for name in opened if name[0] in "0x"}, "DICOM was read again"
    assert facts(index) == facts(medimg.scan(moved))


def test_the_index_may_lie_in_the_folder(tree: Path, opened: list[str]) -> None:
    for _ in range(2):
        index = medimg.scan(tree, index=tree / "index.sqlite")
        assert not any("index.sqlite" in s.path for s in index.skipped)
    assert "index.sqlite" not in opened


@pytest.mark.parametrize("other", [b"not an index", b"SQLite format 3\0" + bytes(200)])
def test_another_file_is_not_overwritten(tree: Path, tmp_path: Path, other: bytes) -> None:
    path = tmp_path / "mine"
    path.write_bytes(other)
    with pytest.raises(ReadError, match="not an index of medimg"):
        medimg.scan(tree, index=path)
    assert path.read_bytes() == other


def test_an_index_is_of_a_folder(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="scans of a folder"):
        medimg.scan(tree / "x.dcm", index=tmp_path / "i")
    with pytest.raises(ReadError, match="can't be written"):
        medimg.scan(tree, index=tree / "x.dcm" / "i")


def damages(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    yield data[:5000]
    yield data[:100] + bytes(len(data) - 100)
    yield data[:2000] + b"\xff" * 3000 + data[5000:]


@pytest.mark.parametrize("number", range(3))
def test_a_damaged_index_is_rebuilt(tree: Path, tmp_path: Path, number: int) -> None:
    path = tmp_path / "index.sqlite"
    expected = facts(medimg.scan(tree, index=path))
    path.write_bytes(list(damages(path))[number])
    with pytest.warns(MedimgWarning, match="rebuilt"):
        assert facts(medimg.scan(tree, index=path)) == expected
    assert facts(medimg.scan(tree, index=path)) == expected


@pytest.mark.parametrize(
    "facts_of", ["[]", "{}", "null", '["instance", {}]', '["failed", "print", "x"]', '["1", 2]', "[", '["é"]']
)
def test_records_that_say_nothing_usable_are_read_again(tree: Path, tmp_path: Path, facts_of: str) -> None:
    path = tmp_path / "index.sqlite"
    expected = facts(medimg.scan(tree, index=path))
    columns = {"files": "path, size, modified, kind", "kinds": "number"}
    for table, own in columns.items():
        with sqlite3.connect(path) as database:
            database.create_function("crc", -1, compute_crc32)
            database.execute(f"UPDATE {table} SET facts = ?1, crc32 = crc({own}, ?1)", (facts_of,))
        database.close()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert facts(medimg.scan(tree, index=path)) == expected


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_one_flipped_bit_changes_nothing(tree: Path, tmp_path: Path, position: int, bit: int) -> None:
    path = tmp_path / "index.sqlite"
    expected = facts(medimg.scan(tree))
    if not path.exists():
        medimg.scan(tree, index=path)
        (tmp_path / "good").write_bytes(path.read_bytes())
    damaged = bytearray((tmp_path / "good").read_bytes())
    damaged[position % len(damaged)] ^= 1 << bit
    path.write_bytes(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MedimgWarning)
        if _scan_index._is_index(path):
            assert facts(medimg.scan(tree, index=path)) == expected
        else:
            with pytest.raises(ReadError, match="not an index of medimg"):
                medimg.scan(tree, index=path)


@pytest.mark.parametrize("change", ["path", "size", "modified", "kind", "facts"])
def test_each_value_of_a_record_counts(tree: Path, tmp_path: Path, change: str) -> None:
    path = tmp_path / "index.sqlite"
    expected = facts(medimg.scan(tree, index=path))
    with sqlite3.connect(path) as database:
        value = "'0'" if change in ("path", "facts") else f"ifnull({change}, 0) + 1"
        database.execute(
            f"UPDATE files SET {change} = {value} WHERE path = (SELECT max(path) FROM files WHERE kind = 0)"
        )
    database.close()
    with pytest.warns(MedimgWarning, match="a checksum differs"):
        assert facts(medimg.scan(tree, index=path)) == expected


def test_an_index_without_checksums_is_rebuilt(tree: Path, tmp_path: Path) -> None:
    """As it was written before."""
    path = tmp_path / "index.sqlite"
    expected = facts(medimg.scan(tree, index=path))
    with sqlite3.connect(path) as database:
        for table in ("kinds", "files"):
            database.execute(f"ALTER TABLE {table} DROP COLUMN crc32")
        database.execute("PRAGMA user_version = 1")
    database.close()
    with pytest.warns(MedimgWarning, match="another version"):
        assert facts(medimg.scan(tree, index=path)) == expected


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_waited_for(tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ReadError, match="not a regular file"):
        medimg.scan(tree, index=tmp_path / "pipe")


def test_another_version_is_rebuilt(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    expected = facts(medimg.scan(tree, index=path))
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 999")
    database.close()
    with pytest.warns(MedimgWarning, match="another version"):
        assert facts(medimg.scan(tree, index=path)) == expected


@pytest.mark.slow
def test_what_real_headers_say_survives(real_data: Path) -> None:
    compared = 0
    for part in ("dicom_misc", "dicom_qa/enh", "dicom_qa/mosaic_ep2d", "dicom_qa/fmap"):
        files = sample([str(p) for p in sorted((real_data / part).rglob("*")) if p.is_file()])
        found = _header_scan.scan_headers(files, range(len(files)))
        for number, other in found.others:
            facts = serialize_content(other)
            if facts is None:
                # what several files make, or what may be otherwise tomorrow, is not kept
                if isinstance(other, Unreadable):
                    assert not other.is_permanent
                else:
                    assert isinstance(other, medimg.io.series.Series)
                    assert len(other.files) > 1
                continue
            back = deserialize_content(json.loads(json.dumps(facts)), files[number])
            if isinstance(other, medimg.io.series.Series):
                assert isinstance(back, medimg.io.series.Series)
                assert (back.shape, back.files) == (other.shape, other.files)
            elif isinstance(other, Unreadable):
                assert str(other.error) == str(getattr(back, "error", None))
            else:
                assert back == other
            compared += 1
        for uniform in found.uniform:
            back = deserialize_content(
                json.loads(json.dumps(serialize_content(uniform.prototype))), uniform.prototype.path
            )
            assert back == uniform.prototype
            assert isinstance(uniform, UniformFiles)
            assert uniform.get_instance(0).blob == Blob(uniform.names[0])
    assert compared > (100 if SLOW else 50)
