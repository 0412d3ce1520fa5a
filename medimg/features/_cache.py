"""
Feature cache: embeddings on disk, one SQLite file per network, one row per image.

The key of a row is a digest of the address of its series (see :mod:`medimg.data.cache.keys`), the index of
the image, and the network with its weights. A checksum per row detects damaged or misplaced rows. Several
processes may use one folder at once.
"""

from __future__ import annotations

import json
import sqlite3
import warnings
from contextlib import closing
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch

from medimg.core.content_hash import content_hash, json_text, keyed_digest
from medimg.data.cache.image_cache import make_cache_folder
from medimg.errors import MedimgWarning
from medimg.models.backbones.heads import feature_count
from medimg.models.digest import network_digest

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from medimg.data.cache.keys import Address
    from medimg.data.dataset import ImageDataset
    from medimg.models.classifier import TransferClassifier

__all__ = ["FLUSH_AFTER", "DatasetFeatureCache", "FeatureCache", "SeriesFeatures"]

#: Rows per transaction.
FLUSH_AFTER: Final = 1024

#: Raised when the meaning of rows changes.
_SCHEMA: Final = 1
#: "medf": distinguishes a feature cache from any other SQLite file.
_APPLICATION: Final = 0x6D656466
_AT_ONCE: Final = 500
_TIMEOUT_S: Final = 60.0
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
#: In place of the index of an image: the row of slices and UIDs of a series.
_NAMES: Final = -1
_PURPOSE: Final = b"features "
#: Key and content of a row.
_Entry: TypeAlias = tuple[bytes, bytes]

_T = TypeVar("_T")

_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, sum BLOB NOT NULL, data BLOB NOT NULL)"
)


class SeriesFeatures(NamedTuple):
    """Features (n, F) float32 of all images of a series, with the slice and SOP Instance UID of each."""

    rows: NDArray[np.float32]
    slices: tuple[int, ...]
    sop_instance_uids: tuple[str, ...]


