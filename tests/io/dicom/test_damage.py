"""Damaged and odd files: never wrong values without a word, never another error, never a patient's name."""

from __future__ import annotations

import io
import logging
import resource
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageOps
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, EnhancedCTImageStorage, ExplicitVRBigEndian, SecondaryCaptureImageStorage

import medimg
from medimg.core.window import LookupTable
from medimg.errors import (
    DecodeError,
    DuplicateSlicesError,
    MedimgError,
    MedimgWarning,
    MissingSlicesError,
    ReadError,
)
from tests.dicom_files import make_instance, stack_pixels, write, write_stack
from tests.sampling import SLOW


def test_a_wrong_length_shows_nobody(tmp_path: Path) -> None:
    """A length byte off by 256 makes a UID swallow its neighbors, the name and ID of the patient."""
    ds = make_instance(stack_pixels(0))
    data = write(ds, tmp_path / "one.dcm").read_bytes()
    assert data.lower().count(b"sentinel") == 2
    for tag in (b"\x08\x00\x16\x00UI", b"\x08\x00\x18\x00UI", b"\x08\x00\x60\x00CS", b"\x20\x00\x0e\x00UI"):
        at = data.index(tag) + 7
        (tmp_path / "one.dcm").write_bytes(data[:at] + bytes([data[at] + 1]) + data[at + 1 :])
        index = medimg.scan(tmp_path)
        texts = [repr(index), *(s.reason for s in index.skipped), *(s.summary() for s in index)]
        try:
            texts.append(repr(medimg.read(tmp_path / "one.dcm")))
        except MedimgError as error:
            texts.append(str(error))
        assert not any("sentinel" in text.lower() for text in texts), texts


def test_random_damage_gives_a_volume_or_a_medimg_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    caplog.set_level(logging.DEBUG)
    samples = {"one.dcm": write(make_instance(stack_pixels(0)), tmp_path / "one.dcm").read_bytes()}
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stack_pixels(0).astype(np.uint8)).save(buffer, "JPEG", exif=exif)
    samples["one.jpg"] = buffer.getvalue()
    read, said = 0, []
    for name, whole in samples.items():
        for _ in range(400 if SLOW else 200):
            data = bytearray(whole)
            start = 132 if name.endswith("dcm") else 0
            for place in rng.integers(start, len(data), rng.integers(1, 5)):
                data[place] = rng.integers(256)
            path = tmp_path / name
            path.write_bytes(bytes(data))
            try:
                read += medimg.read(path).array.ndim == 4
            except (MedimgError, MedimgWarning) as problem:
                said.append(str(problem).lower())
    assert read > (100 if SLOW else 50)
    assert not any("sentinel" in text for text in said)
    assert "sentinel" not in caplog.text.lower()


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_an_unreadable_rescale_is_not_taken_for_none(tmp_path: Path, keyword: str) -> None:
    ds = make_instance(stack_pixels(0), SOPInstanceUID="1.2.3", **{keyword: "2048"})
    path = write(ds, tmp_path / "one.dcm")
    path.write_bytes(path.read_bytes().replace(b"2048", b"20,8", 1))
    with pytest.raises(DecodeError, match=keyword):
        medimg.read(path)


def test_an_empty_rescale_is_none(tmp_path: Path) -> None:
    ds = make_instance(stack_pixels(0), RescaleSlope="", RescaleIntercept="")
    volume = medimg.read(write(ds, tmp_path / "one.dcm"))
    assert np.array_equal(volume.array[0, 0], stack_pixels(0))
    assert volume.units == "raw"


@pytest.mark.filterwarnings("ignore:2 frames without positions")
@pytest.mark.parametrize("stored", [0, 7])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("multiframe", [False, True])
def test_a_slope_of_0_loses_nothing_where_all_pixels_are_equal(
    tmp_path: Path, stored: int, padded: bool, multiframe: bool
) -> None:
    """As PET writes a slice without counts; the others of the series have slopes of their own."""
    others = {"PixelPaddingValue": 9} if padded else {}
    blank = np.full((4, 5), stored, np.int16)
    if padded:
        blank[0] = 9
    if multiframe:
        ds = make_instance(blank, RescaleSlope=0, RescaleIntercept=-3, NumberOfFrames=2, **others)
        ds.PixelData = blank.tobytes() * 2
        volume = medimg.read(write(ds, tmp_path / "two.dcm"))
    else:
        for n, slope in enumerate((0, 1.5, 2)):
            pixels = blank if slope == 0 else np.full((4, 5), 100 * n, np.int16)
            ds = make_instance(
                pixels, RescaleSlope=slope, RescaleIntercept=-3, ImagePositionPatient=[0, 0, 3 * n], **others
            )
            write(ds, tmp_path / f"{n}.dcm")
        volume = medimg.read(tmp_path)
        assert volume.array[0, 1:, 0, 0].tolist() == [147, 397]
    assert np.all(volume.array[0, 0, 1:] == -3)


