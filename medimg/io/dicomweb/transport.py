"""Requests to one server: bounded in time and memory, repeated with back-off, credentials for it alone."""

from __future__ import annotations

import os
import random
import threading
import time
import warnings
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast
from urllib.parse import quote, urlencode

from medimg.errors import MedimgError, MedimgWarning, MissingDependencyError, ReadError, also
from medimg.io.dicomweb.connection_errors import explain_error
from medimg.io.dicomweb.service_url import find_origin, is_loopback, join_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import requests

__all__ = ["Answer", "Credentials", "ServerAnswerError", "SizedBody", "Transport"]

#: Answers after which a request is repeated.
_TRANSIENT: Final = frozenset({429, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_REPEATED_METHODS: Final = frozenset({307, 308})
_MAX_REDIRECTS: Final = 5
#: Headers one of which says where an answer ends.
_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})
_CHUNK_BYTES: Final = 2**18
#: Slower answers are given up: they would take hours.
_LEAST_BYTES_PER_SECOND: Final = 2**10
_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 10.0
_CONNECT_S: Final = 10.0
_CONNECTIONS: Final = 16


class ServerAnswerError(ReadError):
    """Raised if a server answers with an error; `status` is its number, 0 if it did not answer in full."""

    status: int = 0


class _TransientError(Exception):
    """Raised for a failure after which a request may be repeated; `error` is that of the last attempt."""

    def __init__(self, error: MedimgError, wait: float | None = None) -> None:
        super().__init__()
        self.error = error
        self.wait = wait


class SizedBody(Protocol):
    """Body of a request: its pieces, from the first one each time, and the number of bytes."""

    def __iter__(self) -> Iterator[bytes]: ...

    def __len__(self) -> int: ...


class Answer(NamedTuple):
    """Status, headers and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytearray


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What identifies the user to a server; shown nowhere."""

    headers: Mapping[str, str]
    auth: Any = None
    token: Callable[[], str] | None = None

    @property
    def exist(self) -> bool:
        """Whether there are any."""
        return bool(self.headers or self.auth or self.token)


