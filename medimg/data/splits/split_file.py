"""Splits on disk: which images are on which side, by hashes."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from medimg import __version__
from medimg.data.identifiers import ItemId, item_ids
from medimg.data.leakage.check_leaks import check_datasets, check_splits
from medimg.errors import DatasetError
from medimg.io.files.atomic import write_text

if TYPE_CHECKING:
    import os

    from medimg.data.dataset import ImageDataset
    from medimg.io.series import Series

__all__ = ["load_split", "save_split"]

OnAdditional: TypeAlias = Literal["raise", "ignore"]
#: [number of the series, first picture, the one after the last]
_Run: TypeAlias = list[int]

_WHAT: Final = "medimg split"
_SCHEMA: Final = 1
_MOST_BYTES: Final = 2**29
_SHOWN: Final = 3


def save_split(path: str | os.PathLike[str], **parts: ImageDataset) -> Path:
    """
    Write down which images are on which side, so that the same split can be had again.

    Parameters
    ----------
    path : path-like
        The file to write, JSON; an old one is replaced, as a whole or not at all.
    **parts : ImageDataset
        The sides by name, such as ``train=train, val=val, test=test``: parts of one data set.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    LeakageError
        If the sides share anything; pixels are compared where they were before.
    DatasetError
        If there is no side, they differ in what an item is, or nothing tells an image from others.

    Notes
    -----
    Images are named by hashes of their SOP Instance UIDs, those without by hashes of their files. Nothing
    says where they lie, what they show, or whose they are; only who has them can tell which they are.

    Examples
    --------
    >>> medimg.save_split("split.json", train=train, val=val, test=test)  # doctest: +SKIP
    """
    if not parts:
        raise DatasetError(
            "save_split takes the sides by name, such as train=train, test=test; none was given"
        )
    check_datasets(*parts.values())
    units = {part.unit for part in parts.values()}
    if len(units) > 1:
        raise DatasetError('some sides have unit="slice", some unit="series"; make them of one data set')
    if len(parts) > 1:
        check_splits(*parts.values())
    numbers: dict[int, int] = {}
    several: list[Series] = []
    counts: list[int] = []
    runs: dict[str, list[_Run]] = {}
    for name, part in parts.items():
        for item in part._items:
            series = part._labeled[item.source].series
            if id(series) not in numbers:
                numbers[id(series)] = len(several)
                several.append(series)
                counts.append(_count(part, item.source))
        runs[name] = _runs(part, numbers)
    named = item_ids(several, contents=True)
    content = {
        "what": _WHAT,
        "schema": _SCHEMA,
        "medimg": __version__,
        "unit": units.pop(),
        "series": [[*name, count] for name, count in zip(named, counts, strict=True)],
        "parts": runs,
    }
    content["sha256"] = _sha256(content)
    return write_text(path, json.dumps(content, separators=(",", ":")) + "\n")


def load_split(
    path: str | os.PathLike[str],
    dataset: ImageDataset,
    *,
    verify: bool = True,
    on_additional: OnAdditional = "raise",
) -> dict[str, ImageDataset]:
    """
    Return the sides of a saved split.

    Parameters
    ----------
    path : path-like
        What :func:`medimg.save_split` wrote.
    dataset : ImageDataset
        All images; they may lie elsewhere than when the split was saved, and be in another order.
    verify : bool
        Whether to read all files, and compare them with those that were split; images without UIDs always
        are.
    on_additional : {"raise", "ignore"}
        Whether images that are on no side are an error, or left out.

    Returns
    -------
    dict of str to ImageDataset
        The sides by name, in the order in which they were saved, as are the items of each.

    Raises
    ------
    DatasetError
        If the file is damaged, of another kind or a newer version, or images are missing, have changed, or
        are on no side. They are named by hash and counted.
    LeakageError
        If the sides share a patient or anything else by now, as after a change of the table.

    Examples
    --------
    >>> train, val, test = medimg.load_split("split.json", data).values()  # doctest: +SKIP
    """
    if on_additional not in get_args(OnAdditional):
        raise DatasetError(f'on_additional is "raise" or "ignore"; found {on_additional!r}')
    check_datasets(dataset)
    file = Path(path)
    saved = _read(file)
    if saved["unit"] != dataset.unit:
        raise DatasetError(
            f"{file} is a split of items of unit={saved['unit']!r}, the data set has unit={dataset.unit!r}"
        )
    sources = _matched(file, saved["series"], dataset, verify=verify)
    places = {(item.source, item.picture or 0): n for n, item in enumerate(dataset._items)}
    chosen = {
        name: [(sources[series], picture) for series, first, stop in runs for picture in range(first, stop)]
        for name, runs in saved["parts"].items()
    }
    lacking = sum(place not in places for wanted in chosen.values() for place in wanted)
    if lacking:
        raise DatasetError(
            f"{lacking} pictures of {file} are not in the data set; load it into the whole one"
        )
    additional = len(places) - len({place for wanted in chosen.values() for place in wanted})
    if additional and on_additional == "raise":
        raise DatasetError(
            f"{additional} of {len(places)} items are on no side of {file}; split and save again, or leave "
            'them out with on_additional="ignore"'
        )
    parts = {name: dataset.subset([places[place] for place in wanted]) for name, wanted in chosen.items()}
    if len(parts) > 1:
        check_splits(*parts.values())
    return parts


def _count(dataset: ImageDataset, source: int) -> int:
    """Return how many pictures the recipe makes of a series; 1 where the series is the item."""
    return dataset.preprocess.count(dataset._labeled[source].series) if dataset.unit == "slice" else 1


def _runs(part: ImageDataset, numbers: dict[int, int]) -> list[_Run]:
    """Return the items of a side, neighbors of one series together."""
    runs: list[_Run] = []
    for item in part._items:
        number, picture = numbers[id(part._labeled[item.source].series)], item.picture or 0
        if runs and runs[-1][0] == number and runs[-1][2] == picture:
            runs[-1][2] += 1
        else:
            runs.append([number, picture, picture + 1])
    return runs


def _matched(file: Path, saved: list[list[Any]], dataset: ImageDataset, *, verify: bool) -> list[int]:
    """Return the source of the data set that each saved series is."""
    sources = sorted({item.source for item in dataset._items})
    named = item_ids([dataset._labeled[n].series for n in sources], contents=verify)
    waiting: dict[str, list[tuple[int, ItemId]]] = defaultdict(list)
    for source, name in zip(reversed(sources), reversed(named), strict=True):
        waiting[name.id].append((source, name))
    missing, changed, other, found = [], [], [], []
    for key, content, count in saved:
        if not waiting[key]:
            missing.append(key)
            continue
        source, name = waiting[key].pop()
        found.append(source)
        if name.content and content and name.content != content:
            changed.append(key)
        if _count(dataset, source) != count:
            other.append(key)
    _refuse(file, len(saved), missing, "missing from the data set: give it all images that were split")
    _refuse(
        file,
        len(saved),
        changed,
        "other files than those that were split; if that is known, pass verify=False",
    )
    _refuse(
        file, len(saved), other, "made into another number of pictures: use the recipe that was split with"
    )
    return found


def _refuse(file: Path, total: int, keys: list[str], what: str) -> None:
    if keys:
        shown = ", ".join(key[:12] for key in keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")
        raise DatasetError(f"{len(keys)} of {total} series of {file} are {what}. By hash: {shown}")


def _sha256(content: dict[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read(file: Path) -> dict[str, Any]:
    try:
        size = file.stat().st_size
        text = file.read_bytes() if size <= _MOST_BYTES else b""
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DatasetError(f"{file} can't be opened: {why}; check the path") from None
    try:
        content: Any = json.loads(text)
        sha256 = _sha256(content) if isinstance(content, dict) else ""
    except (ValueError, RecursionError):
        content, sha256 = None, ""
    if not isinstance(content, dict) or content.get("what") != _WHAT:
        raise DatasetError(f"{file} is no split that medimg.save_split wrote, or it is damaged")
    schema = content.get("schema")
    if not isinstance(schema, int) or schema > _SCHEMA:
        raise DatasetError(
            f"{file} has schema {schema if isinstance(schema, int) else 'unknown'}, and this version of "
            f"medimg reads up to {_SCHEMA}; update medimg"
        )
    if content.get("sha256") != sha256 or not _is_sound(content):
        raise DatasetError(f"{file} is not as it was saved (its SHA-256 differs): it was damaged or changed")
    return content


def _is_sound(content: dict[str, Any]) -> bool:
    series, parts = content.get("series"), content.get("parts")
    if not isinstance(series, list) or not isinstance(parts, dict) or not parts:
        return False
    if not all(isinstance(s, list) and len(s) == 3 and _are(s[:2], str) and _are(s[2:], int) for s in series):
        return False
    for runs in parts.values():
        if not isinstance(runs, list) or not runs:
            return False
        for run in runs:
            if not isinstance(run, list) or len(run) != 3 or not _are(run, int):
                return False
            if not (0 <= run[0] < len(series) and 0 <= run[1] < run[2] <= series[run[0]][2]):
                return False
    return isinstance(content.get("unit"), str)


def _are(values: list[Any], kind: type) -> bool:
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
