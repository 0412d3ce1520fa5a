"""
Rendered images cached on disk, by the content of their files and the recipe that made them.

An entry is a safetensors file for each series: the library verifies that the header fits the length of the
file to the byte. The header holds the recipe and a hash of everything but the pixels, which have a CRC-32 for
each image. UIDs are encrypted with a key that only the files of the series give.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file

from medimg._public import set_module
from medimg._validation import check_choice
from medimg.core.content_hash import content_hash, json_text
from medimg.data.cache.images import (
    DTYPES,
    DamagedError,
    RenderedImages,
    StoredDtype,
    compute_crc32,
    encode_intensity,
)
from medimg.data.cache.keys import SCHEMA, Compare, find_address
from medimg.errors import DatasetError, MedimgWarning, ReadError
from medimg.io.files.atomic import atomic_path, to_os_error
from medimg.io.files.byte_ranges import call_storage, fetch_object
from medimg.io.files.object_storage import is_remote_url, name_url, refuse_url_as_path
from medimg.io.files.output import check_target
from medimg.io.files.regular_file import explain_irregular

if TYPE_CHECKING:
    from medimg.data.cache.keys import Address
    from medimg.io.series import Policies, Series
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["ImageCache", "as_cache", "make_cache_folder", "read_entry", "write_entry"]

_META: Final = "medimg_pictures"
_TENSORS: Final = ("planes", "crc32", "slices", "uids")
_NOT_AN_ENTRY: Final = (SafetensorError, KeyError, ValueError, TypeError, RecursionError, RuntimeError)
_MAX_OBJECT: Final = 2**32


@set_module("medimg")
class ImageCache:
    """
    A folder of rendered images, for :func:`read_tensors` and :class:`ImageDataset`.

    Images are stored before normalization, in one channel if all three would be equal, and memory-mapped when
    needed; from object storage they are fetched. Several processes may use one folder at once. An entry is
    identified by the content of its files, the preprocessing, the reading policies and the version of medimg:
    a file that was changed or replaced has another entry, and one that was only moved has the same, except
    one at a URL, which is identified by its URL, size and version.

    Parameters
    ----------
    folder : str or Path
        Folder of the cache, created if missing, with a subfolder for each preprocessing recipe, named by its
        fingerprint. It may be deleted at any time while no process uses it. Keep it as private as the images
        themselves. In object storage, such as ``"s3://bucket/cache"``, each series is one object, written at
        once and read by one request; what was read is kept in memory as images without a cache are.
    dtype : {"float16", "uint8", "float32"}
        Type in which intensities, 0 to 1, are stored. The largest rounding error is 0.00025 in "float16", or
        0.0011 after ImageNet normalization; 0.002 and 0.009 in "uint8", which takes half the space; none in
        "float32".
    compare : {"samples", "bytes"}
        How a file is identified. "samples": by its size, modification time to the nanosecond, and bytes from
        its start, middle and end; by all bytes if it is smaller than 256 KiB. The path counts too for larger
        files that are not DICOM, and for archives. A larger file whose pixels were changed elsewhere, with
        size and time preserved on purpose, is not noticed. An instance on a DICOMweb server is identified by
        its URL and metadata, for which no pixels are read. "bytes": by all bytes, which reads every file
        completely each time; series of DICOMweb servers are an error.

    Raises
    ------
    DatasetError
        If the folder can't be created, or an option is unknown.

    Examples
    --------
    >>> import tempfile
    >>> ImageCache(tempfile.mkdtemp(), dtype="uint8").dtype
    'uint8'
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, dtype: StoredDtype = "float16", compare: Compare = "samples"
    ) -> None:
        self.dtype: StoredDtype = check_choice("dtype", dtype, get_args(StoredDtype), error=DatasetError)
        self.compare: Compare = check_choice("compare", compare, get_args(Compare), error=DatasetError)
        if is_remote_url(folder):
            check_target("cache", folder, error=DatasetError, is_folder=True)
        self.folder = folder.rstrip("/") if is_remote_url(folder) else make_cache_folder(folder)
        self._warned = False

    def __repr__(self) -> str:
        folder = name_url(self.folder) if isinstance(self.folder, str) else str(self.folder)
        return f"ImageCache({folder!r}, dtype={self.dtype!r}, compare={self.compare!r})"

    def address(self, recipe: Preprocess, series: Series, policies: Policies) -> Address | None:
        """Return where the images of a series are or will be; None if they can't be cached."""
        return find_address(recipe, series, policies, dtype=self.dtype, compare=self.compare)

    def path(self, address: Address, recipe: Preprocess) -> Path:
        """Return the file of an entry, if the folder is on disk."""
        return Path(self.folder, _name_entry(address, recipe))

    def load(self, address: Address, recipe: Preprocess) -> RenderedImages | None:
        """Return the images of an entry, mapped; None if there is none, with a warning if it is damaged."""
        try:
            return self._read(address, recipe)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            self.warn_of_damage(address, error)
        except ReadError as error:
            self._warn_once(str(error))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            self._warn_once(f"{self.path(address, recipe)} can't be opened ({reason})")
        return None

    def _read(self, address: Address, recipe: Preprocess) -> RenderedImages:
        if isinstance(self.folder, str):
            data = fetch_object(f"{self.folder}/{_name_entry(address, recipe)}", _MAX_OBJECT)
            return decode_entry(data, address, recipe, self.dtype)
        return read_entry(self.path(address, recipe), address, recipe, self.dtype)

    def warn_of_damage(self, address: Address, error: DamagedError) -> None:
        """Warn of an entry that is damaged."""
        warnings.warn(
            f"cached images {address.key[:12]} are damaged: {error}; they are rendered again",
            MedimgWarning,
            stacklevel=3,
        )

    def round(self, images: RenderedImages) -> RenderedImages:
        """Return images in the type that they are stored in, as they will be read."""
        return replace(images, planes=encode_intensity(images.planes, self.dtype))

    def store(self, address: Address, recipe: Preprocess, images: RenderedImages) -> RenderedImages:
        """
        Store images of the cache's type atomically, and return them, mapped from a file.

        They are returned as given if they can't be written, with a warning the first time.
        """
        if isinstance(self.folder, str):
            url = f"{self.folder}/{_name_entry(address, recipe)}"
            self._store_object(url, encode_entry(address, recipe, images))
            return images
        path = self.path(address, recipe)
        try:
            with atomic_path(path) as temporary:
                write_entry(temporary, address, recipe, images)
            return read_entry(path, address, recipe, self.dtype)
        except (OSError, DamagedError) as error:
            # on Windows, a file that another process has mapped can't be replaced
            self._warn_once(f"images can't be cached in {self.folder} ({type(error).__name__})")
            return images

    def _store_object(self, url: str, data: bytes) -> None:
        try:
            call_storage(url, lambda storage, path: storage.pipe_file(path, data))
        except ReadError as error:
            self._warn_once(f"images can't be cached: {error}")

    def _warn_once(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"{text}; they are rendered again each time", MedimgWarning, stacklevel=4)


