"""Tasks of Dask's executor, whose own futures are never done if a result is lost on its way."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError, Executor, Future
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DaskExecutor", "adapt_dask"]

#: States of a client that takes tasks, at once or when it has connected again.
_OPEN: Final = ("running", "connecting", "newly-created")


def adapt_dask(executor: Executor) -> Executor:
    """Return another executor on the client of one of Dask; any other executor as it is."""
    kind = type(executor)
    if kind.__name__ != "ClientExecutor" or not kind.__module__.startswith("distributed"):
        return executor
    own: Any = executor
    return DaskExecutor(own._client, own._kwargs)


class DaskExecutor(Executor):
    """
    Runs tasks by a client of Dask.

    Equal tasks are run each time (``pure=False``): a file may have changed, and hashing the arguments takes
    longer than sending them. A task whose result is lost, as the scheduler has died, is cancelled.
    """

    def __init__(self, client: Any, options: dict[str, Any]) -> None:
        self._client = client
        self._options = {"pure": False, **options}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a task, and return its future; RuntimeError if the client is closed."""
        if self._client.status not in _OPEN:
            raise RuntimeError(f"the client of Dask is {self._client.status}")
        inner = self._client.submit(fn, *args, **self._options, **kwargs)
        outer: Future[Any] = Future()
        outer.add_done_callback(lambda done: _cancel(inner) if done.cancelled() else None)
        self._client.loop.add_callback(self._follow, inner, outer)
        return outer

    async def _follow(self, inner: Any, outer: Future[Any]) -> None:
        """Give the outcome of a task to its future."""
        try:
            (result,) = await self._client.gather([inner], asynchronous=True)
        # of the task, of its result, or of the connection
        except BaseException as error:
            if not outer.set_running_or_notify_cancel():
                return
            outer.set_exception(CancelledError() if self._is_lost(inner, error) else error)
        else:
            if outer.set_running_or_notify_cancel():
                outer.set_result(result)

    def _is_lost(self, inner: Any, error: BaseException) -> bool:
        if inner.status == "error":
            return False
        is_gone = self._client.status != "running" or inner.key not in self._client.futures
        return is_gone or isinstance(error, OSError | CancelledError | asyncio.CancelledError)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: the client is the user's."""


def _cancel(inner: Any) -> None:
    if not inner.done():
        inner.cancel()
