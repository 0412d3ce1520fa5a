"""The service in a server on loopback: many clients, broken, slow and gone ones, and a kill."""

from __future__ import annotations

import gc
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import medimg
from medimg.serve import ServiceLimits, make_app
from tests.serve.uploads import dicom, make_model, stack, zipped

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

psutil = pytest.importorskip("psutil")

ROOT = Path(medimg.__file__).parents[1]
LIMITS = ServiceLimits(max_upload_mb=8, upload_memory_mb=0, queue=8)
SECONDS = 0.5


@dataclass
class Answer:
    status: int
    headers: Any
    content: bytes

    def probability(self) -> float:
        assert self.status == 200, self.content
        (row,) = json.loads(self.content)["predictions"]
        found: float = row["probabilities"]["nodule"]
        return found


def post(port: int, body: bytes) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/predict", body)
        found = connection.getresponse()
        return Answer(found.status, found.headers, found.read())
    finally:
        connection.close()


class Service:
    """A server in a thread of this process."""

    def __init__(self, app: Any) -> None:
        from medimg.serve.run_server import make_server

        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.server = make_server(app)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()

    def post(self, body: bytes = b"") -> Answer:
        return post(self.port, body or dicom())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def wait_until_idle(self) -> None:
        """Wait until no connection and no job is left."""
        # those that were made before are accepted once this one is answered
        last = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        last.request("GET", "/health")
        last.getresponse().read()
        last.close()
        for _ in range(600):
            if not self.server.server_state.connections and not self.server.server_state.tasks:
                return
            time.sleep(0.02)
        raise AssertionError("connections stay open")

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def model() -> medimg.TransferClassifier:
    return make_model()


@pytest.fixture(scope="module")
def service(model: medimg.TransferClassifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    from medimg.serve._http_protocol import DeadlineProtocol

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DeadlineProtocol, "seconds", SECONDS)
        patched.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("bodies")))
        found = Service(make_app(model, limits=LIMITS))
        yield found
        found.stop()


def head(length: int | None, **fields: str) -> bytes:
    """The header of a request whose body has a length, or comes in chunks."""
    kind = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [
        "POST /predict HTTP/1.1",
        "Host: localhost",
        kind,
        *(f"{k.replace('_', '-')}: {v}" for k, v in fields.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def read_all(connection: socket.socket) -> bytes:
    """What a connection answers until it is closed."""
    found = b""
    try:
        while piece := connection.recv(2**16):
            found += piece
    except ConnectionResetError:
        pass
    return found


def list_open_files() -> list[str]:
    """Bodies on disk that this process has open."""
    names = []
    for entry in os.scandir("/proc/self/fd"):
        with suppress(OSError):
            names.append(str(Path(entry.path).readlink()))
    assert tempfile.tempdir is not None
    return [name for name in names if name.startswith(tempfile.tempdir)]


def test_fifty_at_once(service: Service, model: medimg.TransferClassifier) -> None:
    expected = {n: model.predict(stack(n))["p_nodule"][0] for n in (2, 3, 4)}
    refused = 0

    def predict(n: int) -> None:
        nonlocal refused
        body, deadline = stack(2 + n % 3), time.monotonic() + 60
        while time.monotonic() < deadline:
            answer = service.post(body)
            if answer.status == 200:
                assert answer.probability() == pytest.approx(expected[2 + n % 3], abs=1e-6)
                return
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) >= 1
            refused += 1
            time.sleep(0.5)
        raise AssertionError("no place within a minute")

    with ThreadPoolExecutor(50) as clients:
        list(clients.map(predict, range(50)))
    assert refused
    service.wait_until_idle()
    assert list_open_files() == []
    assert service.post().status == 200


def test_no_leak_of_memory_and_files(service: Service) -> None:
    me = psutil.Process()
    hostile = [b"x", stack()[:-300], zipped({"a": bytes(2**20)}), dicom()[:-9], bytes(2**23 + 1)]

    def batch(count: int) -> tuple[int, int]:
        for _ in range(count):
            for body in (stack(), *hostile):
                service.post(body)
            with service.connect() as connection:  # goes away in the middle
                connection.sendall(head(2**20) + bytes(2**18))
        service.wait_until_idle()
        gc.collect()
        return me.memory_info().rss, me.num_fds()

    batch(4)
    memory, files = batch(4)
    later_memory, later_files = batch(8)
    # a connection may be about to end
    assert later_files <= files + 3
    # bodies of 8 rounds have more than 90 MB
    assert later_memory - memory < 2**25
    assert list_open_files() == []


def test_a_broken_upload_frees_its_place(service: Service) -> None:
    for _ in range(LIMITS.queue + 1):
        with service.connect() as connection:
            connection.sendall(head(2**20) + bytes(2**16))
    for _ in range(LIMITS.queue + 1):
        with service.connect() as connection:
            connection.sendall(head(None) + b"ffff\r\nhalf a chunk")
    service.wait_until_idle()
    assert service.post().status == 200
    assert list_open_files() == []


def test_a_slow_client_gets_408_and_delays_nobody(model: medimg.TransferClassifier) -> None:
    service = Service(make_app(model, limits=ServiceLimits(upload_timeout=2)))
    service.post()
    with service.connect() as slow:
        slow.sendall(head(2**20))
        start = time.monotonic()
        quick = []
        while time.monotonic() - start < 1.5:
            slow.sendall(b"x")
            quick.append(service.post().status)
            time.sleep(0.05)
        assert set(quick) == {200}
        answer = read_all(slow)
    service.stop()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 2 s" in answer
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    "sent", [b"", b"POST /predict HTTP/1.1\r\nHost: he", b"\r\n\r\n"], ids=["none", "part", "blank"]
)
def test_a_client_that_sends_no_header_is_disconnected(service: Service, sent: bytes) -> None:
    with service.connect() as silent:
        start = time.monotonic()
        silent.sendall(sent)
        read_all(silent)
    assert time.monotonic() - start < 20 * SECONDS


