"""Sources on their way to embeddings: opened, looked for among what is kept, read if need be."""

from __future__ import annotations

from collections.abc import Sized
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medimg.core.volume import Volume
from medimg.data import PictureCache
from medimg.data.bulk import checked_sources
from medimg.data.items import checked_policies
from medimg.data.making import Maker, Opened
from medimg.data.threads import in_order
from medimg.errors import MedimgError, PreprocessError
from medimg.learn.extraction import feature_count, network_digest
from medimg.learn.feature_cache import KEEP_AFTER, FeatureFile

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from medimg.data.entries import Address
    from medimg.io.read import Source
    from medimg.learn.classifier import TransferClassifier
    from medimg.learn.feature_cache import Entry

__all__ = ["Archive", "Found"]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """
    What is known of one source.

    Attributes
    ----------
    pictures : Tensor or None
        (n, 3, H, W) that are still to be computed on.
    missing : int
        How many these were.
    rows : numpy.ndarray or None
        (n, F) float32 embeddings.
    slices, sop_instance_uids : tuple
        Of each picture.
    series_uid, patient : str
        Of the source.
    address : Address or None
        What tells its content; None where nothing is kept.
    error : MedimgError or None
        Why there is nothing.
    """

    pictures: Tensor | None = field(default=None, repr=False)
    missing: int = 0
    rows: NDArray[np.float32] | None = field(default=None, repr=False)
    slices: tuple[int, ...] = ()
    sop_instance_uids: tuple[str, ...] = field(default=(), repr=False)
    series_uid: str = ""
    patient: str = field(default="", repr=False)
    address: Address | None = None
    error: MedimgError | None = None


class Archive:
    """
    Many sources, and the embeddings of them that are kept.

    Parameters
    ----------
    model : TransferClassifier
        The network and the recipe.
    sources : iterable
        See :func:`medimg.embed`.
    cache : path-like or None
        Folder of what is kept.
    workers : int or None
        Threads.
    reading : mapping or None
        Policies.
    """

    def __init__(
        self,
        model: TransferClassifier,
        sources: Iterable[Source | Volume],
        *,
        cache: str | os.PathLike[str] | None,
        workers: int | None,
        reading: Mapping[str, str] | None,
    ) -> None:
        self._sources = checked_sources(sources, model.preprocess, workers, "collect")
        self._workers = workers
        self._maker = Maker(model.preprocess, checked_policies(reading))
        self._addressing = PictureCache(cache, dtype="float32") if cache is not None else None
        self._file: FeatureFile | None = None
        self._unkept: list[Entry] = []
        if self._addressing is not None:
            self._file = FeatureFile(self._addressing.folder, network_digest(model), feature_count(model))

    def read(self, progress: bool | None) -> Generator[Found]:
        """Yield the sources in their order, read where their embeddings are not kept."""
        from tqdm import tqdm

        total = len(self._sources) if isinstance(self._sources, Sized) else None
        disable = None if progress is None else not progress
        results = in_order(self._found, self._sources, self._workers)
        with closing(results):
            yield from tqdm(
                results, "embedding", total, unit="source", disable=disable, delay=1.0, leave=False
            )

    def completed(self, one: Found, rows: Tensor) -> Found:
        """Return a source with its rows, which are to be kept."""
        if one.error is not None or one.rows is not None:
            return one
        array = rows.numpy()
        if self._file is not None and one.address is not None:
            self._unkept += [self._file.entry(one.address, n, row) for n, row in enumerate(array)]
            self._unkept.append(self._file.names_entry(one.address, one.slices, one.sop_instance_uids))
            if len(self._unkept) >= KEEP_AFTER:
                self.keep()
        return replace(one, rows=array)

    def keep(self) -> None:
        """Write what is not on disk yet."""
        if self._file is not None:
            self._file.put(self._unkept)
        self._unkept = []

    def _found(self, source: Any) -> Found:
        try:
            opened = Opened.of(source)
            image = opened.image
            known = Found(
                series_uid="" if isinstance(image, Volume) else image.uid,
                patient="" if isinstance(image, Volume) else image.patient_id,
                address=self._address(opened),
            )
            return self._kept(known, opened) or self._read(known, opened)
        except MedimgError as error:
            # what it was raised in holds pixels: too much to keep of each of many
            error.__context__ = error.__traceback__ = None
            return Found(error=error)
        except MemoryError:
            return Found(error=PreprocessError("no memory for the pictures of a source"))

    def _address(self, opened: Opened) -> Address | None:
        if self._addressing is None or isinstance(opened.image, Volume):
            return None
        return self._addressing.address(self._maker.recipe, opened.image, self._maker.policies)

    def _kept(self, known: Found, opened: Opened) -> Found | None:
        if self._file is None or known.address is None:
            return None
        keys = [self._file.key(known.address, n) for n in range(opened.count(self._maker.recipe))]
        rows = self._file.get(keys)
        names = self._file.names(known.address)
        if names is None or len(rows) < len(keys) or {len(names[0]), len(names[1])} != {len(keys)}:
            return None
        array = np.stack([rows[key] for key in keys])
        return replace(known, rows=array, slices=names[0], sop_instance_uids=names[1])

    def _read(self, known: Found, opened: Opened) -> Found:
        tensor, rendered = self._maker.tensor(opened)
        # files that changed while they were read would be kept in the name of what they were
        address = known.address if known.address and self._address(opened) == known.address else None
        return replace(
            known,
            pictures=tensor,
            missing=len(tensor),
            slices=rendered.slices,
            sop_instance_uids=rendered.sop_instance_uids,
            address=address,
        )
