"""Finds, in the headers of single-frame files, the elements that the values of pixels depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from medimg._native.headers import HeaderWalk
from medimg._native.library import load_library
from medimg._native.slices import read_alike
from medimg.io.dicom.header.elements import (
    WALKED_SYNTAXES,
    Element,
    ElementLocator,
    UnusualHeaderError,
)
from medimg.io.dicom.header.transfer_syntax import IMPLICIT

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Collection, Sequence

    import numpy.typing as npt

    from medimg._native.slices import AlikeFiles

__all__ = ["Header", "HeaderWalker", "make_header_walker"]

_INSTANCE_UID: Final = 0x00080018
#: Functional groups and offset tables, which single-frame files do not have.
_MANY_FRAMES: Final = frozenset({0x52009229, 0x52009230, 0x7FE00001, 0x7FE00002})
_LOCATED: Final = _MANY_FRAMES | {_INSTANCE_UID}


class Header(NamedTuple):
    """Result of a walk: pixel data, transfer syntax UID, SOP Instance UID, and the wanted elements."""

    pixels: Element
    syntax: str
    uid: bytes
    wanted: bytes


class HeaderWalker(Protocol):
    """Walks headers of single-frame files, from any thread."""

    def read_header(self, head: bytes) -> Header:
        """
        Return the header of a file, from bytes that are complete up to the pixel values.

        Raises UnusualHeaderError if it can't be walked, is incomplete, or has several frames.
        """

    def read_alike(
        self, like: AlikeFiles, files: Sequence[tuple[str, str, npt.NDArray[Any]]], threads: int
    ) -> list[bool]:
        """Read files that are alike, and say which were read; see :mod:`medimg._native.slices`."""


def make_header_walker(tags: Collection[int]) -> HeaderWalker:
    """Return a walker that keeps the elements `tags`."""
    library = load_library()
    return PlainHeaderWalker(tags) if library is None else CompiledHeaderWalker(library, tags)


class CompiledHeaderWalker:
    """A walker by the compiled library."""

    def __init__(self, library: ctypes.CDLL, tags: Collection[int]) -> None:
        self._library = library
        self._walk = HeaderWalk(
            library,
            tags,
            _MANY_FRAMES,
            instance_uid=_INSTANCE_UID,
            syntaxes=WALKED_SYNTAXES,
            implicit=IMPLICIT,
        )

    def read_header(self, head: bytes) -> Header:
        """Return the header of a file; see :class:`HeaderWalker`."""
        found = self._walk.run(head)
        if isinstance(found, str):
            raise UnusualHeaderError(ends=found == "ends")
        tag, at, value, length, vr, uid, syntax, wanted = found
        return Header(
            Element(tag, at, value, length, vr, value),
            head[syntax].rstrip(b"\0 ").decode("latin-1"),
            head[uid].rstrip(b"\0 "),
            b"".join([head[run] for run in wanted]),
        )

    def read_alike(
        self, like: AlikeFiles, files: Sequence[tuple[str, str, npt.NDArray[Any]]], threads: int
    ) -> list[bool]:
        """Read files that are alike; see :class:`HeaderWalker`."""
        return read_alike(self._library, self._walk, like, files, threads)


class PlainHeaderWalker:
    """A walker without the compiled library."""

    def __init__(self, tags: Collection[int]) -> None:
        self._locator = ElementLocator(_LOCATED, joined=tags)

    def read_header(self, head: bytes) -> Header:
        """Return the header of a file; see :class:`HeaderWalker`."""
        offsets = self._locator.locate(head)
        uid = b""
        for tag, _, value, _, _, end in offsets.elements:
            if tag in _MANY_FRAMES:
                raise UnusualHeaderError
            uid = head[value:end].rstrip(b"\0 ")
        return Header(offsets.pixels, offsets.syntax, uid, offsets.joined)

    def read_alike(
        self, like: AlikeFiles, files: Sequence[tuple[str, str, npt.NDArray[Any]]], threads: int
    ) -> list[bool]:
        """Read none: each file is read by itself."""
        return [False] * len(files)
