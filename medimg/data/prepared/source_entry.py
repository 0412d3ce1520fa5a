"""Sources to prepare: their headers, and digests of all that their images depend on."""

from __future__ import annotations

import math
import os
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from medimg import __version__
from medimg.core.content_hash import content_hash, json_text
from medimg.core.progress import Progress, progress_bar
from medimg.core.volume import Volume
from medimg.data.cache.keys import stat_files
from medimg.data.resolved_source import ResolvedSource
from medimg.errors import MedimgError, ReadError
from medimg.io.series import Series
from medimg.io.sources import name_source
from medimg.preprocessing.torch_threads import map_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Executor

    from medimg.data.cache.images import StoredDtype
    from medimg.data.image_loader import ImageLoader
    from medimg.errors import ExecutorError

    #: Sources with their numbers, opened by one task.
    _Group = Sequence[tuple[int, Any]]
    _LoseGroup = Callable[[_Group, ExecutorError], dict[int, "SourceEntry"]]

__all__ = ["PrepareJob", "SourceEntry", "open_sources"]

#: Sources that one task of an executor opens, and the tasks that few sources are divided in.
_MOST_OPENED: Final = 64
_LEAST_GROUPS: Final = 64
#: Incremented when equal keys no longer mean equal images.
_SCHEMA: Final = 1


class SourceEntry(NamedTuple):
    """A source to prepare, with what training has to know of it."""

    key: str
    source: str
    series: Series | None
    n_images: int = 0
    label: Any = None
    patient: str = ""
    domain: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class PrepareJob:
    """How images are made; small, as it is sent with each task."""

    loader: ImageLoader
    dtype: StoredDtype

    def find_key(self, series: Series) -> str | None:
        """Return a digest of all that the images of a series depend on; None if its files are not on disk."""
        states = stat_files(series)
        if states is None:
            return None
        facts = [
            [_SCHEMA, __version__, self.loader.recipe.replace(mean=None, std=None).fingerprint, self.dtype],
            [asdict(self.loader.policies), series.uid, list(series.files), list(series.shape)],
            # inodes and times of change differ between copies and mounts
            [[size, modified] for _, size, modified, _ in states],
        ]
        return content_hash(json_text(facts))


def open_sources(
    job: PrepareJob,
    sources: Iterable[Any],
    *,
    workers: int | None,
    executor: Executor | None,
    progress: Progress,
) -> list[SourceEntry]:
    """Read the headers of sources; in groups, as sending one takes longer than reading it."""
    given = list(enumerate(sources))
    size = 1 if executor is None else min(_MOST_OPENED, math.ceil(len(given) / _LEAST_GROUPS))
    groups = [given[start : start + size] for start in range(0, len(given), max(size, 1))]
    work = partial(_open_group, job)
    found: dict[int, SourceEntry] = {}
    with progress_bar(desc="opening", unit="source", progress=progress, total=len(given)) as bar:

        def run(groups: Sequence[_Group], lost: _LoseGroup) -> None:
            with closing(map_sources(work, groups, workers, executor, lost=lost, small=True)) as results:
                for opened in results:
                    found.update(opened)
                    bar.update(len(opened))

        run(groups, _mark_lost_group)
        run([[task] for task in given if task[0] not in found], _lose_group)
    return [found[number] for number, _ in given]


def _open_group(job: PrepareJob, group: _Group) -> dict[int, SourceEntry]:
    return {number: _open_source(job, number, source) for number, source in group}


def _open_source(job: PrepareJob, number: int, source: Any) -> SourceEntry:
    """Read the headers of a source."""
    name = _name_source(source, number)
    try:
        series = ResolvedSource.resolve(source).image
        if isinstance(series, Volume):
            raise ReadError("it is in memory; expected one on disk")
        key = job.find_key(series)
        if key is None:
            raise ReadError(
                "its files are not on a disk that this worker sees; pass absolute paths, and copy what is at "
                "a URL"
            )
        return SourceEntry(key, series.path, series, job.loader.recipe.count(series))
    except MedimgError as error:
        return _fail_source(name, error)


def _name_source(source: object, number: int) -> str:
    if isinstance(source, Series):
        return source.path
    return name_source(source) if isinstance(source, str | os.PathLike) else f"source {number}"


def _fail_source(name: str, error: MedimgError) -> SourceEntry:
    return SourceEntry(
        content_hash(json_text(["failed", name])), name, None, error=f"{type(error).__name__}: {error}"
    )


def _mark_lost_group(group: _Group, error: ExecutorError) -> dict[int, SourceEntry]:
    """Return nothing, so that its sources are opened one by one."""
    return {}


def _lose_group(group: _Group, error: ExecutorError) -> dict[int, SourceEntry]:
    return {number: _fail_source(_name_source(source, number), error) for number, source in group}
