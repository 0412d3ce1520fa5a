from __future__ import annotations

import gzip
import resource
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import medimg
from medimg.core import geometry
from medimg.errors import (
    DecodeError,
    GeometryError,
    MedimgError,
    MedimgWarning,
    NotAnImageError,
    ReadError,
    TruncatedError,
)
from tests.io.volumes import SIGNS, affines, arrays, assert_same
from tests.sampling import SLOW, sample

AFFINE = np.array([[0.6, 0, 0, -10], [0, 0.8, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1.0]])
DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
KINDS = {"1": nib.Nifti1Image, "2": nib.Nifti2Image, "1 pair": nib.Nifti1Pair, "2 pair": nib.Nifti2Pair}
RNG = np.random.default_rng(5)


def stored(shape: tuple[int, ...] = (4, 5, 6), dtype: str = "i2") -> npt.NDArray[Any]:
    return RNG.integers(0, 200, shape).astype(dtype)


def save(path: Path, array: Any, affine: Any = AFFINE, kind: Any = nib.Nifti1Image, **header: Any) -> Path:
    image = kind(array, affine, dtype=array.dtype)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


@settings(
    deadline=None,
    max_examples=200 if SLOW else 80,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    array=arrays(DTYPES),
    affine=affines(),
    kind=st.sampled_from(sorted(KINDS)),
    written=st.tuples(st.sampled_from("<>"), st.booleans()),
)
def test_any_volume_as_nibabel_writes_it(
    tmp_path: Path, array: Any, affine: Any, kind: str, written: tuple[str, bool]
) -> None:
    order, zipped = written
    header = KINDS[kind].header_class(endianness=order)
    header.set_data_dtype(array.dtype)
    image = KINDS[kind](array, affine, header)
    name = ("a.img" if "pair" in kind else "a.nii") + ".gz" * zipped
    for old in tmp_path.iterdir():
        old.unlink()
    nib.save(image, tmp_path / name)
    volume = medimg.read(tmp_path)
    assert_same(volume, array, affine)
    some = list(range(0, volume.shape[1], 2))
    part = medimg.scan(tmp_path)[0].read(some)
    assert np.array_equal(part.array, volume.array[:, some])
    assert part.report.transforms[-1:] == (
        (f"{len(some)} of {volume.shape[1]} slices read",) if len(some) < volume.shape[1] else ()
    )


def test_every_nifti_of_the_data_sets_equals_nibabel(real_data: Path) -> None:
    """Values and affines are nibabel's; what is refused is named here. Folders hold files of one kind."""
    refused = {"not-nifti.nii": "is none of", "complex.nii.gz": "complex64"}
    suffixes = (".nii", ".nii.gz", ".hdr", ".hdr.gz")
    files = [p for p in sorted(real_data.rglob("*")) if p.name.lower().endswith(suffixes)]
    folders = {path.parent: [other for other in files if other.parent == path.parent] for path in files}
    every = {path for alike in folders.values() for path in sample(alike)}
    every |= {path for path in files if path.name in refused or "nifti_reader_js" in path.parts}
    compared = 0
    for path in sorted(every):
        if path.name in refused:
            with pytest.raises(ReadError, match=refused.pop(path.name)):
                medimg.read(path)
            continue
        volume = medimg.read(path)
        image: Any = nib.load(path)
        values = np.asarray(image.dataobj)
        if values.dtype.names:
            values = np.stack([values[name] for name in "RGB"], axis=-1)
            assert volume.is_color
        values = values.reshape(*(*image.shape, 1, 1)[:3], -1)
        np.testing.assert_allclose(volume.array, values.transpose(3, 2, 1, 0), rtol=1e-6, err_msg=path.name)
        if volume.space == "patient":
            lps = np.diag([*SIGNS, 1.0]) @ image.affine
            np.testing.assert_allclose(volume.affine[:, [2, 1, 0, 3]], lps, atol=1e-5, err_msg=path.name)
        else:
            assert image.header["sform_code"] == image.header["qform_code"] == 0
        compared += 1
    assert not refused
    assert compared > (100 if SLOW else 40)


