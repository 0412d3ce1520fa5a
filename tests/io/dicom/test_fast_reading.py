"""Reading straight into one array, on threads, gives what the plain way of reading gives, bit for bit."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

import medimg
from medimg._native.library import load_library
from medimg.core.volume import Volume
from medimg.errors import DecodeError, GeometryError, MedimgError, TruncatedError
from medimg.io.dicom.pixels._single_frame_reader import SingleFrameReader
from medimg.io.dicom.series.volume_reader import StackReader
from medimg.io.series import Policies, Series, ValueKind
from medimg.testing.studies import Study, write_dicom
from tests.dicom_files import make_instance, write
from tests.io.dicom.kinds import of_each_kind
from tests.io.dicom.plain_reading import plain_read
from tests.sampling import SLOW

KEEP = Policies(on_missing="keep", on_duplicate="keep", on_tilt="keep")
Outcome = tuple[Volume | tuple[str, str], list[str]]


def outcome(read: Callable[[], Volume]) -> Outcome:
    """A volume or an error, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result: Volume | tuple[str, str] = read()
        except MedimgError as error:
            result = type(error).__name__, str(error)
    return result, [str(w.message) for w in caught]


def plan_of(series: Series) -> Any:
    assert isinstance(series.reader, StackReader)
    return series.reader.plan


def difference(found: Volume, expected: Volume) -> str:
    """What differs; "" where nothing does."""
    if found.array.dtype != expected.array.dtype or found.array.tobytes() != expected.array.tobytes():
        return f"values: {found.array.dtype} {found.shape}, expected {expected.array.dtype} {expected.shape}"
    paddings = (found.padding is None, expected.padding is None)
    if paddings[0] != paddings[1] or not np.array_equal(found.padding, expected.padding):  # type: ignore[arg-type]  # None equals None
        return "padding"
    if not np.array_equal(found.affine, expected.affine):
        return "affine"
    if explanations(found) != explanations(expected):
        return "explanations of windows"
    names = ("modality", "units", "photometric", "inverted", "space", "channels", "voi", "report")
    return ", ".join(n for n in names if getattr(found, n) != getattr(expected, n))


def explanations(volume: Volume) -> list[list[str]]:
    """They don't make windows unequal."""
    return [[choice.explanation for choice in choices] for choices in volume.voi]


def compare(series: Series, slices: list[int] | None = None, policies: Policies = KEEP) -> str:
    expected, warned = outcome(lambda: plain_read(plan_of(series), slices, policies))
    found, said = outcome(lambda: series.reader(slices, policies))
    if isinstance(found, Volume) and isinstance(expected, Volume):
        problem = difference(found, expected)
    else:
        problem = "" if found == expected else f"{found}, expected {expected}"
    return problem or ("" if said == warned else f"warnings {said}, expected {warned}")


def build_dicom_series(root: Path) -> Iterator[Series]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = medimg.scan(root)
    for series in index:
        if series.format == "DICOM" and np.prod(series.shape) < 2**27:
            yield series


@pytest.mark.slow
@pytest.mark.parametrize("part", ["dicom_misc", "cls/covid_ct_md_dev", "malformed"])
def test_every_real_series(real_data: Path, part: str) -> None:
    problems, compared = [], 0
    kinds = get_args(ValueKind)
    # of the largest part one kind of values of each series, where there is little time
    each = 1 if part == "dicom_misc" and not SLOW else len(kinds)
    found = list(build_dicom_series(real_data / part))
    first = {series.path: Path(series.files[0]) for series in found}
    chosen = set(of_each_kind(first.values()) if part == "dicom_misc" else first.values())
    for n, series in enumerate(s for s in found if first[s.path] in chosen):
        for kind in (kinds[(n + k) % len(kinds)] for k in range(each)):
            problem = compare(series, policies=replace(KEEP, values=kind))
            compared += 1
            if problem:
                problems.append(f"{series.path} ({kind}): {problem}")
    assert not problems, "\n".join(problems)
    assert compared > 5


studies = st.builds(
    Study,
    slices=st.integers(2, 7),
    times=st.sampled_from([1, 2]),
    bits_allocated=st.sampled_from([8, 16, 32]),
    bits_stored=st.sampled_from([5, 8, 12, 16, 31, 32]),
    signed=st.booleans(),
    dirty=st.booleans(),
    slope=st.sampled_from([1.0, 2.0, 0.5, -1.0, 4096.0]),
    intercept=st.sampled_from([0.0, -1024.0, 100000.0, 0.25]),
    syntax=st.sampled_from(["implicit", "little", "big", "deflated", "rle"]),
    shuffled=st.booleans(),
    instance_uids=st.booleans(),
    seed=st.integers(0, 9),
)


