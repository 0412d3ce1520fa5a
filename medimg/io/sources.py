"""Sources of images (paths, lists, archives, bytes, open files) as files."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias, TypeGuard, cast

from medimg.core.parallel import ordered_map
from medimg.core.read_report import Skipped
from medimg.core.volume import Volume
from medimg.errors import ReadError, also
from medimg.interop.image_object import is_dataset, is_image_object
from medimg.io.dicom.dicomdir import is_dicomdir, list_referenced_files
from medimg.io.dicom.encode_dataset import encode_dataset
from medimg.io.files.blob import Blob, list_zip_members
from medimg.io.files.object_storage import is_remote_url, name_url, refuse_url_as_path
from medimg.io.files.remote_folder import find_blobs, open_blob
from medimg.io.series import Series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydicom.dataset import Dataset

    from medimg.interop.image_object import AnyImage

__all__ = [
    "REMOTE_WORKERS",
    "Files",
    "is_buffer",
    "is_folder",
    "is_one_source",
    "is_zip",
    "list_source_files",
    "name_source",
    "separate_images",
]

#: One file, a container of files, or an image in memory.
OneSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Blob | AnyImage"
#: Every source of files.
Files: TypeAlias = "OneSource | Sequence[OneSource]"

#: Files elsewhere that are opened at the same time, as each waits for the network.
REMOTE_WORKERS: Final = 24
_MAX_BYTES: Final = 2**31
_PIECE_BYTES: Final = 2**24


def is_zip(start: bytes) -> bool:
    """Whether a file begins like a zip archive, empty ones included."""
    return start[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def is_buffer(source: object) -> bool:
    """Whether a source is bytes in memory or an open file, rather than a path."""
    if isinstance(source, bytes | bytearray | memoryview):
        return True
    if is_image_object(source) or is_dataset(source):
        return False
    return callable(getattr(source, "read", None)) and not isinstance(source, Series)


def is_one_source(source: object) -> bool:
    """Whether an object is one source, rather than several; images of some libraries are iterable."""
    is_own = isinstance(source, str | os.PathLike | Series | Volume)
    return is_own or is_image_object(source) or is_dataset(source) or is_buffer(source)


def separate_images(source: object) -> tuple[list[object], object, bool]:
    """Return images of other libraries in a source, the rest of it, and whether there is a rest."""
    if is_image_object(source):
        return [source], [], False
    if not _is_list(source):
        return [], source, True
    images = [item for item in source if is_image_object(item)]
    others = [item for item in source if not is_image_object(item)]
    # an empty list is a rest, and an error of those who read it
    return images, others, bool(others or not images)


def _is_list(source: object) -> TypeGuard[Sequence[object]]:
    return isinstance(source, Sequence) and not isinstance(source, str | bytes | bytearray | memoryview)


def is_folder(source: object) -> bool:
    """Whether a source is a folder."""
    return not is_remote_url(source) and _is_path(source) and _is_folder(Path(source))


def name_source(source: object) -> str:
    """Return the name of a source for messages."""
    if is_remote_url(source):
        return name_url(source)
    if isinstance(source, str | os.PathLike):
        return str(source)
    if isinstance(source, Blob):
        return source.name
    if is_dataset(source):
        return "<dataset>"
    return "<bytes>" if is_buffer(source) else "these files"


def list_source_files(source: object) -> tuple[list[Blob | str], list[Skipped]]:
    """
    Return the files of a source, those of folders by their paths, and missing files that it references.

    Folders are walked with their subfolders, hidden files left out, links to folders followed. A zip archive
    or a DICOMDIR in a folder is not opened: the folder often has its files as well. Raises ReadError if
    something does not exist, can't be opened, or has an unsupported type.
    """
    if is_remote_url(source):
        blobs, in_folder = find_blobs(source)
        return (list(blobs), []) if in_folder else _expand_all(blobs)
    if _is_path(source) and _is_folder(Path(source)):
        return _list_folder(Path(source))
    if _is_list(source):
        if not source:
            raise ReadError("can't read an empty list; expected the files of one image")
        return _expand_all(source)
    return _expand_all([source], numbered=False)


def _expand_all(
    sources: Sequence[object], *, numbered: bool = True
) -> tuple[list[Blob | str], list[Skipped]]:
    """Return the files of several sources, those elsewhere opened side by side."""

    def expand(pair: tuple[int, object]) -> tuple[Sequence[Blob], list[Skipped]]:
        number, item = pair
        return _expand(_open_blob(item, number if numbered else None))

    is_remote = any(is_remote_url(item) or (isinstance(item, Blob) and item.listed_file) for item in sources)
    found: list[Blob | str] = []
    absent: list[Skipped] = []
    for files, missing in ordered_map(expand, enumerate(sources), REMOTE_WORKERS if is_remote else 1):
        found += files
        absent += missing
    return found, absent


def _open_blob(source: object, number: int | None = None) -> Blob:
    """Return one source as bytes; `number`: its index in a list."""
    if isinstance(source, Blob):
        return source
    suffix = "" if number is None else f" {number}"
    if is_dataset(source):
        return Blob(f"<dataset{suffix}>", data=encode_dataset(cast("Dataset", source), f"<dataset{suffix}>"))
    name = f"<bytes{suffix}>"
    if is_remote_url(source):
        return open_blob(source)
    if _is_path(source):
        refuse_url_as_path(source)
        if _is_folder(Path(source)):
            raise ReadError(f"{source} is a folder in a list of files; read it by itself")
        return Blob(str(Path(source)))
    if isinstance(source, bytes | bytearray | memoryview):
        return Blob(name, data=bytes(source))
    if is_buffer(source):
        return Blob(name, data=_read_file_object(source, name))
    raise ReadError(
        f"can't read a {type(source).__name__}; expected a folder, a file, bytes, a file object, a pydicom "
        "Dataset, a list of these, a Series, or an image of SimpleITK, nibabel, MONAI, TorchIO, highdicom, "
        "Pillow or xarray"
    )


def _read_file_object(file: Any, name: str) -> bytes:
    """Return the bytes of an open file, from its start if it is seekable; its position is restored."""
    try:
        before = file.tell() if _is_seekable(file) else None
        if before is not None:
            file.seek(0)
        data = _read_to_end(file)
        if before is not None:
            file.seek(before)
    # a closed file raises ValueError, file objects of users anything
    except Exception as error:
        raise ReadError(f"{name}: the file object can't be read ({type(error).__name__})") from None
    if not isinstance(data, bytes):
        given = type(data).__name__
        raise ReadError(f'{name}: the file object returns {given}, not bytes; open it in binary mode ("rb")')
    if len(data) > _MAX_BYTES:
        raise ReadError(f"{name} has more than {_MAX_BYTES >> 20} MB; pass the path of the file instead")
    return data


def _read_to_end(file: Any) -> Any:
    """Return the bytes up to the end, which pipes and sockets give in pieces."""
    pieces = bytearray()
    while len(pieces) <= _MAX_BYTES:
        piece = file.read(_PIECE_BYTES)
        if not isinstance(piece, bytes | bytearray | memoryview):
            return piece
        if not len(piece):
            break
        pieces += piece
    return bytes(pieces)


def _is_seekable(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if callable(seekable) else False


def _expand(blob: Blob) -> tuple[Sequence[Blob], list[Skipped]]:
    """Return the members of an archive, the files of a DICOMDIR, or the file itself."""
    try:
        start = blob.start()
    except ReadError as error:
        if blob.listed_file is not None and isinstance(error, ConnectionError | TimeoutError):
            raise
        if blob.path is not None and _is_absent(blob.path):
            raise also(ReadError, FileNotFoundError)(f"there is no file or folder {blob.name}") from None
        return [blob], []  # the error is raised again when its format is detected
    if is_zip(start):
        return list_zip_members(blob), []
    if is_dicomdir(start):
        return list_referenced_files(blob)
    return [blob], []


def _is_path(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a source is a path, not empty and not bytes."""
    return isinstance(source, str | os.PathLike) and isinstance(path := os.fspath(source), str) and path != ""