class _TokenSource:
    """The current bearer token, from any thread."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._token: str | None = None

    def get(self, refused: str | None = None) -> str:
        """Return the token; a fresh one if the current one was refused."""
        with self._lock:
            if self._token is None or self._token == refused:
                self._token = self._check(self._call())
            return self._token

    def _call(self) -> object:
        try:
            return self._make()
        except MedimgError:
            raise
        # whatever a user's function raises may hold the token
        except Exception as error:
            raise ReadError(f"token() raised {type(error).__name__}; expected a bearer token") from None

    @staticmethod
    def _check(token: object) -> str:
        if not isinstance(token, str) or not token.isprintable() or not token.isascii() or not token:
            raise ReadError("token() must return a bearer token, a text without line breaks")
        return token


class Transport:
    """Sends requests to one server from any thread and process; a pickle has no open connections."""

    def __init__(
        self,
        base: str,
        credentials: Credentials,
        *,
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        timeout: float = 60.0,
        retries: int = 4,
    ) -> None:
        self._base = base
        origin = find_origin(base)
        assert origin is not None  # was checked
        self._origin = origin
        self._credentials = credentials
        self._verify = verify
        self._cert = cert
        self._timeout = timeout
        self._retries = retries
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._session: tuple[int, requests.Session] | None = None
        self._tokens = None if self._credentials.token is None else _TokenSource(self._credentials.token)
        self._warned = False
        self._netrc: tuple[str, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_base", "_origin", "_credentials", "_verify", "_cert", "_timeout", "_retries")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    @property
    def host(self) -> str:
        """Name of the server, for messages."""
        return self._origin[1]

    def get(
        self,
        path: str,
        accept: str,
        *,
        most: int,
        query: Iterable[tuple[str, str]] = (),
        compressed: bool = False,
        check: Callable[[Answer], None] | None = None,
    ) -> Answer:
        """
        Get a path below the base; the body has at most `most` bytes.

        `check` raises ReadError if the body is cut off: then the request is repeated. Raises
        ServerAnswerError if the server answers with an error, ReadError if it doesn't within the time-out.
        """
        headers = {"Accept": accept, "Accept-Encoding": "gzip, deflate" if compressed else "identity"}
        return self._repeat(_Call("GET", self._base + path, path, headers, most, tuple(query), check=check))

    def get_bulk(self, uri: str, accept: str, *, most: int, check: Callable[[Answer], None]) -> Answer:
        """Get a URL that the server gave; ReadError if it is of another server."""
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        return self._repeat(_Call("GET", self._locate(uri), "bulk data", headers, most, check=check))

    def post(self, path: str, headers: Mapping[str, str], body: SizedBody, *, most: int) -> Answer:
        """Post a body, made again for each attempt; 409, for some of what was stored, is an answer, too."""
        return self._repeat(_Call("POST", self._base + path, path, headers, most, body=body))

    def _locate(self, url: str) -> str:
        """Return a URL, which the server made, if it is its own."""
        if find_origin(url) == self._origin:
            return url
        # behind a proxy, servers don't know their own name
        scheme, _, rest = self._base.partition("://")
        prefix = "/" + rest.partition("/")[2] + "/"
        path = "/" + url.partition("://")[2].partition("/")[2]
        if prefix != "//" and path.startswith(prefix) and ".." not in path:
            return f"{scheme}://{rest.partition('/')[0]}{path}"
        raise ReadError(f"{self.host} refers to data on another server, which are not read")

    def _repeat(self, call: _Call) -> Answer:
        """Send a request until it succeeds, `retries` more times at most, none of them after the time-out."""
        start = time.monotonic()
        for attempt in range(self._retries + 1):
            try:
                return self._send(call)
            except _TransientError as failure:
                waits = _FIRST_WAIT_S * 2**attempt * (0.5 + random.random())
                wait = min(waits, _LONGEST_WAIT_S) if failure.wait is None else failure.wait
                left = start + self._timeout - time.monotonic()
                if attempt == self._retries or wait > left:
                    failure.error.add_note(f"after {attempt + 1} attempt(s)")
                    raise failure.error from None
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _send(self, call: _Call) -> Answer:
        """Send a request once, again with a fresh token if the first was refused, and follow redirects."""
        url, refused = call.url, None
        redirects = 0
        while True:
            is_own = find_origin(url) == self._origin
            token = self._tokens.get(refused) if self._tokens and is_own else None
            answer = self._send_once(call, url, token, is_own=is_own)
            if answer.status == HTTPStatus.UNAUTHORIZED and token is not None and refused is None:
                refused = token
                continue
            if answer.status not in _REDIRECTS:
                self._check_status(call, answer)
                return answer
            redirects += 1
            if redirects > _MAX_REDIRECTS:
                raise ReadError(f"{self.host} redirects {call.name} more than {_MAX_REDIRECTS} times")
            url = self._redirect(call, url, answer)

    def _redirect(self, call: _Call, url: str, answer: Answer) -> str:
        location = answer.headers.get("Location", "")
        target = join_url(url, location)
        origin = find_origin(target)
        if not location or origin is None or "@" in target.partition("://")[2].partition("/")[0]:
            raise ReadError(f"{self.host} redirects {call.name} to an invalid URL")
        if call.method != "GET" and (origin != self._origin or answer.status not in _REPEATED_METHODS):
            raise ReadError(
                f"{self.host} redirects what is stored to another URL; use that URL: it is its own"
            )
        if (
            origin[0] == "http"
            and (url.startswith("https:") or not is_loopback(origin[1]))
            and (origin != self._origin)
        ):
            raise ReadError(f"{self.host} redirects {call.name} to an unencrypted URL, which is not followed")
        return target

    def _send_once(self, call: _Call, url: str, token: str | None, *, is_own: bool) -> Answer:
        headers = dict(call.headers)
        auth: Any = _keep_request
        if is_own:
            headers |= self._credentials.headers
            if token is not None:
                headers["Authorization"] = f"Bearer {token}"
            auth = self._find_auth() or _keep_request
        try:
            with self._open_session().request(
                call.method,
                url,
                # servers take an encoded wildcard literally
                params=urlencode(call.query, safe="*?,", quote_via=quote) if url == call.url else None,
                headers=headers,
                auth=auth,
                data=call.body,
                stream=True,
                allow_redirects=False,
                verify=self._verify,
                cert=self._cert if is_own else None,
                timeout=(min(_CONNECT_S, self._timeout), self._timeout),
            ) as response:
                body = self._read_body(response, call)
                answer = Answer(response.status_code, response.headers, body)
        except MedimgError:
            raise
        except Exception as error:
            failure, is_transient = explain_error(
                error,
                host=self.host,
                name=call.name,
                timeout=self._timeout,
                has_cert=self._cert is not None,
            )
            # what was stored may have arrived
            if is_transient and (call.method == "GET" or not isinstance(failure, TimeoutError)):
                raise _TransientError(failure) from None
            raise failure from None
        if answer.status == HTTPStatus.OK and not body and not _FRAMING & {n.lower() for n in answer.headers}:
            # headers that break off pass for whole ones, and nothing for an empty result
            raise _TransientError(
                also(ReadError, EOFError)(
                    f"the answer of {self.host} to {call.name} breaks off in its headers"
                )
            )
        if call.check is not None and answer.status < HTTPStatus.MULTIPLE_CHOICES:
            try:
                call.check(answer)
            except EOFError as error:
                raise _TransientError(_as_read_error(error)) from None
        return answer

    def _find_auth(self) -> Any:
        """Return what authenticates a request; from .netrc if no credentials were given."""
        if self._credentials.exist:
            self._warn_if_plain()
            return self._credentials.auth
        from requests.utils import get_netrc_auth

        found = get_netrc_auth(self._base)
        if found is None:
            return None
        self._warn_if_plain()
        # as auth= is; requests would take Latin-1
        return tuple(part.encode() for part in found)

    def _warn_if_plain(self) -> None:
        scheme, host, _ = self._origin
        if scheme == "http" and not is_loopback(host) and not self._warned:
            self._warned = True
            warnings.warn(
                f"credentials are sent to {host} unencrypted; use https://", MedimgWarning, stacklevel=2
            )

    def _open_session(self) -> requests.Session:
        """Return the session of this process: connections can't be shared with a parent."""
        with self._lock:
            if self._session is None or self._session[0] != os.getpid():
                self._session = os.getpid(), _make_session()
            return self._session[1]

    def _read_body(self, response: requests.Response, call: _Call) -> bytearray:
        """Read an answer as it arrives; ReadError if it is too long or too slow."""
        declared = response.headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared) > call.most:
            raise ReadError(self._describe_excess(call))
        body, start, raw = bytearray(), time.monotonic(), response.raw
        # read1 returns what has arrived: a drop each minute would otherwise be waited for until the end
        while chunk := raw.read1(_CHUNK_BYTES, decode_content=True):
            body += chunk
            if len(body) > call.most:
                raise ReadError(self._describe_excess(call))
            if time.monotonic() - start > self._timeout + len(body) / _LEAST_BYTES_PER_SECOND:
                raise also(ReadError, TimeoutError)(
                    f"{self.host} sent only {len(body)} bytes of {call.name} in {self._timeout:g} s"
                )
        return body

    def _describe_excess(self, call: _Call) -> str:
        return (
            f"{self.host} answers {call.name} with more than the {call.most} bytes that it can sensibly "
            "have; it is not read"
        )

    def _check_status(self, call: _Call, answer: Answer) -> None:
        """Raise the error of a status; _TransientError if the request may succeed later."""
        status = answer.status
        if status < HTTPStatus.MULTIPLE_CHOICES or (call.method == "POST" and status == HTTPStatus.CONFLICT):
            return
        title = HTTPStatus(status).phrase if status in set(HTTPStatus) else "unknown status"
        error_type: type[ReadError] = ServerAnswerError
        hint = ""
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            error_type = also(ServerAnswerError, PermissionError)
            hint = (
                "; check auth=, token=, headers= or .netrc"
                if status == HTTPStatus.UNAUTHORIZED
                else ("; the account has no right to it")
            )
        elif status == HTTPStatus.NOT_FOUND:
            error_type, hint = also(ServerAnswerError, FileNotFoundError), "; check the UIDs and the base URL"
        elif status == HTTPStatus.METHOD_NOT_ALLOWED or (
            status == HTTPStatus.BAD_REQUEST and call.method == "GET"
        ):
            hint = "; check the base URL, such as https://host/dicom-web, and what is asked for"
        error = error_type(f"{self.host} answers {status} ({title}) to {call.name}{hint}")
        assert isinstance(error, ServerAnswerError)
        error.status = status
        if status in _TRANSIENT:
            raise _TransientError(error, _parse_retry_after(answer.headers.get("Retry-After", "")))
        raise error


