"""Ranges of bytes of files elsewhere: fetched by fsspec, repeated, bounded, all of one version."""

from __future__ import annotations

import asyncio
import random
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from medimg.errors import MedimgError, ReadError
from medimg.io.files.object_storage import explain_failure, find_storage, get_status, name_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

__all__ = [
    "FIRST_BYTES",
    "Answer",
    "FileFacts",
    "call_storage",
    "fetch_object",
    "fetch_range",
    "find_file",
    "parse_facts",
]

#: Bytes that are fetched first, which hold the header of a usual file.
FIRST_BYTES: Final = 2**16
#: Bytes of a file of a server that does not give ranges, or no size.
_MAX_WHOLE: Final = 2**31
_PIECE_BYTES: Final = 2**18
#: Seconds that a request may take, besides one for so many bytes.
_TIMEOUT_S: Final = 60.0
_LEAST_RATE: Final = 2**16
_TRIES: Final = 5
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_TRANSIENT: Final = frozenset({429, 500, 502, 503, 504})
#: Errors of a connection that breaks, by aiohttp; s3fs and others repeat their own.
_BROKEN: Final = frozenset({"ClientConnectionError", "ClientPayloadError"})
#: What tells versions of a file from each other, in listings; the first one that is there.
_VERSION_KEYS: Final = (
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "mtime",
    "LastModified",
    "updated",
    "created",
)
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

_T = TypeVar("_T")


class FileFacts(NamedTuple):
    """Size in bytes, version, "" if the server gives none, and whether ranges of it can be fetched."""

    size: int
    version: str
    ranged: bool = True


class Answer(NamedTuple):
    """Bytes from an offset on, the size of the file, None if it isn't stated, and its version."""

    data: bytes
    offset: int
    size: int | None
    version: str
    ranged: bool = True


class EndsEarlyError(ConnectionError):
    """Fewer bytes arrived than were announced."""


class ServerAnswerError(Exception):
    """A web server answered with an error."""

    def __init__(self, status: int, retry_after: str) -> None:
        super().__init__()
        self.status = status
        self.retry_after = retry_after


def parse_facts(info: Mapping[str, Any]) -> FileFacts:
    """Return the facts in an entry of a listing of fsspec."""
    version = next((info[key] for key in _VERSION_KEYS if info.get(key)), "")
    if isinstance(version, datetime):  # others give the same time as a number
        version = version.timestamp()
    return FileFacts(int(info.get("size") or 0), str(version).strip('"'))


def call_storage(url: str, work: Callable[[Any, str], _T]) -> _T:
    """Return what a function makes of file system and path of a URL; repeated, with the errors of medimg."""
    storage, path = find_storage(url)
    began = time.monotonic()
    for attempt in range(_TRIES):
        try:
            return work(storage, path)
        except MedimgError:
            raise
        # each protocol has errors of its own
        except Exception as error:
            pause = _find_pause(error, attempt)
            if pause is None or time.monotonic() + pause > began + _TIMEOUT_S:
                raise explain_failure(error, url) from None
        time.sleep(pause)
    raise AssertionError  # the last try returns or raises


def _find_pause(error: Exception, attempt: int) -> float | None:
    """Return the seconds until the next try; None if there is none."""
    names = {kind.__name__ for kind in type(error).__mro__}
    is_broken = isinstance(error, ConnectionError) or bool(names & _BROKEN and "ClientSSLError" not in names)
    is_transient = is_broken or get_status(error) in _TRANSIENT
    if not is_transient or attempt == _TRIES - 1:
        return None
    asked = error.retry_after if isinstance(error, ServerAnswerError) else ""
    if asked.isascii() and asked.isdecimal():
        return min(float(asked), _LONGEST_PAUSE_S)
    return float(_FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.5))


def find_file(url: str) -> tuple[FileFacts | None, bytes, bool]:
    """
    Return facts of a file, None if it is a folder; of a web server its first bytes, and whether it gave all.

    It does if it states no size. ReadError if there is nothing.
    """

    def find(storage: Any, path: str) -> tuple[FileFacts | None, bytes, bool]:
        if not _is_web(storage):
            info = _get_info(storage, path)
            return (parse_facts(info) if info["type"] == "file" else None), b"", False
        answer = _wait(storage, lambda: _get_http(storage, path, 0, FIRST_BYTES), FIRST_BYTES)
        if answer.size is None:
            answer = _wait(storage, lambda: _get_http(storage, path, 0, _MAX_WHOLE + 1), _MAX_WHOLE)
            if len(answer.data) > _MAX_WHOLE:
                raise ReadError(
                    f"{name_url(url)} has no stated size, and more than {_MAX_WHOLE >> 20} MB; download it"
                )
            return FileFacts(len(answer.data), "", ranged=False), answer.data, True
        return FileFacts(answer.size, answer.version, answer.ranged), answer.data, False

    return call_storage(url, find)


