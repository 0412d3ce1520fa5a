"""pydicom datasets in memory as sources."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

import medimg
from medimg.errors import MissingSlicesError, NotAnImageError, ReadError
from tests.dicom_files import make_instance, write, write_stack
from tests.sampling import sample


def _make(pixels: int = 0) -> pydicom.FileDataset:
    return make_instance(np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) + pixels)


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
)
def test_a_dataset_is_read_as_its_file_is(syntax: str, tmp_path: Path) -> None:
    dataset = _make()
    path = write(dataset, tmp_path / "a.dcm")
    if syntax != ExplicitVRLittleEndian:
        dataset = pydicom.dcmread(path)
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        pydicom.dcmwrite(
            path,
            dataset,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=syntax != ExplicitVRBigEndian,
            force_encoding=True,
        )
    wanted = medimg.read(path)
    touched = pydicom.dcmread(path)
    assert len(list(touched.iterall())) > 10
    for given in (pydicom.dcmread(path), touched):
        before = copy.deepcopy(given)
        found = medimg.read(given)
        np.testing.assert_array_equal(found.array, wanted.array)
        np.testing.assert_array_equal(found.affine, wanted.affine)
        assert (found.modality, found.units) == ("CT", "HU")
        assert given == before
        assert given.file_meta == before.file_meta


def test_a_list_of_datasets_makes_a_series(tmp_path: Path) -> None:
    write_stack(tmp_path, [0.0, 2.0, 4.0, 6.0, 8.0])
    datasets = [pydicom.dcmread(path) for path in sorted(tmp_path.iterdir())]
    wanted, found = medimg.read(tmp_path), medimg.read(datasets[::-1])
    np.testing.assert_array_equal(found.array, wanted.array)
    np.testing.assert_array_equal(found.affine, wanted.affine)
    assert found.report.sop_instance_uids == wanted.report.sop_instance_uids
    assert found.report.files == ("<dataset 4>", "<dataset 3>", "<dataset 2>", "<dataset 1>", "<dataset 0>")
    assert len(medimg.scan(datasets)) == 1
    with pytest.raises(MissingSlicesError):
        medimg.read(datasets[:2] + datasets[3:])
    mixed = medimg.read([datasets[0], *[str(path) for path in sorted(tmp_path.iterdir())[1:]]])
    np.testing.assert_array_equal(mixed.array, wanted.array)
    recipe = medimg.Preprocess(size=32)
    assert medimg.read_tensors([datasets, datasets[0]], recipe, on_error="raise").counts == (5, 1)
    assert recipe(datasets).equal(recipe(wanted))


def test_a_plain_dataset_needs_no_file_meta() -> None:
    plain = pydicom.Dataset(_make())
    assert not hasattr(plain, "file_meta")
    np.testing.assert_array_equal(medimg.read(plain).array, medimg.read(_make()).array)
    assert not hasattr(plain, "file_meta")


def test_compressed_pixels_need_their_transfer_syntax() -> None:
    dataset = _make()
    dataset.compress(RLELossless)
    np.testing.assert_array_equal(medimg.read(dataset).array, medimg.read(_make()).array)
    del dataset.file_meta.TransferSyntaxUID
    with pytest.raises(ReadError, match="compressed pixels and no Transfer Syntax UID; set"):
        medimg.read(dataset)
    assert JPEGBaseline8Bit.is_encapsulated


def test_errors_name_no_patient() -> None:
    dataset = _make()
    del dataset.PixelData
    with pytest.raises(ReadError) as caught:
        medimg.read(dataset)
    assert "<dataset>" in str(caught.value)
    assert "Sentinel" not in str(caught.value)
    broken = _make()
    with pytest.warns(UserWarning, match="cannot be assigned"):
        broken.add_new(0x00100021, "US", "SENTINEL")
    with pytest.raises(ReadError, match=r"<dataset> can't be encoded \(\w+\)") as caught:
        medimg.read(broken)
    assert "SENTINEL" not in str(caught.value)
    with pytest.raises(NotAnImageError):
        medimg.read(pydicom.Dataset())


def test_files_of_all_kinds_are_read_as_their_datasets_are(real_data: Path) -> None:
    files = sorted((real_data / "dicom_misc" / "pydicom-data").rglob("*.dcm"))
    compared = 0
    for path in sample(files, 7):
        try:
            wanted = medimg.read(path, on_missing="keep", on_duplicate="keep", on_tilt="keep")
            dataset = pydicom.dcmread(path, force=True)
        except Exception:
            continue
        found = medimg.read(dataset, on_missing="keep", on_duplicate="keep", on_tilt="keep")
        np.testing.assert_array_equal(found.array, wanted.array)
        np.testing.assert_array_equal(found.affine, wanted.affine)
        compared += 1
    assert compared > 3
