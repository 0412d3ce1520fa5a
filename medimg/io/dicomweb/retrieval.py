"""Metadata, files and bulk data of a server (WADO-RS), and instances whose pixels are fetched when read."""

from __future__ import annotations

import io
import json
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from medimg.core.content_hash import content_hash, json_text
from medimg.errors import MedimgError, ReadError
from medimg.io.dicom.header.mosaic import CSA_TAGS
from medimg.io.dicom.header.transfer_syntax import EXPLICIT, NATIVE_SYNTAXES, SYNTAXES
from medimg.io.dicomweb.dicom_json import (
    encode_header,
    get_json_number,
    get_json_value,
    has_lost_backslashes,
    has_nested_bulk,
    iterate_json,
)
from medimg.io.dicomweb.frame_retrieval import FrameLayout, FrameRetriever
from medimg.io.dicomweb.multipart import fetch_parts
from medimg.io.dicomweb.service_url import join_url
from medimg.io.dicomweb.transport import ServerAnswerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from medimg.io.dicomweb.dicom_json import JsonObject
    from medimg.io.dicomweb.file_cache import FileCache
    from medimg.io.dicomweb.frame_retrieval import Frame
    from medimg.io.dicomweb.multipart import Part
    from medimg.io.dicomweb.service_url import ResourceUrl
    from medimg.io.dicomweb.transport import Transport

__all__ = ["JSON", "RemoteInstance", "Retriever", "make_header"]

JSON: Final = "application/dicom+json"
_FILE: Final = 'multipart/related; type="application/dicom"; transfer-syntax={}'
_BULK: Final = 'multipart/related; type="application/octet-stream"'
_AS_STORED: Final = "*"
#: What servers answer that don't know how to ask for a file as it is stored.
_NOT_ACCEPTED: Final = frozenset({400, 406, 415})
_MAX_METADATA: Final = 2**28
_MAX_BULK: Final = 2**26
#: Bytes of a file besides its pixels, and at most in all.
_HEADER_BYTES: Final = 2**25
_MAX_FILE: Final = 2**32
_KEPT_METADATA: Final = 2**27
_SYNTAX_ELEMENT: Final = b"\x02\x00\x10\x00UI"


