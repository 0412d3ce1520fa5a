"""Saved splits: the images of each subset, by hashes."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args, overload

from medimg import __version__
from medimg._public import set_module
from medimg._validation import check_choice, stored_unit
from medimg.core.content_hash import content_hash, json_text
from medimg.data.identifiers import ItemId, compute_item_ids
from medimg.data.leakage.check_leaks import check_splits, check_types
from medimg.errors import DatasetError, also
from medimg.io.files.local_copy import local_copy
from medimg.io.files.object_storage import check_location, show_location
from medimg.io.files.output import check_target, write_text
from medimg.io.files.regular_file import explain_irregular

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from medimg.data.dataset import ImageDataset
    from medimg.io.series import Series

__all__ = ["load_split", "save_split"]

OnAdditional: TypeAlias = Literal["raise", "ignore"]
#: [index of the series, first image, the one after the last]
_Run: TypeAlias = list[int]

_WHAT: Final = "medimg split"
_SCHEMA: Final = 1
_MOST_BYTES: Final = 2**29
_SHOWN: Final = 3


@overload
def save_split(path: os.PathLike[str], **parts: ImageDataset) -> Path: ...
@overload
def save_split(path: str, **parts: ImageDataset) -> Path | str: ...
@set_module("medimg")
def save_split(path: str | os.PathLike[str], **parts: ImageDataset) -> Path | str:
    """
    Save the images of each subset, so that the split can be restored.

    Parameters
    ----------
    path : path-like
        JSON file to write, or URL of object storage; an existing one is replaced atomically.
    **parts : ImageDataset
        Subsets of one dataset by name, such as ``train=train, val=val, test=test``.

    Returns
    -------
    pathlib.Path or str
        The file; of a URL the URL.

    Raises
    ------
    LeakageError
        If the subsets share anything; pixels are compared if they were before.
    DatasetError
        If there is no subset, they differ in unit, an image can't be identified, or `path` can't be written
        to.
    OSError
        If the file can't be written; of a URL a :class:`~medimg.errors.StoreError`.

    Notes
    -----
    Images are identified by hashes of their SOP Instance UIDs, those without by hashes of their files. The
    file holds no paths, labels or patients; only those who have the images can identify them.

    Examples
    --------
    >>> medimg.save_split("split.json", train=train, val=val, test=test)  # doctest: +SKIP
    """
    target = check_target("path", path, error=DatasetError)
    if not parts:
        raise DatasetError(
            "save_split takes the subsets by name, such as train=train, test=test; none was given"
        )
    check_types(*parts.values())
    units = {stored_unit(part.unit) for part in parts.values()}
    if len(units) > 1:
        raise DatasetError('some subsets have unit="image", some unit="series"; make them from one dataset')
    if len(parts) > 1:
        check_splits(*parts.values())
    numbers: dict[int, int] = {}
    several: list[Series] = []
    counts: list[int] = []
    runs: dict[str, list[_Run]] = {}
    for name, part in parts.items():
        for series in part.series:
            if id(series) not in numbers:
                numbers[id(series)] = len(several)
                several.append(series)
                counts.append(_count_images(part, series))
        runs[name] = _list_runs(part, numbers)
    ids = compute_item_ids(several, contents=True)
    content = {
        "what": _WHAT,
        "schema": _SCHEMA,
        "medimg": __version__,
        "unit": units.pop(),
        "series": [[*item_id, count] for item_id, count in zip(ids, counts, strict=True)],
        "parts": runs,
    }
    content["sha256"] = _hash_content(content)
    write_text(target, json.dumps(content, separators=(",", ":")) + "\n")
    return target


@set_module("medimg")
def load_split(
    path: str | os.PathLike[str],
    dataset: ImageDataset,
    *,
    verify: bool = True,
    on_additional: OnAdditional = "raise",
) -> dict[str, ImageDataset]:
    """
    Return the subsets of a saved split.

    Parameters
    ----------
    path : path-like
        File written by :func:`medimg.save_split`, or its URL.
    dataset : ImageDataset
        All images, at any paths and in any order.
    verify : bool
        Whether to read all files, and compare them with those that were split; images without UIDs always
        are.
    on_additional : {"raise", "ignore"}
        Whether images in no subset raise an error, or are left out.

    Returns
    -------
    dict of str to ImageDataset
        Subsets by name, in the order in which they were saved, as are the items of each.

    Raises
    ------
    DatasetError
        If the file is damaged, of another type or a newer version, or images are missing, have changed, or
        are in no subset. They are named by hash and counted.
    LeakageError
        If the subsets now share a patient or anything else, as after a change of the table.

    Examples
    --------
    >>> train, val, test = medimg.load_split("split.json", data).values()  # doctest: +SKIP
    """
    check_choice("on_additional", on_additional, get_args(OnAdditional), error=DatasetError)
    check_types(dataset)
    location = check_location("path", path, error=DatasetError)
    file = show_location(location)
    with local_copy(location, error=DatasetError, most=_MOST_BYTES) as local:
        saved = _read_file(local)
    if saved["unit"] != stored_unit(dataset.unit):
        unit = "series" if saved["unit"] == "series" else "image"
        raise DatasetError(
            f"{file} is a split of items of unit={unit!r}, the dataset has unit={dataset.unit!r}"
        )
    matched = _match_series(file, saved["series"], dataset, verify=verify)
    items = {
        (id(series), image or 0): n
        for n, (series, image) in enumerate(zip(dataset.series, dataset.image_indices, strict=True))
    }
    chosen = {
        name: [(id(matched[n]), image) for n, first, stop in runs for image in range(first, stop)]
        for name, runs in saved["parts"].items()
    }
    lacking = sum(key not in items for wanted in chosen.values() for key in wanted)
    if lacking:
        raise DatasetError(
            f"{lacking} images of {file} are not in the dataset; load it into the complete dataset"
        )
    additional = len(items) - len({key for wanted in chosen.values() for key in wanted})
    if additional and on_additional == "raise":
        raise DatasetError(
            f"{additional} of {len(items)} items are in no subset of {file}; split and save again, or leave "
            'them out with on_additional="ignore"'
        )
    parts = {name: dataset.subset([items[key] for key in wanted]) for name, wanted in chosen.items()}
    if len(parts) > 1:
        check_splits(*parts.values())
    return parts


def _count_images(dataset: ImageDataset, series: Series) -> int:
    """Return the number of images the recipe makes of a series; 1 if the series is the item."""
    return 1 if dataset.unit == "series" else dataset.preprocess.count(series)


def _list_runs(part: ImageDataset, numbers: dict[int, int]) -> list[_Run]:
    """Return the items of a subset, consecutive images of one series joined."""
    runs: list[_Run] = []
    for series, index in zip(part.series, part.image_indices, strict=True):
        number, image = numbers[id(series)], index or 0
        if runs and runs[-1][0] == number and runs[-1][2] == image:
            runs[-1][2] += 1
        else:
            runs.append([number, image, image + 1])
    return runs


def _match_series(file: str, saved: list[list[Any]], dataset: ImageDataset, *, verify: bool) -> list[Series]:
    """Return the series of the dataset that each saved series is."""
    several = list({id(series): series for series in dataset.series}.values())
    ids = compute_item_ids(several, contents=verify)
    waiting: dict[str, list[tuple[Series, ItemId]]] = defaultdict(list)
    for series, item_id in zip(reversed(several), reversed(ids), strict=True):
        waiting[item_id.id].append((series, item_id))
    missing, changed, other, found = [], [], [], []
    for key, content, count in saved:
        if not waiting[key]:
            missing.append(key)
            continue
        series, item_id = waiting[key].pop()
        found.append(series)
        if item_id.content and content and item_id.content != content:
            changed.append(key)
        if _count_images(dataset, series) != count:
            other.append(key)
    _raise_if_any(file, len(saved), missing, "missing from the dataset: include all images that were split")
    _raise_if_any(
        file,
        len(saved),
        changed,
        "of other files than those that were split; if that is intended, pass verify=False",
    )
    _raise_if_any(
        file, len(saved), other, "rendered into another number of images: use the preprocessing of the split"
    )
    return found


def _raise_if_any(file: str, total: int, keys: list[str], what: str) -> None:
    if keys:
        shown = ", ".join(key[:12] for key in keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")
        raise DatasetError(f"{len(keys)} of {total} series of {file} are {what}; by hash: {shown}")


def _hash_content(content: dict[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return content_hash(json_text(rest, compact=True))


def _read_file(file: Path) -> dict[str, Any]:
    irregular = explain_irregular(file)
    if irregular:
        raise DatasetError(f"{file} can't be opened: it is {irregular}; expected a file of medimg.save_split")
    try:
        size = file.stat().st_size
        text = file.read_bytes() if size <= _MOST_BYTES else b""
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise also(DatasetError, type(error))(f"{file} can't be opened: {why}; check the path") from None
    try:
        content: Any = json.loads(text)
        sha256 = _hash_content(content) if isinstance(content, dict) else ""
    except (ValueError, RecursionError):
        content, sha256 = None, ""
    if not isinstance(content, dict) or content.get("what") != _WHAT:
        raise DatasetError(f"{file} is not a file of medimg.save_split, or it is damaged")
    schema = content.get("schema")
    if not isinstance(schema, int) or schema > _SCHEMA:
        raise DatasetError(
            f"{file} has schema {schema if isinstance(schema, int) else 'unknown'}, and this version of "
            f"medimg reads up to {_SCHEMA}; update medimg"
        )
    if content.get("sha256") != sha256 or not _is_valid(content):
        raise DatasetError(f"{file} is not as it was saved (its SHA-256 differs): it was damaged or changed")
    return content


def _is_valid(content: dict[str, Any]) -> bool:
    series, parts = content.get("series"), content.get("parts")
    if not isinstance(series, list) or not isinstance(parts, dict) or not parts:
        return False
    if not all(
        isinstance(s, list) and len(s) == 3 and _are_all(s[:2], str) and _are_all(s[2:], int) for s in series
    ):
        return False
    for runs in parts.values():
        if not isinstance(runs, list) or not runs:
            return False
        for run in runs:
            if not isinstance(run, list) or len(run) != 3 or not _are_all(run, int):
                return False
            if not (0 <= run[0] < len(series) and 0 <= run[1] < run[2] <= series[run[0]][2]):
                return False
    return isinstance(content.get("unit"), str)


def _are_all(values: list[Any], expected: type) -> bool:
    return all(isinstance(value, expected) and not isinstance(value, bool) for value in values)
