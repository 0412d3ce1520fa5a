"""What stands on two sides of a split, told by identifiers, files and pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from medimg.data.identifiers import keyed_hash
from medimg.io.dicom.series.volume_reader import StackReader

if TYPE_CHECKING:
    from medimg.data.leakage._fingerprints import Fingerprint
    from medimg.io.series import Series

__all__ = ["Kind", "Leak", "Overlaps", "Source", "sources_of"]

#: What can stand on two sides.
Kind: TypeAlias = Literal["patient", "study", "series", "file", "instance", "pixels", "near"]

_SHOWN_BYTES: Final = 6
#: From so many patients on, a study that all series are in is what an anonymizer wrote for everybody.
_MOST_IN_A_STUDY: Final = 2


@dataclass(frozen=True, slots=True)
class Leak:
    """
    One thing on two sides.

    Attributes
    ----------
    kind : str
        "patient", "study", "series", "file", "instance", "pixels", or "near" for pictures that look alike.
    digest : str
        12 hexadecimal digits: for "pixels" and "near" of the pictures' SHA-256, else a hash with a salt that
        is forgotten.
    parts : tuple of 2 ints
        Which of the data sets; the same twice where one was looked at.
    items : tuple of 2 ints
        Where: the first item of the series in each.
    similarity : float
        1, but for "near": how the thumbnails' details correlate.
    """

    kind: Kind
    digest: str
    parts: tuple[int, int]
    items: tuple[int, int]
    similarity: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A series on one side: where its items are, and what names it."""

    side: Hashable = field(repr=False)
    part: int
    item: int
    uid: str = field(repr=False)
    path: str = field(repr=False)
    patients: tuple[str, ...] = field(repr=False)
    series: Series | None = field(repr=False)


def sources_of(parts: Sequence[Any]) -> list[Source]:
    """
    Return the series of data sets, each with its side: the data set, or where there is one, the patient.

    Parameters
    ----------
    parts : sequence of ImageDataset
        Or what has their facts of items.
    """
    found = []
    for number, part in enumerate(parts):
        several = getattr(part, "series", None) or (None,) * len(part)
        stated = getattr(part, "file_patients", None) or ("",) * len(part)
        facts = zip(several, part.series_uids, part.sources, part.patients, stated, strict=True)
        seen: set[Hashable] = set()
        for item, (series, uid, path, patient, file_patient) in enumerate(facts):
            # a series that stands under two patients is there for each
            key = (uid, path, patient) if series is None else (id(series), patient)
            if key in seen:
                continue
            seen.add(key)
            names = (f"table {patient}", *([f"file {file_patient}"] if file_patient else []))
            side = patient if len(parts) == 1 else number
            found.append(Source(side, number, item, uid, path, names, series))
    return found


class Overlaps:
    """
    Looks for what stands on two sides.

    Parameters
    ----------
    sources : sequence of Source
        All of them.

    Attributes
    ----------
    leaks : list of Leak
        Found so far: of each kind, one for two series that share something.
    involved : set of int
        Which of the sources have something that others on another side have.
    notes : list of str
        What was not compared.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self.leaks: list[Leak] = []
        self.involved: set[int] = set()
        self.notes: list[str] = []

    def by_identifiers(self) -> None:
        """Compare patients, studies, series, files and instances; no file is opened."""
        hidden = keyed_hash()
        self._compare("patient", lambda s: s.patients, hidden)
        if self._is_study_of_all():
            self.notes.append(
                "all series carry one Study Instance UID, as some anonymizers write: studies not compared"
            )
        else:
            self._compare("study", _studies, hidden)
        self._compare("series", _series_uids, hidden)
        self._compare("file", lambda s: (os.path.realpath(s.path),) if s.path else (), hidden)
        self._compare("instance", _instances, hidden)

    def by_pixels(self, prints: Sequence[Fingerprint | None]) -> None:
        """Compare the pictures of the sources, of which some may be unknown."""
        known = {id(s): p.digests for s, p in zip(self._sources, prints, strict=True) if p is not None}
        self._compare(
            "pixels", lambda s: known.get(id(s), ()), lambda digest: digest.hex()[: 2 * _SHOWN_BYTES]
        )

    def _is_study_of_all(self) -> bool:
        studies = {study for source in self._sources for study in _studies(source)}
        many = len({s.patients[0] for s in self._sources}) > _MOST_IN_A_STUDY
        return len(studies) == 1 and many and all(map(_studies, self._sources))

    def _compare(
        self, kind: Kind, keys: Callable[[Source], Iterable[Any]], shown: Callable[[Any], str]
    ) -> None:
        found = dict(_on_two_sides((key, s) for s in self._sources for key in keys(s)))
        if not found:
            return
        self.involved |= {n for n, s in enumerate(self._sources) if any(key in found for key in keys(s))}
        seen: set[tuple[int, ...]] = set()
        for key, (one, *others) in found.items():
            for other in others:
                parts, items = (one.part, other.part), (one.item, other.item)
                if (*parts, *items) not in seen:
                    self.leaks.append(Leak(kind, shown(key), parts, items))
                seen.add((*parts, *items))


def _on_two_sides(entries: Iterable[tuple[Hashable, Source]]) -> Iterator[tuple[Hashable, list[Source]]]:
    first: dict[Hashable, Source] = {}
    several: dict[Hashable, dict[Hashable, Source]] = {}
    for key, source in entries:
        before = first.setdefault(key, source)
        if before.side != source.side:
            several.setdefault(key, {before.side: before}).setdefault(source.side, source)
    return ((key, list(sides.values())) for key, sides in several.items())


def _studies(source: Source) -> tuple[str, ...]:
    return (source.series.study_uid,) if source.series is not None and source.series.study_uid else ()


def _series_uids(source: Source) -> tuple[str, ...]:
    """Return the UID; formats without one have the path in its place, which is compared as such."""
    return (source.uid,) if source.uid and source.uid != source.path else ()


def _instances(source: Source) -> set[str]:
    if source.series is None or not isinstance(source.series.reader, StackReader):
        return set()
    channels = source.series.reader.plan.channels
    return {frame.instance.sop_instance_uid for channel in channels for frame in channel} - {""}
