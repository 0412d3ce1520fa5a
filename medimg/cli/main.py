"""``medimg``: parse the arguments, run a command, and turn errors into messages and exit codes."""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from medimg import __version__
from medimg.cli._completion import add_completion
from medimg.cli._doctor_command import add_doctor
from medimg.cli._image_commands import add_info, add_preview, add_read, add_scan
from medimg.cli._model_commands import add_evaluate, add_explain, add_predict
from medimg.cli._serve_command import add_serve
from medimg.cli._terminal import clean_text
from medimg.cli._train_command import add_train
from medimg.cli._watch_command import add_watch
from medimg.errors import MedimgError, MedimgWarning, SeriesError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TextIO

__all__ = ["main", "make_parser"]

#: In the order of a study.
_COMMANDS = (
    add_scan, add_info, add_read, add_preview, add_train, add_predict, add_evaluate, add_explain, add_serve,
    add_watch, add_doctor,
)  # fmt: skip
#: An argument in a message of the Python interface, such as on_missing="fix".
_ARGUMENT = re.compile(r"""(?<![\w./\\-])(\w+)=(["']?)(<[^>]+>|[\w./-]+)\2""")
#: Options with another name than the argument.
_NAMES = {"overwrite": "force"}
_EPILOG = """\
exit codes: 0 success, 1 an error, described in one message on stderr, 2 invalid arguments, 130 interrupted

data are written to stdout; progress, warnings and errors to stderr
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="medimg",
        description="From folders of scans to a trained, evaluated classifier.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"medimg {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for add in _COMMANDS:
        add(commands)
    add_completion(commands, make_parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Command and its arguments; by default those of the process.

    Returns
    -------
    int
        Exit code: 0, or 1 for an error, 130 if interrupted. Invalid arguments exit with 2.
    """
    args = make_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        # names of files can have any bytes, and not every terminal has all characters
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _warnings_as_lines():
            _set_verbosity(getattr(args, "verbosity", None))
            code: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader of stdout, such as head, has ended; Python would report it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MedimgError, OSError) as error:
        print(f"medimg {args.command}: error: {_describe(error, args)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"medimg {args.command}: interrupted", file=sys.stderr)
        return 130
    return code


def _set_verbosity(verbosity: str | None) -> None:
    if verbosity is not None:
        import medimg

        medimg.set_verbosity(verbosity)  # type: ignore[arg-type]  # one of the choices of the option


def _describe(error: MedimgError | OSError, args: argparse.Namespace) -> str:
    """Return a message in which arguments of the command are options: ``seed=1`` as ``--seed 1``."""

    def replace(found: re.Match[str]) -> str:
        name, value = _NAMES.get(found.group(1), found.group(1)), found.group(3)
        if name not in known:
            return found.group()
        flag = f"--{name.replace('_', '-')}"
        if isinstance(known[name], bool) and value in {"None", "False"}:
            return f"no {flag}"
        return flag if value == "True" else f"{flag} {value.lower() if value == 'None' else value}"

    if not isinstance(error, MedimgError) and error.filename is not None:
        return clean_text(f"{error.filename}: {error.strerror}")
    known = vars(args)
    first, *rest = str(error).splitlines() or [""]
    if isinstance(error, SeriesError) and rest:
        # the list of series has their descriptions, and UIDs
        first = first.removesuffix(":").removesuffix(" of")
        return clean_text(f"{first}; choose it by --series: a number that medimg scan shows, or a UID")
    text = _ARGUMENT.sub(replace, str(error))
    return clean_text(text, lines=True) or type(error).__name__


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show warnings as one line on stderr, without the position in the code."""

    def show(  # noqa: PLR0917  # the signature of warnings.showwarning
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(f"medimg: warning: {clean_text(str(message), lines=True)}", file=file or sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("default", category=MedimgWarning)
        warnings.showwarning = show
        yield
