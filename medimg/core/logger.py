"""The logger of medimg: what it says without any configuration, and how much."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from medimg._public import set_module
from medimg._validation import check_choice
from medimg.errors import MedimgError, also

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["IN_TABLE", "Verbosity", "get_logger", "set_verbosity"]

Verbosity = Literal["debug", "info", "warning", "error"]

#: ``extra=`` of a record that a notebook shows as the row of a table.
IN_TABLE: Final[dict[str, Any]] = {"medimg_in_table": True}


class _DefaultHandler(logging.Handler):
    """Writes to what stderr is at the time, above progress bars."""

    #: Whether the level of the logger is the default one, which a user has not set.
    has_set_level = False

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "medimg_in_table", False) or _list_other_handlers():
            return
        try:
            _write(self.format(record), sys.stderr)
        except Exception:
            self.handleError(record)


def _write(text: str, stream: TextIO) -> None:
    tqdm = sys.modules.get("tqdm")
    if tqdm is not None and getattr(tqdm.tqdm, "_instances", None):
        tqdm.tqdm.write(text, file=stream)
    else:
        stream.write(f"{text}\n")
    stream.flush()


_LOGGER: Final = logging.getLogger("medimg")
_HANDLER: Final = _DefaultHandler()
_HANDLER.setFormatter(logging.Formatter("%(asctime)s medimg: %(message)s", datefmt="%H:%M:%S"))


def _list_other_handlers() -> list[logging.Handler]:
    """Return the handlers of the application that get what medimg logs."""
    own = [handler for handler in _LOGGER.handlers if handler is not _HANDLER]
    return own + (logging.getLogger().handlers if _LOGGER.propagate else [])


def get_logger() -> logging.Logger:
    """
    Return the logger "medimg"; from level INFO it writes to stderr until an application configures logging.

    Handlers of the application, of the root logger or of this one, replace the default one; its levels hold.
    """
    configured = bool(_list_other_handlers())
    if configured and _HANDLER in _LOGGER.handlers:
        _LOGGER.removeHandler(_HANDLER)
        if _HANDLER.has_set_level and _LOGGER.level == logging.INFO:
            _LOGGER.setLevel(logging.NOTSET)
        _HANDLER.has_set_level = False
    elif not configured and _HANDLER not in _LOGGER.handlers:
        _LOGGER.addHandler(_HANDLER)
        if _LOGGER.level == logging.NOTSET:
            _LOGGER.setLevel(logging.INFO)
            _HANDLER.has_set_level = True
    return _LOGGER


@set_module("medimg")
def set_verbosity(verbosity: Verbosity) -> None:
    """
    Set from which level on medimg logs.

    medimg logs to the logger ``"medimg"`` of ``logging``: phases and epochs of a training, and long tasks
    where no progress bar is shown. Without configured handlers it writes to stderr, "info" and above.
    Progress bars have a switch of their own, ``progress=``.

    Parameters
    ----------
    verbosity : {"debug", "info", "warning", "error"}
        Lowest level that is logged.

    Raises
    ------
    MedimgError
        If there is no such level; also a ValueError.

    Examples
    --------
    >>> import medimg
    >>> medimg.set_verbosity("warning")  # no line per epoch
    >>> medimg.set_verbosity("info")
    """
    check_choice("verbosity", verbosity, get_args(Verbosity), error=also(MedimgError, ValueError))
    get_logger().setLevel(verbosity.upper())
    _HANDLER.has_set_level = False
