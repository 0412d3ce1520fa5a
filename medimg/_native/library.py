"""Loads the compiled library, if there is one."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Final

__all__ = ["describe_library", "load_library"]

#: Raised with each change of the functions of the library.
_INTERFACE: Final = 7
_NAME: Final = "medimg_native.dll" if sys.platform == "win32" else "medimg_native.so"


def load_library() -> ctypes.CDLL | None:
    """Return the compiled library; None if it was not built, or is not wanted."""
    return _find_library()[0]


def describe_library() -> str:
    """Return whether the compiled library is used, and why not."""
    return _find_library()[1]


@cache
def _find_library() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("MEDIMG_PURE", "") not in ("", "0"):
        return None, "not used, as MEDIMG_PURE is set"
    # the library takes numbers from files as they are
    if sys.byteorder != "little":
        return None, "not used, as this processor is big-endian"
    path = Path(__file__).with_name(_NAME)
    if not path.exists():
        return None, "not built: install a C++ compiler and reinstall medimg for faster reading"
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None, "built for another system: reinstall medimg"
    try:
        interface = library.medimg_interface()
    except AttributeError:
        interface = 0
    if interface != _INTERFACE:
        return None, "built from another version: reinstall medimg"
    return library, "used"
