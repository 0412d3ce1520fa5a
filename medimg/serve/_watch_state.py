"""What a watch has done, in an SQLite file: keyed hashes of series, no identifiers."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Final, Self

from medimg.core.content_hash import content_hash
from medimg.errors import MedimgError
from medimg.io.files.private_folder import make_private_folder

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["StateError", "WatchState"]

_SCHEMA: Final = 1
_DAY: Final = 86_400.0
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS series (
    key TEXT PRIMARY KEY, instances INTEGER NOT NULL, since REAL NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0, done INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS result (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS started (key TEXT PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID;
"""


class StateError(MedimgError):
    """The state can't be read or written any more: what is done can't be noted."""


class WatchState:
    """Which series are settled, done or failed; each change is on disk before the next step."""

    def __init__(self, folder: Path, scope: str) -> None:
        self._scope = scope
        make_private_folder(folder, "folder", error=MedimgError)
        self._path = folder / "watch.sqlite"
        try:
            self._connection = sqlite3.connect(self._path, isolation_level=None, timeout=0)
            self._prepare()
        except sqlite3.Error as error:
            raise self._explain(error) from None

    def _prepare(self) -> None:
        """Take hold of the file, and make its tables."""
        self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("BEGIN IMMEDIATE")
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _SCHEMA):
            raise MedimgError(f"{self._path} was written by another version of medimg; name another folder")
        for statement in _TABLES.split(";")[:-1]:
            self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version = {_SCHEMA}")
        self._connection.execute("COMMIT")

    def _explain(self, error: sqlite3.Error) -> StateError:
        if not isinstance(error, sqlite3.OperationalError):
            return StateError(f"{self._path} is damaged, or no state of a watch; move it away")
        if "locked" in str(error):
            return StateError(f"{self._path}: another watch uses it; end that, or name another folder")
        return StateError(f"{self._path}: it can't be written; check the rights and the disk")

    def _execute(self, statement: str, *values: object) -> Any:
        """Return the first row that a statement finds, or None."""
        try:
            return self._connection.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise self._explain(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def key(self, uid: str) -> str:
        """Return the hash of a series by which it is known, the same in each run with the same settings."""
        return content_hash(f"{self._scope}\0{uid}")

    def is_due(self, key: str, instances: int, now: float, *, settle: float, attempts: int) -> bool:
        """Note how many instances a series has; whether it has settled and is to be predicted on now."""
        row = self._execute(
            "SELECT instances, since, failures, not_before, done FROM series WHERE key = ?", key
        )
        if row is None or row[0] != instances:
            insert = "INSERT OR REPLACE INTO series (key, instances, since) VALUES (?, ?, ?)"
            self._execute(insert, key, instances, now)
            return settle == 0
        _, since, failures, not_before, done = row
        if done or failures >= attempts:
            return False
        if since > now:
            # the clock was set back: how long ago it was is not known
            since = now
            self._execute("UPDATE series SET since = ? WHERE key = ?", now, key)
        # nor must that stop everything
        return now - since >= settle and not 0 < not_before - now < _DAY

    def is_waiting(self, key: str, attempts: int) -> bool:
        """Whether a series that is not due now may be later."""
        row = self._execute("SELECT failures, done FROM series WHERE key = ?", key)
        return row is not None and row[0] < attempts and not row[1]

    def count_interruptions(self, key: str) -> int:
        """Return how often the process ended while it worked on a series."""
        row = self._execute("SELECT times FROM started WHERE key = ?", key)
        return 0 if row is None else int(row[0])

    def mark_started(self, key: str) -> None:
        """Note that work on a series begins."""
        self._execute("INSERT INTO started VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1", key)

    def mark_ended(self, key: str) -> None:
        """Note that work on a series has ended, in whatever way."""
        self._execute("DELETE FROM started WHERE key = ?", key)

    def mark_done(self, key: str) -> None:
        """Note that the results of a series are stored."""
        self._execute("UPDATE series SET done = 1 WHERE key = ?", key)

    def count_failures(self, key: str) -> int:
        """Return how often a series could not be predicted on."""
        row = self._execute("SELECT failures FROM series WHERE key = ?", key)
        return 0 if row is None else int(row[0])

    def postpone(self, key: str, not_before: float) -> None:
        """Note from when on a series may be tried again."""
        self._execute("UPDATE series SET not_before = ? WHERE key = ?", not_before, key)

    def mark_failed(self, key: str, not_before: float) -> None:
        """Note that a series could not be predicted on, and from when on it may be tried again."""
        update = "UPDATE series SET failures = failures + 1, not_before = ? WHERE key = ?"
        self._execute(update, not_before, key)

    def give_up(self, key: str, attempts: int) -> None:
        """Note that a series is not tried again unless it changes, or more attempts are wanted."""
        self._execute("UPDATE series SET failures = max(failures, ?) WHERE key = ?", attempts, key)

    def add_result(self, uid: str) -> None:
        """Note a series of results, before it is stored."""
        self._execute("INSERT OR IGNORE INTO result VALUES (?)", self.key(uid))

    def is_result(self, uid: str) -> bool:
        """Whether a series is one of results."""
        return self._execute("SELECT 1 FROM result WHERE key = ?", self.key(uid)) is not None
