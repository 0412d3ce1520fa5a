"""Options that commands share, with the names and defaults of the arguments in Python."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, TypeAlias

from medimg.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "Commands",
    "add_command",
    "add_feedback",
    "add_force",
    "add_json",
    "add_labels",
    "add_reading",
    "add_series",
    "add_verify",
    "check_output",
    "parse_path",
    "parse_weights",
    "read_dataset",
]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_POLICIES = ("raise", "warn", "fix", "keep")


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str, **settings: Any
) -> argparse.ArgumentParser:
    """Add a command, and return its parser."""
    parser = commands.add_parser(name, help=text, description=f"{text}.", allow_abbrev=False, **settings)
    parser.set_defaults(run=run)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add ``--force``."""
    parser.add_argument("--force", action="store_true", help="replace existing files")


def add_feedback(parser: argparse.ArgumentParser) -> None:
    """Add ``--progress`` and ``--verbosity``."""
    group = parser.add_argument_group("feedback, on stderr")
    group.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default="auto",
        help="progress bars (default: in a terminal, after 1 s)",
    )
    group.add_argument(
        "--verbosity", choices=("debug", "info", "warning", "error"), help="lowest level that is logged"
    )


def add_series(parser: argparse.ArgumentParser) -> None:
    """Add ``--series``."""
    parser.add_argument(
        "--series",
        type=_parse_series,
        help="number (of medimg scan) or UID of one of several series",
    )


def _parse_series(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the policies and values of :func:`medimg.read`."""
    group = parser.add_argument_group("reading")
    texts = {
        "on_missing": ("raise", "policy for missing slices"),
        "on_duplicate": ("warn", "policy for identical images at one position"),
        "on_tilt": ("warn", "policy for a tilted gantry"),
    }
    for name, (default, text) in texts.items():
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, choices=_POLICIES, default=default, help=f"{text} (default: {default})")
    group.add_argument(
        "--values",
        choices=("auto", "rescaled", "suv"),
        default="auto",
        help="values of the volume (default: auto)",
    )


def add_labels(parser: argparse.ArgumentParser) -> None:
    """Add the table of labels and its columns; see ``medimg.ImageDataset.from_csv``."""
    parser.add_argument(
        "csv", type=parse_path, metavar="labels.csv", help="table with a row for each image or series"
    )
    group = parser.add_argument_group("columns of the table")
    add = group.add_argument
    add("--path", default="path", help="column of files, or folders with one series each (default: path)")
    add(
        "--label",
        action="append",
        help="column of classes (default: label); several times for labels of 0 and 1 each (multilabel)",
    )
    add("--patient", help="column of patients (default: the Patient ID of the files)")
    add(
        "--file-patients",
        choices=("check", "ignore"),
        default="check",
        help="whether --patient must agree with the Patient ID of the files (default: check)",
    )
    add("--root", type=parse_path, help="folder that paths are relative to (default: that of the table)")


def read_dataset(args: argparse.Namespace, **settings: Any) -> Any:
    """Return the ImageDataset of a table."""
    import medimg

    label = args.label or ["label"]
    return medimg.ImageDataset.from_csv(
        args.csv,
        path=args.path,
        label=label if len(label) > 1 else label[0],
        patient=args.patient,
        file_patients=args.file_patients,
        root=args.root,
        progress=args.progress,
        **settings,
    )


def parse_path(text: str) -> str:
    """Return a path; an empty one, as of a shell variable that is not set, would be the working folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def parse_weights(text: str) -> str | None:
    """Return ``weights=``: a name, a path, or None."""
    return None if text.lower() == "none" else text


def add_verify(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option of a DICOMweb server's certificates."""
    parser.add_argument(
        "--verify",
        type=parse_path,
        help="file or folder of certificates of the authorities (CA) of the server",
    )


def check_output(path: Path | str | None, *, force: bool) -> None:
    """Refuse a URL that can't be written to, and to replace a file, unless told to; None is no file."""
    from medimg.io.files.object_storage import show_location
    from medimg.io.files.output import check_target, has_target

    if path is None:
        return
    target = check_target("the output", path, error=ConversionError)
    if not force and has_target(target):
        raise ConversionError(
            f"{show_location(target)} already exists; name another file, or pass --force to replace it"
        )
