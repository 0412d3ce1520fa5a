"""Works, one after the other, into a table."""

from __future__ import annotations

import math
import sys
import tempfile
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.competition import competition
from benchmarks.data import SMALL, Data
from benchmarks.measured import Row
from benchmarks.memory import extra_bytes
from benchmarks.peers import CannotError, Job, available, task
from benchmarks.timing import evict, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from benchmarks.checks import Check
    from benchmarks.works import Work

__all__ = ["Setting", "measured"]


@dataclass(frozen=True, slots=True)
class Setting:
    """
    How to measure.

    Attributes
    ----------
    root : Path
        Where the data are kept.
    data : Data
        The data.
    columns : sequence of str
        Who takes part.
    rounds : int
        Rounds in which all take turns.
    """

    root: Path
    data: Data
    columns: Sequence[str]
    rounds: int = 7


def measured(works: Iterable[Work], setting: Setting) -> Iterator[list[Row]]:
    """
    Run works.

    Yields
    ------
    list of Row
        A row for each work, and one for its errors where these are shown.
    """
    for work in works:
        print(f"{work.title} …", file=sys.stderr, flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = _rows(work, setting)
        for row in rows:
            _say(row)
        yield rows


def _say(row: Row) -> None:
    """Tell a person who waits."""
    found = ", ".join(f"{column} {row.value(column):.3g}" for column in row.samples)
    print(f"  {row.key} {row.unit}: {found}", file=sys.stderr, flush=True)


def _rows(work: Work, setting: Setting) -> list[Row]:
    if work.measure == "memory":
        return [_memory(work, setting)]
    with tempfile.TemporaryDirectory(prefix="medimg-benchmarks-") as scratch:
        return _times(work, setting, Path(scratch))


def _times(work: Work, setting: Setting, scratch: Path) -> list[Row]:
    row = Row(work.key, work.title, "ms")
    errors = Row(f"{work.key}.error", f"{work.title}: largest error", "")
    check = work.check(setting.data) if work.check else None
    candidates: dict[str, Callable[[], Any]] = {}
    source = work.source(setting.data)
    for column in setting.columns:
        job = Job(source, 224, work.antialias, scratch / column)
        try:
            candidates[column], error = _prepared(work.kind, column, job, check)
        except CannotError as reason:
            row.missing[column] = str(reason)
            continue
        if check and check.shown and column != "limit":
            errors.samples[column] = [error]
    before = partial(evict, Job(source).files) if work.measure == "cold" else None
    with competition() if work.measure == "busy" else nullcontext():
        row.samples = interleaved(candidates, setting.rounds, before=before)
    return [row, errors] if errors.samples else [row]


def _prepared(kind: str, column: str, job: Job, check: Check | None) -> tuple[Callable[[], Any], float]:
    """
    Prepare a run, and run it once, which warms up; return it with the error of what it gave.

    What a library raises is a reason why it can't do the work.
    """
    prepare = task(column, kind)
    try:
        run = prepare(job)
        result = run()
    except Exception as error:
        text = f"{type(error).__name__}: {error}".split("\n")[0][:120]
        raise CannotError("".join(letter for letter in text if letter.isprintable())) from None
    return run, _judged(check if column != "limit" else None, result)


def _judged(check: Check | None, result: Any) -> float:
    if check is None:
        return math.nan
    error = check.error(result)
    if error > check.tolerance:
        raise CannotError(f"gives other values, off by up to {error:.3g}")
    return error


def _memory(work: Work, setting: Setting) -> Row:
    row = Row(work.key, work.title, "MB")
    warm = work.source(Data(setting.root, SMALL))
    for column in setting.columns:
        if column == "limit" or (reason := available(column)):
            row.missing[column] = "not measured" if column == "limit" else reason
            continue
        try:
            task(column, work.kind)
            extra = extra_bytes(column, work.kind, work.source(setting.data), warm)
        except CannotError as reason_why:
            row.missing[column] = str(reason_why)
            continue
        row.samples[column] = [extra / 1e6]
    return row
