"""Tensors of many sources."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args, overload

import numpy as np
import torch

from medimg._public import set_module
from medimg._validation import check_choice
from medimg.core.parallel import ordered_map, worker_count
from medimg.core.progress import Progress, progress_bar
from medimg.core.volume import Volume
from medimg.data.cache.image_cache import as_cache
from medimg.data.image_loader import ImageLoader
from medimg.data.items import make_policies
from medimg.data.resolved_source import ResolvedSource
from medimg.errors import MedimgError, PreprocessError, also
from medimg.executors.executor_map import check_executor
from medimg.io.sources import is_one_source
from medimg.preprocessing.output_buffer import open_output
from medimg.preprocessing.preprocess import Preprocess
from medimg.preprocessing.torch_threads import map_sources, share_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from concurrent.futures import Executor

    import numpy.typing as npt

    from medimg.data.cache.image_cache import ImageCache
    from medimg.errors import ExecutorError
    from medimg.io.read import Source

__all__ = ["OnError", "SourceTensors", "TensorBatch", "check_sources", "iter_tensors", "read_tensors"]


@set_module("medimg")
@dataclass(frozen=True, slots=True, eq=False)
class SourceTensors:
    """
    The tensors of one of many sources.

    Attributes
    ----------
    index : int
        Index of the source, from 0.
    tensor : torch.Tensor
        (N, C, H, W) float32, normalized; N is 0 if the source could not be read. In 3-D (N, C, D, H, W).
    slices : tuple of int
        Index of each image's slice in the volume.
    sop_instance_uids : tuple of str
        SOP Instance UID of each image's slice; "" if there is none.
    error : MedimgError or None
        Why the source could not be read.
    """

    index: int
    tensor: torch.Tensor = field(repr=False)
    slices: tuple[int, ...] = field(default=(), repr=False)
    sop_instance_uids: tuple[str, ...] = field(default=(), repr=False)
    error: MedimgError | None = None


@set_module("medimg")
@dataclass(frozen=True, slots=True, eq=False)
class TensorBatch(Sequence["torch.Tensor"]):
    """
    The tensors of many sources, concatenated.

    As a sequence it gives the part of each source: (n, C, H, W), n = 0 if it failed.

    Attributes
    ----------
    tensor : torch.Tensor
        (N, C, H, W) float32, normalized, in the order of the sources; in 3-D (N, C, D, H, W).
    counts : tuple of int
        Number of images of each source; 0 if it failed.
    slices : tuple of int
        Index of each image's slice in its volume.
    sop_instance_uids : tuple of str
        SOP Instance UID of each image's slice; "" if there is none.
    errors : mapping of int to MedimgError
        Why sources failed, by their index.
    """

    tensor: torch.Tensor = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)
    slices: tuple[int, ...] = field(repr=False)
    sop_instance_uids: tuple[str, ...] = field(repr=False)
    errors: Mapping[int, MedimgError] = field(repr=False)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Start of each source in the tensor, and the end of the last one: one more than sources."""
        return tuple(accumulate(self.counts, initial=0))

    @property
    def sources(self) -> npt.NDArray[np.int64]:
        """Index of the source of each image: (N,) int64; ``labels[batch.sources]`` are the images' labels."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[torch.Tensor, ...]: ...
    def __getitem__(self, index: int | slice) -> torch.Tensor | tuple[torch.Tensor, ...]:
        chosen = range(len(self))[index]
        offsets = self.offsets
        if isinstance(chosen, int):
            return self.tensor[offsets[chosen] : offsets[chosen + 1]]
        return tuple(self.tensor[offsets[n] : offsets[n + 1]] for n in chosen)

    def __repr__(self) -> str:
        size = "×".join(map(str, self.tensor.shape))
        return f"TensorBatch({len(self)} sources, {len(self.errors)} failed, {size})"


OnError: TypeAlias = Literal["collect", "raise"]

_AnySource: TypeAlias = "Source | Volume"


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One source to load, with what is known of it and its part of the output."""

    index: int
    source: Any
    resolved: ResolvedSource | None = None
    count: int = 0
    error: MedimgError | None = None
    out: torch.Tensor | None = None