def test_a_second_request_has_a_deadline_too(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
        answer = read_all(connection)
    assert answer.count(b"HTTP/1.1 200 ") == 1


def test_a_refused_body_is_not_awaited_forever(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(head(2**30) + bytes(2**10))
        start = time.monotonic()
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert time.monotonic() - start < 20 * SECONDS
    # a client that sends all of it before it reads is answered, too
    assert service.post(bytes(2**23 + 2**20)).status == 413


def test_a_client_that_does_not_read_is_disconnected(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medimg.serve import _app

    monkeypatch.setattr(_app, "asdict", lambda _: {"text": "x" * 2**25})
    with service.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
        body = dicom()
        connection.sendall(head(len(body)) + body)
        for _ in range(300):
            time.sleep(0.05)
            if not service.server.server_state.connections:
                break
        else:
            raise AssertionError("the connection stays open")


def test_requests_that_are_none(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    for sent in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9\r\n\r\n",
        b"POST /predict HTTP/1.1\r\n" + b"A" * 2**17,
    ):
        with service.connect() as connection:
            connection.sendall(sent)
            assert not read_all(connection).startswith(b"HTTP/1.1 2")
    assert not [one for one in caplog.records if one.name.startswith("uvicorn")], "anybody could fill the log"
    assert service.post().status == 200


def test_a_client_that_goes_frees_its_place(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, may_go, calls = threading.Event(), threading.Event(), []
    predict = medimg.TransferClassifier.predict

    def wait(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        entered.set()
        assert may_go.wait(10)
        return predict(*arguments, **settings)

    body = dicom()
    with monkeypatch.context() as patched:
        patched.setattr(medimg.TransferClassifier, "predict", wait)
        connections = [service.connect() for _ in range(LIMITS.queue)]
        for connection in connections:
            connection.sendall(head(len(body)) + body)
        assert entered.wait(30)
        for _ in range(200):
            if service.post().status == 503:
                break
        else:
            raise AssertionError("the queue is not full")
        for connection in connections:
            connection.close()
        service.wait_until_idle()
        may_go.set()
        # one was being predicted on; the others were not started
    service.wait_until_idle()
    assert service.post().status == 200
    assert len(calls) == 1
    assert list_open_files() == []


def test_a_long_series_ends_with_its_client(
    model: medimg.TransferClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, may_go, batches = threading.Event(), threading.Event(), []
    forward = model.backbone.forward

    def wait(images: Any) -> Any:
        batches.append(len(images))
        entered.set()
        assert may_go.wait(30)
        return forward(images)

    service = Service(make_app(model, batch_size=1))
    service.post()
    body = stack(20)
    with monkeypatch.context() as patched:
        patched.setattr(model.backbone, "forward", wait)
        with service.connect() as connection:
            connection.sendall(head(len(body)) + body)
            assert entered.wait(30)
        service.wait_until_idle()
        may_go.set()
        assert service.post().status == 200
    service.stop()
    assert len(batches) == 2, "one of the series, and one of the next request"


def test_the_end_does_not_wait_for_a_long_series(
    model: medimg.TransferClassifier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from medimg.serve import run_server

    entered = threading.Event()
    forward = model.backbone.forward

    def slowly(images: Any) -> Any:
        entered.set()
        time.sleep(0.2)
        return forward(images)

    monkeypatch.setattr(run_server, "_GRACE_SECONDS", 1)
    service = Service(make_app(model, batch_size=1))
    service.post()
    monkeypatch.setattr(model.backbone, "forward", slowly)
    with ThreadPoolExecutor(3) as clients:
        long = clients.submit(service.post, stack(150))
        assert entered.wait(30)
        waiting = clients.submit(service.post)
        with service.connect() as slow:
            slow.sendall(head(2**20) + b"x")
            time.sleep(0.3)
            service.stop()
            uploading = read_all(slow)
    for answer in (long.result(), waiting.result()):
        assert answer.status == 503
        assert b"the service ended" in answer.content
        assert int(answer.headers["retry-after"]) >= 1
    assert uploading.startswith(b"HTTP/1.1 503 ")
    assert "Traceback" not in caplog.text


def test_connections_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    from medimg.serve._http_protocol import DeadlineProtocol

    monkeypatch.setattr(DeadlineProtocol, "most", 5)
    monkeypatch.setattr(DeadlineProtocol, "seconds", 30.0)
    connections = [service.connect() for _ in range(20)]
    for connection in connections[5:]:
        assert read_all(connection) == b""
    assert len(service.server.server_state.connections) == 5
    for connection in connections:
        connection.close()
    service.wait_until_idle()
    assert service.post().status == 200


def test_a_body_whose_length_is_stated_twice(service: Service) -> None:
    smuggled = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for first in (head(4, Transfer_Encoding="chunked"), head(None, Content_Length="4")):
        with service.connect() as connection:
            connection.sendall(first + b"0\r\n\r\n" + smuggled)
            answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1


def test_an_image_of_many_pieces(service: Service, model: medimg.TransferClassifier) -> None:
    body = dicom(size=(1200, 1000))
    assert service.post(body).probability() == pytest.approx(model.predict(body)["p_nodule"][0])


class Process:
    """``medimg serve`` as a process, with a folder for temporary files of its own."""

    def __init__(self, model: Path, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "medimg", "serve", str(model), "--port", "0", *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert self.process.stderr is not None
        self.lines = [self.process.stderr.readline()]
        found = re.search(r"serving on http://127\.0\.0\.1:(\d+)$", self.lines[0].strip())
        assert found, self.lines[0] + self.process.stderr.read()
        self.port = int(found.group(1))

    def post(self, body: bytes) -> Answer:
        return post(self.port, body)

    def end(self, sign: signal.Signals) -> int:
        self.process.send_signal(sign)
        assert self.process.stderr is not None
        self.lines += self.process.stderr.readlines()
        self.process.stderr.close()
        return self.process.wait(60)


def test_killed_in_the_middle_and_started_again(model: medimg.TransferClassifier, tmp_path: Path) -> None:
    path, folder = model.save(tmp_path / "model.safetensors"), tmp_path / "temporary"
    folder.mkdir()
    expected = model.predict(stack())["p_nodule"][0]
    first = Process(path, folder, "--upload-memory-mb", "0")
    assert first.post(stack()).probability() == pytest.approx(expected)
    with socket.create_connection(("127.0.0.1", first.port)) as half:
        half.sendall(head(2**24) + bytes(2**22))
        for _ in range(200):
            links = list(Path(f"/proc/{first.process.pid}/fd").iterdir())
            if any(str(folder) in str(link.readlink()) for link in links if link.is_symlink()):
                break
            time.sleep(0.05)
        else:
            raise AssertionError("nothing is written to the folder of temporary files")
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
    assert list(folder.iterdir()) == []
    second = Process(path, folder)
    assert second.post(stack()).probability() == pytest.approx(expected)
    assert second.post(dicom(PatientName="SENTINEL")[:-40]).status == 422
    # a process that was started in the background ignores SIGINT once the server has ended
    assert second.end(signal.SIGINT) in {0, 130}
    assert list(folder.iterdir()) == []
    said = "".join(second.lines)
    assert "POST /predict 200" in said
    assert "Traceback" not in said
    assert "SENTINEL" not in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "PORT"], "in use"),
        (["--device", "cuda:99"], "try cpu"),
        (["--host", "256.1.1.1"], "256.1.1.1:8000"),
        (["--queue", "0"], "queue must be"),
        (["--max-upload-mb", "-3"], "-3"),
    ],
)
def test_a_start_that_fails_is_a_message(
    model: medimg.TransferClassifier, tmp_path: Path, capsys: Any, options: list[str], words: str
) -> None:
    from medimg.cli.main import main

    path = model.save(tmp_path / "model.safetensors")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(path), *(port if one == "PORT" else one for one in options)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("medimg serve: error: ")
    assert words in message, message


def test_defaults_of_the_command_are_those_of_python() -> None:
    from dataclasses import fields

    from medimg.cli.main import make_parser

    args = make_parser().parse_args(["serve", "model"])
    assert args.host == "127.0.0.1"
    for field in fields(ServiceLimits):
        assert getattr(args, field.name) == field.default
