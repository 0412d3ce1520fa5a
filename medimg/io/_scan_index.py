"""
Saved index of the headers of a folder (SQLite), refreshed by reading only files that changed.

`SavedIndex` is the file; `ScanIndex` uses it in a scan. A record holds the size, modification time and
header values of a file in JSON; what the files of a series have in common is stored once, in a second table.
Each row has a CRC-32.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import warnings
import zlib
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field, fields
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from medimg import errors
from medimg.errors import MedimgError, MedimgWarning, NotAnImageError, ReadError
from medimg.io._header_scan import HeaderScan
from medimg.io.detect import Unreadable, identify_file, is_built_in, list_plugin_readers
from medimg.io.dicom.header.distinguishing_attributes import FrameAttribute
from medimg.io.dicom.header.instance import FrameFacts, Instance
from medimg.io.dicom.scanning.series_table import FILE_ELEMENTS, FileRow, InstanceColumns, UniformFiles
from medimg.io.files.atomic import atomic_path
from medimg.io.files.blob import Blob
from medimg.io.files.regular_file import explain_irregular
from medimg.io.series import Series

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from medimg.core.volume import Volume
    from medimg.io._header_scan import ReadHeaders
    from medimg.io.detect import Scanned
    from medimg.io.series import Policies

__all__ = ["Record", "SavedIndex", "ScanIndex", "State", "compute_crc32", "get_state"]

#: "medi": identifies an index file.
_APPLICATION: Final = 0x6D656469
#: Incremented when the meaning of records changes. Version 1 had no checksums, version 2 fewer attributes.
_VERSION: Final = 3
_SQLITE: Final = b"SQLite format 3\0"
_DAMAGED: Final = "damaged (a checksum differs)"
_FRESH_NS: Final = 2_000_000_000
_TABLES: Final = (
    "CREATE TABLE kinds (number INTEGER PRIMARY KEY, facts TEXT NOT NULL, crc32 INTEGER)",
    "CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL, "
    "kind INTEGER, facts TEXT NOT NULL, crc32 INTEGER) WITHOUT ROWID",
)


class State(NamedTuple):
    """Size of a file in bytes, and its time of modification in nanoseconds."""

    size: int
    modified: int


class Record(NamedTuple):
    """State of a file when it was read, the number of its series' common values, and its own ones in JSON."""

    state: State
    group: int | None
    facts: str


