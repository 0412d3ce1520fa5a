"""What stands on two sides is found, whatever it is called and however it was saved."""

from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, generate_uid

import medimg
from medimg import ImageDataset, Preprocess
from medimg.data.leakage import _fingerprints
from medimg.data.leakage._near_duplicates import find_near_pairs
from medimg.data.leakage.check_leaks import Check
from medimg.errors import DatasetError, LeakageError, MedimgWarning
from medimg.io.read import find_series
from tests.dicom_files import make_instance, write, write_stack
from tests.io.dicom.encodings import HTJ2K, J2K, JPEG_LS, LOSSLESS, RLE, compressed, rle_frame
from tests.sampling import SLOW

SMALL = Preprocess(size=32)
Pixels = npt.NDArray[Any]


def noise(seed: int, shape: tuple[int, ...] = (24, 32), bits: int = 8) -> Pixels:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**bits, shape).astype(np.uint8 if bits <= 8 else np.uint16)


def instance(pixels: Pixels, **attributes: Any) -> FileDataset:
    """An image of a study and series of its own."""
    given = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), "RescaleIntercept": 0}
    return make_instance(pixels, **{**given, **attributes})


def native(pixels: Pixels, **attributes: Any) -> FileDataset:
    return instance(pixels, **attributes)


def implicit(pixels: Pixels, **attributes: Any) -> FileDataset:
    ds = instance(pixels, **attributes)
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return ds


def big_endian(pixels: Pixels, **attributes: Any) -> FileDataset:
    ds = instance(pixels, **attributes)
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    ds.PixelData = pixels.byteswap().tobytes()
    return ds


def save(ds: FileDataset, path: Path) -> Path:
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax != ExplicitVRBigEndian:
        return write(ds, path)
    pydicom.dcmwrite(path, ds, implicit_vr=False, little_endian=False, enforce_file_format=True)
    return path


def encoded(syntax: str, encode: Callable[[Pixels], bytes]) -> Callable[..., FileDataset]:
    def make(pixels: Pixels, **attributes: Any) -> FileDataset:
        given = {
            "StudyInstanceUID": generate_uid(),
            "SeriesInstanceUID": generate_uid(),
            "RescaleIntercept": 0,
        }
        return compressed(pixels, syntax, [encode(pixels)], **{**given, **attributes})

    return make


SYNTAXES: dict[str, Callable[..., FileDataset]] = {
    "implicit": implicit,
    "explicit": native,
    "big endian": big_endian,
    "RLE": encoded(RLE, rle_frame),
    "JPEG lossless": encoded(LOSSLESS, lambda p: bytes(imagecodecs.jpeg8_encode(p, lossless=True))),
    "JPEG-LS": encoded(JPEG_LS, lambda p: bytes(imagecodecs.jpegls_encode(p))),
    "JPEG 2000": encoded(
        J2K, lambda p: bytes(imagecodecs.jpeg2k_encode(p, level=0, reversible=True, codecformat="j2k"))
    ),
    "HTJ2K": encoded(HTJ2K, lambda p: bytes(imagecodecs.htj2k_encode(p))),
}


def table(root: Path, rows: list[tuple[str, str]], **options: Any) -> ImageDataset:
    """Files and their patients; classes alternate."""
    frame = pd.DataFrame(
        {
            "path": [r[0] for r in rows],
            "patient": [r[1] for r in rows],
            "label": ["ab"[n % 2] for n in range(len(rows))],
        }
    )
    return ImageDataset.from_csv(frame, root=root, patient="patient", preprocess=SMALL, **options)


def pictures(root: Path, count: int) -> list[tuple[str, str]]:
    for n in range(count):
        Image.fromarray(noise(n)).save(root / f"{n}.png")
    return [(f"{n}.png", f"p{n}") for n in range(count)]


