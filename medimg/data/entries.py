"""
One file of the cache: the pictures of one series, mapped into memory when it is read.

A safetensors file: its library verifies that the header fits the length of the file to the byte. The header
holds the recipe and a hash of all that is not pixels; pixels have a CRC-32 for each picture. UIDs are
enciphered by a key that only the files of the series give.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medimg.data.pictures import DTYPES, DamagedError, Kept, Pictures, checksums

if TYPE_CHECKING:
    from pathlib import Path

    from medimg.prep import Preprocess

__all__ = ["SCHEMA", "Address", "read_entry", "write_entry"]

#: Raised when entries could no longer be read, or mean something else.
SCHEMA: Final = 1

_META: Final = "medimg_pictures"


@dataclass(frozen=True, slots=True)
class Address:
    """
    Where the pictures of a series are.

    Attributes
    ----------
    key : str
        64 hexadecimal digits that only the same files, read by the same recipe, give.
    secret : bytes
        What UIDs are enciphered with; in no file.
    """

    key: str
    secret: bytes = field(repr=False)


def write_entry(path: Path, address: Address, recipe: Preprocess, pictures: Pictures) -> None:
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


def read_entry(path: Path, address: Address, recipe: Preprocess, kind: Kept) -> Pictures:
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
    return Pictures(tensors["planes"], slices, tuple(uids), tensors["crc32"].numpy())


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