@dataclass(slots=True)
class SavedIndex:
    """
    Records of a folder, read from and written to an index file.

    `records` are by path below `root`, with slashes, so that both can be moved; `groups` holds common values
    of files by number, in JSON. Raises ReadError if the file exists and is not an index.
    """

    path: Path
    root: Path
    groups: dict[int, str] = field(default_factory=dict, init=False)
    records: dict[str, Record] = field(default_factory=dict, init=False)
    began: int = field(default_factory=time.time_ns, init=False)

    def __post_init__(self) -> None:
        try:
            if not self.path.exists():
                return
        except OSError as error:
            raise ReadError(f"the index {self.path} can't be read: {error.strerror}") from None
        if not _is_index(self.path):
            raise ReadError(f"{self.path} exists, but is not an index of medimg; choose another file")
        try:
            problem = self._load()
        # damaged files raise errors of many types
        except Exception as error:
            problem = f"damaged ({type(error).__name__})"
        if problem:
            self.groups, self.records = {}, {}
            warnings.warn(f"{self.path} is {problem}; it is rebuilt", MedimgWarning, stacklevel=5)

    def _load(self) -> str:
        """Read all rows; return what is wrong with the file, "" if nothing is."""
        with closing(sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != _VERSION:
                return "of another version of medimg"
            for number, facts, crc32 in database.execute("SELECT * FROM kinds"):
                if crc32 != compute_crc32(number, facts):
                    return _DAMAGED
                self.groups[number] = facts
            for path, size, modified, group, facts, crc32 in database.execute("SELECT * FROM files"):
                if crc32 != compute_crc32(path, size, modified, group, facts):
                    return _DAMAGED
                self.records[path] = Record(State(size, modified), group, facts)
        return ""

    def make_key(self, name: str) -> str:
        """Return the path of a file below the folder, with slashes."""
        start = str(self.root / "_")[:-1]
        below = name[len(start) :] if name.startswith(start) else os.path.relpath(name, self.root)
        return below.replace(os.sep, "/")

    def save(self, groups: Mapping[int, str], records: Mapping[str, Record]) -> None:
        """Replace the file atomically, without files modified just now; raise ReadError if that fails."""
        rows = (
            _add_crc32(path, *record.state, record.group, record.facts)
            for path, record in records.items()
            if record.state.modified < self.began - _FRESH_NS and _is_text(path)
        )
        try:
            with atomic_path(self.path) as temporary:
                _write(temporary, groups, rows)
        # a name with a null character is a ValueError
        except (OSError, sqlite3.Error, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ReadError(f"the index {self.path} can't be written: {reason}") from None


def compute_crc32(*row: object) -> int:
    """Return the checksum of a row."""
    return zlib.crc32(repr(row).encode())


def _add_crc32(*row: object) -> tuple[object, ...]:
    return *row, compute_crc32(*row)


def _is_text(path: str) -> bool:
    """Whether a path can be stored: file names can be any bytes, and SQLite stores text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_index(path: Path) -> bool:
    irregular = explain_irregular(path)
    if irregular:
        raise ReadError(f"the index {path} can't be read: it is {irregular}; choose another path")
    try:
        with path.open("rb") as file:
            start = file.read(72)
    except OSError as error:
        raise ReadError(f"the index {path} can't be read: {error.strerror}") from None
    return start[:16] == _SQLITE and int.from_bytes(start[68:72], "big") == _APPLICATION


def _write(path: Path, groups: Mapping[int, str], rows: Iterable[tuple[Any, ...]]) -> None:
    with closing(sqlite3.connect(path)) as database:
        # the file is moved to its place when it is complete
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        database.execute(f"PRAGMA application_id = {_APPLICATION}")
        database.execute(f"PRAGMA user_version = {_VERSION}")
        for table in _TABLES:
            database.execute(table)
        database.executemany(
            "INSERT INTO kinds VALUES (?, ?, ?)", (_add_crc32(*group) for group in groups.items())
        )
        database.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)
        database.commit()


def get_state(name: str) -> State | None:
    """Return size and modification time of a file; None if it does not exist."""
    try:
        found = Path(name).stat()
    except (OSError, ValueError):
        return None
    return State(found.st_size, found.st_mtime_ns)


class ScanIndex:
    """The saved index of a folder, used and refreshed by a scan."""

    def __init__(self, path: Path, root: Path) -> None:
        self._saved = SavedIndex(path, root)

    def refresh(self, files: Sequence[Blob | str], read: ReadHeaders) -> HeaderScan:
        """Read the headers of new and changed files, restore the others from the index, and save it."""
        names = [file if isinstance(file, str) else file.name for file in files]
        numbers = [n for n in range(len(names)) if not self._is_index_file(names[n])]
        states = {n: get_state(names[n]) for n in numbers}
        restored = self._restore(names, states)
        known = {n for files in restored.uniform for n in files.indices}.union(n for n, _ in restored.others)
        changed = [n for n in numbers if n not in known]
        new = read(files, changed)
        found = HeaderScan(
            [*restored.uniform, *new.uniform], sorted([*restored.others, *new.others], key=itemgetter(0))
        )
        kept = any(serialize_content(other) is not None for _, other in new.others)
        if new.uniform or kept or len(known) < len(self._saved.records):
            self._save(found, names, states)
        return found

    def _is_index_file(self, name: str) -> bool:
        """Whether a file of the folder is the index itself."""
        mine = self._saved.path
        return name.endswith(mine.name) and Path(name).resolve() == mine.resolve()

    def _restore(self, names: Sequence[str], states: Mapping[int, State | None]) -> HeaderScan:
        """Return the headers of unchanged files whose records can be used."""
        rows: dict[int, list[FileRow]] = defaultdict(list)
        others: list[tuple[int, Scanned | None]] = []
        for number, state in states.items():
            record = self._saved.records.get(self._saved.make_key(names[number]))
            if record is None or record.state != state:
                continue
            # a damaged record can be anything
            try:
                facts = json.loads(record.facts)
                if record.group is None:
                    others.append((number, deserialize_content(facts, names[number])))
                else:
                    values = [value.encode("ascii") for value in facts]
                    if len(values) == len(FILE_ELEMENTS):
                        rows[record.group].append(FileRow(number, names[number], values))
            except Exception:
                continue
        return HeaderScan(list(self._restore_uniform(rows)), others)

    def _restore_uniform(self, rows: Mapping[int, Sequence[FileRow]]) -> Iterator[UniformFiles]:
        for group, some in rows.items():
            usual, _ = InstanceColumns.from_rows(some).split_irregular()
            if usual:
                try:
                    prototype = _deserialize_instance(json.loads(self._saved.groups[group]), usual.names[0])
                except Exception:
                    continue
                yield UniformFiles(prototype, usual)

    def _save(self, found: HeaderScan, names: Sequence[str], states: Mapping[int, State | None]) -> None:
        groups: dict[int, str] = {}
        records: dict[str, Record] = {}

        def note(number: int, group: int | None, facts: Any) -> None:
            state, text = states[number], _to_json(facts)
            if state is not None and text is not None:
                records[self._saved.make_key(names[number])] = Record(state, group, text)

        for number, uniform in enumerate(found.uniform):
            text = _to_json(_serialize_instance(uniform.prototype))
            if text is not None:
                groups[number] = text
                for row, index in enumerate(uniform.indices):
                    note(index, number, uniform.get_stored_values(row))
        for number, other in found.others:
            note(number, None, serialize_content(other))
        self._saved.save(groups, records)


def _to_json(facts: Any) -> str | None:
    """Return values as JSON; None if they have no JSON form, so that the file is read again each time."""
    if facts is None:
        return None
    try:
        return json.dumps(facts)
    except (TypeError, ValueError):
        return None


def serialize_content(found: Scanned | None) -> list[Any] | None:
    """Return the content of a file as JSON values; None if it depends on more than the file."""
    if found is None:
        return ["directory"]
    if isinstance(found, Unreadable):
        said: list[Any] = ["failed", type(found.error).__name__, str(found.error)]
        if isinstance(found.error, NotAnImageError):
            said.append(list_plugin_readers())
        return said if found.is_permanent else None
    if isinstance(found, Instance):
        return ["instance", _serialize_instance(found)]
    if len(found.files) > 1:
        return None
    plain = {f.name: getattr(found, f.name) for f in fields(found) if f.name not in ("reader", "affine")}
    series: list[Any] = ["series", {**plain, "affine": found.affine.tolist()}]
    return series if is_built_in(found.format) else [*series, list_plugin_readers()]


def deserialize_content(facts: list[Any], name: str) -> Scanned | None:
    """Rebuild the content of a file from :func:`serialize_content`."""
    content_type, *rest = facts
    if content_type == "directory":
        return None
    if content_type == "failed":
        error, message = getattr(errors, rest[0]), rest[1]
        if not issubclass(error, MedimgError) or name not in message:
            raise ValueError
        # other plug-ins may read it; an index written before there were any lists none
        if issubclass(error, NotAnImageError) and (rest[2] if rest[2:] else []) != list_plugin_readers():
            raise ValueError
        return Unreadable(name, error(message))
    if content_type == "instance":
        return _deserialize_instance(rest[0], name)
    plain = {key: _to_tuples(value) for key, value in rest[0].items()}
    if not is_built_in(plain["format"]) and rest[1] != list_plugin_readers():
        raise ValueError
    if name not in plain["files"]:
        raise ValueError
    affine = np.array(plain.pop("affine"), np.float64).reshape(4, 4)
    return Series(**plain, affine=affine, reader=_ReopeningReader(name, plain["shape"]))


#: Names of attributes that an index has under another one.
_SAVED_AS: Final = {"series_attributes": "kinds", "temporal_attributes": "moments"}


def _serialize_instance(instance: Instance) -> dict[str, Any]:
    # the date of birth and the names of sites are written nowhere
    left_out = ("blob", "facts", "acquisition")
    plain = {f.name: getattr(instance, f.name) for f in fields(instance) if f.name not in left_out}
    frames = [
        {_SAVED_AS.get(f.name, f.name): getattr(frame, f.name) for f in fields(frame)}
        for frame in instance.facts
    ]
    return {**plain, "gzipped": instance.blob.gzipped, "facts": frames}


def _deserialize_instance(facts: dict[str, Any], name: str) -> Instance:
    plain = {key: _to_tuples(value) for key, value in facts.items() if key not in ("facts", "gzipped")}
    frames = tuple(_deserialize_frame(frame) for frame in facts["facts"])
    return Instance(blob=Blob(name, gzipped=facts["gzipped"]), facts=frames, **plain)


def _deserialize_frame(facts: dict[str, Any]) -> FrameFacts:
    plain = {key: _to_tuples(value) for key, value in facts.items()}
    for name, key in _SAVED_AS.items():
        plain[name] = tuple(FrameAttribute(*label) for label in plain.pop(key))
    return FrameFacts(**plain)


def _to_tuples(value: Any) -> Any:
    """Return a JSON value with its lists as tuples."""
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class _ReopeningReader:
    """Reads a file of another format, whose header is checked again first."""

    name: str
    shape: tuple[int, ...]

    def __call__(self, slices: Sequence[int] | None, policies: Policies) -> Volume:
        return self._open_series().reader(slices, policies)

    def pieces(self, size: int, slices: Sequence[int] | None, policies: Policies) -> Iterator[Volume]:
        return self._open_series().pieces(size, slices, policies=policies)

    def _open_series(self) -> Series:
        found = identify_file(self.name)
        if not isinstance(found, Series) or found.shape != self.shape:
            raise ReadError(f"{self.name} has changed since it was scanned; scan again")
        return found
