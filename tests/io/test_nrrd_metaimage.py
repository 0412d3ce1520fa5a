"""NRRD and MetaImage: as SimpleITK and others write them, and hostile ones."""

from __future__ import annotations

import bz2
import gzip
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk  # noqa: N813  # the field's habit
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import medimg
from medimg.errors import (
    DecodeError,
    GeometryError,
    MedimgError,
    MedimgWarning,
    ReadError,
    TruncatedError,
)
from tests.io.volumes import SIGNS, affines, arrays, assert_same
from tests.sampling import SLOW

DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
AFFINE = np.array([[0.6, 0, 0, -10], [0, 0.8, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1.0]])
VALUES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4, order="F")
RNG = np.random.default_rng(3)


def itk_image(array: npt.NDArray[Any], ras: npt.NDArray[np.float64]) -> Any:
    """An image of an array (i, j, k[, t]) at the places of an affine to RAS."""
    dimension = array.ndim
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose()), isVector=False)
    lps = SIGNS[:, None] * ras[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    direction = np.eye(dimension)
    direction[:3, :3] = lps[:, :3] / spacing
    image.SetSpacing([*map(float, spacing), *(1.0,) * (dimension - 3)])
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin([*map(float, lps[:, 3]), *(0.0,) * (dimension - 3)])
    return image


@settings(
    deadline=None,
    max_examples=150 if SLOW else 60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    array=arrays(DTYPES),
    affine=affines(),
    name=st.sampled_from(["a.nrrd", "a.nhdr", "a.mha", "a.mhd"]),
    packed=st.booleans(),
)
def test_any_volume_as_simpleitk_writes_it(
    tmp_path: Path, array: Any, affine: Any, name: str, packed: bool
) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    sitk.WriteImage(itk_image(array, affine), tmp_path / name, useCompression=packed)
    index = medimg.scan(tmp_path)
    assert len(index) == 1
    assert index.skipped == ()
    if name in ("a.nrrd", "a.nhdr") and array.ndim == 4:
        with pytest.warns(MedimgWarning, match="no anatomical space"):
            volume = index[0].read()
        assert np.array_equal(volume.array, array.transpose(3, 2, 1, 0))
        np.testing.assert_allclose(volume.spacing[::-1], np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-5)
        return
    volume = index[0].read()
    assert_same(volume, array, affine)
    some = list(range(0, volume.shape[1], 2))
    assert np.array_equal(index[0].read(some).array, volume.array[:, some])


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nii", "a.nii.gz"])
def test_vectors_are_the_same_in_any_format(tmp_path: Path, dtype: str, name: str) -> None:
    array = RNG.integers(0, 99, (6, 5, 4, 3)).astype(dtype)
    image = sitk.GetImageFromArray(array, isVector=True)
    sitk.WriteImage(image, tmp_path / name)
    volume = medimg.read(tmp_path / name)
    assert np.array_equal(volume.array, array.transpose(3, 0, 1, 2))
    assert volume.is_color == (dtype == "u1")


def test_one_volume_through_every_format(tmp_path: Path) -> None:
    array = RNG.integers(-1000, 1000, (7, 6, 5)).astype("i2")
    oblique = AFFINE.copy()
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    oblique[:3, :3] = turn @ oblique[:3, :3]
    nib.save(nib.Nifti1Image(array, oblique), tmp_path / "a.nii.gz")
    for name in ("b.nrrd", "c.nhdr", "d.mha", "e.mhd"):
        sitk.WriteImage(itk_image(array, oblique), tmp_path / name)
    first, *others = [series.read() for series in medimg.scan(tmp_path)]
    assert len(others) == 4
    for other in others:
        assert np.array_equal(first.array, other.array)
        np.testing.assert_allclose(first.affine, other.affine, atol=1e-5)


def nrrd(path: Path, *lines: str, data: bytes = VALUES.tobytes(order="F"), **changes: Any) -> Path:
    fields = {
        "type": "uint8", "dimension": "3", "sizes": "2 3 4", "encoding": "raw",
        "space": "left-posterior-superior", "space directions": "(1,0,0) (0,2,0) (0,0,3)",
        "space origin": "(5,6,7)",
    }  # fmt: skip
    fields |= {key.replace("_", " "): value for key, value in changes.items()}
    text = ["NRRD0005", "# a comment", *(f"{k}: {v}" for k, v in fields.items() if v), *lines]
    path.write_bytes("\n".join(text).encode() + b"\n\n" + data)
    return path


def expected_affine(signs: tuple[int, int, int] = (1, 1, 1)) -> npt.NDArray[np.float64]:
    """(i, j, k) to LPS of the NRRD above, if its space were turned so."""
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = (5, 6, 7)
    return np.diag([*signs, 1]) @ affine


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (1, 1, 1)),
        ("LPS", (1, 1, 1)),
        ("right-anterior-superior", (-1, -1, 1)),
        ("RAS", (-1, -1, 1)),
        ("left-anterior-superior", (1, -1, 1)),
    ],
)
def test_spaces_of_nrrd(tmp_path: Path, space: str, signs: tuple[int, int, int]) -> None:
    volume = medimg.read(nrrd(tmp_path / "a", space=space))
    assert volume.space == "patient"
    np.testing.assert_allclose(volume.affine[:, [2, 1, 0, 3]], expected_affine(signs))
    image = sitk.ReadImage(nrrd(tmp_path / "a.nrrd", space=space))
    for index in [(0, 0, 0), (1, 2, 3)]:
        place = volume.affine @ [*index[::-1], 1]
        np.testing.assert_allclose(place[:3], image.TransformIndexToPhysicalPoint(index))


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed", ""])
def test_a_space_without_a_patient(tmp_path: Path, space: str) -> None:
    with pytest.warns(MedimgWarning, match="no anatomical space"):
        volume = medimg.read(nrrd(tmp_path / "a", space=space))
    assert volume.space == "image"
    assert volume.spacing == (3.0, 2.0, 1.0)
    assert "no anatomical space" in volume.report.warnings[0]


