"""Pictures kept on disk, by what their files hold and the recipe that made them."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medimg import __version__
from medimg.data.cache.images import DTYPES, DamagedError, Kept, RenderedImages, checksums, stored_type
from medimg.data.cache.keys import Address, Compare, content_digest, frame_ids
from medimg.errors import DatasetError, MedimgWarning
from medimg.io.files.atomic import atomic_path

if TYPE_CHECKING:
    from medimg.io.series import Policies, Series
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["SCHEMA", "ImageCache", "as_cache", "read_entry", "write_entry"]

#: Raised when entries could no longer be read, or mean something else.
SCHEMA: Final = 1

_META: Final = "medimg_pictures"


def write_entry(path: Path, address: Address, recipe: Preprocess, pictures: RenderedImages) -> None:
    """
    Write the pictures of a series, of any type that they can be kept in.

    Raises
    ------
    OSError
        If they can't be written: the disk may be full.
    """
    planes = pictures.planes.contiguous()
    tensors = {
        "planes": planes,
        "crc32": torch.from_numpy(checksums(planes)),
        "slices": torch.from_numpy(np.array(pictures.slices, dtype=np.int64)),
        "uids": torch.from_numpy(_ciphered("\n".join(pictures.sop_instance_uids).encode(), address)),
    }
    header = {
        "schema": SCHEMA,
        "key": address.key,
        "recipe": recipe.to_dict(),
        "fingerprint": recipe.fingerprint,
    }
    header["sha256"] = _digest(header, tensors)
    try:
        save_file(tensors, path, metadata={_META: json.dumps(header, sort_keys=True)})
    except SafetensorError:
        # what the system says is in its text alone, with the path
        raise OSError("the file can't be written") from None


def read_entry(path: Path, address: Address, recipe: Preprocess, kind: Kept) -> RenderedImages:
    """
    Map the pictures of a series.

    Raises
    ------
    FileNotFoundError
        If there are none.
    DamagedError
        If the file is not one that :func:`write_entry` wrote for that address, whole.
    OSError
        If it can't be opened.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_META])
            tensors = {name: file.get_tensor(name) for name in ("planes", "crc32", "slices", "uids")}
    except FileNotFoundError:
        raise
    # the bindings raise OSError only for what the system says
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError, RuntimeError) as error:
        raise DamagedError(f"it is no whole file of pictures ({type(error).__name__})") from None
    _check(header, tensors, address, recipe, kind)
    try:
        uids = _ciphered(tensors["uids"].numpy().tobytes(), address).tobytes().decode().split("\n")
    except UnicodeDecodeError:
        raise DamagedError("its identifiers can't be read") from None
    slices = tuple(int(n) for n in tensors["slices"])
    if len(uids) != len(slices):
        raise DamagedError("it has identifiers for another number of pictures")
    return RenderedImages(tensors["planes"], slices, tuple(uids), tensors["crc32"].numpy())


def _check(
    header: Any, tensors: dict[str, torch.Tensor], address: Address, recipe: Preprocess, kind: Kept
) -> None:
    if not isinstance(header, dict) or header.get("key") != address.key or header.get("schema") != SCHEMA:
        raise DamagedError("it holds other pictures than its name says")
    stated = header.pop("sha256", None)
    if stated != _digest(header, tensors):
        raise DamagedError("its header does not match its checksum")
    planes = tensors["planes"]
    n = len(tensors["slices"])
    shapes = {(n, c, *recipe.hw) for c in (1, 3)}
    if planes.dtype != DTYPES[kind] or tuple(planes.shape) not in shapes or tensors["crc32"].shape != (n,):
        raise DamagedError(f"it holds {planes.dtype} of shape {tuple(planes.shape)}")


