"""Storing DICOM files on a server (STOW-RS), and what became of each."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from medimg._public import set_module
from medimg._tables import make_table
from medimg.errors import MedimgError, ReadError, StoreError, also
from medimg.io.dicom.header.attributes import get_identifier, quiet_pydicom
from medimg.io.dicom.header.open import open_dataset, to_tags
from medimg.io.dicomweb.dicom_json import get_json_number, get_json_value, parse_json
from medimg.io.dicomweb.multipart import MultipartBody
from medimg.io.dicomweb.retrieval import JSON
from medimg.io.dicomweb.service_url import check_uid
from medimg.io.dicomweb.transport import ServerAnswerError
from medimg.io.files.blob import Blob, as_blob
from medimg.io.sources import list_source_files

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

    from medimg.io.dicomweb.dicom_json import JsonObject
    from medimg.io.dicomweb.transport import Answer, Transport

__all__ = ["PRESENT", "FailedInstance", "StoreResult", "store_files"]

#: Failure Reason of an instance that the server has already.
PRESENT: Final = 0x0111

Cause: TypeAlias = Literal["server", "credentials", "refused", "unconfirmed"]

#: Files of one request, and their bytes.
_MAX_FILES: Final = 64
_MAX_BYTES: Final = 2**26
_MAX_ANSWER: Final = 2**24
#: Answers that can be due to one file of several, or to their size.
_REFUSED: Final = frozenset({400, 413, 415, 422, 500})
#: Answers that say nothing about what was sent: too many requests, and those of servers that fail.
_FAILING: Final = frozenset({429, *range(500, 600)})
_PIECE: Final = 2**20
_TAGS: Final = to_tags("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
#: Failure Reason (0008,1197): PS3.4 B.2.3 and PS3.7 annex C.
_REASONS: Final = {
    0x0110: "processing failure",
    PRESENT: "the server has an instance of this UID already",
    0x0112: "no such object instance",
    0x0117: "invalid object instance",
    0x0122: "the server does not store this SOP class",
    0x0124: "not authorized",
    0x0131: "no such argument",
    0x0213: "the server has no resources left",
    0xA700: "the server is out of resources",
    0xA710: "the server is out of resources",
    0xA900: "the dataset does not match its SOP class",
    0xC000: "the server can't understand the file",
    0xC122: "the server does not accept this transfer syntax",
}
_NOT_AUTHORIZED: Final = 0x0124
#: Resource limitation, and out of resources with its variants.
_NO_RESOURCES: Final = frozenset({0x0213, *range(0xA700, 0xA800)})


@set_module("medimg")
@dataclass(frozen=True, slots=True)
class FailedInstance:
    """
    An instance that was not stored.

    Attributes
    ----------
    source : str
        File that holds it, or ``<dataset n>`` or ``<bytes n>`` in memory.
    sop_instance_uid : str
        SOP Instance UID; "" if the file could not be read.
    reason : str
        Reason that the server, or reading the file, gives.
    code : int
        Failure Reason (0008,1197); 0 if the server gives none.
    cause : {"server", "credentials", "refused", "unconfirmed"}
        "server": it can't be reached, fails (429, 5xx), or has no resources left: send it again later.
        "credentials": it does not accept them, or they give no right to store. "refused": it refuses the
        instance, or the file can't be read: sending it again changes nothing. "unconfirmed": it does not say
        what became of it.
    """

    source: str
    sop_instance_uid: str = field(repr=False)
    reason: str
    code: int = 0
    cause: Cause = "refused"


@set_module("medimg")
@dataclass(frozen=True, slots=True, repr=False)
class StoreResult:
    """
    Result of :meth:`medimg.DicomWebServer.store`.

    Attributes
    ----------
    stored : tuple of str
        SOP Instance UIDs that the server confirms.
    failed : tuple of FailedInstance
        Instances that were not stored, with the reason.
    changed : tuple of str
        SOP Instance UIDs of those stored with other values than were sent, by the server's own statement.
    """

    stored: tuple[str, ...]
    failed: tuple[FailedInstance, ...] = ()
    changed: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"StoreResult({len(self.stored)} stored, {len(self.failed)} failed)"

    def to_pandas(self) -> pd.DataFrame:
        """
        Return a table with one row for each instance that was not stored.

        Returns
        -------
        pandas.DataFrame
            Columns ``source``, ``sop_instance_uid``, ``code``, ``cause`` and ``reason``.
        """
        columns = ["source", "sop_instance_uid", "code", "cause", "reason"]
        rows = [[getattr(one, name) for name in columns] for one in self.failed]
        return make_table(rows, columns)


class _File(NamedTuple):
    blob: Blob
    uid: str
    study: str
    size: int

    def read(self) -> Iterator[bytes]:
        """Yield the bytes; ReadError if there are other ones than before."""
        sent = 0
        with self.blob.open() as file:
            while piece := file.read(min(_PIECE, self.size - sent)):
                sent += len(piece)
                yield piece
        if sent < self.size:
            raise ReadError(f"{self.blob.name} became shorter while it was sent")


def store_files(transport: Transport, source: object, *, study: str | None, collects: bool) -> StoreResult:
    """Store files; see :meth:`medimg.DicomWebServer.store`."""
    path = "/studies" if study is None else f"/studies/{check_uid(study, 'Study Instance UID')}"
    blobs, absent = list_source_files(source)
    failed = [FailedInstance(one.path, "", one.reason) for one in absent]
    stored: list[str] = []
    changed: list[str] = []
    error: MedimgError | None = None
    for batch in _make_batches(map(as_blob, blobs), study, failed):
        if error is None:
            try:
                result = _store_some(transport, path, batch)
            except MedimgError as lost:
                error = lost
            else:
                stored += result.stored
                changed += result.changed
                failed += result.failed
                continue
        cause = _find_cause(error)
        failed += [FailedInstance(one.blob.name, one.uid, f"not sent: {error}", 0, cause) for one in batch]
    result = StoreResult(tuple(stored), tuple(failed), tuple(changed))
    if failed and not collects:
        first = failed[0]
        # errors of reading begin with the name
        named = first.reason if first.reason.startswith(first.source) else f"{first.source}: {first.reason}"
        raise _find_error_type(failed, error)(
            f"{len(failed)} of {len(failed) + len(stored)} instances were not stored on {transport.host}, "
            f'the first: {named}; pass on_error="collect" for the list of all',
            result,
        )
    return result


def _find_cause(error: MedimgError) -> Cause:
    """Return why what was being sent when an error was raised is not stored."""
    if isinstance(error, PermissionError):
        return "credentials"
    status = error.status if isinstance(error, ServerAnswerError) else 0
    if isinstance(error, ConnectionError | TimeoutError | EOFError) or status in _FAILING:
        return "server"
    return "refused" if status else "unconfirmed"


def _find_error_type(failed: Sequence[FailedInstance], error: MedimgError | None) -> type[StoreError]:
    causes = {one.cause for one in failed}
    if "server" in causes:
        return also(StoreError, TimeoutError if isinstance(error, TimeoutError) else ConnectionError)
    return also(StoreError, PermissionError) if "credentials" in causes else StoreError


def _make_batches(
    blobs: Iterator[Blob], study: str | None, failed: list[FailedInstance]
) -> Iterator[list[_File]]:
    """Yield files that are sent together, and note those that can't be read."""
    batch: list[_File] = []
    size = 0
    for blob in blobs:
        try:
            file = _inspect(blob, study)
        except MedimgError as error:
            failed.append(FailedInstance(blob.name, "", str(error)))
            continue
        if batch and (len(batch) == _MAX_FILES or size + file.size > _MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size
    if batch:
        yield batch


def _inspect(blob: Blob, study: str | None) -> _File:
    start = blob.start()
    if start[:2] == b"\x1f\x8b":
        blob = blob.unzipped()
    with quiet_pydicom():
        found = open_dataset(blob, tags=_TAGS)
        uids = {name: get_identifier(found, name) for name in ("SOPInstanceUID", "StudyInstanceUID")}
    uid = check_uid(uids["SOPInstanceUID"], f"SOP Instance UID of {blob.name}")
    if study is not None and uids["StudyInstanceUID"] != study:
        raise ReadError(f"{blob.name} is of another study than study=")
    if start[128:132] != b"DICM" and not blob.gzipped:
        raise ReadError(f"{blob.name} has no DICOM preamble and meta information; save it with them")
    return _File(blob, uid, uids["StudyInstanceUID"], blob.size())


def _store_some(transport: Transport, path: str, batch: Sequence[_File]) -> StoreResult:
    """Store files together; in halves if the server refuses all of them, as one may be the reason."""
    try:
        return _store_batch(transport, path, batch)
    except ServerAnswerError as error:
        if error.status not in _REFUSED:
            raise
        if len(batch) == 1:
            only = FailedInstance(batch[0].blob.name, batch[0].uid, str(error), 0, _find_cause(error))
            return StoreResult((), (only,))
    half = len(batch) // 2
    one, other = (_store_some(transport, path, part) for part in (batch[:half], batch[half:]))
    return StoreResult(one.stored + other.stored, one.failed + other.failed, one.changed + other.changed)


def _store_batch(transport: Transport, path: str, batch: Sequence[_File]) -> StoreResult:
    body = MultipartBody(secrets.token_hex(24), [(file.size, file.read) for file in batch])
    answer = transport.post(path, {**body.headers, "Accept": JSON}, body, most=_MAX_ANSWER)
    return _parse_answer(answer, batch, transport.host)


def _parse_answer(answer: Answer, batch: Sequence[_File], host: str) -> StoreResult:
    """Return what became of each file; one that the answer does not name was not stored."""
    found = parse_json(answer.body, f"what {host} says of what it stored")
    item: JsonObject = found[0] if found else {}
    stored = dict(_list_items(item, "00081199"))
    refused = dict(_list_items(item, "00081198"))
    failed = []
    for file in batch:
        if file.uid in refused:
            code = get_json_number(refused[file.uid], "00081197") or 0
            failed.append(
                FailedInstance(file.blob.name, file.uid, _explain(code), code, _find_code_cause(code))
            )
        elif file.uid not in stored:
            reason = f"the server does not confirm it ({HTTPStatus(answer.status).phrase})"
            cause: Cause = "refused" if answer.status == HTTPStatus.CONFLICT else "unconfirmed"
            failed.append(FailedInstance(file.blob.name, file.uid, reason, 0, cause))
    kept = [file.uid for file in batch if file.uid in stored and file.uid not in refused]
    changed = [uid for uid in kept if get_json_value(stored[uid], "00081196") not in ("", "0")]
    return StoreResult(tuple(dict.fromkeys(kept)), tuple(failed), tuple(dict.fromkeys(changed)))


def _list_items(item: JsonObject, tag: str) -> Iterator[tuple[str, JsonObject]]:
    """Yield the referenced instances of a sequence."""
    element: Any = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    for one in values if isinstance(values, list) else ():
        if isinstance(one, dict):
            yield get_json_value(one, "00081155"), one


def _find_code_cause(code: int) -> Cause:
    if code in _NO_RESOURCES:
        return "server"
    return "credentials" if code == _NOT_AUTHORIZED else "refused"


def _explain(code: int) -> str:
    known = _REASONS.get(code) or next(
        (text for number, text in _REASONS.items() if number == code & 0xFF00), "unknown reason"
    )
    return f"the server refuses it: {known} (0x{code:04X})"
