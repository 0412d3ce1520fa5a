"""The report of slices that were read a few at a time."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from medimg.core.report import ReadReport
    from medimg.prep.needs import Part

__all__ = ["joined"]

_SOME_READ: Final = re.compile(r"\d+ of \d+ slices read")


def joined(reports: Sequence[ReadReport], part: Part) -> ReadReport:
    """
    Return one report of consecutive slices.

    Parameters
    ----------
    reports : sequence of ReadReport
        Of the pieces, in the order of their slices.
    part : Part
        Which slices they are together.
    """
    if len(reports) == 1:
        return reports[0]
    steps = [t for t in _once(r.transforms for r in reports) if not _SOME_READ.fullmatch(t)]
    if not part.is_whole:
        steps.append(f"{len(part.stored)} of {part.depth} slices read")
    numbers = tuple(chain.from_iterable(r.frame_numbers for r in reports))
    return replace(
        reports[0],
        files=_once(r.files for r in reports),
        sop_instance_uids=tuple(chain.from_iterable(r.sop_instance_uids for r in reports)),
        frame_numbers=numbers if len(numbers) == len(part.stored) else (),
        transforms=tuple(steps),
        warnings=_once(r.warnings for r in reports),
    )


def _once(texts: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Return each text once, in the order of appearance."""
    return tuple(dict.fromkeys(chain.from_iterable(texts)))