def kinds(report: medimg.LeakReport) -> set[str]:
    return {leak.kind for leak in report.leaks}


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("name", list(SYNTAXES))
def test_the_same_pixels_in_another_syntax_under_another_name(tmp_path: Path, name: str, bits: int) -> None:
    if (name, bits) == ("big endian", 8):
        pytest.skip("bytes within words have a test of their own among those of readers")
    pixels = noise(1, bits=bits)
    stored = {"BitsStored": bits, "HighBit": bits - 1}
    write(instance(pixels, PatientID="SENTINEL-A", **stored), tmp_path / "a.dcm")
    save(SYNTAXES[name](pixels, PatientID="SENTINEL-B", **stored), tmp_path / "b.dcm")
    write(instance(noise(2, bits=bits), PatientID="SENTINEL-C", **stored), tmp_path / "c.dcm")
    data = table(tmp_path, [("a.dcm", "A"), ("b.dcm", "B"), ("c.dcm", "C")])
    report = medimg.check_leaks(data, on_leak="report", near_duplicates=False)
    assert [(leak.kind, leak.items) for leak in report.leaks] == [("pixels", (0, 1))]
    assert report.items == ((0, 1),)
    with pytest.raises(LeakageError, match=report.leaks[0].digest) as error:
        medimg.check_leaks(data.subset([0, 2]), data.subset([1]))
    assert "part 0 item 0 and part 1 item 0" in str(error.value)
    assert "SENTINEL" not in str(error.value)
    assert medimg.check_leaks(data.subset([0]), data.subset([2])).is_clean


@pytest.mark.parametrize(
    "change",
    [
        {"RescaleIntercept": -1024},
        {"RescaleSlope": 0.25, "RescaleType": "US"},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"WindowCenter": 40, "WindowWidth": 80, "Modality": "CR"},
        {"PixelPaddingValue": 0},
        {"ImagePositionPatient": None, "ImageOrientationPatient": None},
    ],
)
def test_headers_do_not_hide_pixels(tmp_path: Path, change: dict[str, Any]) -> None:
    pixels = noise(1, bits=12)
    write(instance(pixels), tmp_path / "a.dcm")
    write(instance(pixels, **change), tmp_path / "b.dcm")
    data = table(tmp_path, [("a.dcm", "A"), ("b.dcm", "B")])
    assert kinds(medimg.check_leaks(data, on_leak="report")) == {"pixels"}


def test_values_stored_otherwise_are_the_same_pixels(tmp_path: Path) -> None:
    """Hounsfield units as they are, and 1024 higher with an intercept; a PNG, and its DICOM twin."""
    pixels = noise(1, bits=11)
    write(instance(pixels, RescaleIntercept=-1024), tmp_path / "a.dcm")
    write(instance(pixels.astype(np.int16) - 1024), tmp_path / "b.dcm")
    gray = noise(3)
    Image.fromarray(gray).save(tmp_path / "c.png")
    Image.fromarray(np.stack([gray] * 3, axis=-1)).save(tmp_path / "d.png")
    write(instance(gray, RescaleIntercept=-1024), tmp_path / "e.dcm")
    data = table(tmp_path, [("a.dcm", "A"), ("b.dcm", "B"), ("c.png", "C"), ("d.png", "D"), ("e.dcm", "E")])
    found = {leak.items for leak in medimg.check_leaks(data, on_leak="report").leaks}
    assert found == {(0, 1), (2, 3), (2, 4)}


def test_a_slice_of_a_stack_is_found_in_another(tmp_path: Path) -> None:
    for name, seeds in (("a", (1, 2, 3)), ("b", (4, 5, 6)), ("c", (7, 2, 8))):
        series, study = generate_uid(), generate_uid()
        for n, seed in enumerate(seeds):
            place = [0.0, 0.0, 2.0 * n]
            ds = instance(
                noise(seed), SeriesInstanceUID=series, StudyInstanceUID=study, ImagePositionPatient=place
            )
            write(ds, tmp_path / name / f"{n}.dcm")
    data = table(tmp_path, [("a", "A"), ("b", "B"), ("c", "C")])
    assert len(data) == 9
    report = medimg.check_leaks(data, on_leak="report", near_duplicates=False)
    assert [(leak.kind, leak.items) for leak in report.leaks] == [("pixels", (0, 6))]
    assert report.items == ((0, 1, 2, 6, 7, 8),)


