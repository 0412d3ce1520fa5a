"""Small data sets in any encoding of pixel data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID

from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.header.image_pixel import FrameFormat
from medimg.io.dicom.pixels._frames import StoredFrames
from medimg.io.dicom.pixels.codestream import CodestreamSize, read_codestream
from medimg.io.dicom.values.modality_lut import parse_modality_transform
from tests.dicom_files import make_instance
from tests.io.dicom.plain_values import SliceValues

RNG = np.random.default_rng(11)
BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
RLE, DEFLATED_FRAMES = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.8.1"
UNCOMPRESSED_FRAMES = "1.2.840.10008.1.2.1.98"
JPEG, EXTENDED, LOSSLESS, JPEG_LS, J2K, JPEG_XL, HTJ2K = (
    f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 70, 80, 90, 110, 201)
)
LOSSY_J2K = "1.2.840.10008.1.2.4.91"


def gray(bits: int = 12, shape: tuple[int, ...] = (32, 40)) -> npt.NDArray[Any]:
    smooth = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) * (2**bits // 100)
    noisy = (smooth + RNG.integers(0, 2 ** (bits - 3), shape)) % 2**bits
    return np.asarray(noisy.astype(np.uint8 if bits <= 8 else np.uint16))


def item(data: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + len(data).to_bytes(4, "little") + data


def encapsulated(fragments: list[bytes], table: list[int] | None = None, *, end: bool = True) -> bytes:
    offsets = b"".join(n.to_bytes(4, "little") for n in table or [])
    return item(offsets) + b"".join(map(item, fragments)) + b"\xfe\xff\xdd\xe0\0\0\0\0" * end


def with_data(ds: FileDataset, syntax: str, data: bytes) -> FileDataset:
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.PixelData = data
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return ds


def compressed(pixels: npt.NDArray[Any], syntax: str, streams: list[bytes], **attributes: Any) -> FileDataset:
    ds = make_instance(pixels, NumberOfFrames=len(streams), **attributes)
    return with_data(ds, syntax, encapsulated(streams))


def decoded(ds: FileDataset, number: int = 0) -> npt.NDArray[Any]:
    return StoredFrames(ds).decode(number)[0]


def values_of(ds: FileDataset) -> SliceValues:
    with quiet_pydicom():
        source = StoredFrames(ds)
        stored, is_rgb = source.decode(0)
        return modality_values(ds, source.format, stored, is_rgb=is_rgb)


def modality_values(
    view: Dataset, fmt: FrameFormat, stored: npt.NDArray[Any], *, is_rgb: bool
) -> SliceValues:
    transform = parse_modality_transform(view, fmt, stored.dtype, is_rgb=is_rgb)
    array, padding = transform.apply(stored), transform.find_padding(stored)
    return SliceValues(
        array=array if array.ndim == 3 else array[None],
        padding=None if padding is None else padding[None],
        units=transform.units,
        photometric=transform.photometric,
        inverted=transform.inverted,
        voi=transform.voi,
        transforms=transform.transforms,
    )


def codestream_size(data: bytes) -> CodestreamSize | None:
    found = read_codestream(data)
    return None if found is None else found.size


def rgb_of(ds: FileDataset) -> npt.NDArray[np.int64]:
    return np.moveaxis(values_of(ds).array, 0, -1).astype(np.int64)


def rle_frame(pixels: npt.NDArray[Any]) -> bytes:
    """Planes of bytes, the highest first, by PackBits (PS3.5 annex G)."""
    planes = [pixels] if pixels.ndim == 2 else [pixels[..., n] for n in range(3)]
    segments = []
    for plane in planes:
        size = plane.dtype.itemsize
        split = np.ascontiguousarray(plane).astype(f"<u{size}").view(np.uint8).reshape(-1, size)
        segments += [bytes(imagecodecs.packbits_encode(split[:, k].tobytes())) for k in reversed(range(size))]
    segments = [s + b"\0" * (len(s) % 2) for s in segments]
    offsets = np.cumsum([64, *map(len, segments[:-1])]).tolist()
    header = [len(segments), *offsets, *[0] * (15 - len(segments))]
    return b"".join(n.to_bytes(4, "little") for n in header) + b"".join(segments)


FRAMES = [gray() for _ in range(3)]
STREAMS = {
    RLE: [rle_frame(f) for f in FRAMES],
    LOSSLESS: [bytes(imagecodecs.jpeg8_encode(f, lossless=True, bitspersample=12)) for f in FRAMES],
    JPEG_LS: [bytes(imagecodecs.jpegls_encode(f)) for f in FRAMES],
    J2K: [bytes(imagecodecs.jpeg2k_encode(f, level=0, reversible=True, codecformat="j2k")) for f in FRAMES],
    HTJ2K: [bytes(imagecodecs.htj2k_encode(f)) for f in FRAMES],
}


def smooth_rgb() -> npt.NDArray[np.uint8]:
    rows, columns = np.indices((48, 64))
    return np.stack([4 * rows, 3 * columns, 255 - 2 * rows - columns], axis=-1).astype(np.uint8)
