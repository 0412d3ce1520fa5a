"""What a dataset is made of that is read from a prepared folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medimg.core.read_report import Skipped
from medimg.data._labels import LabeledSeries
from medimg.data.class_names import sort_classes
from medimg.data.prepared.reader import ShardFiles, make_affine, make_series
from medimg.data.prepared.shard import file_size
from medimg.data.prepared.shard_cache import ShardCache
from medimg.data.prepared.source_table import MANIFEST, Manifest
from medimg.errors import DatasetError, MedimgError, ReadError
from medimg.io.files.object_storage import convert_failure
from medimg.io.files.storage_folder import StorageFolder
from medimg.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from medimg.data.items import Task
    from medimg.data.prepared.source_table import SourceRow

__all__ = ["OpenedFolder", "open_prepared"]


@dataclass(frozen=True, slots=True)
class OpenedFolder:
    """The series of a prepared folder with their labels, and what holds for all."""

    labeled: list[LabeledSeries] = field(repr=False)
    classes: tuple[str, ...]
    task: Task
    recipe: Preprocess
    reading: Mapping[str, Any]
    skipped: list[Skipped]


def open_prepared(
    where: str | os.PathLike[str], cache: Path | None, cache_bytes: int | None = None
) -> OpenedFolder:
    """Read the manifest of a folder; `cache`, up to `cache_bytes`, is for shards of object storage."""
    folder = StorageFolder.of("where", where)
    if folder.is_remote and cache is None:
        raise DatasetError(
            f"{folder} is in object storage, whose shards are copied before they are used; pass cache=, a "
            "folder on disk with room for them"
        )
    try:
        manifest = Manifest.read(folder, MANIFEST)
    except ReadError as error:
        raise type(convert_failure(error, DatasetError))(
            f"{folder} has no manifest that can be read; expected a folder that medimg.prepare wrote, and "
            f"finished ({error})"
        ) from error
    recipe, task, classes = _read_facts(manifest)
    shape = recipe.image_shape
    if not all(row.images.has_shape_of(shape) for row in manifest.rows if row.images is not None):
        raise DatasetError(
            f"the manifest of {folder} has images of another shape than its recipe makes; prepare the folder "
            "again"
        )
    shards = _find_shards(folder, cache, cache_bytes, manifest.rows)
    affine = make_affine(recipe)
    labeled = [
        LabeledSeries(make_series(row, shards, recipe, affine), label, patient, domain)
        for row, label, patient, domain in zip(
            manifest.rows, manifest.labels, manifest.patients, manifest.domains, strict=True
        )
        if row.images is not None
    ]
    if not labeled:
        raise DatasetError(f"{folder} has no images: none of its sources could be prepared")
    found = classes or tuple(sort_classes({str(one.label) for one in labeled if one.label is not None}))
    skipped = [Skipped(row.source, row.error) for row in manifest.rows if row.images is None]
    return OpenedFolder(labeled, found, task, recipe, manifest.facts.get("reading") or {}, skipped)


def _find_shards(
    folder: StorageFolder, cache: Path | None, most: int | None, rows: Sequence[SourceRow]
) -> ShardFiles | ShardCache:
    if cache is None or not folder.is_remote:
        return ShardFiles(folder)
    sizes: dict[str, int] = {}
    for row in rows:
        if row.images is not None:
            end = row.images.offset + row.images.size
            sizes[row.images.shard] = max(sizes.get(row.images.shard, 0), end)
    return ShardCache(folder, cache, most, {name: file_size(end) for name, end in sizes.items()})


def _read_facts(manifest: Manifest) -> tuple[Preprocess, Task, tuple[str, ...]]:
    facts = manifest.facts
    task, classes = facts.get("task"), facts.get("classes")
    is_list = classes is None or (isinstance(classes, list) and all(isinstance(one, str) for one in classes))
    if task not in ("multiclass", "multilabel") or not is_list:
        raise DatasetError("the manifest states no known task and classes; prepare the folder again")
    try:
        recipe = Preprocess.from_dict(facts["recipe"])
    except (MedimgError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"the manifest has no valid recipe ({error}); prepare the folder again") from error
    return recipe, task, tuple(classes or ())
