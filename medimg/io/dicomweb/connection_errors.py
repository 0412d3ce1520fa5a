"""Errors of requests, urllib3 and ssl as our own: their texts can hold the URL's query."""

from __future__ import annotations

import ssl
from typing import Final, TypeVar

from medimg.errors import MedimgError, ReadError, also

__all__ = ["explain_error"]

_Error = TypeVar("_Error", bound=BaseException)

#: What a connection that breaks off raises.
_TLS_ENDS: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
#: Alerts about the certificate of a client.
_CLIENT_ALERTS: Final = (
    "ALERT_CERTIFICATE", "ALERT_BAD_CERTIFICATE", "ALERT_UNKNOWN_CA", "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_ACCESS_DENIED", "ALERT_HANDSHAKE_FAILURE",
)  # fmt: skip


def explain_error(
    error: Exception, *, host: str, name: str, timeout: float, has_cert: bool
) -> tuple[MedimgError, bool]:
    """Return our own error for one at the request of `name`, and whether the next attempt may succeed."""
    import http.client

    import requests
    import urllib3.exceptions as raw

    failed_tls = _find_cause(error, (ssl.SSLError,))
    if failed_tls is not None and not isinstance(failed_tls, _TLS_ENDS):
        return _explain_tls(failed_tls, host, has_cert=has_cert), False
    is_late = isinstance(error, requests.exceptions.Timeout | raw.TimeoutError)
    # a proxy's is within another error
    if is_late or _find_cause(error, (TimeoutError,)) is not None:
        return also(ReadError, TimeoutError)(f"{host} does not answer {name} within {timeout:g} s"), True
    if isinstance(error, requests.exceptions.ContentDecodingError | raw.DecodeError):
        return ReadError(f"{host} answers {name} with damaged compression"), False
    lost = requests.exceptions.ConnectionError | requests.exceptions.ChunkedEncodingError | raw.HTTPError
    if isinstance(error, lost | http.client.HTTPException | OSError):
        # a server may close the connection before the alert that says so was read
        hint = "" if failed_tls is None else ", and whether it wants a client certificate (cert=)"
        failure = also(ReadError, ConnectionError)(
            f"the connection to {host} failed or broke off ({type(error).__name__}) at {name}; check that "
            f"the server runs, and the network{hint}"
        )
        return failure, True
    return ReadError(f"{name} can't be requested from {host} ({type(error).__name__})"), False


def _explain_tls(error: ssl.SSLError, host: str, *, has_cert: bool) -> ReadError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ReadError(
            f"the certificate of {host} can't be verified; pass verify=, the path of the certificate of its "
            "authority (CA)"
        )
    reason = error.reason or type(error).__name__
    if any(word in reason for word in _CLIENT_ALERTS):
        found = "does not accept the client certificate" if has_cert else "wants a client certificate"
        return also(ReadError, PermissionError)(
            f"{host} {found} ({reason}); pass cert=, the path of one that it knows, with its private key"
        )
    return also(ReadError, ConnectionError)(
        f"no encrypted connection to {host} can be made ({reason}); check the port, and that the server "
        "speaks https"
    )


def _find_cause(error: BaseException, kinds: tuple[type[_Error], ...]) -> _Error | None:
    """Return the error of these types that made requests or urllib3 raise another one."""
    seen: list[BaseException] = []
    # not its context, which can be what a caller is handling
    todo: list[object] = [error]
    while todo:
        one = todo.pop()
        if isinstance(one, kinds):
            return one
        if isinstance(one, BaseException) and not any(one is other for other in seen):
            seen.append(one)
            todo += [one.__cause__, *one.args, getattr(one, "reason", None)]
    return None
