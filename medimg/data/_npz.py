"""Images and labels of an ``.npz`` file, as MedMNIST writes them."""

from __future__ import annotations

import math
import zipfile
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.errors import DatasetError
from medimg.io.files.decompress import MAX_EXPANSION
from medimg.io.files.regular_file import explain_irregular

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["read_npz"]

_MAX_BYTES: Final = 2**36
_MAX_HEADER: Final = 2**16
_SHOWN: Final = 12


def read_npz(path: Path, split: str | None) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None, str]:
    """Return the images of a split, its labels if the file has any, and the name of the images."""
    prefix = "" if split is None else f"{split}_"
    irregular = explain_irregular(path)
    if irregular:
        raise DatasetError(f"{path} can't be opened: it is {irregular}; expected an .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
            images = f"{prefix}images"
            if images not in names:
                raise DatasetError(_explain_absence(path, images, list(names)))
            labels = names.get(f"{prefix}labels")
            return (
                _read_array(archive, names[images], path),
                None if labels is None else _read_array(archive, labels, path),
                images,
            )
    except OSError as error:
        raise DatasetError(f"{path} can't be opened: {error.strerror or type(error).__name__}") from None
    except MemoryError:
        raise DatasetError(f"{path}: no memory for its images") from None
    except DatasetError:
        raise
    # damaged archives and headers raise errors of many types
    except Exception as error:
        raise DatasetError(f"{path} is not an .npz file, or it is damaged ({type(error).__name__})") from None


def _explain_absence(path: Path, wanted: str, names: list[str]) -> str:
    splits = sorted(name.removesuffix("_images") for name in names if name.endswith("_images"))
    found = f"the splits {', '.join(splits[:_SHOWN])}" if splits else f"{len(names)} other arrays"
    return f"{path} has no array {wanted!r}; it has {found}: name a split, or None for images and labels"


def _read_array(archive: zipfile.ZipFile, name: str, path: Path) -> npt.NDArray[Any]:
    """Return an array whose header is plausible for the size of its file; pickles are never loaded."""
    entry = archive.getinfo(name)
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        shape, is_fortran, dtype = _read_header(file, version)
        size = math.prod(shape) * dtype.itemsize
        stored = min(entry.file_size, entry.compress_size * MAX_EXPANSION)
        if dtype.hasobject or dtype.kind not in "biufUS" or not 0 < size <= min(stored, _MAX_BYTES):
            raise DatasetError(
                f"{path}: the array {name.removesuffix('.npy')!r} has the shape {shape}, which does not fit "
                "the size of the file, or its values are not numbers or text"
            )
        values = np.empty(math.prod(shape), dtype)
        _fill(file, memoryview(values.view(np.uint8).data), path)
        # reading on to the end compares the checksum
        if file.read(1):
            raise DatasetError(f"{path}: the array {name.removesuffix('.npy')!r} is longer than it states")
    return values.reshape(shape, order="F" if is_fortran else "C")


def _read_header(file: Any, version: tuple[int, int]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file, max_header_size=_MAX_HEADER)
    return tuple(map(int, shape)), is_fortran, dtype


def _fill(file: Any, memory: memoryview, path: Path) -> None:
    filled = 0
    while filled < len(memory):
        count = file.readinto(memory[filled : filled + 2**20])
        if not count:
            raise DatasetError(f"{path} ends before its arrays do; copy it again")
        filled += count
