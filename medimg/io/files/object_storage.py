"""Object storage and web servers: URLs as fsspec's file systems."""

from __future__ import annotations

import logging
import os
import re
import traceback
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, TypeGuard
from urllib.parse import parse_qsl, urljoin, urlsplit, urlunsplit

from medimg._validation import check_path, did_you_mean
from medimg.core.content_hash import content_hash, json_text
from medimg.errors import MissingDependencyError, ReadError, StoreError, also

if TYPE_CHECKING:
    from pathlib import Path

    from medimg.errors import MedimgError

__all__ = [
    "check_location",
    "convert_failure",
    "explain_failure",
    "explain_write_failure",
    "find_storage",
    "find_writable",
    "get_status",
    "is_remote_url",
    "is_web_url",
    "local_name",
    "name_url",
    "redact_url",
    "refuse_url_as_path",
    "show_location",
]

#: Protocols of fsspec, and the extra of medimg that has what each of them needs.
_EXTRAS: Final = {
    "s3": "s3", "s3a": "s3",
    "gs": "gcs", "gcs": "gcs",
    "az": "azure", "abfs": "azure", "abfss": "azure",
    "http": "remote", "https": "remote",
    "memory": "",
}  # fmt: skip
#: Protocols that would take a login in a URL as part of the name of the bucket, and log it.
_WITHOUT_LOGIN: Final = ("s3", "s3a", "gs", "gcs")
#: Parameters of signed URLs, of S3, CloudFront, Google and Azure.
_SIGNATURE: Final = re.compile(
    r"x-(?:amz|goog)-.*|signature|expires|awsaccesskeyid|googleaccessid|key-pair-id|policy|"
    r"s[vsrpegt]|srt|spr|sig|sip|sk(?:oid|tid|t|e|s|v)",
    re.IGNORECASE,
)
#: A file system asks for credentials once, and is kept.
_NO_CREDENTIALS: Final = (
    "no credentials were found, or only a part of them; set them in the environment (such as AWS_PROFILE) or "
    "the configuration of fsspec, and start Python again"
)
_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_WEB_URL: Final = re.compile(r"https?://\S+", re.IGNORECASE)
#: What :class:`~pathlib.Path` makes of a URL.
_PATH_OF_URL: Final = re.compile(rf"({'|'.join(_EXTRAS)}):[/\\](?![/\\])", re.IGNORECASE)


def is_remote_url(value: object) -> TypeGuard[str]:
    """Whether a value is the URL of a file that fsspec opens, on this machine or elsewhere."""
    match = _SCHEME.match(value) if isinstance(value, str) else None
    return match is not None and match[1].lower() in _EXTRAS


def is_web_url(url: str) -> bool:
    """Whether a URL is one of a web server."""
    return url[:8].lower().startswith(("http://", "https://"))


def refuse_url_as_path(path: os.PathLike[str] | str) -> None:
    """Raise ReadError for a path that was made of a URL, and has lost a slash by it, and for other URLs."""
    unknown = _SCHEME.match(path) if isinstance(path, str) else None
    # one letter is a drive
    if unknown and len(unknown[1]) > 1 and unknown[1].lower() not in _EXTRAS:
        raise ReadError(
            f"{unknown[1]}:// is no protocol that is read; expected one of {', '.join(_EXTRAS)}"
            f"{did_you_mean(unknown[1], _EXTRAS)}"
        )
    match = _PATH_OF_URL.match(str(path))
    if match:
        raise ReadError(
            f"a URL of {match[1].lower()}:// was made a path, which changes it; pass the URL as a str"
        )


