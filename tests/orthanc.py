"""A real Orthanc with its DICOMweb plugin on loopback, for tests."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

USER, PASSWORD = "reader", "pässword"
_PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")
_START_S = 60.0


def find_orthanc() -> tuple[str, str] | str:
    """The program and its plugin, or what is missing."""
    program = shutil.which("Orthanc") or next(
        (path for path in ("/usr/sbin/Orthanc", "/usr/local/sbin/Orthanc") if Path(path).exists()), None
    )
    if program is None:
        return "no Orthanc here (Debian: orthanc)"
    plugins = (path for folder in _PLUGIN_FOLDERS for path in Path(folder).glob("libOrthancDicomWeb.so*"))
    plugin = next(plugins, None)
    return (
        "no DICOMweb plugin of Orthanc here (Debian: orthanc-dicomweb)"
        if plugin is None
        else (program, str(plugin))
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Orthanc:
    """A server with storage in a folder; it can be killed and started again."""

    def __init__(self, folder: Path, program: str, plugin: str) -> None:
        self.port = free_port()
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        storage = str(folder / "storage")
        self._configuration = folder / "orthanc.json"
        self._configuration.write_text(
            json.dumps(
                {
                    "Name": "test",
                    "HttpPort": self.port,
                    "DicomServerEnabled": False,
                    "StorageDirectory": storage,
                    "IndexDirectory": storage,
                    "Plugins": [plugin],
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": True,
                    "RegisteredUsers": {USER: PASSWORD},
                    "OverwriteInstances": True,
                    "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
                }
            )
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(self._configuration)], stdout=log, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            try:
                self.call("system")
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"Orthanc did not start within {_START_S} s")

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def call(self, path: str, data: bytes | None = None, method: str | None = None) -> Any:
        """Call Orthanc's own interface, which is not the one under test."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", data=data, method=method)
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request.add_header("Authorization", f"Basic {login}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def upload(self, data: bytes) -> None:
        self.call("instances", data)

    def clear(self) -> None:
        for patient in self.call("patients"):
            self.call(f"patients/{patient}", method="DELETE")
