"""Synthetic datasets: many patients, several scanners, and tables of labels."""

import csv
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from medimg._validation import check_path
from medimg.core.progress import Progress, progress_bar
from medimg.errors import DatasetError
from medimg.phantom.ct import PhantomCT, chest_ct
from medimg.phantom.dicom_ct import make_series_uid, write_ct_series
from medimg.phantom.dicom_modules import Identity, make_file_name
from medimg.phantom.dicom_xray import write_xray_image
from medimg.phantom.lesions import CLASSES, check_classes
from medimg.phantom.patient import Habitus
from medimg.phantom.scanner import CT_SCANNERS, XRAY_SCANNERS
from medimg.phantom.xray import chest_xray

__all__ = ["write_ct_dataset", "write_xray_dataset"]

Row: TypeAlias = dict[str, str]

_CT_NAMES = tuple(scanner.name for scanner in CT_SCANNERS)
_XRAY_NAMES = tuple(scanner.name for scanner in XRAY_SCANNERS)
_SERIES_COLUMNS = ("path", "patient_id", "series_uid", "label", "scanner")
_SLICE_COLUMNS = (
    "file",
    "sop_instance_uid",
    "series_uid",
    "patient_id",
    "label",
    "lesion_mm2",
    "patient_label",
    "scanner",
)
_IMAGE_COLUMNS = ("file", "patient_id", "label", "scanner")


@dataclass(frozen=True)
class _Entry:
    """One patient of a dataset: `number` from 1, the seed of the anatomy, class, scanner and habitus."""

    number: int
    seed: int
    label: str
    scanner: str
    habitus: Habitus


def write_ct_dataset(
    root: str | os.PathLike[str],
    *,
    patients: int = 24,
    slices: int = 12,
    size: int = 256,
    seed: int = 0,
    classes: Sequence[str] = CLASSES,
    scanners: Sequence[str] = _CT_NAMES,
    progress: Progress = "auto",
) -> Path:
    """
    Write synthetic chest CT series as DICOM files, with tables of labels per series and per slice.

    Each patient has one series. Classes are equally frequent (to within one patient) and balanced in body
    size, lung density and scanner, so that neither a mean gray level nor the header distinguishes them. The
    same arguments give the same files, byte for byte.

    Parameters
    ----------
    root : path-like
        Folder to create; it may exist if it is empty.
    patients : int
        Number of patients; at least one of each class.
    slices, size : int
        Slices per series, and rows and columns of each.
    seed : int
        Seed of the patients, 0 or more.
    classes : sequence of str
        Some of "normal", "nodule", "ground_glass" and "consolidation".
    scanners : sequence of str
        Names of scanners of `CT_SCANNERS`, among which the patients are distributed.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

    Returns
    -------
    Path
        ``labels.csv`` in `root`: path (folder of the series, relative to `root`), patient_id, series_uid,
        label (class of the patient), scanner. ``slices.csv`` beside it: file, sop_instance_uid, series_uid,
        patient_id, label (class of the slice: "normal" if no lesion is on it), lesion_mm2 (area of the
        lesions on it), patient_label, scanner.

    Raises
    ------
    DatasetError
        If a class or scanner is unknown, a number is too small, or `root` is a file or a folder that is not
        empty.
    """
    plan = _plan_patients(patients, classes, scanners, seed)
    key = f"ct/{seed}"
    labels: list[Row] = []
    pieces: list[Row] = []
    folder = check_path("root", root, error=DatasetError)
    with _stage_folder(folder) as staging:
        for entry in progress_bar(plan, desc="writing", unit="patient", progress=progress):
            phantom = chest_ct(
                entry.seed,
                label=entry.label,
                scanner=entry.scanner,
                slices=slices,
                size=size,
                habitus=entry.habitus,
            )
            series, files = _write_series(phantom, staging, Identity.derive(key, entry.number))
            labels.append(series)
            pieces += files
        _write_table(staging / "labels.csv", _SERIES_COLUMNS, labels)
        _write_table(staging / "slices.csv", _SLICE_COLUMNS, sorted(pieces, key=lambda row: row["file"]))
    return folder / "labels.csv"


def _write_series(phantom: PhantomCT, root: Path, identity: Identity) -> tuple[Row, list[Row]]:
    """Write one series; return its row of labels.csv and those of slices.csv."""
    uid = make_series_uid(phantom, identity)
    folder = root / "series" / make_file_name(uid)
    folder.mkdir(parents=True)
    written = write_ct_series(phantom, folder, identity)
    shared = {"patient_id": identity.patient_id, "series_uid": uid, "scanner": phantom.scanner.name}
    slices = [
        {
            "file": piece.path.relative_to(root).as_posix(),
            "sop_instance_uid": piece.sop_instance_uid,
            "label": label,
            "lesion_mm2": f"{area:.1f}",
            "patient_label": phantom.label,
            **shared,
        }
        for piece, label, area in zip(written, phantom.slice_labels, phantom.lesion_mm2, strict=True)
    ]
    return {"path": folder.relative_to(root).as_posix(), "label": phantom.label, **shared}, slices