def test_one_volume_in_many_orientations(real_data: Path) -> None:
    folder = real_data / "dicom_misc/nifti_space_dev/packages/niivue/tests/images/nifti_space"
    volumes = {p.name: medimg.read(p) for p in sorted(folder.glob("*.nii.gz"))}
    assert len(volumes) > 8
    assert len({v.orientation for v in volumes.values()}) > 8
    turned = [v.reorient("SPL") for v in volumes.values()]
    for volume in turned[1:]:
        assert np.array_equal(volume.array, turned[0].array)
        np.testing.assert_allclose(volume.affine, turned[0].affine, atol=1e-3)


def test_a_file_with_five_dimensions_that_aborts_simpleitk(real_data: Path) -> None:
    path = real_data / "dicom_misc/nifti_reader_js/data/5D_small.nii"
    image: Any = nib.load(path)
    assert len(image.shape) == 5
    volume = medimg.read(path)
    np.testing.assert_allclose(volume.array.ravel(), image.get_fdata().ravel(order="F"), rtol=1e-6)


@pytest.mark.parametrize("name", ["a", "a.dat", "a.dcm", "a.nii", "a.gz"])
@pytest.mark.parametrize("zipped", [False, True])
def test_the_content_counts_and_not_the_name(tmp_path: Path, name: str, zipped: bool) -> None:
    array = stored()
    data = save(tmp_path / "x.nii", array).read_bytes()
    path = tmp_path / "folder" / name
    path.parent.mkdir()
    path.write_bytes(gzip.compress(data) if zipped else data)
    assert_same(medimg.read(path), array, AFFINE)


def test_neighbors_of_nearly_the_same_name_are_themselves(tmp_path: Path) -> None:
    one, other = stored(), stored()
    save(tmp_path / "x.nii", one)
    save(tmp_path / "x.nii.gz", other)
    assert_same(medimg.read(tmp_path / "x.nii"), one, AFFINE)
    assert_same(medimg.read(tmp_path / "x.nii.gz"), other, AFFINE)
    assert len(medimg.scan(tmp_path)) == 2


def test_pairs(tmp_path: Path) -> None:
    array = stored()
    save(tmp_path / "a.img", array, kind=nib.Nifti1Pair)
    (tmp_path / "B.HDR").write_bytes((tmp_path / "a.hdr").read_bytes())
    (tmp_path / "B.IMG").write_bytes((tmp_path / "a.img").read_bytes())
    (tmp_path / "c.hdr.gz").write_bytes(gzip.compress((tmp_path / "a.hdr").read_bytes()))
    (tmp_path / "c.img").write_bytes((tmp_path / "a.img").read_bytes())
    for name in ("a.hdr", "a.img", "B.HDR", "B.IMG", "c.hdr.gz"):
        assert_same(medimg.read(tmp_path / name), array, AFFINE)
    index = medimg.scan(tmp_path)
    assert [Path(s.path).name for s in index] == ["B.HDR", "a.hdr", "c.hdr.gz"]
    assert index.skipped == ()
    assert [Path(f).name for f in index[1].files] == ["a.hdr", "a.img"]
    (tmp_path / "a.img").unlink()
    with pytest.raises(ReadError, match=r"\.img file"):
        medimg.read(tmp_path / "a.hdr")
    with pytest.raises(ReadError, match=r"\.img file"):
        medimg.read((tmp_path / "a.hdr").read_bytes())


def test_analyze_is_refused(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(stored(), np.eye(4)), tmp_path / "a.img")
    for name in ("a.hdr", "a.img"):
        with pytest.raises(ReadError, match="ANALYZE"):
            medimg.read(tmp_path / name)