def test_frames_of_one_file_and_volumes_of_other_formats(tmp_path: Path) -> None:
    import nibabel

    frames = np.stack([noise(n) for n in range(3)])
    ds = instance(frames[0], NumberOfFrames=3, ImagePositionPatient=None, ImageOrientationPatient=None)
    ds.PixelData = frames.tobytes()
    write(ds, tmp_path / "cine.dcm")
    write(instance(frames[1], PatientID="2"), tmp_path / "one.dcm")
    # a NIfTI file holds columns before rows
    volume = np.moveaxis(np.stack([noise(9), frames[2]]), 0, -1).swapaxes(0, 1)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "volume.nii.gz")
    data = table(tmp_path, [("cine.dcm", "A"), ("one.dcm", "B"), ("volume.nii.gz", "C")], unit="series")
    found = {leak.items for leak in medimg.check_leaks(data, on_leak="report", near_duplicates=False).leaks}
    assert found == {(0, 1), (0, 2)}


def test_blank_pictures_are_nobodys(tmp_path: Path) -> None:
    for n in range(3):
        Image.fromarray(np.full((9, 9), 7, np.uint8)).save(tmp_path / f"{n}.png")
    data = table(tmp_path, [(f"{n}.png", f"p{n}") for n in range(3)])
    assert medimg.check_leaks(data).is_clean


@pytest.mark.parametrize(
    ("shared", "found"),
    [
        ({"StudyInstanceUID": "1.2.9"}, {"study"}),
        ({"StudyInstanceUID": "1.2.9", "SeriesInstanceUID": "1.2.9.1"}, {"study", "series"}),
        ({"SOPInstanceUID": "1.2.9.1.1"}, {"instance"}),
    ],
)
def test_identifiers_on_two_sides(tmp_path: Path, shared: dict[str, str], found: set[str]) -> None:
    for n in range(5):
        write(
            instance(noise(n), PatientID=f"SENTINEL-{n}", **(shared if n < 2 else {})), tmp_path / f"{n}.dcm"
        )
    data = table(tmp_path, [(f"{n}.dcm", f"p{n}") for n in range(5)])
    report = medimg.check_leaks(data, on_leak="report", pixels=False)
    assert kinds(report) == found
    assert {leak.items for leak in report.leaks} == {(0, 1)}
    assert "pixels not compared" in report.notes
    for check in (medimg.split, medimg.kfold):
        with pytest.raises(LeakageError, match="different patients share"):
            check(data, check="fast")
    with pytest.raises(LeakageError, match="different subsets share"):
        medimg.check_leaks(data.subset([0, 2]), data.subset([1, 3]), pixels=False)
    assert medimg.check_leaks(data.subset([0, 1]), data.subset([2, 3]), pixels=False).is_clean


def test_a_study_that_is_everybodys_says_nothing(tmp_path: Path) -> None:
    for n in range(3):
        write(instance(noise(n), StudyInstanceUID="1.2.3"), tmp_path / f"{n}.dcm")
    data = table(tmp_path, [(f"{n}.dcm", f"p{n}") for n in range(3)])
    report = medimg.check_leaks(data)
    assert report.is_clean
    assert any("Study Instance UID" in note for note in report.notes)
    with pytest.raises(LeakageError, match="study"):
        medimg.check_leaks(data.subset([0, 1]), pixels=False)


def test_patients_and_files_on_two_sides(tmp_path: Path) -> None:
    data = table(
        tmp_path,
        [
            *pictures(tmp_path, 4),
        ],
    )
    with pytest.raises(LeakageError, match="1 × patient, 1 × file"):
        medimg.check_leaks(data.subset([0, 1]), data.subset([2]), data.subset([1, 3]))
    shutil.copy(tmp_path / "0.png", tmp_path / "x.png")
    other = table(tmp_path, [("x.png", "p0"), ("3.png", "someone")])
    report = medimg.check_leaks(data.subset([0, 1, 2]), other.subset([0]), on_leak="report")
    assert kinds(report) == {"patient", "pixels"}
    report = medimg.check_leaks(data, other.subset([1]), on_leak="report")
    assert kinds(report) == {"file", "pixels"}
    assert report.items == ((3,), (0,))


def test_a_patient_id_on_two_sides_under_other_names(tmp_path: Path) -> None:
    """Two tables that call the same patient by different names."""
    for n in range(4):
        write(instance(noise(n), PatientID=f"SENTINEL-{n // 2}"), tmp_path / f"{n}.dcm")
    one = table(tmp_path, [("0.dcm", "x"), ("2.dcm", "y")])
    other = table(tmp_path, [("1.dcm", "01"), ("3.dcm", "02")])
    with pytest.raises(LeakageError, match="2 × patient") as error:
        medimg.check_leaks(one, other)
    assert "SENTINEL" not in str(error.value)


