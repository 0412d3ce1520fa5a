"""HTTP/1.1 of uvicorn, with deadlines for clients that neither send nor read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

__all__ = ["DeadlineProtocol"]


class DeadlineProtocol(H11Protocol):  # type: ignore[misc]  # of a library without types here
    """Closes connections that are too many, whose client sends no header in time, or takes no answer."""

    #: For a request's header, for the rest of a body that is no longer read, and for taking an answer.
    seconds: ClassVar[float] = 10.0
    #: Connections at the same time: the limit of open files is often 1024 per process.
    most: ClassVar[int] = 256
    _deadline: asyncio.TimerHandle | None = None
    _awaited: Any = None
    _write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a header."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self.transport.abort()
            return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        self.resume_writing()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Handle what was received."""
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        """Begin to wait for the rest of the body, or the next header."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop waiting for the client to read."""
        super().resume_writing()
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def _watch(self) -> None:
        """Set the deadline for what the client has to send now; the application has its own for bodies."""
        awaited = None
        if self.conn.their_state is h11.IDLE:
            awaited = "header"
        elif self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY:
            awaited = "rest"
        if awaited == self._awaited:
            return
        self._stop()
        if awaited is not None and not self.transport.is_closing():
            self._awaited = awaited
            self._deadline = self.loop.call_later(self.seconds, self.transport.abort)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._awaited = None