def test_vectors_are_channels(tmp_path: Path) -> None:
    array = stored((4, 5, 6, 1, 3), "f4")
    volume = medimg.read(save(tmp_path / "a.nii", array))
    assert_same(volume, array[:, :, :, 0], AFFINE)
    assert medimg.scan(tmp_path)[0].frame_times is None
    assert not volume.is_color
    color = stored((4, 5, 6, 1, 3), "u1")
    volume = medimg.read(save(tmp_path / "b.nii", color))
    assert volume.is_color
    assert "red, green and blue" in volume.report.transforms[0]
    with pytest.raises(DecodeError, match="either time or a vector"):
        medimg.read(save(tmp_path / "c.nii", stored((4, 5, 6, 2, 3))))


def test_transparency_is_dropped(tmp_path: Path) -> None:
    rgba = stored((4, 5, 6, 4), "u1")
    structured = rgba.view([(c, "u1") for c in "RGBA"])[..., 0]
    path = save(tmp_path / "a.nii", structured)
    volume = medimg.read(path)
    assert volume.is_color
    assert np.array_equal(volume.array, rgba[..., :3].transpose(3, 2, 1, 0))
    assert volume.report.transforms == ("transparency dropped",)
    assert medimg.scan(path)[0].shape == volume.shape


@pytest.mark.parametrize(
    ("code", "name"), [(1536, "float128"), (1792, "complex128"), (1, "bits"), (77, "77")]
)
def test_types_that_are_refused(tmp_path: Path, code: int, name: str) -> None:
    path = save(tmp_path / "a.nii", stored())
    data = bytearray(path.read_bytes())
    struct.pack_into("<h", data, 70, code)
    path.write_bytes(data)
    with pytest.raises(DecodeError, match=name):
        medimg.read(path)


@pytest.mark.parametrize(
    ("slope", "intercept"), [(0.0, 5.0), (np.nan, 5.0), (1.0, 0.0), (2.0, -7.0), (0.25, 1.5), (-3.0, 0.0)]
)
@pytest.mark.parametrize("dtype", ["i2", "u1", "i8", "f4", "f8"])
def test_slopes(tmp_path: Path, slope: float, intercept: float, dtype: str) -> None:
    array = stored(dtype=dtype)
    path = save(tmp_path / "a.nii", array)
    data = bytearray(path.read_bytes())
    struct.pack_into("<ff", data, 112, slope, intercept)
    path.write_bytes(data)
    image: Any = nib.load(path)
    volume = medimg.read(path)
    np.testing.assert_allclose(volume.array[0].transpose(2, 1, 0), np.asarray(image.dataobj), rtol=1e-6)
    plain = slope == 0 or np.isnan(slope) or (slope, intercept) == (1, 0)
    assert (volume.report.transforms == ()) == plain
    if dtype[0] == "f":
        assert volume.array.dtype == np.dtype(dtype)


def test_an_infinite_intercept_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", stored())
    data = bytearray(path.read_bytes())
    struct.pack_into("<ff", data, 112, 2.0, np.inf)
    path.write_bytes(data)
    with pytest.raises(DecodeError, match="scl_inter"):
        medimg.read(path)


def test_a_sheared_sform_stays(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[0, 2] = 0.7
    array = stored()
    image = nib.Nifti1Image(array, None)
    image.set_sform(sheared, 1)
    nib.save(image, tmp_path / "a.nii")
    assert_same(medimg.read(tmp_path / "a.nii"), array, sheared)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    imaginary=st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3),
    real=st.floats(0, 1, width=32),
    excess=st.integers(0, 40),
    qfac=st.sampled_from([1.0, -1.0, 0.0]),
)
def test_a_rounded_quaternion_is_still_a_rotation(
    tmp_path: Path, imaginary: list[float], real: float, excess: int, qfac: float
) -> None:
    """Whatever rounding to 32 bits, once or often, made of its length."""
    exact = np.array([real, *imaginary])
    assume(np.linalg.norm(exact) > 0.1)
    exact /= np.linalg.norm(exact)
    a, b, c, d = exact
    rotation = np.array(
        [
            [1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)],
        ]
    )
    image = nib.Nifti1Image(stored(), None)
    image.header["qform_code"] = 1
    image.header["pixdim"][:4] = qfac, 2, 3, 4
    for name, value in zip("bcd", exact[1:], strict=True):
        rounded = np.float32(value)
        for _ in range(excess):
            rounded = np.nextafter(rounded, np.float32(2 * np.sign(value)))
        image.header[f"quatern_{name}"] = rounded
    nib.save(image, tmp_path / "a.nii")
    found = medimg.read(tmp_path / "a.nii")
    expected = np.eye(4)
    expected[:3, :3] = rotation * [2, 3, 4 * (qfac or 1)]
    # if the real part is small, a rounding error of the others means its root in the real one
    assert np.allclose(geometry.ras_from_lps(found.affine), expected, atol=0.05)
    assert found.report.warnings == ()