@set_module("medimg")
def iter_tensors(
    sources: Iterable[Source | Volume],
    recipe: Preprocess | None = None,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    cache: str | os.PathLike[str] | ImageCache | None = None,
    reading: Mapping[str, str] | None = None,
    on_error: OnError = "collect",
    progress: Progress = "auto",
) -> Iterator[SourceTensors]:
    """
    Yield the tensors of many sources, one source at a time.

    At most ``workers + 2`` sources are in memory at once, however many there are and however slowly they are
    consumed. After the iterator is closed, or an interrupt, no further source is started.

    Parameters
    ----------
    sources : iterable of str, Path, bytes, list, Series, Volume, or image of another library
        Sources, each as for :func:`read`; or a :class:`SeriesIndex`.
    recipe : Preprocess, optional
        Preprocessing; ``Preprocess()`` by default.
    workers : int, optional
        Number of threads, all cores by default; or of sources that an executor works on at once.
    executor : concurrent.futures.Executor, optional
        Executor whose workers read the sources, such as processes or a cluster; see :doc:`/scale`. Sources
        must be paths or series that they see, too.
    cache : str, Path or ImageCache, optional
        Cache of rendered images. Bytes, open files and volumes are not cached.
    reading : mapping, optional
        Policies and values of :func:`read`, such as ``{"on_missing": "warn"}``.
    on_error : {"collect", "raise"}
        Whether an error of a source is part of its result, or is raised.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

    Yields
    ------
    SourceTensors
        In the order of the sources.

    Raises
    ------
    PreprocessError
        If an option is invalid, or `sources` is a single source.
    ExecutorError
        If the executor can't run tasks; a source that takes its workers down has one as its error.
    MedimgError
        Of a source, if ``on_error="raise"``.

    Examples
    --------
    >>> from medimg.core.geometry import image_affine
    >>> from medimg.core.volume import Volume
    >>> volume = Volume(np.zeros((1, 4, 64, 64), np.int16), image_affine((2.0, 1.0, 1.0)), "CT", "HU")
    >>> for one in iter_tensors([volume, "nowhere"], Preprocess(slices=2)):
    ...     print(one.index, tuple(one.tensor.shape), type(one.error).__name__)
    0 (2, 3, 224, 224) NoneType
    1 (0, 3, 224, 224) ReadError
    """
    given, loader = check_sources(sources, recipe, workers, on_error), _make_loader(recipe, reading, cache)
    total = len(given) if isinstance(given, Sized) else None
    jobs = (_Job(n, source) for n, source in enumerate(given))
    if check_executor(executor) is None:
        workers = worker_count(workers) if total is None else min(worker_count(workers), max(1, total))
    results = _load_tensors(loader, jobs, workers, executor)
    return _show_progress(_raise_errors(results, on_error), total, progress, "reading")