def _name_entry(address: Address, recipe: Preprocess) -> str:
    """Return the path of an entry below the folder, with slashes."""
    return f"{recipe.fingerprint}/{address.key[:2]}/{address.key[2:]}.safetensors"


def as_cache(cache: str | os.PathLike[str] | ImageCache | None) -> ImageCache | None:
    """Return the cache in a folder, with its defaults."""
    return cache if cache is None or isinstance(cache, ImageCache) else ImageCache(cache)


def make_cache_folder(folder: str | os.PathLike[str]) -> Path:
    """Create the folder of a cache if it is missing, and return its absolute path."""
    if is_remote_url(folder):
        raise DatasetError(
            f"{name_url(folder)} can't be this cache, which is an SQLite file; use a folder on this machine"
        )
    refuse_url_as_path(folder)
    path = Path(folder).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    # a null character is a ValueError
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"can't make a cache in {path}: {reason}") from None
    return path


def write_entry(path: Path, address: Address, recipe: Preprocess, images: RenderedImages) -> None:
    """Write the images of a series, of any stored type; OSError if they can't be written."""
    tensors, metadata = _make_entry(address, recipe, images)
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        raise to_os_error(error, path) from None


def encode_entry(address: Address, recipe: Preprocess, images: RenderedImages) -> bytes:
    """Return what :func:`write_entry` writes."""
    tensors, metadata = _make_entry(address, recipe, images)
    return save(tensors, metadata)