def fetch_range(url: str, start: int, stop: int, expected: FileFacts) -> tuple[int, bytes]:
    """
    Return bytes of a file that include those from `start` to `stop`, and their offset.

    A web server that does not give ranges sends the file from its start. ReadError if it is no longer the
    expected one.
    """

    def fetch(storage: Any, path: str) -> Answer:
        if _is_web(storage):
            answer = _wait(storage, lambda: _get_http(storage, path, start, stop), stop - start)
        elif _is_s3(storage):
            answer = _wait(storage, lambda: _get_s3(storage, path, start, stop), stop - start)
        else:
            answer = _get_other(storage, path, start, stop)
        if answer.version != expected.version or answer.size not in (None, expected.size):
            raise ReadError(f"{name_url(url)} has changed since it was listed; scan it again")
        if answer.offset + len(answer.data) < stop:
            raise EndsEarlyError
        return answer

    answer = call_storage(url, fetch)
    return answer.offset, answer.data


def fetch_object(url: str, most: int) -> bytes:
    """Return all bytes of an object, whatever its version; ReadError if there are more than `most`."""

    def fetch(storage: Any, path: str) -> bytes:
        if _is_s3(storage):
            return _wait(storage, lambda: _get_s3(storage, path, 0, most + 1), most).data
        data: bytes = storage.cat_file(path)
        return data

    data = call_storage(url, fetch)
    if len(data) > most:
        raise ReadError(f"{name_url(url)} has more than {most >> 20} MB")
    return data


def _is_web(storage: Any) -> bool:
    return "http" in storage.protocol


def _is_s3(storage: Any) -> bool:
    return "s3" in storage.protocol and hasattr(storage, "_call_s3")


def _wait(storage: Any, start: Callable[[], Awaitable[_T]], size: int) -> _T:
    """Return the result of a request, in the thread in which fsspec makes them."""
    from fsspec.asyn import sync

    seconds = _TIMEOUT_S + size / _LEAST_RATE
    found: _T = sync(storage.loop, asyncio.wait_for, start(), seconds)
    return found


async def _read_body(read: Callable[[int], Awaitable[bytes]], most: int) -> bytes:
    """Return the bytes of an answer, at most so many."""
    pieces, left = [], most
    while left > 0 and (piece := await read(min(left, _PIECE_BYTES))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


async def _get_http(storage: Any, url: str, start: int, stop: int) -> Answer:
    session = await storage.set_session()
    options = dict(storage.kwargs)
    options["headers"] = {
        **options.get("headers", {}), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"
    }  # fmt: skip
    async with session.get(storage.encode_url(url), **options) as response:
        headers = response.headers
        version = headers.get("ETag") or headers.get("Last-Modified") or ""
        stated = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        encoded = headers.get("Content-Encoding", "identity").lower() not in ("", "identity")
        if response.status == 416 and start == 0:  # of an empty file
            return Answer(b"", 0, 0, version)
        if response.status == 206 and stated is not None and int(stated[1]) == start and not encoded:
            size = None if stated[3] == "*" else int(stated[3])
            return Answer(await _read_body(response.content.read, stop - start), start, size, version)
        if response.status != 200:
            raise ServerAnswerError(response.status, headers.get("Retry-After", ""))
        # without ranges, the bytes before are sent, too
        length = None if encoded else response.content_length
        most = stop if start == 0 else min(_MAX_WHOLE, stop if length is None else length)
        data = await _read_body(response.content.read, most)
        if length is None and len(data) < most:
            length = len(data)
        return Answer(data, 0, length, version, ranged=False)


async def _get_s3(storage: Any, path: str, start: int, stop: int) -> Answer:
    bucket, key, version_id = storage.split_path(path)
    options = {"Range": f"bytes={start}-{stop - 1}"} | ({"VersionId": version_id} if version_id else {})
    response = await storage._call_s3("get_object", storage.req_kw, Bucket=bucket, Key=key, **options)
    body = response["Body"]
    try:
        data = await _read_body(body.read, stop - start)
    finally:
        body.close()
    stated = _CONTENT_RANGE.fullmatch(response.get("ContentRange") or "")
    # a server that ignores ranges sends the file from its start
    offset = start if stated is None and start == 0 else int(stated[1]) if stated else -1
    if offset != start:
        raise ReadError("the server sends other bytes than were asked for")
    size = response.get("ContentLength") if stated is None else None if stated[3] == "*" else int(stated[3])
    return Answer(data, start, size, str(response.get("ETag") or "").strip('"'))


def _get_other(storage: Any, path: str, start: int, stop: int) -> Answer:
    """Return a range, and the facts of the file after it was read."""
    if storage.async_impl:
        data = _wait(storage, lambda: storage._cat_file(path, start=start, end=stop), stop - start)
    else:
        data = storage.cat_file(path, start=start, end=stop)
    size, version, _ = parse_facts(_get_info(storage, path))
    return Answer(data, start, size, version)


def _get_info(storage: Any, path: str) -> dict[str, Any]:
    info: dict[str, Any] = (
        _wait(storage, lambda: storage._info(path), FIRST_BYTES) if storage.async_impl else storage.info(path)
    )
    return info
