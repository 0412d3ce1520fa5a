"""Reading piece by piece, in place or mapped gives what the whole file in memory gives."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import medimg
from medimg.core.geometry import image_affine
from medimg.errors import DecodeError, MedimgError, TruncatedError
from medimg.io.files.blob import Blob, list_zip_members
from medimg.io.formats import _raster_values
from medimg.io.formats.raster import Encoding, Raster
from medimg.io.formats.raster_reader import raster_series
from medimg.io.series import Policies, Series
from tests.sampling import SLOW, sample

Order = Literal["<", ">", "="]
DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
WRITTEN = ("raw", "gzipped", "in zip", "deflated", "member deflated", "text", "hex", "in memory")

LINEAR = ((1.0, 0.0), (1.0, -1024.0), (-3.0, 7.0), (0.25, -3.5), (1e36, 0.0), (1e4, 1.0), (2.0**31, 0.0))


def plainly(values: npt.NDArray[Any], slope: float, intercept: float) -> npt.NDArray[Any]:
    """The reference: whole arrays, in exact integers or float64."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if (slope, intercept) == (1.0, 0.0):
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = values.astype(np.float64) * slope + intercept
        if kind == "f":
            return scaled.astype(values.dtype)
        if size == 8 or 2.0 ** (8 * size) * abs(slope) + abs(intercept) >= 3e38:
            return scaled
    if slope.is_integer() and intercept.is_integer():
        exact = values.astype(object) * int(slope) + int(intercept)
        for dtype in (np.int16, np.int32):
            if exact.min() >= np.iinfo(dtype).min and exact.max() <= np.iinfo(dtype).max:
                return exact.astype(dtype)
    return scaled.astype(np.float32)


