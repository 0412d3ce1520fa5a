"""
Format detection by content, and the registry of readers.

A reader is a pair of functions: ``detect`` recognizes a format by the first bytes of a file, ``open`` reads
its header. Built-in formats and plug-ins are entries of one type; built-in ones are asked first.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final, TypeAlias

from medimg.errors import MedimgError, MedimgWarning, NotAnImageError, ReadError
from medimg.io.dicom.dicomdir import is_dicomdir
from medimg.io.dicom.header.instance import Instance, read_instance
from medimg.io.dicom.header.open import is_dicom
from medimg.io.files.blob import Blob, as_blob
from medimg.io.formats.metaimage import is_metaimage, open_metaimage
from medimg.io.formats.nifti import find_header, is_nifti, open_nifti
from medimg.io.formats.nrrd import is_nrrd, open_nrrd
from medimg.io.formats.still_image import is_still_image, open_image
from medimg.io.formats.tiff import is_tiff, open_tiff
from medimg.io.series import Series
from medimg.io.sources import is_zip

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from importlib.metadata import EntryPoint

__all__ = [
    "FORMATS",
    "Reader",
    "Scanned",
    "Unreadable",
    "identify_file",
    "inspect_file",
    "is_built_in",
    "list_plugin_readers",
    "register_reader",
    "unregister_reader",
]

#: Entry points of this group name readers of other packages.
GROUP: Final = "medimg.readers"

_FORMATS: Final = (
    "DICOM",
    "NIfTI",
    "NRRD",
    "MetaImage",
    "PNG",
    "JPEG",
    "JPEG 2000",
    "TIFF",
    "BMP",
    "WebP",
    "GIF",
)
#: What can be read without plug-ins, for messages.
FORMATS: Final = f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}"


@dataclass(frozen=True, slots=True)
class Reader:
    """A format: how its files are recognized, and how one is opened from its header."""

    name: str
    detect: Callable[[bytes], bool]
    open: Callable[[Blob], Instance | Series]
    origin: str = "medimg"  # for messages
    version: str = ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that holds no image or a damaged one, and the error that says why."""

    name: str
    error: MedimgError
    is_permanent: bool = True  # as long as the file is unchanged


Scanned: TypeAlias = Instance | Series | Unreadable


class _DirectoryError(NotAnImageError):
    """Raised for a DICOMDIR, which is skipped silently."""


def _has_preamble(start: bytes) -> bool:
    return start[128:132] == b"DICM"


def _refuse_dicomdir(blob: Blob) -> Series:
    raise _DirectoryError(f"{blob.name} is a DICOMDIR; read it by itself")


def _refuse_zip(blob: Blob) -> Series:
    raise NotAnImageError(f"{blob.name} is a zip archive in a folder, which is not opened; read it by itself")


#: In the order in which they are asked: unambiguous formats first.
_BUILT_IN: Final = (
    Reader("DICOMDIR", is_dicomdir, _refuse_dicomdir),
    Reader("DICOM", _has_preamble, read_instance),
    Reader("PNG, JPEG, JPEG 2000, BMP, WebP or GIF", is_still_image, open_image),
    Reader("NIfTI", is_nifti, open_nifti),
    Reader("NRRD", is_nrrd, open_nrrd),
    Reader("MetaImage", is_metaimage, open_metaimage),
    Reader("TIFF", is_tiff, open_tiff),
    Reader("DICOM without preamble", is_dicom, read_instance),
    Reader("zip", is_zip, _refuse_zip),
)
_RESERVED: Final = frozenset(name.casefold() for name in (*_FORMATS, *(r.name for r in _BUILT_IN)))


