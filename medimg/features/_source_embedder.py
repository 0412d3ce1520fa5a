"""Cached embedding of image sources: read in threads, embedded in batches that extend across sources."""

from __future__ import annotations

from collections import deque
from collections.abc import Sized
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from medimg.core.parallel import ordered_map
from medimg.core.progress import Progress, progress_bar
from medimg.core.volume import Volume
from medimg.data.cache.keys import find_address
from medimg.data.image_loader import ImageLoader
from medimg.data.items import make_policies
from medimg.data.patients import normalize_patient
from medimg.data.read_tensors import check_sources
from medimg.data.resolved_source import ResolvedSource
from medimg.errors import MedimgError, PreprocessError
from medimg.features._cache import FLUSH_AFTER, FeatureCache, SeriesFeatures
from medimg.features.extractor import rebatch
from medimg.models.input_checks import check_finite
from medimg.preprocessing.torch_threads import share_cores

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from medimg.data.cache.keys import Address
    from medimg.io.read import Source
    from medimg.models.classifier import TransferClassifier

__all__ = ["EmbeddedSource", "SourceEmbedder", "compute_rows"]


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedSource:
    """
    One source with images (n, C, H, W) to embed, or with embeddings (n, F) float32, or with an error.

    `missing` is the number of images to embed; `address` is the cache key, None if it is not cached.
    """

    images: Tensor | None = field(default=None, repr=False)
    missing: int = 0
    rows: NDArray[np.float32] | None = field(default=None, repr=False)
    slices: tuple[int, ...] = ()
    sop_instance_uids: tuple[str, ...] = field(default=(), repr=False)
    series_uid: str = ""
    patient: str = field(default="", repr=False)
    address: Address | None = None
    error: MedimgError | None = None


class SourceEmbedder:
    """Reads many sources in threads, and loads and stores their embeddings."""

    def __init__(
        self,
        model: TransferClassifier,
        sources: Iterable[Source | Volume],
        *,
        cache: str | os.PathLike[str] | None,
        workers: int | None,
        reading: Mapping[str, str] | None,
    ) -> None:
        self._sources = check_sources(sources, model.preprocess, workers, "collect")
        self._workers = workers
        self._loader = ImageLoader(model.preprocess, make_policies(reading))
        self._cache = FeatureCache.open(cache, model) if cache is not None else None
        self._unsaved: list[tuple[Address, SeriesFeatures]] = []
        self._unsaved_rows = 0

    def read(self, progress: Progress) -> Generator[EmbeddedSource]:
        """Yield the sources in their order, with cached embeddings, or with images."""
        total = len(self._sources) if isinstance(self._sources, Sized) else None
        results = ordered_map(self._load, self._sources, self._workers, initializer=share_cores)
        with closing(results):
            yield from progress_bar(results, desc="embedding", unit="source", progress=progress, total=total)

    def add_rows(self, source: EmbeddedSource, rows: Tensor) -> EmbeddedSource:
        """Return a source with its embeddings, which will be cached."""
        if source.error is not None or source.rows is not None:
            return source
        array = rows.numpy()
        if self._cache is not None and source.address is not None:
            features = SeriesFeatures(array, source.slices, source.sop_instance_uids)
            self._unsaved.append((source.address, features))
            self._unsaved_rows += len(array)
            if self._unsaved_rows >= FLUSH_AFTER:
                self.flush()
        return replace(source, rows=array)

    def flush(self) -> None:
        """Write the embeddings that are not on disk yet."""
        if self._cache is not None:
            self._cache.store_series(self._unsaved)
        self._unsaved, self._unsaved_rows = [], 0

    def _load(self, source: Any) -> EmbeddedSource:
        try:
            resolved = ResolvedSource.resolve(source)
            image = resolved.image
            found = EmbeddedSource(
                series_uid="" if isinstance(image, Volume) else image.uid,
                patient="" if isinstance(image, Volume) else normalize_patient(image.patient_id),
                address=self._find_address(resolved),
            )
            return self._load_cached(found, resolved) or self._read(found, resolved)
        except MedimgError as error:
            # its frames have references to pixels, too many for many errors
            error.__context__ = error.__traceback__ = None
            return EmbeddedSource(error=error)
        except MemoryError:
            return EmbeddedSource(error=PreprocessError("not enough memory for the images of a source"))

    def _find_address(self, source: ResolvedSource) -> Address | None:
        if self._cache is None or isinstance(source.image, Volume):
            return None
        loader = self._loader
        return find_address(loader.recipe, source.image, loader.policies, dtype="float32", compare="samples")

    def _load_cached(self, found: EmbeddedSource, source: ResolvedSource) -> EmbeddedSource | None:
        if self._cache is None or found.address is None:
            return None
        features = self._cache.load_series(found.address, source.count(self._loader.recipe))
        return replace(found, **features._asdict()) if features else None

    def _read(self, found: EmbeddedSource, source: ResolvedSource) -> EmbeddedSource:
        tensor, rendered = self._loader.tensor(source)
        # files that changed during reading would be cached under the hash of their former contents
        address = found.address if found.address and self._find_address(source) == found.address else None
        return replace(
            found,
            images=tensor,
            missing=len(tensor),
            slices=rendered.slices,
            sop_instance_uids=rendered.sop_instance_uids,
            address=address,
        )


def compute_rows(
    embedder: SourceEmbedder, read: Iterator[EmbeddedSource], network: Any, size: int
) -> Iterator[EmbeddedSource]:
    """Fill batches across sources, and yield each source once it has its rows."""
    waiting: deque[EmbeddedSource] = deque()
    rows: list[Tensor] = []
    done = 0

    def pending_images() -> Iterator[Tensor]:
        for one in read:
            waiting.append(replace(one, images=None))
            if one.images is not None:
                yield one.images

    for images in rebatch(pending_images(), size):
        rows.append(check_finite(network(images)))
        done += len(images)
        if done >= waiting[0].missing:
            block = torch.cat(rows)
            start = 0
            while waiting and start + waiting[0].missing <= len(block):
                one = waiting.popleft()
                yield embedder.add_rows(one, block[start : start + one.missing])
                start += one.missing
            rows, done = [block[start:]], len(block) - start
    # sources without images to compute may be last
    yield from (embedder.add_rows(one, torch.empty(0, 0)) for one in waiting)