def write_xray_dataset(
    root: str | os.PathLike[str],
    *,
    patients: int = 60,
    size: tuple[int, int] = (512, 448),
    seed: int = 0,
    classes: Sequence[str] = ("normal", "nodule", "consolidation"),
    scanners: Sequence[str] = _XRAY_NAMES,
    progress: Progress = "auto",
) -> Path:
    """
    Write synthetic chest X-rays as DICOM files, with a table of labels.

    About a third of the patients have two or three images, of the same chest and on different units.
    Otherwise as :func:`write_ct_dataset`.

    Parameters
    ----------
    root : path-like
        Folder to create; it may exist if it is empty.
    patients : int
        Number of patients; at least one of each class.
    size : tuple of 2 ints
        Rows and columns.
    seed : int
        Seed of the patients, 0 or more.
    classes : sequence of str
        Some of "normal", "nodule", "ground_glass" and "consolidation".
    scanners : sequence of str
        Names of units of `XRAY_SCANNERS`, among which the patients are distributed.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

    Returns
    -------
    Path
        ``labels.csv`` in `root`: file (relative to `root`), patient_id, label, scanner.

    Raises
    ------
    DatasetError
        If a class or unit is unknown, a number is too small, or `root` is a file or a folder that is not
        empty.
    """
    plan = _plan_patients(patients, classes, scanners, seed)
    key = f"xray/{seed}"
    rows: list[Row] = []
    folder = check_path("root", root, error=DatasetError)
    with _stage_folder(folder) as staging:
        images = staging / "images"
        images.mkdir()
        for entry in progress_bar(plan, desc="writing", unit="patient", progress=progress):
            identity = Identity.derive(key, entry.number)
            for exposure, scanner in enumerate(_choose_units(entry, scanners)):
                phantom = chest_xray(
                    entry.seed,
                    label=entry.label,
                    scanner=scanner,
                    size=size,
                    habitus=entry.habitus,
                    exposure=exposure,
                )
                path = write_xray_image(phantom, images, identity, number=exposure + 1)
                row = {"file": path.relative_to(staging).as_posix(), "patient_id": identity.patient_id}
                rows.append({**row, "label": entry.label, "scanner": scanner})
        _write_table(staging / "labels.csv", _IMAGE_COLUMNS, rows)
    return folder / "labels.csv"


def _plan_patients(
    patients: int, classes: Sequence[str], scanners: Sequence[str], seed: int
) -> tuple[_Entry, ...]:
    """Plan class, scanner and habitus of each patient, balanced over the classes."""
    check_classes(tuple(classes))
    if patients < len(classes) or seed < 0 or not scanners:
        raise DatasetError(
            f"{patients} patients for {len(classes)} classes on {len(scanners)} scanners, seed {seed}: there "
            "must be a patient for each class, a scanner, and no negative seed; change what is not so"
        )
    rng = np.random.default_rng([seed, 0])
    machines = [scanners[i] for i in rng.permutation(len(scanners))]
    drawn: list[tuple[str, str, Habitus]] = []
    for which, label in enumerate(classes):
        count = patients // len(classes) + (which < patients % len(classes))
        sizes, densities = ((rng.permutation(count) + 0.5) / count for _ in range(2))
        start = which * max(len(machines) // len(classes), 1)
        for member in range(count):
            habitus = Habitus(float(sizes[member]), float(densities[member]))
            drawn.append((label, machines[(start + member) % len(machines)], habitus))
    return tuple(
        _Entry(number, int(np.random.SeedSequence([seed, number]).generate_state(1)[0]), *drawn[index])
        for number, index in enumerate(rng.permutation(len(drawn)), start=1)
    )


def _choose_units(entry: _Entry, scanners: Sequence[str]) -> tuple[str, ...]:
    """Return the units of a patient's images: one for most, two or three different ones for some."""
    rng = np.random.default_rng([entry.seed, 6])
    more = int(rng.choice([0, 1, 2], p=[0.67, 0.23, 0.10]))
    others = [name for name in scanners if name != entry.scanner]
    return entry.scanner, *(others[i] for i in rng.permutation(len(others))[:more])


@contextmanager
def _stage_folder(root: Path) -> Iterator[Path]:
    """Make a folder beside `root` that replaces it on success and is removed on failure."""
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise DatasetError(
            f"{root} already exists and is not an empty folder; remove it or name another folder"
        )
    staging = root.parent / f".{root.name}.{os.getpid()}.partial"
    staging.mkdir(parents=True)
    try:
        yield staging
        if root.is_dir():
            root.rmdir()
        staging.replace(root)
    except BaseException:
        shutil.rmtree(staging)
        raise


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