def test_sheared_directions_stay(tmp_path: Path) -> None:
    volume = medimg.read(nrrd(tmp_path / "a", space_directions="(1,0,0) (0,2,0) (0.5,0,3)"))
    assert volume.affine[:3, 0].tolist() == [0.5, 0, 3]


def test_a_single_slice_in_space(tmp_path: Path) -> None:
    path = nrrd(
        tmp_path / "a", dimension="2", sizes="4 6", space_directions="(0,2,0) (0,0,3)", space_origin="(1,1,1)"
    )
    volume = medimg.read(path)
    assert volume.shape == (1, 1, 6, 4)
    np.testing.assert_allclose(volume.affine[:3].T, [[1, 0, 0], [0, 0, 3], [0, 2, 0], [1, 1, 1]])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["list", "vector", "time", "none", "???"])
def test_the_axis_outside_of_space(tmp_path: Path, first: bool, kind: str) -> None:
    array = np.arange(48, dtype=np.uint16).reshape((2, 2, 3, 4) if first else (2, 3, 4, 2), order="F")
    directions = ["(1,0,0)", "(0,2,0)", "(0,0,3)"]
    kinds = ["domain"] * 3
    directions.insert(0 if first else 3, "none")
    kinds.insert(0 if first else 3, kind)
    path = nrrd(
        tmp_path / "a",
        type="unsigned short",
        endian="little",
        dimension="4",
        sizes=" ".join(map(str, array.shape)),
        space_directions=" ".join(directions),
        kinds=" ".join(kinds),
        data=array.tobytes(order="F"),
    )
    volume = medimg.read(path)
    expected = np.moveaxis(array, 0 if first else 3, 3)
    assert np.array_equal(volume.array, expected.transpose(3, 2, 1, 0))
    np.testing.assert_allclose(volume.affine[:, [2, 1, 0, 3]], expected_affine())


def test_time_points_with_units(tmp_path: Path) -> None:
    path = nrrd(
        tmp_path / "a", dimension="4", sizes="2 3 2 2", kinds="domain domain domain time", space="",
        space_directions="", space_origin="", spacings="1 1 2 500", units='"mm" "mm" "mm" "ms"',
    )  # fmt: skip
    (series,) = medimg.scan(path)
    assert series.shape == (2, 2, 3, 2)
    assert series.spacing == (2.0, 1.0, 1.0)
    assert series.space == "image"
    assert series.frame_times == (0.0, 0.5)


def test_colors_of_nrrd(tmp_path: Path) -> None:
    same: dict[str, Any] = {"dimension": "4", "space_directions": "none (1,0,0) (0,2,0) (0,0,3)"}
    rgb = medimg.read(nrrd(tmp_path / "a", sizes="3 2 2 2", kinds="RGB-color domain domain domain", **same))
    assert rgb.is_color
    assert rgb.array[:, 0, 0, 0].tolist() == [0, 1, 2]
    rgba = medimg.read(nrrd(tmp_path / "b", sizes="4 1 2 3", kinds="RGBA-color domain domain domain", **same))
    assert rgba.is_color
    assert rgba.array[:, 0, 0, 0].tolist() == [0, 1, 2]
    with pytest.raises(DecodeError, match="complex"):
        medimg.read(nrrd(tmp_path / "c", sizes="2 2 2 3", kinds="complex domain domain domain", **same))


