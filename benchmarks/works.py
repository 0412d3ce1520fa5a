"""The kinds of work that are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from benchmarks import checks
from benchmarks.checks import Check
from benchmarks.data import CODECS, Data

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["WORKS", "Work"]

Source: TypeAlias = "Callable[[Data], Path]"


@dataclass(frozen=True, slots=True)
class Work:
    """
    One row of the table.

    Attributes
    ----------
    key, title : str
        By which options and goals name it, and people.
    kind : str
        The function of each peer that does it.
    source : callable
        Of the data: what is worked on.
    check : callable, optional
        Of the data: how results are judged.
    measure : {"time", "cold", "busy", "memory"}
        Time with files in the page cache or without, or beside a process that competes for each core, or
        peak memory.
    antialias : bool
        Whether pictures are to be antialiased.
    long : bool
        Whether it is left out unless asked for: it takes minutes, or much disk.
    """

    key: str
    title: str
    kind: str
    source: Source
    check: Callable[[Data], Check] | None = None
    measure: Literal["time", "cold", "busy", "memory"] = "time"
    antialias: bool = True
    long: bool = False


def _codec(name: str) -> Work:
    title = {
        "rle": "RLE",
        "jpeg_lossless": "JPEG lossless",
        "jpeg_ls": "JPEG-LS",
        "jpeg2000": "JPEG 2000",
        "htj2k": "HTJ2K",
    }[name]
    return Work(name, f"CT in {title} → volume", "codec", partial(Data.ct, codec=name), checks.values)


_ALL: Final = (
    Work("scan", "scan 5,000 files", "scan", Data.tree, checks.tree),
    Work("scan_cold", "scan 5,000 files, not in the page cache", "scan", Data.tree, checks.tree, "cold"),
    Work("scan_layouts", "scan 5,000 files of 2,000 layouts", "scan", Data.layouts, checks.tree),
    Work("scan_fewer", "scan 1,000 files of 400 layouts", "scan", Data.fewer_layouts),
    Work(
        "scan_archive",
        "scan 50,000 files of 12 makers",
        "archive",
        Data.archive,
        checks.archive,
        long=True,
    ),
    Work("scan_pure", "scan 5,000 files, without the compiled core", "scan_pure", Data.tree, checks.tree),
    Work("scan_frames", "scan an enhanced CT of 5,000 frames", "frames", Data.enhanced, checks.frames),
    Work(
        "scan_each_frame",
        "scan an enhanced CT of 5,000 frames, each by itself",
        "each_frame",
        Data.enhanced,
        checks.frames,
        long=True,
    ),
    Work("volume", "CT 300×512² → volume", "volume", Data.ct, checks.values),
    Work("tensors", "CT → (300, 3, 224, 224), antialiased", "tensors", Data.ct, checks.pictures),
    Work(
        "tensors_into",
        "CT → (300, 3, 224, 224), antialiased, into memory that is there",
        "tensors_into",
        Data.ct,
        checks.pictures,
    ),
    Work(
        "tensors_busy",
        "CT → (300, 3, 224, 224), antialiased, beside a competing process on each core",
        "busy_tensors",
        Data.ct,
        checks.pictures,
        "busy",
    ),
    Work(
        "tensors_plain",
        "CT → (300, 3, 224, 224), others not antialiased",
        "plain_tensors",
        Data.ct,
        checks.pictures,
        antialias=False,
    ),
    Work("few", "3 slices of 300 → tensors", "few", Data.ct, checks.few),
    *(_codec(name) for name in CODECS),
    Work("xrays", "40 DX 3000×2500 → tensors, antialiased", "xrays", Data.xrays, checks.xrays),
    Work(
        "xrays_plain",
        "40 DX → tensors, others not antialiased",
        "plain_xrays",
        Data.xrays,
        checks.xrays,
        antialias=False,
    ),
    Work("resample", "CT volume to 1 mm, antialiased", "resample", Data.ct, checks.antialiased),
    Work("resample_linear", "CT volume to 1 mm, linear", "resample_linear", Data.ct, checks.linear),
    Work("nifti_gz", ".nii.gz → volume", "nifti", Data.zipped_nifti, checks.values),
    Work("nifti", ".nii → volume", "nifti", Data.nifti, checks.values),
    Work("epoch", "second epoch, from the image cache", "epoch", Data.ct),
    Work("loaders", "300 CT files → batches, by 8 loader processes", "loaders", Data.ct, checks.items),
    Work("memory_volume", "CT → volume, additional memory", "volume", Data.ct, measure="memory"),
    Work("memory_tensors", "CT → tensors, additional memory", "tensors", Data.ct, measure="memory"),
)
#: Key → work, in the order of the table.
WORKS: Final = {work.key: work for work in _ALL}
