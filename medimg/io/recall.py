"""What headers said, as records of a saved index, and back."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, fields
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medimg import errors
from medimg.errors import MedimgError, ReadError
from medimg.io.blob import Blob
from medimg.io.dicom.alike import Alike, Rows
from medimg.io.dicom.facts import Label
from medimg.io.dicom.header import FrameFacts, Instance
from medimg.io.findings import Findings, looked_at
from medimg.io.identify import Failed, identify
from medimg.io.saved import Record, SavedIndex, state_of
from medimg.io.series import Series

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from medimg.core.volume import Volume
    from medimg.io.identify import Found
    from medimg.io.saved import State
    from medimg.io.series import Policies

__all__ = ["Memory"]


class Memory:
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
    ) -> Findings:
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
        new = looked_at(files, changed, workers=workers, progress=progress)
        found = Findings(
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

    def _recalled(self, names: Sequence[str], states: Mapping[int, State | None]) -> Findings:
        """Return what the records of unchanged files say, as far as they can be used."""
        rows: dict[int, Rows] = defaultdict(Rows)
        others: list[tuple[int, Found | None]] = []
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
        return Findings(list(self._alike(rows)), others)

    def _alike(self, rows: Mapping[int, Rows]) -> Iterator[Alike]:
        for kind, some in rows.items():
            usual, _ = some.without_odd()
            if usual.names:
                try:
                    prototype = _instance(json.loads(self._saved.kinds[kind]), usual.names[0])
                except Exception:
                    continue
                yield Alike(prototype, usual)

    def _save(self, found: Findings, names: Sequence[str], states: Mapping[int, State | None]) -> None:
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


def _facts(found: Found | None) -> list[Any] | None:
    """Return what a file holds, in values that JSON knows; None where that depends on more than the file."""
    if found is None:
        return ["directory"]
    if isinstance(found, Failed):
        return ["failed", type(found.error).__name__, str(found.error)] if found.lasts else None
    if isinstance(found, Instance):
        return ["instance", _instance_facts(found)]
    if len(found.files) > 1:
        return None
    plain = {f.name: getattr(found, f.name) for f in fields(found) if f.name not in ("reader", "affine")}
    return ["series", {**plain, "affine": found.affine.tolist()}]


def _found(facts: list[Any], name: str) -> Found | None:
    """Return what :func:`_facts` was told."""
    kind, *rest = facts
    if kind == "directory":
        return None
    if kind == "failed":
        error, message = getattr(errors, rest[0]), rest[1]
        if not issubclass(error, MedimgError) or name not in message:
            raise ValueError
        return Failed(name, error(message))
    if kind == "instance":
        return _instance(rest[0], name)
    plain = {key: _tuples(value) for key, value in rest[0].items()}
    if name not in plain["files"]:
        raise ValueError
    affine = np.array(plain.pop("affine"), np.float64).reshape(4, 4)
    return Series(**plain, affine=affine, reader=_Reopened(name, plain["shape"]))


def _instance_facts(instance: Instance) -> dict[str, Any]:
    plain = {f.name: getattr(instance, f.name) for f in fields(instance) if f.name not in ("blob", "facts")}
    frames = [{f.name: getattr(frame, f.name) for f in fields(frame)} for frame in instance.facts]
    return {**plain, "gzipped": instance.blob.gzipped, "facts": frames}


def _instance(facts: dict[str, Any], name: str) -> Instance:
    plain = {key: _tuples(value) for key, value in facts.items() if key not in ("facts", "gzipped")}
    frames = tuple(_frame(frame) for frame in facts["facts"])
    return Instance(blob=Blob(name, gzipped=facts["gzipped"]), facts=frames, **plain)


def _frame(facts: dict[str, Any]) -> FrameFacts:
    plain = {key: _tuples(value) for key, value in facts.items()}
    for name in ("kinds", "moments"):
        plain[name] = tuple(Label(*label) for label in plain[name])
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
