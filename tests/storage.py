"""Object storage (S3, by moto) and web servers on loopback, whose traffic is counted and can be disturbed."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

BUCKET = "scans"

StartResponse = Callable[..., Any]
App = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]
#: Status, headers and body in place of what a server would answer.
Disturbance = tuple[str, list[tuple[str, str]], Iterable[bytes]]


@dataclass
class Request:
    """One request, and the bytes that were sent for it."""

    method: str
    path: str
    range: str
    sent: int = 0


@dataclass
class Traffic:
    """A WSGI application that counts what another one sends; `disturb` may answer in its place."""

    app: App
    requests: list[Request] = field(default_factory=list)
    disturb: Callable[[Request], Disturbance | None] | None = None

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE", ""))
        self.requests.append(request)
        found = self.disturb(request) if self.disturb else None
        if found is not None:
            status, headers, pieces = found
            start_response(status, headers)
            return pieces
        return self._count(request, self.app(environ, start_response))

    def _count(self, request: Request, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            request.sent += len(piece)
            yield piece

    def clear(self) -> None:
        self.requests.clear()
        self.disturb = None

    @property
    def sent(self) -> int:
        """Bytes of all bodies."""
        return sum(request.sent for request in self.requests)

    def gets(self, part: str = "") -> list[Request]:
        """Requests of objects with that in their path."""
        return [r for r in self.requests if r.method == "GET" and part in r.path and r.path.count("/") > 1]


class Server:
    """A WSGI application served by threads."""

    def __init__(self, app: App, port: int = 0, tls: tuple[str, str] | None = None) -> None:
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):  # type: ignore[misc]  # is not typed here
            def log(self, *args: Any) -> None:
                pass

        self.traffic = Traffic(app)
        self._server = make_server(
            "127.0.0.1", port, self.traffic, threaded=True, request_handler=Quiet, ssl_context=tls
        )
        self.port: int = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Storage:
    """A bucket."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.server = Server(DomainDispatcherApplication(create_backend_app))
        self.traffic = self.server.traffic
        self.url = f"s3://{BUCKET}"

    @property
    def options(self) -> dict[str, Any]:
        """Configuration of fsspec for it."""
        return {
            "endpoint_url": self.server.url, "key": "reader", "secret": "pässword-of-s3",
            "client_kwargs": {"region_name": "us-east-1"},
            "config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 2, "read_timeout": 2},
        }  # fmt: skip

    @property
    def files(self) -> Any:
        """Its file system."""
        from medimg.io.files.object_storage import find_storage

        return find_storage(f"{self.url}/x")[0]

    def empty(self) -> None:
        import urllib.request

        request = urllib.request.Request(f"{self.server.url}/moto-api/reset", method="POST")
        urllib.request.urlopen(request).close()
        self.files.call_s3("create_bucket", Bucket=BUCKET)
        self.traffic.clear()

    def put(self, name: str, data: bytes) -> str:
        """Store an object; return its URL."""
        self.files.pipe_file(f"{BUCKET}/{name}", data)
        return f"{self.url}/{name}"

    def put_folder(self, folder: Path, name: str) -> str:
        """Store the files of a folder; return its URL."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        self.traffic.clear()
        return f"{self.url}/{name}"


@dataclass
class WebFolder:
    """A WSGI application that serves files, with or without ranges, versions and sizes."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    versions: bool = True
    sizes: bool = True
    dates: dict[str, float] = field(default_factory=dict)

    def put(self, name: str, data: bytes) -> None:
        self.files[name] = data
        self.dates[name] = self.dates.get(name, time.time()) + 1

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        name = environ["PATH_INFO"].encode("latin-1").decode().lstrip("/")
        data = self.files.get(name)
        if data is None:
            start_response("404 NOT FOUND", [("Content-Length", "0")])
            return []
        headers = [("Content-Type", "application/octet-stream")]
        if self.versions:
            headers.append(("Last-Modified", formatdate(self.dates[name], usegmt=True)))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", environ.get("HTTP_RANGE", "")) if self.ranges else None
        if asked is None:
            if self.sizes:
                headers.append(("Content-Length", str(len(data))))
            start_response("200 OK", headers)
            return [data]
        first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
        if first >= len(data):
            start_response("416 RANGE", [*headers, ("Content-Length", "0")])
            return []
        part = data[first : last + 1]
        headers += [
            ("Content-Range", f"bytes {first}-{last}/{len(data)}"), ("Content-Length", str(len(part)))
        ]  # fmt: skip
        start_response("206 PARTIAL", headers)
        return [part]


def set_environment(patch: Any) -> None:
    """Let no configuration of this machine, such as credentials, have a part in it."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "BOTO_")):
            patch.delenv(name)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
