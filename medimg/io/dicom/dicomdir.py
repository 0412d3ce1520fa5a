"""DICOMDIR: the table of contents of a DICOM medium (PS3.3 annex F, PS3.10 section 8)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pydicom.multival import MultiValue

from medimg.core.parallel import ordered_map
from medimg.core.read_report import Skipped
from medimg.errors import ReadError
from medimg.io.dicom.header.attributes import get_value, parse_items, quiet_pydicom
from medimg.io.dicom.header.open import open_dataset
from medimg.io.files.blob import Blob
from medimg.io.files.object_storage import is_web_url
from medimg.io.files.regular_file import is_regular_file
from medimg.io.files.remote_folder import list_folder

if TYPE_CHECKING:
    from medimg.io.files.listed_file import ListedFile

__all__ = ["is_dicomdir", "list_referenced_files"]

#: Media Storage SOP Class UID (0002,0002) of a Basic Directory, as in every DICOMDIR.
_MARK: Final = b"\x02\x00\x02\x00UI\x14\x001.2.840.10008.1.3.10"
_MAX_LEVELS: Final = 32
#: Files on a web server that are looked for at the same time.
_REMOTE_WORKERS: Final = 16
# wider than PS3.10 8.2 allows, too narrow for text swallowed by a damaged length
_PRINTABLE_NAME: Final = re.compile(r"[\w.;()-]{1,64}", re.ASCII)


def is_dicomdir(start: bytes) -> bool:
    """Whether a file is a DICOMDIR, by its first 1024 bytes."""
    return start[128:132] == b"DICM" and _MARK in start[:1024]


def list_referenced_files(blob: Blob) -> tuple[list[Blob], list[Skipped]]:
    """
    Return the files that a DICOMDIR references, and those that are missing or outside its folder.

    Names are compared without regard to case, which copies of a CD often change, except on a web server,
    whose folders can't be listed. ReadError is raised if the DICOMDIR is damaged, references nothing, or is
    not in a folder.
    """
    listed = blob.listed_file if blob.archive is None else None
    if blob.path is None and listed is None:
        raise ReadError(f"{blob.name} is a DICOMDIR by itself; give its path, or the files that it names")
    with quiet_pydicom():
        dataset = open_dataset(blob)
        records = parse_items(dataset, "DirectoryRecordSequence")
        references = list(
            dict.fromkeys(filter(None, (_parse_file_id(get_value(r, "ReferencedFileID")) for r in records)))
        )
    if not references:
        raise ReadError(f"{blob.name} is a DICOMDIR that names no files; read the folder instead")
    folder = _Folder(blob) if listed is None else _RemoteFolder(blob, listed)
    files = ordered_map(folder.find, references, 1 if listed is None else _REMOTE_WORKERS)
    found, missing = [], []
    for parts, file in zip(references, files, strict=True):
        shown = "/".join(parts) if all(map(_PRINTABLE_NAME.fullmatch, parts)) else "(its name is damaged)"
        if file is not None:
            found.append(file)
        elif not _is_inside(parts):
            missing.append(Skipped(shown, f"{blob.name} names a file outside of its own folder"))
        else:
            missing.append(Skipped(shown, f"{blob.name} names a file that is not there: {shown}"))
    return found, missing


def _parse_file_id(stated: object) -> tuple[str, ...]:
    """Return folders and name of a Referenced File ID (0004,1500)."""
    if isinstance(stated, str):
        return (stated,) if stated else ()
    return tuple(str(part) for part in stated) if isinstance(stated, MultiValue | list | tuple) else ()


def _is_inside(parts: tuple[str, ...]) -> bool:
    sound = all(part.strip(" .") and not set(part) & set("/\\:\0") for part in parts)
    return sound and len(parts) <= _MAX_LEVELS


class _RemoteFolder:
    """The folder of a DICOMDIR at a URL; in object storage it is listed once."""

    def __init__(self, blob: Blob, file: ListedFile) -> None:
        self._blob = blob
        self._files: dict[str, Blob] | None = None
        if not is_web_url(file.url):
            found = list_folder(file.url.rpartition("/")[0])
            self._files = {_fold(path): Blob(one.name, remote=one) for path, one in found.items()}

    def find(self, parts: tuple[str, ...]) -> Blob | None:
        if not _is_inside(parts):
            return None
        path = "/".join(parts)
        return self._blob.sibling(path) if self._files is None else self._files.get(_fold(path))


def _fold(name: str) -> str:
    """Return a name as names are compared, without the version of ISO 9660."""
    return name.casefold().removesuffix(";1")


class _Folder:
    """The folder of a DICOMDIR; each subfolder is listed once."""

    def __init__(self, blob: Blob) -> None:
        assert blob.path is not None  # was checked
        self._root = blob.path.parent
        self._listed: dict[str, dict[str, str]] = {}

    def find(self, parts: tuple[str, ...]) -> Blob | None:
        if not _is_inside(parts):
            return None
        path = ""
        for part in parts:
            name = self._list_names(path).get(part.casefold())
            if name is None:
                return None
            path = f"{path}/{name}" if path else name
        file = self._root / path
        return Blob(str(file)) if is_regular_file(file) else None

    def _list_names(self, folder: str) -> dict[str, str]:
        """Return the names in a folder, by their case-folded form without the version of ISO 9660."""
        if folder not in self._listed:
            try:
                entries = sorted(entry.name for entry in (self._root / folder).iterdir())
            except OSError:
                entries = []
            self._listed[folder] = {_fold(name): name for name in entries}
        return self._listed[folder]
