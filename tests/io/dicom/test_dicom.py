"""Single-frame DICOM: pixels, geometry, policies, and what goes wrong."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian

import medimg
from medimg.core import geometry
from medimg.core.window import LookupTable, Window
from medimg.errors import (
    AmbiguousSeriesError,
    DecodeError,
    DuplicateSlicesError,
    GeometryError,
    MedimgError,
    MedimgWarning,
    MissingSlicesError,
    NotAnImageError,
    ReadError,
    SeriesError,
    TiltedGantryError,
    TruncatedError,
)
from tests.dicom_files import make_instance, stack_pixels, write, write_stack
from tests.io.dicom.encodings import codestream_size

RNG = np.random.default_rng(3)


def read_one(ds: Any, tmp_path: Path) -> medimg.Volume:
    return medimg.read(write(ds, tmp_path / "one.dcm"))


def pixels_12_bit(shape: tuple[int, ...] = (10, 14)) -> npt.NDArray[np.uint16]:
    return RNG.integers(0, 4096, shape).astype(np.uint16)


def test_hounsfield_units_and_affine(tmp_path: Path) -> None:
    stored = pixels_12_bit()
    volume = read_one(make_instance(stored), tmp_path)
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array[0, 0], stored.astype(int) - 1024)
    assert (volume.units, volume.modality, volume.orientation) == ("HU", "CT", "SPL")
    assert np.allclose(geometry.index_to_lps(volume.affine, (0, 2, 3)), [-10 + 3 * 0.6, -20 + 2 * 0.8, 30])


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_slices_are_sorted_by_position_and_never_by_name(tmp_path: Path, order: str) -> None:
    z = [-7.5, 5.0, 0.0, -2.5, 2.5, -5.0]
    names = [f"{n}.dcm" for n in (range(6) if order == "sorted" else (3, 1, 5, 0, 2, 4))]
    write_stack(tmp_path, z, names=names)
    volume = medimg.read(tmp_path)
    assert volume.spacing == pytest.approx((2.5, 0.8, 0.6))
    for d, place in enumerate(sorted(z)):
        assert np.array_equal(volume.array[0, d], stack_pixels(place).astype(int) - 1024)
        assert geometry.index_to_lps(volume.affine, (d, 0, 0))[2] == pytest.approx(place)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_uncompressed_syntaxes(tmp_path: Path, syntax: UID) -> None:
    stored = pixels_12_bit()
    ds = make_instance(stored)
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = stored.byteswap().tobytes()
    path = tmp_path / "one.dcm"
    pydicom.dcmwrite(
        path,
        ds,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=True,
    )
    assert np.array_equal(medimg.read(path).array[0, 0], stored.astype(int) - 1024)


def encode(name: str, stored: npt.NDArray[Any]) -> bytes:
    encoders = {
        "jpeg-lossless": lambda a: imagecodecs.jpeg8_encode(a, lossless=True, bitspersample=12, predictor=1),
        "jpeg-ls": imagecodecs.jpegls_encode,
        "jpeg-2000": lambda a: imagecodecs.jpeg2k_encode(a, level=0, reversible=True, codecformat="j2k"),
        "htj2k": imagecodecs.htj2k_encode,
    }
    return bytes(encoders[name](stored))


@pytest.mark.parametrize(
    ("name", "uid"),
    [
        ("jpeg-lossless", "1.2.840.10008.1.2.4.70"),
        ("jpeg-ls", "1.2.840.10008.1.2.4.80"),
        ("jpeg-2000", "1.2.840.10008.1.2.4.90"),
        ("htj2k", "1.2.840.10008.1.2.4.201"),
    ],
)
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_syntaxes(tmp_path: Path, name: str, uid: str, signed: bool) -> None:
    stored = pixels_12_bit((32, 40))
    ds = make_instance(stored, BitsStored=12, HighBit=11, PixelRepresentation=int(signed))
    ds.file_meta.TransferSyntaxUID = UID(uid)
    ds.PixelData = encapsulate([encode(name, stored)])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    meant = np.where(stored >= 2048, stored.astype(int) - 4096, stored) if signed else stored.astype(int)
    assert np.array_equal(read_one(ds, tmp_path).array[0, 0], meant - 1024)


def test_rle(tmp_path: Path) -> None:
    stored = pixels_12_bit()
    ds = make_instance(stored)
    ds.compress("1.2.840.10008.1.2.5", encoding_plugin="pydicom")
    assert np.array_equal(read_one(ds, tmp_path).array[0, 0], stored.astype(int) - 1024)


def test_dirty_high_bits_and_short_signed_values(tmp_path: Path) -> None:
    clean = np.array([[0, 2047], [2048, 4095]], np.uint16)
    dirty = clean | np.uint16(0xA000)
    ds = make_instance(dirty, BitsStored=12, HighBit=11, PixelRepresentation=1, RescaleIntercept=0)
    assert read_one(ds, tmp_path).array[0, 0].tolist() == [[0, 2047], [-2048, -1]]


def test_values_above_the_overlay_bits(tmp_path: Path) -> None:
    ds = make_instance(np.array([[0x1230, 0xFFF0]], np.uint16), BitsStored=12, HighBit=15, RescaleIntercept=0)
    assert read_one(ds, tmp_path).array[0, 0].tolist() == [[0x123, 0xFFF]]


def test_fractions_make_floats_and_whole_numbers_stay_whole(tmp_path: Path) -> None:
    stored = pixels_12_bit()
    assert read_one(make_instance(stored, RescaleSlope=2), tmp_path).array.dtype == np.int16
    fine = read_one(make_instance(stored, RescaleSlope="0.5"), tmp_path)
    assert fine.array.dtype == np.float32
    assert np.allclose(fine.array[0, 0], stored * 0.5 - 1024)


def test_padding_is_marked_in_stored_values(tmp_path: Path) -> None:
    stored = np.array([[-2000, 24, 1024, -1999]], np.int16)
    ds = make_instance(stored)
    ds.add_new(0x00280120, "US", 63536)
    volume = read_one(ds, tmp_path)
    assert volume.padding is not None
    assert volume.padding[0, 0].tolist() == [[True, False, False, False]]
    assert volume.array[0, 0, 0, 0] == -3024
    ds.add_new(0x00280121, "SS", -1990)
    padding = read_one(ds, tmp_path).padding
    assert padding is not None
    assert padding[0, 0].tolist() == [[True, False, False, True]]


def lut(first: int, values: list[int], bits: int = 16, vr: str = "SS") -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, vr, [len(values), first, bits])
    item.add_new(0x00283006, "OW", np.asarray(values, "<u2").tobytes())
    return item


def test_modality_lut(tmp_path: Path) -> None:
    ds = make_instance(
        np.array([[0, 5, 6, 99]], np.uint16), Modality="CR", RescaleSlope=None, RescaleIntercept=None
    )
    item = lut(5, [100, 200, 300], vr="US")
    item.ModalityLUTType = "US"
    ds.ModalityLUTSequence = Sequence([item])
    volume = read_one(ds, tmp_path)
    assert volume.array[0, 0].tolist() == [[100, 100, 200, 300]]
    assert "modality LUT" in volume.report.transforms[0]


def test_declared_windows_and_tables(tmp_path: Path) -> None:
    ds = make_instance(pixels_12_bit())
    ds.WindowCenter, ds.WindowWidth = [40, -600, 1], [400, 1500, 0]
    ds.WindowCenterWidthExplanation = ["SOFT", "LUNG", "BROKEN"]
    ds.VOILUTFunction = "SIGMOID"
    ds.VOILUTSequence = Sequence([lut(-1024, [0, 1, 2], bits=2)])
    with pytest.warns(MedimgWarning, match="WindowWidth is 0"):
        table, soft, lung = read_one(ds, tmp_path).voi[0]
    assert isinstance(table, LookupTable)
    assert (table.first, table.maximum) == (-1024, 3)
    assert (soft, lung) == (Window(40, 400, "SIGMOID"), Window(-600, 1500, "SIGMOID"))
    assert isinstance(lung, Window)
    assert lung.explanation == "LUNG"


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_inversion_never_touches_values(tmp_path: Path, photometric: str, shape: str, inverted: bool) -> None:
    stored = pixels_12_bit()
    ds = make_instance(stored, PhotometricInterpretation=photometric)
    ds.PresentationLUTShape = shape
    volume = read_one(ds, tmp_path)
    assert volume.inverted is inverted
    assert np.array_equal(volume.array[0, 0], stored.astype(int) - 1024)


@pytest.mark.parametrize("planar", [0, 1])
def test_color(tmp_path: Path, planar: int) -> None:
    rgb = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    ds = make_instance(rgb, Modality="US", PlanarConfiguration=planar)
    if planar:
        ds.PixelData = np.ascontiguousarray(np.moveaxis(rgb, -1, 0)).tobytes()
    volume = read_one(ds, tmp_path)
    assert volume.is_color
    assert np.array_equal(volume.array[:, 0], np.moveaxis(rgb, -1, 0))


def test_ycc_becomes_rgb(tmp_path: Path) -> None:
    ycc = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    volume = read_one(make_instance(ycc, PhotometricInterpretation="YBR_FULL"), tmp_path)
    expected = pydicom.pixels.processing.convert_color_space(ycc, "YBR_FULL", "RGB")
    assert np.abs(np.moveaxis(volume.array[:, 0], 0, -1).astype(int) - expected).max() <= 1


def test_palette(tmp_path: Path) -> None:
    ds = make_instance(np.array([[0, 1, 2, 3]], np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for name, values in (("Red", [0, 10, 20, 30]), ("Green", [1, 2, 3, 4]), ("Blue", [9, 8, 7, 6])):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [4, 0, 8])
        setattr(ds, f"{name}PaletteColorLookupTableData", bytes(values))
    volume = read_one(ds, tmp_path)
    assert volume.array[:, 0, 0].tolist() == [[0, 10, 20, 30], [1, 2, 3, 4], [9, 8, 7, 6]]


def test_several_series_are_listed_and_one_can_be_named(tmp_path: Path) -> None:
    write_stack(tmp_path / "a", [0, 1, 2], SeriesInstanceUID="1.1", SeriesDescription="PLAIN")
    write_stack(tmp_path / "b", [0, 1], SeriesInstanceUID="1.2", SeriesDescription="CONTRAST")
    with pytest.raises(AmbiguousSeriesError) as caught:
        medimg.read(tmp_path)
    for part in ("2 series", "PLAIN", "CONTRAST", "1.1", "1.2", "1×3×12×16"):
        assert part in str(caught.value)
    assert medimg.read(tmp_path, series="1.2").shape[1] == 2
    assert medimg.read(tmp_path, series=0).shape[1] == 3
    with pytest.raises(SeriesError, match=r"1\.3"):
        medimg.read(tmp_path, series="1.3")


def test_mixed_sizes_and_localizers_are_series_of_their_own(tmp_path: Path) -> None:
    write_stack(tmp_path, [0, 1, 2])
    write(make_instance(np.zeros((8, 8), np.uint16)), tmp_path / "small.dcm")
    scout = make_instance(stack_pixels(9), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write(scout, tmp_path / "scout.dcm")
    index = medimg.scan(tmp_path)
    assert sorted(s.shape[1] for s in index) == [1, 1, 3]
    assert len({s.uid for s in index}) == 3
    with pytest.raises(AmbiguousSeriesError):
        medimg.read(tmp_path)


def test_echoes_at_the_same_positions_are_not_interleaved(tmp_path: Path) -> None:
    for echo in (1, 2):
        write_stack(tmp_path / f"e{echo}", [0, 1, 2], Modality="MR", EchoNumbers=echo)
    index = medimg.scan(tmp_path)
    assert [s.shape for s in index] == [(1, 3, 12, 16)] * 2
    assert {i for s in index for i in (s.uid,)} == {"1.2.3.4", "1.2.3.4#2"}


def test_x_rays_of_one_series_are_images_of_their_own(tmp_path: Path) -> None:
    for n in range(2):
        ds = make_instance(
            pixels_12_bit(), Modality="DX", ImagePositionPatient=None, ImageOrientationPatient=None
        )
        write(ds, tmp_path / f"{n}.dcm")
    assert [s.shape[1] for s in medimg.scan(tmp_path)] == [1, 1]
    volume = medimg.read(tmp_path / "0.dcm")
    assert volume.space == "image"
    assert volume.spacing[1:] == (0.8, 0.6)


def test_a_missing_slice(tmp_path: Path) -> None:
    write_stack(tmp_path, [0, 2, 4, 8, 10])
    with pytest.raises(MissingSlicesError, match="1 after slice 2"):
        medimg.read(tmp_path)
    with pytest.warns(MedimgWarning, match="1 after slice 2"):
        warned = medimg.read(tmp_path, on_missing="warn")
    kept = medimg.read(tmp_path, on_missing="keep")
    assert warned.shape[1] == kept.shape[1] == 5
    assert kept.spacing[0] == pytest.approx(2)
    assert kept.report.missing == (2,)
    fixed = medimg.read(tmp_path, on_missing="fix")
    assert np.array_equal(fixed.array[0, 3], stack_pixels(6).astype(int) - 1024)


def test_a_duplicate_slice(tmp_path: Path) -> None:
    paths = write_stack(tmp_path, [0, 2, 4])
    (tmp_path / "again.dcm").write_bytes(paths[1].read_bytes())
    with pytest.raises(DuplicateSlicesError):
        medimg.read(tmp_path, on_duplicate="raise")
    with pytest.warns(MedimgWarning, match="position of another"):
        warned = medimg.read(tmp_path)
    fixed = medimg.read(tmp_path, on_duplicate="fix")
    for volume in (warned, fixed):
        assert volume.shape[1] == 3
        assert volume.spacing[0] == pytest.approx(2)
        assert len(volume.report.duplicates) == 1
    assert medimg.read(tmp_path, on_duplicate="keep").shape[1] == 4


def test_another_image_at_the_same_position_is_an_error(tmp_path: Path) -> None:
    write_stack(tmp_path, [0, 2, 4])
    other = make_instance(stack_pixels(99), ImagePositionPatient=[-10, -20, 2])
    write(other, tmp_path / "other.dcm")
    for policy in ("raise", "warn", "fix"):
        with pytest.raises(DuplicateSlicesError):
            medimg.read(tmp_path, on_duplicate=policy)


CODED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "PixelRepresentation": ("US", (0, 1)),
    "PlanarConfiguration": ("US", (0, 1)),
    "SamplesPerPixel": ("US", (1, 3)),
    "BitsAllocated": ("US", (1, 8, 16, 32)),
    "PhotometricInterpretation": ("CS", ("MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR")),
    "VOILUTFunction": ("CS", ("LINEAR", "LINEAR_EXACT", "SIGMOID")),
    "PresentationLUTShape": ("CS", ("IDENTITY", "INVERSE", "LIN OD")),
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keyword=st.sampled_from(sorted(CODED)), bit=st.integers(0, 63), choice=st.integers(0, 7))
def test_a_coded_attribute_has_a_defined_value_or_is_an_error(
    tmp_path: Path, keyword: str, bit: int, choice: int
) -> None:
    """One flipped bit: another defined value, white space, or an error."""
    vr, defined = CODED[keyword]
    ds = make_instance(np.full((8, 8), -24, np.int16), WindowCenter=40, WindowWidth=400)
    before = ds.get(keyword)
    if before is None:
        before = defined[choice % len(defined)]
    if vr == "US":
        after: Any = before ^ (1 << bit % 16)
    else:
        text = bytearray(str(before).encode())
        text[bit // 8 % len(text)] ^= 1 << bit % 8
        after = text.decode("latin-1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.add_new(keyword, vr, after)
        path = write(ds, tmp_path / "x.dcm")
    read_back = after.strip(" \0").upper() if vr == "CS" else after
    if read_back in (*defined, ""):
        return
    with pytest.raises(DecodeError):
        medimg.read(path)


def test_a_lut_declares_its_bits_and_all_its_entries(tmp_path: Path) -> None:
    for bits, entries, message in (
        (0, [1, 2, 3], "0 bits"),
        (48, [1, 2, 3], "48 bits"),
        (8, [1] * 9, "holds"),
    ):
        ds = make_instance(np.zeros((8, 8), np.uint16))
        del ds.RescaleSlope, ds.RescaleIntercept
        item = lut(0, entries, bits=bits)
        item.LUTDescriptor[0] = min(len(entries), 3)
        ds.ModalityLUTSequence = Sequence([item])
        with pytest.raises(DecodeError, match=message):
            read_one(ds, tmp_path)


def test_a_damaged_unit_is_not_hounsfield(tmp_path: Path) -> None:
    assert read_one(make_instance(np.zeros((8, 8), np.int16), RescaleType="HU"), tmp_path).units == "HU"
    ds = make_instance(np.zeros((8, 8), np.int16), RescaleType="H\x15")
    with pytest.warns(MedimgWarning, match="RescaleType"):
        assert read_one(ds, tmp_path).units == "raw"


@pytest.mark.parametrize("renamed", [False, True])
def test_each_of_many_copies_counts(tmp_path: Path, renamed: bool) -> None:
    """Copies of files, and images sent again under another UID."""
    write_stack(tmp_path, [0.0, 2.0, 4.0])
    originals = sorted(tmp_path.iterdir())
    for n in range(27):
        ds = pydicom.dcmread(originals[n % 3])
        if renamed:
            ds.SOPInstanceUID = f"1.2.{n}"
        ds.save_as(tmp_path / f"copy {n}")
    (series,) = index = medimg.scan(tmp_path)
    assert len(set(series.files)) + len(index.skipped) == 30
    assert list(series.files[:3]) == sorted(series.files[:3])
    with pytest.warns(MedimgWarning, match="27 of 30 image"):
        volume = series.read()
    assert volume.shape[1] == 3
    assert set(volume.report.files) | set(volume.report.duplicates) == set(series.files)
    assert len(volume.report.duplicates) == 27
    assert series.read(on_duplicate="keep").shape[1] == 30


@pytest.mark.parametrize("aside", [1.5, 8.0])
@pytest.mark.parametrize("which", [0, 2, 4])
def test_a_displaced_slice_does_not_move_the_others(tmp_path: Path, aside: float, which: int) -> None:
    write_stack(tmp_path, [2.0 * n for n in range(5)])
    path = sorted(tmp_path.iterdir())[which]
    ds = pydicom.dcmread(path)
    ds.ImagePositionPatient = [ds.ImagePositionPatient[0] + aside, *ds.ImagePositionPatient[1:]]
    ds.save_as(path)
    for policy in ("raise", "warn", "fix"):
        with pytest.raises(GeometryError, match="half of the slice distance"):
            medimg.read(tmp_path, on_tilt=policy)
        with pytest.raises(GeometryError, match="half of the slice distance"):
            next(medimg.scan(tmp_path)[0].pieces(2))
    with pytest.warns(MedimgWarning, match="differs from the stated position"):
        assert medimg.read(tmp_path, on_tilt="keep").shape[1] == 5


@pytest.mark.parametrize(("aside", "plausible"), [(0.57, True), (0.59, False), (-2.0, False)])
def test_no_gantry_tilts_by_more_than_30_degrees(tmp_path: Path, aside: float, plausible: bool) -> None:
    for n in range(4):
        position = [0.0, aside * n, float(n)]
        write(
            make_instance(np.full((8, 8), n, np.int16), ImagePositionPatient=position), tmp_path / f"{n}.dcm"
        )
    if plausible:
        with pytest.warns(MedimgWarning, match="tilted gantry"):
            medimg.read(tmp_path)
    else:
        for policy in ("raise", "warn", "fix"):
            with pytest.raises(TiltedGantryError, match="no gantry tilts"):
                medimg.read(tmp_path, on_tilt=policy)
        assert medimg.read(tmp_path, on_tilt="keep").report.tilt > 30


def test_distances_that_drift_are_not_averaged(tmp_path: Path) -> None:
    """Each differs by 5 % from the median, but the mean distance is off by several slices in the middle."""
    heights = np.cumsum([0.0, *[1.9] * 40, *[2.1] * 40])
    write_stack(tmp_path, heights.round(4).tolist())
    with pytest.raises(GeometryError, match="vary too much for one affine"):
        medimg.read(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MedimgWarning)
        assert medimg.read(tmp_path, on_missing="keep").shape[1] == 81


def test_a_tilted_gantry(tmp_path: Path) -> None:
    write_stack(tmp_path, [0, 2, 4, 6], shear=0.4)
    with pytest.raises(TiltedGantryError, match=r"21\.8"):
        medimg.read(tmp_path, on_tilt="raise")
    with pytest.warns(MedimgWarning, match=r"21\.8"):
        warned = medimg.read(tmp_path)
    assert np.allclose(geometry.index_to_lps(warned.affine, (3, 0, 0)), [-10, -20 + 2.4, 6])
    fixed = medimg.read(tmp_path, on_tilt="fix")
    assert np.allclose(fixed.affine[:3, 0], [0, 0, 2])
    # slice 2 lies 1.6 mm, two rows of 0.8 mm, further back; slice 3, three rows
    assert fixed.shape == (1, 4, 15, 16)
    assert np.array_equal(fixed.array[0, 2, 2:-1], warned.array[0, 2])
    assert np.allclose(geometry.index_to_lps(fixed.affine, (2, 2, 0)), [-10, -20 + 1.6, 4])
    assert fixed.padding is not None
    assert fixed.padding[0, 2, :2].all()
    assert not fixed.padding[0, 2, 2:-1].any()


def test_ct_without_positions_goes_by_number_and_says_so(tmp_path: Path) -> None:
    for n in range(3):
        ds = make_instance(stack_pixels(n), InstanceNumber=3 - n, ImagePositionPatient=None)
        write(ds, tmp_path / f"{n}.dcm")
    with pytest.warns(MedimgWarning, match="Instance Number"):
        volume = medimg.read(tmp_path)
    assert volume.space == "image"
    assert np.array_equal(volume.array[0, 0], stack_pixels(2).astype(int) - 1024)


def test_choosing_slices_reads_only_those(tmp_path: Path) -> None:
    paths = write_stack(tmp_path, [0, 2, 4, 6])
    series = medimg.scan(tmp_path)[0]
    paths[0].unlink()
    volume = series.read([1, 3])
    assert volume.shape[1] == 2
    assert volume.spacing[0] == pytest.approx(4)
    with pytest.raises(ReadError, match="no file"):
        series.read([0])


def test_junk_is_skipped_and_listed(tmp_path: Path) -> None:
    write_stack(tmp_path, [0, 2])
    (tmp_path / "notes.txt").write_text("a text of more than a hundred and thirty-two bytes " * 5)
    (tmp_path / "empty").touch()
    (tmp_path / "report.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"junk" * 50)
    index = medimg.scan(tmp_path)
    assert len(index) == 1
    assert {Path(s.path).name for s in index.skipped} == {"notes.txt", "empty", "report.dcm"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MedimgWarning)
        assert len(medimg.read(tmp_path).report.skipped) == 3


@pytest.mark.parametrize("kind", ["empty folder", "text", "nothing"])
def test_what_is_no_image(tmp_path: Path, kind: str) -> None:
    target = tmp_path
    if kind == "text":
        target = tmp_path / "notes.txt"
        target.write_text("hello")
    if kind == "nothing":
        with pytest.raises(ReadError, match="no file or folder"):
            medimg.read(tmp_path / "nothing")
        return
    with pytest.raises(NotAnImageError, match=r"expected DICOM|none of DICOM"):
        medimg.read(target)


@pytest.mark.parametrize("keep", [200, 700, -40])
def test_truncated_files(tmp_path: Path, keep: int) -> None:
    path = write(make_instance(pixels_12_bit((40, 40))), tmp_path / "one.dcm")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises((TruncatedError, NotAnImageError, ReadError)):
        medimg.read(path)


LOSSY = {
    "jpeg": lambda a: imagecodecs.jpeg8_encode((a >> 4).astype(np.uint8), level=95),
    "jpeg-12": lambda a: imagecodecs.jpeg8_encode(a, level=95, bitspersample=12),
}


@pytest.mark.parametrize(
    ("name", "uid", "bits"),
    [
        ("jpeg", "1.2.840.10008.1.2.4.50", 8),
        ("jpeg-12", "1.2.840.10008.1.2.4.51", 12),
        ("jpeg-lossless", "1.2.840.10008.1.2.4.70", 12),
        ("jpeg-ls", "1.2.840.10008.1.2.4.80", 12),
        ("jpeg-2000", "1.2.840.10008.1.2.4.90", 12),
        ("htj2k", "1.2.840.10008.1.2.4.201", 12),
    ],
)
def test_truncated_codestreams_are_errors_and_not_gray(
    tmp_path: Path, name: str, uid: str, bits: int
) -> None:
    stored = pixels_12_bit((64, 64))
    stream = bytes(LOSSY[name](stored)) if name in LOSSY else encode(name, stored)
    ds = make_instance(stored if bits > 8 else stored.astype(np.uint8), BitsStored=bits, HighBit=bits - 1)
    ds.file_meta.TransferSyntaxUID = UID(uid)
    ds["PixelData"].VR = "OB"
    ds.PixelData = encapsulate([stream])
    assert read_one(ds, tmp_path).shape == (1, 1, 64, 64)
    ds.PixelData = encapsulate([stream[: len(stream) // 2]])
    with pytest.raises((TruncatedError, DecodeError)):
        read_one(ds, tmp_path)


def test_jpeg_xl(tmp_path: Path) -> None:
    stored = pixels_12_bit((32, 48))
    ds = make_instance(stored)
    # pydicom does not write this syntax yet
    ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.201")
    ds["PixelData"].VR = "OB"
    ds.PixelData = encapsulate([bytes(imagecodecs.jpegxl_encode(stored, lossless=True))])
    path = write(ds, tmp_path / "one.dcm")
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.201", b"1.2.840.10008.1.2.4.110", 1))
    assert np.array_equal(medimg.read(path).array[0, 0], stored.astype(int) - 1024)


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2.4.999", "1.3.6.1.4.1.9999.1", "SENTINEL"])
def test_unknown_syntaxes_are_not_read_as_raw_pixels(tmp_path: Path, uid: str) -> None:
    ds = make_instance(pixels_12_bit((32, 32)))
    path = write(ds, tmp_path / "one.dcm")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", uid.encode().ljust(20, b"\0")[:20], 1))
    with pytest.raises(MedimgError) as caught:
        medimg.read(path)
    assert "SENTINEL" not in str(caught.value)


def test_rle_keeps_the_place_of_its_bits(tmp_path: Path) -> None:
    stored = np.array([[0x1230, 0xFFF0] * 8] * 4, np.uint16)
    ds = make_instance(stored, BitsStored=12, HighBit=15, RescaleIntercept=0)
    ds.compress("1.2.840.10008.1.2.5", encoding_plugin="pydicom")
    assert read_one(ds, tmp_path).array[0, 0, 0, :2].tolist() == [0x123, 0xFFF]


def test_a_codestream_of_another_size_is_refused_before_decoding(tmp_path: Path) -> None:
    ds = make_instance(pixels_12_bit((16, 16)), BitsStored=12, HighBit=11)
    ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.90")
    ds.PixelData = encapsulate([encode("jpeg-2000", pixels_12_bit((64, 64)))])
    ds["PixelData"].VR = "OB"
    with pytest.raises(DecodeError, match=r"\(64, 64, 1\)"):
        read_one(ds, tmp_path)


@pytest.mark.parametrize("name", ["jpeg-lossless", "jpeg-ls", "jpeg-2000", "htj2k"])
def test_codestreams_tell_their_size(name: str) -> None:
    assert codestream_size(encode(name, pixels_12_bit((24, 36)))) == (24, 36, 1)


def test_other_data_is_not_taken_for_a_codestream() -> None:
    assert codestream_size(b"\x01\x00\x00\x00" + b"\xff\x4f\xff\x51" * 20) is None
    assert codestream_size(b"") is None


@pytest.mark.parametrize(
    "attributes",
    [
        {"BitsAllocated": 12},
        {"BitsStored": 17},
        {"HighBit": 3},
        {"SamplesPerPixel": 2},
        {"RescaleSlope": 0},
        {"Rows": 60000, "Columns": 60000},
        {"PhotometricInterpretation": "HSV"},
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
    ],
)
def test_contradictory_headers(tmp_path: Path, attributes: dict[str, Any]) -> None:
    with pytest.raises(MedimgError):
        read_one(make_instance(pixels_12_bit(), **attributes), tmp_path)


def test_frames_without_places_are_stacked_in_the_order_of_the_file(tmp_path: Path) -> None:
    pixels = pixels_12_bit()
    ds = make_instance(pixels, NumberOfFrames=2)
    ds.PixelData = ds.PixelData + np.flip(pixels).tobytes()
    with pytest.warns(MedimgWarning, match="order of the file"):
        volume = medimg.read(write(ds, tmp_path / "a.dcm"))
    assert volume.space == "image"
    assert volume.shape[:2] == (1, 2)
    assert np.array_equal(volume.array[0, 1], np.flip(volume.array[0, 0]))
    assert volume.report.frame_numbers == (1, 2)


def test_no_patient_in_messages(tmp_path: Path) -> None:
    write_stack(tmp_path / "a", [0, 2, 8], SeriesInstanceUID="1.1")
    write_stack(tmp_path / "b", [0, 2], SeriesInstanceUID="1.2")
    texts = [repr(medimg.scan(tmp_path)), *(repr(s) for s in medimg.scan(tmp_path))]
    for source in (tmp_path, tmp_path / "a"):
        with pytest.raises(MedimgError) as caught:
            medimg.read(source)
        texts.append(str(caught.value))
    assert not any("sentinel" in text.lower() for text in texts)


def test_the_index_as_a_table(tmp_path: Path) -> None:
    write_stack(tmp_path, [0, 2, 4])
    table = medimg.scan(tmp_path).to_pandas()
    row = table.iloc[0].to_dict()
    assert (row["slices"], row["rows"], row["columns"], row["modality"]) == (3, 12, 16, "CT")
    assert medimg.scan(tmp_path, workers=4).to_pandas().equals(table)
