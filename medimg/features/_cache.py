"""What tells the pictures of a data set: digests of their files, the recipe and the way of reading."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import numpy as np

from medimg.data.cache.keys import states_of
from medimg.errors import MedimgWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from medimg.data.cache.image_cache import ImageCache
    from medimg.data.cache.keys import Address, States
    from medimg.data.dataset import ImageDataset


__all__ = ["KEEP_AFTER", "Entry", "FeatureFile", "ItemKeys"]

_THREADS: Final = 8


class ItemKeys:
    """
    The content of each item of a data set, as it is when this is made.

    Parameters
    ----------
    dataset : ImageDataset
        Its files are opened, and not decoded.
    cache : ImageCache
        Tells how files are compared; nothing is kept in it.
    """

    def __init__(self, dataset: ImageDataset, cache: ImageCache) -> None:
        self._items = dataset._items
        self._store = dataset._store
        self._series = [item.series for item in dataset._labeled]
        self._recipe = dataset.preprocess
        sources = sorted({item.source for item in self._items})
        maker = self._store.maker

        def looked_at(source: int) -> tuple[States | None, Address | None]:
            series = self._series[source]
            return states_of(series), cache.address(self._recipe, series, maker.policies)

        with ThreadPoolExecutor(_THREADS) as pool:
            self._found = dict(zip(sources, pool.map(looked_at, sources), strict=True))

    def __len__(self) -> int:
        return len(self._items)

    def address(self, item: int) -> Address | None:
        """Return what tells the series of an item; None where its files can't tell it."""
        return self._found[self._items[item].source][1]

    def pictures(self, item: int) -> Sequence[int]:
        """Return which pictures of its series an item shows."""
        picture = self._items[item].picture
        if picture is not None:
            return (picture,)
        return range(self._recipe.count(self._series[self._items[item].source]))

    def settled(self, items: Iterable[int]) -> set[int]:
        """Return those items whose files have not changed since they were looked at, or read before."""
        of_source: dict[int, list[int]] = {}
        for item in items:
            of_source.setdefault(self._items[item].source, []).append(item)
        return {item for source, some in of_source.items() if self._is_settled(source) for item in some}

    def _is_settled(self, source: int) -> bool:
        before = self._found[source][0]
        return before is not None and before == states_of(self._series[source]) == self._store.state(source)


#: Rows that are written at once, so that many pictures don't take as many writes to the disk.
KEEP_AFTER: Final = 1024

#: Raised whenever rows mean something else.
_SCHEMA: Final = 1
#: "medf": tells a file of features from any other.
_APPLICATION: Final = 0x6D656466
_AT_ONCE: Final = 500
_TIMEOUT_S: Final = 60.0
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
#: What a row is found by, and what it holds.
Entry: TypeAlias = tuple[bytes, bytes]

_T = TypeVar("_T")

_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, sum BLOB NOT NULL, data BLOB NOT NULL)"
)


