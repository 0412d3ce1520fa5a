"""Synthetic studies: sound DICOM, sound geometry, and labels that only the picture gives away."""

import csv
import hashlib
import itertools
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.uid import JPEGLSLossless
from scipy import ndimage
from scipy.stats import rankdata

from medimg import phantom
from medimg.errors import DatasetError
from medimg.phantom._anatomy import Chest
from medimg.phantom._shapes import Grid
from medimg.phantom.dataset import _plan_patients
from medimg.phantom.patient import Patient
from tests.sampling import SLOW

CT_NAMES = [scanner.name for scanner in phantom.CT_SCANNERS]
XRAY_NAMES = [scanner.name for scanner in phantom.XRAY_SCANNERS]
XRAY_SIZE = (96, 84) if SLOW else (48, 42)
SOMEONE = phantom.Identity.derive("test", 7)


def pixels(dataset: pydicom.Dataset) -> NDArray[Any]:
    """Stored values, also of the one transfer syntax that pydicom has no own decoder for."""
    if dataset.file_meta.TransferSyntaxUID == JPEGLSLossless:
        (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
        decoded: NDArray[Any] = imagecodecs.jpegls_decode(frame)
        return decoded
    return dataset.pixel_array


def window(values: NDArray[Any], center: float, width: float) -> NDArray[np.float64]:
    """LINEAR of PS3.3 C.11.2.1.2.1, onto 0..1."""
    scaled: NDArray[np.float64] = np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    return scaled


def auroc(scores: list[float], positive: NDArray[np.bool_]) -> float:
    ranks, hits = rankdata(scores), positive.sum()
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * (~positive).sum()))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture(scope="module")
def ct_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "ct"
    phantom.write_ct_dataset(root, patients=8, slices=5, size=64, seed=3)
    return root


@pytest.fixture(scope="module")
def xray_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "xray"
    phantom.write_xray_dataset(root, patients=15, size=XRAY_SIZE, seed=3)
    return root


# Conformance


def complaints(path: Path) -> list[str]:
    tool = shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("dciodvfy of dicom3tools is not on PATH")
    done = subprocess.run([tool, str(path)], capture_output=True, text=True, check=False)
    found = (done.stdout + done.stderr).splitlines()
    assert any(line.strip() in {"CTImage", "CRImage", "DXImageForPresentation"} for line in found), found
    return [line for line in found if line.startswith(("Error", "Warning"))]


@pytest.mark.parametrize("scanner", CT_NAMES)
def test_dciodvfy_accepts_ct(scanner: str, tmp_path: Path) -> None:
    ct = phantom.chest_ct(1, label="nodule", scanner=scanner, slices=2, size=32)
    for piece in phantom.write_ct_series(ct, tmp_path, SOMEONE):
        found = complaints(piece.path)
        assert not [line for line in found if "REFORMATTED" not in line], found


@pytest.mark.parametrize("view", ["PA", "AP"])
@pytest.mark.parametrize("scanner", phantom.XRAY_SCANNERS, ids=XRAY_NAMES)
def test_dciodvfy_accepts_xray(scanner: phantom.XrayScanner, view: str, tmp_path: Path) -> None:
    image = phantom.chest_xray(1, scanner=replace(scanner, view=view), size=(48, 40))
    assert complaints(phantom.write_xray_image(image, tmp_path, SOMEONE)) == []


# What is in the files


