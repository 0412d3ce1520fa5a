"""Series of a server: found by their metadata, or listed by a search and read when they are first used."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from medimg.core.parallel import ordered_map
from medimg.errors import AmbiguousSeriesError, MedimgError, NotAnImageError, ReadError
from medimg.io.dicom.header.instance import ALL_HEADER_TAGS, read_instance
from medimg.io.dicom.series.build import build_all_series
from medimg.io.dicomweb.dicom_json import get_json_number, get_json_value, parse_json
from medimg.io.dicomweb.retrieval import JSON, RemoteInstance, make_header
from medimg.io.dicomweb.service_url import check_uid
from medimg.io.dicomweb.transport import ServerAnswerError
from medimg.io.files.blob import Blob
from medimg.io.series import Series

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from medimg.core import geometry
    from medimg.core.volume import Space
    from medimg.io.dicom.header.instance import Instance
    from medimg.io.dicomweb.dicom_json import JsonObject
    from medimg.io.dicomweb.retrieval import Retriever
    from medimg.io.dicomweb.service_url import ResourceUrl
    from medimg.io.series import SliceReader

__all__ = ["ListedSeries", "load_one", "read_series"]

#: Series, and bulk data of instances, that are read at the same time.
_AT_ONCE: Final = 8
_MAX_SERIES: Final = 2**14
_MAX_INSTANCES: Final = 2**17
_MAX_LIST: Final = 2**26
#: What servers answer that can't search.
_NO_SEARCH: Final = frozenset({400, 404, 405, 406, 501})
_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"

_Failed = tuple[str, MedimgError]


def read_series(retriever: Retriever, resource: ResourceUrl) -> tuple[list[Series], list[_Failed]]:
    """Return the series of a study, series or instance, and the instances that are no images or damaged."""
    if resource.series:
        return _build_series(retriever, [resource])
    listed = _list_series(retriever, resource)
    return _build_series(retriever, [resource] if listed is None else listed)


def _list_series(retriever: Retriever, study: ResourceUrl) -> list[ResourceUrl] | None:
    """Return the series of a study; None if the server can't search, as its metadata tell it, too."""
    try:
        answer = retriever.transport.get(
            f"{study.path}/series", JSON, most=_MAX_LIST, query=[("limit", str(_MAX_SERIES))], compressed=True
        )
    except ServerAnswerError as error:
        if error.status not in _NO_SEARCH:
            raise
        return None
    found = parse_json(answer.body, f"the list of series that {retriever.transport.host} gives")
    uids = dict.fromkeys(get_json_value(one, _SERIES) for one in found)
    return [study.in_series(check_uid(uid, "Series Instance UID")) for uid in uids] or None


def _build_series(
    retriever: Retriever, resources: Sequence[ResourceUrl]
) -> tuple[list[Series], list[_Failed]]:
    instances: list[Instance] = []
    failed: list[_Failed] = []
    for found, errors in ordered_map(lambda one: _read_instances(retriever, one), resources, _AT_ONCE):
        instances += found
        failed += errors
    series, unplaced = build_all_series(instances)
    return sorted(series, key=lambda one: one.path), failed + unplaced


def _read_instances(retriever: Retriever, resource: ResourceUrl) -> tuple[list[Instance], list[_Failed]]:
    """Return the instances that the metadata of a series, study or instance describe."""
    instances: list[Instance] = []
    failed: list[_Failed] = []
    for remote, found in ordered_map(_read_instance, _list_remote(retriever, resource), _AT_ONCE):
        if isinstance(found, MedimgError):
            failed.append((remote.resource.url, found))
        else:
            instances.append(found)
    if not instances and not failed:
        raise ReadError(f"{retriever.transport.host} has no instances of {resource.path}")
    return instances, failed


def _list_remote(retriever: Retriever, resource: ResourceUrl) -> Iterator[tuple[RemoteInstance, JsonObject]]:
    """Yield the instances that metadata describe, each once; ReadError if two are one with other metadata."""
    host = retriever.transport.host
    digests: dict[str, str] = {}
    count = 0
    for item in retriever.read_metadata(resource):
        remote = RemoteInstance.from_metadata(retriever, _locate(resource, item, host), item)
        known = digests.setdefault(remote.resource.path, remote.digest)
        if known != remote.digest:
            raise ReadError(
                f"{host} gives different metadata of one instance, {remote.resource.path}; remove one of "
                "them from the server"
            )
        if len(digests) == count:
            continue
        count += 1
        if count > _MAX_INSTANCES:
            raise ReadError(f"{resource.path} has more than {_MAX_INSTANCES} instances; it is not read")
        yield remote, item


def _locate(resource: ResourceUrl, item: JsonObject, host: str) -> ResourceUrl:
    """Return the URL of an instance; ReadError if it is not one of those that were asked for."""
    study, series, uid = (get_json_value(item, tag) for tag in (_STUDY, _SERIES, _INSTANCE))
    for asked, given in ((resource.study, study), (resource.series, series), (resource.instance, uid)):
        if asked and given and asked != given:
            raise ReadError(f"{host} answers with metadata of other instances than those of {resource.path}")
    return resource.in_series(resource.series or series).in_instance(resource.instance or uid)