def test_a_quaternion_that_is_scaled_visibly_is_noted(tmp_path: Path) -> None:
    array = stored()
    image = nib.Nifti1Image(array, None)
    image.header["qform_code"], image.header["quatern_b"] = 1, 1.0005
    nib.save(image, tmp_path / "a.nii")
    with pytest.warns(MedimgWarning, match="length 1\\.0005"):
        assert_same(medimg.read(tmp_path / "a.nii"), array, np.diag([1.0, -1, -1, 1]))


@pytest.mark.parametrize("code", [6, 99])
@pytest.mark.parametrize("form", ["sform_code", "qform_code"])
def test_a_form_of_an_unknown_code_still_places_the_image(tmp_path: Path, form: str, code: int) -> None:
    array = stored()
    image = nib.Nifti1Image(array, AFFINE)
    other = "qform_code" if form == "sform_code" else "sform_code"
    image.set_qform(np.diag([1.0, 2, 3, 1]), 1)
    expected = AFFINE if form == "sform_code" else np.diag([1.0, 2, 3, 1])
    nib.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    offsets = {"qform_code": 252, "sform_code": 254}
    raw[offsets[form] : offsets[form] + 2] = code.to_bytes(2, "little")
    raw[offsets[other] : offsets[other] + 2] = bytes(2)
    (tmp_path / "a.nii").write_bytes(raw)
    found = medimg.read(tmp_path / "a.nii")
    assert found.space == "patient"
    assert_same(found, array, expected)


