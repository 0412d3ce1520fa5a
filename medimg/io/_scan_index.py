"""What headers said, as records of a saved index, and back."""

from __future__ import annotations

import json
import os
import sqlite3
import time
import warnings
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field, fields
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from medimg import errors
from medimg.errors import MedimgError, MedimgWarning, NotAnImageError, ReadError
from medimg.io._detect import Unreadable, identify, installed_readers, is_built_in
from medimg.io._header_scan import HeaderScan, scan_headers
from medimg.io.dicom.header.frame_attributes import FrameAttribute
from medimg.io.dicom.header.instance import FrameFacts, Instance
from medimg.io.dicom.scanning.series_table import InstanceColumns, UniformFiles
from medimg.io.files.atomic import atomic_path
from medimg.io.files.blob import Blob
from medimg.io.series import Series

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from medimg.core.volume import Volume
    from medimg.io._detect import Scanned
    from medimg.io.series import Policies

__all__ = ["Record", "SavedIndex", "ScanIndex", "State", "state_of"]

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


class ScanIndex:
    """
    A saved index that is refreshed.

    Parameters
    ----------
    path : Path
        Where it is kept.
    root : Path
        The folder that it is of.

    Raises
    ------
    ReadError
        If another file is in its place.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self._saved = SavedIndex(path, root)

    def refreshed(
        self, files: Sequence[Blob | str], *, workers: int | None = None, progress: bool | None = None
    ) -> HeaderScan:
        """
        Read the headers of files that are new or have changed, recall the others, and save what is new.

        Parameters
        ----------
        files : sequence of Blob or str
            The files of the folder.
        workers, progress
            See :func:`medimg.scan`.

        Raises
        ------
        ReadError
            If the index can't be written.
        """
        names = [file if isinstance(file, str) else file.name for file in files]
        places = [n for n in range(len(names)) if not self._is_mine(names[n])]
        states = {n: state_of(names[n]) for n in places}
        recalled = self._recalled(names, states)
        known = {n for alike in recalled.alike for n in alike.indices}.union(n for n, _ in recalled.others)
        changed = [n for n in places if n not in known]
        new = scan_headers(files, changed, workers=workers, progress=progress)
        found = HeaderScan(
            [*recalled.alike, *new.alike], sorted([*recalled.others, *new.others], key=itemgetter(0))
        )
        kept = any(_facts(other) is not None for _, other in new.others)
        if new.alike or kept or len(known) < len(self._saved.records):
            self._save(found, names, states)
        return found

    def _is_mine(self, name: str) -> bool:
        """Whether a file of the folder is the index itself."""
        mine = self._saved.path
        return name.endswith(mine.name) and Path(name).resolve() == mine.resolve()

    def _recalled(self, names: Sequence[str], states: Mapping[int, State | None]) -> HeaderScan:
        """Return what the records of unchanged files say, as far as they can be used."""
        rows: dict[int, InstanceColumns] = defaultdict(InstanceColumns)
        others: list[tuple[int, Scanned | None]] = []
        for place, state in states.items():
            record = self._saved.records.get(self._saved.key(names[place]))
            if record is None or record.state != state:
                continue
            # a damaged record can be anything
            try:
                facts = json.loads(record.facts)
                if record.kind is None:
                    others.append((place, _found(facts, names[place])))
                else:
                    values = [[value.encode("ascii")] for value in facts]
                    rows[record.kind].extend([place], [names[place]], values)
            except Exception:
                continue
        return HeaderScan(list(self._alike(rows)), others)

    def _alike(self, rows: Mapping[int, InstanceColumns]) -> Iterator[UniformFiles]:
        for kind, some in rows.items():
            usual, _ = some.without_odd()
            if usual.names:
                try:
                    prototype = _instance(json.loads(self._saved.kinds[kind]), usual.names[0])
                except Exception:
                    continue
                yield UniformFiles(prototype, usual)

    def _save(self, found: HeaderScan, names: Sequence[str], states: Mapping[int, State | None]) -> None:
        kinds: dict[int, str] = {}
        records: dict[str, Record] = {}

        def note(place: int, kind: int | None, facts: Any) -> None:
            state, text = states[place], _text(facts)
            if state is not None and text is not None:
                records[self._saved.key(names[place])] = Record(state, kind, text)

        for number, alike in enumerate(found.alike):
            text = _text(_instance_facts(alike.prototype))
            if text is not None:
                kinds[number] = text
                for row, place in enumerate(alike.indices):
                    note(place, number, alike.written(row))
        for place, other in found.others:
            note(place, None, _facts(other))
        self._saved.save(kinds, records)


def _text(facts: Any) -> str | None:
    """Return facts as JSON; None for what it does not know, and which is read anew each time."""
    if facts is None:
        return None
    try:
        return json.dumps(facts)
    except (TypeError, ValueError):
        return None


def _facts(found: Scanned | None) -> list[Any] | None:
    """Return what a file holds, in values that JSON knows; None where that depends on more than the file."""
    if found is None:
        return ["directory"]
    if isinstance(found, Unreadable):
        said: list[Any] = ["failed", type(found.error).__name__, str(found.error)]
        if isinstance(found.error, NotAnImageError):
            said.append(installed_readers())
        return said if found.lasts else None
    if isinstance(found, Instance):
        return ["instance", _instance_facts(found)]
    if len(found.files) > 1:
        return None
    plain = {f.name: getattr(found, f.name) for f in fields(found) if f.name not in ("reader", "affine")}
    series: list[Any] = ["series", {**plain, "affine": found.affine.tolist()}]
    return series if is_built_in(found.format) else [*series, installed_readers()]


def _found(facts: list[Any], name: str) -> Scanned | None:
    """Return what :func:`_facts` was told."""
    kind, *rest = facts
    if kind == "directory":
        return None
    if kind == "failed":
        error, message = getattr(errors, rest[0]), rest[1]
        if not issubclass(error, MedimgError) or name not in message:
            raise ValueError
        # other plug-ins may read it; an index of before there were any lists none
        if issubclass(error, NotAnImageError) and (rest[2] if rest[2:] else []) != installed_readers():
            raise ValueError
        return Unreadable(name, error(message))
    if kind == "instance":
        return _instance(rest[0], name)
    plain = {key: _tuples(value) for key, value in rest[0].items()}
    if not is_built_in(plain["format"]) and rest[1] != installed_readers():
        raise ValueError
    if name not in plain["files"]:
        raise ValueError
    affine = np.array(plain.pop("affine"), np.float64).reshape(4, 4)
    return Series(**plain, affine=affine, reader=_Reopened(name, plain["shape"]))


#: Names of attributes that an index has under another one.
_SAVED_AS: Final = {"series_attributes": "kinds", "temporal_attributes": "moments"}


def _instance_facts(instance: Instance) -> dict[str, Any]:
    # the date of birth and the names of sites are written nowhere
    left_out = ("blob", "facts", "acquisition")
    plain = {f.name: getattr(instance, f.name) for f in fields(instance) if f.name not in left_out}
    frames = [
        {_SAVED_AS.get(f.name, f.name): getattr(frame, f.name) for f in fields(frame)}
        for frame in instance.facts
    ]
    return {**plain, "gzipped": instance.blob.gzipped, "facts": frames}


def _instance(facts: dict[str, Any], name: str) -> Instance:
    plain = {key: _tuples(value) for key, value in facts.items() if key not in ("facts", "gzipped")}
    frames = tuple(_frame(frame) for frame in facts["facts"])
    return Instance(blob=Blob(name, gzipped=facts["gzipped"]), facts=frames, **plain)


def _frame(facts: dict[str, Any]) -> FrameFacts:
    plain = {key: _tuples(value) for key, value in facts.items()}
    for name, key in _SAVED_AS.items():
        plain[name] = tuple(FrameAttribute(*label) for label in plain.pop(key))
    return FrameFacts(**plain)


def _tuples(value: Any) -> Any:
    """Return a value that JSON gave, with tuples for its lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class _Reopened:
    """Reads a file of another format, whose header is looked at once more before."""

    name: str
    shape: tuple[int, ...]

    def __call__(self, slices: Sequence[int] | None, policies: Policies) -> Volume:
        return self._series().reader(slices, policies)

    def pieces(self, size: int, slices: Sequence[int] | None, policies: Policies) -> Iterator[Volume]:
        return self._series().pieces(size, slices, policies=policies)

    def _series(self) -> Series:
        found = identify(self.name)
        if not isinstance(found, Series) or found.shape != self.shape:
            raise ReadError(f"{self.name} holds another image than when it was scanned; scan again")
        return found
