"""A DICOMweb server in a few lines, which can be told to misbehave, and counts what it sends."""

from __future__ import annotations

import io
import json
import ssl
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pydicom
import pydicom.encaps
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

STUDY, SERIES = "1.2.3", "1.2.3.4"
BOUNDARY = "boundary7"


class Reply(NamedTuple):
    status: int
    body: bytes = b""
    content_type: str = "application/dicom+json"
    headers: dict[str, str] = {}  # noqa: RUF012  # of a NamedTuple


class Seen(NamedTuple):
    """A request: its path without the base, its query, and its headers in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


Misbehavior = Callable[[Seen, BaseHTTPRequestHandler], Reply | bool | None]


def make_slice(number: int, *, series: str = SERIES, study: str = STUDY, size: int = 8) -> Dataset:
    """A CT slice whose pixels differ from those of all others."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    uid = f"{series}.{number + 1}"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID(uid)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.PatientName, dataset.PatientID = "Secret^Patient", "SECRET-ID"
    dataset.Modality, dataset.SeriesDescription = "CT", "Test series"
    dataset.StudyDate = "20240305"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImagePositionPatient = [0.1, -0.7, 1.5 * number]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [0.3, 0.7], 1.5
    dataset.InstanceNumber = number + 1
    dataset.Rows = dataset.Columns = size
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    pixels = np.random.default_rng(number).integers(0, 3000, (size, size), np.int16)
    dataset.PixelData = pixels.tobytes()
    return dataset


def make_multi_frame(count: int, *, size: int = 16, number: int = 0) -> Dataset:
    """A multi-frame CT of one instance, each frame with other pixels and a position of its own."""
    dataset = make_slice(number, size=size)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, dataset.SliceThickness
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for frame in range(count):
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = [0.1, -0.7, 1.5 * frame]
        group.PlanePositionSequence = [position]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(dataset, name)
    dataset.NumberOfFrames = count
    pixels = np.random.default_rng(number).integers(0, 3000, (count, size, size), np.int16)
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def get_frame(dataset: Dataset, number: int) -> bytes:
    """The bytes of a frame, counted from 1, as they are stored."""
    count = int(dataset.NumberOfFrames)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        frame: bytes = pydicom.encaps.get_frame(dataset.PixelData, number - 1, number_of_frames=count)
        return frame
    size = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
    data: bytes = dataset.PixelData[size * (number - 1) : size * number]
    return data


