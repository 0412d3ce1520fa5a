"""Data leakage: patients, studies or images shared between splits."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from medimg._public import set_module
from medimg._validation import check_choice
from medimg.data.items import ItemFacts
from medimg.data.leakage._fingerprints import compute_fingerprints, count_unknown_pixels, find_fingerprint
from medimg.data.leakage._near_duplicates import MOST_PAIRS, find_near_pairs
from medimg.data.leakage.overlaps import Leak, Overlaps, list_sources
from medimg.errors import DatasetError, LeakageError, MedimgWarning, also
from medimg.executors.executor_map import check_executor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    import pandas as pd

    from medimg.core.progress import Progress
    from medimg.data.dataset import ImageDataset
    from medimg.data.leakage._fingerprints import Fingerprint
    from medimg.data.leakage.overlaps import Source

__all__ = [
    "Check",
    "LeakReport",
    "OnLeak",
    "check_leaks",
    "check_patients",
    "check_splits",
    "check_types",
    "raise_leaks",
    "warn_of_findings",
]

_SHOWN: Final = 5
_ONE: Final = {
    "patient": "patient",
    "study": "study",
    "series": "series",
    "file": "file",
    "instance": "image (SOP instance)",
    "pixels": "image (identical pixels)",
}


@set_module("medimg")
@dataclass(frozen=True, slots=True, eq=False)
class LeakReport:
    """
    Result of :func:`check_leaks`.

    Attributes
    ----------
    leaks : tuple of Leak
        Shared items: ``kind``, ``digest``, ``parts`` and ``items``.
    near_duplicates : tuple of Leak
        Images in different subsets that look alike, with their ``similarity``, the most similar first.
    items : tuple of tuple of int
        For each dataset, the indices of all items whose series is in a leak.
    sizes : tuple of int
        Number of items of each dataset.
    notes : tuple of str
        Comparisons that were not made.
    contradictions : tuple of Leak
        Images with identical pixels and different labels within one dataset, or within one patient of a
        single dataset; between these, identical pixels are a leak whatever the labels.
    """

    leaks: tuple[Leak, ...]
    near_duplicates: tuple[Leak, ...]
    items: tuple[tuple[int, ...], ...] = field(repr=False)
    sizes: tuple[int, ...]
    notes: tuple[str, ...]
    contradictions: tuple[Leak, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether there is no leak; near-duplicates and contradictions don't count."""
        return not self.leaks

    def to_pandas(self) -> pd.DataFrame:
        """
        Return a table with a row for each leak and near-duplicate.

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
        found = _count_by_kind(self.leaks) or "no leak"
        more = f"; {len(self.contradictions)} with contradicting labels" if self.contradictions else ""
        return f"LeakReport({sizes} items: {found}; {len(self.near_duplicates)} near-duplicates{more})"


def _count_by_kind(leaks: Sequence[Leak]) -> str:
    counts = Counter(leak.kind for leak in leaks)
    return ", ".join(f"{count} × {_ONE[kind]}" for kind, count in counts.items())


def _format_item(leak: Leak, n: int, *, single: bool) -> str:
    return f"item {leak.items[n]}" if single else f"part {leak.parts[n]} item {leak.items[n]}"


def _format_leaks(leaks: Sequence[Leak], *, single: bool) -> str:
    return "\n".join(
        f"  {leak.kind} {leak.digest}: "
        + " and ".join(_format_item(leak, n, single=single) for n in (0, 1))
        + (f", similarity {leak.similarity:.3f}" if leak.kind == "near" else "")
        for leak in leaks[:_SHOWN]
    )


def raise_leaks(report: LeakReport) -> None:
    """Raise LeakageError if a report has leaks, with hashes and indices of items."""
    if report.is_clean:
        return
    single = len(report.sizes) == 1
    # identical images first: that subsets share a patient may be known
    leaks = sorted(report.leaks, key=lambda leak: leak.kind != "pixels")
    where = "different patients" if single else "different subsets"
    todo = (
        "a split by patient could separate them: give them the same patient, or leave items out"
        if single
        else "leave items out of one subset, or split all data at once with medimg.split(dataset)"
    )
    raise LeakageError(
        f"{where} share {_count_by_kind(leaks)}; the first, by hash:\n{_format_leaks(leaks, single=single)}\n"
        f'{todo}; medimg.check_leaks(…, on_leak="report").items lists all items concerned'
    )


def warn_of_findings(report: LeakReport, lost: int) -> None:
    """Warn of contradicting labels, near-duplicates, and `lost` series that could not be decoded."""
    if report.contradictions:
        single = len(report.sizes) == 1
        warnings.warn(
            f"{len(report.contradictions)} pair(s) of images have identical pixels and different labels; the "
            f"first:\n{_format_leaks(report.contradictions, single=single)}\ncorrect the labels, or leave "
            "the images out; medimg.check_leaks(…).contradictions lists all",
            MedimgWarning,
            stacklevel=3,
        )
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
        f"{count} pair(s) of images in different {'patients' if single else 'subsets'} look alike, "
        "and may be copies, saved again or edited; the most similar:\n"
        f"{_format_leaks(alike, single=single)}\n"
        "compare them by eye; medimg.check_leaks(…).near_duplicates lists all",
        MedimgWarning,
        stacklevel=3,
    )


#: What a split compares: identifiers alone, pixels too, or as much as takes seconds.
Check: TypeAlias = Literal["auto", "pixels", "fast"]
#: Whether a leak raises an error.
OnLeak: TypeAlias = Literal["raise", "report"]

#: Number of values that are decoded in a few seconds.
_AFFORDABLE: Final = 2**29


@set_module("medimg")
def check_leaks(
    *parts: ImageDataset,
    pixels: bool = True,
    near_duplicates: bool = True,
    on_leak: OnLeak = "raise",
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Progress = "auto",
) -> LeakReport:
    """
    Look for patients, studies, series, files, SOP instances and pixels shared between subsets.

    Pixels are compared decoded, so that the same image is found in another transfer syntax or format, under
    another name, and with other headers. Constant images are ignored.

    Parameters
    ----------
    *parts : ImageDataset
        Subsets, such as training, validation and test. In a single dataset, its patients are compared.
    pixels : bool
        Whether to decode and compare all images, which takes as long as reading them once. Results are reused
        while the files don't change.
    near_duplicates : bool
        Whether to warn of images that look alike, as after lossy compression, resizing or a change of
        intensity. At most 32 images of each series are compared, and only if `pixels` are.
    on_leak : {"raise", "report"}
        Whether a leak raises an error.
    workers : int, optional
        Number of decoding threads, all cores by default; or of series that an executor works on at once.
    executor : concurrent.futures.Executor, optional
        Executor whose workers decode the images; see :doc:`/scale`.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

    Returns
    -------
    LeakReport

    Raises
    ------
    LeakageError
        If there is a leak; the message lists hashes and indices of items.
    DatasetError
        If no dataset is given, or something else.

    Warns
    -----
    MedimgWarning
        Of identical pixels with different labels, of near-duplicates, and of series that can't be decoded.

    Notes
    -----
    Near-duplicates have perceptual hashes (64 bits, of the lowest frequencies of a 32×32 thumbnail) that
    differ in at most 6 bits, and thumbnails whose details (all but the lowest 8×8 frequencies) correlate by
    0.9 or more. Images with few details, such as synthetic ones, can be similar without being copies.

    Examples
    --------
    >>> report = medimg.check_leaks(train, val, test)  # doctest: +SKIP
    >>> report  # doctest: +SKIP
    LeakReport(1782 and 382 and 383 items: no leak; 0 near-duplicates)
    """
    if not parts:
        raise DatasetError("check_leaks takes datasets, such as check_leaks(train, test); none was given")
    check_types(*parts)
    check_choice("on_leak", on_leak, get_args(OnLeak), error=DatasetError)
    sources = list_sources(parts)
    prints: Sequence[Fingerprint | None] | None = None
    if pixels:
        prints = compute_fingerprints(
            [s.series for s in sources if s.series],
            workers=workers,
            executor=check_executor(executor),
            progress=progress,
        )
    report = _find_leaks(parts, sources, prints, near=near_duplicates)
    if on_leak == "raise":
        raise_leaks(report)
    warn_of_findings(report, lost=sum(p is None for p in prints or ()))
    return report


def check_types(*parts: object) -> None:
    """Raise DatasetError for anything that is not a dataset."""
    for part in parts:
        if isinstance(part, Mapping | list | tuple):
            values = "*parts.values()" if isinstance(part, Mapping) else "*parts"
            raise also(DatasetError, TypeError)(
                f"expected an ImageDataset; found a {type(part).__name__}: pass what is in it, by {values}"
            )
        if not isinstance(part, ItemFacts):
            raise also(DatasetError, TypeError)(
                f"expected an ImageDataset; found a {type(part).__name__}: make one with "
                "medimg.ImageDataset.from_folder or from_csv"
            )


def check_patients(dataset: ImageDataset, check: Check | None = "fast") -> None:
    """Raise LeakageError if patients share a study, series, file, instance or, by `check`, pixels."""
    if check is None:
        return
    check_choice("check", check, (*get_args(Check), None), error=DatasetError)
    sources = list_sources([dataset])
    # identifiers first, since they need no decoding
    raise_leaks(_find_leaks([dataset], sources, None, near=False))
    several = [s.series for s in sources if s.series]
    if check == "fast" or (check == "auto" and count_unknown_pixels(several) > _AFFORDABLE):
        return
    prints = compute_fingerprints(several)
    report = _find_leaks([dataset], sources, prints, near=check == "pixels")
    raise_leaks(report)
    warn_of_findings(report, lost=sum(p is None for p in prints or ()))


def check_splits(*parts: Any) -> None:
    """
    Raise LeakageError if datasets share anything, as far as is known without decoding.

    Pixels are compared if they were decoded before, as by :func:`medimg.split`.
    """
    sources = list_sources(parts)
    prints = [find_fingerprint(s.series) for s in sources if s.series]
    raise_leaks(_find_leaks(parts, sources, prints, near=False))


def _find_leaks(
    parts: Sequence[Any],
    sources: Sequence[Source],
    prints: Sequence[Fingerprint | None] | None,
    *,
    near: bool,
) -> LeakReport:
    overlaps = Overlaps(sources)
    overlaps.compare_identifiers()
    alike: list[Leak] = []
    contradictions: list[Leak] = []
    notes = overlaps.notes
    if prints is None:
        notes.append("pixels not compared")
    else:
        waiting = iter(prints)
        of_sources = [next(waiting) if s.series else None for s in sources]
        overlaps.compare_pixels(of_sources)
        contradictions = overlaps.find_contradictions(of_sources)
        alike = _find_near_duplicates(sources, of_sources) if near else []
    return LeakReport(
        tuple(overlaps.leaks),
        tuple(alike),
        _list_items(parts, [sources[n] for n in overlaps.involved]),
        tuple(len(part) for part in parts),
        tuple(notes),
        tuple(contradictions),
    )


def _find_near_duplicates(sources: Sequence[Source], prints: Sequence[Fingerprint | None]) -> list[Leak]:
    """Return near-duplicates that don't have identical pixels."""
    found = []
    for one, other, value in find_near_pairs(prints, [s.group for s in sources]):
        (a, of_a), (b, of_b) = ((sources[n], _get_digests(prints[n])) for n in (one, other))
        if not of_a & of_b:
            digest = min(of_a, default=b"").hex()[:12]
            found.append(Leak("near", digest, (a.part, b.part), (a.item, b.item), round(value, 4)))
    return found


def _get_digests(fingerprint: Fingerprint | None) -> frozenset[bytes]:
    return fingerprint.digests if fingerprint else frozenset()


def _list_items(parts: Sequence[Any], involved: Sequence[Source]) -> tuple[tuple[int, ...], ...]:
    """Return the indices of the items of series, for each part."""
    wanted = {(s.part, s.uid, s.path) for s in involved}
    return tuple(
        tuple(
            n
            for n, (uid, path) in enumerate(zip(part.series_uids, part.sources, strict=True))
            if (number, uid, path) in wanted
        )
        for number, part in enumerate(parts)
    )
