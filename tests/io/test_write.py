"""Volumes as files: read again by medimg, nibabel and SimpleITK, with equal values at equal positions."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk  # noqa: N813  # the field's habit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import medimg
from medimg.core.geometry import index_to_lps, ras_from_lps
from medimg.core.read_report import ReadReport
from medimg.core.volume import Volume
from medimg.errors import ConversionError, MedimgWarning
from tests.io.volumes import affines, arrays
from tests.sampling import SLOW

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")
DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
RNG = np.random.default_rng(12)
SLICES = RNG.integers(-1000, 1000, (3, 4, 5)).astype(np.int16)
AFFINE = np.array([[0, 0.0, 0.5, -16], [0, 0.5, 0, -20], [-2, 0, 0, 90], [0, 0, 0, 1.0]])


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    """Any grid, type and number of channels: oblique, sheared, left-handed, or without a patient."""
    array = draw(arrays(DTYPES)).T
    affine = draw(affines())
    if draw(st.booleans()):
        shear = np.eye(4)
        shear[0, 1], shear[1, 2] = draw(st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)))
        affine = affine @ shear
    if draw(st.integers(0, 4)) == 0:
        return Volume.from_array(array, spacing=np.linalg.norm(affine[:3, :3], axis=0).tolist())
    if draw(st.integers(0, 4)) == 0:
        colors = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 256, (3, *array.shape[-3:]))
        return Volume(colors.astype(np.uint8), affine, photometric="RGB")
    modality, units = draw(st.sampled_from([("CT", "HU"), ("PT", "SUV"), ("MR", "raw"), ("", "10^-3 mm²/s")]))
    return Volume.from_array(array, affine=affine, modality=modality, units=units)


def tolerance(volume: Volume, suffix: str) -> float:
    """Positions in NIfTI are rounded, by less than a thousandth of a voxel."""
    return 1e-3 * min(volume.spacing) if suffix.startswith(".nii") else 1e-9


def corners(volume: Volume) -> npt.NDArray[np.float64]:
    return np.array(list(np.ndindex(2, 2, 2))) * (np.array(volume.shape[1:]) - 1.0)


@settings(
    deadline=None,
    max_examples=400 if SLOW else 60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(volume=volumes(), suffix=st.sampled_from(SUFFIXES), compress=st.booleans())
def test_what_is_written_is_read_again(tmp_path: Path, volume: Volume, suffix: str, compress: bool) -> None:
    # ITK reads a.nii in place of a.nii.gz
    path = volume.save(tmp_path / suffix[1:] / f"a{suffix}", compress=compress)
    found = medimg.read(path)
    assert found.array.dtype == volume.array.dtype
    assert np.array_equal(found.array, volume.array, equal_nan=volume.array.dtype.kind == "f")
    for name in ("space", "modality", "units", "channels", "photometric", "inverted", "display_range"):
        assert getattr(found, name) == getattr(volume, name), name
    index = corners(volume)
    if volume.space == "patient":
        difference = index_to_lps(found.affine, index) - index_to_lps(volume.affine, index)
        assert np.abs(difference).max() < tolerance(volume, suffix)
    np.testing.assert_allclose(found.spacing, volume.spacing, rtol=1e-6)
    assert found.report.warnings == ()
    if suffix.startswith(".nii"):
        assert_nibabel_agrees(path, volume)
    assert_itk_agrees(path, volume, suffix)


def assert_nibabel_agrees(path: Path, volume: Volume) -> None:
    image: Any = nib.load(path)
    stored = np.asanyarray(image.dataobj)
    if volume.is_color:
        stored = np.stack([stored[name] for name in "RGB"], axis=-1)
    channels = stored.reshape(*stored.shape[:3], -1)
    assert channels.dtype == volume.array.dtype
    assert np.array_equal(channels.transpose(3, 2, 1, 0), volume.array, equal_nan=stored.dtype.kind == "f")
    codes = (int(image.header["sform_code"]), int(image.header["qform_code"]))
    if volume.space == "image":
        assert codes == (0, 0)
        np.testing.assert_allclose(image.header.get_zooms()[:3], volume.spacing[::-1], rtol=1e-6)
        return
    assert codes[0] == 1
    index = corners(volume)[:, ::-1]
    ras = ras_from_lps(volume.affine)
    forms = [image.affine, *([image.get_qform()] if codes[1] else [])]
    for form in forms:
        difference = index @ (form - ras)[:3, :3].T + (form - ras)[:3, 3]
        assert np.abs(difference).max() < max(1e-4, tolerance(volume, ".nii"))


def assert_itk_agrees(path: Path, volume: Volume, suffix: str) -> None:
    axes = volume.affine[:3, :3] / volume.spacing
    sheared = np.abs(axes.T @ axes - np.eye(3)).max() > 1e-6
    if suffix.startswith(".nii") and (volume.space == "image" or sheared):
        return  # it refuses sheared ones, and invents an orientation
    image = sitk.ReadImage(str(path))
    found = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        found = np.moveaxis(found, -1, 0)
    assert np.array_equal(found.reshape(volume.shape), volume.array, equal_nan=volume.array.dtype.kind == "f")
    if volume.space == "image":
        np.testing.assert_allclose(image.GetSpacing()[:3], volume.spacing[::-1])
        return
    for d, h, w in corners(volume).tolist():
        place = image.TransformIndexToPhysicalPoint(
            [int(w), int(h), int(d)] + [0] * (image.GetDimension() - 3)
        )[:3]
        expected = index_to_lps(volume.affine, [d, h, w])
        assert np.abs(np.array(place) - expected).max() < max(1e-4, tolerance(volume, suffix))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_of_channels_and_the_display_are_kept(tmp_path: Path, suffix: str) -> None:
    volume = Volume.from_array(
        np.stack([SLICES, SLICES]),
        affine=AFFINE,
        modality="MR",
        photometric="MONOCHROME1",
        channels=["b 0", 'b\\1"ö'],
    )
    found = medimg.read(volume.save(tmp_path / f"a{suffix}"))
    assert found.channels == volume.channels
    assert found.inverted
    ready = Volume.from_array(np.arange(20, dtype=np.uint8).reshape(4, 5))
    assert medimg.read(ready.save(tmp_path / f"b{suffix}")).display_range == (0, 255)
    many = Volume.from_array(
        np.zeros((900, 1, 2, 2)), channels=[f"trigger time {n}" for n in range(900)], affine=AFFINE
    )
    plain = medimg.read(many.save(tmp_path / f"c{suffix}"))
    assert plain.channels == tuple(map(str, range(900)))
    assert sitk.ReadImage(str(tmp_path / f"c{suffix}")).GetSize()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_ct_is_preprocessed_as_before(tmp_path: Path, suffix: str) -> None:
    volume = Volume.from_array(SLICES, affine=AFFINE, modality="CT", units="HU")
    recipe = medimg.Preprocess(size=32)
    again = volume.save(tmp_path / f"a{suffix}")
    assert np.abs(recipe(again).numpy() - recipe(volume).numpy()).max() < 1e-5


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "array",
    [
        np.ones((2, 3, 4), bool),
        np.zeros((2, 3, 4), np.float16),
    ],
)
def test_values_that_a_format_does_not_hold_are_refused(
    tmp_path: Path, suffix: str, array: npt.NDArray[Any]
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"before")
    with pytest.raises(ConversionError, match="does not hold"):
        Volume(array[None], AFFINE).save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_complex_numbers_and_deep_colors_are_refused(tmp_path: Path, suffix: str) -> None:
    color = Volume.from_array(np.zeros((4, 5, 3), np.uint16), photometric="RGB")
    imaginary = Volume(np.zeros((1, 2, 3, 4), complex), AFFINE)
    for volume in (color, imaginary):
        with pytest.raises(ConversionError, match="hold"):
            volume.save(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("name", ["a.dcm", "a", "a.gz", "a.nii.bz2", "a.mhd", "nii", "a.png"])
def test_other_names_are_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConversionError, match=r"\.nii\.gz, \.nii, \.nrrd, \.mha"):
        Volume.from_array(SLICES).save(tmp_path / name)


def test_the_path_is_text_or_a_path(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="path must be a path"):
        Volume.from_array(SLICES).save(3)  # type: ignore[call-overload]  # on purpose
    with pytest.raises(OSError, match=r"null|embedded"):
        Volume.from_array(SLICES).save("a\0.nii")
    path = str(tmp_path / "new" / "A.NII.GZ")
    assert Volume.from_array(SLICES).save(path) == Path(path)
    assert Path(path).exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_identifies_and_files_are_reproducible(tmp_path: Path, suffix: str) -> None:
    report = ReadReport("DICOM", files=("/scans/doe/1.dcm",) * 3, sop_instance_uids=("1.2.3.77",) * 3)
    volume = Volume.from_array(SLICES, affine=AFFINE, modality="CT", units="HU")
    volume = replace(volume, report=report)
    path = volume.save(tmp_path / f"secret{suffix}", compress=False)
    content = path.read_bytes()
    plain = gzip.decompress(content) if suffix == ".nii.gz" else content
    for text in (b"doe", b"1.2.3.77", b"secret", b"DICOM"):
        assert text not in plain + content
    assert volume.save(tmp_path / f"other{suffix}", compress=False).read_bytes() == content


@pytest.mark.parametrize(
    "fields", [{"modality": "Jane Doe"}, {"units": "a\nb"}, {"units": ""}, {"units": "m" * 65}]
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_texts_that_would_spoil_a_header_are_refused(
    tmp_path: Path, suffix: str, fields: dict[str, str]
) -> None:
    with pytest.raises(ConversionError, match="correct"):
        Volume.from_array(SLICES, **fields).save(tmp_path / f"a{suffix}")  # type: ignore[arg-type]  # texts


def test_nifti_2_where_nifti_1_would_round_or_is_too_small(tmp_path: Path) -> None:
    far = AFFINE.copy()
    far[:3, 3] = 1e7 + 0.123
    for volume, version in (
        (Volume.from_array(SLICES, affine=AFFINE), 348),
        (Volume.from_array(SLICES, affine=far), 540),
        (Volume.from_array(np.zeros((1, 2, 40_000), np.uint8)), 540),
    ):
        path = volume.save(tmp_path / "a.nii")
        assert int.from_bytes(path.read_bytes()[:4], "little") == version
        found = medimg.read(path)
        np.testing.assert_allclose(found.affine, volume.affine, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_parts_and_flipped_volumes_are_written_as_they_are(tmp_path: Path, suffix: str) -> None:
    volume = Volume.from_array(np.stack([SLICES, SLICES + 1]), affine=AFFINE)
    part = volume[1:, ::-1, 1:, ::2]
    found = medimg.read(part.save(tmp_path / f"a{suffix}"))
    assert np.array_equal(found.array, part.array)
    np.testing.assert_allclose(found.affine, part.affine, atol=1e-5)


@pytest.mark.parametrize(
    "damage", ['{"modality": "CT"', '{"modality": "Jane Doe"}', '{"x": 1}', "[1]", '{"units": 3}']
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_facts_are_said_to_be_damaged(tmp_path: Path, suffix: str, damage: str) -> None:
    stated = '{"modality": "CT", "units": "HU"}'
    path = Volume.from_array(SLICES, modality="CT", units="HU", affine=AFFINE).save(
        tmp_path / f"a{suffix}", compress=False
    )
    content = path.read_bytes()
    if suffix == ".nii.gz":
        content = gzip.decompress(content)
    assert stated.encode() in content
    filler = "\0" if suffix.startswith(".nii") else " "
    spoiled = damage.ljust(len(stated), filler).encode()
    path.write_bytes(content.replace(stated.encode(), spoiled))
    with pytest.warns(MedimgWarning, match="field medimg is damaged"):
        found = medimg.read(path)
    assert (found.modality, found.units) == ("", "raw")
    assert "Doe" not in str(found.report)


def test_fields_of_others_say_modality_and_units(tmp_path: Path) -> None:
    nrrd = Volume.from_array(SLICES, modality="MR", units="HU").save(tmp_path / "a.nrrd", compress=False)
    lines = nrrd.read_bytes().split(b"\n")
    nrrd.write_bytes(b"\n".join(line for line in lines if not line.startswith(b"medimg:=")))
    assert medimg.read(nrrd).units == "HU"
    mha = Volume.from_array(SLICES, modality="MR", units="HU").save(tmp_path / "a.mha", compress=False)
    lines = mha.read_bytes().split(b"\n")
    mha.write_bytes(b"\n".join(line for line in lines if not line.startswith(b"medimg = ")))
    assert medimg.read(mha).modality == medimg.scan(tmp_path / "a.mha")[0].modality == "MR"
    assert sitk.ReadImage(str(mha)).GetMetaData("Modality") == "MET_MOD_MR"
    nrrd.write_bytes(nrrd.read_bytes().replace(b"sample units: HU", b"sample units: HU # Jane Doe"))
    assert medimg.read(nrrd).units == "raw"