def find_storage(url: str) -> tuple[Any, str]:
    """
    Return the file system of a URL, of the type fsspec.AbstractFileSystem, and the path in it.

    Credentials and end points are those of fsspec's configuration and of the environment. File systems are
    shared in a process, and must not be kept across a fork: find them again. Raises MissingDependencyError
    without the package of the protocol, and ReadError for a URL that is invalid.
    """
    import fsspec

    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme in _WITHOUT_LOGIN and "@" in rest.partition("/")[0]:
        raise ReadError(
            f"{name_url(url)} is given with a login, which {scheme}:// does not have; put credentials in the "
            "configuration of fsspec or the environment"
        )
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise MissingDependencyError(
            f"{scheme}:// needs a package that can't be imported ({error}); install it with: "
            f'pip install "medimg[{_EXTRAS[scheme]}]"'
        ) from error
    # each protocol has its own checks, and errors, whose texts may have the URL
    try:
        # not by url_to_fs, for which "::" in a URL leads to another one, or to a file on this machine
        url = f"{scheme}://{rest}"
        options = fsspec.config.apply_config(kind, kind._get_kwargs_from_urls(url))
        path = kind._strip_protocol(url)
        key = os.getpid(), kind, fsspec.utils.tokenize(options)
        if scheme in ("http", "https"):
            for name in ("fsspec", "fsspec.http"):
                logging.getLogger(name).addFilter(_redact_record)  # added once
        if key not in _storages:
            # what was listed earlier must not be mixed with what is there now
            web = {"get_client": _open_session} if scheme in ("http", "https") else {}
            _storages[key] = kind(**{"use_listings_cache": False, **web, **options})
    except Exception as error:
        raise explain_failure(error, url) from None
    return _storages[key], path


#: File systems of this process; some versions of fsspec make one for each thread.
_storages: Final[dict[tuple[int, Any, str], Any]] = {}


async def _open_session(**options: Any) -> Any:
    """Return a session of aiohttp that follows no redirect from https to http."""
    import aiohttp

    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(_refuse_downgrade)
    return aiohttp.ClientSession(trace_configs=[tracing], **options)


async def _refuse_downgrade(session: Any, context: Any, redirect: Any) -> None:
    target = urljoin(str(redirect.url), redirect.response.headers.get("Location", ""))
    if redirect.url.scheme == "https" and not target.lower().startswith("https:"):
        raise ReadError(f"{name_url(str(redirect.url))} leads to a URL without encryption, which is not read")


def _redact_record(record: logging.LogRecord) -> bool:
    """Redact the URLs in a message of fsspec, and in an exception, which it logs at the level DEBUG."""
    record.msg = _redact_text(record.getMessage())
    record.args = ()
    if record.exc_info:
        lines = traceback.format_exception(*record.exc_info)
        record.exc_info, record.exc_text = None, _redact_text("".join(lines).rstrip())
    return True


def _redact_text(text: str) -> str:
    return _WEB_URL.sub(lambda match: redact_url(match[0]), text)


