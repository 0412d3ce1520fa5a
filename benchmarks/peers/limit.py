"""The least work: ordinary system calls and copies, or the codec alone, with all that must be known given."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import imagecodecs
import numpy as np
import pydicom
import torch
from pydicom.encaps import generate_frames

from benchmarks.peers.epochs import by_loaders, plain_epoch
from benchmarks.peers.pydicom_ import hounsfield, in_order, series
from benchmarks.peers.pydicom_torch import evenly

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from benchmarks.peers.job import Job

__all__ = [
    "archive",
    "busy_tensors",
    "codec",
    "each_frame",
    "epoch",
    "few",
    "frames",
    "loaders",
    "nifti",
    "plain_tensors",
    "plain_xrays",
    "resample",
    "resample_linear",
    "scan",
    "scan_pure",
    "tensors",
    "tensors_into",
    "volume",
    "xrays",
]

_HEADER: Final = 8192


def _rle(frame: bytes, *, out: npt.NDArray[np.uint16]) -> None:
    imagecodecs.dicomrle_decode(frame, "<u2", out=out.reshape(-1).view(np.uint8).data)


_DECODERS: Final[dict[str, tuple[Callable[..., Any], ...]]] = {
    "1.2.840.10008.1.2.5": (_rle,),
    "1.2.840.10008.1.2.4.70": (imagecodecs.jpeg8_decode,),
    "1.2.840.10008.1.2.4.80": (imagecodecs.jpegls_decode,),
    "1.2.840.10008.1.2.4.90": (imagecodecs.jpeg2k_decode,),
    "1.2.840.10008.1.2.4.201": (imagecodecs.htj2k_decode, imagecodecs.jpeg2k_decode),
}


def scan(job: Job) -> Callable[[], Any]:
    """List the tree, open each file, read 8 KiB of it."""
    return lambda: _heads(str(job.source))


archive = scan_pure = scan


def frames(job: Job) -> Callable[[], Any]:
    """Read the header of the file."""
    path = job.files[0]
    pixels: Any = pydicom.dcmread(path).get_item("PixelData")
    size = int(pixels.value_tell)
    return lambda: _head(str(path), size)


each_frame = frames


def _heads(folder: str) -> int:
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            total += _heads(entry.path) if entry.is_dir() else len(_head(entry.path))
    return total


def _head(path: str, size: int = _HEADER) -> bytes:
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.read(handle, size)
    finally:
        os.close(handle)


class _Places:
    """Where the pixels of a series lie in its files, in order of position."""

    def __init__(self, files: Sequence[Path], *, ordered: bool = True) -> None:
        opened = [pydicom.dcmread(path) for path in files]
        # an element whose value was not asked for is still raw, and knows where the value lies
        raw: list[Any] = [ds.get_item("PixelData") for ds in opened]
        offsets = {id(ds): int(element.value_tell) for ds, element in zip(opened, raw, strict=True)}
        datasets = in_order(list(opened)) if ordered else opened
        self.files = [(str(ds.filename), offsets[id(ds)]) for ds in datasets]
        self.shape = (len(datasets), int(datasets[0].Rows), int(datasets[0].Columns))

    def read(self, number: int, out: npt.NDArray[Any]) -> None:
        path, offset = self.files[number]
        handle = os.open(path, os.O_RDONLY)
        try:
            os.preadv(handle, [out.data], offset)
        finally:
            os.close(handle)


def volume(job: Job) -> Callable[[], Any]:
    """Open each file and read its pixels into one fresh array, on one thread."""
    places = _Places(job.files)
    return lambda: _volume(places)


def _volume(places: _Places) -> npt.NDArray[np.int16]:
    out = np.empty(places.shape, np.int16)
    for n in range(len(out)):
        places.read(n, out[n])
    return out


def tensors(job: Job) -> Callable[[], Any]:
    """Read the pixels of each file into memory that is used again, and fill a fresh output."""
    return partial(_through, _Places(job.files, ordered=False), job.size)


plain_tensors = plain_xrays = xrays = busy_tensors = tensors


def tensors_into(job: Job) -> Callable[[], Any]:
    """Read the pixels of each file into memory that is used again, and fill an output that is used again."""
    memory = torch.zeros(len(job.files), 3, job.size, job.size)
    return partial(_through, _Places(job.files, ordered=False), job.size, memory)


def _through(places: _Places, size: int, out: torch.Tensor | None = None) -> torch.Tensor:
    piece = np.empty(places.shape[1:], np.uint16)
    if out is None:
        out = torch.empty(places.shape[0], 3, size, size)
    for n in range(len(out)):
        places.read(n, piece)
        out[n] = 0
    return out


def few(job: Job) -> Callable[[], Any]:
    """Read 8 KiB of each file, and the pixels of three."""
    places = _Places(job.files)
    three = np.empty((3, *places.shape[1:]), np.uint16)

    def run() -> torch.Tensor:
        _heads(str(job.source))
        for place, n in enumerate(evenly(places.shape[0], 3)):
            places.read(n, three[place])
        return torch.zeros(3, 3, job.size, job.size)

    return run


def codec(job: Job) -> Callable[[], Any]:
    """Decode frames that are in memory into one fresh array, on all cores, by what sees damage fastest."""
    datasets = in_order([pydicom.dcmread(path) for path in job.files])
    frames = [next(generate_frames(ds.PixelData, number_of_frames=1)) for ds in datasets]
    decode = _best_decoder(_DECODERS[datasets[0].file_meta.TransferSyntaxUID], frames[0])
    shape = (len(frames), int(datasets[0].Rows), int(datasets[0].Columns))
    return partial(_decoded, decode, frames, shape)


def _best_decoder(decoders: Sequence[Callable[..., Any]], frame: bytes) -> Callable[..., Any]:
    """Return the fastest of several decoders, without those that decode half a frame as if it were whole."""
    if len(decoders) == 1:
        return decoders[0]
    took = {decode: _seconds(decode, frame) for decode in decoders if _sees_damage(decode, frame)}
    return min(took, key=took.__getitem__)


def _sees_damage(decode: Callable[..., Any], frame: bytes) -> bool:
    printed, sys.unraisablehook = sys.unraisablehook, _say_nothing
    try:
        decode(frame[: len(frame) // 2])
    except (RuntimeError, ValueError):
        return True
    finally:
        sys.unraisablehook = printed
    return False


def _say_nothing(_: object) -> None:
    """An error that a library could not raise."""


def _seconds(decode: Callable[..., Any], frame: bytes) -> float:
    took = []
    for _ in range(4):
        start = perf_counter()
        decode(frame)
        took.append(perf_counter() - start)
    return min(took)


def _decoded(
    decode: Callable[..., Any], frames: list[bytes], shape: tuple[int, ...]
) -> npt.NDArray[np.uint16]:
    out = np.empty(shape, np.uint16)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(lambda n: decode(frames[n], out=out[n]), range(len(frames))))
    return out


def nifti(job: Job) -> Callable[[], Any]:
    """Read the file into fresh memory; inflate it by libdeflate on one thread, if it is zipped."""
    path = str(job.source)
    size = job.source.stat().st_size
    if path.endswith(".gz"):
        inflated = len(imagecodecs.gzip_decode(job.source.read_bytes()))
        return lambda: imagecodecs.gzip_decode(job.source.read_bytes(), out=inflated)

    def run() -> npt.NDArray[np.uint8]:
        out = np.empty(size, np.uint8)
        handle = os.open(path, os.O_RDONLY)
        os.preadv(handle, [out.data], 0)
        os.close(handle)
        return out

    return run


def resample(job: Job) -> Callable[[], Any]:
    """Read every voxel once, write every voxel of a fresh output once, on one thread."""
    datasets = series(job.files)
    array = hounsfield(datasets)
    distance = float(datasets[0].SliceThickness)
    spacing = (distance, *(float(v) for v in datasets[0].PixelSpacing))
    shape = [round(n * s) for n, s in zip(array.shape, spacing, strict=True)]

    def run() -> npt.NDArray[np.float32]:
        np.max(array)
        return np.full(shape, 1, np.float32)

    return run


resample_linear = resample


def epoch(job: Job) -> Callable[[], Any]:
    """Batches of normalized pictures that are in memory."""
    items = _in_memory(job)
    return lambda: plain_epoch(items)


def loaders(job: Job) -> Callable[[], Any]:
    """The same by loader processes."""
    return by_loaders(_in_memory(job))


def _in_memory(job: Job) -> torch.utils.data.TensorDataset:
    pictures = torch.rand(len(job.files), 3, job.size, job.size)
    return torch.utils.data.TensorDataset(pictures, torch.zeros(len(pictures), dtype=torch.int64))
