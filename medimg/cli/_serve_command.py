"""``medimg serve``: a model as an HTTP service."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from medimg.cli._options import Commands, add_command, parse_path

if TYPE_CHECKING:
    import argparse

__all__ = ["add_serve", "parse_device"]

_EPILOG = """\
The service has no authentication: keep it on loopback, behind a reverse proxy that has. The part of a body
that exceeds --upload-memory-mb goes to the folder of temporary files, which the variable TMPDIR names.
"""


def add_serve(commands: Commands) -> None:
    """Add ``medimg serve``."""
    parser = add_command(commands, "serve", _serve, "serve predictions of a model over HTTP", epilog=_EPILOG)
    parser.add_argument("model", type=parse_path, help="checkpoint, such as run/model.safetensors")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=8000, help="port to listen on; 0 for a free one (default: 8000)")
    add("--device", default="cpu", help="device of the model, such as cuda (default: cpu)")
    add(
        "--unit",
        choices=("series", "image"),
        default="series",
        help="unit of a prediction for requests that state none (default: series)",
    )
    add("--batch-size", type=int, default=32, help="images per batch (default: 32)")
    add("--verbosity", choices=("debug", "info", "warning", "error"), help="lowest level that is logged")
    add(
        "--dicomweb",
        action="append",
        default=[],
        metavar="URL",
        help="DICOMweb server whose studies requests may name by URL; credentials are read from ~/.netrc",
    )
    add(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help="name by which clients may reach the service, such as that which a proxy forwards; * for any "
        "(default: on a loopback address localhost alone, on others any; addresses always)",
    )
    group = parser.add_argument_group("limits; medimg.serve.ServiceLimits describes them")
    add = group.add_argument
    add("--max-upload-mb", type=int, default=1024, help="size of a request's body (default: 1024)")
    add("--max-unpacked-mb", type=int, default=4096, help="size it may expand to (default: 4096)")
    add("--max-files", type=int, default=20_000, help="files in a body (default: 20000)")
    add("--upload-memory-mb", type=int, default=16, help="part of a body in memory (default: 16)")
    add("--queue", type=int, default=16, help="requests at the same time, the others wait (default: 16)")
    add("--upload-timeout", type=float, default=60.0, help="seconds to send a body (default: 60)")
    add("--request-timeout", type=float, default=300.0, help="seconds to predict on it (default: 300)")


def _serve(args: argparse.Namespace) -> int:
    import medimg
    from medimg.serve import ServiceLimits, make_app
    from medimg.serve.run_server import choose_hosts, run_server
    from medimg.serve.service import check_extra

    check_extra("fastapi", "python_multipart", "uvicorn")
    names = [field.name for field in dataclasses.fields(ServiceLimits)]
    limits = ServiceLimits(**{name: getattr(args, name) for name in names})
    model = medimg.load(args.model).to(parse_device(args.device))
    app = make_app(
        model,
        unit=args.unit,
        batch_size=args.batch_size,
        limits=limits,
        dicomweb=args.dicomweb,
        allowed_hosts=args.allowed_host or choose_hosts(args.host),
    )
    run_server(app, host=args.host, port=args.port)
    return 0


def parse_device(name: str) -> Any:
    """Return a device that can be used."""
    import torch

    from medimg._validation import printable_error
    from medimg.errors import MedimgError

    try:
        return torch.empty(1, device=name).device
    # torch has no type of its own for devices that are unknown or absent
    except (RuntimeError, AssertionError) as error:
        raise MedimgError(f"the device {name!r} can't be used ({printable_error(error)}); try cpu") from None