class FeatureFile:
    """
    The features that one network computed.

    Parameters
    ----------
    folder : Path
        Where the file is; it exists.
    network : str
        Digest of the network and all its weights.
    features : int
        Length F of an embedding.
    """

    def __init__(self, folder: Path, network: str, features: int) -> None:
        # files of another schema are never opened
        name = hashlib.sha256(f"{_SCHEMA} {network}".encode()).hexdigest()
        self.path = folder / f"{name[:32]}.features"
        self.network = network
        self.features = features
        self._off = False

    def key(self, address: Address, picture: int) -> bytes:
        """Return what a picture's features are found by."""
        text = json.dumps([_SCHEMA, self.network, self.features, address.key, picture])
        return hashlib.sha256(text.encode()).digest()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """Return the features (F,) of those keys that are there, whole."""
        rows = self._taken(keys, 4 * self.features)
        return {key: np.frombuffer(data, "<f4").astype(np.float32) for key, data in rows}

    def names(self, address: Address) -> tuple[tuple[int, ...], tuple[str, ...]] | None:
        """Return slices and SOP Instance UIDs of the pictures of a series; None if they are not kept."""
        for _, data in self._taken([self.key(address, -1)], None):
            try:
                slices, uids = json.loads(_ciphered(data, address))
                return tuple(int(n) for n in slices), tuple(str(uid) for uid in uids)
            except (ValueError, TypeError, RecursionError):
                return None
        return None

    def entry(self, address: Address, picture: int, row: NDArray[np.float32]) -> Entry:
        """Return the features (F,) of a picture, to be put."""
        return self.key(address, picture), np.ascontiguousarray(row, "<f4").tobytes()

    def names_entry(self, address: Address, slices: Sequence[int], uids: Sequence[str]) -> Entry:
        """Return slices and UIDs, to be put: enciphered by a key that only the files of the series give."""
        text = json.dumps([list(slices), list(uids)]).encode()
        return self.key(address, -1), _ciphered(text, address)

    def _taken(self, keys: Sequence[bytes], length: int | None) -> list[Entry]:
        def selected(database: sqlite3.Connection) -> list[Entry]:
            rows: list[tuple[bytes, bytes, bytes]] = []
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ", ".join("?" * len(some))
                rows += database.execute(f"SELECT key, sum, data FROM features WHERE key IN ({marks})", some)
            return [
                (key, data)
                for key, total, data in rows
                if isinstance(data, bytes) and length in (None, len(data)) and total == _sum(key, data)
            ]

        if self._off or not self.path.exists():
            return []
        return self._tried(selected) or []

    def put(self, entries: Iterable[Entry]) -> None:
        """Keep entries, all of them or none; the first time that they can't be written warns."""
        rows = [(key, _sum(key, data), data) for key, data in entries]

        def inserted(database: sqlite3.Connection) -> bool:
            with database:
                database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
            return True

        # a damaged file is removed by the first try
        if rows and not self._off and not self._tried(inserted) and not self._off:
            self._tried(inserted)

    def _opened(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=_TIMEOUT_S)
        try:
            database.execute("PRAGMA trusted_schema = OFF")
            stated = [
                database.execute(f"PRAGMA {n}").fetchone()[0] for n in ("application_id", "user_version")
            ]
            if stated != [_APPLICATION, _SCHEMA]:
                with database:
                    # of a file that another process has just made, both are set in one transaction
                    database.execute("BEGIN IMMEDIATE")
                    database.execute(f"PRAGMA application_id = {_APPLICATION}")
                    database.execute(f"PRAGMA user_version = {_SCHEMA}")
                    database.execute(_TABLE)
        except BaseException:
            database.close()
            raise
        return database

    def _tried(self, work: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """Work on the file; None, with a warning, where it is damaged, and is removed, or can't be used."""
        try:
            with closing(self._opened()) as database:
                return work(database)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if (code is not None and code & 0xFF in _DAMAGED) or "no such" in str(error):
                self._removed()
            else:
                self._given_up(type(error).__name__)
        except OSError as error:
            self._given_up(error.strerror or type(error).__name__)
        return None

    def _removed(self) -> None:
        warnings.warn(f"{self.path.name} is damaged; it is made anew", MedimgWarning, stacklevel=4)
        try:
            for end in ("", "-journal", "-wal", "-shm"):
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)
        except OSError as error:
            self._given_up(error.strerror or type(error).__name__)

    def _given_up(self, reason: str) -> None:
        self._off = True
        warnings.warn(
            f"features can't be kept in {self.path.parent} ({reason}); they are computed anew each time",
            MedimgWarning,
            stacklevel=4,
        )


def _sum(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, key=key, digest_size=16).digest()


def _ciphered(text: bytes, address: Address) -> bytes:
    """Encipher or decipher: a stream of SHAKE-256 that is used for this one text."""
    stream = hashlib.shake_256(b"features " + address.secret).digest(len(text))
    return (np.frombuffer(text, np.uint8) ^ np.frombuffer(stream, np.uint8)).tobytes()
