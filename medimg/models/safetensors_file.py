"""Tensors and a JSON header in one safetensors file, with hashes of both."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medimg.errors import CheckpointError
from medimg.io.files.atomic import atomic_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["header_sha256", "read_header", "read_tensors", "tensors_sha256", "write"]

_MAX_HEADER: Final = 64 * 2**20
#: What the library raises on files that are not whole, or hold types that torch has not.
_UNREADABLE: Final = (SafetensorError, OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)
_PREFIX: Final = 8  # bytes that hold the header's length: safetensors' format


def write(path: Path, key: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """
    Write a file, as a whole or not at all.

    Parameters
    ----------
    path : Path
        The file.
    key : str
        What kind of file it is.
    header : mapping
        Of what JSON knows.
    tensors : mapping of str to Tensor
        On any device.
    """
    # a copy of each: safetensors refuses tensors that share memory
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    whole = {**header, "tensors_sha256": tensors_sha256(copies)}
    whole["header_sha256"] = header_sha256(whole)
    with atomic_path(path) as temporary:
        save_file(copies, temporary, metadata={key: json.dumps(whole, sort_keys=True)})


def read_header(
    path: Path,
    key: str,
    what: str,
    *,
    check: Callable[[Any], None] = lambda header: None,
    limit: int = _MAX_HEADER,
) -> dict[str, Any]:
    """
    Return the header of a file, checked against its hash.

    Parameters
    ----------
    path : Path
        The file.
    key : str
        What kind of file is expected.
    what : str
        What to call it in a message.
    check : callable
        Looks at the header before its hash is compared: another schema may hash otherwise.
    limit : int
        The most bytes of a header.

    Raises
    ------
    CheckpointError
        If the file is damaged, its header was changed, or it is of another kind.
    """
    _check_envelope(path, what, limit)
    try:
        with safe_open(path, framework="pt") as opened:
            metadata: Any = opened.metadata()
    except _UNREADABLE as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(metadata, Mapping) or key not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but not {what}")
    try:
        header: Any = json.loads(metadata[key])
        check(header)
        found = header if isinstance(header, dict) else {}
        sha256 = header_sha256(found)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the header of {path} is damaged: {error}") from error
    if found.get("header_sha256") != sha256:
        raise CheckpointError(
            f"the header of {path} is not the one that was saved (its SHA-256 differs): it was damaged or "
            "changed"
        )
    return found


def read_tensors(path: Path, header: Mapping[str, Any]) -> dict[str, Tensor]:
    """
    Return the tensors of a file, checked against the hash in its header.

    Raises
    ------
    CheckpointError
        If they are damaged or changed.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            # a copy: what is read lies in a map of the file, which may be replaced later
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118  # no dict
    except _UNREADABLE as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if tensors_sha256(tensors) != header.get("tensors_sha256"):
        raise CheckpointError(
            f"the tensors in {path} are not those that were saved (their SHA-256 differs): the file was "
            "damaged or changed"
        )
    return tensors


def _check_envelope(path: Path, what: str, limit: int) -> None:
    """Look at the first bytes, before anything is parsed or allocated."""
    try:
        size = path.stat().st_size
        with path.open("rb") as opened:
            start = opened.read(_PREFIX + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} can't be opened: {why}; check the path") from error
    if len(start) <= _PREFIX or start[_PREFIX:] != b"{":
        # looked at last: a sound length may begin with these bytes, too
        if start[:2] == b"PK" or start[:1] == b"\x80":
            raise CheckpointError(f"{path} is a file of torch.save, not {what}")
        raise CheckpointError(f"{path} ({size} bytes) is no safetensors file, so not {what}")
    (length,) = struct.unpack("<Q", start[:_PREFIX])
    if length > min(limit, size - _PREFIX):
        raise CheckpointError(
            f"{path} is truncated or damaged: it announces a header of {length} bytes, and has {size} bytes "
            f"in all; headers have at most {limit}"
        )


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def header_sha256(header: Mapping[str, Any]) -> str:
    """Hash all fields but the hash itself."""
    rest = {name: value for name, value in header.items() if name != "header_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
