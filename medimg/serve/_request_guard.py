"""Requests that are refused whatever they ask for: by the name of the host, and by their framing."""

from __future__ import annotations

import ipaddress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from medimg._validation import check_texts, printable
from medimg.errors import TrainingError
from medimg.serve._problem import make_problem

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from fastapi.responses import JSONResponse

__all__ = ["RequestGuard", "parse_hosts"]

_ANY_HOST: Final = "*"


class RequestGuard:
    """Middleware: refuses names of hosts that are not allowed, and bodies whose length is stated twice."""

    def __init__(self, app: Any, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request."""
        answer = self._refuse(scope) if scope["type"] == "http" else None
        await (self._app if answer is None else answer)(scope, receive, send)

    def _refuse(self, scope: Any) -> JSONResponse | None:
        """Return the answer to a request that is refused; None for all others."""
        headers = dict(scope["headers"])
        request_id = scope["state"]["request_id"]
        # a proxy that goes by the other one takes the rest of the body for a request
        if b"content-length" in headers and b"transfer-encoding" in headers:
            return make_problem(
                HTTPStatus.BAD_REQUEST,
                "the request has both Content-Length and Transfer-Encoding; send one of them",
                "RequestError",
                request_id,
                {"Connection": "close"},
            )
        name = _find_name(headers.get(b"host", b"").decode("latin-1"))
        if name and not self._hosts & {_ANY_HOST, name} and not _is_address(name):
            return make_problem(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"the service is not known as {printable(name, 60)!r}; use its address, or start it with "
                "--allowed-host and that name",
                "RequestError",
                request_id,
            )
        return None


def parse_hosts(names: Sequence[str]) -> frozenset[str]:
    """Return names of hosts as they are compared; TrainingError if one is not a name."""
    found = check_texts("allowed_hosts", list(names))
    for name in found:
        if not name or set(name) & set("/:@[] ") or (_ANY_HOST in name and name != _ANY_HOST):
            raise TrainingError(
                f"allowed_hosts has {printable(name, 60)!r}; expected names without scheme and port, "
                'such as "models.example.org", or "*" for any'
            )
    return frozenset(_find_name(name) for name in found)


def _find_name(host: str) -> str:
    """Return the name or address in a header Host, without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].rstrip(".").lower()


def _is_address(name: str) -> bool:
    """Whether it is an address: no DNS server can answer for one."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