@set_module("medimg")
def read_tensors(
    sources: Sequence[Source | Volume],
    recipe: Preprocess | None = None,
    *,
    out: torch.Tensor | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    cache: str | os.PathLike[str] | ImageCache | None = None,
    reading: Mapping[str, str] | None = None,
    on_error: OnError = "collect",
    progress: Progress = "auto",
) -> TensorBatch:
    """
    Read many sources into one tensor.

    The headers of all sources are read first, to count the images; then each source is rendered directly into
    its part of the tensor. If they don't fit into memory, use :func:`iter_tensors`.

    Parameters
    ----------
    sources : sequence of str, Path, bytes, list, Series, Volume, or image of another library
        Sources, each as for :func:`read`; or a :class:`SeriesIndex`.
    recipe : Preprocess, optional
        Preprocessing; ``Preprocess()`` by default.
    out : torch.Tensor, optional
        Buffer to fill from its start, (N or more, C, H, W) or in 3-D (N or more, C, D, H, W) float32,
        contiguous, on the CPU; reusing one avoids reallocation. Its content beyond the images is undefined.
    workers : int, optional
        Number of threads, all cores by default, each of which holds one source; or of sources that an
        executor works on at once.
    executor : concurrent.futures.Executor, optional
        Executor whose workers read the sources, such as processes or a cluster; see :doc:`/scale`. Sources
        must be paths or series that they see, too.
    cache : str, Path or ImageCache, optional
        Cache of rendered images. Bytes, open files and volumes are not cached.
    reading : mapping, optional
        Policies and values of :func:`read`, such as ``{"on_missing": "warn"}``.
    on_error : {"collect", "raise"}
        Whether errors of sources are part of the result, without images, or the first one is raised.
    progress : "auto" or bool
        Whether to show progress bars. "auto": in a terminal or a notebook, after 1 s.

    Returns
    -------
    TensorBatch

    Raises
    ------
    PreprocessError
        If `out` does not fit, which is checked before pixels are read, an option is invalid, or `sources` is
        a single source.
    ExecutorError
        If the executor can't run tasks; a source that takes its workers down has one as its error.
    MedimgError
        Of a source, if ``on_error="raise"``.

    Examples
    --------
    >>> from medimg.core.geometry import image_affine
    >>> from medimg.core.volume import Volume
    >>> volume = Volume(np.zeros((1, 4, 64, 64), np.int16), image_affine((2.0, 1.0, 1.0)), "CT", "HU")
    >>> batch = read_tensors([volume, "nowhere", volume], Preprocess(slices=2))
    >>> batch, batch.counts, batch.sources.tolist()
    (TensorBatch(3 sources, 1 failed, 4×3×224×224), (2, 0, 2), [0, 0, 2, 2])
    """
    given, loader = (
        list(check_sources(sources, recipe, workers, on_error)),
        _make_loader(recipe, reading, cache),
    )
    shape = loader.recipe.image_shape
    if out is not None:
        _check_out(out, shape)
    check_executor(executor)
    jobs = [_Job(n, source) for n, source in enumerate(given)]
    count = partial(_count_images, loader.recipe)
    counted = _raise_errors(map_sources(count, jobs, workers, executor, lost=_lose_job, small=True), on_error)
    jobs = list(_show_progress(counted, len(jobs), progress, "opening"))
    planned = [job.count for job in jobs]
    memory = _allocate(out, sum(planned), shape)
    offsets = list(accumulate(planned, initial=0))
    jobs = [replace(job, out=memory[offsets[job.index] : offsets[job.index + 1]]) for job in jobs]
    results = _raise_errors(_load_tensors(loader, jobs, workers, executor), on_error)
    done = list(_show_progress(results, len(jobs), progress, "reading"))
    return _close_gaps(done, planned, memory)


def check_sources(
    sources: object, recipe: Preprocess | None, workers: int | None, on_error: str
) -> Iterable[_AnySource]:
    """Return several sources; PreprocessError if they or the options are invalid."""
    check_choice("on_error", on_error, get_args(OnError), error=PreprocessError)
    if recipe is not None and not isinstance(recipe, Preprocess):
        raise also(PreprocessError, TypeError)(
            f"recipe must be a Preprocess; found a {type(recipe).__name__}"
        )
    worker_count(workers)
    if is_one_source(sources):
        raise PreprocessError(
            f"expected several sources, found one {type(sources).__name__}; pass [source], or all "
            "series of a folder: medimg.scan(folder)"
        )
    if not isinstance(sources, Iterable):
        raise also(PreprocessError, TypeError)(f"expected several sources, found a {type(sources).__name__}")
    return cast("Iterable[_AnySource]", sources)


def _make_loader(
    recipe: Preprocess | None,
    reading: Mapping[str, str] | None,
    cache: str | os.PathLike[str] | ImageCache | None,
) -> ImageLoader:
    return ImageLoader(recipe or Preprocess(), make_policies(reading), as_cache(cache))


def _count_images(recipe: Preprocess, job: _Job) -> _Job:
    """Read the headers of a job's source, and count its images."""
    try:
        resolved = ResolvedSource.resolve(job.source)
        return _Job(job.index, None, resolved, resolved.count(recipe))
    except MedimgError as error:
        return _Job(job.index, None, error=error)


def _load_tensor(loader: ImageLoader, job: _Job) -> SourceTensors:
    """Load the tensor of one source."""
    empty = torch.empty(0, *loader.recipe.image_shape, dtype=torch.float32, device="cpu")
    if job.error is not None:
        return SourceTensors(job.index, empty, error=job.error)
    try:
        resolved = job.resolved or ResolvedSource.resolve(job.source)
        tensor, images = loader.tensor(resolved, job.out)
    except MedimgError as error:
        return SourceTensors(job.index, empty, error=error)
    except MemoryError:
        return SourceTensors(job.index, empty, error=PreprocessError("no memory for the images of a source"))
    return SourceTensors(job.index, tensor, images.slices, images.sop_instance_uids)


def _lose_job(job: _Job, error: ExecutorError) -> _Job:
    return _Job(job.index, None, error=error)