def _digest(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """Return a hash of all but the pixels, of which it covers type, shape and checksums."""
    planes = tensors["planes"]
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(f"{planes.dtype} {tuple(planes.shape)}".encode())
    for name in ("crc32", "slices", "uids"):
        digest.update(f"{tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _ciphered(text: bytes, address: Address) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Encipher or decipher: a stream of SHAKE-256 that is used for this one text."""
    stream = hashlib.shake_256(address.secret).digest(len(text))
    return np.frombuffer(text, np.uint8) ^ np.frombuffer(stream, np.uint8)


_STALE_SECONDS: Final = 24 * 3600


class ImageCache:
    """
    A folder of pictures that are made already, for :func:`read_tensors` and :class:`ImageDataset`.

    Pictures are kept before normalization, in one channel where three would be equal, and mapped into memory
    when they are needed. Several processes may use one folder at once. An entry is found by what its files
    hold, by the recipe, by how series are read, and by the version of medimg; a file that was changed or
    replaced has another entry, and one that is only moved has the same.

    Parameters
    ----------
    folder : str or Path
        Made where it is missing. It may be deleted at any time while no process uses it; within, there is a
        folder for each recipe, named by its fingerprint. Keep it as private as the images themselves.
    dtype : {"float16", "uint8", "float32"}
        What brightness, 0 to 1, is kept as. It is off by at most 0.00025 in "float16", after normalization
        by ImageNet's deviations 0.0011; in "uint8", which takes half the space, by 0.002 and 0.009; in
        "float32" by nothing.
    compare : {"samples", "bytes"}
        What tells that a file is the same as before. "samples": its size, time of modification to the
        nanosecond, and bytes from its start, middle and end; all bytes where it is smaller than 256 KiB.
        Larger files that are not DICOM, and archives, go by their path too. It misses a larger file whose
        pixels were changed elsewhere, with its size and time kept on purpose. "bytes": all bytes, which
        reads every file whole each time.

    Raises
    ------
    DatasetError
        If the folder can't be made, or an option is none of these.

    Examples
    --------
    >>> import tempfile
    >>> ImageCache(tempfile.mkdtemp(), dtype="uint8").dtype
    'uint8'
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, dtype: Kept = "float16", compare: Compare = "samples"
    ) -> None:
        if dtype not in get_args(Kept):
            raise DatasetError(f"dtype={dtype!r} is none of {', '.join(map(repr, get_args(Kept)))}")
        if compare not in get_args(Compare):
            raise DatasetError(f"compare={compare!r} is none of {', '.join(map(repr, get_args(Compare)))}")
        self.folder = Path(folder).absolute()
        self.dtype: Kept = dtype
        self.compare: Compare = compare
        self._warned = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatasetError(f"no cache can be kept in {self.folder}: {error.strerror}") from None

    def __repr__(self) -> str:
        return f"ImageCache({str(self.folder)!r}, dtype={self.dtype!r}, compare={self.compare!r})"

    def address(self, recipe: Preprocess, series: Series, policies: Policies) -> Address | None:
        """Return where the pictures of a series are or will be; None if they can't be kept."""
        if policies.on_duplicate == "keep":
            return None  # stacks files that a series does not list
        content = content_digest(series, self.compare)
        if content is None:
            return None
        facts = [
            [SCHEMA, __version__, recipe.fingerprint, self.dtype, asdict(policies)],
            [series.format, "" if series.uid in series.files else series.uid],
            [list(series.shape), series.affine.tobytes().hex()],
            [content, frame_ids(series)],
        ]
        text = json.dumps(facts, sort_keys=True).encode()
        key, secret = (hashlib.sha256(purpose + text) for purpose in (b"name ", b"secret "))
        return Address(key.hexdigest(), secret.digest())

    def path(self, address: Address, recipe: Preprocess) -> Path:
        """Return the file of an entry."""
        return self.folder / recipe.fingerprint / address.key[:2] / f"{address.key[2:]}.safetensors"

    def load(self, address: Address, recipe: Preprocess) -> RenderedImages | None:
        """Return the pictures of an entry, mapped; None if there is none, with a warning if it is damaged."""
        path = self.path(address, recipe)
        try:
            return read_entry(path, address, recipe, self.dtype)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            self.note_damage(address, error)
        except OSError as error:
            self._warn_once(f"{path} can't be opened ({error.strerror or type(error).__name__})")
        return None

    def note_damage(self, address: Address, error: DamagedError) -> None:
        """Warn of an entry that is damaged."""
        warnings.warn(
            f"cached pictures {address.key[:12]} are damaged: {error}; they are made anew",
            MedimgWarning,
            stacklevel=3,
        )

    def rounded(self, pictures: RenderedImages) -> RenderedImages:
        """Return pictures in the type that they are kept in, as they will be read."""
        return replace(pictures, planes=stored_type(pictures.planes, self.dtype))

    def store(self, address: Address, recipe: Preprocess, pictures: RenderedImages) -> RenderedImages:
        """
        Keep pictures of the cache's type, whole or not at all, and return them.

        Returns
        -------
        RenderedImages
            Mapped; as given where they can't be written, of which the first time warns.
        """
        path = self.path(address, recipe)
        try:
            with atomic_path(path) as temporary:
                write_entry(temporary, address, recipe, pictures)
            _remove_leftovers(path.parent)
            return read_entry(path, address, recipe, self.dtype)
        except (OSError, DamagedError) as error:
            # on Windows, a file that another process has mapped can't be replaced
            self._warn_once(f"no pictures can be kept in {self.folder} ({type(error).__name__})")
            return pictures

    def _warn_once(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"{text}; they are made anew each time", MedimgWarning, stacklevel=4)


def as_cache(cache: str | os.PathLike[str] | ImageCache | None) -> ImageCache | None:
    """Return the cache in a folder, with its defaults."""
    return cache if cache is None or isinstance(cache, ImageCache) else ImageCache(cache)


def _remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left behind."""
    for leftover in folder.glob(".*.tmp"):
        try:
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()
        # another process was faster
        except OSError:
            continue
