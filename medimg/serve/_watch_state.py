"""What a watch has done, in an SQLite file: keyed hashes of series, no identifiers."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final, Self

from medimg.core.content_hash import content_hash
from medimg.errors import MedimgError
from medimg.io.files.private_folder import make_private_folder

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["WatchState"]

_SCHEMA: Final = 1
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS series (
    key TEXT PRIMARY KEY, instances INTEGER NOT NULL, since REAL NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0, done INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS result (key TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class WatchState:
    """Which series are settled, done or failed; each change is on disk before the next step."""

    def __init__(self, folder: Path, scope: str) -> None:
        self._scope = scope
        make_private_folder(folder, "folder", error=MedimgError)
        path = folder / "watch.sqlite"
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=0)
            self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("BEGIN IMMEDIATE")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _SCHEMA):
                raise MedimgError(f"{path} was written by another version of medimg; name another folder")
            for statement in _TABLES.split(";")[:-1]:
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {_SCHEMA}")
            self._connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            reason = (
                "another watch uses it; end that, or name another folder"
                if "locked" in str(error)
                else "it can't be written; check the rights and the disk"
            )
            raise MedimgError(f"{path}: {reason}") from None
        except sqlite3.DatabaseError:
            raise MedimgError(f"{path} is damaged, or no state of a watch; move it away") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def key(self, uid: str) -> str:
        """Return the hash of a series by which it is known, the same in each run with the same settings."""
        return content_hash(f"{self._scope}\0{uid}")

    def is_due(self, key: str, instances: int, now: float, *, settle: float, attempts: int) -> bool:
        """Note how many instances a series has; whether it has settled and is to be predicted on now."""
        row = self._connection.execute(
            "SELECT instances, since, failures, not_before, done FROM series WHERE key = ?", (key,)
        ).fetchone()
        if row is None or row[0] != instances:
            self._connection.execute(
                "INSERT OR REPLACE INTO series (key, instances, since) VALUES (?, ?, ?)",
                (key, instances, now),
            )
            return settle == 0
        _, since, failures, not_before, done = row
        # a clock that was set back must not stop everything
        waits = 0 <= now - since < settle or 0 < not_before - now < 86_400
        return not done and failures < attempts and not waits

    def is_waiting(self, key: str, attempts: int) -> bool:
        """Whether a series that is not due now may be later."""
        row = self._connection.execute("SELECT failures, done FROM series WHERE key = ?", (key,)).fetchone()
        return row is not None and row[0] < attempts and not row[1]

    def mark_done(self, key: str) -> None:
        """Note that the results of a series are stored."""
        self._connection.execute("UPDATE series SET done = 1 WHERE key = ?", (key,))

    def count_failures(self, key: str) -> int:
        """Return how often a series could not be predicted on."""
        row = self._connection.execute("SELECT failures FROM series WHERE key = ?", (key,)).fetchone()
        return 0 if row is None else int(row[0])

    def postpone(self, key: str, not_before: float) -> None:
        """Note from when on a series may be tried again."""
        self._connection.execute("UPDATE series SET not_before = ? WHERE key = ?", (not_before, key))

    def mark_failed(self, key: str, not_before: float) -> None:
        """Note that a series could not be predicted on, and from when on it may be tried again."""
        self._connection.execute(
            "UPDATE series SET failures = failures + 1, not_before = ? WHERE key = ?", (not_before, key)
        )

    def give_up(self, key: str, attempts: int) -> None:
        """Note that a series is not tried again unless it changes, or more attempts are wanted."""
        self._connection.execute(
            "UPDATE series SET failures = max(failures, ?) WHERE key = ?", (attempts, key)
        )

    def add_result(self, uid: str) -> None:
        """Note a series of results, before it is stored."""
        self._connection.execute("INSERT OR IGNORE INTO result VALUES (?)", (self.key(uid),))

    def is_result(self, uid: str) -> bool:
        """Whether a series is one of results."""
        found = self._connection.execute("SELECT 1 FROM result WHERE key = ?", (self.key(uid),)).fetchone()
        return found is not None
