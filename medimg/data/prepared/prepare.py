"""``medimg.prepare``: the images of many sources, preprocessed once, as shards with a manifest."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

from medimg import __version__
from medimg._public import set_module
from medimg._tables import make_table
from medimg._validation import check_choice, check_whole_number
from medimg.core.content_hash import content_hash, json_text
from medimg.core.progress import Progress, progress_bar
from medimg.core.volume import Volume
from medimg.data.cache.images import DTYPES, RenderedImages, StoredDtype, encode_intensity
from medimg.data.image_loader import ImageLoader
from medimg.data.items import ItemFacts, make_policies
from medimg.data.patients import normalize_patient
from medimg.data.prepared.shard import ShardWriter, shard_name
from medimg.data.prepared.source_entry import PrepareJob, SourceEntry, open_sources
from medimg.data.prepared.source_table import (
    FAILED,
    MANIFEST,
    PREPARED,
    Manifest,
    SourceRow,
    escape_text,
    join_rows,
    load_arrow,
)
from medimg.data.read_tensors import check_sources
from medimg.data.resolved_source import ResolvedSource
from medimg.errors import DatasetError, MedimgError, MedimgWarning, PreprocessError
from medimg.executors.executor_map import check_executor
from medimg.io.files.atomic import temporary_folder
from medimg.io.files.object_storage import is_remote_url
from medimg.io.files.output import check_target
from medimg.io.files.storage_folder import StorageFolder
from medimg.io.series import Series
from medimg.preprocessing.preprocess import Preprocess, check_same_preprocessing
from medimg.preprocessing.torch_threads import map_sources

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    import pandas as pd

    from medimg.data.dataset import ImageDataset
    from medimg.errors import ExecutorError
    from medimg.io.read import Source
    from medimg.io.series import Series

__all__ = ["PreparedFolder", "prepare"]

_SHARD_BYTES: Final = 2**27


@set_module("medimg")
@dataclass(frozen=True, slots=True, eq=False)
class PreparedFolder:
    """
    A folder of prepared images, as :func:`medimg.prepare` leaves it.

    Attributes
    ----------
    where : str
        Path or URL of the folder.
    n_prepared, n_failed : int
        Number of sources with and without images.
    n_new : int
        Number of sources that this call has prepared; the others were there before.
    n_images : int
        Number of images.
    errors : mapping of str to int
        Number of failed sources by the type of the error.
    """

    where: str
    n_prepared: int
    n_failed: int
    n_new: int
    n_images: int
    errors: Mapping[str, int]
    _manifest: Manifest = field(repr=False)

    def to_pandas(self) -> pd.DataFrame:
        """
        Return a table with a row for each source.

        Columns are ``source``, ``outcome``, ``error``, ``images``, ``label``, ``domain``, ``shard`` and
        ``digest``; patients are in the manifest only.
        """
        rows = self._manifest.rows
        found = [row.images for row in rows]
        return make_table(
            {
                "source": [row.source for row in rows],
                "outcome": [row.outcome for row in rows],
                "error": [row.error for row in rows],
                "images": [0 if one is None else one.shape[0] for one in found],
                "label": list(self._manifest.labels),
                "domain": list(self._manifest.domains),
                "shard": ["" if one is None else one.shard for one in found],
                "digest": ["" if one is None else one.digest for one in found],
            }
        )

    def __repr__(self) -> str:
        shards = len({row.images.shard for row in self._manifest.rows if row.images is not None})
        failed = f", {self.n_failed} failed" if self.n_failed else ""
        return (
            f"PreparedFolder({self.n_images} images of {self.n_prepared} sources in {shards} shards, "
            f"{self.n_new} new{failed})"
        )


class _Task(NamedTuple):
    """Sources whose images make one shard."""

    keys: tuple[str, ...]
    series: tuple[Series, ...]


@set_module("medimg")
def prepare(
    sources: ImageDataset | Iterable[Source | Volume],
    recipe: Preprocess | None,
    out: str | os.PathLike[str],
    *,
    dtype: StoredDtype = "float16",
    shard_bytes: int = _SHARD_BYTES,
    workers: int | None = None,
    executor: Executor | None = None,
    reading: Mapping[str, str] | None = None,
    progress: Progress = "auto",
) -> PreparedFolder:
    """
    Preprocess many sources once, and write what training reads: shards of images, and a manifest.

    A shard is a tar file with an array in NumPy's format for each source, (N, 1 or 3, H, W), intensities from
    0 (black) to 1 (white) before normalization; it is named by its SHA-256. ``manifest.parquet`` has a row
    for each source with its outcome, shard, digest, label, patient and domain, and the recipe.
    :meth:`medimg.ImageDataset.from_prepared` reads the folder.

    Called again, it goes on: sources whose files, recipe and policies are unchanged are not read again,
    failed ones are tried again, and labels and patients are those of the last call. A source that can't be
    read is reported in the manifest and passed over.

    Parameters
    ----------
    sources : ImageDataset, SeriesIndex, or iterable of sources
        Dataset, whose labels, patients, domains and reading policies are kept, with all images of each of its
        series; or sources as for :func:`medimg.read_tensors`, without labels, with the Patient ID of their
        headers. They must be on disk.
    recipe : Preprocess or None
        Preprocessing; None for the dataset's own.
    out : str or Path
        Folder, or its URL in object storage, such as ``s3://bucket/prepared``. It shows and names patients:
        keep it as private as the images.
    dtype : {"float16", "uint8", "float32"}
        Type of the stored intensities; see :class:`medimg.ImageCache` for its precision.
    shard_bytes : int
        Size of a shard, about; a source is never divided.
    workers : int, optional
        Number of threads, all cores by default; or of shards that an executor works on at once. Each
        holds the images of one shard on disk, and of one source in memory.
    executor : concurrent.futures.Executor, optional
        Executor whose workers read the sources, and write the shards to `out`, which they must see; see
        :doc:`/scale`.
    reading : mapping, optional
        Policies and values of :func:`medimg.read` for sources; a dataset has its own.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

    Returns
    -------
    PreparedFolder

    Raises
    ------
    DatasetError
        If an option is invalid, `recipe` or `reading` is given and is not the dataset's, or no source could
        be prepared.
    PreprocessError
        If `sources` is a single source.
    StoreError, OSError
        If the folder can't be written; what was written before stays, and the next call goes on there.
    ExecutorError
        If the executor can't run tasks.
    MissingDependencyError
        If pyarrow is not installed (extra ``prepare``).

    Warns
    -----
    MedimgWarning
        If sources could not be prepared.

    Examples
    --------
    >>> folder = medimg.prepare(dataset, None, "prepared")                     # doctest: +SKIP
    >>> folder                                                                 # doctest: +SKIP
    PreparedFolder(2547 images of 2547 sources in 3 shards, 2547 new)
    >>> train, val, test = medimg.split(medimg.ImageDataset.from_prepared("prepared"))  # doctest: +SKIP
    """
    load_arrow()
    check_choice("dtype", dtype, get_args(StoredDtype), error=DatasetError)
    check_whole_number("shard_bytes", shard_bytes, least=1, error=DatasetError)
    check_executor(executor)
    if is_remote_url(out):
        check_target("out", out, error=DatasetError, is_folder=True)
    folder = StorageFolder.of("out", out)
    job = _make_job(sources, recipe, reading, dtype)
    run = _Run(folder, job, shard_bytes=shard_bytes, workers=workers, executor=executor, progress=progress)
    return run.finish(run.list_entries(sources))


def _make_job(
    sources: object, recipe: Preprocess | None, reading: Mapping[str, str] | None, dtype: StoredDtype
) -> PrepareJob:
    if not isinstance(sources, ItemFacts):
        if recipe is not None and not isinstance(recipe, Preprocess):
            raise DatasetError(f"recipe must be a Preprocess; found a {type(recipe).__name__}")
        return PrepareJob(ImageLoader(recipe or Preprocess(), make_policies(reading)), dtype)
    if reading is not None:
        raise DatasetError(
            "a dataset has its own reading policies; make it with reading=, and leave it out here"
        )
    if recipe is not None:
        check_same_preprocessing(
            recipe, sources.preprocess, name="recipe", other="the dataset", error=DatasetError
        )
    return PrepareJob(ImageLoader(sources.preprocess, sources.policies), dtype)


class _Run:
    """One call of `prepare`."""

    def __init__(
        self,
        folder: StorageFolder,
        job: PrepareJob,
        *,
        shard_bytes: int,
        workers: int | None,
        executor: Executor | None,
        progress: Progress,
    ) -> None:
        self._folder = folder
        self._job = job
        self._shard_bytes = shard_bytes
        self._workers = workers
        self._executor = executor
        self._progress: Progress = progress
        self._facts: dict[str, Any] = {
            "recipe": job.loader.recipe.to_dict(),
            "reading": asdict(job.loader.policies),
            "medimg": __version__,
            "task": "multiclass",
            "classes": None,
        }

    def list_entries(self, sources: ImageDataset | Iterable[Source | Volume]) -> list[SourceEntry]:
        """Return the sources with their keys, and the error of those whose headers can't be read."""
        if isinstance(sources, ItemFacts):
            self._facts |= {"task": sources.task, "classes": list(map(escape_text, sources.classes))}
            used = {series: n for n, series in enumerate(map(id, sources.series))}
            labeled = [one for one in sources.labeled_series if id(one.series) in used]
            found = self._open([one.series for one in labeled])
            return [
                entry._replace(label=one.label, patient=one.patient, domain=one.domain)
                for one, entry in zip(labeled, found, strict=True)
            ]
        given = check_sources(sources, self._job.loader.recipe, self._workers, "collect")
        return [
            entry._replace(patient=normalize_patient(entry.series.patient_id)) if entry.series else entry
            for entry in self._open(given)
        ]

    def _open(self, sources: Iterable[Any]) -> list[SourceEntry]:
        return open_sources(
            self._job, sources, workers=self._workers, executor=self._executor, progress=self._progress
        )

    def finish(self, entries: list[SourceEntry]) -> PreparedFolder:
        """Prepare what is missing, and write the manifest."""
        if not entries:
            raise DatasetError("there are no sources to prepare; expected at least one")
        known = self._load_known()
        todo = [entry for entry in entries if entry.series is not None and entry.key not in known]
        new = 0
        with progress_bar(
            desc="preparing", unit="source", progress=self._progress, total=len(entries),
            initial=len(entries) - len(todo),
        ) as bar:  # fmt: skip
            for rows in self._prepare(_group(todo, self._job, self._shard_bytes)):
                known |= {row.key: row for row in rows}
                new += sum(row.outcome == PREPARED for row in rows)
                bar.update(len(rows))
        found = [known.get(entry.key) or _fail(entry) for entry in entries]
        manifest = Manifest(
            rows=tuple(replace(row, source=entry.source) for row, entry in zip(found, entries, strict=True)),
            labels=tuple(entry.label for entry in entries),
            patients=tuple(entry.patient for entry in entries),
            domains=tuple(entry.domain for entry in entries),
            facts=self._facts,
        )
        return self._write(manifest, new)

    def _write(self, manifest: Manifest, new: int) -> PreparedFolder:
        failed = [row for row in manifest.rows if row.images is None]
        self._folder.write_bytes(MANIFEST, manifest.to_bytes())
        count = len(manifest.rows) - len(failed)
        if failed:
            which = f"{len(failed)} of {len(manifest.rows)} sources"
            text = f"{which} could not be prepared, the first: {failed[0].error}"
            if not count:
                raise DatasetError(text)
            warnings.warn(text, MedimgWarning, stacklevel=4)
        return PreparedFolder(
            where=str(self._folder),
            n_prepared=count,
            n_failed=len(failed),
            n_new=new,
            n_images=sum(row.images.shape[0] for row in manifest.rows if row.images is not None),
            errors=dict(Counter(row.error.partition(":")[0] for row in failed)),
            _manifest=manifest,
        )

    def _load_known(self) -> dict[str, SourceRow]:
        """Return the sources that were prepared before, and whose shards are there, by key."""
        sizes = self._folder.list_sizes("shards")
        parts = []
        for name in self._folder.list_sizes("parts"):
            try:
                parts.append(Manifest.read(self._folder, name).rows)
            except DatasetError as error:
                warnings.warn(f"{error}; its sources are prepared again", MedimgWarning, stacklevel=5)
        return {
            key: row
            for key, row in join_rows(parts).items()
            if row.images is not None
            and row.images.has_shape_of(self._job.loader.recipe.image_shape)
            and sizes.get(shard_name(row.images.shard), 0) >= row.images.offset + row.images.size
        }

    def _prepare(self, tasks: Sequence[_Task]) -> Iterator[list[SourceRow]]:
        """Yield the rows of each task once its shard and they are written; those of a lost one one by one."""
        lost: list[_Task] = []
        for task, rows in self._map(tasks, _mark_lost):
            if rows is None:
                lost += [_Task((key,), (one,)) for key, one in zip(task.keys, task.series, strict=True)]
            else:
                yield self._note(task, rows)
        for task, rows in self._map(lost, _lose_task):
            yield self._note(task, rows or [])

    def _map(self, tasks: Sequence[_Task], lost: Any) -> Generator[tuple[_Task, list[SourceRow] | None]]:
        work = partial(_prepare_shard, self._job, self._folder)
        results = map_sources(work, tasks, self._workers, self._executor, lost=lost, small=True)
        with closing(results):
            yield from zip(tasks, results, strict=True)

    def _note(self, task: _Task, rows: list[SourceRow]) -> list[SourceRow]:
        """Write the rows of a task, so that another call finds them."""
        nothing = ("",) * len(rows)
        part = Manifest(tuple(rows), (None,) * len(rows), nothing, nothing, self._facts)
        self._folder.write_bytes(f"parts/{content_hash(json_text(task.keys))}.parquet", part.to_bytes())
        return rows