def redact_url(url: str) -> str:
    """Return a URL without user, password, query and fragment, any of which can be a secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{url.partition('://')[0]}://…"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def name_url(url: str) -> str:
    """
    Return the name of a file, for messages and to distinguish it from others: its URL without secrets.

    Of a web server it is what :func:`redact_url` returns. If a query selects the file, its digest follows;
    the signature of a URL that expires is no part of it.
    """
    scheme, _, rest = url.partition("://")
    if not is_web_url(url):
        # "?" and "#" may be in the key of an object
        place, slash, key = rest.partition("/")
        return f"{scheme}://{place.rpartition('@')[2]}{slash}{key}"
    try:
        query = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    except ValueError:
        query = []
    wanted = [(key, value) for key, value in query if not _SIGNATURE.fullmatch(key)]
    return redact_url(url) + (f"?{content_hash(json_text(wanted))[:12]}" if wanted else "")


def explain_failure(error: BaseException, url: str) -> ReadError:
    """Return the error of reading a URL, without the text of a library, which may quote secrets."""
    name = name_url(url)
    if isinstance(error, FileNotFoundError) or get_status(error) in (404, 410):
        return also(ReadError, FileNotFoundError)(f"there is no file {name}")
    if isinstance(error, PermissionError) or get_status(error) in (401, 403):
        return also(ReadError, PermissionError)(
            f"{name} may not be read with these credentials; check those of fsspec and of the environment"
        )
    if _lacks_credentials(error):
        return also(ReadError, PermissionError)(f"{name} can't be read: {_NO_CREDENTIALS}")
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return also(ReadError, TimeoutError)(f"{name} was not read in time; try again")
    status = get_status(error)
    found = f"{type(error).__name__}{f', HTTP {status}' if status else ''}"
    return also(ReadError, ConnectionError)(
        f"{name} can't be read ({found}); check the URL, the network, and the configuration of fsspec"
    )


def _lacks_credentials(error: BaseException) -> bool:
    """Whether an error of botocore or google-auth says that credentials are absent or incomplete."""
    return type(error).__name__ in (
        "NoCredentialsError",
        "PartialCredentialsError",
        "DefaultCredentialsError",
    )


def get_status(error: BaseException) -> int | None:
    """Return the HTTP status of an error of a library; None if it has none."""
    status = getattr(error, "status", None)  # of aiohttp
    answer = getattr(error.__cause__, "response", None)  # of botocore
    if isinstance(answer, dict):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


# writing, and copies of files on this machine

#: Names that every file system takes.
_PLAIN_NAME: Final = re.compile(r"[\w+-][\w.+ -]{0,99}", re.ASCII)
_ERROR_CODE: Final = re.compile(r"\w{1,40}", re.ASCII)


def check_location(name: str, value: object, *, error: type[MedimgError]) -> Path | str:
    """Return a path-like value as a Path, or a URL as it is."""
    if is_remote_url(value):
        return value
    if isinstance(value, os.PathLike):
        try:
            refuse_url_as_path(value)
        except ReadError as failure:
            raise error(f"{name}: {failure}") from None
    return check_path(name, value, error=error)


def show_location(location: Path | str) -> str:
    """Return a path, or a URL without its secrets, for messages."""
    return redact_url(location) if isinstance(location, str) else str(location)


def local_name(url: str) -> str:
    """Return the name of a file for the copy of a URL: its own, unless that is unusual; the same suffix."""
    name = PurePosixPath(redact_url(url)).name
    if _PLAIN_NAME.fullmatch(name):
        return name
    suffix = PurePosixPath(name).suffix
    return f"file{suffix}" if _PLAIN_NAME.fullmatch(suffix[1:]) else "file"


def convert_failure(failure: MedimgError, error: type[MedimgError]) -> MedimgError:
    """Return an error of reading a URL as another one, and as the built-in error that it is."""
    if not isinstance(failure, ReadError):
        return failure
    builtin = next(base for base in type(failure).__mro__ if base.__module__ == "builtins")
    return also(error, builtin)(str(failure))


def find_writable(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it; errors are those of writing."""
    try:
        return find_storage(url)
    except ReadError as error:
        raise explain_write_failure(error.__context__ or error, url) from None


def explain_write_failure(error: BaseException, url: str) -> StoreError:
    """Return the error of writing to a URL, without the text of a library, which may quote secrets."""
    name, status = redact_url(url), get_status(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return also(StoreError, FileNotFoundError)(
            f"{name} can't be written, as there is no such bucket or container; make it, or check the URL"
        )
    if isinstance(error, PermissionError) or status in (401, 403):
        return also(StoreError, PermissionError)(
            f"{name} may not be written with these credentials; check those of fsspec and of the environment"
        )
    if _lacks_credentials(error):
        return also(StoreError, PermissionError)(f"{name} can't be written: {_NO_CREDENTIALS}")
    if isinstance(error, TimeoutError):
        return also(StoreError, TimeoutError)(f"{name} was not written in time; try again")
    facts = [type(error).__name__, f"HTTP {status}" if status else "", _find_code(error)]
    return also(StoreError, ConnectionError)(
        f"{name} can't be written ({', '.join(filter(None, facts))}); check the URL, the network, and the "
        "configuration of fsspec"
    )


def _find_code(error: BaseException) -> str:
    """Return the code by which a server of S3 names its error; "" if there is none."""
    answer = getattr(error.__cause__ or error, "response", None)
    stated = answer.get("Error") if isinstance(answer, dict) else None
    code = stated.get("Code") if isinstance(stated, dict) else None
    return code if isinstance(code, str) and _ERROR_CODE.fullmatch(code) else ""
