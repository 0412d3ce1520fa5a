"""What goes wrong on a network is repeated if that helps, and else a clear error, soon."""

from __future__ import annotations

import ssl
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import medimg
from medimg.errors import MedimgError, ReadError
from medimg.io.files import byte_ranges, listed_file
from medimg.io.files.remote_folder import find_blobs, open_blob
from tests.certificates import make_certificate
from tests.dicom_files import write_stack
from tests.storage import Disturbance, Request, Server, Storage, WebFolder

DATA = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
SECRET = "geheim"


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_ranges, "_FIRST_PAUSE_S", 0.01)


@pytest.fixture(params=["s3", "web"])
def place(request: pytest.FixtureRequest) -> tuple[Server, str]:
    """A server with one file, and its URL."""
    if request.param == "s3":
        storage: Storage = request.getfixturevalue("storage")
        return storage.server, storage.put("folder/file", DATA)
    server, folder = request.getfixturevalue("web")
    folder.put("folder/file", DATA)
    return server, f"{server.url}/folder/file"


def answer(status: str, *headers: tuple[str, str], body: Iterable[bytes] = ()) -> Disturbance:
    pieces = list(body)
    if "Content-Length" not in dict(headers):
        headers = (*headers, ("Content-Length", str(sum(map(len, pieces)))))
    return status, list(headers), pieces


class Times:
    """Disturbs the first requests of objects only."""

    def __init__(self, count: int, disturbance: Disturbance) -> None:
        self.left, self.disturbance = count, disturbance

    def __call__(self, request: Request) -> Disturbance | None:
        if request.method != "GET" or "file" not in request.path or not self.left:
            return None
        self.left -= 1
        return self.disturbance


@pytest.mark.parametrize("status", ["503 SLOW DOWN", "429 MANY", "500 INTERNAL"])
def test_what_passes_is_repeated(place: tuple[Server, str], status: str) -> None:
    server, url = place
    blob = open_blob(url)
    code = "SlowDown" if status[:3] != "500" else "InternalError"
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>later</Message></Error>".encode()
    server.traffic.disturb = Times(2, answer(status, ("Content-Type", "application/xml"), body=[body]))
    assert blob.fetched().data == DATA


def test_a_body_that_ends_early_is_fetched_again(place: tuple[Server, str]) -> None:
    server, url = place
    blob = open_blob(url)
    cut = answer(
        "206 PARTIAL",
        (
            "Content-Range",
            f"bytes 65536-{len(DATA) - 1}/{len(DATA)}"
            if "http" in url
            else f"bytes 0-{len(DATA) - 1}/{len(DATA)}",
        ),
        ("Content-Length", str(len(DATA))),
        body=[DATA[:10]],
    )
    server.traffic.disturb = Times(1, cut)
    assert blob.fetched().data == DATA
    server.traffic.disturb = Times(100, cut)
    with pytest.raises(ReadError, match="can't be read") as caught:
        open_blob(url).fetched()
    assert isinstance(caught.value, ConnectionError)
    assert len(server.traffic.requests) < 60


@pytest.mark.parametrize(
    ("status", "kind", "match"),
    [
        ("403 FORBIDDEN", PermissionError, "may not be read with these credentials"),
        ("401 UNAUTHORIZED", PermissionError, "may not be read with these credentials"),
        ("404 NOT FOUND", FileNotFoundError, "there is no file"),
        ("503 SLOW", ConnectionError, "HTTP 503"),
        ("418 TEAPOT", ConnectionError, "HTTP 418"),
        ("206 OTHER", ConnectionError, "HTTP 206"),
    ],
)
def test_answers_of_web_servers(
    web: tuple[Server, WebFolder], status: str, kind: type[Exception], match: str
) -> None:
    server, folder = web
    folder.put("file", DATA)
    server.traffic.disturb = lambda request: answer(status, body=[SECRET.encode()])
    with pytest.raises(kind, match=match) as caught:
        medimg.read(f"{server.url}/file?token={SECRET}")
    assert isinstance(caught.value, ReadError)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("denied", ["HEAD", "GET"])