def _make_entry(
    address: Address, recipe: Preprocess, images: RenderedImages
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    planes = images.planes.contiguous()
    uids = address.cipher("\n".join(images.sop_instance_uids).encode())
    tensors = {
        "planes": planes,
        "crc32": torch.from_numpy(compute_crc32(planes)),
        "slices": torch.from_numpy(np.array(images.slices, dtype=np.int64)),
        "uids": torch.from_numpy(np.frombuffer(uids, np.uint8).copy()),
    }
    header = {
        "schema": SCHEMA,
        "key": address.key,
        "recipe": recipe.to_dict(),
        "fingerprint": recipe.fingerprint,
    }
    header["sha256"] = _hash_entry(header, tensors)
    return tensors, {_META: json_text(header)}


def read_entry(path: Path, address: Address, recipe: Preprocess, dtype: StoredDtype) -> RenderedImages:
    """Return the mapped images of an entry; DamagedError if it is not what was written."""
    irregular = explain_irregular(path)
    if irregular:
        raise DamagedError(f"it is {irregular}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_META])
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
    except FileNotFoundError:
        raise
    # the bindings raise OSError only for errors of the system
    except _NOT_AN_ENTRY as error:
        raise DamagedError(f"it is not a complete file of images ({type(error).__name__})") from None
    return _open_entry(header, tensors, address, recipe, dtype)


def decode_entry(data: bytes, address: Address, recipe: Preprocess, dtype: StoredDtype) -> RenderedImages:
    """Return the images of an entry, in memory, with their checksums verified; see :func:`read_entry`."""
    try:
        tensors = load(data)
        tensors = {name: tensors[name] for name in _TENSORS}
        # its length was checked
        stated = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        header = json.loads(stated["__metadata__"][_META])
    except _NOT_AN_ENTRY as error:
        raise DamagedError(f"it is not a complete file of images ({type(error).__name__})") from None
    images = _open_entry(header, tensors, address, recipe, dtype)
    images.take()
    return replace(images, crc32=None)


def _open_entry(
    header: Any,
    tensors: dict[str, torch.Tensor],
    address: Address,
    recipe: Preprocess,
    dtype: StoredDtype,
) -> RenderedImages:
    _check_entry(header, tensors, address, recipe, dtype)
    try:
        uids = address.cipher(tensors["uids"].numpy().tobytes()).decode().split("\n")
    except UnicodeDecodeError:
        raise DamagedError("its identifiers can't be read") from None
    slices = tuple(int(n) for n in tensors["slices"])
    if len(uids) != len(slices):
        raise DamagedError("its identifiers are of another number of images")
    return RenderedImages(tensors["planes"], slices, tuple(uids), tensors["crc32"].numpy())


def _check_entry(
    header: Any, tensors: dict[str, torch.Tensor], address: Address, recipe: Preprocess, dtype: StoredDtype
) -> None:
    if not isinstance(header, dict) or header.get("key") != address.key or header.get("schema") != SCHEMA:
        raise DamagedError("it holds images other than its name indicates")
    stated = header.pop("sha256", None)
    if stated != _hash_entry(header, tensors):
        raise DamagedError("its header does not match its checksum")
    planes = tensors["planes"]
    n = len(tensors["slices"])
    shapes = {(n, c, *recipe.image_shape[1:]) for c in (1, 3)}
    if planes.dtype != DTYPES[dtype] or tuple(planes.shape) not in shapes or tensors["crc32"].shape != (n,):
        raise DamagedError(f"it holds {planes.dtype} of shape {tuple(planes.shape)}")


def _hash_entry(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """Hash everything but the pixels, which count by type, shape and checksums."""
    planes = tensors["planes"]
    parts: list[str | bytes] = [json_text(header), f"{planes.dtype} {tuple(planes.shape)}"]
    for name in ("crc32", "slices", "uids"):
        parts += [f"{tensors[name].dtype} {tuple(tensors[name].shape)}", tensors[name].numpy().tobytes()]
    return content_hash(parts)