def _is_folder(path: Path) -> bool:
    """Whether a path leads to a folder, as far as the system tells."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_absent(path: Path) -> bool:
    """Whether a path certainly does not exist."""
    try:
        return not path.exists()
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG


def _list_folder(root: Path) -> tuple[list[Blob | str], list[Skipped]]:
    """Return the files of a folder and its subfolders, and the folders that can't be opened."""
    found: list[Blob | str] = []
    closed: list[Skipped] = []

    def note(error: OSError) -> None:
        name = str(error.filename)
        closed.append(Skipped(name, f"the folder {name} can't be opened: {error.strerror}"))

    for folder, names in _walk_folders(root, note):
        within = str(folder / "_")[:-1]
        found += [within + name for name in sorted(names) if name[0] != "."]
    return found, closed


def _walk_folders(root: Path, note: Callable[[OSError], None]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder once, though links may lead to it again or in a circle."""
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    # os.walk is recursive in Python 3.11
    while waiting:
        folder = waiting.pop()
        try:
            state = folder.stat()
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            subfolders, names = _list_entries(folder)
        except OSError as error:
            note(error)
            continue
        waiting += [folder / name for name in reversed(subfolders)]
        yield folder, names


def _list_entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of subfolders, links last so that a folder has its own name, and of files."""
    with os.scandir(folder) as entries:
        found = list(entries)
    try:
        folders = [entry for entry in found if entry.is_dir()]
    except OSError:  # a link to itself
        folders = [entry for entry in found if _is_folder(Path(entry.path))]
    if not folders:
        return [], [entry.name for entry in found]
    names = [entry.name for entry in found]
    others = {entry.name for entry in folders}
    subfolders = sorted((entry.is_symlink(), entry.name) for entry in folders if entry.name[0] != ".")
    return [name for _, name in subfolders], [name for name in names if name not in others]