def test_an_unknown_unit_of_length_is_noted(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(stored(), AFFINE), tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[123] = 5
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.warns(MedimgWarning, match="unknown unit of length 5"):
        medimg.read(tmp_path / "a.nii")


@pytest.mark.parametrize(("size", "message"), [(0.0, "is 0"), (-2.0, "negative")])
@pytest.mark.parametrize("code", [0, 1])
def test_a_voxel_size_that_is_none_is_noted(tmp_path: Path, size: float, message: str, code: int) -> None:
    nib.save(nib.Nifti1Image(stored(), None), tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[84:88] = struct.pack("<f", size)
    raw[252:256] = struct.pack("<2h", code, 0)
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.warns(MedimgWarning, match=message):
        assert medimg.read(tmp_path / "a.nii").spacing[1] == (abs(size) or 1)


def test_an_impossible_quaternion_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(stored(), None)
    image.header["qform_code"] = 1
    image.header["quatern_b"], image.header["quatern_c"] = 1.0, 1.0
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(GeometryError, match="qform"):
        medimg.read(tmp_path / "a.nii")


@pytest.mark.parametrize(("unit", "factor"), [("sec", 1.0), ("msec", 1e-3), ("usec", 1e-6), ("hz", None)])
def test_frame_times(tmp_path: Path, unit: str, factor: float | None) -> None:
    image = nib.Nifti1Image(stored((4, 5, 6, 3)), AFFINE)
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = 2.5
    nib.save(image, tmp_path / "a.nii")
    times = medimg.scan(tmp_path)[0].frame_times
    expected = None if factor is None else [0.0, 2.5 * factor, 5.0 * factor]
    assert times == (None if expected is None else pytest.approx(expected))


def test_header_extensions_are_passed_over(tmp_path: Path) -> None:
    array = stored()
    image = nib.Nifti1Image(array, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    nib.save(image, tmp_path / "a.nii")
    assert_same(medimg.read(tmp_path / "a.nii"), array, AFFINE)


def test_truncation_and_checksums(tmp_path: Path) -> None:
    array = RNG.integers(0, 30000, (20, 20, 20)).astype("i2")
    whole = save(tmp_path / "a.nii.gz", array).read_bytes()
    path = tmp_path / "b.nii.gz"
    for length in (10, 40, 300, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:length])
        with pytest.raises(TruncatedError):
            medimg.read(path)
    damaged = bytearray(whole)
    damaged[-8] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(DecodeError, match="checksum"):
        medimg.read(path)
    plain = gzip.decompress(whole)
    for length in (400, len(plain) - 1):
        (tmp_path / "c.nii").write_bytes(plain[:length])
        with pytest.raises(TruncatedError, match="declares"):
            medimg.read(tmp_path / "c.nii")
    (tmp_path / "c.nii").write_bytes(plain[:200])
    with pytest.raises(NotAnImageError):
        medimg.read(tmp_path / "c.nii")


@pytest.mark.parametrize("zipped", [False, True])
def test_absurd_sizes_take_no_memory(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "a.nii", stored())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for dim in [(3, 30000, 30000, 30000), (3, 2000, 2000, 2000), (3, -4, 5, 6), (3, 0, 5, 6), (0, 4, 5, 6)]:
        data = bytearray(path.read_bytes())
        struct.pack_into("<4h", data, 40, *dim)
        target = tmp_path / "b"
        target.write_bytes(gzip.compress(data) if zipped else data)
        with pytest.raises(ReadError):
            medimg.read(target)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("offset", [0.0, 351.0, 352.5, np.nan, np.inf, -1.0, 1e30])
def test_absurd_offsets(tmp_path: Path, offset: float) -> None:
    path = save(tmp_path / "a.nii", stored())
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, 108, offset)
    path.write_bytes(data)
    with pytest.raises(ReadError):
        medimg.read(path)


def test_nifti_2_after_a_transfer_as_text(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", stored(), kind=nib.Nifti2Image)
    path.write_bytes(path.read_bytes().replace(b"n+2\0\r\n\x1a\n", b"n+2\0\n\n\x1a\n", 1))
    with pytest.raises(DecodeError, match="as text"):
        medimg.read(path)


@settings(
    deadline=None,
    max_examples=300 if SLOW else 120,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    flips=st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), min_size=1, max_size=4),
    kind=st.sampled_from(["a.nii", "a.nii.gz"]),
)
@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_any_damage_of_the_header_gives_a_volume_or_a_medimg_error(
    tmp_path: Path, flips: list[tuple[int, int]], kind: str
) -> None:
    path = save(tmp_path / "whole.nii", np.arange(120, dtype="i2").reshape(4, 5, 6))
    data = bytearray(path.read_bytes())
    for place, value in flips:
        data[place] = value
    (tmp_path / kind).write_bytes(gzip.compress(bytes(data)) if kind.endswith("gz") else data)
    try:
        volume = medimg.read(tmp_path / kind)
    except MedimgError:
        return
    assert volume.array.ndim == 4
    assert np.isfinite(volume.affine).all()
    assert geometry.spacing_of(volume.affine) > (0, 0, 0)


@pytest.mark.parametrize(("slope", "intercept"), [(np.inf, 0), (-np.inf, 1), (1, np.nan), (2, np.inf)])
def test_a_scaling_that_is_not_finite_is_damage(tmp_path: Path, slope: float, intercept: float) -> None:
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.ones((2, 3, 4), np.int16), np.eye(4)), path)
    data = path.read_bytes()
    path.write_bytes(data[:112] + np.array([slope, intercept], "<f4").tobytes() + data[120:])
    with pytest.raises(DecodeError, match="scl_slope"):
        medimg.read(path)


def test_bits_that_contradict_the_type_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.ones((2, 3, 4), np.int16), np.eye(4)), path)
    data = path.read_bytes()
    path.write_bytes(data[:72] + b"\x20\0" + data[74:])
    with pytest.warns(MedimgWarning, match="bitpix is 32"):
        assert medimg.read(path).shape == (1, 4, 3, 2)
