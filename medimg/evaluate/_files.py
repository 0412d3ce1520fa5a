"""Writing a file so that it is there whole or not at all."""

import os
import tempfile
from pathlib import Path

__all__ = ["write_text"]


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """
    Write UTF-8 text by way of a temporary file in the same folder and ``os.replace``.

    Parameters
    ----------
    path : path-like
        The file; its folder is made where it is missing, an old file is replaced.
    text : str
        The content.

    Returns
    -------
    pathlib.Path
        The file written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target


def _umask() -> int:
    """Return the process's file mode mask; reading it means setting it for an instant."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
