"""Several datasets as one: the series, patients, domains and classes of all of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from medimg._validation import check_choice
from medimg.data.class_names import find_class, list_names
from medimg.data.items import Item
from medimg.data.patients import normalize_number, patient_key, patient_of_site
from medimg.errors import DatasetError, LeakageError, also
from medimg.preprocessing.preprocess import check_same_preprocessing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medimg.core.read_report import Skipped
    from medimg.data._labels import LabeledSeries
    from medimg.data.cache.image_cache import ImageCache
    from medimg.data.dataset import ImageDataset

__all__ = ["JoinedItems", "SamePatients", "find_common_cache", "join_items", "list_parts"]

#: What equal identifiers of patients in several datasets mean.
SamePatients: TypeAlias = Literal["check", "separate", "shared"]

#: Domain of a dataset without a name, by its number.
_NUMBERED: Final = "site {}"


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A dataset to join; `site` is the scope of its patients, `domain` that of its images if they get one."""

    data: ImageDataset
    site: str
    domain: str | None

    @property
    def used(self) -> list[LabeledSeries]:
        """Series that have an item, in order."""
        series = self.data.labeled_series
        return [series[n] for n in sorted({item.source for item in self.data._items})]


@dataclass(frozen=True, slots=True, eq=False)
class JoinedItems:
    """What a joined dataset is made of."""

    labeled: tuple[LabeledSeries, ...] = field(repr=False)
    items: tuple[Item, ...]
    classes: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def list_parts(
    datasets: object, domains: Sequence[str] | None, expected: type[ImageDataset]
) -> tuple[list[ImageDataset], list[str] | None]:
    """Return datasets given as a list, or by name as a mapping, and their names if they have some."""
    given: Sequence[object] | None
    if isinstance(datasets, Mapping):
        if domains is not None:
            raise DatasetError("domains= names the datasets of a list; found a mapping, whose keys are names")
        parts, given = list(datasets.values()), list(datasets)
    elif isinstance(datasets, list | tuple):
        parts, given = list(datasets), None if domains is None else domains
    else:
        raise also(DatasetError, TypeError)(
            f"concat takes a list of datasets, or a mapping of their names; found a {type(datasets).__name__}"
        )
    if not parts:
        raise DatasetError("concat needs at least one dataset; found none")
    strange = next((part for part in parts if not isinstance(part, expected)), None)
    if strange is not None:
        raise also(DatasetError, TypeError)(
            f"concat takes datasets; found a {type(strange).__name__}: make an ImageDataset of it before"
        )
    return parts, None if given is None else _check_names(given, len(parts))


def _check_names(given: Sequence[object], count: int) -> list[str]:
    """Return the names of datasets; DatasetError if one is empty, or two differ by case only."""
    if isinstance(given, str) or not hasattr(given, "__len__") or len(given) != count:
        size = f"{len(given)} names" if isinstance(given, list | tuple) else f"a {type(given).__name__}"
        raise DatasetError(f"domains must have one name for each of {count} datasets; found {size}")
    names = [normalize_number(name) if isinstance(name, str) else "" for name in given]
    if not all(names):
        raise DatasetError("the name of a dataset is empty or no text; expected a text, such as its site")
    if len({name.casefold() for name in names}) < len(set(names)):
        raise DatasetError("two names of datasets differ only by case; expected one spelling of each site")
    return names


def join_items(
    datasets: Sequence[ImageDataset],
    names: Sequence[str] | None,
    *,
    patients: SamePatients,
    classes: Sequence[str] | None,
) -> JoinedItems:
    """Join datasets; DatasetError if they don't match, LeakageError if equal patients have no meaning."""
    check_choice("patients", patients, get_args(SamePatients), error=DatasetError)
    _check_alike(datasets)
    joined_classes = _join_classes(datasets, classes)
    parts = _name_parts(datasets, names)
    if patients == "check":
        _check_patients(parts)
    labeled: list[LabeledSeries] = []
    items: list[Item] = []
    number_of: dict[tuple[int, str], int] = {}
    convert = _Converter(joined_classes, separate=patients == "separate")
    for part in parts:
        series = part.data.labeled_series
        for one in part.used:
            key = id(one), part.site
            if key not in number_of:
                number_of[key] = len(labeled)
                labeled.append(convert(one, part))
        items += [Item(number_of[id(series[i.source]), part.site], i.image) for i in part.data._items]
    _check_distinct(labeled, items)
    # those that are in no subset were found, too
    known = {number for number, _ in number_of}
    for part in parts:
        rest = [one for one in part.data.labeled_series if id(one) not in known]
        known.update(map(id, rest))
        labeled += [convert(one, part) for one in rest]
    found = {id(part.data.labeled_series): part.data.skipped for part in parts}
    return JoinedItems(
        tuple(labeled),
        tuple(items),
        joined_classes,
        tuple(one for several in found.values() for one in several),
    )


def find_common_cache(datasets: Sequence[ImageDataset]) -> ImageCache | None:
    """Return the cache that datasets have; DatasetError if they have different ones."""
    caches = {repr(data.cache): data.cache for data in datasets if data.cache is not None}
    if len(caches) > 1:
        raise DatasetError(
            f"the datasets have {len(caches)} different caches; expected one: pass cache=, a folder for the "
            "images of all"
        )
    return next(iter(caches.values()), None)