def test_split_decodes_what_it_can_afford(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pictures(tmp_path, 8)
    shutil.copy(tmp_path / "0.png", tmp_path / "again.png")
    data = table(tmp_path, [*rows, ("again.png", "SENTINEL")])
    halves = (0.5, 0.5)
    medimg.split(data, fractions=halves, check=None)
    medimg.split(data, fractions=halves, check="fast")
    checks: tuple[Check, ...] = ("auto", "pixels")
    for check in checks:
        with pytest.raises(LeakageError, match="different patients share") as error:
            medimg.split(data, fractions=halves, check=check)
        assert "SENTINEL" not in str(error.value)
    monkeypatch.setattr("medimg.data.leakage.check_leaks._AFFORDABLE", 0)
    # what was decoded is known
    with pytest.raises(LeakageError):
        medimg.split(data, fractions=halves)
    monkeypatch.setattr("medimg.data.leakage._fingerprints._CACHE", _fingerprints._FingerprintCache())
    assert len(medimg.split(data, fractions=halves)) == 2
    with pytest.raises(DatasetError, match="check"):
        medimg.split(data, check="slow")  # type: ignore[arg-type]  # on purpose


def test_files_that_change_are_decoded_again(tmp_path: Path) -> None:
    data = table(tmp_path, pictures(tmp_path, 3))
    assert medimg.check_leaks(data).is_clean
    shutil.copy(tmp_path / "0.png", tmp_path / "2.png")
    assert not medimg.check_leaks(data, on_leak="report").is_clean


def test_what_is_decoded_is_remembered_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fingerprints, "_MOST_CACHED", 8)
    monkeypatch.setattr(_fingerprints, "_CACHE", _fingerprints._FingerprintCache())
    data = table(tmp_path, pictures(tmp_path, 10))
    medimg.check_leaks(data)
    known = [_fingerprints.find_fingerprint(series) is not None for series in data.series]
    assert sum(known) == 4
    assert known[-1]


def test_what_can_not_be_decoded_is_told(tmp_path: Path) -> None:
    data = table(tmp_path, pictures(tmp_path, 3))
    content = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(content[: len(content) // 2])
    with pytest.warns(MedimgWarning, match="1 series can't be decoded"):
        assert medimg.check_leaks(data).is_clean


def test_lossy_copies_are_warned_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for n in range(6):
        coarse = Image.fromarray(rng.integers(0, 255, (20, 20)).astype(np.uint8))
        coarse.resize((160, 160), Image.Resampling.BICUBIC).save(tmp_path / f"{n}.png")
        rows.append((f"{n}.png", f"p{n}"))
    with Image.open(tmp_path / "3.png") as image:
        image.save(tmp_path / "lossy.jpg", quality=50)
        image.resize((96, 96)).save(tmp_path / "small.png")
    data = table(tmp_path, [*rows, ("lossy.jpg", "x"), ("small.png", "y")])
    with pytest.warns(MedimgWarning, match=r"3 pair\(s\) of images in different patients look alike"):
        report = medimg.check_leaks(data)
    assert report.is_clean
    assert {leak.items for leak in report.near_duplicates} == {(3, 6), (3, 7), (6, 7)}
    assert all(0.9 <= leak.similarity <= 1 for leak in report.near_duplicates)
    shown = report.to_pandas()
    assert shown["kind"].tolist() == ["near"] * 3
    with pytest.warns(MedimgWarning, match="in different subsets look alike"):
        medimg.check_leaks(data.subset([3]), data.subset([6]))
    with pytest.warns(MedimgWarning, match="look alike"):
        medimg.split(data, fractions=(0.5, 0.5), check="pixels")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        medimg.split(data, fractions=(0.5, 0.5))


def test_the_inverted_twin_looks_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (20, 20)).astype(np.uint8)).resize((160, 160))
    pixels = np.asarray(coarse)
    write(instance(pixels), tmp_path / "a.dcm")
    write(instance(255 - pixels, PhotometricInterpretation="MONOCHROME1"), tmp_path / "b.dcm")
    with pytest.warns(MedimgWarning, match="look alike"):
        medimg.check_leaks(table(tmp_path, [("a.dcm", "A"), ("b.dcm", "B")]))


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none was given"):
        medimg.check_leaks()
    with pytest.raises(DatasetError, match="on_leak"):
        medimg.check_leaks(table(tmp_path, pictures(tmp_path, 2)), on_leak="ignore")  # type: ignore[arg-type]  # on purpose


