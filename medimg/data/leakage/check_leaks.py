"""The same patient, study or picture on two sides: found before it makes scores too good to be true."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from medimg.data.items import ItemFacts
from medimg.data.leakage._fingerprints import fingerprints, known_fingerprint, pixel_count
from medimg.data.leakage._near_duplicates import MOST_PAIRS, near_pairs
from medimg.data.leakage._overlaps import Leak, Overlaps, sources_of
from medimg.errors import DatasetError, LeakageError, MedimgWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from medimg.data.dataset import ImageDataset
    from medimg.data.leakage._fingerprints import Fingerprint
    from medimg.data.leakage._overlaps import Source

__all__ = [
    "Check",
    "LeakReport",
    "OnLeak",
    "check_datasets",
    "check_leaks",
    "check_one",
    "check_splits",
    "refuse",
    "warn_of",
]

_SHOWN: Final = 5
_ONE: Final = {
    "patient": "patient",
    "study": "study",
    "series": "series",
    "file": "file",
    "instance": "image (SOP instance)",
    "pixels": "picture (same pixels)",
}


@dataclass(frozen=True, slots=True, eq=False)
class LeakReport:
    """
    What data sets share.

    Attributes
    ----------
    leaks : tuple of Leak
        What stands on two sides: its ``kind``, ``digest``, ``parts`` and ``items``.
    near_duplicates : tuple of Leak
        Pictures on two sides that look alike, with their ``similarity``, the most alike first.
    items : tuple of tuple of int
        For each data set the indices of all items whose series is in a leak.
    sizes : tuple of int
        How many items each data set has.
    notes : tuple of str
        What was not compared.
    """

    leaks: tuple[Leak, ...]
    near_duplicates: tuple[Leak, ...]
    items: tuple[tuple[int, ...], ...] = field(repr=False)
    sizes: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Whether there is no leak; near-duplicates are none."""
        return not self.leaks

    def to_pandas(self) -> pd.DataFrame:
        """
        Return a table: a row for each leak and near-duplicate.

        Columns are ``kind``, ``digest``, ``part_a``, ``item_a``, ``part_b``, ``item_b`` and ``similarity``.
        """
        import pandas as pd

        columns = ["kind", "digest", "part_a", "item_a", "part_b", "item_b", "similarity"]
        rows = [
            (k.kind, k.digest, k.parts[0], k.items[0], k.parts[1], k.items[1], k.similarity)
            for k in (*self.leaks, *self.near_duplicates)
        ]
        return pd.DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        sizes = " and ".join(map(str, self.sizes))
        found = _counted(self.leaks) or "no leak"
        return f"LeakReport({sizes} items: {found}; {len(self.near_duplicates)} near-duplicates)"


def _counted(leaks: Sequence[Leak]) -> str:
    counts = Counter(leak.kind for leak in leaks)
    return ", ".join(f"{count} × {_ONE[kind]}" for kind, count in counts.items())


def _place(leak: Leak, n: int, *, single: bool) -> str:
    return f"item {leak.items[n]}" if single else f"part {leak.parts[n]} item {leak.items[n]}"


def _listed(leaks: Sequence[Leak], *, single: bool) -> str:
    return "\n".join(
        f"  {leak.kind} {leak.digest}: "
        + " and ".join(_place(leak, n, single=single) for n in (0, 1))
        + (f", similarity {leak.similarity:.3f}" if leak.kind == "near" else "")
        for leak in leaks[:_SHOWN]
    )


def refuse(report: LeakReport) -> None:
    """
    Do nothing if a report is clean.

    Raises
    ------
    LeakageError
        If it is not; by hashes and the indices of items.
    """
    if report.is_clean:
        return
    single = len(report.sizes) == 1
    # pictures first: that a patient is there twice may be no news
    leaks = sorted(report.leaks, key=lambda leak: leak.kind != "pixels")
    where = "under two patients" if single else f"on two sides of {len(report.sizes)}"
    todo = (
        "a split by patient would put them on two sides. Give both the same patient, or leave items out"
        if single
        else "leave items out of one side, or split all data at once with medimg.split(dataset)"
    )
    raise LeakageError(
        f"{where} stand: {_counted(leaks)}. The first, by hash:\n{_listed(leaks, single=single)}\n"
        f'{todo}; medimg.check_leaks(…, on_leak="report").items lists all items concerned'
    )