@pytest.mark.parametrize("kind", ["raw", "gzip", "gz", "ascii", "text", "txt", "hex"])
@pytest.mark.parametrize("detached", [False, True])
def test_encodings_of_nrrd(tmp_path: Path, kind: str, detached: bool) -> None:
    array = RNG.integers(-999, 999, (2, 3, 4)).astype(">i2")
    raw = array.tobytes(order="F")
    data = {
        "gzip": gzip.compress(b"xy" + raw),
        "gz": gzip.compress(b"xy" + raw),
        "raw": b"xy" + raw,
        "hex": raw.hex().encode(),
    }.get(kind, " ".join(map(str, array.ravel(order="F"))).encode())
    skip = "2" if kind in ("gzip", "gz", "raw") else "0"
    where = "values.raw" if detached else ""
    if detached:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "values.raw").write_bytes(b"first line\n" + data)
        where = "sub/values.raw"
    path = nrrd(
        tmp_path / "a.nhdr", type="short", endian="big", encoding=kind, byte_skip=skip, data_file=where,
        line_skip="1", data=b"" if detached else b"first line\n" + data,
    )  # fmt: skip
    volume = medimg.read(path)
    assert np.array_equal(volume.array[0], array.transpose(2, 1, 0))
    index = medimg.scan(tmp_path)
    assert (len(index), index.skipped) == (1, ())


def test_values_at_the_end_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "values").write_bytes(b"whatever" + VALUES.tobytes(order="F"))
    path = nrrd(tmp_path / "a", byte_skip="-1", data_file="values", data=b"")
    assert np.array_equal(medimg.read(path).array[0], VALUES.transpose(2, 1, 0))
    path = mha(tmp_path / "b.mhd", HeaderSize="-1", ElementDataFile="values", data=b"")
    assert np.array_equal(medimg.read(path).array[0], VALUES.transpose(2, 1, 0))
    path = mha(tmp_path / "c.mhd", HeaderSize="8", ElementDataFile="values", data=b"")
    assert np.array_equal(medimg.read(path).array[0], VALUES.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoding": "bz2"}, "damaged"),
        ({"encoding": "zrl"}, "encoding"),
        ({"type": "block"}, "block"),
        ({"type": "float16"}, "float16"),
        ({"type": "short"}, "endian"),
        ({"type": "short", "endian": "little"}, "declares"),
        ({"dimension": "17", "sizes": "1 " * 17}, "dimensions"),
        ({"dimension": "-1"}, "dimensions"),
        ({"dimension": "x"}, "dimension"),
        ({"dimension": "1", "sizes": "24", "space_directions": "(1,0,0)"}, "dimensions"),
        ({"sizes": "2 3"}, "sizes"),
        ({"sizes": "2 -3 4"}, "unreasonably"),
        ({"sizes": "2 0 4"}, "unreasonably"),
        ({"sizes": "2 3 1e300"}, "whole"),
        ({"sizes": "2 3 4.5"}, "whole"),
        ({"sizes": "2 3 nan"}, "whole"),
        ({"sizes": "99999 99999 99999"}, "unreasonably"),
        ({"sizes": "2 3 5"}, "declares"),
        ({"space_directions": "(1,0,0) (0,2,0)"}, "space directions"),
        ({"space_directions": "(1,0,0) (0,2,0) (0,0)"}, "three components"),
        ({"space_directions": "(1,0) (0,2) (3,3)"}, "three components"),
        ({"space": "", "space_dimension": "4"}, "4 components"),
        ({"space": "", "space_dimension": "x"}, "space dimension"),
        ({"space": "", "space_directions": "(1,0,0,0) (0,2,0,1) (0,0,3,0)", "space_origin": ""}, "time"),
        ({"space": "", "space_directions": "(1,0,0,0) (0,0,0,1) (0,0,0,3)", "space_origin": ""}, "time"),
        ({"units": '"furlong" "mm" "mm"', "space_directions": "", "spacings": "1 1 1"}, "units"),
        ({"units": '"mm" "mm"', "space_directions": "", "spacings": "1 1 1"}, "expected 3 units"),
        ({"space_directions": "(1,0,0) (0,2,0) (0,4,0)"}, "singular"),
        ({"space_directions": "(1,0,0) (0,2,0) (0,0,inf)"}, "finite"),
        ({"space_directions": "(1,0,0) (0,2,0) (0,0,x)"}, "space directions"),
        ({"space_directions": "junk"}, "space directions"),
        ({"space_origin": "(1,2)"}, "space origin"),
        ({"space_origin": "(1,nan,2)"}, "finite"),
        ({"space": "left-posterior-superior-time"}, "time"),
        ({"space_units": '"furlong" "mm" "mm"'}, "space units"),
        ({"kinds": "domain domain"}, "kinds"),
        ({"data_file": "/etc/passwd"}, "own folder"),
        ({"data_file": "../other.raw"}, "own folder"),
        ({"data_file": "sub/../../other.raw"}, "own folder"),
        ({"data_file": "C:\\other.raw"}, "own folder"),
        ({"data_file": "absent.raw"}, "not there"),
        ({"data_file": "LIST"}, "several files"),
        ({"data_file": "slice%03d.raw 1 4 1"}, "several files"),
        ({"byte_skip": "-2"}, "byte skip"),
        ({"byte_skip": "99"}, "declares"),
        ({"encoding": "gzip", "byte_skip": "-1"}, "byte skip"),
        ({"line_skip": "-1"}, "line skip"),
        ({"line_skip": "3"}, "fewer lines"),
        ({"encoding": "ascii"}, "declares"),
        ({"encoding": "gzip"}, "decompressed"),
        ({"encoding": "hex", "data": b"0g" * 24}, "not numbers"),
        ({"encoding": "ascii", "data": b"1 2 x " * 9}, "not numbers"),
        ({"encoding": "ascii", "data": b"999 " * 24}, "not numbers"),
        ({"encoding": "ascii", "data": b"9 " * 12 + b" " * 40}, "has 12 values"),
    ],
)
def test_nrrd_that_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = nrrd(tmp_path / "a.nrrd", **changes)
    with pytest.raises(MedimgError, match=message):
        medimg.read(path)