@settings(deadline=None, max_examples=80 if SLOW else 40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_generated_studies(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("study")
    try:
        write_dicom(data.draw(studies), folder)
    except ValueError:
        # more bits stored than allocated, or what pydicom does not encode
        reject()
    for series in build_dicom_series(folder):
        assert not compare(series)
        assert not compare(series, sorted({0, series.shape[1] - 1}))


def pictures(count: int, low: int, high: int, dtype: Any = np.int16) -> list[npt.NDArray[Any]]:
    rng = np.random.default_rng(count)
    return [rng.integers(low, high, (9, 11)).astype(dtype) for _ in range(count)]


def write_series(
    folder: Path, arrays: list[npt.NDArray[Any]], change: Callable[[Any, int], object] = lambda ds, n: None
) -> Series:
    for n, array in enumerate(arrays):
        ds = make_instance(array, ImagePositionPatient=[0, 0, n], InstanceNumber=n + 1)
        change(ds, n)
        write(ds, folder / f"{n:03d}.dcm")
    (series,) = medimg.scan(folder)
    return series


def test_later_slices_need_wider_types(tmp_path: Path) -> None:
    """int16, then int32, then float32: as stacking arrays of these gives."""
    slopes = ["1", "1", "1000", "1", "0.5", "1", "70000"]

    def change(ds: Any, n: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = slopes[n], "0"

    series = write_series(tmp_path, pictures(7, -2000, 30000), change)
    assert not compare(series)
    assert series.read().array.dtype == np.float64
    assert not compare(series, [0, 1, 2, 3])
    assert series.read([0, 1, 2, 3]).array.dtype == np.int32
    assert series.read([0, 1]).array.dtype == np.int16


def test_values_that_leave_int16_in_one_slice_only(tmp_path: Path) -> None:
    arrays = pictures(5, 0, 100, np.uint16)
    arrays[3][0, 0] = 65535

    def change(ds: Any, n: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = "1", "-1024"

    series = write_series(tmp_path, arrays, change)
    assert not compare(series)
    assert series.read().array.dtype == np.int32


@pytest.mark.parametrize("limit", [None, -1990])
def test_padding_of_some_slices(tmp_path: Path, limit: int | None) -> None:
    arrays = pictures(6, -1000, 1000)
    arrays[2][:3] = -2000
    arrays[4][5:] = -1995

    def change(ds: Any, n: int) -> None:
        ds.add_new("PixelPaddingValue", "SS", -2000)
        if limit is not None:
            ds.add_new("PixelPaddingRangeLimit", "SS", limit)

    series = write_series(tmp_path, arrays, change)
    assert not compare(series)
    padding = series.read().padding
    assert padding is not None
    assert padding[0].any(axis=(1, 2)).tolist() == [False, False, True, False, limit is not None, False]


def test_what_follows_the_pixels(tmp_path: Path) -> None:
    def change(ds: Any, n: int) -> None:
        if n % 2:
            ds.add_new(0xFFFCFFFC, "OB", b"\0" * 10)
        if n == 4:
            ds.add_new(0xFFFAFFFA, "SQ", [])

    assert not compare(write_series(tmp_path, pictures(6, 0, 1000), change))


def test_explanations_in_different_character_sets(tmp_path: Path) -> None:
    """The same bytes mean other letters."""

    def change(ds: Any, n: int) -> None:
        ds.SpecificCharacterSet = "ISO_IR 100" if n else "ISO_IR 144"
        ds.WindowCenter, ds.WindowWidth = str(40 + n), "400"
        ds.WindowCenterWidthExplanation = "Ö" if n else "ж"

    series = write_series(tmp_path, pictures(3, 0, 1000), change)
    assert not compare(series)
    assert [voi[0].explanation for voi in series.read().voi] == ["ж", "Ö", "Ö"]


def test_truncated_pixels(tmp_path: Path) -> None:
    series = write_series(tmp_path, pictures(6, 0, 1000))
    for n in (4, 2):
        path = Path(series.files[n])
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(TruncatedError, match="002"):
        series.read()
    assert not compare(series)
    assert not compare(series, [0, 1, 3])


def test_the_first_error_in_the_order_of_the_slices(tmp_path: Path) -> None:
    series = write_series(tmp_path, pictures(40, 0, 1000))
    for n in range(7, 40):
        Path(series.files[n]).unlink()
    for _ in range(5):
        with pytest.raises(medimg.errors.ReadError, match=r"007\.dcm"):
            series.read()


def test_an_image_of_another_size_in_place_of_one(tmp_path: Path) -> None:
    series = write_series(tmp_path, pictures(5, 0, 1000))
    ds = pydicom.dcmread(series.files[3])
    ds.Rows, ds.Columns = 3, 33
    ds.save_as(series.files[3])
    with pytest.raises(GeometryError, match="differs from the first"):
        series.read()
    assert not compare(series)


def test_an_image_replaced_between_scan_and_read(tmp_path: Path) -> None:
    series = write_series(tmp_path, pictures(5, 0, 1000))
    Path(series.files[3]).write_bytes(Path(series.files[2]).read_bytes())
    with pytest.raises(DecodeError, match="scan again"):
        series.read()
    assert not compare(series)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    series = write_series(tmp_path, pictures(3, 0, 1000))
    Path(series.files[1]).unlink()
    os.mkfifo(series.files[1])
    with pytest.raises(medimg.errors.ReadError, match="not a regular file"):
        series.read()


def test_only_the_files_of_the_slices_are_touched(tmp_path: Path) -> None:
    series = write_series(tmp_path, pictures(9, 0, 1000))
    whole = series.read()
    for n in (0, 2, 3, 6, 7, 8):
        Path(series.files[n]).unlink()
    some = series.read([1, 4, 5])
    assert np.array_equal(some.array, whole.array[:, [1, 4, 5]])
    assert [p.array.shape[1] for p in series.pieces(2, [1, 4, 5])] == [2, 1]


def test_usual_files_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fast way gives is compared above; here, that it is taken."""
    series = write_series(tmp_path, pictures(9, 0, 1000))

    def none(*_: object, **__: object) -> None:
        raise AssertionError("pydicom parses a file")

    monkeypatch.setattr("medimg.io.dicom.pixels._multi_frame_reader.open_dataset", none)
    series.read()
    list(series.pieces(4))


@pytest.fixture
def loaded_alone(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are not read together with others."""
    names: list[str] = []
    load = SingleFrameReader.load

    def spy(self: Any, instance: Any, slot: Any = None) -> Any:
        names.append(Path(instance.path).stem)
        return load(self, instance, slot)

    monkeypatch.setattr(SingleFrameReader, "load", spy)
    return names


needs_core = pytest.mark.skipif(load_library() is None, reason="files are read together by the compiled core")


@needs_core
def test_files_that_differ_in_pixels_are_read_together(tmp_path: Path, loaded_alone: list[str]) -> None:
    series = write_series(tmp_path, pictures(200, 0, 1000))
    series.read()
    assert loaded_alone == ["000"]
    loaded_alone.clear()
    list(series.pieces(7))
    assert loaded_alone == ["000"]


@needs_core
@pytest.mark.parametrize("odd", [1, 4])
def test_one_file_that_differs_is_read_by_itself(tmp_path: Path, loaded_alone: list[str], odd: int) -> None:
    def change(ds: Any, n: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = "1", "7" if n == odd else "-1024"

    series = write_series(tmp_path, pictures(9, 0, 1000), change)
    assert not compare(series)
    assert loaded_alone == ["000", f"{odd:03d}"]
    pieces = list(series.pieces(4))
    assert not difference(pieces[1], series.read([4, 5, 6, 7]))


@needs_core
def test_files_with_padding_are_not_read_twice(tmp_path: Path, loaded_alone: list[str]) -> None:
    arrays = pictures(30, -1000, 1000)
    for array in arrays:
        array[:2] = -2000
    series = write_series(tmp_path, arrays, lambda ds, n: ds.add_new("PixelPaddingValue", "SS", -2000))
    pieces = list(series.pieces(5))
    assert len(loaded_alone) == 30
    assert not difference(pieces[2], series.read(range(10, 15)))


@dataclass(frozen=True)
class Format:
    bits: int
    allocated: int
    signed: bool
    high: int
    slope: int
    intercept: int
    padding: tuple[int, int] | None


@pytest.mark.parametrize("size", [1, 2, 3, 9])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_padding_of_all_values_in_pieces(tmp_path: Path, size: int, dtype: Any) -> None:
    def change(ds: Any, n: int) -> None:
        low, high, vr = (0, 65535, "US") if dtype == np.uint16 else (-32768, 32767, "SS")
        ds.add_new("PixelPaddingValue", vr, low)
        ds.add_new("PixelPaddingRangeLimit", vr, high)

    series = write_series(tmp_path, pictures(6, 0, 1000, dtype), change)
    for piece in series.pieces(size):
        assert piece.padding is not None
        assert piece.padding.all()


def test_values_just_beyond_a_type_in_pieces(tmp_path: Path) -> None:
    """Quotients of numbers of 17 digits are not exact in float64."""

    def change(ds: Any, n: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = "-560000000000", str(16400 * 560000000000 + 32768)

    series = write_series(tmp_path, [np.full((2, 2), 16400, np.uint16)] * 4, change)
    for piece in series.pieces(2):
        assert piece.array.dtype == np.int32
        assert (piece.array == 32768).all()


@needs_core
@given(
    found=st.builds(
        Format,
        bits=st.integers(1, 16),
        allocated=st.sampled_from([8, 16, 16]),
        signed=st.booleans(),
        high=st.integers(0, 2),
        slope=st.integers(-3, 3).filter(bool),
        intercept=st.sampled_from([0, 1, -1024, 32767, -70000]),
        padding=st.none()
        | st.tuples(st.integers(-300, 300), st.integers(-300, 300))
        | st.sampled_from([(0, 255), (-128, 127), (0, 65535), (-32768, 32767)]),
    ),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_stored_values_of_any_format(
    tmp_path_factory: pytest.TempPathFactory, found: Format, seed: int
) -> None:
    """Bits outside of a value hold anything, as overlays once did."""
    rng = np.random.default_rng(seed)
    bits = min(found.bits, found.allocated)
    cells = [rng.integers(0, 2**found.allocated, (5, 6)).astype(f"u{found.allocated // 8}") for _ in range(9)]

    def change(ds: Any, n: int) -> None:
        ds.BitsAllocated, ds.BitsStored, ds.PixelRepresentation = found.allocated, bits, int(found.signed)
        ds.HighBit = min(bits - 1 + found.high, found.allocated - 1)
        ds.PixelData, ds["PixelData"].VR = cells[n].tobytes(), "OW"
        ds.RescaleSlope, ds.RescaleIntercept = str(found.slope), str(found.intercept)
        vr, least, most = ("SS", -(2**15), 2**15 - 1) if found.signed else ("US", 0, 2**16 - 1)
        for name, value in zip(("Value", "RangeLimit"), found.padding or (), strict=False):
            ds.add_new(f"PixelPadding{name}", vr, min(max(least, value), most))

    folder = tmp_path_factory.mktemp("formats")
    assert not compare(write_series(folder, [cell.astype(np.int16) for cell in cells], change))


@pytest.mark.parametrize("size", [1, 3, 8, 100])
@pytest.mark.parametrize("slices", [None, [0], [1, 2, 5, 6, 9]])
def test_pieces_are_parts_of_the_whole(tmp_path: Path, size: int, slices: list[int] | None) -> None:
    def change(ds: Any, n: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = "1", "-1024" if n < 5 else "7"

    series = write_series(tmp_path, pictures(10, 0, 1000), change)
    chosen = list(range(10)) if slices is None else slices
    pieces = list(series.pieces(size, slices))
    starts = range(0, len(chosen), size)
    assert len(pieces) == len(starts)
    for piece, start in zip(pieces, starts, strict=True):
        assert not difference(piece, series.read(chosen[start : start + size]))


def test_pieces_of_which_only_some_are_taken(tmp_path: Path) -> None:
    series = write_series(tmp_path, pictures(30, 0, 1000))
    before = threading.active_count()
    pieces = series.pieces(2)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]  # it is a generator
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.name.startswith("ThreadPoolExecutor"):
            thread.join(10)
    assert threading.active_count() <= before


def test_errors_of_pieces_come_in_their_turn(tmp_path: Path) -> None:
    series = write_series(tmp_path, pictures(10, 0, 1000))
    Path(series.files[5]).unlink()
    pieces = series.pieces(2)
    assert [next(pieces).shape[1], next(pieces).shape[1]] == [2, 2]
    with pytest.raises(medimg.errors.ReadError, match=r"005\.dcm"):
        next(pieces)


def test_pieces_warn_once_and_refuse_what_needs_the_whole(tmp_path: Path) -> None:
    series = write_series(
        tmp_path,
        pictures(10, 0, 1000),
        lambda ds, n: setattr(ds, "ImagePositionPatient", [0, 0, n + (n > 5)]),
    )
    with pytest.warns(medimg.errors.MedimgWarning) as caught:
        list(series.pieces(3, policies=Policies(on_missing="warn")))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.raises(GeometryError, match="pieces"):
        next(series.pieces(3, policies=Policies(on_missing="fix")))


def test_a_reader_of_one_file_is_not_one_of_another(tmp_path: Path) -> None:
    """What is learned from one header never passes for another that says something else."""
    first = write_series(tmp_path / "a", pictures(2, 0, 1000))
    second = write_series(
        tmp_path / "b", pictures(2, 0, 1000), lambda ds, n: setattr(ds, "RescaleIntercept", "-1000")
    )
    known = SingleFrameReader("auto", None)
    found = []
    for series in (first, second):
        loaded = known.load(plan_of(series).first.instance)
        assert loaded is not None
        found.append(loaded.transform.intercept)
    assert found[0] != found[1]
