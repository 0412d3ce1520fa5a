"""ONNX files: metadata, seal, and whether they refer to other files, before any library sees them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from medimg.core.content_hash import content_hash
from medimg.errors import CheckpointError, also
from medimg.io.files.atomic import hash_file
from medimg.io.files.regular_file import explain_irregular

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MOST_BYTES", "check_seal", "read_metadata", "read_onnx", "seal_file"]

#: Most bytes of a protocol buffer.
MOST_BYTES: Final = 2**31 - 1

_MOST_FIELDS: Final = 20_000_000
_DEEPEST: Final = 24
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# the fields of onnx.proto that lead to tensors: of each message, the message of a field
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING = range(8)
_CHILDREN: Final = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _TENSOR: {},
}
_METADATA: Final = 14
#: Name of the last entry of the metadata: the SHA-256 of all bytes before it.
_SEAL: Final = b"medimg_sha256"
_LARGEST_TAG: Final = 2**32 - 1
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def read_onnx(path: Path) -> bytes:
    """Return the bytes of a file; CheckpointError if it can't be one of a model, or is too large."""
    irregular = explain_irregular(path)
    if irregular:
        raise CheckpointError(f"{path} can't be opened: it is {irregular}; expected an ONNX file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > MOST_BYTES else file.read()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise also(CheckpointError, type(error))(f"{path} can't be opened: {why}; check the path") from error
    if size > MOST_BYTES:
        raise CheckpointError(f"{path} has {size} bytes; expected an ONNX file of at most {MOST_BYTES} bytes")
    return data


def read_metadata(data: bytes) -> dict[str, str]:
    """
    Return the metadata of a serialized model.

    CheckpointError if it is not a protocol buffer, or has weights in other files: their paths could lead
    anywhere.
    """
    reader = _Reader(data)
    found: dict[str, str] = {}
    for number, wire, start, end in reader.fields(0, len(data)):
        if number == _METADATA and wire == _BYTES:
            key, value = reader.read_entry(start, end)
            found[key] = value
        elif wire == _BYTES and number in _CHILDREN[_MODEL]:
            reader.check(_CHILDREN[_MODEL][number], start, end, 0)
    return found


def seal_file(path: Path) -> None:
    """Append the SHA-256 of a file to its metadata: fields of a protocol buffer have no order."""
    entry = _make_seal(hash_file(path))
    with path.open("ab") as file:
        file.write(entry)


def check_seal(data: bytes) -> str:
    """Return the SHA-256 that a file states; refuse one whose bytes are not those that were written."""
    length = len(_make_seal("0" * 64))
    digest = content_hash(memoryview(data)[:-length])
    if data[-length:] != _make_seal(digest):
        raise CheckpointError(
            "its SHA-256 is not the one that it states: it was damaged, changed or written again by another "
            "program; export it again by model.export"
        )
    return digest


def _make_seal(digest: str) -> bytes:
    entry = b"\x0a" + bytes([len(_SEAL)]) + _SEAL + b"\x12" + bytes([len(digest)]) + digest.encode()
    return bytes([_METADATA << 3 | _BYTES, len(entry)]) + entry


class _Reader:
    """Walks the fields of messages; a file of too many, or too deep ones, is refused."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._count = 0

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield number and wire type of the fields of a message, and where their values are."""
        position = start
        while position < end:
            self._count += 1
            if self._count > _MOST_FIELDS:
                raise CheckpointError(f"it has more than {_MOST_FIELDS} fields; expected an ONNX model")
            tag, position = self._read_varint(position, end)
            # parsers of other libraries cut it to 32 bits, so that it would be another field to them
            if tag > _LARGEST_TAG:
                raise CheckpointError("it is not an ONNX model, or it is damaged")
            number, wire = tag >> 3, tag & 7
            first = position
            if wire == _VARINT:
                _, position = self._read_varint(position, end)
            elif wire == _BYTES:
                length, first = self._read_varint(position, end)
                position = first + length
            elif wire in (_FIXED64, _FIXED32):
                position += 8 if wire == _FIXED64 else 4
            else:
                raise CheckpointError("it is not an ONNX model, or it is damaged")
            if position > end or not number:
                raise CheckpointError("it is not an ONNX model, or it is truncated or damaged")
            yield number, wire, first, position

    def check(self, message: int, start: int, end: int, depth: int) -> None:
        """Refuse weights that are in other files, in a message and all within."""
        if depth > _DEEPEST:
            raise CheckpointError(f"its graphs are nested deeper than {_DEEPEST} levels")
        children = _CHILDREN[message]
        for number, wire, first, last in self.fields(start, end):
            if message == _TENSOR:
                if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and self._data[first] != 0):
                    raise CheckpointError(
                        "its weights are in other files; expected one file that holds them: export it again "
                        "by model.export, or save it without external data"
                    )
            elif wire == _BYTES and number in children:
                self.check(children[number], first, last, depth + 1)

    def read_entry(self, start: int, end: int) -> tuple[str, str]:
        """Return key and value of an entry of the metadata."""
        texts = {1: "", 2: ""}
        for number, wire, first, last in self.fields(start, end):
            if wire == _BYTES and number in texts:
                texts[number] = self._data[first:last].decode("utf-8", errors="replace")
        return texts[1], texts[2]

    def _read_varint(self, position: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while position < end and shift < 70:
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
        raise CheckpointError("it is not an ONNX model, or it is truncated")
