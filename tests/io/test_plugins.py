"""Readers of plug-ins: registered ones, and those of entry points."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import medimg
import medimg.testing
from medimg import plugins
from medimg.errors import MedimgWarning, NotAnImageError, ReadError, TruncatedError
from tests.dicom_files import write_stack

TINY = b"TINYSCAN" + np.array([3, 4, 5], "<u2").tobytes() + bytes(range(60))

PLUGIN = """
import numpy as np
from medimg.plugins import Raster, raster_series

def detect(head):
    return head.startswith(b"TINYSCAN")

def open(blob):
    grid = tuple(np.frombuffer(blob.start(14)[8:], "<u2").tolist())
    affine = np.diag([2.0, 0.5, 0.5, 1.0])[[2, 1, 0, 3]]
    return raster_series(Raster(name=blob.name, format="Tiny", files=(blob.name,), blob=blob,
                                dtype=np.dtype("u1"), grid=grid, affine=affine, space="patient", start=14))
"""


def is_tiny(head: bytes) -> bool:
    return head.startswith(b"TINYSCAN")


def open_tiny(blob: plugins.Blob) -> plugins.Series:
    names: dict[str, Any] = {}
    exec(PLUGIN, names)
    found = names["open"](blob)
    assert isinstance(found, plugins.Series)
    return found


@pytest.fixture
def tiny() -> Iterator[None]:
    plugins.register_reader(is_tiny, open_tiny, name="Tiny")
    yield
    plugins.unregister_reader("Tiny")


def scan_tiny(path: Path) -> plugins.Series:
    """As a user gets it: the one series of a file, or the error that says why there is none."""
    from medimg.io.read import find_series

    return find_series(path)[0]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("check", medimg.testing.READER_CHECKS, ids=lambda c: c.name)
def test_a_registered_reader_keeps_the_contract(check: medimg.testing.Check, tmp_path: Path) -> None:
    (tmp_path / "one.tiny").write_bytes(TINY)
    check(medimg.scan(tmp_path / "one.tiny")[0])


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("check", medimg.testing.FILE_CHECKS, ids=lambda c: c.name)
def test_files_of_a_registered_reader_keep_the_contract(
    check: medimg.testing.FileCheck, tmp_path: Path
) -> None:
    (tmp_path / "one.tiny").write_bytes(TINY)
    check(tmp_path / "one.tiny", scan_tiny)


@pytest.mark.usefixtures("tiny")
def test_scanning_a_folder_finds_them_beside_the_others(tmp_path: Path) -> None:
    write_stack(tmp_path / "chest", [0.0, 2.0, 4.0])
    (tmp_path / "any.name").write_bytes(TINY)
    (tmp_path / "notes.txt").write_text("nothing to see")
    index = medimg.scan(tmp_path)
    assert sorted(s.format for s in index) == ["DICOM", "Tiny"]
    assert (
        "none of DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG, JPEG 2000, TIFF, BMP, WebP, GIF and Tiny"
        in index.skipped[0].reason
    )


def test_a_plug_in_can_take_no_built_in_format(tmp_path: Path) -> None:
    asked: list[bytes] = []

    def detect(head: bytes) -> bool:
        asked.append(head)
        return True

    plugins.register_reader(detect, open_tiny, name="Greedy")
    try:
        write_stack(tmp_path / "chest", [0.0, 2.0, 4.0])
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "p.png")
        assert sorted(s.format for s in medimg.scan(tmp_path)) == ["DICOM", "PNG"]
        assert asked == []
    finally:
        plugins.unregister_reader("Greedy")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["Tiny", "TINY", "DICOM", "png", "zip", "", " ", "a\nb"])
def test_a_name_that_is_taken_or_none_is_refused(name: str) -> None:
    with pytest.raises(ReadError, match="reader"):
        plugins.register_reader(is_tiny, open_tiny, name=name)


def test_what_is_not_registered_is_not_removed() -> None:
    with pytest.raises(ReadError, match="no reader named 'DICOM' is registered"):
        plugins.unregister_reader("DICOM")


def test_detect_that_raises_is_a_warning_once(tmp_path: Path) -> None:
    def detect(head: bytes) -> bool:
        raise KeyError("DOE^JANE")

    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    plugins.register_reader(detect, open_tiny, name="Broken")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert len(medimg.scan(tmp_path).skipped) == 2
    (one,) = said
    assert issubclass(one.category, MedimgWarning)
    assert "'Broken'" in str(one.message)
    assert "DOE" not in str(one.message)


@pytest.mark.parametrize("raised", [ValueError("DOE^JANE"), TruncatedError("cut short")])
def test_what_open_raises_is_an_error_of_reading(raised: Exception) -> None:
    def fail(blob: plugins.Blob) -> plugins.Series:
        raise raised

    plugins.register_reader(is_tiny, fail, name="Failing")
    try:
        with pytest.raises(ReadError) as caught:
            medimg.read(TINY)
    finally:
        plugins.unregister_reader("Failing")
    if isinstance(raised, ReadError):
        assert caught.value is raised
    else:
        assert "'Failing' raised ValueError" in str(caught.value)
        assert "DOE" not in str(caught.value)


def test_an_index_forgets_what_other_plug_ins_decide(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "one.tiny").write_bytes(TINY)
    os.utime(folder / "one.tiny", (1e9, 1e9))
    index = tmp_path / "saved.sqlite"
    assert not medimg.scan(folder, index=index)
    plugins.register_reader(is_tiny, open_tiny, name="Tiny")
    try:
        assert medimg.scan(folder, index=index)[0].format == "Tiny"
        recalled = medimg.scan(folder, index=index)[0]
        assert recalled.read().array.ravel().tolist() == list(range(60))
    finally:
        plugins.unregister_reader("Tiny")
    assert not medimg.scan(folder, index=index)
    with pytest.raises(NotAnImageError):
        recalled.read()


def install(site: Path, name: str, code: str, entry: str) -> None:
    (site / f"{name}.py").write_text(code)
    info = site / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[medimg.readers]\n{entry}\n")


def run(code: str, *paths: Path) -> str:
    path = os.pathsep.join([*map(str, paths), str(Path(medimg.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.strip()


def test_a_reader_of_an_entry_point_is_removed_before_it_was_needed(tmp_path: Path) -> None:
    code = "def detect(head): return False\ndef open(blob): raise AssertionError\n"
    install(tmp_path, "early", code, "Early = early")
    found = run(
        "from medimg.plugins import unregister_reader\n"
        "from medimg.io.detect import list_plugin_readers\n"
        "unregister_reader('Early')\n"
        "print(list_plugin_readers())",
        tmp_path,
    )
    assert found == "[]"


def test_entry_points_are_imported_when_they_are_needed_and_broken_ones_warn(tmp_path: Path) -> None:
    site, tree = tmp_path / "site", tmp_path / "tree"
    site.mkdir()
    install(site, "tiny_plugin", PLUGIN, "Tiny = tiny_plugin")
    install(site, "broken_plugin", "import nothing_like_it", "Broken = broken_plugin")
    write_stack(tree / "chest", [0.0, 2.0, 4.0])
    code = f"""