def to_file(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def to_json(dataset: Dataset) -> dict[str, Any]:
    plain = Dataset({tag: dataset[tag] for tag in list(dataset.keys()) if tag != 0x7FE00010})
    found: dict[str, Any] = plain.to_json_dict()
    return found


def multipart(*parts: bytes, content_type: str = "application/dicom") -> bytes:
    start = f"--{BOUNDARY}\r\nContent-Type: {content_type}\r\n\r\n".encode()
    return b"".join(start + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()


MULTIPART = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


class FakePacs:
    """Serves datasets; `misbehave` may answer a request itself, or return True to have done so."""

    def __init__(
        self,
        datasets: Sequence[Dataset] = (),
        misbehave: Misbehavior | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.datasets = list(datasets)
        self.misbehave = misbehave
        self.seen: list[Seen] = []
        self.stored: list[bytes] = []
        self.sent = 0  # bytes of bodies
        self._encoded: dict[int, tuple[Dataset, bytes, str]] = {}
        pacs = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                pacs.answer(self)

            do_POST = do_GET  # noqa: N815  # called by its name

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # broken connections are wanted
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._scheme = "http" if tls is None else "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}/dicom-web"

    @property
    def study_url(self) -> str:
        return f"{self.url}/studies/{STUDY}"

    @property
    def series_url(self) -> str:
        return f"{self.study_url}/series/{SERIES}"

    def count(self, end: str = "") -> int:
        """Requests whose path has `end` in it; of whole instances without it."""
        if end:
            return sum(end in one.path for one in self.seen)
        return sum(one.path.split("/")[-2] == "instances" for one in self.seen)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        length = int(handler.headers.get("Content-Length", 0))
        seen = Seen(
            handler.command,
            parts.path.removeprefix("/dicom-web"),
            dict(parse_qsl(parts.query)),
            {name.lower(): value for name, value in handler.headers.items()},
            handler.rfile.read(length),
        )
        self.seen.append(seen)
        reply = None if self.misbehave is None else self.misbehave(seen, handler)
        if reply is True:
            handler.close_connection = True
            return
        if reply is None or reply is False:
            reply = self.serve(seen)
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Type", reply.content_type)
        handler.send_header("Content-Length", str(len(reply.body)))
        handler.end_headers()
        handler.wfile.write(reply.body)
        self.sent += len(reply.body)

    def serve(self, seen: Seen) -> Reply:
        names = seen.path.strip("/").split("/")
        if seen.method == "POST":
            return self._store(seen)
        keys = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}
        if "frames" in names:
            return self._serve_frames(names)
        is_metadata = names[-1] == "metadata"
        names = names[:-1] if is_metadata else names
        pairs = dict(zip(names[::2], names[1::2], strict=False))
        found = [d for d in self.datasets if all(d.get(keys[n]) == uid for n, uid in pairs.items())]
        if len(names) % 2:
            return self._search(found, seen.query)
        if not found:
            return Reply(404)
        if is_metadata:
            return Reply(200, f"[{','.join(self._encode(d)[2] for d in found)}]".encode())
        return Reply(200, multipart(*(self._encode(d)[1] for d in found)), MULTIPART)

    def _serve_frames(self, names: list[str]) -> Reply:
        found = [d for d in self.datasets if d.SOPInstanceUID == names[5]]
        numbers = [int(number) for number in names[-1].split(",")]
        if not found or max(numbers) > found[0].get("NumberOfFrames", 1):
            return Reply(404)
        syntax = found[0].file_meta.TransferSyntaxUID
        kind = "image/jls" if syntax.is_encapsulated else "application/octet-stream"
        body = multipart(
            *(get_frame(found[0], number) for number in numbers),
            content_type=f"{kind}; transfer-syntax={syntax}",
        )
        return Reply(200, body, f'multipart/related; type="{kind}"; boundary={BOUNDARY}')

    def forget(self) -> None:
        """Encode datasets again that were changed, and forget what was sent."""
        self._encoded.clear()

    def _encode(self, dataset: Dataset) -> tuple[Dataset, bytes, str]:
        """File and JSON of a dataset, made once: it must not be changed once it was served."""
        if id(dataset) not in self._encoded:
            self._encoded[id(dataset)] = dataset, to_file(dataset), json.dumps(to_json(dataset))
        return self._encoded[id(dataset)]

    def _search(self, found: list[Dataset], query: dict[str, str]) -> Reply:
        keywords = {"Modality", "PatientID", "SeriesDescription", "StudyDate"} & query.keys()
        series: dict[tuple[str, str], list[Dataset]] = {}
        for dataset in found:
            if all(str(dataset.get(name)) == query[name] for name in keywords):
                series.setdefault((dataset.StudyInstanceUID, dataset.SeriesInstanceUID), []).append(dataset)
        items = []
        for members in series.values():
            one = Dataset()
            for name in (
                "StudyInstanceUID",
                "SeriesInstanceUID",
                "Modality",
                "SeriesDescription",
                "PatientID",
            ):
                setattr(one, name, getattr(members[0], name))
            one.NumberOfSeriesRelatedInstances = len(members)
            items.append(one.to_json_dict())
        start = int(query.get("offset", 0))
        page = items[start : start + int(query.get("limit", 100))]
        return Reply(200, json.dumps(page).encode()) if page else Reply(204)

    def _store(self, seen: Seen) -> Reply:
        boundary = seen.headers["content-type"].partition("boundary=")[2].encode()
        references = []
        for part in seen.body.split(b"--" + boundary)[1:-1]:
            data = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            self.stored.append(data)
            item = Dataset()
            item.ReferencedSOPInstanceUID = pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID
            references.append(item)
        answer = Dataset()
        answer.ReferencedSOPSequence = references
        return Reply(200, json.dumps([answer.to_json_dict()]).encode())
