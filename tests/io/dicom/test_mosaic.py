"""Siemens mosaics and UIH grids: where tiles lie, against dcm2niix, nibabel and the scanner's protocol."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import struct
import subprocess
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  # the name that its users know
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence

from medimg.errors import DecodeError, GeometryError, MedimgError
from medimg.io.dicom.header._siemens_csa import parse_csa
from medimg.io.dicom.header.mosaic import MOSAIC_TAGS, Mosaic, parse_mosaic
from medimg.io.dicom.header.open import to_tags
from tests.dicom_files import make_instance, write

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    from nibabel.nicom import csareader
    from nibabel.nicom.dicomwrappers import MosaicWrapper

SETS = ("nih", "ts", "12bit", "me", "mosaic_ep2d")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
CSA_IMAGE, CSA_SERIES = (0x0029, 0x1010), (0x0029, 0x1020)


@cache
def mosaics(folder: Path) -> list[Path]:
    found = []
    for path in sorted(p for p in (folder / "In").rglob("*") if p.is_file()):
        try:
            header = pydicom.dcmread(path, specific_tags=["ImageType"])
        except pydicom.errors.InvalidDicomError:
            continue
        if "MOSAIC" in header.get("ImageType", []):
            found.append(path)
    return found


def pixels_by_gdcm(path: Path) -> npt.NDArray[Any]:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(os.fspath(path))
    return np.asarray(sitk.GetArrayFromImage(reader.Execute())[0])


def as_nifti(ds: Dataset, mosaic: Mosaic, picture: npt.NDArray[Any]) -> nib.Nifti1Image:
    """The tiles as a volume with the affine of their positions, as nearly RAS as can be."""
    tiles = [picture[r : r + mosaic.rows, c : c + mosaic.columns] for r, c in mosaic.corners]
    places = np.array(mosaic.positions)
    affine = np.eye(4)
    affine[:3, 0] = np.array(ds.ImageOrientationPatient[:3]) * float(ds.PixelSpacing[1])
    affine[:3, 1] = np.array(ds.ImageOrientationPatient[3:]) * float(ds.PixelSpacing[0])
    affine[:3, 2] = (places[-1] - places[0]) / (len(places) - 1)
    affine[:3, 3] = places[0]
    assert np.allclose(places, places[0] + np.arange(len(places))[:, None] * affine[:3, 2], atol=1e-6)
    image = nib.Nifti1Image(np.stack(tiles, axis=-1).transpose(1, 0, 2), LPS_TO_RAS @ affine, dtype=np.int32)
    turned: nib.Nifti1Image = nib.as_closest_canonical(image)
    return turned


def load_reference(path: Path) -> nib.Nifti1Image:
    """A reference as nearly RAS as can be, its values in memory, so that no file stays open."""
    turned = nib.as_closest_canonical(nib.Nifti1Image.from_filename(path, mmap=False))
    return nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine)


@cache
def references_of(folder: Path) -> list[nib.Nifti1Image]:
    """The references of a data set."""
    return [load_reference(path) for path in sorted((folder / "Ref").glob("*.nii"))]


def meets(image: nib.Nifti1Image, reference: nib.Nifti1Image) -> bool:
    """Whether an image is one of the volumes of a reference, voxel by voxel at the same places."""
    if image.shape != reference.shape[:3] or not np.allclose(image.affine, reference.affine, atol=2e-2):
        return False
    volumes = np.asarray(reference.dataobj).reshape(*image.shape, -1)
    ours = np.asarray(image.dataobj)
    return any(np.array_equal(ours, volumes[..., n]) for n in range(volumes.shape[-1]))


@pytest.mark.parametrize("name", SETS)
def test_every_mosaic_is_a_volume_of_a_reference_of_dcm2niix(real_data: Path, name: str) -> None:
    folder = real_data / "dicom_qa" / name
    references = references_of(folder)
    paths = mosaics(folder)
    assert paths
    for path in paths:
        ds = pydicom.dcmread(path)
        mosaic = parse_mosaic(ds)
        assert mosaic is not None
        assert mosaic.notes == ()
        picture = pixels_by_gdcm(path)
        assert any(meets(as_nifti(ds, mosaic, picture), r) for r in references), path.name
        upside_down = Mosaic(mosaic.rows, mosaic.columns, mosaic.corners[::-1], mosaic.positions)
        assert not any(meets(as_nifti(ds, upside_down, picture), r) for r in references), path.name


@pytest.mark.parametrize("name", SETS)
def test_tiles_lie_where_the_protocol_of_the_scanner_put_its_slices(real_data: Path, name: str) -> None:
    reversed_ones = 0
    for path in mosaics(real_data / "dicom_qa" / name):
        ds = pydicom.dcmread(path)
        mosaic = parse_mosaic(ds)
        assert mosaic is not None
        half = np.array(ds.ImageOrientationPatient[:3]) * float(ds.PixelSpacing[1]) * mosaic.columns / 2
        half = half + np.array(ds.ImageOrientationPatient[3:]) * float(ds.PixelSpacing[0]) * mosaic.rows / 2
        centers = np.array(mosaic.positions) + half
        planned = protocol_centers(ds, len(centers))
        if not np.allclose(centers, planned, atol=1e-3):
            reversed_ones += 1
            assert np.allclose(centers, planned[::-1], atol=1e-3)
    assert reversed_ones == (12 if name == "mosaic_ep2d" else 0)


def protocol_centers(ds: Dataset, count: int) -> npt.NDArray[np.float64]:
    tags = csareader.read(ds[CSA_SERIES].value)["tags"]
    text = next(
        tags[k]["items"][0] for k in ("MrPhoenixProtocol", "MrProtocol") if tags.get(k, {}).get("items")
    )
    centers = np.zeros((count, 3))
    for n, axis, value in re.findall(r"asSlice\[(\d+)\]\.sPosition\.d(Sag|Cor|Tra)\s*=\s*(\S+)", text):
        if int(n) < count:
            centers[int(n), ("Sag", "Cor", "Tra").index(axis)] = float(value)
    return centers


def test_header_only_reads_suffice(real_data: Path) -> None:
    path = mosaics(real_data / "dicom_qa" / "me")[0]
    header = read_header(path)
    assert parse_mosaic(header) == parse_mosaic(pydicom.dcmread(path)) is not None


@pytest.fixture(params=["siemens_dwi_0.dcm.gz", "siemens_dwi_1000.dcm.gz"])
def diffusion(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    source = Path(csareader.__file__).parent / "tests" / "data" / request.param
    path: Path = tmp_path / "in" / request.param.removesuffix(".gz")
    path.parent.mkdir()
    path.write_bytes(gzip.decompress(source.read_bytes()))
    return path


def test_tiles_and_affine_are_those_of_nibabel(diffusion: Path) -> None:
    ds = pydicom.dcmread(diffusion)
    mosaic = parse_mosaic(ds)
    assert mosaic is not None
    wrapper = MosaicWrapper(ds)
    theirs = nib.Nifti1Image(np.asarray(wrapper.get_unscaled_data()), wrapper.affine, dtype=np.int32)
    # nibabel's wrapper gives (row, column, slice) and an LPS affine of that order
    theirs = nib.as_closest_canonical(nib.Nifti1Image(theirs.dataobj, LPS_TO_RAS @ theirs.affine))
    assert meets(as_nifti(ds, mosaic, ds.pixel_array), theirs)


@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")
def test_tiles_and_affine_are_those_of_a_fresh_dcm2niix(diffusion: Path, tmp_path: Path) -> None:
    subprocess.run(
        ["dcm2niix", "-z", "n", "-b", "n", "-o", tmp_path, diffusion.parent], check=True, capture_output=True
    )
    ds = pydicom.dcmread(diffusion)
    mosaic = parse_mosaic(ds)
    assert mosaic is not None
    assert meets(as_nifti(ds, mosaic, ds.pixel_array), load_reference(next(tmp_path.glob("*.nii"))))


@pytest.mark.parametrize("element", [CSA_IMAGE, CSA_SERIES])
def test_csa_headers_are_read_as_nibabel_reads_them(real_data: Path, element: tuple[int, int]) -> None:
    compared = 0
    for name in SETS:
        for path in mosaics(real_data / "dicom_qa" / name)[:3]:
            header = pydicom.dcmread(path)[element].value
            theirs = csareader.read(header)["tags"]
            ours = parse_csa(header, *theirs)
            for key, tag in theirs.items():
                convert = csareader._CONVERTERS.get(tag["vr"], str.strip)
                texts = [v.decode("latin-1") if isinstance(v, bytes) else v for v in tag["items"]]
                expected = [convert(v) for v in texts if v != ""]
                assert [convert(v) for v in ours[key]] == [v for v in expected if v != ""], key
                compared += 1
    assert compared > 500


def read_header(path: Path) -> pydicom.Dataset:
    return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(to_tags(*MOSAIC_TAGS)))


def csa_header(*, older: bool = False, **fields: Any) -> bytes:
    """A CSA header as scanners write it: six items for a field, unused ones empty."""
    parts = [b"" if older else b"SV10\4\3\2\1", struct.pack("<2I", len(fields), 77)]
    for name, values in fields.items():
        parts.append(struct.pack("<64si4s3i", name.encode(), len(values), b"FD", 3, 6, 77))
        for n in range(6):
            data = values[n].encode() + b"\0" if n < len(values) else b""
            length = len(data) + (6 if older else 0)
            parts.append(struct.pack("<4i", length, len(data), 77, length) + data + b"\0" * (-len(data) % 4))
    return b"".join(parts)


NORMAL: dict[str, Any] = {"NumberOfImagesInMosaic": ("5",), "SliceNormalVector": ("0.0", "0.0", "1.0")}


def siemens(*, block: int = 0x10, csa: bytes | None = None, **attributes: Any) -> FileDataset:
    """Five tiles of 4 rows by 6 columns in a grid of three by three."""
    fields: dict[str, Any] = {
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"],
        "PixelSpacing": [2.0, 3.0],
        "ImagePositionPatient": [10.0, 20.0, 30.0],
        "SpacingBetweenSlices": 4.5,
        "SliceThickness": 4.0,
    }
    ds = make_instance(np.arange(12 * 18, dtype=np.uint16).reshape(12, 18), **(fields | attributes))
    if csa is not None:
        ds.add_new((0x0029, block), "LO", "SIEMENS CSA HEADER")
        ds.add_new((0x0029, block << 8 | 0x10), "OB", csa + b"\0" * (len(csa) % 2))
    return ds


# Half the difference of the sizes: 12 columns of 3 mm, 8 rows of 2 mm
FIRST = (10.0 + 6 * 3.0, 20.0 + 4 * 2.0, 30.0)
CORNERS = ((0, 0), (0, 6), (0, 12), (4, 0), (4, 6))


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("block", [0x10, 0x13])
def test_corners_and_positions_by_hand(tmp_path: Path, older: bool, block: int) -> None:
    path = write(siemens(csa=csa_header(older=older, **NORMAL), block=block), tmp_path / "mosaic.dcm")
    mosaic = parse_mosaic(
        pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(to_tags(*MOSAIC_TAGS)))
    )
    assert mosaic is not None
    assert (mosaic.rows, mosaic.columns, mosaic.corners) == (4, 6, CORNERS)
    assert mosaic.positions == tuple((FIRST[0], FIRST[1], FIRST[2] + 4.5 * n) for n in range(5))


def test_a_normal_that_opposes_the_image_plane_numbers_slices_downwards() -> None:
    down = NORMAL | {"SliceNormalVector": ("0.0", "0.0", "-1.0")}
    mosaic = parse_mosaic(siemens(csa=csa_header(**down)))
    assert mosaic is not None
    assert mosaic.positions == tuple((FIRST[0], FIRST[1], FIRST[2] - 4.5 * n) for n in range(5))


def test_xa_says_it_in_private_elements_of_its_own() -> None:
    ds = siemens(
        ImageType=["ORIGINAL", "PRIMARY", "M", "NONE"], FrameType=["ORIGINAL", "PRIMARY", "M", "NONE"]
    )
    block = ds.private_block(0x0021, "SIEMENS MR SDI 02", create=True)
    block.add_new(0x75, "CS", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    assert parse_mosaic(ds) is None
    block.add_new(0x01, "US", 5)
    block.add_new(0x02, "FD", [0.0, 0.0, -1.0])
    mosaic = parse_mosaic(ds)
    assert mosaic is not None
    assert mosaic.positions[1] == (FIRST[0], FIRST[1], FIRST[2] - 4.5)


def test_files_that_only_look_like_mosaics_are_none() -> None:
    assert parse_mosaic(siemens(ImageType=["ORIGINAL", "PRIMARY", "M"])) is None
    assert parse_mosaic(siemens(NumberOfFrames=3)) is None
    assert parse_mosaic(siemens(FrameType=["ORIGINAL", "PRIMARY", "M", "NONE"])) is None


def test_the_count_of_the_older_element_is_used_and_the_direction_not_guessed() -> None:
    ds = siemens()
    ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 5)
    with pytest.raises(GeometryError, match="SliceNormalVector"):
        parse_mosaic(ds)


def test_without_a_spacing_the_thickness_is_used_and_said() -> None:
    mosaic = parse_mosaic(siemens(csa=csa_header(**NORMAL), SpacingBetweenSlices=""))
    assert mosaic is not None
    assert mosaic.positions[1] == (FIRST[0], FIRST[1], FIRST[2] + 4.0)
    assert "SliceThickness" in mosaic.notes[0]
    stated = csa_header(**NORMAL, SpacingBetweenSlices=("4.5",))
    assert parse_mosaic(siemens(csa=stated, SpacingBetweenSlices="")) == parse_mosaic(siemens(csa=stated))


@pytest.mark.parametrize(
    ("csa", "attributes", "error", "message"),
    [
        (None, {}, DecodeError, "number is missing"),
        (b"SV10", {}, DecodeError, "CSA header ends"),
        (csa_header(**NORMAL | {"NumberOfImagesInMosaic": ("0",)}), {}, DecodeError, "declares 0"),
        (csa_header(**NORMAL | {"NumberOfImagesInMosaic": ("17",)}), {}, DecodeError, "equal tiles"),
        (csa_header(**NORMAL | {"NumberOfImagesInMosaic": ("9" * 30,)}), {}, DecodeError, "declares"),
        (csa_header(**NORMAL | {"SliceNormalVector": ("0", "1", "0")}), {}, GeometryError, "perpendicular"),
        (
            csa_header(**NORMAL | {"SliceNormalVector": ("a", "1", "0")}),
            {},
            GeometryError,
            "SliceNormalVector",
        ),
        (csa_header(**NORMAL), {"ImagePositionPatient": None}, GeometryError, "ImagePositionPatient"),
        (
            csa_header(**NORMAL),
            {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
            GeometryError,
            "perpendicular",
        ),
        (csa_header(**NORMAL), {"PixelSpacing": [0, 1]}, GeometryError, "PixelSpacing"),
        (
            csa_header(**NORMAL),
            {"SpacingBetweenSlices": None, "SliceThickness": None},
            GeometryError,
            "SpacingBetweenSlices",
        ),
    ],
)
def test_unsound_mosaics_are_refused_with_a_reason(
    csa: bytes | None, attributes: dict[str, Any], error: type[MedimgError], message: str
) -> None:
    ds = siemens(csa=csa)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    with pytest.raises(error, match=message):
        parse_mosaic(ds)


def test_a_damaged_csa_header_never_raises_anything_else() -> None:
    whole = csa_header(**NORMAL, Further=("1", "2"))
    generator = np.random.default_rng(0)
    for n in range(2000):
        damaged = bytearray(whole[: generator.integers(len(whole))] if n % 2 else whole)
        for place in generator.integers(len(damaged) or 1, size=3 if damaged else 0):
            damaged[place] = generator.integers(256)
        with contextlib.suppress(DecodeError):
            parse_csa(bytes(damaged), "NumberOfImagesInMosaic", "SliceNormalVector")


def uih(count: int = 5) -> FileDataset:
    """A grid of tiles of 4 rows by 6 columns, three wide and two high, after the description by UIH alone."""
    ds = make_instance(
        np.arange(8 * 18, dtype=np.uint16).reshape(8, 18),
        ImageType=["ORIGINAL", "PRIMARY", "M", "VFRAME"],
        ImagePositionPatient=None,
    )
    block = ds.private_block(0x0065, "Image Private Header", create=True)
    block.add_new(0x50, "DS", "5")
    block.add_new(0x51, "SQ", Sequence([Dataset() for _ in range(count)]))
    for n, item in enumerate(block[0x51].value):
        item.ImagePositionPatient = [1.0, 2.0, 3.0 - 4 * n]
    return ds


def test_a_grid_of_uih_is_only_as_high_as_needed(tmp_path: Path) -> None:
    path = write(uih(), tmp_path / "grid.dcm")
    mosaic = parse_mosaic(
        pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(to_tags(*MOSAIC_TAGS)))
    )
    assert mosaic is not None
    assert (mosaic.rows, mosaic.columns, mosaic.corners) == (4, 6, CORNERS)
    assert mosaic.positions == tuple((1.0, 2.0, 3.0 - 4 * n) for n in range(5))


def test_a_grid_of_uih_whose_sequence_became_bytes_is_the_same(tmp_path: Path) -> None:
    ds = uih()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    path = write(ds, tmp_path / "grid.dcm")
    again = pydicom.dcmread(path)
    again[0x0065, 0x1051].value  # noqa: B018
    assert parse_mosaic(again) == parse_mosaic(uih())


def test_a_grid_of_uih_with_too_few_positions_is_refused() -> None:
    with pytest.raises(DecodeError, match="describes 4 of them"):
        parse_mosaic(uih(4))