def warn_of(report: LeakReport, lost: int) -> None:
    """
    Warn of near-duplicates, and of what was not compared.

    Parameters
    ----------
    report : LeakReport
        What was found.
    lost : int
        How many series could not be decoded.
    """
    if lost:
        warnings.warn(
            f"{lost} series can't be decoded, and their pixels were not compared", MedimgWarning, stacklevel=3
        )
    alike = report.near_duplicates
    if not alike:
        return
    single = len(report.sizes) == 1
    count = f"{len(alike)}" if len(alike) < MOST_PAIRS else f"{MOST_PAIRS} or more"
    warnings.warn(
        f"{count} pair(s) of pictures {'of different patients' if single else 'on two sides'} look alike, "
        f"and may be copies, saved again or edited. The closest:\n{_listed(alike, single=single)}\n"
        "Look at both of a pair; medimg.check_leaks(…).near_duplicates lists all",
        MedimgWarning,
        stacklevel=3,
    )


#: How closely a split looks: identifiers alone, pixels too, or as much as takes seconds.
Check: TypeAlias = Literal["auto", "pixels", "fast"]
#: Whether what is shared is an error.
OnLeak: TypeAlias = Literal["raise", "report"]

#: Values, by the headers, that are decoded in a few seconds.
_AFFORDABLE: Final = 2**29


def check_leaks(
    *parts: ImageDataset,
    pixels: bool = True,
    near_duplicates: bool = True,
    on_leak: OnLeak = "raise",
    workers: int | None = None,
    progress: bool | None = None,
) -> LeakReport:
    """
    Look for patients, studies, series, files, SOP instances and pixels that stand on two sides.

    Pixels are compared decoded, so that the same image is found in another transfer syntax or format, under
    another name, and with other headers. Pictures of a single value are left out.

    Parameters
    ----------
    *parts : ImageDataset
        The sides, such as training, validation and test; of a single data set, its patients are the sides.
    pixels : bool
        Whether to decode all images, which takes as long as reading them once. What was decoded is remembered
        as long as its files don't change.
    near_duplicates : bool
        Whether to warn of pictures that look alike, as after lossy compression, resizing, or a change of
        brightness. They are compared in up to 32 pictures of each series, and only if `pixels` are.
    on_leak : {"raise", "report"}
        Whether a leak is an error.
    workers : int, optional
        Threads that decode; all cores by default.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    LeakReport

    Raises
    ------
    LeakageError
        If there is a leak; it lists what is shared by hash and by the indices of the items.
    DatasetError
        If there is no data set, or something else.

    Warns
    -----
    MedimgWarning
        Of near-duplicates, and of series that can't be decoded.

    Notes
    -----
    Near-duplicates have perceptual hashes (64 bits, of the lowest frequencies of a thumbnail of 32×32) that
    differ in at most 6 bits, and thumbnails whose details (all but the lowest 8×8 frequencies) correlate by
    0.9 or more. Pictures with few details, such as synthetic ones, can be alike without being copies.

    Examples
    --------
    >>> report = medimg.check_leaks(train, val, test)  # doctest: +SKIP
    >>> report  # doctest: +SKIP
    LeakReport(1782 and 382 and 383 items: no leak; 0 near-duplicates)
    """
    if not parts:
        raise DatasetError("check_leaks takes data sets, such as check_leaks(train, test); none was given")
    check_datasets(*parts)
    if on_leak not in get_args(OnLeak):
        raise DatasetError(f'on_leak is "raise" or "report"; found {on_leak!r}')
    sources = sources_of(parts)
    prints: Sequence[Fingerprint | None] | None = None
    if pixels:
        prints = fingerprints([s.series for s in sources if s.series], workers=workers, progress=progress)
    report = _report(parts, sources, prints, near=near_duplicates)
    if on_leak == "raise":
        refuse(report)
    warn_of(report, lost=sum(p is None for p in prints or ()))
    return report


