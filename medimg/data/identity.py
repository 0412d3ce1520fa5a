"""What a series is made of, told from its files without decoding them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Literal, TypeAlias

from medimg.io.dicom.reading import StackReader

if TYPE_CHECKING:
    from medimg.io.series import Series

__all__ = ["Compare", "content_of", "frames_of"]

#: How files are told apart: by samples of their bytes, or by all of them.
Compare: TypeAlias = Literal["samples", "bytes"]

_BLOCK: Final = 4096
_BLOCKS: Final = 64
_WHOLE: Final = 2**18


def content_of(series: Series, compare: Compare | Literal["blocks"]) -> list[str] | None:
    """
    Return what tells the content of a series: a digest for each of its files, in their order.

    Parameters
    ----------
    series : Series
        Its files are opened, and not decoded.
    compare : {"samples", "blocks", "bytes"}
        "samples": size, time of modification, and bytes from the start, the middle and the end; all bytes of
        small files. Large files that are not DICOM have no identifier among these, and go by their path too.
        "blocks": size, and bytes from 64 places: the same for copies, wherever they lie. A few places are not
        enough, as uncompressed pictures of different people can have the same black borders there.
        "bytes": all bytes and nothing else.

    Returns
    -------
    list of str or None
        None where a file is not on a disk, or can't be opened.
    """
    digests: dict[str, str] = {}
    found = []
    try:
        for name in series.files:
            path = _on_disk(name)
            if path is None:
                return None
            if path not in digests:
                digests[path] = _digest(path, compare, named=series.format != "DICOM" or path != name)
            # the name of a member of an archive
            found.append(digests[path] + hashlib.sha256(os.fsencode(name[len(path) :])).hexdigest()[:16])
    except (OSError, ValueError):
        return None
    return found


def frames_of(series: Series) -> list[tuple[int, int, tuple[int, int] | None]]:
    """
    Return which frames of its files a series is made of: one file can hold several series.

    Returns
    -------
    list of tuple
        For each frame the number of its file, its own number, and its corner in a mosaic; empty where each
        file holds one frame.
    """
    if not isinstance(series.reader, StackReader):
        return []
    # siblings, each of one frame, are no tuple, and would be made one by one
    channels = [channel for channel in series.reader.plan.channels if isinstance(channel, tuple | list)]
    frames = [frame for channel in channels for frame in channel]
    if all(len(frame.instance.facts) == 1 for frame in frames):
        return []
    files = {name: n for n, name in enumerate(series.files)}
    return [(files[f.instance.path], f.facts.number, f.facts.corner) for f in frames]


def _on_disk(name: str) -> str | None:
    """Return the file of that name, or the archive that it is a member of."""
    if name.startswith("<"):
        return None
    path = Path(name)
    if path.is_file():
        return name
    return next((str(parent) for parent in path.parents if parent.is_file()), None)


def _digest(name: str, compare: Compare | Literal["blocks"], *, named: bool) -> str:
    with Path(name).open("rb", buffering=0) as file:
        if compare == "bytes":
            return hashlib.file_digest(file, "blake2b").hexdigest()
        state = os.fstat(file.fileno())
        dated = f"{state.st_mtime_ns} " if compare == "samples" else ""
        digest = hashlib.blake2b(f"{state.st_size} {dated}".encode(), digest_size=32)
        if state.st_size <= _WHOLE:
            digest.update(_block(file, 0, _WHOLE))
            return digest.hexdigest()
        last = state.st_size - _BLOCK
        few, many = (0, state.st_size // 2, last), (last * n // (_BLOCKS - 1) for n in range(_BLOCKS))
        for start in few if compare == "samples" else many:
            digest.update(_block(file, start, _BLOCK))
        if named and compare == "samples":
            digest.update(os.fsencode(os.path.realpath(name)))
        return digest.hexdigest()


def _block(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)
