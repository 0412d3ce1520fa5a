"""The body of a request into an upload: one file, or the parts of a multipart message."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from medimg._validation import printable
from medimg.serve._problem import RequestError

if TYPE_CHECKING:
    from fastapi import Request

    from medimg.serve._upload import Upload
    from medimg.serve.limits import ServiceLimits

__all__ = ["FILE_TYPES", "JSON_TYPE", "MULTIPART_TYPES", "receive_body"]

#: Types of a body that is one file; what it holds is detected from its content.
FILE_TYPES: Final = (
    "application/dicom",
    "application/zip",
    "application/x-zip-compressed",
    "application/gzip",
    "application/x-gzip",
    "application/nifti",
    "application/x-nifti",
    "application/octet-stream",
)
MULTIPART_TYPES: Final = ("multipart/form-data", "multipart/related")
JSON_TYPE: Final = "application/json"
_MOST_JSON: Final = 2**14
_MOST_IN_NAME: Final = 120


class _Writer(Protocol):
    """Writes the pieces of a body into an upload; `url` is set at the end of a body that is one."""

    url: str | None

    def write(self, data: bytes) -> None: ...
    def finish(self) -> None: ...


async def receive_body(
    request: Request, upload: Upload, limits: ServiceLimits, *, takes_url: bool
) -> str | None:
    """Write the body into the upload, or return its URL; RequestError if it is too large or malformed."""
    writer = _make_writer(request, upload, takes_url=takes_url)
    _check_declared_size(request, limits)
    received = 0
    try:
        async with asyncio.timeout(limits.upload_timeout):
            async for piece in request.stream():
                received += len(piece)
                if received > limits.upload_bytes:
                    raise _too_large(limits)
                if upload.is_on_disk:
                    # a slow disk must not stop other requests
                    await asyncio.to_thread(writer.write, piece)
                else:
                    writer.write(piece)
    except TimeoutError:
        raise RequestError(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the body did not arrive within {limits.upload_timeout:g} s; send less, or over a faster line",
            {"Connection": "close"},
        ) from None
    writer.finish()
    if not received:
        raise RequestError(HTTPStatus.BAD_REQUEST, "the body is empty; expected an image, or a zip of images")
    return writer.url


def _check_declared_size(request: Request, limits: ServiceLimits) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.upload_bytes:
        raise _too_large(limits)


def _too_large(limits: ServiceLimits) -> RequestError:
    return RequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is larger than {limits.max_upload_mb} MiB; send fewer images at once",
    )


def _make_writer(request: Request, upload: Upload, *, takes_url: bool) -> _Writer:
    """Return the writer for the type of the body; RequestError if there is none."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "the body is compressed by a Content-Encoding; send a zip archive or a .gz file instead",
            {"Accept-Encoding": "identity"},
        )
    stated = request.headers.get("content-type", "application/octet-stream")
    content_type, options = parse_options_header(stated)
    name = content_type.decode("latin-1")
    if name in MULTIPART_TYPES:
        boundary = options.get(b"boundary", b"")
        if not boundary:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"the body is {name} without a boundary")
        return _MultipartWriter(upload, boundary, is_form=name == "multipart/form-data")
    if name == JSON_TYPE and takes_url:
        return _UrlWriter()
    if name in FILE_TYPES or name.startswith("image/"):
        return _FileWriter(upload)
    hint = "; with curl: -F file=@image.dcm" if name == "application/x-www-form-urlencoded" else ""
    raise RequestError(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        f"the body is {printable(name)!r}; expected {', '.join(MULTIPART_TYPES)}, {', '.join(FILE_TYPES)} or "
        f"image/*{hint}",
        {"Accept-Post": ", ".join((*MULTIPART_TYPES, *FILE_TYPES, "image/*"))},
    )


class _UrlWriter:
    """Writer of a body that names a study, series or instance: ``{"url": "https://…"}``."""

    def __init__(self) -> None:
        self.url: str | None = None
        self._data = bytearray()

    def write(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > _MOST_JSON:
            raise RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the JSON has more than {_MOST_JSON} bytes; expected a URL",
            )

    def finish(self) -> None:
        try:
            found = json.loads(self._data)
        # nesting can exceed the stack
        except (ValueError, RecursionError):
            found = None
        url = found.get("url") if isinstance(found, dict) and len(found) == 1 else None
        if not isinstance(url, str):
            raise RequestError(
                HTTPStatus.BAD_REQUEST,
                'the JSON is no URL; expected {"url": "https://host/dicom-web/studies/UID"}, or the URL of a '
                "series or instance",
            )
        self.url = url


class _FileWriter:
    """Writer of a body that is one file."""

    url: str | None = None

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        upload.start_file("body")

    def write(self, data: bytes) -> None:
        self._upload.write(data)

    def finish(self) -> None:
        pass


class _MultipartWriter:
    """Writer of a body whose parts are files."""

    url: str | None = None

    def __init__(self, upload: Upload, boundary: bytes, *, is_form: bool) -> None:
        self._upload = upload
        self._is_form = is_form
        self._field = self._value = b""
        self._disposition = b""
        self._has_ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_field,
                    "on_header_value": self._add_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._start_file,
                    "on_part_data": self._write_part,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise _malformed("its boundary is too long") from None

    def write(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError:
            raise _malformed("its parts can't be separated") from None

    def finish(self) -> None:
        if not self._has_ended:
            raise _malformed("it ends before its last boundary")

    def _begin_part(self) -> None:
        self._disposition = b""

    def _add_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _start_file(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename")
        if self._is_form and name is None:
            raise RequestError(
                HTTPStatus.BAD_REQUEST,
                "a part of the form is not a file; expected files alone, and settings in the query",
            )
        self._upload.start_file(_clean_name(name or b""))

    def _write_part(self, data: bytes, start: int, end: int) -> None:
        self._upload.write(data[start:end])

    def _end(self) -> None:
        self._has_ended = True


def _malformed(reason: str) -> RequestError:
    return RequestError(
        HTTPStatus.BAD_REQUEST, f"the body is not a valid multipart message: {reason}; send it again"
    )


def _clean_name(name: bytes) -> str:
    """Return the last component of a file's name, printable and short."""
    text = name.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    return printable(text, _MOST_IN_NAME).strip()