def _fail(entry: SourceEntry) -> SourceRow:
    return SourceRow(entry.key, entry.source, FAILED, entry.error)


def _group(entries: Sequence[SourceEntry], job: PrepareJob, shard_bytes: int) -> list[_Task]:
    """Return tasks of neighboring sources whose images fill a shard."""
    each = math.prod(job.loader.recipe.image_shape) * DTYPES[job.dtype].itemsize
    tasks: list[_Task] = []
    room = 0
    for entry in {one.key: one for one in entries}.values():
        assert entry.series is not None  # as only these are to be prepared
        size = entry.n_images * each
        if not tasks or room < size:
            tasks.append(_Task((), ()))
            room = shard_bytes
        tasks[-1] = _Task((*tasks[-1].keys, entry.key), (*tasks[-1].series, entry.series))
        room -= size
    return tasks


def _prepare_shard(job: PrepareJob, folder: StorageFolder, task: _Task) -> list[SourceRow] | None:
    """Render the images of some series, write their shard, and return their rows."""
    failed: dict[str, str] = {}
    with temporary_folder() as temporary:
        path = temporary / "shard.tar"
        with ShardWriter(path) as writer:
            for key, series in zip(task.keys, task.series, strict=True):
                try:
                    writer.add(key, _render(job, series, key))
                except MedimgError as error:
                    failed[key] = f"{type(error).__name__}: {error}"
                except MemoryError:
                    failed[key] = "PreprocessError: not enough memory for the images of a source"
        found = writer.images
        if found:
            folder.write(shard_name(writer.sha256), path)
    return [
        SourceRow(
            key=key,
            source=series.path,
            outcome=PREPARED if key in found else FAILED,
            error=failed.get(key, ""),
            images=found.get(key),
            series_uid=series.uid,
            modality=series.modality,
        )
        for key, series in zip(task.keys, task.series, strict=True)
    ]


def _render(job: PrepareJob, series: Series, key: str) -> RenderedImages:
    images = job.loader.render(ResolvedSource.resolve(series), None)
    if job.find_key(series) != key:
        raise PreprocessError(f"{series.path} has changed while it was read; prepare it again")
    return replace(images, planes=encode_intensity(images.planes, job.dtype))


def _mark_lost(task: _Task, error: ExecutorError) -> None:
    """Mark a task whose sources are tried one by one."""


def _lose_task(task: _Task, error: ExecutorError) -> list[SourceRow]:
    return [
        SourceRow(
            key, series.path, FAILED, f"{type(error).__name__}: {error}", None, series.uid, series.modality
        )
        for key, series in zip(task.keys, task.series, strict=True)
    ]