class _Converter:
    """Makes the series of a part one of the joined dataset; spellings of one patient become equal."""

    def __init__(self, classes: Sequence[str], *, separate: bool) -> None:
        self._classes = list(map(find_class, classes))
        self._separate = separate
        self._spelled: dict[str, str] = {}

    def __call__(self, one: LabeledSeries, part: _Part) -> LabeledSeries:
        patient, stated = one.patient, one.file_patient
        if self._separate:
            patient, stated = (patient_of_site(name, part.site) for name in (patient, stated))
        label = one.label
        if isinstance(label, tuple):
            own = list(map(find_class, part.data.classes))
            label = tuple(label[own.index(name)] for name in self._classes)
        return replace(
            one,
            label=label,
            patient=self._spelled.setdefault(patient_key(patient), patient),
            file_patient=stated,
            domain=one.domain if part.domain is None else part.domain,
        )


def _check_alike(datasets: Sequence[ImageDataset]) -> None:
    """Raise DatasetError if recipes, units, tasks or policies differ, or labels are missing in some."""
    first = datasets[0]
    for number, data in enumerate(datasets[1:], 2):
        check_same_preprocessing(
            data.preprocess,
            first.preprocess,
            name=f"dataset {number}",
            other="dataset 1",
            hint="use dataset.with_preprocess(first.preprocess)",
            error=DatasetError,
        )
        for name, own, expected, hint in (
            ("unit", data.unit, first.unit, "one unit="),
            ("task", data.task, first.task, "one column of labels, or with several"),
            ("reading", data.policies, first.policies, "one reading="),
        ):
            if own != expected:
                raise DatasetError(
                    f"dataset {number} has {name}={own!r}, dataset 1 {expected!r}; expected the same: make "
                    f"both with {hint}"
                )
        if data.is_labeled != first.is_labeled:
            raise DatasetError(
                f"dataset {1 if data.is_labeled else number} has no labels, and others have; expected labels "
                "for all or none: images without labels are for adapt= and embed, as a dataset of their own"
            )


def _join_classes(datasets: Sequence[ImageDataset], given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the classes of all, in the order of the first, or those given."""
    first = datasets[0]
    if given is not None and not first.is_labeled:
        raise DatasetError("classes were given for datasets without labels; leave classes out")
    classes = first.classes if given is None else list_names(given)
    wanted = set(map(find_class, classes))
    if len(wanted) < len(classes):
        raise DatasetError(f"a class occurs twice in {list(classes)}; expected each once")
    for number, data in enumerate(datasets, 1):
        own = set(map(find_class, data.classes))
        if data.task == "multilabel" and wanted - own:
            absent = sorted(wanted - own)
            raise DatasetError(
                f"dataset {number} has no label column {', '.join(map(repr, absent))}, so that it is unknown "
                "whether its images are of this class; expected all columns in all datasets: pass classes= "
                "with those that all have"
            )
        if given is None and own != wanted:
            raise DatasetError(
                f"dataset {number} has classes={list(data.classes)}, dataset 1 {list(classes)}; expected the "
                "same: correct the labels, or pass classes= with "
                + ("the columns that all have" if data.task == "multilabel" else "the names of all classes")
            )
    return tuple(classes)


def _name_parts(datasets: Sequence[ImageDataset], names: Sequence[str] | None) -> list[_Part]:
    """Return datasets with their sites; subsets of one dataset without names are of one site."""
    if names is not None:
        return [_Part(data, name, name) for data, name in zip(datasets, names, strict=True)]
    origins = list(dict.fromkeys(id(data.labeled_series) for data in datasets))
    parts = []
    for data in datasets:
        site = _NUMBERED.format(origins.index(id(data.labeled_series)) + 1)
        own = len(origins) == 1 or any(data.domains)
        parts.append(_Part(data, site, None if own else site))
    return parts


def _check_patients(parts: Sequence[_Part]) -> None:
    """Raise LeakageError if sites have equal identifiers of patients."""
    sites: dict[tuple[str, str], set[str]] = {}
    for part in parts:
        for one in part.used:
            # as leaks are found
            for source, text in (("table", one.patient), ("file", one.file_patient)):
                if text:
                    sites.setdefault((source, patient_key(text)), set()).add(part.site)
    shared = sum(len(several) > 1 for several in sites.values())
    if shared:
        raise LeakageError(
            f"{shared} of {len(sites)} patient IDs occur in several datasets, and can be one person or "
            'several: pass patients="separate" if each site has IDs of its own, or patients="shared" if an '
            "ID is the same person at all sites"
        )


def _check_distinct(labeled: Sequence[LabeledSeries], items: Sequence[Item]) -> None:
    """Raise DatasetError if an image is there twice."""
    real = {path: os.path.realpath(path) for path in {one.series.path for one in labeled}}
    keys = [(real[one.series.path], one.series.uid) for one in labeled]
    twice = len(items) - len({(keys[item.source], item.image) for item in items})
    if twice:
        raise DatasetError(
            f"{twice} of {len(items)} images are in several of the datasets; expected each image once: leave "
            "them out of all but one with dataset.subset(indices)"
        )