def test_a_slope_of_0_that_loses_values_is_an_error(tmp_path: Path) -> None:
    path = write(make_instance(stack_pixels(0), RescaleSlope=0), tmp_path / "one.dcm")
    with pytest.raises(DecodeError, match="Rescale Slope is 0"):
        medimg.read(path)


def test_hounsfield_units_take_a_rescale(tmp_path: Path) -> None:
    ds = make_instance(
        stack_pixels(0), RescaleSlope=None, RescaleIntercept=None, SOPClassUID=SecondaryCaptureImageStorage
    )
    assert medimg.read(write(ds, tmp_path / "one.dcm")).units == "raw"


def test_an_enhanced_ct_of_one_frame_is_not_read_as_a_plain_one(tmp_path: Path) -> None:
    rescale, group = Dataset(), Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = 2, -7
    group.PixelValueTransformationSequence = [rescale]
    ds = make_instance(
        stack_pixels(0),
        SOPClassUID=EnhancedCTImageStorage,
        NumberOfFrames=1,
        PerFrameFunctionalGroupsSequence=[group],
    )
    ds.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    volume = medimg.read(write(ds, tmp_path / "one.dcm"))
    assert np.array_equal(volume.array[0, 0], 2 * stack_pixels(0).astype(int) - 7)


def test_fewer_functional_groups_than_frames_are_an_error(tmp_path: Path) -> None:
    ds = make_instance(
        stack_pixels(0), NumberOfFrames=2, PerFrameFunctionalGroupsSequence=[Dataset()], PatientID="SECRET"
    )
    ds.PixelData = ds.PixelData * 2
    with pytest.raises(DecodeError, match="1 of 2 frames"):
        medimg.read(write(ds, tmp_path / "two.dcm"))


def test_more_frames_than_the_file_can_hold_cost_nothing(tmp_path: Path) -> None:
    ds = make_instance(stack_pixels(0), NumberOfFrames=2**31 - 1)
    with pytest.raises(DecodeError, match="2147483647 frames"):
        medimg.read(write(ds, tmp_path / "many.dcm"))


def test_different_pixel_spacings_are_different_series(tmp_path: Path) -> None:
    write_stack(tmp_path / "a", [0, 1], PixelSpacing=[1, 1])
    write_stack(tmp_path / "b", [2, 3], PixelSpacing=[0.5, 0.5])
    assert sorted(s.spacing[1] for s in medimg.scan(tmp_path)) == [0.5, 1.0]


def test_magnitude_and_phase_are_told_apart(tmp_path: Path) -> None:
    for kind in ("M", "P"):
        image_type = ["ORIGINAL", "PRIMARY", kind]
        write_stack(tmp_path / kind, [0, 1, 2], Modality="MR", ImageType=image_type)
    assert [s.shape[1] for s in medimg.scan(tmp_path)] == [3, 3]


def test_a_copied_file_does_not_hide_echoes(tmp_path: Path) -> None:
    for echo in (1, 2):
        paths = write_stack(tmp_path / f"e{echo}", [0, 1, 2], Modality="MR", EchoNumbers=echo)
    (tmp_path / "copy.dcm").write_bytes(paths[0].read_bytes())
    assert [s.shape[1] for s in medimg.scan(tmp_path)] == [3, 3]


def test_keeping_duplicates_and_fixing_by_position_exclude_each_other(tmp_path: Path) -> None:
    paths = write_stack(tmp_path, [0, 1, 2, 4, 5])
    (tmp_path / "again.dcm").write_bytes(paths[1].read_bytes())
    with pytest.raises(DuplicateSlicesError, match="keep"):
        medimg.read(tmp_path, on_duplicate="keep", on_missing="fix")
    kept = medimg.read(tmp_path, on_duplicate="keep", on_missing="keep")
    assert any("does not give their positions" in note for note in kept.report.warnings)


def test_a_position_far_away_is_not_filled_up_to(tmp_path: Path) -> None:
    write_stack(tmp_path, [0, 1, 2, 3, 90000])
    with pytest.raises(MissingSlicesError, match="too few"):
        medimg.read(tmp_path, on_missing="fix")


@pytest.mark.parametrize(
    "attributes",
    [
        {"ImagePositionPatient": [0, 0, 1e308]},
        {"ImageOrientationPatient": [1e308, 0, 0, 0, 1e308, 0]},
        {"PixelSpacing": [1e308, 1e308]},
        {"SpacingBetweenSlices": 1e308},
    ],
)
def test_absurd_geometry_does_not_raise_in_a_scan(tmp_path: Path, attributes: dict[str, Any]) -> None:
    write(make_instance(stack_pixels(0), **attributes), tmp_path / "one.dcm")
    index = medimg.scan(tmp_path)
    assert len(index) + len(index.skipped) == 1


def tables(bits: int, data: bytes, count: int) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US", [count, 0, bits])
    item.add_new(0x00283006, "OW", data)
    item.ModalityLUTType = "US"
    ds = make_instance(
        np.array([[0, 1, 2, 3]], np.uint16), Modality="CR", RescaleSlope=None, RescaleIntercept=None
    )
    ds.ModalityLUTSequence = Sequence([item])
    return ds