def test_a_field_that_stands_twice(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="twice"):
        medimg.read(nrrd(tmp_path / "a", "sizes: 4 3 2"))
    with pytest.raises(DecodeError, match="twice"):
        medimg.read(mha(tmp_path / "b", "Origin = 1 2 3", Offset="1 2 3"))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.text(st.sampled_from("abz :=#_é"), min_size=1, max_size=12).filter(lambda k: k[0] != "#"),
    value=st.text(st.sampled_from("19 :=#é"), max_size=12),
    start=st.sampled_from(["", "DICOM_", "sizes", "sizes ", "type", "space"]),
)
def test_key_value_pairs_are_passed_over(tmp_path: Path, key: str, value: str, start: str) -> None:
    """Whatever is in them, colons and the names of fields included; teem prefers a field that it knows."""
    line = f"{start}{key}:={value}"
    assume(":" not in key or line.partition(":")[0].strip() not in ("sizes", "type", "space"))
    path = nrrd(tmp_path / "a", line, "# sizes: 1 1 1", "sizes:=1 1 1", "unknown field: 7")
    assert medimg.read(path).shape == (1, 4, 3, 2)


UNITS = {
    "mm": 1.0,
    "cm": 10.0,
    "m": 1000.0,
    "um": 1e-3,
    "µm": 1e-3,
    "μm": 1e-3,
    "Microns": 1e-3,
    "nm": 1e-6,
    "": 1.0,
}


@pytest.mark.parametrize("unit", UNITS)
def test_spacings_are_in_the_unit_of_their_axis(tmp_path: Path, unit: str) -> None:
    plain: dict[str, Any] = {"space": "", "space_directions": "", "space_origin": ""}
    units = f'"mm" "{unit}" "cm"'
    volume = medimg.read(nrrd(tmp_path / "a", spacings="0.5 2 3", units=units, **plain))
    assert volume.spacing == pytest.approx((30, 2 * UNITS[unit], 0.5))
    volume = medimg.read(nrrd(tmp_path / "b", space_units=f'"{unit}" "mm" "mm"'))
    assert volume.spacing == pytest.approx((3, 2, UNITS[unit]))


@pytest.mark.parametrize(
    ("changes", "spacing"),
    [
        ({"axis mins": "0 0 0", "axis maxs": "2 6 20"}, (5, 2, 1)),
        ({"axis mins": "0 0 9", "axis maxs": "2 6 0", "centers": "cell cell node"}, (3, 2, 1)),
        ({"spacings": "nan nan nan"}, (1, 1, 1)),
    ],
)
def test_spacings_from_ranges(tmp_path: Path, changes: dict[str, Any], spacing: tuple[float, ...]) -> None:
    plain: dict[str, Any] = {"space": "", "space_directions": "", "space_origin": ""}
    assert medimg.read(nrrd(tmp_path / "a", **plain, **changes)).spacing == pytest.approx(spacing)