def test_denied_by_object_storage(storage: Storage, denied: str) -> None:
    url = storage.put("a/file", DATA)
    body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>no</Message></Error>"
    storage.traffic.disturb = lambda request: (
        answer("403 FORBIDDEN", ("Content-Type", "application/xml"), body=[body] if denied == "GET" else [])
        if request.method == denied
        else None
    )
    with pytest.raises(PermissionError, match="may not be read with these credentials"):
        medimg.read(url)


def test_what_is_not_there(storage: Storage) -> None:
    storage.put("a/file", DATA)
    for url in (
        f"{storage.url}/absent",
        "s3://no-such-bucket/a",
        f"{storage.url}/a/fil",
        f"{storage.url}/b/",
    ):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            medimg.scan(url)
    with pytest.raises(ReadError):
        medimg.scan("s3://")


def test_a_file_that_is_no_image(place: tuple[Server, str]) -> None:
    with pytest.raises(medimg.errors.NotAnImageError, match="file is none of DICOM"):
        medimg.read(place[1])


def test_a_server_that_is_silent(place: tuple[Server, str], monkeypatch: pytest.MonkeyPatch) -> None:
    server, url = place
    blob = open_blob(url)
    monkeypatch.setattr(byte_ranges, "_TIMEOUT_S", 0.5)
    monkeypatch.setattr(byte_ranges, "_LEAST_RATE", 2**30)

    def wait(request: Request) -> None:
        time.sleep(1.5)

    server.traffic.disturb = wait
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="was not read in time"):
        blob.fetched()
    assert time.monotonic() - began < 30


