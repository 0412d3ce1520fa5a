"""Safetensors files with a JSON header, and hashes of both."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medimg.core.content_hash import content_hash, json_text
from medimg.errors import CheckpointError, also
from medimg.io.files.atomic import to_os_error
from medimg.io.files.output import atomic_output
from medimg.io.files.regular_file import explain_irregular
from medimg.models.digest import tensors_sha256

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["header_sha256", "read_header", "read_tensors", "write"]

_MAX_HEADER: Final = 64 * 2**20
#: Raised by the library on truncated files, or dtypes that torch does not have.
_UNREADABLE: Final = (SafetensorError, OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)
_PREFIX: Final = 8  # bytes of the header's length in the safetensors format


def write(target: Path | str, key: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and a JSON header under a key that names the type of file, atomically."""
    # a copy of each: safetensors refuses tensors that share memory
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    whole = {**header, "tensors_sha256": tensors_sha256(copies)}
    whole["header_sha256"] = header_sha256(whole)
    with atomic_output(target) as temporary:
        try:
            save_file(copies, temporary, metadata={key: json_text(whole)})
        except SafetensorError as error:
            raise to_os_error(error, temporary if isinstance(target, str) else target) from None


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

    `what` names the expected type in messages. `check` sees the header before its hash is compared, because
    another schema may be hashed differently. `limit` is the largest header in bytes.
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
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the header of {path} is damaged: {error}") from error
    if found.get("header_sha256") != sha256:
        raise CheckpointError(
            f"the header of {path} is not the one that was saved (its SHA-256 differs): the file was damaged "
            "or changed"
        )
    return found


def read_tensors(path: Path, header: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a file, checked against the hash in its header."""
    try:
        with safe_open(path, framework="pt") as opened:
            # copies: the tensors are views of a memory-mapped file, which may be replaced later
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
    """Check the first bytes before anything is parsed or allocated."""
    irregular = explain_irregular(path)
    if irregular:
        raise CheckpointError(f"{path} can't be opened: it is {irregular}; expected {what}")
    try:
        size = path.stat().st_size
        with path.open("rb") as opened:
            start = opened.read(_PREFIX + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise also(CheckpointError, type(error))(f"{path} can't be opened: {why}; check the path") from error
    if len(start) <= _PREFIX or start[_PREFIX:] != b"{":
        # checked last: a valid length may begin with these bytes, too
        if start[:2] == b"PK" or start[:1] == b"\x80":
            raise CheckpointError(f"{path} was written by torch.save and is not {what}")
        raise CheckpointError(f"{path} ({size} bytes) is not a safetensors file, so not {what}")
    (length,) = struct.unpack("<Q", start[:_PREFIX])
    if length > min(limit, size - _PREFIX):
        raise CheckpointError(
            f"{path} is truncated or damaged: it announces a header of {length} bytes and has {size} bytes "
            f"in total; a header has at most {limit}"
        )


def header_sha256(header: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all fields but the hash itself."""
    rest = {name: value for name, value in header.items() if name != "header_sha256"}
    return content_hash(json_text(rest, compact=True))
