"""Folders that no other user can open."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING

from medimg.errors import also

if TYPE_CHECKING:
    from pathlib import Path

    from medimg.errors import MedimgError

__all__ = ["make_private_folder"]


def make_private_folder(folder: Path, name: str, *, error: type[MedimgError]) -> None:
    """Make a folder for this user alone; `error`, with the `name` of its use, if others can open it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.lstat()
    except OSError as failure:
        raise also(error, type(failure))(f"the {name} {folder} can't be made: {failure.strerror}") from None
    if sys.platform == "win32":
        return
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o077:
        raise error(
            f"the {name} {folder} must be a folder of this user that no other can open; run chmod 700, or "
            "choose another one"
        )