class Retriever:
    """Reads from one server; keeps recent metadata in memory, and files on disk if there is a cache."""

    def __init__(self, transport: Transport, cache: FileCache | None = None) -> None:
        self.transport = transport
        self._cache = cache
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._metadata: OrderedDict[str, bytes] = OrderedDict()
        self._kept = 0
        self._syntax = _AS_STORED
        self._frames = FrameRetriever(self.transport, self._cache)

    def __getstate__(self) -> dict[str, Any]:
        return {"transport": self.transport, "_cache": self._cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def read_metadata(self, resource: ResourceUrl) -> Iterator[JsonObject]:
        """Yield the metadata of the instances of a series or study, or of one instance."""
        answer = self.transport.get(f"{resource.path}/metadata", JSON, most=_MAX_METADATA, compressed=True)
        what = f"the metadata that {self.transport.host} gives of {resource.path}"
        for item in iterate_json(answer.body, what):
            for element in item.values():
                uri = element.get("BulkDataURI") if isinstance(element, dict) else None
                if isinstance(uri, str):
                    element["BulkDataURI"] = join_url(f"{resource.url}/metadata", uri)
            yield item

    def keep_metadata(self, resource: ResourceUrl, text: str) -> None:
        """Keep the metadata of an instance, as JSON, for a while: its other attributes may be asked for."""
        packed = zlib.compress(text.encode(), 1)
        with self._lock:
            self._kept += len(packed) - len(self._metadata.pop(resource.path, b""))
            self._metadata[resource.path] = packed
            while self._kept > _KEPT_METADATA:
                self._kept -= len(self._metadata.popitem(last=False)[1])

    def find_metadata(self, resource: ResourceUrl) -> JsonObject:
        """Return the metadata of one instance, kept or read again."""
        with self._lock:
            packed = self._metadata.get(resource.path)
        if packed is not None:
            return cast("JsonObject", json.loads(zlib.decompress(packed)))
        found = [
            one
            for one in self.read_metadata(resource)
            if get_json_value(one, "00080018") == resource.instance
        ]
        if len(found) != 1:
            raise ReadError(
                f"{self.transport.host} has changed {resource.path} since it was scanned; scan again"
            )
        self.keep_metadata(resource, json_text(found[0]))
        return found[0]

    def read_bulk(self, uri: str) -> bytes:
        """Return a value that is not in the metadata."""
        parts = fetch_parts(lambda check: self.transport.get_bulk(uri, _BULK, most=_MAX_BULK, check=check))
        if len(parts) != 1:
            raise ReadError(f"{self.transport.host} answers with {len(parts)} parts of bulk data; expected 1")
        return bytes(parts[0].data)

    def read_file(self, resource: ResourceUrl, *, most: int, digest: str) -> bytes | memoryview:
        """Return an instance as a file, in the transfer syntax in which it is stored if that is decoded."""
        key = (resource.url, digest)
        found = None if self._cache is None else self._cache.load(key)
        if found is not None:
            return found
        data = self._fetch_file(resource, most)
        if self._cache is not None:
            self._cache.store(key, data)
        return data

    def read_frames(
        self, resource: ResourceUrl, layout: FrameLayout, digest: str, numbers: Sequence[int]
    ) -> list[Frame] | None:
        """Return frames of an instance; None if its file has to be read, or is in the cache."""
        if self._cache is not None and self._cache.holds((resource.url, digest)):
            return None
        return self._frames.read(resource, layout, digest, numbers)

    def _fetch_file(self, resource: ResourceUrl, most: int) -> memoryview:
        try:
            part = self._fetch_part(resource, most, self._syntax)
        except ServerAnswerError as error:
            if error.status not in _NOT_ACCEPTED or self._syntax == EXPLICIT:
                raise
            part = self._fetch_part(resource, most, EXPLICIT)
            self._syntax = EXPLICIT
        syntax = _find_syntax(part.data)
        if syntax is None or syntax in NATIVE_SYNTAXES or syntax in SYNTAXES:
            return part.data
        # there is no decoder for it here, but the server may have one
        try:
            return self._fetch_part(resource, most, EXPLICIT).data
        except MedimgError:
            return part.data

    def _fetch_part(self, resource: ResourceUrl, most: int, syntax: str) -> Part:
        accept = _FILE.format(syntax)
        parts = fetch_parts(lambda check: self.transport.get(resource.path, accept, most=most, check=check))
        if len(parts) != 1:
            raise ReadError(
                f"{self.transport.host} answers with {len(parts)} files for {resource.path}; expected 1"
            )
        return parts[0]


def _find_syntax(data: memoryview) -> str | None:
    """Return the Transfer Syntax UID in the meta information; None if it is not at its usual place."""
    head = bytes(data[:2048])
    at = head.find(_SYNTAX_ELEMENT)
    if at < 0:
        return None
    start = at + len(_SYNTAX_ELEMENT) + 2
    length = int.from_bytes(head[start - 2 : start], "little")
    return head[start : start + length].rstrip(b"\0 ").decode("latin-1")


def find_largest_size(item: JsonObject) -> int:
    """Return the bytes that the file of an instance can have, by its metadata."""
    pixels = 1
    for tag, default in (
        ("00280010", 1), ("00280011", 1), ("00280002", 1), ("00280008", 1), ("00280100", 8),
    ):  # fmt: skip
        pixels *= get_json_number(item, tag) or default
    # codestreams of noise are somewhat longer than what they hold
    return min(_MAX_FILE, pixels // 8 * 3 // 2 + _HEADER_BYTES)


@dataclass(frozen=True, slots=True)
class RemoteInstance:
    """An instance of a server as a file: its header is made of metadata, its bytes are fetched when read."""

    retriever: Retriever = field(repr=False)
    resource: ResourceUrl
    most: int
    digest: str  # of the metadata: files cached under another one are not used
    layout: FrameLayout | None = None  # of frames that can be read apart from the file

    @classmethod
    def from_metadata(cls, retriever: Retriever, resource: ResourceUrl, item: JsonObject) -> RemoteInstance:
        """Return the instance that metadata describe."""
        text = json_text(item)
        retriever.keep_metadata(resource, text)
        layout = FrameLayout.from_metadata(item)
        return cls(retriever, resource, find_largest_size(item), content_hash(text), layout)

    def open(self) -> BinaryIO:
        """Fetch the file."""
        return io.BytesIO(self.retriever.read_file(self.resource, most=self.most, digest=self.digest))

    def size(self) -> int:
        """Return the number of bytes; the file is fetched for it."""
        return self.open().seek(0, io.SEEK_END)

    def identify(self) -> str:
        """Return a digest of its URL and metadata: pixels do not change under a SOP Instance UID."""
        return content_hash([self.resource.url, self.digest])

    def sibling(self, relative: str) -> None:
        """Return None: instances have no files beside them."""

    def read_header(self, tags: frozenset[int]) -> bytes | None:
        """Return the elements `tags` as a file without pixels; None if they are only in the whole file."""
        return make_header(self.retriever.find_metadata(self.resource), tags, self.retriever.read_bulk)

    def read_frames(self, numbers: Sequence[int]) -> list[Frame] | None:
        """Return transfer syntax and bytes of frames; None if they come with the file only."""
        if self.layout is None:
            return None
        return self.retriever.read_frames(self.resource, self.layout, self.digest, numbers)


def make_header(item: JsonObject, tags: frozenset[int], read_bulk: Callable[[str], bytes]) -> bytes | None:
    """Return what :meth:`RemoteInstance.read_header` does; bulk data are fetched if they are needed."""
    if has_nested_bulk(item, tags) or has_lost_backslashes(item):
        return None
    wanted = tags if "MOSAIC" in json.dumps(item.get("00080008")) else tags.difference(CSA_TAGS)
    return encode_header(item, wanted, lambda tag, uri: read_bulk(uri))
