"""Results of ``medimg predict`` as DICOM: files in a folder, instances on a DICOMweb server."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medimg.cli._options import add_verify, parse_path
from medimg.errors import ConversionError

if TYPE_CHECKING:
    import argparse

    import pandas as pd
    from pydicom.dataset import Dataset

    from medimg.io.dicomweb.server import DicomWebServer
    from medimg.models.classifier import TransferClassifier

__all__ = ["ResultTarget", "add_dicom_results", "find_result_target"]

#: Results that are stored together, and in memory at a time.
_AT_ONCE: Final = 32
_MOST_BYTES: Final = 2**26
_MOST_SHOWN: Final = 20


def add_dicom_results(parser: argparse.ArgumentParser) -> None:
    """Add the options of results as DICOM."""
    group = parser.add_argument_group(
        "results as DICOM (extra dicom-out)", "Credentials of a server are read from ~/.netrc."
    )
    add = group.add_argument
    add("--dicom-out", type=parse_path, metavar="FOLDER", help="folder or URL for results of DICOM series")
    add(
        "--stow",
        metavar="URL",
        help="DICOMweb server to store results of DICOM series on, as https://host/dicom-web (extra pacs)",
    )
    add_verify(group)
    add(
        "--dicom-kinds",
        nargs="+",
        choices=("sr", "sc", "pm"),
        default=("sr", "sc"),
        help="structured report, heat map as secondary capture, heat map as parametric map (default: sr sc)",
    )


@dataclass(slots=True)
class ResultTarget:
    """Where results go: a folder, a server, or both; with what became of them."""

    folder: Path | str | None
    server: DicomWebServer | None
    made: int = 0
    stored: int = 0
    present: int = 0
    failures: list[str] = field(default_factory=list)

    def deliver(self, model: TransferClassifier, predictions: pd.DataFrame, args: argparse.Namespace) -> int:
        """Write and store the results of the sources, and return the number of those not stored."""
        from medimg.export import make_results
        from medimg.export.dicom.write_results import write_instance

        waiting: list[Dataset] = []
        files: list[Path] = []
        for one in make_results(
            model,
            args.sources,
            kinds=args.dicom_kinds,
            predictions=predictions,
            tta=args.tta,
            on_other_format="warn",
            progress=args.progress,
        ):
            self.made += 1
            if self.folder is not None:
                written = write_instance(one, self.folder)
                files += [written] if isinstance(written, Path) else []
            if self.server is None:
                continue
            waiting.append(one)
            if len(waiting) == _AT_ONCE or sum(map(_count_bytes, waiting)) >= _MOST_BYTES:
                self._store(self.server, waiting, files)
                waiting, files = [], []
        if self.server is not None and waiting:
            self._store(self.server, waiting, files)
        self._report()
        return len(self.failures)

    def _store(self, server: DicomWebServer, results: list[Dataset], files: list[Path]) -> None:
        """Store results, or the files that have them."""
        from medimg.export.dicom.write_results import name_instance
        from medimg.io.dicomweb.store_instances import PRESENT

        names = {str(one.SOPInstanceUID): name_instance(one) for one in results}
        answer = server.store(files or results, on_error="collect")
        self.stored += len(answer.stored)
        for one in answer.failed:
            if one.code == PRESENT:
                self.present += 1
            else:
                self.failures.append(f"{names.get(one.sop_instance_uid, one.source)}: {one.reason}")

    def _report(self) -> None:
        """Print what became of the results."""
        from medimg.io.files.object_storage import show_location

        if self.folder is not None:
            print(f"{self.made} DICOM files in {show_location(self.folder)}", file=sys.stderr)
        if self.server is None:
            return
        failed = len(self.failures)
        present = f", {self.present} were on the server already" if self.present else ""
        refused = f", {failed} not stored:" if failed else ""
        print(f"{self.stored} DICOM instances stored{present}{refused}", file=sys.stderr)
        for line in self.failures[:_MOST_SHOWN]:
            print(f"  {line}", file=sys.stderr)
        if failed > _MOST_SHOWN:
            print(f"  and {failed - _MOST_SHOWN} more", file=sys.stderr)


def _count_bytes(result: Dataset) -> int:
    return sum(len(result[name].value) for name in ("PixelData", "FloatPixelData") if name in result)


def find_result_target(args: argparse.Namespace) -> ResultTarget | None:
    """Return where results go, before anything is predicted; None if none are asked for."""
    import medimg
    from medimg.io.files.output import check_target

    if args.verify is not None and args.stow is None:
        raise ConversionError("--verify is for the server of --stow URL, which was not given")
    if args.dicom_out is None and args.stow is None:
        return None
    option = "--stow" if args.dicom_out is None else "--dicom-out"
    if args.unit != "series":
        raise ConversionError(f"{option} makes results of series; leave --unit at its default, series")
    server = None
    if args.stow is not None:
        server = medimg.dicomweb(args.stow, verify=True if args.verify is None else args.verify)
    folder = None
    if args.dicom_out is not None:
        folder = check_target("--dicom-out", args.dicom_out, error=ConversionError, is_folder=True)
    return ResultTarget(folder, server)