def test_a_leak_is_found_when_training_starts(tmp_path: Path) -> None:
    for n in range(4):
        shared = {"StudyInstanceUID": "1.2.9"} if n < 2 else {}
        write(instance(noise(n, (16, 16)), **shared), tmp_path / f"{n}.dcm")
    data = table(tmp_path, [(f"{n}.dcm", f"p{n}") for n in (0, 2, 3, 1)])
    model = medimg.TransferClassifier("squeezenet1_1", classes=data.classes, weights=None, preprocess=SMALL)
    with pytest.raises(LeakageError, match="1 × study"):
        medimg.fine_tune(model, data.subset([0, 1]), data.subset([2, 3]), progress=False)


def test_planted_leaks_are_found_among_real_pictures(real_data: Path, tmp_path: Path) -> None:
    """Chest X-rays of hundreds of children are clean; what is saved again under another name is found."""
    root = real_data / "cls" / "kermany_cxr224_dev"
    rows = pd.read_csv(root / "labels.csv", dtype=str)[["file", "label", "patient_id"]]
    rows = rows.iloc[:: 1 if SLOW else 6].reset_index(drop=True)
    data = ImageDataset.from_csv(rows, path="file", patient="patient_id", root=root)
    parts = medimg.split(data)
    clean = medimg.check_leaks(*parts)
    assert clean.is_clean
    assert clean.near_duplicates == ()
    assert medimg.check_leaks(data).is_clean
    chosen = np.random.default_rng(0).permutation(len(rows))[: len(SYNTAXES) + 2]
    planted = []
    for n, (name, make) in zip(chosen, SYNTAXES.items(), strict=False):
        with Image.open(root / rows.file[n]) as image:
            pixels = np.ascontiguousarray(np.asarray(image)[..., 0])
        if name == "big endian":
            pixels = pixels.astype(np.uint16)
        path = save(make(pixels, PatientID=f"SENTINEL-{n}", Modality="CR"), tmp_path / f"{n}.dcm")
        planted.append((str(path), rows.label[n], f"new {n}"))
    for n in chosen[len(SYNTAXES) :]:
        shutil.copy(root / rows.file[n], tmp_path / f"{n}.jpeg")
        planted.append((str(tmp_path / f"{n}.jpeg"), rows.label[n], f"renamed {n}"))
    both = pd.concat([rows, pd.DataFrame(planted, columns=list(rows.columns))], ignore_index=True)
    data = ImageDataset.from_csv(both, path="file", patient="patient_id", root=root)
    report = medimg.check_leaks(data, on_leak="report", near_duplicates=False)
    assert {leak.kind for leak in report.leaks} == {"pixels"}
    # another picture of the same child may be there twice: the first one is shown
    first = {leak.items[1]: data.patients[leak.items[0]] for leak in report.leaks}
    assert first == {len(rows) + k: rows.patient_id[n] for k, n in enumerate(chosen)}
    with pytest.raises(LeakageError, match=f"{len(chosen)} × image") as error:
        medimg.split(data)
    assert "SENTINEL" not in str(error.value)
    assert not any(str(patient) in str(error.value) for patient in rows.patient_id)
    same = [np.flatnonzero(rows.patient_id == rows.patient_id.value_counts().index[0])[:2]][0]
    with pytest.raises(LeakageError, match="1 × patient"):
        medimg.check_leaks(data.subset([same[0]]), data.subset([same[1]]), pixels=False)