@dataclass(frozen=True, slots=True)
class _Call:
    """A request, and what its answer may be."""

    method: str
    url: str
    name: str  # for messages: the query can hold patient data
    headers: Mapping[str, str]
    most: int
    query: tuple[tuple[str, str], ...] = ()
    body: SizedBody | None = None
    check: Callable[[Answer], None] | None = None


def _keep_request(request: Any) -> Any:
    """Add no credentials to a request: without it, requests would look into .netrc."""
    return request


def _import_requests() -> Any:
    try:
        import requests
    except ImportError:
        raise MissingDependencyError(
            "reading from a DICOMweb server needs requests; install it with pip install 'medimg[pacs]'"
        ) from None
    return requests


def _make_session() -> requests.Session:
    session = cast("requests.Session", _import_requests().Session())
    from medimg.io.dicomweb.timed_connection import TimedAdapter

    adapter = TimedAdapter(pool_maxsize=_CONNECTIONS, max_retries=0)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    # none are kept for other requests
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers["User-Agent"] = "medimg"
    return session


def _as_read_error(error: EOFError) -> MedimgError:
    return error if isinstance(error, MedimgError) else also(ReadError, EOFError)(str(error))


def _parse_retry_after(text: str) -> float | None:
    """Return the seconds that a server wants to be left alone; None if it says nothing understandable."""
    if text.strip().isdecimal():
        return float(text.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
