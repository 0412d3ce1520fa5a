"""``python -m benchmarks``: run works, print the table, write it to the documentation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.data import FULL, SCALES, Data
from benchmarks.data.store import default_root
from benchmarks.environment import made_with
from benchmarks.peers import COLUMNS, COMMON
from benchmarks.running import Setting, measured
from benchmarks.store import load_table, store_table
from benchmarks.tables import filled, markdown, plain
from benchmarks.works import WORKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.measured import Table

__all__ = ["main"]

_ROOT: Final = Path(__file__).parent.parent
_PAGE: Final = _ROOT / "docs" / "performance.md"
_LONG: Final = [name for name, work in WORKS.items() if work.long]
#: Rows of the table, in its order.
_KEYS: Final = [key for name in WORKS for key in (name, f"{name}.error")]
_RESULTS: Final = Path(__file__).parent / "results" / "table.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the arguments of the command line say."""
    parser = _parser()
    options = parser.parse_args(arguments)
    works = _chosen(parser, "--works", options.works, WORKS)
    if not (options.works or options.full or options.write):
        works = [name for name in works if not WORKS[name].long]
    peers = _chosen(parser, "--peers", options.peers, COLUMNS)
    columns = [c for c in COLUMNS if c in COMMON or c in peers]
    if options.repeats < 1:
        parser.error("--repeats is at least 1")
    if options.resume and not options.write:
        parser.error("--resume goes on with what --write stored: give both")
    if options.write and (len(columns) < len(COLUMNS) or options.scale != FULL.name):
        parser.error("--write takes all peers and the full scale: the rows of the page are alike")
    if options.write and len(works) < len(WORKS) and not options.resume:
        parser.error("--write takes all works; with --resume, the others stay as they were stored")
    setting = Setting(options.data, Data(options.data, SCALES[options.scale]), columns, options.repeats)
    if options.write:
        table = _written(works, setting, resume=options.resume, again=bool(options.works))
    else:
        table = {row.key: row for rows in measured([WORKS[n] for n in works], setting) for row in rows}
    print(plain(table, columns))


def _written(works: Sequence[str], setting: Setting, *, resume: bool, again: bool) -> Table:
    """
    Run works, storing each row and the page as soon as it is there.

    `resume` keeps stored rows and leaves out their works, unless they are measured `again`.
    """
    environment = made_with()
    table, days = load_table(_RESULTS, environment) if resume else ({}, [])
    for rows in measured([WORKS[name] for name in works if again or name not in table], setting):
        days = sorted({*days, made_with()["date"]})
        environment["date"] = " to ".join(dict.fromkeys((days[0], days[-1])))
        table |= {row.key: row for row in rows}
        table = {key: table[key] for key in _KEYS if key in table}
        store_table(_RESULTS, table, environment)
        text = markdown(table, setting.columns, environment)
        _PAGE.write_text(filled(_PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--works", default="", help=f"some of {', '.join(WORKS)}; by default those that are not long"
    )
    parser.add_argument("--full", action="store_true", help=f"also {', '.join(_LONG)}, which take minutes")
    parser.add_argument("--peers", default="", help=f"some of {', '.join(COLUMNS)}; all by default")
    parser.add_argument("--repeats", type=int, default=7, help="rounds in which all take turns")
    parser.add_argument("--scale", choices=SCALES, default=FULL.name, help="how much data")
    parser.add_argument("--data", type=Path, default=default_root(), help="where data are kept")
    parser.add_argument(
        "--write", action="store_true", help="write docs/performance.md and the raw results after each work"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep what was written on this machine with these versions"
    )
    return parser


def _chosen(parser: argparse.ArgumentParser, option: str, text: str, known: dict[str, Any]) -> list[str]:
    """Split a list of names; nothing means all."""
    names = [name.strip() for name in text.split(",") if name.strip()] or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"{option}: unknown {', '.join(unknown)}; choose from {', '.join(known)}")
    return names
