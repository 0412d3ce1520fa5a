"""Keys of the image and feature caches: file contents, preprocessing, reading policies, medimg version."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Literal, NamedTuple, TypeAlias, cast

import numpy as np

from medimg import __version__
from medimg.core.content_hash import content_hash, json_text
from medimg.errors import DatasetError
from medimg.io.dicom.series.volume_reader import StackReader
from medimg.io.files.blob import VersionedFile
from medimg.io.files.object_storage import is_remote_url
from medimg.io.files.regular_file import is_regular_file
from medimg.io.memory_series import KnownContent
from medimg.io.series import FileReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from medimg.data._image_store import ImageStore
    from medimg.data.items import Item
    from medimg.io.files.listed_file import ListedFile
    from medimg.io.series import Policies, Series
    from medimg.preprocessing.preprocess import Preprocess

__all__ = [
    "SCHEMA",
    "Address",
    "Compare",
    "FileStates",
    "ItemKeys",
    "find_address",
    "hash_files",
    "stat_files",
]

#: How files are compared: by samples of their bytes, or by all of them.
Compare: TypeAlias = Literal["samples", "bytes"]

#: Inode, size in bytes, times of modification and of change in nanoseconds of each file.
FileStates: TypeAlias = tuple[tuple[int, int, int, int], ...]

#: Incremented when entries can no longer be read, or have another meaning.
SCHEMA: Final = 1

_BLOCK: Final = 4096
_BLOCKS: Final = 64
_WHOLE: Final = 2**18
#: Bytes of a file at a URL that is fetched as a whole rather than block by block.
_FETCHED: Final = 2**23
_THREADS: Final = 8
_STATE_DIGITS: Final = 15


@dataclass(frozen=True, slots=True)
class Address:
    """Where a cache stores results for a series; `secret`, the key of encrypted UIDs, is stored nowhere."""

    key: str  # 64 hexadecimal digits
    secret: bytes = field(repr=False)

    def cipher(self, text: bytes, purpose: bytes = b"") -> bytes:
        """Encrypt or decrypt one text per purpose: XOR with a SHAKE-256 stream."""
        stream = hashlib.shake_256(purpose + self.secret).digest(len(text))
        return (np.frombuffer(text, np.uint8) ^ np.frombuffer(stream, np.uint8)).tobytes()


def find_address(
    recipe: Preprocess, series: Series, policies: Policies, *, dtype: str, compare: Compare
) -> Address | None:
    """Return the address of a series' images, stored as `dtype`; None if its files can't identify them."""
    if policies.on_duplicate == "keep":
        return None  # stacks frames that are not in the plan
    if compare == "bytes" and _list_versions(series) is not None:
        raise DatasetError(
            f"{series.path} is on a DICOMweb server, whose instances are identified by their metadata; use a "
            'cache with compare="samples"'
        )
    content = hash_files(series, compare)
    if content is None:
        return None
    facts = [
        [SCHEMA, __version__, recipe.fingerprint, dtype, asdict(policies)],
        [series.format, "" if series.uid in series.files else series.uid],
        [list(series.shape), series.affine.tobytes().hex()],
        [content, _list_frames(series)],
    ]
    text = json_text(facts)
    return Address(content_hash(["name ", text]), bytes.fromhex(content_hash(["secret ", text])))


class _SourceKey(NamedTuple):
    """States and address of one series, found at the same time."""

    states: FileStates | None
    address: Address | None


class ItemKeys:
    """
    The cache address of each item of a dataset, for its files as they are when this is made.

    Images from a cache are rounded, so the dtype of the store's cache is part of the key. The recipe may
    differ from the store's in mean and standard deviation.
    """

    def __init__(self, items: Sequence[Item], store: ImageStore, recipe: Preprocess) -> None:
        self._items = items
        self._store = store
        self._recipe = recipe
        loader, sources = store.loader, sorted({item.source for item in items})
        dtype, compare = (
            (loader.cache.dtype, loader.cache.compare) if loader.cache else ("float32", "samples")
        )

        def find(source: int) -> _SourceKey:
            series = store.series[source]
            states = stat_files(series)
            return _SourceKey(
                states, find_address(recipe, series, loader.policies, dtype=dtype, compare=compare)
            )

        with ThreadPoolExecutor(_THREADS) as pool:
            self._keys = dict(zip(sources, pool.map(find, sources), strict=True))

    def __len__(self) -> int:
        return len(self._items)

    def address(self, item: int) -> Address | None:
        """Return the address of an item's series; None if its files can't identify it."""
        return self._keys[self._items[item].source].address

    def images(self, item: int) -> Sequence[int]:
        """Return the indices of an item's images in its series."""
        image = self._items[item].image
        if image is not None:
            return (image,)
        return range(self._recipe.count(self._store.series[self._items[item].source]))

    def select_unchanged(self, items: Iterable[int]) -> set[int]:
        """Return the items whose files have not changed since their addresses were found, or last read."""
        by_source: dict[int, list[int]] = defaultdict(list)
        for item in items:
            by_source[self._items[item].source].append(item)
        return {item for source, some in by_source.items() if self._is_unchanged(source) for item in some}

    def _is_unchanged(self, source: int) -> bool:
        before = self._keys[source].states
        return (
            before is not None
            and before == stat_files(self._store.series[source])
            and before == self._store.last_states(source)
        )