def test_a_short_table_of_16_bits_is_not_read_as_bytes(tmp_path: Path) -> None:
    ds = tables(16, np.arange(3, dtype="<u2").tobytes(), 4)
    with pytest.raises(DecodeError, match="4 entries"):
        medimg.read(write(ds, tmp_path / "one.dcm"))  # type: ignore[arg-type]  # a FileDataset is one
    packed = tables(8, bytes([9, 8, 7, 6]), 4)
    path = write(packed, tmp_path / "one.dcm")  # type: ignore[arg-type]  # on purpose
    assert medimg.read(path).array[0, 0].tolist() == [[9, 8, 7, 6]]


def test_tables_of_big_endian_files(tmp_path: Path) -> None:
    ds = tables(16, np.array([5, 6, 7, 8], ">u2").tobytes(), 4)
    ds.PixelData = np.array([0, 1, 2, 3], ">u2").tobytes()
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    path = tmp_path / "one.dcm"
    pydicom.dcmwrite(path, ds, implicit_vr=False, little_endian=False, enforce_file_format=True)
    assert medimg.read(path).array[0, 0].tolist() == [[5, 6, 7, 8]]


def test_a_broken_display_table_leaves_the_image(tmp_path: Path) -> None:
    ds = make_instance(stack_pixels(0), WindowCenter=40, WindowWidth=400)
    ds.VOILUTSequence = Sequence([Dataset()])
    volume = medimg.read(write(ds, tmp_path / "one.dcm"))
    assert len(volume.voi[0]) == 1
    assert not isinstance(volume.voi[0][0], LookupTable)


def test_a_palette_color_does_not_depend_on_the_others(tmp_path: Path) -> None:
    shown = []
    for pixels in ([[1, 1]], [[1, 3]]):
        ds = make_instance(np.array(pixels, np.uint8), PhotometricInterpretation="PALETTE COLOR")
        for name in ("Red", "Green", "Blue"):
            setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [4, 0, 16])
            table = np.array([0, 192, 40000, 65535], "<u2").tobytes()
            setattr(ds, f"{name}PaletteColorLookupTableData", table)
        shown.append(medimg.read(write(ds, tmp_path / "one.dcm")).array[:, 0, 0, 0].tolist())
    assert shown[0] == shown[1] == [0, 0, 0]


def test_a_deflated_file_that_would_fill_the_memory(tmp_path: Path) -> None:
    path = write(make_instance(stack_pixels(0)), tmp_path / "one.dcm")
    data = path.read_bytes()
    meta = 144 + int.from_bytes(data[140:144], "little")
    header = data[132:meta].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    header = header.replace(b"\x02\x00\x10\x00UI\x14\x00", b"\x02\x00\x10\x00UI\x16\x00")
    length = (meta - 144 + 2).to_bytes(4, "little")
    header = header[:8] + length + header[12:]
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = squeezer.compress(data[meta:]) + squeezer.flush(zlib.Z_FULL_FLUSH)
    # after a full flush nothing refers to what is before: it may be repeated
    bomb += (squeezer.compress(bytes(2**24)) + squeezer.flush(zlib.Z_FULL_FLUSH)) * 40
    path.write_bytes(data[:132] + header + bomb + squeezer.flush())
    assert path.stat().st_size < 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (skipped,) = medimg.scan(path).skipped
    assert "inflates" in skipped.reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
    small = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(data[:132] + header + small.compress(data[meta:]) + small.flush())
    assert np.array_equal(medimg.read(path).array[0, 0], stack_pixels(0).astype(int) - 1024)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures_stand_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5).save(path, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(medimg.read(path).array[0, 0], expected)
    assert medimg.scan(path)[0].shape[2:] == expected.shape


def test_lists_of_folders_and_empty_paths(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="folder in a list"):
        medimg.read([tmp_path])
    with pytest.raises(ReadError, match="can't read"):
        medimg.read("")


def test_an_unknown_object_is_named_by_its_kind(tmp_path: Path) -> None:
    ds = make_instance(stack_pixels(0), SOPClassUID=UID("1.2.840.10008.5.1.4.1.1.88.11"))
    del ds.Rows, ds.Columns, ds.PixelData
    with pytest.raises(MedimgError, match="Basic Text SR"):
        medimg.read(write(ds, tmp_path / "one.dcm"))


@pytest.mark.parametrize(
    ("value", "message"),
    [(b"1.2.840.10008.1.2.1\0", "TransferSyntaxUID"), (b"MONOCHROME2 ", "PhotometricInterpretation")],
)
def test_a_damaged_code_is_not_taken_for_a_missing_one(tmp_path: Path, value: bytes, message: str) -> None:
    """Without it, raw pixels or no inversion would be assumed."""
    path = write(make_instance(stack_pixels(0)), tmp_path / "one.dcm")
    data = path.read_bytes()
    assert data.count(value) == 1
    path.write_bytes(data.replace(value, value[:3] + b"^" + value[4:]))
    with pytest.raises(DecodeError, match=message):
        medimg.read(path)
