"""``medimg watch``: predict on new series of a DICOMweb server, and store the results there."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from medimg.cli._options import Commands, add_command, add_json, add_verify, parse_path
from medimg.cli._serve_command import parse_device
from medimg.cli._terminal import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["add_watch"]

_EPILOG = """\
Credentials are read from ~/.netrc. After an interruption the same command goes on where it ended.
"""


def add_watch(commands: Commands) -> None:
    """Add ``medimg watch``."""
    text = "predict on new series of a DICOMweb server, and store the results there"
    parser = add_command(commands, "watch", _watch, text, epilog=_EPILOG)
    parser.add_argument("model", type=parse_path, help="checkpoint, such as run/model.safetensors")
    parser.add_argument("server", metavar="URL", help="DICOMweb server, such as https://host/dicom-web")
    add = parser.add_argument
    add("--state", type=parse_path, required=True, help="folder of this user for what was done")
    add(
        "--modality",
        nargs="+",
        default=(),
        help="modalities to predict on (default: those of the training data)",
    )
    add(
        "--condition",
        action="append",
        default=[],
        type=_parse_condition,
        metavar="NAME=VALUE",
        help="condition of the search, such as StudyDate=20240101-; several times for several",
    )
    add(
        "--results",
        nargs="+",
        choices=("sr", "sc", "pm"),
        default=("sr", "sc"),
        help="structured report, heat map as secondary capture, as parametric map (default: sr sc)",
    )
    add("--name", help="name of the algorithm in the results")
    add("--interval", type=float, default=30.0, help="seconds between two searches (default: 30)")
    add("--settle", type=float, default=60.0, help="seconds without new instances (default: 60)")
    add("--attempts", type=int, default=5, help="attempts for a series that can't be read (default: 5)")
    add("--once", action="store_true", help="search once, as for a scheduled task")
    add_verify(parser)
    add("--device", default="cpu", help="device of the model, such as cuda (default: cpu)")
    add("--verbosity", choices=("debug", "info", "warning", "error"), help="lowest level that is logged")
    add_json(parser)


def _parse_condition(text: str) -> Sequence[str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE; found {text!r}")
    return name, value


def _watch(args: argparse.Namespace) -> int:
    import dataclasses

    import medimg
    from medimg.serve import watch

    server = medimg.dicomweb(args.server, verify=True if args.verify is None else args.verify)
    result = watch(
        medimg.load(args.model).to(parse_device(args.device)),
        server,
        args.state,
        modality=args.modality,
        conditions=dict(args.condition),
        results=args.results,
        name=args.name,
        interval=args.interval,
        settle=args.settle,
        attempts=args.attempts,
        once=args.once,
    )
    if args.json:
        print_json(dataclasses.asdict(result))
    else:
        print(result)
    return 1 if result.failed else 0