class FeatureCache:
    """Features (F,) of images, computed by one network (a digest), in a file of an existing folder."""

    def __init__(self, folder: Path, network: str, features: int) -> None:
        # files of another schema are never opened
        name = content_hash(f"{_SCHEMA} {network}")
        self.path = folder / f"{name[:32]}.features"
        self.network = network
        self.features = features
        self._off = False

    @classmethod
    def open(cls, folder: str | os.PathLike[str], model: TransferClassifier) -> FeatureCache:
        """Return the cache of a model's backbone in a folder, which is created if it is missing."""
        return cls(make_cache_folder(folder), network_digest(model), feature_count(model))

    def key(self, address: Address, image: int) -> bytes:
        """Return the key of an image's features."""
        text = json_text([_SCHEMA, self.network, self.features, address.key, image])
        return bytes.fromhex(content_hash(text))

    def load(self, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """Return the features (F,) of those keys that are cached."""
        entries = self._select(keys, 4 * self.features)
        return {key: np.frombuffer(data, "<f4").astype(np.float32) for key, data in entries}

    def load_series(self, address: Address, count: int) -> SeriesFeatures | None:
        """Return the features of the `count` images of a series; None if some are not cached."""
        keys = [self.key(address, n) for n in range(count)]
        rows = self.load(keys)
        names = self._load_names(address)
        if names is None or len(rows) < count or {len(names[0]), len(names[1])} != {count}:
            return None
        return SeriesFeatures(np.stack([rows[key] for key in keys]), *names)

    def _load_names(self, address: Address) -> tuple[tuple[int, ...], tuple[str, ...]] | None:
        """Return slices and SOP Instance UIDs of the images of a series; None if they are not cached."""
        for _, data in self._select([self.key(address, _NAMES)], None):
            try:
                slices, uids = json.loads(address.cipher(data, _PURPOSE))
                return tuple(int(n) for n in slices), tuple(str(uid) for uid in uids)
            except (ValueError, TypeError, RecursionError):
                return None
        return None

    def store(self, rows: Iterable[tuple[Address, int, NDArray[np.float32]]]) -> None:
        """Write the features (F,) of images of series, all of them or none."""
        self._insert([self._row_entry(*row) for row in rows])

    def store_series(self, series: Iterable[tuple[Address, SeriesFeatures]]) -> None:
        """Write the features of whole series, with their names encrypted, all of them or none."""
        entries: list[_Entry] = []
        for address, found in series:
            entries += [self._row_entry(address, n, row) for n, row in enumerate(found.rows)]
            text = json.dumps([list(found.slices), list(found.sop_instance_uids)]).encode()
            entries.append((self.key(address, _NAMES), address.cipher(text, _PURPOSE)))
        self._insert(entries)

    def _row_entry(self, address: Address, image: int, row: NDArray[np.float32]) -> _Entry:
        return self.key(address, image), np.ascontiguousarray(row, "<f4").tobytes()

    def _select(self, keys: Sequence[bytes], length: int | None) -> list[_Entry]:
        """Return the sound entries of those keys, of that length in bytes if it is given."""

        def select(database: sqlite3.Connection) -> list[_Entry]:
            rows: list[tuple[bytes, bytes, bytes]] = []
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ", ".join("?" * len(some))
                rows += database.execute(f"SELECT key, sum, data FROM features WHERE key IN ({marks})", some)
            return [
                (key, data)
                for key, total, data in rows
                if isinstance(data, bytes) and length in (None, len(data)) and total == _checksum(key, data)
            ]

        if self._off or not self.path.exists():
            return []
        return self._try(select) or []

    def _insert(self, entries: Sequence[_Entry]) -> None:
        """Write entries, all of them or none; the first time that they can't be written warns."""
        rows = [(key, _checksum(key, data), data) for key, data in entries]

        def insert(database: sqlite3.Connection) -> bool:
            with database:
                database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
            return True

        # a damaged file is removed by the first try
        if rows and not self._off and not self._try(insert) and not self._off:
            self._try(insert)

    def _connect(self) -> sqlite3.Connection:
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

    def _try(self, work: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """Work on the file; None, with a warning, if it is damaged, and is removed, or can't be used."""
        try:
            with closing(self._connect()) as database:
                return work(database)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if (code is not None and code & 0xFF in _DAMAGED) or "no such" in str(error):
                self._remove_damaged()
            else:
                self._give_up(type(error).__name__)
        except OSError as error:
            self._give_up(error.strerror or type(error).__name__)
        return None

    def _remove_damaged(self) -> None:
        warnings.warn(f"{self.path.name} is damaged; it is rebuilt", MedimgWarning, stacklevel=4)
        try:
            for end in ("", "-journal", "-wal", "-shm"):
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)
        except OSError as error:
            self._give_up(error.strerror or type(error).__name__)

    def _give_up(self, reason: str) -> None:
        self._off = True
        warnings.warn(
            f"features can't be cached in {self.path.parent} ({reason}); they are computed again each time",
            MedimgWarning,
            stacklevel=4,
        )


class DatasetFeatureCache:
    """The cached features of a dataset's items, for one network."""

    def __init__(
        self, folder: str | os.PathLike[str], model: TransferClassifier, dataset: ImageDataset
    ) -> None:
        self._cache = FeatureCache.open(folder, model)
        self._keys = dataset.find_item_keys()

    def load(self) -> dict[int, Tensor]:
        """Return the features (n, F) of those items of which all are cached."""
        keys = [self._image_keys(item) for item in range(len(self._keys))]
        rows = self._cache.load([key for some in keys for key in some])
        return {
            item: torch.from_numpy(np.stack([rows[key] for key in some]))
            for item, some in enumerate(keys)
            if some and all(key in rows for key in some)
        }

    def _image_keys(self, item: int) -> list[bytes]:
        address = self._keys.address(item)
        return [self._cache.key(address, image) for image in self._keys.images(item)] if address else []

    def store(self, items: dict[int, Tensor]) -> None:
        """Write the features (n, F) of those items whose files have not changed."""
        rows = []
        for item in self._keys.select_unchanged(items):
            address, images, features = self._keys.address(item), self._keys.images(item), items[item]
            if address is not None and len(images) == len(features):
                pairs = zip(images, features.numpy(), strict=True)
                rows += [(address, image, row) for image, row in pairs]
        self._cache.store(rows)


def _checksum(key: bytes, data: bytes) -> bytes:
    """Return the checksum of a row, 16 bytes."""
    return keyed_digest(data, key, 16)
