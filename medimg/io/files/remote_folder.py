"""Folders in object storage: their files, listed with sizes and versions in a few requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medimg.errors import ReadError, also
from medimg.io.files.blob import Blob
from medimg.io.files.byte_ranges import call_storage, parse_facts
from medimg.io.files.listed_file import ListedFile, find_url
from medimg.io.files.object_storage import is_web_url, name_url

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["find_blobs", "list_folder", "list_subfolders", "open_blob"]


def open_blob(url: str) -> Blob:
    """Return the file at a URL; ReadError, also a FileNotFoundError, if there is none, or a folder."""
    found = _find_blob(url)
    if found is None:
        raise ReadError(f"{name_url(url)} is a folder; expected a file")
    return found


def find_blobs(url: str) -> tuple[list[Blob], bool]:
    """Return the files below a URL, or the one that it is, and whether it is a folder."""
    found = None if url.endswith("/") and not is_web_url(url) else _find_blob(url)
    if found is not None:
        return [found], False
    return [Blob(file.name, remote=file) for file in list_folder(url).values()], True


def _find_blob(url: str) -> Blob | None:
    found = find_url(url)
    if found is None:
        return None
    file, data = found
    return Blob(name_url(url), remote=file) if data is None else Blob(name_url(url), data=data)


def list_folder(url: str) -> dict[str, ListedFile]:
    """
    Return the files below a folder by their paths in it, in the order in which a local folder is walked.

    Hidden files and folders are left out. ReadError if there is none, or the storage can't be listed.
    """
    base = _check_folder(url)

    def find(storage: Any, path: str) -> Mapping[str, Mapping[str, Any]]:
        found: Mapping[str, Mapping[str, Any]] = storage.find(path, detail=True)
        return {name.removeprefix(path.rstrip("/")).removeprefix("/"): info for name, info in found.items()}

    files: dict[str, ListedFile] = {
        name: ListedFile(f"{base}/{name}", *parse_facts(info))
        for name, info in call_storage(base, find).items()
        if info["type"] == "file" and name and not name.endswith("/")
    }
    if not files:
        raise also(ReadError, FileNotFoundError)(f"there is no file or folder {name_url(url)}")
    return {name: files[name] for name in sorted(files, key=_order) if not _is_hidden(name)}


def list_subfolders(url: str) -> list[str]:
    """Return the names of the folders in a folder, sorted; hidden ones are left out."""

    def find(storage: Any, path: str) -> list[str]:
        entries = storage.ls(path, detail=True)
        return [
            entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"
        ]

    return sorted(name for name in call_storage(_check_folder(url), find) if name and not _is_hidden(name))


def _check_folder(url: str) -> str:
    """Return the URL of a folder without a slash at its end."""
    if is_web_url(url):
        raise ReadError(
            f"{name_url(url)}: folders of web servers can't be listed; give the URLs of the files"
        )
    scheme, slashes, place = url.partition("://")
    return f"{scheme}{slashes}{place.rstrip('/')}"


def _order(name: str) -> list[tuple[bool, str]]:
    """Return the key by which the files of a folder come before those of its subfolders."""
    *folders, last = name.split("/")
    return [*((True, folder) for folder in folders), (False, last)]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