@st.composite
def arrays(draw: st.DrawFn) -> npt.NDArray[Any]:
    """(C, D, H, W) over the whole range of a type, or a narrow one."""
    shape = draw(st.tuples(*[st.integers(1, n) for n in (3, 7, 5, 6)]))
    dtype: np.dtype[Any] = np.dtype(draw(st.sampled_from(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if dtype.kind == "f":
        return rng.normal(0, 1000, shape).astype(dtype)
    limits, narrow = np.iinfo(dtype), draw(st.sampled_from([0, 0, 4, 12]))
    low, high = int(limits.min) >> narrow, int(limits.max) >> narrow
    return rng.integers(low, high, shape, dtype=dtype, endpoint=True)


def written(folder: Path, array: npt.NDArray[Any], how: str, order: Order, interleaved: bool) -> Raster:
    """Write an array (C, D, H, W) with a few bytes before it, and return what a header would say of it."""
    ordered = array.transpose(1, 2, 3, 0) if interleaved else array
    values = ordered.astype(array.dtype.newbyteorder(order)).tobytes()
    path, encoding, skip, start = folder / "v", "raw", 0, 16
    front, data = bytes(16), values
    if how in ("deflated", "member deflated"):
        encoding, skip = "deflated", 3
        squeezed = b"abc" + values
        data = zlib.compress(squeezed) if how == "deflated" else gzip.compress(squeezed)
    elif how == "text":
        encoding, order = "text", "="
        data = b" ".join(repr(v).encode() for v in ordered.ravel().tolist())
    elif how == "hex":
        encoding, data = "hex", values.hex().encode()
    content = front + data
    blob = Blob(str(path))
    if how == "gzipped":
        path.write_bytes(gzip.compress(content))
        blob = blob.unzipped()
    elif how == "in zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("v", content)
        blob = list_zip_members(path)[0]
    elif how == "in memory":
        blob = Blob("<bytes>", data=content)
    else:
        path.write_bytes(content)
    kinds: dict[str, Encoding] = {"raw": "raw", "deflated": "deflated", "text": "text", "hex": "hex"}
    return Raster(
        name="v", format="test", files=("v",), blob=blob, dtype=array.dtype.newbyteorder(order),
        grid=array.shape[1:], affine=image_affine((1.0, 1.0, 1.0)), space="image", start=start, skip=skip,
        encoding=kinds[encoding], channels=array.shape[0], interleaved=interleaved,
    )  # fmt: skip


def same(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> bool:
    assert found.dtype.isnative
    return (
        found.dtype == expected.dtype
        and not found.flags.writeable
        and found.shape == expected.shape
        and np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()
    )


def exceeds_type(array: npt.NDArray[Any], slope: float, intercept: float) -> bool:
    """Whether finite floating-point values become infinite, which is an error."""
    if array.dtype.kind != "f":
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        rescaled = plainly(array, slope, intercept)
    return bool((np.isfinite(array) & ~np.isfinite(rescaled)).any())


@settings(
    deadline=None,
    max_examples=500 if SLOW else 200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    array=arrays(),
    how=st.tuples(st.sampled_from(WRITTEN), st.sampled_from("<>"), st.booleans()),
    limits=st.sampled_from([(8, 0), (64, 2**24), (2**20, 0), (2**20, 2**24)]),
    data=st.data(),
)
def test_any_raster(
    tmp_path: Path,
    array: npt.NDArray[Any],
    how: tuple[str, Order, bool],
    limits: tuple[int, int],
    data: st.DataObject,
) -> None:
    linear = data.draw(st.sampled_from(LINEAR))
    raster = replace(written(tmp_path, array, *how), slope=linear[0], intercept=linear[1])
    series = raster_series(raster)
    depth = array.shape[1]
    chosen = sorted(data.draw(st.sets(st.integers(0, depth - 1), min_size=1)))
    size, mapped = data.draw(st.integers(1, depth)), data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_raster_values, "_PIECE_BYTES", limits[0])
        patch.setattr(_raster_values, "_SPARE", limits[1])
        if exceeds_type(array, *linear):
            with pytest.raises(DecodeError, match="are beyond those of"):
                series.read(mapped=mapped)
            return
        whole = series.read(mapped=mapped).array
        some = series.read(chosen, mapped=mapped).array
        pieces = [v.array for v in series.pieces(size, chosen, policies=Policies(mapped=mapped))]
    assert same(whole, plainly(array, *linear))
    assert same(some, plainly(array[:, chosen], *linear))
    for n, piece in enumerate(pieces):
        assert same(piece, plainly(array[:, chosen[n * size : (n + 1) * size]], *linear))
    assert sum(piece.shape[1] for piece in pieces) == len(chosen)


@cache
def noise(depth: int, side: int) -> npt.NDArray[np.int16]:
    array = np.random.default_rng(0).integers(-1024, 3000, (depth, side, side)).astype("<i2")
    array.flags.writeable = False
    return array


@cache
def squeezed_noise(depth: int, side: int) -> bytes:
    squeezer = zlib.compressobj(1, zlib.DEFLATED, -15)
    return squeezer.compress(noise(depth, side).data) + squeezer.flush()


def ct(path: Path, depth: int = 20, side: int = 256, **header: float) -> npt.NDArray[np.int16]:
    """Write a noisy NIfTI and return its values (D, H, W)."""
    array = noise(depth, side)
    image = nib.Nifti1Image(array.transpose(2, 1, 0), np.eye(4))
    image.header.set_slope_inter(header.get("slope", 1), header.get("inter", 0))
    image.header["vox_offset"] = 352
    with path.open("wb") as file:
        if path.suffix != ".gz":
            image.header.write_to(file)
            file.write(array.data)
            return array
        start = io.BytesIO()
        image.header.write_to(start)
        squeezer = zlib.compressobj(1, zlib.DEFLATED, -15)
        # deflated bytes can be joined behind a full flush, so that those of the values are made only once
        file.write(gzip.compress(b"")[:10] + squeezer.compress(start.getvalue()))
        file.write(squeezer.flush(zlib.Z_FULL_FLUSH) + squeezed_noise(depth, side))
        checksum = zlib.crc32(array.data, zlib.crc32(start.getvalue()))
        file.write(struct.pack("<II", checksum, len(start.getvalue()) + array.nbytes))
    return array


def one(path: Path) -> Series:
    return medimg.scan(path, progress=False)[0]


def test_only_the_first_slices_are_unpacked(tmp_path: Path) -> None:
    array = ct(tmp_path / "a.nii.gz")
    packed = bytearray((tmp_path / "a.nii.gz").read_bytes())
    packed[len(packed) // 2 :] = bytes(len(packed) - len(packed) // 2)
    (tmp_path / "a.nii.gz").write_bytes(packed)
    series = one(tmp_path / "a.nii.gz")
    assert np.array_equal(series.read([0, 3]).array[0], array[[0, 3]])
    with pytest.raises(MedimgError):
        series.read([19])


def test_pieces_open_and_unpack_the_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = ct(tmp_path / "a.nii.gz")
    series = one(tmp_path / "a.nii.gz")
    opened: list[Blob] = []
    plain = Blob.stream
    monkeypatch.setattr(Blob, "stream", lambda blob: opened.append(blob) or plain(blob))  # type: ignore[func-returns-value]  # append returns None
    found = np.concatenate([v.array[0] for v in series.pieces(3)])
    assert np.array_equal(found, array)
    assert len(opened) == 1


def test_a_wrong_checksum_is_found_in_pieces_too(tmp_path: Path) -> None:
    ct(tmp_path / "a.nii.gz", slope=0.5)
    packed = bytearray((tmp_path / "a.nii.gz").read_bytes())
    packed[-6] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(packed)
    series = one(tmp_path / "a.nii.gz")
    with pytest.raises(MedimgError, match="checksum"):
        series.read()
    with pytest.raises(MedimgError, match="checksum"):
        list(series.pieces(7))


@pytest.mark.parametrize("slope", [1, 0.5])
def test_a_file_that_has_become_shorter(tmp_path: Path, slope: float) -> None:
    path = tmp_path / "a.nii"
    ct(path, slope=slope)
    series = one(path)
    pieces = series.pieces(4)
    next(pieces)
    path.write_bytes(path.read_bytes()[:600_000])
    with pytest.raises(TruncatedError):
        list(pieces)
    for mapped in (False, True):
        with pytest.raises(TruncatedError):
            series.read(mapped=mapped)


def base_of(array: npt.NDArray[Any]) -> Any:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base


def is_mapped(array: npt.NDArray[Any]) -> bool:
    return type(base_of(array)).__name__ == "mmap"


def test_maps_are_views_of_the_file(tmp_path: Path) -> None:
    array = ct(tmp_path / "a.nii")
    volume = medimg.read(tmp_path / "a.nii", mapped=True)
    assert is_mapped(volume.array)
    assert not volume.array.flags.writeable
    assert np.array_equal(volume.array[0], array)
    series = one(tmp_path / "a.nii")
    for chosen in ([3], [2, 3, 4], [1, 5, 9]):
        some = series.read(chosen, mapped=True).array
        assert is_mapped(some)
        assert np.array_equal(some[0], array[chosen])
    assert not is_mapped(series.read([0, 1, 3], mapped=True).array)
    with (tmp_path / "a.nii").open("r+b") as file:
        file.seek(352)
        file.write(b"\x07\x00")
    assert volume.array[0, 0, 0, 0] == 7


def test_without_being_asked_nothing_is_mapped(tmp_path: Path) -> None:
    array = ct(tmp_path / "a.nii")
    volume = medimg.read(tmp_path / "a.nii")
    assert not is_mapped(volume.array)
    (tmp_path / "a.nii").write_bytes(b"")
    assert np.array_equal(volume.array[0], array)


@pytest.mark.parametrize("name", ["a.nii.gz", "rescaled.nii"])
def test_what_cannot_be_mapped_is_read(tmp_path: Path, name: str) -> None:
    array = ct(tmp_path / name, slope=2 if "rescaled" in name else 1)
    volume = medimg.read(tmp_path / name, mapped=True)
    assert not is_mapped(volume.array)
    assert np.array_equal(volume.array[0], array * (2 if "rescaled" in name else 1))
    assert is_mapped(volume.array) is False


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(("slope", "inter"), [(1, 0), (1, -1024), (0.5, 0), (100, 0)])
def test_little_is_held_beside_the_result(tmp_path: Path, name: str, slope: float, inter: float) -> None:
    array = ct(tmp_path / name, 80, 512, slope=slope, inter=inter)
    series = one(tmp_path / name)
    series.read([0])
    tracemalloc.start()
    try:
        volume = series.read()
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(volume.array[0], array * np.float32(slope) + np.float32(inter))
    assert most < volume.array.nbytes + 30e6


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc elsewhere")
def test_peak_memory_of_the_process(tmp_path: Path) -> None:
    ct(tmp_path / "a.nii.gz", 160 if SLOW else 80, 512, slope=0.5)
    code = (
        "import re, sys, medimg\n"
        # the peak that getrusage tells begins with that of the process that started this one
        "def peak():\n"
        "    with open('/proc/self/status') as file:\n"
        "        return 1024 * int(re.search(r'VmHWM:\\s+(\\d+) kB', file.read())[1])\n"
        "series = medimg.scan(sys.argv[1], progress=False)[0]\n"
        "series.read([0])\n"
        "before = peak()\n"
        "size = series.read().array.nbytes\n"
        "print(peak() - before - size)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.nii.gz")], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 30e6


def test_every_real_file_in_pieces_and_mapped(real_data: Path) -> None:
    suffixes = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
    compared = 0
    files = [path for path in sorted(real_data.rglob("*")) if path.name.lower().endswith(suffixes)]
    for path in sample(files, 2):
        try:
            series = one(path)
            whole = series.read()
        except (MedimgError, IndexError):
            continue
        assert same(series.read(mapped=True).array, whole.array), path.name
        some = list(range(0, whole.shape[1], 3))
        assert same(series.read(some, mapped=True).array[0], series.read(some).array[0])
        stacked = np.concatenate([v.array for v in series.pieces(4)], axis=1)
        assert np.array_equal(stacked, whole.array, equal_nan=whole.array.dtype.kind == "f"), path.name
        compared += 1
    assert compared > (50 if SLOW else 25)