def _load_tensors(
    loader: ImageLoader, jobs: Iterable[_Job], workers: int | None, executor: Executor | None
) -> Generator[SourceTensors]:
    """Yield the tensors of jobs in their order, in the part of the output that each has."""
    load = partial(_load_tensor, loader)
    if executor is None:
        yield from ordered_map(load, jobs, workers, initializer=share_cores)
        return
    parts: deque[torch.Tensor | None] = deque()

    def send() -> Iterator[_Job]:
        for job in jobs:
            parts.append(job.out)
            yield replace(job, out=None)

    arrays = map_sources(partial(_load_array, load), send(), workers, executor, lost=_lose_array)
    with closing(arrays):
        for found in arrays:
            out, tensor = parts.popleft(), torch.from_numpy(np.require(found.array, requirements="W"))
            if not found.error and out is not None:
                tensor = out.copy_(tensor)
            empty = torch.empty(0, *loader.recipe.image_shape)
            yield SourceTensors(
                found.index,
                empty if found.error else tensor,
                found.slices,
                found.sop_instance_uids,
                found.error,
            )


@dataclass(frozen=True, slots=True, eq=False)
class _SentArray:
    """The tensor of one source (N, C, H, W) float32 as an executor returns it."""

    index: int
    array: npt.NDArray[np.float32]
    slices: tuple[int, ...] = ()
    sop_instance_uids: tuple[str, ...] = ()
    error: MedimgError | None = None


def _load_array(load: Callable[[_Job], SourceTensors], job: _Job) -> _SentArray:
    found = load(job)
    return _SentArray(found.index, found.tensor.numpy(), found.slices, found.sop_instance_uids, found.error)


def _lose_array(job: _Job, error: ExecutorError) -> _SentArray:
    return _SentArray(job.index, np.empty(0, np.float32), error=error)


def _raise_errors(results: Generator[Any], on_error: OnError) -> Generator[Any]:
    with closing(results):
        for result in results:
            if on_error == "raise" and result.error is not None:
                result.error.add_note(f"while reading source {result.index}, counted from 0")
                raise result.error
            yield result


def _show_progress(
    results: Generator[Any], total: int | None, progress: Progress, what: str
) -> Generator[Any]:
    with closing(results):
        yield from progress_bar(results, desc=what, unit="source", progress=progress, total=total)


def _check_out(out: object, shape: tuple[int, ...]) -> None:
    sizes = ", ".join(map(str, shape))
    expected = f"a contiguous float32 tensor (N or more, {sizes}) on the CPU, without gradients"
    if not isinstance(out, torch.Tensor):
        raise PreprocessError(f"out is a {type(out).__name__}; expected {expected}")
    fits = out.ndim == 1 + len(shape) and tuple(out.shape[1:]) == shape
    plain = out.device.type == "cpu" and out.is_contiguous() and not out.requires_grad
    if not fits or not plain or out.dtype != torch.float32:
        raise PreprocessError(
            f"out is {out.dtype} of shape {tuple(out.shape)} and strides {out.stride()} on {out.device}; "
            f"expected {expected}"
        )


def _allocate(out: torch.Tensor | None, count: int, shape: tuple[int, ...]) -> torch.Tensor:
    if out is not None:
        if len(out) < count:
            raise PreprocessError(
                f"out has room for {len(out)} images, the sources have {count}; make it larger, or pass "
                "fewer sources"
            )
        return out
    try:
        # numpy allocates huge pages if the system has them
        return torch.from_numpy(np.empty((count, *shape), np.float32))
    except MemoryError:
        raise PreprocessError(
            f"no memory for {count} images of {'×'.join(map(str, shape[1:]))}; use medimg.iter_tensors"
        ) from None


def _close_gaps(done: list[SourceTensors], planned: Sequence[int], memory: torch.Tensor) -> TensorBatch:
    """Move images together to close the gaps of failed sources."""
    counts = [0 if one.error else n for one, n in zip(done, planned, strict=True)]
    end = start = 0
    for count, room in zip(counts, planned, strict=True):
        if end != start:
            # one by one from the start, so that no image is overwritten before it is moved
            with open_output(memory):
                for n in range(count):
                    memory[end + n].copy_(memory[start + n])
        start, end = start + room, end + count
    return TensorBatch(
        tensor=memory[:end],
        counts=tuple(counts),
        slices=tuple(n for one in done for n in one.slices),
        sop_instance_uids=tuple(uid for one in done for uid in one.sop_instance_uids),
        errors={one.index: one.error for one in done if one.error is not None},
    )