def test_one_unknown_spacing_is_noted(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"space": "", "space_directions": "", "space_origin": ""}
    with pytest.warns(MedimgWarning, match="spacing of axis 1 is not known: 1 mm is assumed"):
        assert medimg.read(nrrd(tmp_path / "a", spacings="2 nan 3", **plain)).spacing == (3, 1, 2)
    ranges: dict[str, Any] = {"axis mins": "nan nan 9", "axis maxs": "2 nan 0", "units": '"mm" "mm" "cm"'}
    with pytest.warns(MedimgWarning, match="spacing of axis 0 and 1 is not known: 1 mm is assumed"):
        assert medimg.read(nrrd(tmp_path / "b", **plain, **ranges)).spacing == (22.5, 1, 1)


@pytest.mark.parametrize("encoding", ["bzip2", "bz2"])
@pytest.mark.parametrize("streams", [1, 3])
def test_values_compressed_by_bzip2(tmp_path: Path, encoding: str, streams: int) -> None:
    data = VALUES.tobytes(order="F")
    parts = [data[n * len(data) // streams : (n + 1) * len(data) // streams] for n in range(streams)]
    packed = b"".join(map(bz2.compress, parts))
    volume = medimg.read(nrrd(tmp_path / "a", encoding=encoding, data=packed))
    assert np.array_equal(volume.array[0], VALUES.transpose(2, 1, 0))
    with pytest.raises(TruncatedError):
        medimg.read(nrrd(tmp_path / "b", encoding=encoding, data=packed[:-20]))


@pytest.mark.parametrize("field", ["spacing", "Spacings_", "space direction", "space-origin", "unit", "kind"])
def test_a_misspelled_field_is_named(tmp_path: Path, field: str) -> None:
    with pytest.warns(MedimgWarning, match=f"unknown field '{field.lower()}'"):
        medimg.read(nrrd(tmp_path / "a", f"{field}: 1 2 3", space_directions="", space_origin="", space=""))


@pytest.mark.parametrize("field", ["ElementSpacings", "elementspacing", "TransformMatrx"])
def test_a_misspelled_field_of_metaimage_is_named(tmp_path: Path, field: str) -> None:
    changes: dict[str, Any] = {field: "1 2 3", "ElementSpacing": "", "TransformMatrix": ""}
    with pytest.warns(MedimgWarning, match=f"unknown field '{field}'"):
        medimg.read(mha(tmp_path / "a.mha", **changes))


@pytest.mark.parametrize(("spacing", "used"), [("0", 1), ("-2", 2), ("inf", 1)])
def test_a_spacing_that_is_none_is_noted(tmp_path: Path, spacing: str, used: float) -> None:
    plain: dict[str, Any] = {"space": "", "space_directions": "", "space_origin": ""}
    path = nrrd(tmp_path / "a", spacings=f"1 1 {spacing}", **plain)
    with pytest.warns(MedimgWarning, match="the spacing of axis 2 is"):
        assert medimg.read(path).spacing == (used, 1, 1)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("space", ["left-posterior-superior-time", "LPST"])
def test_a_space_with_time(tmp_path: Path, space: str, first: bool) -> None:
    array = np.arange(48, dtype=np.uint8).reshape((2, 2, 3, 4) if first else (2, 3, 4, 2), order="F")
    directions = ["(1,0,0,0)", "(0,2,0,0)", "(0,0,3,0)"]
    directions.insert(0 if first else 3, "(0,0,0,500)")
    path = nrrd(
        tmp_path / "a", dimension="4", sizes=" ".join(map(str, array.shape)), space=space,
        space_directions=" ".join(directions), space_origin="(5,6,7,0)",
        space_units='"mm" "mm" "mm" "ms"', data=array.tobytes(order="F"),
    )  # fmt: skip
    (series,) = medimg.scan(path)
    volume = series.read()
    assert np.array_equal(volume.array, np.moveaxis(array, 0 if first else 3, 3).transpose(3, 2, 1, 0))
    np.testing.assert_allclose(volume.affine[:, [2, 1, 0, 3]], expected_affine())
    assert (volume.space, series.frame_times) == ("patient", (0.0, 0.5))


def test_four_axes_of_which_none_is_marked(tmp_path: Path) -> None:
    """The last one holds channels, as in MetaImage and NIfTI."""
    plain: dict[str, Any] = {"space": "", "space_directions": "", "space_origin": ""}
    choices: list[dict[str, Any]] = [{}, {"kinds": "domain domain domain domain"}, {"spacings": "1 2 3 4"}]
    for changes in choices:
        volume = medimg.read(nrrd(tmp_path / "a", dimension="4", sizes="2 3 2 2", **plain, **changes))
        assert volume.shape == (2, 2, 3, 2)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize(
    ("shape", "vector"), [((5, 4), False), ((5, 4, 3), True), ((2, 3, 5, 4), False), ((3, 5, 4, 2), True)]
)
@pytest.mark.filterwarnings("ignore:.*no anatomical space")
def test_one_itk_image_in_every_format(
    tmp_path: Path, dtype: str, shape: tuple[int, ...], vector: bool
) -> None:
    image = sitk.GetImageFromArray(RNG.integers(0, 200, shape).astype(dtype), isVector=vector)
    image.SetSpacing([0.2, 0.3, 0.4, 1.5][: image.GetDimension()])
    volumes = []
    for ending in ("mha", "nii", "nrrd"):
        sitk.WriteImage(image, tmp_path / f"a.{ending}")
        volumes.append(medimg.read(tmp_path / f"a.{ending}"))
    for volume in volumes[1:]:
        assert volume.array.dtype == volumes[0].array.dtype
        assert np.array_equal(volume.array, volumes[0].array)
        assert volume.spacing == pytest.approx(volumes[0].spacing)
        assert volume.photometric == volumes[0].photometric


def mha(path: Path, *lines: str, data: bytes = VALUES.tobytes(order="F"), **changes: Any) -> Path:
    fields = {"ObjectType": "Image", "NDims": "3", "DimSize": "2 3 4", "ElementType": "MET_UCHAR"} | changes
    where = fields.pop("ElementDataFile", "LOCAL")
    text = [*(f"{k} = {v}" for k, v in fields.items() if v), *lines, f"ElementDataFile = {where}"]
    path.write_bytes("\n".join(text).encode() + b"\n" + data)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"Offset": "5 6 7"},
        {"Origin": "5 6 7", "ElementSpacing": "1 2 3"},
        {"Position": "5 6 7", "ElementSize": "1 2 3"},
        {"TransformMatrix": "0 1 0 0 0 1 1 0 0", "ElementSpacing": "1 2 3", "Offset": "5 6 7"},
        {"Rotation": "0 1 0 0 0 1 -1 0 0", "ElementSpacing": "1 2 3"},
        {
            "Orientation": "0.8 0.6 0 -0.6 0.8 0 0 0 1",
            "ElementSpacing": "-1 2 3",
            "CenterOfRotation": "9 9 9",
        },
        {"Offset": "5 6 7", "ElementSpacing": "1 2 3", "ElementSize": "4 5 6"},
    ],
)
def test_places_of_metaimage(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = mha(tmp_path / "a.mha", **changes)
    volume = medimg.read(path)
    image = sitk.ReadImage(path)
    assert np.array_equal(volume.array[0], sitk.GetArrayFromImage(image))
    assert volume.space == "patient"
    for index in np.ndindex(2, 3, 4):
        place = volume.affine @ [*index[::-1], 1]
        np.testing.assert_allclose(place[:3], image.TransformIndexToPhysicalPoint(index), atol=1e-9)


@pytest.mark.parametrize("kind", ["CHAR", "SHORT", "USHORT", "INT", "UINT", "LONG", "ULONG", "LONG_LONG",
                                  "ULONG_LONG", "FLOAT", "DOUBLE"])  # fmt: skip
@pytest.mark.parametrize("big", ["False", "True"])
def test_types_of_metaimage(tmp_path: Path, kind: str, big: str) -> None:
    data = RNG.integers(0, 100, 24 * 8).astype(np.uint8).tobytes()
    path = mha(tmp_path / "a.mha", ElementType=f"MET_{kind}", BinaryDataByteOrderMSB=big, data=data)
    volume = medimg.read(path)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(path))
    assert volume.array.dtype == expected.dtype
    assert np.array_equal(volume.array[0], expected)