def _read_instance(
    described: tuple[RemoteInstance, JsonObject],
) -> tuple[RemoteInstance, Instance | MedimgError]:
    """Return an instance, or the error that says why it is none."""
    remote, item = described
    where = remote.resource
    blob = Blob(where.url, remote=remote)
    try:
        # without the file, which may be needed only for its private sequences
        if not get_json_value(item, "00280010"):
            raise NotAnImageError(f"{where.url} is a DICOM object without pixels")
        return remote, read_instance(blob, make_header(item, ALL_HEADER_TAGS, remote.retriever.read_bulk))
    except NotAnImageError as error:
        return remote, error
    except ServerAnswerError:
        raise
    except MedimgError as error:
        if isinstance(error, ConnectionError | TimeoutError):
            raise
        return remote, error if where.url in str(error) else type(error)(f"{where.url}: {error}")


def load_one(retriever: Retriever, resource: ResourceUrl) -> Series:
    """Return the one series of a resource; AmbiguousSeriesError if there are several, ReadError if none."""
    found, failed = read_series(retriever, resource)
    lost = [error for _, error in failed if not isinstance(error, NotAnImageError)]
    if lost:
        raise lost[0]
    if len(found) == 1:
        return found[0]
    if not found:
        raise NotAnImageError(f"{resource.url} has no images" + (f": {failed[0][1]}" if failed else ""))
    lines = "\n".join(f"  {one.summary()}" for one in found[:20])
    raise AmbiguousSeriesError(
        f"{resource.url} has {len(found)} stacks of images, expected one:\n{lines}\n"
        "choose one of medimg.scan(url)"
    )


class ListedSeries(Series):
    """
    A series that a search found; its metadata are read when its shape, affine, files or pixels are used.

    If its instances form several stacks, these raise AmbiguousSeriesError.
    """

    __slots__ = ("_count", "_loaded", "_lock", "_resource", "_retriever")

    _count: int | None
    _loaded: Series | None
    _lock: threading.Lock
    _resource: ResourceUrl
    _retriever: Retriever

    def __init__(self, retriever: Retriever, resource: ResourceUrl, item: JsonObject) -> None:
        eager = {
            "uid": resource.series,
            "modality": get_json_value(item, "00080060"),
            "description": get_json_value(item, "0008103E"),
            "format": "DICOM",
            "patient_id": get_json_value(item, "00100020"),
            "study_uid": resource.study,
        }
        self._set(eager, retriever, resource, get_json_number(item, "00201209"))

    def _set(
        self, eager: dict[str, str], retriever: Retriever, resource: ResourceUrl, count: int | None
    ) -> None:
        own = {
            "_retriever": retriever, "_resource": resource, "_count": count, "_loaded": None,
            "_lock": threading.Lock(),
        }  # fmt: skip
        for name, value in (eager | own).items():
            self._assign(name, value)

    def _assign(self, name: str, value: object) -> None:
        # its base is frozen
        object.__setattr__(self, name, value)

    def __reduce__(self) -> Any:
        names = ("uid", "modality", "description", "format", "patient_id", "study_uid")
        eager = {name: getattr(self, name) for name in names}
        return _rebuild, (eager, self._retriever, self._resource, self._count)

    def __repr__(self) -> str:
        host = self._retriever.transport.host
        return f"Series(modality={self.modality!r}, instances={self._count}, on {host})"

    @property
    def path(self) -> str:
        """URL of the series."""
        return self._resource.url

    @property
    def is_listed(self) -> bool:
        """Whether the metadata are not read yet."""
        return self._loaded is None

    @property
    def instance_count(self) -> int | None:
        """Number of instances, if the search tells it."""
        return self._count

    def load(self) -> Series:
        """Return the series with its metadata, read once."""
        with self._lock:
            if self._loaded is None:
                self._assign("_loaded", load_one(self._retriever, self._resource))
            assert self._loaded is not None  # just loaded
            return self._loaded

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, D, H, W)."""
        return self.load().shape

    @property
    def affine(self) -> geometry.Affine:
        """(4, 4): index (d, h, w) to LPS millimeters."""
        return self.load().affine

    @property
    def space(self) -> Space:
        """Whether the affine maps to patient coordinates."""
        return self.load().space

    @property
    def files(self) -> tuple[str, ...]:
        """URLs of the instances."""
        return self.load().files

    @property
    def reader(self) -> SliceReader:
        """Reader of the pixels."""
        return self.load().reader

    @property
    def frame_times(self) -> tuple[float, ...] | None:
        """Seconds from the first time point."""
        return self.load().frame_times


def _rebuild(
    eager: dict[str, str], retriever: Retriever, resource: ResourceUrl, count: int | None
) -> ListedSeries:
    series = ListedSeries.__new__(ListedSeries)
    series._set(eager, retriever, resource, count)
    return series
