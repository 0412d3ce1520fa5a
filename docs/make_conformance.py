"""
Run the conformance tests and write what they compared to docs/conformance.md.

python docs/make_conformance.py

It needs the real scans (MEDIMG_TEST_DATA), dcm2niix and dcmtk.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LIBRARIES = ("pydicom", "imagecodecs", "nibabel", "SimpleITK", "highdicom", "numpy")
PROGRAMS = (("dcm2niix", "--version"), ("dcmdump", "--version"))
HEAD = """# Conformance

What medimg reads, compared with what other software makes of the same files. This page is written by
`docs/make_conformance.py`, which runs the tests marked `conformance`; each line is one test; what was not
met is listed with its reason. The data are real scans of public collections, no part of the project.
"""


def run_tests(report: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "conformance",
        "-n",
        "2",
        "-o",
        "junit_family=xunit1",
        f"--junitxml={report}",
        "tests",
    ]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise SystemExit("some conformance tests fail: mend them first")


def rows_of(report: Path) -> dict[str, list[dict[str, Any]]]:
    sections: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for found in ElementTree.parse(report).iter("property"):
        if found.get("name") == "conformance":
            row = json.loads(found.get("value") or "")
            sections[row["what"]].append(row)
    return sections


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each place, by name; what compared nothing is left out."""
    places: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = places.setdefault(row["where"], {**row, "compared": 0, "missed": 0, "why": []})
        for key in ("compared", "missed", "why"):
            known[key] += row[key]
    return [places[where] for where in sorted(places) if places[where]["compared"]]


def section(what: str, rows: list[dict[str, Any]]) -> list[str]:
    rows = merged(rows)
    compared, missed = (sum(row[key] for row in rows) for key in ("compared", "missed"))
    lines = ["", f"## {what[0].upper()}{what[1:]}", ""]
    lines += [f"{compared - missed} of {compared} met ({1 - missed / compared:.1%}).", ""]
    lines += ["| where | compared | met |", "|---|---|---|"]
    lines += [f"| {row['where']} | {row['compared']} | {row['compared'] - row['missed']} |" for row in rows]
    reasons = [(row["where"], why) for row in rows for why in row["why"]]
    if reasons:
        lines += ["", "Not met:", "", *(f"- {where}: {why}" for where, why in reasons)]
    return lines


def environment() -> list[str]:
    lines = ["", "## Made with", ""]
    lines += [f"- {name} {version(name)}" for name in LIBRARIES]
    for program, option in PROGRAMS:
        found = subprocess.run([program, option], capture_output=True, text=True, check=False).stdout.split(
            "\n"
        )
        stated = [line for line in found if " v" in line or line.startswith("v")]
        lines.append(f"- {stated[0].strip('$ ') if stated else program}")
    return lines


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        run_tests(report)
        sections = rows_of(report)
    lines = [HEAD.rstrip()]
    for what in sorted(sections):
        lines += section(what, sections[what])
    lines += environment()
    (DOCS / "conformance.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
