"""Searches without their values in the logs of urllib3: the query of a URL can name a patient."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["hide_queries"]

#: Those that log URLs: each request at DEBUG, what is unusual at WARNING.
_LOGGERS: Final = (
    "urllib3.connection",
    "urllib3.connectionpool",
    "urllib3.poolmanager",
    "urllib3.util.retry",
)
_local = threading.local()


class _QueryFilter(logging.Filter):
    """Leaves records as they are, but for the queries of requests that :func:`hide_queries` surrounds."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True, as no record is dropped."""
        if getattr(_local, "depth", 0) and isinstance(record.args, tuple):
            record.args = tuple(_hide_query(value) for value in record.args)
        return True


def _hide_query(value: object) -> object:
    if isinstance(value, str) and "?" in value:
        return value.partition("?")[0] + "?…"
    # its text may quote the URL
    return type(value).__name__ if isinstance(value, Exception) else value


@contextmanager
def hide_queries() -> Iterator[None]:
    """Keep queries out of what is logged of requests of this thread."""
    for name in _LOGGERS:
        # the same one is added once
        logging.getLogger(name).addFilter(_FILTER)
    _local.depth = getattr(_local, "depth", 0) + 1
    try:
        yield
    finally:
        _local.depth -= 1


_FILTER: Final = _QueryFilter()