import sys, warnings, medimg
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as said:
    medimg.scan({str(tree)!r})
    print("tiny_plugin" in sys.modules, len(said))
    print(medimg.read({TINY!r}).shape, *[w.message for w in said])
    print("torch" in sys.modules)
"""
    lazy, read, torch = run(code, site).splitlines()
    assert (lazy, torch) == ("False 0", "False")
    assert read.startswith(
        "(1, 3, 4, 5) the entry point 'Broken' (broken_plugin) of broken_plugin 1.2 is not"
    )
    assert "ModuleNotFoundError: No module named 'nothing_like_it'" in read


def test_spawned_processes_find_readers_of_entry_points(tmp_path: Path) -> None:
    site, tree = tmp_path / "site", tmp_path / "tree"
    site.mkdir()
    tree.mkdir()
    install(site, "tiny_plugin", PLUGIN, "Tiny = tiny_plugin")
    (tree / "one.tiny").write_bytes(TINY)
    code = f"""
import multiprocessing, medimg
(series,) = medimg.scan({str(tree)!r})
with multiprocessing.get_context("spawn").Pool(1) as pool:
    print(pool.apply(medimg.read, [{str(tree)!r}]), pool.apply(medimg.Series.read, [series]), sep="\\n")
"""
    scanned, read = run(code, site).splitlines()
    assert scanned == read
    assert scanned.startswith("Volume(1×3×4×5 uint8")


def test_the_names_for_authors_are_there_and_load_no_torch() -> None:
    assert all(getattr(plugins, name).__doc__ for name in plugins.__all__)
    assert dir(plugins) == sorted(plugins.__all__)
    with pytest.raises(AttributeError, match="nothing_here"):
        plugins.nothing_here  # type: ignore[attr-defined]  # noqa: B018
    code = "import sys, medimg.plugins as p; p.register_reader, p.Raster; print('torch' in sys.modules)"
    assert run(code) == "False"