def stat_files(series: Series) -> FileStates | None:
    """
    Return the states of a series' files, without opening them; None if one is not on disk.

    An array in memory has a state that depends on its content only, a file at a URL one of its version, and
    an instance on a DICOMweb server one of its metadata.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> stat_files(SimpleNamespace(files=("nowhere.dcm",), reader=None)) is None
    True
    """
    if isinstance(series.reader, KnownContent):
        return ((int(series.reader.digest[:_STATE_DIGITS], 16), series.reader.nbytes, 0, 0),)
    versions = _list_versions(series)
    if versions is not None:
        return tuple((int(version[:_STATE_DIGITS], 16), 0, 0, 0) for version in versions)
    if is_remote_url(series.files[0]):
        # another version of such a file is not read
        files = _find_listed(series)
        if files is None or not all(file.digest for file in files):
            return None
        return tuple((int(file.digest[:_STATE_DIGITS], 16), file.length, 0, 0) for file in files)
    archives: dict[str, os.stat_result | None] = {}
    found = []
    for name in series.files:
        state = _stat_file(name)
        if state is None:
            archive = str(Path(name).parent)
            if archive not in archives:
                parents = (str(parent) for parent in Path(name).parents)
                archives[archive] = next(filter(None, map(_stat_file, parents)), None)
            state = archives[archive]
        if state is None:
            return None
        found.append((state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return tuple(found)


def _stat_file(name: str) -> os.stat_result | None:
    try:
        state = os.stat(name)  # noqa: PTH116  # a Path for each of many files takes longer than this
    except (OSError, ValueError):
        return None
    return state if stat.S_ISREG(state.st_mode) else None


def hash_files(series: Series, compare: Compare | Literal["blocks", "undated"]) -> list[str] | None:
    """
    Return a digest of each file of a series, in order, without decoding; None if one can't be read from disk.

    "samples": size, modification time, and bytes from the start, the middle and the end; all bytes of small
    files. Large files that are not DICOM have no identifier among these, so their path counts too. "blocks":
    size, and bytes from 64 positions, equal for copies in any folder; fewer are not enough, as uncompressed
    images of different people can have the same black borders there. "undated": as "samples", but equal for
    copies in any folder, for files with an identifier at their start. "bytes": all bytes and nothing else.
    An array in memory has one digest of its content. "samples" of a file at a URL is its name, size and
    version, for which nothing is read; None if its version is unknown. "samples" of instances on a DICOMweb
    server are their URLs and metadata; the other ones are None.
    """
    if isinstance(series.reader, KnownContent):
        return [series.reader.digest]
    versions = _list_versions(series)
    if versions is not None:
        return versions if compare == "samples" else None
    if is_remote_url(series.files[0]):
        return _hash_listed(series, compare)
    digests: dict[str, str] = {}
    found = []
    try:
        for name in series.files:
            path = _find_on_disk(name)
            if path is None:
                return None
            if path not in digests:
                digests[path] = _hash_file(path, compare, by_path=series.format != "DICOM" or path != name)
            # the name inside an archive
            found.append(digests[path] + content_hash(os.fsencode(name[len(path) :]))[:16])
    except (OSError, ValueError):
        return None
    return found


def _list_versions(series: Series) -> list[str] | None:
    """Return a digest of each file of a series, for which nothing is read; None if one has no version."""
    if "://" not in series.files[0] or not isinstance(series.reader, StackReader):
        return None
    plan = series.reader.plan
    instances = (*plan.instances, *(left.instance for left, _ in plan.duplicates))
    files: dict[str, object] = {instance.path: instance.blob.remote for instance in instances}
    found = [files.get(name) for name in series.files]
    versions = [file.identify() for file in found if isinstance(file, VersionedFile)]
    return versions if len(versions) == len(found) else None


def _find_listed(series: Series) -> list[ListedFile] | None:
    """Return the files at URLs, or the archives, that hold the files of a series; None if one is none."""
    reader = series.reader
    if isinstance(reader, StackReader):
        plan = reader.plan
        frames = [frame for channel in plan.channels for frame in channel]
        blobs = [frame.instance.blob for frame in (*frames, *(left for left, _ in plan.duplicates))]
    else:
        blobs = [reader.blob] if isinstance(reader, FileReader) else []
    by_name = {blob.name: blob.listed_file for blob in blobs}
    found = [by_name.get(name) for name in series.files]
    return [file for file in found if file is not None] if all(found) else None


def _hash_listed(series: Series, compare: Compare | Literal["blocks", "undated"]) -> list[str] | None:
    files = _find_listed(series)
    if files is None or (compare == "samples" and not all(file.digest for file in files)):
        return None
    digests: dict[ListedFile, str] = {}
    found = []
    for name, file in zip(series.files, files, strict=True):
        if file not in digests:
            digests[file] = file.digest if compare == "samples" else _hash_fetched(file, compare)
        member = name[len(file.name) :]
        found.append(digests[file] + content_hash(os.fsencode(member))[:16])
    return found


def _hash_fetched(listed: ListedFile, compare: Literal["bytes", "blocks", "undated"]) -> str:
    """Return the digest of a file at a URL, equal to that of its copy on disk."""
    with listed.open() as file:
        if compare == "blocks" and listed.length <= _FETCHED:
            return _hash_open_file(io.BytesIO(file.read()), listed.length, "", compare)
        return _hash_open_file(file, listed.length, "", compare)


def _find_on_disk(name: str) -> str | None:
    """Return the file of that name, or the archive that contains it."""
    if name.startswith("<"):
        return None
    if is_regular_file(name):
        return name
    return next((str(parent) for parent in Path(name).parents if is_regular_file(parent)), None)


def _hash_file(name: str, compare: Compare | Literal["blocks", "undated"], *, by_path: bool) -> str:
    with Path(name).open("rb", buffering=0) as file:
        state = os.fstat(file.fileno())
        dated = f"{state.st_mtime_ns} " if compare == "samples" else ""
        path = os.fsencode(os.path.realpath(name)) if by_path and compare == "samples" else b""
        return _hash_open_file(file, state.st_size, dated, compare, path)


def _hash_open_file(
    file: BinaryIO, size: int, dated: str, compare: Compare | Literal["blocks", "undated"], path: bytes = b""
) -> str:
    """Return the digest of an open file; large ones have `path` in it."""
    if compare == "bytes":
        return hashlib.file_digest(cast("io.BytesIO", file), "blake2b").hexdigest()
    digest = hashlib.blake2b(f"{size} {dated}".encode(), digest_size=32)
    if size <= _WHOLE:
        digest.update(_read_block(file, 0, _WHOLE))
        return digest.hexdigest()
    last = size - _BLOCK
    few, many = (0, size // 2, last), (last * n // (_BLOCKS - 1) for n in range(_BLOCKS))
    for start in many if compare == "blocks" else few:
        digest.update(_read_block(file, start, _BLOCK))
    digest.update(path)
    return digest.hexdigest()


def _read_block(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)


def _list_frames(series: Series) -> list[tuple[int, int, tuple[int, int] | None]]:
    """Return file, number and mosaic corner of each frame; empty if each file holds one frame only."""
    if not isinstance(series.reader, StackReader):
        return []
    # readers of single-frame files are not a tuple, and would build their frames one by one
    channels = [channel for channel in series.reader.plan.channels if isinstance(channel, tuple | list)]
    frames = [frame for channel in channels for frame in channel]
    if all(len(frame.instance.facts) == 1 for frame in frames):
        return []
    files = {name: n for n, name in enumerate(series.files)}
    return [(files[f.instance.path], f.facts.number, f.facts.corner) for f in frames]
