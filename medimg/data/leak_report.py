"""What data sets share, and how it is told."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from medimg.data.near import MOST_PAIRS
from medimg.errors import LeakageError, MedimgWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from medimg.data.overlaps import Leak

__all__ = ["LeakReport", "refuse", "warn_of"]

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
