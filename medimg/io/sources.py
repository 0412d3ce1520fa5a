"""What users call a source (paths, lists, archives, bytes, open files) as the files that it stands for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias, TypeGuard

from medimg.core.read_report import Skipped
from medimg.errors import ReadError
from medimg.io.dicom.dicomdir import is_dicomdir, list_referenced_files
from medimg.io.files.blob import Blob, zip_members
from medimg.io.series import Series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Files", "is_buffer", "is_folder", "looks_like_zip", "source_files", "source_name"]

#: One file, or what files are in.
OneSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Blob
#: All that files can be found in.
Files: TypeAlias = OneSource | Sequence[OneSource]

_MOST_HELD: Final = 2**31
_PIECE: Final = 2**24


def looks_like_zip(start: bytes) -> bool:
    """Whether a file begins like a zip archive, empty ones included."""
    return start[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def is_buffer(source: object) -> bool:
    """Whether a source is bytes in memory or an open file, rather than something that is named."""
    if isinstance(source, bytes | bytearray | memoryview):
        return True
    return callable(getattr(source, "read", None)) and not isinstance(source, Series)


def is_folder(source: object) -> bool:
    """Whether a source is a folder."""
    return _is_path(source) and _is_folder(Path(source))


def source_name(source: object) -> str:
    """Return what a source is called in messages."""
    if isinstance(source, str | os.PathLike):
        return str(source)
    if isinstance(source, Blob):
        return source.name
    return "<bytes>" if is_buffer(source) else "these files"


def source_files(source: object) -> tuple[list[Blob | str], list[Skipped]]:
    """
    Return the files of a source, those of folders by their paths, and what it names and is not there.

    A folder stands for all files in it and below, hidden ones left out, links to folders followed; a zip
    archive for its members; a DICOMDIR for the files that it names; bytes and open files for themselves. A
    zip archive or a DICOMDIR in a folder is not followed: what it holds often lies beside it.

    Raises
    ------
    ReadError
        If something is not there, can't be opened, or is of a kind that can't be read.
    """
    if _is_path(source) and _is_folder(Path(source)):
        return _walk(Path(source))
    if isinstance(source, Sequence) and not isinstance(source, str | bytes | bytearray | memoryview):
        if not source:
            raise ReadError("can't read an empty list; expected the files of one image")
        found: list[Blob | str] = []
        absent: list[Skipped] = []
        for number, item in enumerate(source):
            files, missing = _expanded(_blob(item, f"<bytes {number}>"))
            found += files
            absent += missing
        return found, absent
    members, absent = _expanded(_blob(source, "<bytes>"))
    return list(members), absent


def _blob(source: object, name: str) -> Blob:
    if isinstance(source, Blob):
        return source
    if _is_path(source):
        if _is_folder(Path(source)):
            raise ReadError(f"{source} is a folder in a list of files; read a folder by itself")
        return Blob(str(Path(source)))
    if isinstance(source, bytes | bytearray | memoryview):
        return Blob(name, data=bytes(source))
    if is_buffer(source):
        return Blob(name, data=_content(source, name))
    raise ReadError(
        f"can't read a {type(source).__name__}; expected a folder, a file, bytes, a file object, a list of "
        "these, or a Series"
    )


def _content(file: Any, name: str) -> bytes:
    """Return what an open file holds, from its start where it can be rewound; its position is restored."""
    try:
        before = file.tell() if _is_seekable(file) else None
        if before is not None:
            file.seek(0)
        data = _all_of(file)
        if before is not None:
            file.seek(before)
    # a closed file is a ValueError; what else a file object raises is its own
    except Exception as error:
        raise ReadError(f"{name}: the file object can't be read ({type(error).__name__})") from None
    if not isinstance(data, bytes):
        given = type(data).__name__
        raise ReadError(f'{name}: the file object gives {given}, not bytes; open it in binary mode, "rb"')
    if len(data) > _MOST_HELD:
        raise ReadError(f"{name} holds more than {_MOST_HELD >> 20} MB; pass the path of the file instead")
    return data


def _all_of(file: Any) -> Any:
    """Return the bytes up to the end, which pipes and sockets give piece by piece; else what is given."""
    pieces = bytearray()
    while len(pieces) <= _MOST_HELD:
        piece = file.read(_PIECE)
        if not isinstance(piece, bytes | bytearray | memoryview):
            return piece
        if not len(piece):
            break
        pieces += piece
    return bytes(pieces)


def _is_seekable(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if callable(seekable) else False


def _expanded(blob: Blob) -> tuple[Sequence[Blob], list[Skipped]]:
    """Return the members of an archive, the files of a DICOMDIR, or the file itself."""
    try:
        start = blob.start()
    except ReadError:
        if blob.path is not None and _is_absent(blob.path):
            raise ReadError(f"there is no file or folder {blob.name}") from None
        return [blob], []  # the reason turns up where the file is identified
    if looks_like_zip(start):
        return zip_members(blob), []
    if is_dicomdir(start):
        return list_referenced_files(blob)
    return [blob], []


def _is_path(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a source is a path, and not an empty one nor one in bytes."""
    return isinstance(source, str | os.PathLike) and isinstance(path := os.fspath(source), str) and path != ""


def _is_folder(path: Path) -> bool:
    """Whether a path leads to a folder, as far as can be seen."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_absent(path: Path) -> bool:
    """Whether nothing is there, for certain."""
    try:
        return not path.exists()
    except OSError:
        return False


def _walk(root: Path) -> tuple[list[Blob | str], list[Skipped]]:
    """Return the files of a folder and below, and the folders that can't be opened."""
    found: list[Blob | str] = []
    closed: list[Skipped] = []

    def note(error: OSError) -> None:
        name = str(error.filename)
        closed.append(Skipped(name, f"the folder {name} can't be opened: {error.strerror}"))

    for folder, names in _folders(root, note):
        within = str(folder / "_")[:-1]
        found += [within + name for name in sorted(names) if not name.startswith(".")]
    return found, closed


def _folders(root: Path, note: Callable[[OSError], None]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder once, though links may lead to it again, or in a circle."""
    seen: set[tuple[int, int]] = set()
    for name, subfolders, names in os.walk(root, onerror=note, followlinks=True):
        folder = Path(name)
        try:
            state = folder.stat()
        except OSError as error:
            note(error)
            continue
        place = state.st_dev, state.st_ino
        shown = [] if place in seen else [s for s in subfolders if not s.startswith(".")]
        # links last, so that a folder rather goes by its own name
        links = {s: (folder / s).is_symlink() for s in shown}
        subfolders[:] = sorted(shown, key=lambda s: (links[s], s))
        if place not in seen:
            yield folder, names
        seen.add(place)
