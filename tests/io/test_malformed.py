"""Malformed files: a volume or a MedimgError for each, within 20 seconds and 2 GiB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  # the name that its users know
from PIL import Image

import medimg
from medimg.testing.studies import Study, write_dicom
from tests.conformance import Conformance
from tests.sampling import SLOW

SCRIPT = Path(__file__).with_name("hostile.py")
ROOT = Path(medimg.__file__).parents[1]
#: Damaged copies of each file; MEDIMG_FUZZ=2000 looks longer.
COPIES = int(os.environ.get("MEDIMG_FUZZ", "8" if SLOW else "4"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of memory need a fork")


Outcomes = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[Outcomes]:
    """Read every file in a process of its own, forked off one that has everything loaded."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        ) as process,
    ):

        def said() -> str:
            errors.seek(0)
            return errors.read()[-2000:]

        def ask(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
            assert process.stdin is not None
            assert process.stdout is not None
            answers = []
            for task in tasks:
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
                for _ in range(task.get("copies", 1)):
                    line = process.stdout.readline()
                    assert line, said()
                    answers.append(json.loads(line))
            return answers

        yield ask
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0, said()


def broken(found: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"{Path(r['path']).name}{' copy ' + str(r['copy']) if 'copy' in r else ''}: {r['outcome']}"
        for r in found
        if r["outcome"].startswith("BREAKS") or r["seconds"] > 20
    )


def test_every_malformed_file_is_a_volume_or_a_medimg_error(
    real_data: Path, conformance: Conformance, outcomes: Outcomes
) -> None:
    files = sorted(p for p in (real_data / "malformed").rglob("*") if p.is_file())
    found = outcomes([{"path": str(p)} for p in files])
    assert len(found) == len(files) > 150
    assert not broken(found), broken(found)
    read = [r for r in found if r["outcome"] == "volume"]
    print(f"{len(found)} files: {len(read)} volumes, {len(found) - len(read)} errors, "
          f"at most {max(r['seconds'] for r in found)} s and {max(r['peak'] for r in found)} MB")  # fmt: skip
    what = "malformed files: a volume or a MedimgError, within 20 s and 2 GiB"
    conformance.note(what, "malformed", len(found), 0)
    assert len(read) > 20


def test_all_of_them_at_once_and_zipped(real_data: Path, tmp_path: Path) -> None:
    """Each file is in a series or skipped with a reason, whether in a folder or in an archive."""
    files = [p for p in (real_data / "malformed").rglob("*") if p.is_file() and p.stat().st_size < 2**20]
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for path in files:
            zipped.write(path, path.relative_to(real_data))
    for source, count in ((real_data / "malformed", None), (archive, len(files))):
        start = time.monotonic()
        index = medimg.scan(source, progress=False)
        assert time.monotonic() - start < 60
        assert all(s.reason for s in index.skipped)
        known = {name for series in index for name in series.files} | {s.path for s in index.skipped}
        assert count is None or len(known) >= 0.95 * count


def samples(real_data: Path, folder: Path) -> dict[str, Path]:
    """One small sound file of each kind."""
    by_pydicom = real_data / "dicom_misc/pydicom-data/data_store/data"
    folder.mkdir(exist_ok=True)
    mosaics = sorted((real_data / "dicom_qa/ts").rglob("*.dcm"), key=lambda p: p.stat().st_size)
    values = np.random.default_rng(0).integers(0, 999, (4, 9, 8)).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    for name in ("a.nrrd", "a.mha", "a.nii", "a.nii.gz"):
        sitk.WriteImage(image, str(folder / name), name != "a.nrrd")
    Image.fromarray(values[0].astype(np.uint8)).save(folder / "a.png")
    Image.fromarray(np.kron(values[0], np.ones((4, 4))).astype(np.uint8)).save(folder / "a.jpg")
    write_dicom(Study(slices=4, syntax="rle"), folder / "series")
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for path in sorted((folder / "series").iterdir()):
            zipped.write(path, path.name)
    made = ("a.nrrd", "a.mha", "a.nii", "a.nii.gz", "a.png", "a.jpg", "a.zip")
    return {
        "multi-frame": by_pydicom / "emri_small.dcm",
        "multi-frame RLE": by_pydicom / "emri_small_RLE.dcm",
        "multi-frame JPEG-LS": by_pydicom / "emri_small_jpeg_ls_lossless.dcm",
        "JPEG 2000": by_pydicom / "emri_small_jpeg_2k_lossless.dcm",
        "HTJ2K": by_pydicom / "HTJ2K_08_RGB.dcm",
        "JPEG lossless": by_pydicom / "JPGLosslessP14SV1_1s_1f_8b.dcm",
        "palette": by_pydicom / "OT-PAL-8-face.dcm",
        "segmentation": by_pydicom / "liver_rle.dcm",
        "modality LUT": by_pydicom / "mlut_18.dcm",
        "deflated": by_pydicom / "liver_nonbyte_aligned_deflate.dcm",
        "mosaic": mosaics[0],
        **{name: folder / name for name in made},
    }


def test_damaged_files_are_a_volume_or_a_medimg_error(
    real_data: Path, tmp_path: Path, outcomes: Outcomes
) -> None:
    kinds = samples(real_data, tmp_path / "samples")
    sound = outcomes([{"path": str(path)} for path in kinds.values()])
    assert {r["outcome"] for r in sound} <= {"volume", "AmbiguousSeriesError", "MissingSlicesError"}, sound
    found = outcomes([{"path": str(p), "copies": COPIES, "seed": n} for n, p in enumerate(kinds.values())])
    assert len(found) == COPIES * len(kinds)
    assert not broken(found), broken(found)
    assert any(r["outcome"] == "volume" for r in found)


@pytest.mark.parametrize("value", ["", "x"])
def test_an_unknown_value_representation_of_any_element(
    tmp_path: Path, value: str, outcomes: Outcomes
) -> None:
    """Found by damaged copies: pydicom raises NotImplementedError when such an element is touched."""
    write_dicom(Study(slices=1), tmp_path / "sound")
    ds = pydicom.dcmread(next((tmp_path / "sound").iterdir()))
    ds.PatientID = ds.SeriesDescription = value
    ds.save_as(tmp_path / "sound.dcm")
    data = (tmp_path / "sound.dcm").read_bytes()
    tags = (b"\x10\x00\x20\x00LO", b"\x08\x00\x3e\x10LO", b"\x08\x00\x60\x00CS", b"\x28\x00\x10\x00US")
    tasks = []
    for n, element in enumerate(tags):
        assert data.count(element) == 1
        for kind in (b"Zq", b"Lo", b"L\xd1"):
            path = tmp_path / f"{n}-{kind.hex()}.dcm"
            path.write_bytes(data.replace(element, element[:4] + kind))
            tasks.append({"path": str(path)})
    found = outcomes(tasks)
    assert not broken(found), broken(found)


def test_an_archive_with_a_nameless_member(tmp_path: Path) -> None:
    """Found by damaged copies."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("x", b"nothing")
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02")
    # the length of the name, taken over by the comment behind it
    path.write_bytes(data[: at + 28] + b"\x00\x00\x00\x00\x01\x00" + data[at + 34 :])
    with pytest.raises(medimg.errors.MedimgError):
        medimg.read(path)


def test_the_rule_is_kept_by_the_test_itself(tmp_path: Path) -> None:
    """What takes too much memory, dies or raises something else is found out."""
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import hostile, medimg, os, time\n"
        f"def read(): print(hostile.in_child({str(path)!r})['outcome'], flush=True)\n"
        "medimg.scan = lambda *a, **k: bytearray(3 * 2**30)\n"
        "read()\n"
        "medimg.scan = lambda *a, **k: {}['PatientName']\n"
        "read()\n"
        "hostile.SECONDS = 1\n"
        "for bad in (lambda _: os.abort(), lambda _: time.sleep(9), lambda _: ''):\n"
        "    hostile.read_here = bad\n"
        "    read()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "BREAKS: MemoryError: ",
        "BREAKS: KeyError: 'PatientName'",
        "BREAKS: ended by SIGABRT",
        "BREAKS: ended by SIGALRM",
        "BREAKS: no answer",
    ]
