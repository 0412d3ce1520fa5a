"""The application run by uvicorn: deadlines of connections, no log of what clients send."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Any, Final

from medimg.core.logger import get_logger
from medimg.serve.service import check_extra

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

__all__ = ["choose_hosts", "make_server", "run_server"]

_GRACE_SECONDS: Final = 30


def run_server(app: FastAPI, *, host: str, port: int) -> None:
    """Serve until the process is asked to end; OSError if the address can't be used."""
    server = make_server(app)
    with _bind(host, port) as listener:
        bound = listener.getsockname()
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        get_logger().info("serving on http://%s:%d", shown, bound[1])
        server.run(sockets=[listener])


def choose_hosts(host: str) -> tuple[str, ...]:
    """
    Return the names of the service that are allowed if none are stated, by the address it listens on.

    Only programs on this machine reach a loopback address, among them browsers: a page of any server could
    have its own name resolved to it (DNS rebinding), and then read answers as those of its server.
    """
    try:
        address = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        # listening on it fails, too, and says why
        return ("*",)
    if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return ("*",)
    return ("localhost",) if ":" in host else ("localhost", host)


def make_server(app: FastAPI) -> uvicorn.Server:
    """Return a server of the application, for sockets that listen already."""
    check_extra("uvicorn")
    import uvicorn

    from medimg.serve._http_protocol import DeadlineProtocol

    config = uvicorn.Config(
        app,
        http=DeadlineProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        # its warnings are of clients that send something else than HTTP
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return uvicorn.Server(config)


def _bind(host: str, port: int) -> socket.socket:
    """Return a listening socket of an address; OSError names the address."""
    try:
        found: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from None
