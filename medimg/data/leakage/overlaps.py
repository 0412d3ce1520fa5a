"""What two subsets share, by identifiers, files and pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from medimg._public import set_module
from medimg.core.content_hash import keyed_hash
from medimg.data.class_names import find_class
from medimg.data.patients import patient_key
from medimg.io.dicom.series.volume_reader import StackReader

if TYPE_CHECKING:
    from medimg.data.leakage._fingerprints import Fingerprint
    from medimg.io.series import Series

__all__ = ["Kind", "Leak", "Overlaps", "Source", "list_sources"]

#: What two subsets can share.
Kind: TypeAlias = Literal["patient", "study", "series", "file", "instance", "pixels", "near"]

_SHOWN_BYTES: Final = 6
#: If more patients than this share one study, an anonymizer wrote the same UID for all.
_MOST_IN_A_STUDY: Final = 2


@set_module("medimg")
@dataclass(frozen=True, slots=True)
class Leak:
    """
    An item shared by two subsets.

    Attributes
    ----------
    kind : str
        "patient", "study", "series", "file", "instance", "pixels", or "near" for images that look alike.
    digest : str
        12 hexadecimal digits: of the images' SHA-256 for "pixels" and "near", else of a hash with a random
        salt that is not stored.
    parts : tuple of 2 ints
        Indices of the two datasets; equal if a single dataset was checked.
    items : tuple of 2 ints
        Index of the first item of the series in each.
    similarity : float
        Correlation of the thumbnails' details for "near", else 1.
    """

    kind: Kind
    digest: str
    parts: tuple[int, int]
    items: tuple[int, int]
    similarity: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A series in one subset, with its identifiers and the index of its first item."""

    group: Hashable = field(repr=False)
    part: int
    item: int
    uid: str = field(repr=False)
    path: str = field(repr=False)
    patients: tuple[str, ...] = field(repr=False)
    label: Hashable = field(repr=False)
    series: Series | None = field(repr=False)


def list_sources(parts: Sequence[Any]) -> list[Source]:
    """Return the series of datasets; their groups are the datasets, or the patients of a single one."""
    found = []
    for number, part in enumerate(parts):
        several = getattr(part, "series", None) or (None,) * len(part)
        stated = getattr(part, "file_patients", None) or ("",) * len(part)
        labels = _name_labels(part)
        facts = zip(several, part.series_uids, part.sources, part.patients, stated, strict=True)
        seen: set[Hashable] = set()
        for item, (series, uid, path, patient, file_patient) in enumerate(facts):
            # a series of two patients is a source for each
            key = (uid, path, patient) if series is None else (id(series), patient)
            if key in seen:
                continue
            seen.add(key)
            names = (
                f"table {patient_key(patient)}",
                *([f"file {patient_key(file_patient)}"] if file_patient else []),
            )
            group = patient_key(patient) if len(parts) == 1 else number
            found.append(Source(group, number, item, uid, path, names, labels[item], series))
    return found


def _name_labels(part: Any) -> Sequence[Hashable]:
    """Return the label of each item by class names, comparable between datasets; None without labels."""
    if not getattr(part, "is_labeled", True):
        return (None,) * len(part)
    classes = list(map(find_class, part.classes))
    if part.task == "multilabel":
        return [tuple(zip(classes, row, strict=True)) for row in np.asarray(part.labels).tolist()]
    return [classes[label] for label in np.asarray(part.labels).tolist()]


class Overlaps:
    """
    Finds what different groups of sources share.

    `leaks` has one leak of each kind for two series that share something, `involved` the indices of all
    sources that share something with another group, `notes` what was not compared.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self.leaks: list[Leak] = []
        self.involved: set[int] = set()
        self.notes: list[str] = []

    def compare_identifiers(self) -> None:
        """Compare patients, studies, series, files and instances; no file is opened."""
        hash_text = keyed_hash()
        self._compare("patient", lambda s: s.patients, hash_text)
        if self._is_one_study_for_all():
            self.notes.append(
                "all series have the same Study Instance UID, as some anonymizers write: studies not compared"
            )
        else:
            self._compare("study", _list_studies, hash_text)
        self._compare("series", _list_series_uids, hash_text)
        self._compare("file", lambda s: (os.path.realpath(s.path),) if s.path else (), hash_text)
        self._compare("instance", _list_instances, hash_text)

    def compare_pixels(self, prints: Sequence[Fingerprint | None]) -> None:
        """Compare the pixels of the sources, some of which may be unknown."""
        known = {id(s): p.digests for s, p in zip(self._sources, prints, strict=True) if p is not None}
        self._compare(
            "pixels", lambda s: known.get(id(s), ()), lambda digest: digest.hex()[: 2 * _SHOWN_BYTES]
        )

    def find_contradictions(self, prints: Sequence[Fingerprint | None]) -> list[Leak]:
        """Return pairs of sources of one group with identical pixels and different labels."""
        first: dict[Hashable, Source] = {}
        found: dict[tuple[int, ...], Leak] = {}
        for source, fingerprint in zip(self._sources, prints, strict=True):
            if fingerprint is None or source.label is None:
                continue
            for digest in sorted(fingerprint.digests):
                before = first.setdefault((digest, source.group), source)
                if before.label != source.label:
                    parts, items = (before.part, source.part), (before.item, source.item)
                    shown = digest.hex()[: 2 * _SHOWN_BYTES]
                    found.setdefault((*parts, *items), Leak("pixels", shown, parts, items))
        return list(found.values())

    def _is_one_study_for_all(self) -> bool:
        studies = {study for source in self._sources for study in _list_studies(source)}
        many = len({s.patients[0] for s in self._sources}) > _MOST_IN_A_STUDY
        return len(studies) == 1 and many and all(map(_list_studies, self._sources))

    def _compare(
        self, kind: Kind, keys: Callable[[Source], Iterable[Any]], make_digest: Callable[[Any], str]
    ) -> None:
        found = dict(_find_shared((key, s) for s in self._sources for key in keys(s)))
        if not found:
            return
        self.involved |= {n for n, s in enumerate(self._sources) if any(key in found for key in keys(s))}
        seen: set[tuple[int, ...]] = set()
        for key, (one, *others) in found.items():
            for other in others:
                parts, items = (one.part, other.part), (one.item, other.item)
                if (*parts, *items) not in seen:
                    self.leaks.append(Leak(kind, make_digest(key), parts, items))
                seen.add((*parts, *items))


def _find_shared(entries: Iterable[tuple[Hashable, Source]]) -> Iterator[tuple[Hashable, list[Source]]]:
    first: dict[Hashable, Source] = {}
    several: dict[Hashable, dict[Hashable, Source]] = {}
    for key, source in entries:
        before = first.setdefault(key, source)
        if before.group != source.group:
            several.setdefault(key, {before.group: before}).setdefault(source.group, source)
    return ((key, list(groups.values())) for key, groups in several.items())


def _list_studies(source: Source) -> tuple[str, ...]:
    return (source.series.study_uid,) if source.series is not None and source.series.study_uid else ()


def _list_series_uids(source: Source) -> tuple[str, ...]:
    """Return the UID; formats without one have the path instead, which is compared as a file."""
    return (source.uid,) if source.uid and source.uid != source.path else ()


def _list_instances(source: Source) -> set[str]:
    if source.series is None or not isinstance(source.series.reader, StackReader):
        return set()
    channels = source.series.reader.plan.channels
    return {frame.instance.sop_instance_uid for channel in channels for frame in channel} - {""}
