"""A server of S3 on loopback, by moto, and what s3fs needs to find it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from medimg.io.files import object_storage

__all__ = ["Application", "Wrap", "forget_storages", "s3_server"]

#: A WSGI application, and what answers some requests in its place.
Application = Callable[[dict[str, Any], Any], Iterable[bytes]]
Wrap = Callable[[Application], Application]


def forget_storages() -> None:
    """Forget file systems, which are kept by their arguments, and know the server of the environment."""
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()
    object_storage._storages.clear()


@contextmanager
def s3_server(wrap: Wrap | None = None) -> Iterator[str]:
    """Yield the URL ``s3://test-…`` of a new bucket of a server; `wrap` may answer in its place."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    import fsspec

    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }
    bucket = f"test-{secrets.token_hex(4)}"
    try:
        with mock.patch.dict(os.environ, variables):
            forget_storages()
            fsspec.filesystem("s3").mkdir(bucket)
            if wrap is not None:
                server._server.app = wrap(server._server.app)
            yield f"s3://{bucket}"
    finally:
        forget_storages()
        server.stop()