def test_text_and_compressed_metaimage(tmp_path: Path) -> None:
    text = b" ".join(b"%d" % v for v in range(24))
    volume = medimg.read(mha(tmp_path / "a", BinaryData="False", data=text))
    assert np.array_equal(volume.array[0], VALUES.transpose(2, 1, 0))
    for packed in (zlib.compress(VALUES.tobytes(order="F")), gzip.compress(VALUES.tobytes(order="F"))):
        volume = medimg.read(mha(tmp_path / "b", CompressedData="True", data=packed))
        assert np.array_equal(volume.array[0], VALUES.transpose(2, 1, 0))
    damaged = bytearray(zlib.compress(VALUES.tobytes(order="F")))
    damaged[-1] ^= 1
    with pytest.raises(DecodeError, match="checksum"):
        medimg.read(mha(tmp_path / "c", CompressedData="True", data=bytes(damaged)))
    with pytest.raises(TruncatedError):
        medimg.read(mha(tmp_path / "d", CompressedData="True", data=bytes(damaged[:-6])))


def test_two_dimensions_and_units(tmp_path: Path) -> None:
    volume = medimg.read(mha(tmp_path / "a", NDims="2", DimSize="4 6", ElementSpacing="0.5 0.7"))
    assert volume.shape == (1, 1, 6, 4)
    assert volume.spacing == (1.0, 0.7, 0.5)
    assert volume.space == "image"
    cm = medimg.read(mha(tmp_path / "b", ElementSpacing="1 2 3", Offset="1 1 1", DistanceUnits="cm"))
    assert cm.spacing == (30.0, 20.0, 10.0)
    assert cm.affine[:3, 3].tolist() == [10, 10, 10]