def test_a_server_that_sends_a_little_now_and_then(
    web: tuple[Server, WebFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, folder = web
    folder.put("file", DATA)
    blob = open_blob(f"{server.url}/file")
    monkeypatch.setattr(byte_ranges, "_TIMEOUT_S", 0.5)
    monkeypatch.setattr(byte_ranges, "_LEAST_RATE", 2**30)

    def drip() -> Iterator[bytes]:
        for _ in range(20):
            time.sleep(0.1)
            yield b"x"

    headers = [("Content-Length", str(len(DATA)))]
    server.traffic.disturb = lambda request: ("200 OK", headers, drip())
    with pytest.raises(TimeoutError, match="was not read in time"):
        blob.fetched()


def test_a_server_that_is_killed_and_started_again(tmp_path: Path) -> None:
    folder = WebFolder()
    server = Server(folder)
    files = write_stack(tmp_path, [float(z) for z in range(40)])
    for path in files:
        folder.put(path.name, path.read_bytes())
    urls = [f"{server.url}/{path.name}" for path in files]
    found = medimg.scan(urls)
    assert len(found) == 1
    expected = found[0].read()
    listed_file._HEADS.reset()
    server.stop()
    for work in (found[0].read, lambda: medimg.scan(urls), lambda: medimg.read(urls[0])):
        began = time.monotonic()
        with pytest.raises(ConnectionError, match="can't be read") as caught:
            work()
        assert isinstance(caught.value, ReadError)
        assert time.monotonic() - began < 20
    again = Server(folder, server.port)
    assert np.array_equal(found[0].read().array, expected.array)
    again.stop()


def test_a_storage_that_is_cut_off_in_a_scan_is_an_error(storage: Storage, tmp_path: Path) -> None:
    write_stack(tmp_path, [float(z) for z in range(12)])
    url = storage.put_folder(tmp_path, "stack")

    def disturb(request: Request) -> Disturbance | None:
        count = len(storage.traffic.gets("stack/"))
        return answer("503 SLOW DOWN") if request.method == "GET" and count > 6 else None

    storage.traffic.disturb = disturb
    with pytest.raises(MedimgError, match="can't be read"):
        medimg.scan(url)


def test_redirects_are_followed_but_not_in_circles(web: tuple[Server, WebFolder]) -> None:
    server, folder = web
    folder.put("there", DATA)

    def redirect(request: Request) -> Disturbance | None:
        to = {"/here": "/there", "/round": "/round"}.get(request.path)
        return answer("302 FOUND", ("Location", f"{to}?token={SECRET}")) if to else None

    server.traffic.disturb = redirect
    assert open_blob(f"{server.url}/here").fetched().data == DATA
    with pytest.raises(ConnectionError, match="TooManyRedirects") as caught:
        open_blob(f"{server.url}/round")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("leads", [False, True])
def test_redirects_keep_the_encryption(
    leads: bool, web: tuple[Server, WebFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images, and of files that medimg itself wrote."""
    plain, _ = web
    key = make_certificate(tmp_path, "server")
    crt = key.with_suffix(".crt")
    monkeypatch.setitem(fsspec.config.conf, "https", {"ssl": ssl.create_default_context(cafile=crt)})
    (path,) = write_stack(tmp_path / "stack", [0.0])
    model = medimg.TransferClassifier("squeezenet1_1", classes=["a", "b"], weights=None)
    model.save(tmp_path / "model.safetensors")

    def serve(environ: dict[str, Any], start: Any) -> list[bytes]:
        name = environ["PATH_INFO"]
        if leads:
            start("302 Found", [("Location", f"{plain.url}{name}")])
            return []
        data = (path if name.endswith(".dcm") else tmp_path / "model.safetensors").read_bytes()
        start("200 OK", [("Content-Length", str(len(data)))])
        return [data]

    server = Server(serve, tls=(str(crt), str(key)))
    try:
        for read, name in ((medimg.read, "a.dcm"), (medimg.load, "m.safetensors")):
            url = f"https://127.0.0.1:{server.port}/{name}?token={SECRET}"
            if leads:
                with pytest.raises(MedimgError) as caught:
                    read(url)
                assert SECRET not in str(caught.value)
            else:
                read(url)
    finally:
        server.stop()
    assert not plain.traffic.requests


def test_a_size_that_is_a_lie_takes_no_memory(web: tuple[Server, WebFolder]) -> None:
    server, _ = web
    header = make_header()
    lie = 2**50
    server.traffic.disturb = lambda request: answer(
        "206 PARTIAL", ("Content-Range", f"bytes 0-65535/{lie}"), ("Content-Length", "65536"), body=[header]
    )
    with pytest.raises(ReadError):
        medimg.read(f"{server.url}/x.nii")
    server.traffic.disturb = lambda request: answer("200 OK", ("Content-Length", str(lie)), body=[header])
    with pytest.raises(ReadError):
        medimg.read(f"{server.url}/x.nii")


def make_header() -> bytes:
    """The start of a NIfTI file of 64 KiB and more."""
    import io

    import nibabel as nib

    image = nib.Nifti1Image(np.zeros((64, 64, 64), np.int16), np.eye(4))
    file = io.BytesIO()
    image.to_stream(file)
    return file.getvalue()[:65536]


def test_bodies_that_are_compressed_on_the_way(web: tuple[Server, WebFolder]) -> None:
    import gzip

    server, _ = web
    packed = gzip.compress(DATA)
    server.traffic.disturb = lambda request: answer("200 OK", ("Content-Encoding", "gzip"), body=[packed])
    assert open_blob(f"{server.url}/file").fetched().data == DATA


def test_no_credentials_in_messages(storage: Storage) -> None:
    storage.put("a/file", DATA)
    with pytest.raises(ReadError) as caught:
        find_blobs(f"s3://user:{SECRET}@{storage.url[5:]}/absent")
    assert SECRET not in str(caught.value)
    assert "pässword" not in str(caught.value)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def fail(name: str) -> None:
        raise ImportError(f"Install {name}fs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", fail)
    for scheme, extra in (("s3", "s3"), ("gs", "gcs"), ("az", "azure"), ("https", "remote")):
        with pytest.raises(medimg.errors.MissingDependencyError, match=rf"medimg\[{extra}\]"):
            medimg.scan(f"{scheme}://somewhere/x")


def test_colons_lead_nowhere_else(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        medimg.read(f"memory://x::file://{secret}")


def test_nothing_is_left_open(storage: Storage) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        url = storage.put("a/file", DATA)
        file = open_blob(url).open()
        file.read(10)
        file.close()
        with pytest.raises(ValueError, match="closed"):
            file.readline()
