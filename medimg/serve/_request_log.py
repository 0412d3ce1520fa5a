"""The log of requests, without what clients send, and the answer to unexpected errors."""

from __future__ import annotations

import asyncio
import time
import traceback
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import ClientDisconnect

from medimg.core.logger import get_logger
from medimg.serve._problem import make_problem

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["CLIENT_GONE", "RequestLog"]

#: Of nginx: the client closed the connection before it was answered.
CLIENT_GONE: Final = 499
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)


class RequestLog:
    """Middleware: a line for each request, and no exception that reaches the server, which would log it."""

    def __init__(self, app: Any, paths: Collection[str]) -> None:
        self._app = app
        self._paths = frozenset(paths)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = str(uuid.uuid4())
        scope.setdefault("state", {})["request_id"] = request_id
        start = time.monotonic()
        status = 0

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = (*_HEADERS, (b"x-request-id", request_id.encode()))
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            status = CLIENT_GONE
        except asyncio.CancelledError:
            # a server that ends cancels what takes too long; it would log an exception with all frames
            if status:
                raise
            ending = "the service ended before the request was done; send it again"
            problem = make_problem(
                HTTPStatus.SERVICE_UNAVAILABLE, ending, "RequestError", request_id, {"Retry-After": "1"}
            )
            await problem(scope, receive, answer)
        except Exception as error:
            _log_unexpected(error, request_id)
            if not status:
                problem = make_problem(
                    HTTPStatus.INTERNAL_SERVER_ERROR,
                    "an unexpected error occurred; the log of the service has it under this number",
                    "InternalError",
                    request_id,
                )
                await problem(scope, receive, answer)
        finally:
            self._log(scope, status, time.monotonic() - start, request_id)

    def _log(self, scope: Any, status: int, seconds: float, request_id: str) -> None:
        # anything else may be a name
        method = scope["method"] if scope["method"] in _METHODS else "?"
        path = scope["path"] if scope["path"] in self._paths else "(unknown path)"
        get_logger().info("%s %s %d in %.3f s, request %s", method, path, status, seconds, request_id)


def _log_unexpected(error: Exception, request_id: str) -> None:
    """Log type and position of an error; its message may quote a file."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    where = " < ".join(f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in reversed(frames))
    get_logger().error("unexpected %s in request %s: %s", type(error).__name__, request_id, where)
