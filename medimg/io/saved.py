"""
What is in a tree of files, kept in a SQLite file, so that only what has changed is read again.

A record of a file holds its size, its time of modification, and what its header said, as JSON. A file counts
as unchanged if size and time are the same; one that was written within two seconds before it was read is not
recorded, as it may be written again without another time.
"""

from __future__ import annotations

import os
import sqlite3
import time
import warnings
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from medimg.errors import MedimgWarning, ReadError
from medimg.io.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Record", "SavedIndex", "State", "state_of"]

#: "medi": tells an index from any other file.
_APPLICATION: Final = 0x6D656469
#: Raised whenever records mean something else.
_VERSION: Final = 1
_SQLITE: Final = b"SQLite format 3\0"
_FRESH_NS: Final = 2_000_000_000
_TABLES: Final = (
    "CREATE TABLE kinds (number INTEGER PRIMARY KEY, facts TEXT NOT NULL)",
    "CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL, "
    "kind INTEGER, facts TEXT NOT NULL) WITHOUT ROWID",
)


class State(NamedTuple):
    """Size of a file in bytes, and its time of modification in nanoseconds."""

    size: int
    modified: int


class Record(NamedTuple):
    """
    What is known of a file.

    Attributes
    ----------
    state : State
        When it was read.
    kind : int or None
        Number of what it has in common with others.
    facts : str
        What is its own, in JSON.
    """

    state: State
    kind: int | None
    facts: str


@dataclass(slots=True)
class SavedIndex:
    """
    The records of a folder.

    Parameters
    ----------
    path : Path
        The file that keeps them.
    root : Path
        The folder; records are by path below it, so that both can be moved.

    Attributes
    ----------
    kinds : dict of int to str
        What files have in common, in JSON.
    records : dict of str to Record
        By path below the folder, with slashes.

    Raises
    ------
    ReadError
        If there is a file of that name that is no index; it is left as it is.
    """

    path: Path
    root: Path
    kinds: dict[int, str] = field(default_factory=dict, init=False)
    records: dict[str, Record] = field(default_factory=dict, init=False)
    began: int = field(default_factory=time.time_ns, init=False)

    def __post_init__(self) -> None:
        try:
            if not self.path.exists():
                return
        except OSError as error:
            raise ReadError(f"the index {self.path} can't be read: {error.strerror}") from None
        if not _is_index(self.path):
            raise ReadError(f"{self.path} is there, but is no index of medimg; name another file")
        try:
            self._load()
        # what is damaged raises errors of many kinds
        except Exception as error:
            self.kinds, self.records = {}, {}
            warnings.warn(
                f"{self.path} is damaged or of another version ({type(error).__name__}); it is made anew",
                MedimgWarning,
                stacklevel=5,
            )

    def _load(self) -> None:
        with closing(sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != _VERSION:
                raise ValueError
            self.kinds = dict(database.execute("SELECT * FROM kinds"))
            self.records = {
                path: Record(State(size, modified), kind, facts)
                for path, size, modified, kind, facts in database.execute("SELECT * FROM files")
            }

    def key(self, name: str) -> str:
        """Return the path of a file below the folder, with slashes."""
        start = str(self.root / "_")[:-1]
        below = name[len(start) :] if name.startswith(start) else os.path.relpath(name, self.root)
        return below.replace(os.sep, "/")

    def save(self, kinds: Mapping[int, str], records: Mapping[str, Record]) -> None:
        """
        Replace the file, whole or not at all.

        Parameters
        ----------
        kinds : mapping of int to str
            As :attr:`kinds`.
        records : mapping of str to Record
            As :attr:`records`; those of files that were written just now are left out.

        Raises
        ------
        ReadError
            If it can't be written.
        """
        rows = (
            (path, *record.state, record.kind, record.facts)
            for path, record in records.items()
            if record.state.modified < self.began - _FRESH_NS and _is_text(path)
        )
        try:
            with atomic_path(self.path) as temporary:
                _write(temporary, kinds, rows)
        # a name with a null character is a ValueError
        except (OSError, sqlite3.Error, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ReadError(f"the index {self.path} can't be written: {reason}") from None


def _is_text(path: str) -> bool:
    """Whether a path can be kept: names of files can be any bytes, and SQLite keeps text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_index(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(72)
    except OSError as error:
        raise ReadError(f"the index {path} can't be read: {error.strerror}") from None
    return start[:16] == _SQLITE and int.from_bytes(start[68:72], "big") == _APPLICATION


def _write(path: Path, kinds: Mapping[int, str], rows: Iterable[tuple[Any, ...]]) -> None:
    with closing(sqlite3.connect(path)) as database:
        # the file takes its place when it is whole
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        database.execute(f"PRAGMA application_id = {_APPLICATION}")
        database.execute(f"PRAGMA user_version = {_VERSION}")
        for table in _TABLES:
            database.execute(table)
        database.executemany("INSERT INTO kinds VALUES (?, ?)", kinds.items())
        database.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?)", rows)
        database.commit()


def state_of(name: str) -> State | None:
    """Return size and time of a file; None where there is none."""
    try:
        found = Path(name).stat()
    except (OSError, ValueError):
        return None
    return State(found.st_size, found.st_mtime_ns)
