"""Certificates of servers on loopback."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def make_certificate(folder: Path, name: str, *options: str) -> Path:
    """A key, and beside it with the suffix .crt its own certificate."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here")
    path = folder / f"{name}.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", f"/CN={name}",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path),
         "-out", str(path.with_suffix(".crt")), *(options or ("-nodes",))],
        check=True, capture_output=True,
    )  # fmt: skip
    return path
