"""Connections of urllib3 whose answers must begin within the time-out, however slowly headers arrive."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any, Final

import requests.adapters
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from medimg.io.dicomweb.query_filter import hide_queries

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TimedAdapter"]


def _limit_time(connection: HTTPConnection, wait: Callable[[], Any]) -> Any:
    """Return what waiting for an answer gives; TimeoutError if that takes longer than one read may."""
    sock, limit = connection.sock, connection.timeout
    if sock is None or not isinstance(limit, int | float):
        return wait()
    is_over = threading.Event()

    def end() -> None:
        is_over.set()
        # that of a TLS socket would take the session from under the waiting thread
        socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(limit, end)
    timer.daemon = True
    timer.start()
    try:
        answer = wait()
    except Exception:
        if is_over.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
    # headers that break off pass for whole ones
    if is_over.is_set():
        answer.close()
        raise TimeoutError
    return answer


class _PlainConnection(HTTPConnection):
    def getresponse(self) -> Any:
        return _limit_time(self, super().getresponse)


class _TlsConnection(HTTPSConnection):
    def getresponse(self) -> Any:
        return _limit_time(self, super().getresponse)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


_POOLS: Final = {"http": _PlainPool, "https": _TlsPool}


class TimedAdapter(requests.adapters.HTTPAdapter):
    """Adapter of requests for such connections, whose queries are not logged."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make the pools."""
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = dict(_POOLS)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Return the pools of a proxy."""
        manager = super().proxy_manager_for(proxy, **options)
        # those of SOCKS have connections of their own
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = dict(_POOLS)
        return manager

    def send(self, *args: Any, **options: Any) -> requests.Response:
        """Send a request."""
        with hide_queries():
            return super().send(*args, **options)