def check_datasets(*parts: object) -> None:
    """
    Refuse what is no data set.

    Raises
    ------
    DatasetError
        It names the type.
    """
    for part in parts:
        if not isinstance(part, ItemFacts):
            raise DatasetError(
                f"expected an ImageDataset; found a {type(part).__name__}: make one with "
                "medimg.ImageDataset.from_folder or from_csv"
            )


def check_one(dataset: ImageDataset, check: Check | None = "fast") -> None:
    """
    Refuse a data set in which different patients have the same study, series, file, instance or pixels.

    Parameters
    ----------
    dataset : ImageDataset
        To be split by patient.
    check : {"auto", "pixels", "fast"} or None
        See :func:`medimg.split`.

    Raises
    ------
    LeakageError
        If there is a leak.
    DatasetError
        If `check` is none of these.
    """
    if check is None:
        return
    if check not in get_args(Check):
        raise DatasetError(f'check is "auto", "pixels", "fast" or None; found {check!r}')
    sources = sources_of([dataset])
    # what identifiers tell needs no decoding
    refuse(_report([dataset], sources, None, near=False))
    several = [s.series for s in sources if s.series]
    if check == "fast" or (check == "auto" and pixel_count(several) > _AFFORDABLE):
        return
    prints = fingerprints(several)
    report = _report([dataset], sources, prints, near=check == "pixels")
    refuse(report)
    warn_of(report, lost=sum(p is None for p in prints or ()))


def check_splits(*parts: Any) -> None:
    """
    Refuse data sets that share anything, as far as it is known without decoding.

    Pixels are compared where they were decoded before, as by :func:`medimg.split`.

    Parameters
    ----------
    *parts : ImageDataset
        Or what has their facts of items.

    Raises
    ------
    LeakageError
        If there is a leak.
    """
    sources = sources_of(parts)
    prints = [known_fingerprint(s.series) for s in sources if s.series]
    refuse(_report(parts, sources, prints, near=False))


def _report(
    parts: Sequence[Any],
    sources: Sequence[Source],
    prints: Sequence[Fingerprint | None] | None,
    *,
    near: bool,
) -> LeakReport:
    overlaps = Overlaps(sources)
    overlaps.by_identifiers()
    alike: list[Leak] = []
    notes = overlaps.notes
    if prints is None:
        notes.append("pixels not compared")
    else:
        waiting = iter(prints)
        of_sources = [next(waiting) if s.series else None for s in sources]
        overlaps.by_pixels(of_sources)
        alike = _near(sources, of_sources) if near else []
    return LeakReport(
        tuple(overlaps.leaks),
        tuple(alike),
        _items(parts, [sources[n] for n in overlaps.involved]),
        tuple(len(part) for part in parts),
        tuple(notes),
    )


def _near(sources: Sequence[Source], prints: Sequence[Fingerprint | None]) -> list[Leak]:
    """Return what looks alike and is not the same."""
    found = []
    for one, other, value in near_pairs(prints, [s.side for s in sources]):
        (a, of_a), (b, of_b) = ((sources[n], _digests(prints[n])) for n in (one, other))
        if not of_a & of_b:
            digest = min(of_a, default=b"").hex()[:12]
            found.append(Leak("near", digest, (a.part, b.part), (a.item, b.item), round(value, 4)))
    return found


def _digests(fingerprint: Fingerprint | None) -> frozenset[bytes]:
    return fingerprint.digests if fingerprint else frozenset()


def _items(parts: Sequence[Any], involved: Sequence[Source]) -> tuple[tuple[int, ...], ...]:
    """Return the items of series, part by part."""
    wanted = {(s.part, s.uid, s.path) for s in involved}
    return tuple(
        tuple(
            n
            for n, (uid, path) in enumerate(zip(part.series_uids, part.sources, strict=True))
            if (number, uid, path) in wanted
        )
        for number, part in enumerate(parts)
    )