class _Plugins:
    """Readers that are not built in: registered ones first, then those of entry points, by name."""

    def __init__(self) -> None:
        self._registered: dict[str, Reader] = {}
        self._installed: dict[str, Reader] = {}
        self._is_loaded = False
        # reentrant: a plug-in may read or register something while it is imported
        self._lock = threading.RLock()

    def add(self, reader: Reader) -> None:
        with self._lock:
            if self._is_taken(reader.name):
                raise ReadError(
                    f"a reader named {reader.name!r} exists already; choose another name, or remove yours by "
                    f"unregister_reader({reader.name!r}) first"
                )
            self._registered[reader.name] = reader

    def remove(self, name: str) -> None:
        with self._lock:
            self.list_readers()  # also those of entry points
            if (self._registered.pop(name, None) or self._installed.pop(name, None)) is None:
                names = ", ".join(repr(r.name) for r in self._list_loaded()) or "none"
                raise ReadError(f"no reader named {name!r} is registered; registered readers: {names}")

    def discard(self, reader: Reader) -> bool:
        """Stop using a reader; return whether it was in use until now."""
        with self._lock:
            group = self._registered if reader in self._registered.values() else self._installed
            if group.get(reader.name) is not reader:
                return False
            del group[reader.name]
            return True

    def list_readers(self) -> list[Reader]:
        """Return all readers; the first call imports those of entry points."""
        with self._lock:
            if not self._is_loaded:
                self._is_loaded = True
                for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
                    self._load(entry)
            return self._list_loaded()

    def _list_loaded(self) -> list[Reader]:
        return [*self._registered.values(), *self._installed.values()]

    def _is_taken(self, name: str) -> bool:
        used = {reader.name.casefold() for reader in self._list_loaded()}
        return name.casefold() in _RESERVED | used

    def _load(self, entry: EntryPoint) -> None:
        package = "" if entry.dist is None else f" of {entry.dist.name} {entry.dist.version}"
        origin = f"the entry point {entry.name!r} ({entry.value}){package}"
        # importing a package can raise anything
        try:
            plugin = entry.load()
            reader = _build_reader(
                entry.name,
                plugin.detect,
                plugin.open,
                origin,
                "" if entry.dist is None else entry.dist.version,
            )
        except Exception as error:
            _warn(f"{origin} is not used: loading it raised {type(error).__name__}: {error}")
            return
        if self._is_taken(reader.name):
            _warn(f"{origin} is not used: a reader named {entry.name!r} exists already")
        else:
            self._installed[reader.name] = reader


_PLUGINS: Final = _Plugins()


def _warn(text: str) -> None:
    warnings.warn(text, MedimgWarning, stacklevel=2)


def _build_reader(
    name: str, detect: Callable[[bytes], bool], open: Callable[[Blob], Series], origin: str, version: str = ""
) -> Reader:
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ReadError(f"invalid name of a reader: {name!r}; expected the name of its format")
    for function, title in ((detect, "detect"), (open, "open")):
        if not callable(function):
            raise ReadError(f"{title} of the reader {name!r} is not a function: {type(function).__name__}")
    return Reader(name, detect, open, origin, version)


def register_reader(detect: Callable[[bytes], bool], open: Callable[[Blob], Series], *, name: str) -> None:
    """
    Register a reader of a file format for this process.

    From then on :func:`medimg.read`, :func:`medimg.scan`, datasets and ``model.predict`` recognize files of
    the format: single files, in folders and in zip archives, compressed with gzip or not. Built-in formats
    are asked first, so that a plug-in cannot override DICOM, NIfTI, NRRD, MetaImage, images or zip;
    registered readers follow in the order of registration, then those of entry points.

    Parameters
    ----------
    detect : callable
        ``detect(head) -> bool``: whether a file is of this format, given its first 2,048 bytes, or the whole
        of a shorter file. Called for each file that no built-in format recognizes, from several threads at
        once. If it raises, a warning is given and the reader is not used any more.
    open : callable
        ``open(blob) -> Series``: the series of one file, from its header. ``blob.open()`` and
        ``blob.stream()`` return its bytes as a binary file; ``blob.name`` is for messages and for
        ``Series.files``; ``blob.path`` is None unless the bytes are a whole file on disk. A damaged file must
        raise a :class:`~medimg.errors.ReadError`; any other exception that is not a
        :class:`~medimg.errors.MedimgError` is replaced by one that names the reader.
    name : str
        Name of the format, for messages. It must be unique.

    Raises
    ------
    ReadError
        If the name is in use or empty, or `detect` or `open` is not callable.

    See Also
    --------
    unregister_reader : Remove a reader.
    medimg.testing : Checks that every reader must pass.

    Notes
    -----
    Worker processes that are spawned rather than forked do not inherit registered readers. A package that
    declares an entry point of the group ``medimg.readers`` is found in every process: the name of the entry
    point is the name of the format, and its object, such as a module, has the attributes ``detect`` and
    ``open``. It is imported for the first file that no built-in format recognizes; if that fails, a warning
    is given.

    Examples
    --------
    A format with an 8-byte signature, three 16-bit sizes, and 8-bit values:

    >>> import numpy as np
    >>> import medimg
    >>> from medimg.plugins import Raster, raster_series, register_reader, unregister_reader
    >>> def is_tiny(head):
    ...     return head.startswith(b"TINYSCAN")
    >>> def open_tiny(blob):
    ...     d, h, w = np.frombuffer(blob.start(14)[8:], "<u2").tolist()
    ...     affine = np.diag([2.0, 0.5, 0.5, 1.0])[[2, 1, 0, 3]]  # (d, h, w) to LPS millimeters
    ...     return raster_series(Raster(
    ...         name=blob.name, format="Tiny", files=(blob.name,), blob=blob, dtype=np.dtype("u1"),
    ...         grid=(d, h, w), affine=affine, space="patient", start=14,
    ...     ))
    >>> register_reader(is_tiny, open_tiny, name="Tiny")
    >>> medimg.read(b"TINYSCAN" + bytes([2, 0, 3, 0, 4, 0]) + bytes(range(24)))
    Volume(1×2×3×4 uint8, raw, spacing 2×0.5×0.5 mm, SPL)
    >>> unregister_reader("Tiny")
    """
    _PLUGINS.add(_build_reader(name, detect, open, f"the registered reader {name!r}"))


