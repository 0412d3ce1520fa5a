"""What a series is made of, told from its files without decoding them."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Literal, TypeAlias

from medimg.io.dicom.series.volume_reader import StackReader

if TYPE_CHECKING:
    from medimg.io.series import Series

__all__ = ["Address", "Compare", "States", "content_digest", "frame_ids", "states_of"]


@dataclass(frozen=True, slots=True)
class Address:
    """
    Where the pictures of a series are.

    Attributes
    ----------
    key : str
        64 hexadecimal digits that only the same files, read by the same recipe, give.
    secret : bytes
        What UIDs are enciphered with; in no file.
    """

    key: str
    secret: bytes = field(repr=False)


#: How files are told apart: by samples of their bytes, or by all of them.
Compare: TypeAlias = Literal["samples", "bytes"]

_BLOCK: Final = 4096
_BLOCKS: Final = 64
_WHOLE: Final = 2**18


def content_digest(series: Series, compare: Compare | Literal["blocks"]) -> list[str] | None:
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


def frame_ids(series: Series) -> list[tuple[int, int, tuple[int, int] | None]]:
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


#: Of each file: number, size in bytes, times of modification and of change in nanoseconds.
States: TypeAlias = tuple[tuple[int, int, int, int], ...]


def states_of(series: Series) -> States | None:
    """
    Return the states of the files of a series; None where one is not on a disk, or gone.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> states_of(SimpleNamespace(files=("nowhere.dcm",))) is None
    True
    """
    known: dict[str, os.stat_result | None] = {}
    found = []
    for name in series.files:
        state = _state(name)
        if state is None:
            archive = str(Path(name).parent)
            if archive not in known:
                known[archive] = next(filter(None, map(_state, _above(name))), None)
            state = known[archive]
        if state is None:
            return None
        found.append((state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return tuple(found)


def _above(name: str) -> list[str]:
    """Return the folders that a name lies in: one may be the archive that it is a member of."""
    return [str(parent) for parent in Path(name).parents]


def _state(name: str) -> os.stat_result | None:
    try:
        state = os.stat(name)  # noqa: PTH116  # a Path for each of many files takes longer than this
    except (OSError, ValueError):
        return None
    return state if stat.S_ISREG(state.st_mode) else None