@pytest.mark.parametrize("scanner", CT_NAMES)
def test_ct_files_hold_the_phantom(scanner: str, tmp_path: Path) -> None:
    ct = phantom.chest_ct(5, label="consolidation", scanner=scanner, slices=4, size=48)
    for piece in phantom.write_ct_series(ct, tmp_path, SOMEONE):
        dataset = pydicom.dcmread(piece.path)
        assert dataset.file_meta.TransferSyntaxUID == ct.scanner.transfer_syntax
        stored = pixels(dataset).astype(int)
        padded = stored == dataset.get("PixelPaddingValue", 99999)
        np.testing.assert_array_equal(padded, ct.outside if ct.scanner.padding is not None else False)
        hu = stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        np.testing.assert_array_equal(hu[~padded], ct.array[piece.index][~padded])

        affine = np.zeros((3, 3))
        orientation = np.array(dataset.ImageOrientationPatient, dtype=float)
        affine[:, 0] = orientation[3:] * float(dataset.PixelSpacing[0])
        affine[:, 1] = orientation[:3] * float(dataset.PixelSpacing[1])
        affine[:, 2] = np.array(dataset.ImagePositionPatient, dtype=float)
        expected = ct.affine @ np.array([[0, 0, piece.index], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
        np.testing.assert_allclose(affine, expected[:3], atol=1e-8)


def test_scanners_differ_as_real_ones_do() -> None:
    scanners = phantom.CT_SCANNERS
    assert {s.orientation for s in scanners} == {"supine", "feet_first", "prone", "coronal", "oblique"}
    assert {(s.intercept, s.signed) for s in scanners} == {(-1024, False), (-1024, True), (0, True)}
    assert len({s.transfer_syntax for s in scanners}) == 4
    assert any(s.thickness > 1 for s in scanners)
    assert any(s.thickness < 1 for s in scanners)
    units = phantom.XRAY_SCANNERS
    assert {u.modality for u in units} == {"CR", "DX"}
    assert {u.photometric for u in units} == {"MONOCHROME1", "MONOCHROME2"}
    assert {u.bits_stored for u in units} == {10, 12, 14, 16}
    assert {u.voi for u in units} == {"LINEAR", "SIGMOID", "LUT"}


def test_slice_normal_is_the_direction_from_slice_to_slice() -> None:
    for scanner in phantom.CT_SCANNERS:
        affine = phantom.chest_ct(2, scanner=scanner, slices=3, size=32).affine
        step, down, across = affine[:3, :3].T
        normal = np.cross(across, down)
        np.testing.assert_allclose(normal / np.linalg.norm(normal), step / np.linalg.norm(step), atol=1e-12)
        assert scanner.orientation != "oblique" or np.count_nonzero(np.abs(affine[:3, :3]) > 1e-3) == 8


def test_file_names_and_instance_numbers_carry_no_order(tmp_path: Path) -> None:
    ct = phantom.chest_ct(4, scanner="ring-8", slices=12, size=32)
    written = phantom.write_ct_series(ct, tmp_path, SOMEONE)
    by_name = sorted(written, key=lambda piece: piece.path.name)
    order = [piece.index for piece in by_name]
    assert order not in (sorted(order), sorted(order, reverse=True))
    heads = [pydicom.dcmread(piece.path, stop_before_pixels=True) for piece in written]
    assert [head.InstanceNumber for head in heads] == list(range(12, 0, -1))
    assert all(a.ImagePositionPatient[2] < b.ImagePositionPatient[2] for a, b in itertools.pairwise(heads))
    assert heads[0].SliceThickness != pytest.approx(ct.spacing[0])


# Geometry and anatomy


def test_flipped_orientations_hold_the_same_patient() -> None:
    base = phantom.CT_SCANNERS[0]
    plain = phantom.chest_ct(6, label="nodule", scanner=base, slices=5, size=96)
    lungs_and_soft = (plain.array > -900) & (plain.array < 3000)
    for orientation in ("feet_first", "prone"):
        other = phantom.chest_ct(
            6, label="nodule", scanner=replace(base, orientation=orientation), slices=5, size=96
        )
        assert not np.allclose(other.affine, plain.affine)
        index = np.stack(np.nonzero(lungs_and_soft & _away_from_table(plain)))
        there = np.linalg.inv(other.affine) @ plain.affine @ np.vstack([index, np.ones(index.shape[1])])
        found = tuple(np.rint(there[:3]).astype(int))
        np.testing.assert_allclose(there[:3], found, atol=1e-6)
        np.testing.assert_array_equal(other.array[found], plain.array[tuple(index)])
        np.testing.assert_array_equal(other.lesion_mask[found], plain.lesion_mask[tuple(index)])


def _shape(ct: phantom.PhantomCT) -> tuple[int, int, int]:
    d, h, w = ct.array.shape
    return d, h, w


def _away_from_table(ct: phantom.PhantomCT) -> NDArray[np.bool_]:
    """Points within the trunk, which no table reaches."""
    _, y, _ = Grid(_shape(ct), ct.affine).coordinates()
    return np.broadcast_to(np.abs(y - ct.scan_center[1]) < 80, ct.array.shape)


@pytest.fixture(scope="module")
def dense() -> phantom.PhantomCT:
    return phantom.chest_ct(6, label="consolidation", slices=90, size=256 if SLOW else 208, noise=False)


@pytest.mark.parametrize("orientation", ["coronal", "oblique"])
def test_other_planes_hold_the_same_patient(dense: phantom.PhantomCT, orientation: str) -> None:
    base = phantom.CT_SCANNERS[0]
    other = phantom.chest_ct(
        6,
        label="consolidation",
        scanner=replace(base, orientation=orientation),
        slices=7,
        size=128,
        noise=False,
    )
    index = np.indices(other.array.shape).reshape(3, -1)
    there = (np.linalg.inv(dense.affine) @ other.affine @ np.vstack([index, np.ones(index.shape[1])]))[:3]
    inside = np.all((there > 0) & (there < np.array(dense.array.shape)[:, None] - 1), axis=0)
    inside &= other.array.ravel() > -900
    seen = ndimage.map_coordinates(dense.array.astype(float), there[:, inside], order=1)
    difference = np.abs(seen - other.array.ravel()[inside])
    assert inside.sum() > 20000
    assert np.median(difference) < 4
    assert np.mean(difference < 150) > 0.95


def _index(ct: phantom.PhantomCT, point: tuple[float, ...]) -> tuple[int, int, int]:
    """Index of the point of the array nearest to one in the patient's own coordinates."""
    d, h, w, _ = np.rint(np.linalg.inv(ct.affine) @ [*(np.array(point) + ct.scan_center), 1]).astype(int)
    return int(d), int(h), int(w)


def test_right_is_right_and_up_is_up() -> None:
    ct = phantom.chest_ct(8, slices=12, size=96, noise=False)
    patient = Patient.draw(8)
    liver, gas = (-60.0, -8.0, patient.dome - 18), (-60.0, -8.0, patient.apex - 50)
    low, high = (_index(ct, point) for point in (liver, gas))
    assert low[2] < 48  # the liver, on the right, is on the left of the image
    assert abs(int(ct.array[low]) - 60) < 8
    assert ct.array[high] < -750
    image = phantom.chest_xray(8, size=(128, 112)).array
    right_dome, left_dome = (
        int(np.argmax(np.diff(ndimage.gaussian_filter(image[64:104, c], 2)))) for c in (30, 82)
    )
    assert right_dome < left_dome  # the right dome stands higher


# Labels


def test_ct_tables_tell_what_is_in_the_files(ct_root: Path) -> None:
    series, slices = rows(ct_root / "labels.csv"), rows(ct_root / "slices.csv")
    assert list(series[0]) == ["path", "patient_id", "series_uid", "label", "scanner"]
    assert len(series) == len({row["patient_id"] for row in series}) == 8
    assert len(slices) == 40
    assert Counter(row["label"] for row in series) == dict.fromkeys(phantom.CLASSES, 2)
    of_patient = {row["series_uid"]: row for row in series}
    for row in slices:
        dataset = pydicom.dcmread(ct_root / row["file"], stop_before_pixels=True)
        assert dataset.SOPInstanceUID == row["sop_instance_uid"]
        assert dataset.SeriesInstanceUID == row["series_uid"]
        assert dataset.PatientID == row["patient_id"]
        parent = of_patient[row["series_uid"]]
        assert row["file"].startswith(parent["path"] + "/")
        assert row["label"] == (parent["label"] if float(row["lesion_mm2"]) > 0 else "normal")
    touched = {row["series_uid"] for row in slices if row["label"] != "normal"}
    assert touched == {row["series_uid"] for row in series if row["label"] != "normal"}


@pytest.mark.parametrize("label", phantom.CLASSES)
def test_labels_follow_the_mask(label: str) -> None:
    ct = phantom.chest_ct(9, label=label, slices=12, size=96)
    touched = np.asarray(ct.lesion_mask.any(axis=(1, 2)))
    assert ct.slice_labels == tuple(label if hit else "normal" for hit in touched.tolist())
    assert bool(touched.any()) == (label != "normal")
    assert not touched.all()
    np.testing.assert_allclose(ct.lesion_mm2, ct.lesion_mask.sum(axis=(1, 2)) * ct.spacing[1] * ct.spacing[2])


def test_lesions_change_the_picture_where_the_mask_says() -> None:
    plain = phantom.chest_ct(9, slices=12, size=128, noise=False).array.astype(int)
    for label in phantom.CLASSES[1:]:
        ct = phantom.chest_ct(9, label=label, slices=12, size=128, noise=False)
        change = ct.array - plain
        assert np.median(change[ct.lesion_mask]) > 80
        near = ndimage.binary_dilation(ct.lesion_mask, np.ones((1, 3, 3)), iterations=9)
        assert np.mean(change[~near] != 0) < 0.002


def test_nodules_lie_where_the_list_says() -> None:
    ct = phantom.chest_ct(12, label="nodule", slices=60, size=128)
    assert all(6 <= lesion.diameter <= 24 and 20 <= lesion.hu <= 60 for lesion in ct.lesions)
    for lesion in ct.lesions:
        assert ct.lesion_mask[_index(ct, lesion.center)]


@pytest.fixture(scope="module")
def population() -> dict[str, Any]:
    """Patients of all classes and scanners: gray means and a local contrast of each slice."""
    scores: dict[str, list[float]] = {"hu": [], "soft": [], "lung": [], "contrast": []}
    labels: list[str] = []
    count, slices, size = (48, 12, 96) if SLOW else (20, 8, 64)
    for entry in _plan_patients(count, phantom.CLASSES, CT_NAMES, seed=0):
        ct = phantom.chest_ct(
            entry.seed,
            label=entry.label,
            scanner=entry.scanner,
            slices=slices,
            size=size,
            habitus=entry.habitus,
        )
        affine = ct.affine.copy()
        affine[:3, 3] -= ct.scan_center
        grid = Grid(_shape(ct), affine)
        lungs = Chest.of(Patient.draw(entry.seed, entry.habitus), grid.coordinates()).lung < -5
        labels += ct.slice_labels
        for image, lung in zip(ct.array.astype(float), lungs, strict=True):
            scores["hu"].append(float(image.mean()))
            scores["soft"].append(float(window(image, 40, 400).mean()))
            scores["lung"].append(float(window(image, -600, 1500).mean()))
            scores["contrast"].append(_local_contrast(image, lung, ct.spacing[1]))
    return {"scores": scores, "labels": np.array(labels)}


def _local_contrast(image: NDArray[np.float64], lung: NDArray[np.bool_], pixel: float) -> float:
    """Brightest spot about 12 mm wide within the lungs."""
    blurred = ndimage.gaussian_filter(np.where(lung, image, -860.0), 6 / pixel)
    return float(blurred[lung].max(initial=-1000.0))


@pytest.mark.parametrize("score", ["hu", "soft", "lung"])
def test_mean_gray_does_not_tell_lesions(population: dict[str, Any], score: str) -> None:
    labels = population["labels"]
    assert 0.3 < np.mean(labels != "normal") < 0.7
    assert 0.35 < auroc(population["scores"][score], labels != "normal") < 0.65


def test_local_contrast_tells_lesions(population: dict[str, Any]) -> None:
    labels, scores = population["labels"], np.array(population["scores"]["contrast"])
    assert auroc(scores.tolist(), labels != "normal") > 0.85
    for label in phantom.CLASSES[1:]:
        chosen = (labels == label) | (labels == "normal")
        assert auroc(scores[chosen].tolist(), labels[chosen] == label) > 0.75


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scanners_are_spread_over_the_classes(seed: int) -> None:
    counts = Counter(
        (entry.label, entry.scanner) for entry in _plan_patients(60, phantom.CLASSES, CT_NAMES, seed)
    )
    assert len(counts) == len(phantom.CLASSES) * len(CT_NAMES)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_classes_have_the_same_habitus() -> None:
    sizes: dict[str, list[float]] = {label: [] for label in phantom.CLASSES}
    for entry in _plan_patients(40, phantom.CLASSES, CT_NAMES, seed=1):
        sizes[entry.label].append(entry.habitus.size)
    assert len({tuple(sorted(values)) for values in sizes.values()}) == 1


# X-rays


def test_xray_table_tells_what_is_in_the_files(xray_root: Path) -> None:
    table = rows(xray_root / "labels.csv")
    assert list(table[0]) == ["file", "patient_id", "label", "scanner"]
    per_patient = Counter(row["patient_id"] for row in table)
    assert len(per_patient) == 15
    assert 1 < max(per_patient.values()) <= 3
    models = {unit.name: unit.model for unit in phantom.XRAY_SCANNERS}
    for row in table:
        dataset = pydicom.dcmread(xray_root / row["file"], stop_before_pixels=True)
        assert dataset.PatientID == row["patient_id"]
        assert dataset.ManufacturerModelName == models[row["scanner"]]
    labels = {(row["patient_id"], row["label"]) for row in table}
    assert len(labels) == 15


def test_monochrome1_shows_the_same_picture(tmp_path: Path) -> None:
    unit = phantom.XRAY_SCANNERS[0]
    shown = {}
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        image = phantom.chest_xray(3, scanner=replace(unit, photometric=photometric), size=(96, 84))
        (tmp_path / photometric).mkdir()
        dataset = pydicom.dcmread(phantom.write_xray_image(image, tmp_path / photometric, SOMEONE))
        inverse = photometric == "MONOCHROME1"
        assert dataset.PhotometricInterpretation == photometric
        assert dataset.PresentationLUTShape == ("INVERSE" if inverse else "IDENTITY")
        display = window(pixels(dataset), float(dataset.WindowCenter), float(dataset.WindowWidth))
        shown[photometric] = 1 - display if inverse else display
    assert shown["MONOCHROME2"].std() > 0.1
    np.testing.assert_allclose(shown["MONOCHROME1"], shown["MONOCHROME2"], atol=2 / 1000)


@pytest.mark.parametrize("unit", phantom.XRAY_SCANNERS, ids=XRAY_NAMES)
def test_xray_headers_match_the_unit(unit: phantom.XrayScanner, tmp_path: Path) -> None:
    image = phantom.chest_xray(3, scanner=unit, size=(64, 56))
    dataset = pydicom.dcmread(phantom.write_xray_image(image, tmp_path, SOMEONE))
    stored = pixels(dataset).astype(float)
    highest = 2**unit.bits_stored - 1
    bright = stored / highest
    expected = 1 - image.array if unit.photometric == "MONOCHROME1" else image.array
    np.testing.assert_allclose(bright, expected, atol=0.51 / highest + 1e-6)
    assert dataset.file_meta.TransferSyntaxUID == unit.transfer_syntax
    assert dataset.ImagerPixelSpacing == pytest.approx(image.spacing, abs=1e-5)
    if unit.voi == "LUT":
        (table,) = dataset.VOILUTSequence
        lut = np.frombuffer(table.LUTData, dtype="<u2")
        assert list(table.LUTDescriptor) == [(highest + 1) % 65536, 0, 16]
        assert len(lut) == highest + 1
        assert np.all(np.diff(lut.astype(int)) >= 0)
        assert "WindowCenter" not in dataset
    else:
        assert dataset.VOILUTFunction == unit.voi
        assert "VOILUTSequence" not in dataset


def test_xray_mean_does_not_tell_lesions() -> None:
    means, labels = [], []
    for entry in _plan_patients(60 if SLOW else 40, phantom.CLASSES, XRAY_NAMES, seed=0):
        image = phantom.chest_xray(
            entry.seed, label=entry.label, scanner=entry.scanner, size=XRAY_SIZE, habitus=entry.habitus
        )
        means.append(float(image.array.mean()))
        labels.append(entry.label)
    assert 0.35 < auroc(means, np.array(labels) != "normal") < 0.65


# Determinism and errors


def test_same_seed_same_bytes(ct_root: Path, xray_root: Path, tmp_path: Path) -> None:
    phantom.write_ct_dataset(tmp_path / "ct", patients=8, slices=5, size=64, seed=3)
    phantom.write_xray_dataset(tmp_path / "xray", patients=15, size=XRAY_SIZE, seed=3)
    assert digests(tmp_path / "ct") == digests(ct_root)
    assert digests(tmp_path / "xray") == digests(xray_root)


def test_other_seed_other_patients(ct_root: Path, tmp_path: Path) -> None:
    phantom.write_ct_dataset(tmp_path / "ct", patients=4, slices=1, size=32, seed=4)
    assert not set(digests(tmp_path / "ct").values()) & set(digests(ct_root).values())
    first, second = (phantom.chest_ct(seed, slices=3, size=48) for seed in (1, 2))
    assert np.mean(first.array != second.array) > 0.5


def test_progress_is_shown_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = phantom.write_ct_dataset(tmp_path / "quiet", patients=4, slices=1, size=32, progress=False)
    assert capsys.readouterr().err == ""
    loud = phantom.write_ct_dataset(tmp_path / "loud", patients=4, slices=1, size=32, progress=True)
    assert digests(quiet.parent) == digests(loud.parent)


def test_a_failed_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medimg.phantom.dataset.write_xray_image", stop)
    with pytest.raises(KeyboardInterrupt):
        phantom.write_xray_dataset(tmp_path / "xray", patients=3, size=(32, 32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"classes": ("normal", "fracture")}, "fracture"),
        ({"classes": ()}, "classes are"),
        ({"classes": ("normal", "normal")}, "different names"),
        ({"patients": 3}, "3 patients for 4 classes"),
        ({"slices": 0}, "0 slices"),
        ({"size": -8}, "-8 x -8"),
        ({"seed": -1}, "seed -1"),
        ({"scanners": ("nowhere",)}, "nowhere"),
        ({"scanners": ()}, "0 scanners"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=said):
        phantom.write_ct_dataset(tmp_path / "ct", **{"patients": 4, "slices": 1, "size": 32, **settings})
    assert list(tmp_path.iterdir()) == []


def test_bad_xray_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"\(0, 64\)"):
        phantom.write_xray_dataset(tmp_path / "xray", patients=3, size=(0, 64))


def test_data_sets_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(DatasetError, match="already exists"):
            phantom.write_ct_dataset(tmp_path / name, patients=4, slices=1, size=32)
    (tmp_path / "empty").mkdir()
    phantom.write_ct_dataset(tmp_path / "empty", patients=4, slices=1, size=32)
    assert (tmp_path / "empty" / "labels.csv").is_file()