def unregister_reader(name: str) -> None:
    """
    Remove a reader that :func:`register_reader` or an entry point added, for this process.

    Parameters
    ----------
    name : str
        Name of the reader.

    Raises
    ------
    ReadError
        If no reader has this name. Built-in formats can't be removed.
    """
    _PLUGINS.remove(name)


def list_plugin_readers() -> list[str]:
    """Return the names and versions of the readers of plug-ins."""
    return [f"{reader.name} {reader.version}".rstrip() for reader in _PLUGINS.list_readers()]


def is_built_in(format_name: str) -> bool:
    """Whether a series of a format is read without plug-ins."""
    return format_name in _FORMATS


def inspect_file(blob: Blob) -> Scanned | None:
    """Return what a file holds; None for a DICOMDIR."""
    try:
        return identify_file(blob)
    except _DirectoryError:
        return None
    except MedimgError as error:
        failed = Unreadable(blob.name, error, _is_permanent(blob, error))
        # its traceback holds the start of the file: too much memory for many files
        error.__context__ = error.__traceback__ = None
        return failed


def _is_permanent(blob: Blob, error: MedimgError) -> bool:
    """Whether an error will occur again as long as the file is unchanged."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return False
        cause = cause.__context__
    if isinstance(error, NotAnImageError):
        return True
    # headers of other formats may refer to files with the values; of files elsewhere nothing is recorded
    if blob.is_remote:
        return False
    try:
        return is_dicom(blob.start())
    except MedimgError:
        return False


def identify_file(source: str | os.PathLike[str] | Blob) -> Instance | Series:
    """Detect the format of a file by its content and read its header; raise ReadError if it is no image."""
    blob = as_blob(source)
    start = blob.start()
    if start[:2] == b"\x1f\x8b":
        blob = blob.unzipped()
        start = blob.start()
    if not start:
        raise NotAnImageError(f"{blob.name} is empty")
    for reader in _BUILT_IN:
        if reader.detect(start):
            return reader.open(blob)
    header = find_header(blob)
    if header is not None:
        return open_nifti(header)
    plugins = _PLUGINS.list_readers()
    for reader in plugins:
        if _is_recognized(reader, start):
            return _open_with(reader, blob)
    *names, last = (*_FORMATS, *(reader.name for reader in plugins))
    raise NotAnImageError(f"{blob.name} is none of {', '.join(names)} and {last}")


def _is_recognized(reader: Reader, start: bytes) -> bool:
    """Whether a plug-in recognizes a file; one that raises is not asked again."""
    try:
        return bool(reader.detect(start))
    except Exception as error:
        if _PLUGINS.discard(reader):
            _warn(f"{reader.origin} is not used any more: its detect raised {type(error).__name__}")
        return False


def _open_with(reader: Reader, blob: Blob) -> Series:
    """Open a file with a plug-in, whose exceptions may quote the file and are not passed on."""
    try:
        found = reader.open(blob)
    except MedimgError:
        raise
    except Exception as error:
        raise ReadError(
            f"{blob.name} can't be opened: {reader.origin} raised {type(error).__name__}; "
            "expected a Series or a ReadError; report it to its authors"
        ) from None
    if not isinstance(found, Series):
        given = type(found).__name__
        raise ReadError(f"{blob.name} can't be opened: {reader.origin} returned a {given}; expected a Series")
    return found