def test_a_contradicting_orientation_is_noted(tmp_path: Path) -> None:
    with pytest.warns(MedimgWarning, match="LPI contradicts"):
        medimg.read(mha(tmp_path / "a", Offset="0 0 0", AnatomicalOrientation="LPI"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NDims": "5", "DimSize": "2 3 4 1 1"}, "dimensions"),
        ({"NDims": "1", "DimSize": "24"}, "dimensions"),
        ({"NDims": "-3"}, "dimensions"),
        ({"NDims": ""}, "none of"),
        ({"DimSize": "2 3"}, "DimSize"),
        ({"DimSize": "2 3 -4"}, "unreasonably"),
        ({"DimSize": "2 3 0"}, "unreasonably"),
        ({"DimSize": "65536 65536 65536"}, "unreasonably"),
        ({"DimSize": "4294967298 3 4"}, "declares|unreasonably"),
        ({"DimSize": "2 3 5"}, "declares"),
        ({"ElementType": "MET_FLOAT_ARRAY"}, "type"),
        ({"ElementType": "MET_STRING"}, "type"),
        ({"ElementType": ""}, "type"),
        ({"ElementNumberOfChannels": "0"}, "unreasonably"),
        ({"ElementNumberOfChannels": "-1"}, "unreasonably"),
        ({"ElementNumberOfChannels": "999999999"}, "declares"),
        ({"NDims": "4", "DimSize": "2 3 2 2", "ElementNumberOfChannels": "3"}, "at 2 time points"),
        ({"NDims": "4", "DimSize": "2 3 2 2", "Offset": "0 0 0 0",
          "TransformMatrix": "1 0 0 0 0 1 0 0 0 0 0 1 0 0 1 0"}, "mixes time"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0"}, "TransformMatrix"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 1 0"}, "singular"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0 nan"}, "finite"),
        ({"Offset": "1 2"}, "Offset"),
        ({"ElementSpacing": "0 1 1"}, "ElementSpacing"),
        ({"ElementSpacing": "1 1 x"}, "ElementSpacing"),
        ({"ElementDataFile": "LIST", "data": b"a.raw\n"}, "several files"),
        ({"ElementDataFile": "LIST 2D", "data": b"a.raw\n"}, "several files"),
        ({"ElementDataFile": "%03d.raw 1 4 1"}, "several files"),
        ({"ElementDataFile": "/etc/passwd"}, "own folder"),
        ({"ElementDataFile": "../a.raw"}, "own folder"),
        ({"ElementDataFile": "absent.raw"}, "not there"),
        ({"ElementDataFile": ""}, "own folder"),
        ({"HeaderSize": "3"}, "HeaderSize"),
        ({"HeaderSize": "-1", "CompressedData": "True"}, "HeaderSize"),
        ({"CompressedData": "True"}, "decompressed"),
        ({"CompressedData": "maybe"}, "CompressedData"),
        ({"BinaryData": "False"}, "declares"),
        ({"ElementToIntensityFunctionSlope": "2"}, "Slope"),
        ({"DistanceUnits": "parsec"}, "DistanceUnits"),
        ({"ObjectType": "Mesh"}, "not an image"),
    ],
)  # fmt: skip
def test_metaimage_that_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = mha(tmp_path / "a.mha", **changes)
    with pytest.raises(MedimgError, match=message):
        medimg.read(path)


