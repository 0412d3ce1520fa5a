"""Series of a prepared folder: their images are there, their original pixels are not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np

from medimg.core.geometry import image_affine
from medimg.data.prepared.shard import map_images, shard_name
from medimg.errors import DatasetError, PreprocessError, ReadError
from medimg.io.memory_series import KnownContent
from medimg.io.series import Series
from medimg.preprocessing.preprocess import check_same_preprocessing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from medimg.core.volume import Volume
    from medimg.data.cache.images import DamagedError, RenderedImages
    from medimg.data.prepared.shard_cache import ShardCache
    from medimg.data.prepared.source_table import PreparedImages, SourceRow
    from medimg.io.files.storage_folder import StorageFolder
    from medimg.io.series import Policies
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["PreparedReader", "ShardFiles", "make_affine", "make_series"]

_FORMAT: Final = "prepared"


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """The shards of a folder on disk."""

    folder: StorageFolder

    def load(self, images: PreparedImages) -> RenderedImages:
        """Return the images of a source, mapped."""
        return map_images(self.folder.path(shard_name(images.shard)), images)

    def reload(self, images: PreparedImages, error: DamagedError) -> NoReturn:
        """Raise DatasetError for images that are not those that were prepared."""
        raise DatasetError(
            f"the shard {images.shard[:12]} of {self.folder} is damaged: {error}; remove it, and prepare the "
            "folder again"
        ) from error


@dataclass(frozen=True, slots=True, eq=False)
class PreparedReader(KnownContent):
    """Gives the images of one source as they were prepared."""

    images: PreparedImages
    shards: ShardFiles | ShardCache
    recipe: Preprocess = field(repr=False)
    source: str = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the images."""
        return self.images.digest

    @property
    def nbytes(self) -> int:
        """Bytes of the images."""
        return self.images.size

    def load_images(self, recipe: Preprocess) -> RenderedImages:
        """Return the images, mapped; PreprocessError for another recipe than theirs."""
        check_same_preprocessing(
            recipe.replace(mean=None, std=None),
            self.recipe.replace(mean=None, std=None),
            name="the recipe",
            other="the prepared images",
            hint="prepare the sources again with it",
            error=PreprocessError,
        )
        return self.shards.load(self.images)

    def reload_images(self, error: DamagedError) -> RenderedImages:
        """Return the images from a new copy of their shard; DatasetError if they are not as prepared."""
        return self.shards.reload(self.images, error)

    def __call__(self, slices: Sequence[int] | None, policies: Policies) -> Volume:
        """Refuse to read pixels."""
        raise self._explain()

    def pieces(self, size: int, slices: Sequence[int] | None, policies: Policies) -> Iterator[Volume]:
        """Refuse to read pixels."""
        raise self._explain()

    def _explain(self) -> ReadError:
        return ReadError(
            f"the prepared folder has images made of {self.source}, not its pixels; read that file, if it is "
            "still there"
        )


def make_affine(recipe: Preprocess) -> npt.NDArray[np.float64]:
    """Return the affine of all series: at the recipe's own spacing, so that it counts their images."""
    spacing = np.broadcast_to(np.asarray(recipe.spacing or 1.0, np.float64), 3)
    return image_affine((spacing[0], spacing[1], spacing[2]))


def make_series(
    row: SourceRow, shards: ShardFiles | ShardCache, recipe: Preprocess, affine: npt.NDArray[np.float64]
) -> Series:
    """Return the series of a source that was prepared: (1 or 3, N, H, W), as the recipe counts its images."""
    images = row.images
    assert images is not None  # of prepared sources only
    count, channels = images.shape[:2]
    return Series(
        uid=row.series_uid or row.source,
        modality=row.modality,
        description="",
        shape=(channels, count, images.shape[-2], images.shape[-1]),
        affine=affine,
        space="image",
        files=(row.source,),
        format=_FORMAT,
        reader=PreparedReader(images, shards, recipe, row.source),
    )
