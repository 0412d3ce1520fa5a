"""Warnings of tasks in other processes, collected to be given in the caller's."""

from __future__ import annotations

import os
import secrets
import threading
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from medimg.errors import MedimgWarning

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["collect_warnings", "get_process"]

_TOKEN: Final = secrets.token_hex(8)
_collected: ContextVar[list[str] | None] = ContextVar("medimg_warnings", default=None)
_lock = threading.Lock()
_installed: set[int] = set()


def get_process() -> tuple[str, int]:
    """Return what identifies this process, on this machine and among others."""
    return _TOKEN, os.getpid()


@contextmanager
def collect_warnings(caller: tuple[str, int]) -> Iterator[list[str]]:
    """Yield a list of the texts of MedimgWarnings of this thread; none in the caller's own process."""
    found: list[str] = []
    if caller == get_process():
        yield found
        return
    _install()
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def _install() -> None:
    """Let warnings of tasks reach their list: `warnings.catch_warnings` is not for several threads."""
    with _lock:
        if os.getpid() in _installed:
            return
        _installed.add(os.getpid())
        warnings.simplefilter("always", MedimgWarning)
        show = warnings.showwarning

        def collect(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            found = _collected.get()
            if found is None or not issubclass(category, MedimgWarning):
                show(message, category, *where, **more)
            else:
                found.append(str(message))

        warnings.showwarning = collect