def test_headers_in_memory(tmp_path: Path) -> None:
    data = nrrd(tmp_path / "a").read_bytes()
    assert medimg.read(data).shape == (1, 4, 3, 2)
    assert medimg.read(gzip.compress(data)).shape == (1, 4, 3, 2)
    with pytest.raises(ReadError, match="in memory"):
        medimg.read(nrrd(tmp_path / "b", data_file="values").read_bytes())


def test_values_that_look_like_an_image_are_no_second_series(tmp_path: Path) -> None:
    values = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + bytes(6)
    (tmp_path / "a.raw").write_bytes(values)
    mha(tmp_path / "a.mhd", ElementDataFile="a.raw", data=b"")
    index = medimg.scan(tmp_path)
    assert [s.format for s in index] == ["MetaImage"]
    assert index.skipped == ()
    assert np.array_equal(index[0].read().array.ravel(), np.frombuffer(values, np.uint8))


SAMPLES = ("nrrd", "gz.nrrd", "ascii.nrrd", "mha", "zlib.mha", "text.mha")


def sample(path: Path, name: str) -> bytes:
    raw = VALUES.tobytes(order="F")
    text = b" ".join(b"%d" % v for v in range(24))
    if name == "nrrd":
        return nrrd(path, "kinds: domain domain domain", "byte skip: 0").read_bytes()
    if name == "gz.nrrd":
        return nrrd(path, encoding="gzip", data=gzip.compress(raw)).read_bytes()
    if name == "ascii.nrrd":
        return nrrd(path, encoding="ascii", data=text).read_bytes()
    places: dict[str, Any] = {
        "Offset": "1 2 3",
        "ElementSpacing": "1 1 2",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    }
    if name == "mha":
        return mha(path, BinaryDataByteOrderMSB="False", ElementNumberOfChannels="1", **places).read_bytes()
    if name == "zlib.mha":
        return mha(path, CompressedData="True", data=zlib.compress(raw), **places).read_bytes()
    return mha(path, BinaryData="False", data=text, **places).read_bytes()


@settings(
    deadline=None,
    max_examples=600 if SLOW else 200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(SAMPLES),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    words=st.lists(
        st.tuples(
            st.floats(0, 1, exclude_max=True),
            st.sampled_from(
                [b"-1", b"99999999999", b"nan", b"1e999", b"%d", b"\0", b"..", b"", b"none", b"()"]
            ),
        ),
        max_size=2,
    ),
)
@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_any_damage_gives_a_volume_or_a_medimg_error(
    tmp_path: Path, name: str, flips: list[tuple[float, int]], words: list[tuple[float, bytes]]
) -> None:
    data = bytearray(sample(tmp_path / "whole", name))
    for place, value in flips:
        data[int(place * len(data))] = value
    for place, word in words:
        pieces = bytes(data).split(b" ")
        pieces[int(place * len(pieces))] = word
        data = bytearray(b" ".join(pieces))
    try:
        volume = medimg.read(bytes(data))
    except MedimgError:
        return
    assert volume.array.size < 10_000
    assert np.isfinite(volume.affine).all()


@pytest.mark.parametrize("number", [b"\x001", b"1\x00", b"\x00"])
def test_a_zero_byte_is_no_part_of_a_number(tmp_path: Path, number: bytes) -> None:
    written = mha(tmp_path / "a.mha", Offset="7 8 9").read_bytes()
    start = written.index(b"7 8 9")
    end = start + 1
    with pytest.raises(DecodeError, match=r"Offset: expected 3 number\(s\)"):
        medimg.read(written[:start] + number + written[end:])


def test_no_native_code_sees_a_header(tmp_path: Path) -> None:
    """SimpleITK can end the process; it is not even loaded."""
    paths = [str(nrrd(tmp_path / "a.nrrd")), str(mha(tmp_path / "b.mha"))]
    code = f"import sys, medimg; [medimg.read(p) for p in {paths}]; print('SimpleITK' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_directions_that_span_nothing(tmp_path: Path) -> None:
    with pytest.raises(GeometryError):
        medimg.read(nrrd(tmp_path / "a", space_directions="(0,0,0) (0,2,0) (0,0,3)"))


def test_an_unknown_space_is_named(tmp_path: Path) -> None:
    with pytest.warns(MedimgWarning, match="unknown space 'RPI'"):
        assert medimg.read(nrrd(tmp_path / "a", space="RPI")).space == "image"


def test_a_negative_spacing_of_metaimage_is_noted(tmp_path: Path) -> None:
    with pytest.warns(MedimgWarning, match="ElementSpacing is negative"):
        assert medimg.read(mha(tmp_path / "a.mha", ElementSpacing="-1 2 3")).spacing == (3, 2, 1)
