"""The manifest of a prepared folder: a Parquet table with a row for each source, and the recipe."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from medimg.core.content_hash import content_hash, json_text
from medimg.errors import DatasetError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from medimg.io.files.storage_folder import StorageFolder

__all__ = [
    "FAILED",
    "MANIFEST",
    "PREPARED",
    "Manifest",
    "PreparedImages",
    "SourceRow",
    "escape_text",
    "load_arrow",
]

#: Name of the table in the folder.
MANIFEST: Final = "manifest.parquet"
#: Outcomes of a source.
PREPARED: Final = "prepared"
FAILED: Final = "failed"

#: Incremented when manifests can no longer be read, or have another meaning.
_SCHEMA: Final = 1
_META: Final = b"medimg"
_MOST_BYTES: Final = 2**32
_DTYPES: Final = {"uint8": 1, "float16": 2, "float32": 4}
_MOST_OFFSET: Final = 2**48
#: A table has at most so many values in a column, and one more for each byte of its file, each with so many
#: bytes of text on average; and so many rows, and one more for so many bytes, as keys can't be compressed.
_FEW_VALUES: Final = 2**17
_LEAST_ROW: Final = 16
_TEXT_FOR_VALUE: Final = 2**10
_SHA256: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PreparedImages:
    """
    Where the images of one source are.

    Attributes
    ----------
    shard : str
        SHA-256 of the shard, which is its name.
    offset, size : int
        Position and size, in bytes, of the array in the shard.
    shape : tuple of int
        (N, 1 or 3, *size).
    dtype : str
        "float16", "uint8" or "float32".
    crc32 : tuple of int
        CRC-32 of each image.
    slices : tuple of int
        Index of each image's slice in its volume.
    sop_instance_uids : tuple of str
        SOP Instance UID of each image's slice; "" if there is none.
    digest : str
        SHA-256 of the array.
    """

    shard: str
    offset: int
    size: int
    shape: tuple[int, ...]
    dtype: str
    crc32: tuple[int, ...] = field(repr=False)
    slices: tuple[int, ...] = field(repr=False)
    sop_instance_uids: tuple[str, ...] = field(repr=False)
    digest: str

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> PreparedImages:
        """Return it from a row of the table; DatasetError if it contradicts itself."""
        given: dict[str, Any] = {one.name: values[one.name] for one in fields(cls)}
        lists = ("shape", "crc32", "slices", "sop_instance_uids")
        given |= {name: tuple(given[name] or ()) for name in lists}
        # many rows have the same ones
        found = cls(**given | {name: _share(given[name]) for name in ("shard", "dtype", "shape", "slices")})
        found._check()
        return found

    def _check(self) -> None:
        lists = (self.shape, self.crc32, self.slices, self.sop_instance_uids)
        is_whole = (
            None not in (self.offset, self.size, *itertools.chain(*lists))
            and self.dtype in _DTYPES
            and len(self.shape) > 2
            and min(self.shape) > 0
            and math.prod(self.shape) * _DTYPES[self.dtype] == self.size
            and 0 <= self.offset < _MOST_OFFSET
            and {len(one) for one in lists[1:]} == {self.shape[0]}
            and all(_SHA256.fullmatch(text or "") for text in (self.shard, self.digest))
        )
        if not is_whole:
            raise DatasetError("a row of the manifest contradicts itself; prepare the folder again")

    def has_shape_of(self, image_shape: tuple[int, ...]) -> bool:
        """Whether each image is one of a recipe, (C, *size), with one channel or all."""
        return self.shape[2:] == image_shape[1:] and self.shape[1] in (1, image_shape[0])


@lru_cache(4096)
def _share(value: Any) -> Any:
    """Return the first one of equal values."""
    return value


@dataclass(frozen=True, slots=True)
class SourceRow:
    """
    What became of one source.

    Attributes
    ----------
    key : str
        Digest of what the images depend on: files, recipe, reading policies and medimg's version.
    source : str
        Path or URL.
    outcome : str
        "prepared" or "failed".
    error : str
        Why it failed.
    images : PreparedImages or None
        Where its images are.
    series_uid, modality : str
        Of its headers.
    """

    key: str
    source: str = field(repr=False)
    outcome: str
    error: str = ""
    images: PreparedImages | None = None
    series_uid: str = field(default="", repr=False)
    modality: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """
    The rows of a prepared folder with the label, patient and domain of each, and what holds for all.

    `labels` are class names, tuples of numbers for "multilabel", or None.
    """

    rows: tuple[SourceRow, ...]
    labels: tuple[Any, ...]
    patients: tuple[str, ...] = field(repr=False)
    domains: tuple[str, ...]
    facts: dict[str, Any]  # recipe, classes, task, reading

    def to_bytes(self) -> bytes:
        """Return the Parquet file."""
        arrow, parquet = load_arrow()
        table = arrow.Table.from_pydict(self._columns(), schema=_make_schema(arrow))
        meta = {**self.facts, "schema": _SCHEMA}
        meta["sha256"] = content_hash(json_text(meta))
        table = table.replace_schema_metadata({_META: json_text(meta).encode()})
        out = io.BytesIO()
        parquet.write_table(table, out, compression="zstd")
        return out.getvalue()

    def _columns(self) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {
            name: [escape_text(getattr(row, name)) for row in self.rows]
            for name in ("key", "source", "outcome", "error", "series_uid", "modality")
        }
        columns["label"] = [_label_text(label) for label in self.labels]
        columns["patient"] = list(map(escape_text, self.patients))
        columns["domain"] = list(map(escape_text, self.domains))
        for one in fields(PreparedImages):
            columns[one.name] = [
                None if row.images is None else _as_list(getattr(row.images, one.name)) for row in self.rows
            ]
        return columns

    @classmethod
    def read(cls, folder: StorageFolder, name: str) -> Manifest:
        """Read a manifest of a folder; ReadError if there is none."""
        return cls.from_bytes(folder.read_bytes(name, _MOST_BYTES), f"{folder}/{name}")

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Manifest:
        """Read a manifest; DatasetError if it is damaged, of another schema, or no manifest."""
        arrow, parquet = load_arrow()
        expected = "expected the manifest of a folder that medimg.prepare wrote"
        try:
            table = _read_table(parquet, data, name)
            meta = json.loads((table.schema.metadata or {})[_META])
            rows = table.select(_make_schema(arrow).names).cast(_make_schema(arrow)).to_pylist()
        except DatasetError:
            raise
        except (arrow.ArrowException, OSError, KeyError, ValueError, RecursionError) as error:
            raise DatasetError(f"{name} can't be read ({type(error).__name__}); {expected}") from None
        stated = meta.pop("sha256", None) if isinstance(meta, dict) else None
        if stated != content_hash(json_text(meta)):
            raise DatasetError(f"{name} is damaged: its recipe does not match its checksum; {expected}")
        if meta.pop("schema", None) != _SCHEMA:
            raise DatasetError(f"{name} was written by another version of medimg; prepare the folder again")
        task = meta.get("task")
        return cls(
            rows=tuple(_make_row(row) for row in rows),
            labels=tuple(_parse_label(row["label"], task) for row in rows),
            patients=tuple(row["patient"] for row in rows),
            domains=tuple(row["domain"] for row in rows),
            facts=meta,
        )


def _read_table(parquet: Any, data: bytes, name: str) -> Any:
    """Read a table whose texts stay as they are stored, each once; DatasetError if it is far larger."""
    from pyarrow import compute

    file = parquet.ParquetFile(io.BytesIO(data))
    groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
    columns = [group.column(n) for group in groups for n in range(group.num_columns)]
    texts = {one.path_in_schema for one in columns if one.physical_type == "BYTE_ARRAY"}
    most = _FEW_VALUES + len(data)
    is_small = file.metadata.num_rows <= _FEW_VALUES + len(data) // _LEAST_ROW
    table = None
    if is_small and all(one.num_values <= most for one in columns):
        table = parquet.read_table(io.BytesIO(data), read_dictionary=sorted(texts))
        length = sum(_count_text(compute, chunk) for column in table.columns for chunk in column.chunks)
    if table is None or length > _TEXT_FOR_VALUE * most:
        raise DatasetError(f"{name} would take far more memory than its {len(data)} bytes; it is damaged")
    return table


def _count_text(compute: Any, array: Any) -> int:
    """Return the length of all texts of a column, without making them."""
    if hasattr(array, "flatten") and hasattr(array, "offsets"):
        array = array.flatten()
    if not hasattr(array, "dictionary"):
        return 0
    return int(compute.sum(compute.binary_length(array.dictionary).take(array.indices)).as_py() or 0)


def _make_row(values: dict[str, Any]) -> SourceRow:
    plain = {name: values[name] for name in ("key", "source", "outcome", "error", "series_uid", "modality")}
    is_prepared = plain["outcome"] == PREPARED
    if None in (*plain.values(), values["patient"], values["domain"]):
        raise DatasetError("a row of the manifest lacks a value; prepare the folder again")
    if not is_prepared and plain["outcome"] != FAILED:
        raise DatasetError("a row of the manifest has an unknown outcome; prepare the folder again")
    return SourceRow(**plain, images=PreparedImages.from_values(values) if is_prepared else None)


def _label_text(label: object) -> str | None:
    if label is None:
        return None
    return json.dumps(list(label)) if isinstance(label, tuple) else escape_text(str(label))


def escape_text(text: str) -> str:
    """Return a text as it can be encoded: names of files that are not UTF-8 contain surrogates."""
    return text.encode(errors="backslashreplace").decode()


def _parse_label(text: str | None, task: object) -> Any:
    if text is None or task != "multilabel":
        return text
    try:
        return tuple(float(value) for value in json.loads(text))
    except (ValueError, TypeError):
        raise DatasetError(f"the manifest has a label that is no list of numbers: {text[:40]!r}") from None


def _as_list(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _make_schema(arrow: Any) -> Any:
    text, number = arrow.string(), arrow.int64()
    return arrow.schema(
        [
            *((name, text) for name in ("key", "source", "outcome", "error", "series_uid", "modality")),
            ("label", text),
            ("patient", text),
            ("domain", text),
            ("shard", text),
            ("offset", number),
            ("size", number),
            ("shape", arrow.list_(number)),
            ("dtype", text),
            ("crc32", arrow.list_(arrow.uint32())),
            ("slices", arrow.list_(arrow.int32())),
            ("sop_instance_uids", arrow.list_(text)),
            ("digest", text),
        ]
    )


def load_arrow() -> tuple[Any, Any]:
    """Return pyarrow and its module for Parquet."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            f"manifests need pyarrow, which can't be imported ({error}); install it with: "
            'pip install "medimg[prepare]"'
        ) from error
    return pyarrow, pyarrow.parquet


def join_rows(parts: Iterable[Sequence[SourceRow]]) -> dict[str, SourceRow]:
    """Return the rows of several parts by key; of those with one key, a prepared one."""
    found: dict[str, SourceRow] = {}
    for rows in parts:
        for row in rows:
            if row.key not in found or row.outcome == PREPARED:
                found[row.key] = row
    return found