def test_lossy_copies_among_real_pictures(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "cls" / "kermany_cxr224_dev"
    rows = pd.read_csv(root / "labels.csv", dtype=str)[["file", "label", "patient_id"]][::8].reset_index(
        drop=True
    )
    planted = []
    for n in range(0, 100, 10):
        with Image.open(root / rows.file[n]) as image:
            held = io.BytesIO()
            image.save(held, "JPEG", quality=40)
            image.resize((180, 180)).save(tmp_path / f"{n}.png")
        (tmp_path / f"{n}.jpg").write_bytes(held.getvalue())
        planted += [(str(tmp_path / f"{n}.{ending}"), rows.label[n], f"new {n}") for ending in ("jpg", "png")]
    both = pd.concat([rows, pd.DataFrame(planted, columns=list(rows.columns))], ignore_index=True)
    data = ImageDataset.from_csv(both, path="file", patient="patient_id", root=root)
    with pytest.warns(MedimgWarning, match="look alike"):
        report = medimg.check_leaks(data)
    assert report.is_clean
    expected = {(n, len(rows) + 2 * k + m) for k, n in enumerate(range(0, 100, 10)) for m in (0, 1)}
    assert {leak.items for leak in report.near_duplicates} == expected


def test_stacks_with_gaps_are_compared_all_the_same(tmp_path: Path) -> None:
    for n, label in enumerate("ab"):
        write_stack(
            tmp_path / label,
            [0, 2, 6],
            SeriesInstanceUID=f"1.{n}",
            StudyInstanceUID=f"1.{n}.0",
            PatientID=label,
        )
    data = table(tmp_path, [("a", "x"), ("b", "y")])
    assert kinds(medimg.check_leaks(data, on_leak="report")) == {"pixels"}


def test_nema_images_in_all_syntaxes(real_data: Path) -> None:
    """The same CT, MR and RG in lossless syntaxes are the same pixels, in lossy ones near-duplicates."""
    root = real_data / "dicom_misc" / "wg04_dev" / "medical.nema.org"
    files = sorted(path for path in root.rglob("*_*") if path.is_file())
    lossy = ("JPLY", "JLSN", "J2KI")
    for name in ("CT1", "MR1", "RG3"):
        chosen = [path for path in files if path.name.startswith(name)]
        exact = [path for path in chosen if not path.name.endswith(lossy)]
        prints = _fingerprints.compute_fingerprints([find_series(path)[0] for path in chosen])
        digests = {path: p.digests for path, p in zip(chosen, prints, strict=True) if p is not None}
        assert len(digests) == len(chosen)
        assert len(exact) >= 3
        assert all(digests[path] & digests[exact[0]] for path in exact)
        assert not any(digests[path] & digests[exact[0]] for path in chosen if path not in exact)
        pairs = find_near_pairs(prints, [str(path) for path in chosen])
        assert len(pairs) == len(chosen) * (len(chosen) - 1) // 2


def test_contradicting_labels_of_identical_pixels_warn(tmp_path: Path) -> None:
    rows = []
    for n, (pixels, label, patient) in enumerate(
        [(0, "a", "p"), (1, "b", "q"), (0, "b", "p"), (2, "a", "r"), (2, "a", "r"), (3, "b", "s")]
    ):
        Image.fromarray(noise(pixels)).save(tmp_path / f"{n}.png")
        rows.append((f"{n}.png", label, patient))
    table = pd.DataFrame(rows, columns=["path", "label", "patient"])
    options: dict[str, Any] = {"root": tmp_path, "patient": "patient", "preprocess": SMALL}
    data = ImageDataset.from_csv(table, **options)
    with pytest.warns(MedimgWarning, match=r"1 pair\(s\) .* different labels.*\n.*item 0 and item 2"):
        report = medimg.check_leaks(data)
    assert [(leak.kind, leak.items) for leak in report.contradictions] == [("pixels", (0, 2))]
    assert report.is_clean
    with pytest.warns(MedimgWarning, match="different labels"):
        medimg.split(data, fractions=(0.5, 0.5))
    # within a subset too; between two it is a leak
    with pytest.warns(MedimgWarning, match="part 0 item 0 and part 0 item 1"):
        assert len(medimg.check_leaks(data.subset([0, 2]), data.subset([1])).contradictions) == 1
    found = medimg.check_leaks(data.subset([0]), data.subset([2]), on_leak="report")
    assert found.contradictions == ()
    assert {leak.kind for leak in found.leaks} == {"patient", "pixels"}
    several = table.assign(x=[1, 0, 1, 1, 1, 0], y=[0, 0, 1, 1, 1, 0])
    with pytest.warns(MedimgWarning, match="item 0 and item 2"):
        medimg.check_leaks(ImageDataset.from_csv(several, label=["x", "y"], **options))
    unlabeled = ImageDataset.from_csv(table, label=None, **options)
    assert medimg.check_leaks(unlabeled).contradictions == ()
