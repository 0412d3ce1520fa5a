"""Ways to spoil a copy of a real series, and the facts of the original as pydicom alone sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import FileDataset
from pydicom.uid import generate_uid

#: How many slices of each scan are used.
COUNT = 12

Files: TypeAlias = list[FileDataset]
Spoil: TypeAlias = Callable[[Files], Files]


@dataclass(frozen=True)
class Original:
    """A real series, sorted by position along the normal; values and positions by pydicom alone."""

    datasets: tuple[FileDataset, ...]
    values: npt.NDArray[Any]
    positions: npt.NDArray[np.float64]
    normal: npt.NDArray[np.float64]

    @property
    def gap(self) -> float:
        return float(np.diff(self.positions @ self.normal).mean())

    def copies(self) -> Files:
        return [labeled(pydicom.dcmread(str(ds.filename)), n) for n, ds in enumerate(self.datasets)]


def labeled(ds: FileDataset, place: int, *, second: bool = False) -> FileDataset:
    """Remember, beside its elements, which slice of which scan a data set is."""
    ds.slice_index, ds.is_second = place, second
    return ds


def stated_places(files: Files) -> dict[tuple[bool, int], npt.NDArray[np.float64]]:
    """Return the position that the file of each slice states, for the scan and the added one."""
    return {
        (ds.is_second, ds.slice_index): np.asarray([float(v) for v in ds.ImagePositionPatient])
        for ds in files
        if "ImagePositionPatient" in ds
    }


def original(folder: Path, count: int = COUNT) -> Original:
    datasets = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        ds = pydicom.dcmread(path, force=True)
        if "ImagePositionPatient" in ds:
            datasets.append(ds)
    x, y = np.asarray(datasets[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(x, y)
    datasets.sort(key=lambda ds: float(np.asarray(ds.ImagePositionPatient, float) @ normal))
    datasets = datasets[:count]
    values = np.stack([rescaled(ds) for ds in datasets])
    positions = np.asarray([[float(v) for v in ds.ImagePositionPatient] for ds in datasets])
    return Original(tuple(datasets), values, positions, normal)


def rescaled(ds: FileDataset) -> npt.NDArray[Any]:
    slope, intercept = float(ds.get("RescaleSlope", 1)), float(ds.get("RescaleIntercept", 0))
    return np.asarray(ds.pixel_array * slope + intercept)


def write_files(files: Files, folder: Path) -> None:
    """Write each data set, under the name it carries or a plain number."""
    for n, ds in enumerate(files):
        name = getattr(ds, "as_file", f"{n:03d}.dcm")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if getattr(ds, "bare", False):
            ds.file_meta = pydicom.dataset.FileMetaDataset()
            pydicom.dcmwrite(path, ds, implicit_vr=True, little_endian=True, enforce_file_format=False)
            data = path.read_bytes()
            path.write_bytes(data[132:] if data[128:132] == b"DICM" else data)
        else:
            ds.save_as(path, enforce_file_format=False)


def again(ds: FileDataset) -> FileDataset:
    return labeled(pydicom.dcmread(str(ds.filename)), ds.slice_index)


def with_new_uid(ds: FileDataset) -> FileDataset:
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return ds


def with_other_pixels(ds: FileDataset) -> FileDataset:
    """Turn the picture upside down: other values within the same range."""
    ds.PixelData = np.ascontiguousarray(ds.pixel_array[::-1]).tobytes()
    return with_new_uid(ds)


def each(change: Callable[[FileDataset], object]) -> Spoil:
    def spoil(files: Files) -> Files:
        for ds in files:
            change(ds)
        return files

    return spoil


def without(*places: int) -> Spoil:
    return lambda files: [ds for n, ds in enumerate(files) if n not in places]


def plus(place: int, change: Callable[[FileDataset], FileDataset]) -> Spoil:
    """Add a changed copy of one file."""
    return lambda files: [*files, change(again(files[place]))]


def stripped(*keywords: str) -> Spoil:
    def strip(ds: FileDataset) -> None:
        for keyword in keywords:
            if keyword in ds:
                delattr(ds, keyword)

    return each(strip)


def setting(**attributes: Any) -> Spoil:
    def change(ds: FileDataset) -> None:
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)

    return each(change)


def named_at_random(files: Files) -> Files:
    for n, place in enumerate(np.random.default_rng(1).permutation(len(files))):
        files[n].as_file = f"{'abc'[n % 3]}/{place:x}-IM"
    return files


def numbered_at_random(files: Files) -> Files:
    for n, place in enumerate(np.random.default_rng(2).permutation(len(files))):
        files[n].InstanceNumber = int(place) + 1
    return files


def in_subfolder(files: Files) -> Files:
    for n, ds in enumerate(files):
        ds.as_file = f"second/{n:03d}"
    return files


def with_second(*changes: Spoil) -> Spoil:
    """Add the whole scan once more, with other pixels and what else is changed."""

    def spoil(files: Files) -> Files:
        second = [labeled(with_other_pixels(again(ds)), ds.slice_index, second=True) for ds in files]
        for change in changes:
            second = change(second)
        return [*files, *second]

    return spoil


def phases(*changes: Spoil, **attributes: tuple[Any, Any]) -> Spoil:
    """Add the whole scan once more, where attributes of both tell them apart."""
    first = setting(**{k: v[0] for k, v in attributes.items()})
    second = setting(**{k: v[1] for k, v in attributes.items()})
    return lambda files: with_second(second, *changes)(first(files))


def both(*changes: Spoil) -> Spoil:
    def spoil(files: Files) -> Files:
        for change in changes:
            files = change(files)
        return files

    return spoil


def moved(by: Callable[[int, Files], npt.NDArray[np.float64]]) -> Spoil:
    """Move the position of each slice."""

    def spoil(files: Files) -> Files:
        shifts = [by(n, files) for n in range(len(files))]
        for ds, shift in zip(files, shifts, strict=True):
            place = np.asarray([float(v) for v in ds.ImagePositionPatient]) + shift
            ds.ImagePositionPatient = [f"{v:.6f}" for v in place]
        return files

    return spoil


def axes_of(files: Files) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
    """Y, the normal, and the distance between the slices."""
    x, y = np.asarray(files[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(x, y)
    along = [np.asarray(ds.ImagePositionPatient, float) @ normal for ds in files]
    return y, normal, float(np.diff(along).mean())


def sheared(n: int, files: Files) -> npt.NDArray[np.float64]:
    y, _, gap = axes_of(files)
    return np.asarray(y * n * gap * np.tan(np.radians(15)))


def sheared_by_a_row(n: int, files: Files) -> npt.NDArray[np.float64]:
    y, _, _ = axes_of(files)
    return np.asarray(y * n * float(files[0].PixelSpacing[0]))


def shear_degrees(files: Files) -> float:
    """The angle between the line of the positions and the normal of the slices."""
    _, normal, _ = axes_of(files)
    first, last = (np.array(files[n].ImagePositionPatient, float) for n in (0, -1))
    way = last - first
    return float(np.degrees(np.arccos(min(1.0, abs(way @ normal) / np.linalg.norm(way)))))


def jittered(n: int, files: Files) -> npt.NDArray[np.float64]:
    _, normal, _ = axes_of(files)
    return np.asarray(normal * 0.010 * (-1) ** n / 2)


def jittered_by_percent(n: int, files: Files) -> npt.NDArray[np.float64]:
    _, normal, gap = axes_of(files)
    return normal * gap * 0.03 * (n == 5)


def uneven(n: int, files: Files) -> npt.NDArray[np.float64]:
    _, normal, gap = axes_of(files)
    return normal * gap * 0.3 * (n == 5)


def halfway(n: int, files: Files) -> npt.NDArray[np.float64]:
    _, normal, gap = axes_of(files)
    return normal * gap / 2


def numbers_go_on(files: Files) -> Files:
    for ds in files:
        ds.InstanceNumber = int(ds.InstanceNumber) + 1000
    return files


def without_meta(files: Files) -> Files:
    for ds in files:
        ds.bare = True
    return files
