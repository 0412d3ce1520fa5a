"""Observed reads: what a read returns, and its side effects."""

from __future__ import annotations

import io
import logging
import os
import random
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from medimg.errors import MedimgError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from medimg.core.volume import Volume
    from medimg.io.series import Series

__all__ = ["Observation", "Read", "Reading", "list_folders"]

Read: TypeAlias = "Callable[[Sequence[int] | None], Volume]"


@dataclass(frozen=True, slots=True)
class Observation:
    """What one read returned, and its side effects."""

    volume: Volume
    warnings: tuple[tuple[type[Warning], str], ...] = ()  # category and text
    said: str = ""  # printed and logged text
    changed: tuple[str, ...] = ()  # settings of the process
    touched: tuple[str, ...] = ()  # files beside the source that appeared, vanished or changed
    left_open: tuple[str, ...] = ()  # files of the series that are still open


class Reading:
    """
    A series and its volume, read once for all checks.

    Parameters
    ----------
    series : Series
        Series to read.
    read : callable, optional
        Function that reads some slices, or all for None; ``series.read`` by default. Policies that resample
        or keep duplicates change the shape, and are outside the contract.
    secrets : sequence of str
        Texts of the file that identify the patient.
    """

    def __init__(self, series: Series, *, read: Read | None = None, secrets: Sequence[str] = ()) -> None:
        self._series: Series | None = series
        self._read: Read = read or series.read
        self.secrets = tuple(s for s in secrets if s)

    @classmethod
    def of_volume(cls, volume: Volume, *, secrets: Sequence[str] = ()) -> Reading:
        """Return the reading of a volume without a series."""
        self = cls.__new__(cls)
        self._series = None
        self.secrets = tuple(secrets)
        self.__dict__["first"] = Observation(volume)
        return self

    @property
    def is_volume_only(self) -> bool:
        """Whether there is no series."""
        return self._series is None

    @property
    def series(self) -> Series:
        """The series."""
        if self._series is None:
            raise TypeError("there is a volume only, no series")
        return self._series

    @cached_property
    def first(self) -> Observation:
        """The first read of all slices, which may import what it needs."""
        return self._observe(watch=False)

    @cached_property
    def second(self) -> Observation:
        """The second read of all slices, observed for side effects."""
        _ = self.first
        return self._observe(watch=True)

    @property
    def volume(self) -> Volume:
        """The volume of the first read."""
        return self.first.volume

    def read(self, slices: Sequence[int] | None = None) -> Volume:
        """Read again, without warnings, which the first read has recorded."""
        return self.read_at_once([slices], 1)[0]

    def read_at_once(self, choices: Sequence[Sequence[int] | None], threads: int) -> list[Volume]:
        """Read several choices of slices, in several threads if more than one, without warnings."""
        # warning filters are global: threads that set and restore them would interfere
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if threads == 1:
                return [self._read(slices) for slices in choices]
            with ThreadPoolExecutor(threads) as pool:
                return list(pool.map(self._read, choices))

    def _observe(self, *, watch: bool) -> Observation:
        folders = list_folders(self.series.files) if watch else ()
        before = _list_entries(folders)
        said = io.StringIO()
        with _capture_output(said) as caught:
            state = _read_settings() if watch else {}
            volume = self._read_all()
            after = _read_settings() if watch else {}
        return Observation(
            volume,
            tuple((w.category, str(w.message)) for w in caught),
            said.getvalue(),
            tuple(sorted(name for name in state if state[name] != after[name])),
            tuple(sorted(dict(before ^ _list_entries(folders)))),
            _find_open_files(self.series.files) if watch else (),
        )

    def _read_all(self) -> Volume:
        try:
            return self._read(None)
        except MedimgError:
            raise
        except Exception as error:
            raise AssertionError(
                f"reading raised {type(error).__name__}; a reader raises a MedimgError that says what was "
                "found, what was expected and what to do, and nothing else"
            ) from error


@contextmanager
def _capture_output(said: io.StringIO) -> Iterator[list[warnings.WarningMessage]]:
    handler = logging.StreamHandler(said)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            redirect_stdout(said),
            redirect_stderr(said),
        ):
            warnings.simplefilter("always")
            yield caught
    finally:
        root.removeHandler(handler)


def _read_settings() -> dict[str, Any]:
    """Return the settings of the process that no reader may change."""
    random_numbers = np.random.get_state(legacy=False)  # noqa: NPY002  # readers must not change it
    pydicom_config = vars(sys.modules["pydicom.config"]) if "pydicom.config" in sys.modules else {}
    return {
        "working folder": str(Path.cwd()),
        "environment": dict(os.environ),
        "filters of warnings": list(warnings.filters),
        "handlers of the root logger": list(logging.getLogger().handlers),
        "level of the root logger": logging.getLogger().level,
        "error handling of numpy": np.geterr(),
        "print options of numpy": np.get_printoptions(),
        "random numbers of numpy": repr(random_numbers),
        "random numbers of Python": random.getstate(),
        "search path of Python": list(sys.path),
        "settings of pydicom": {k: v for k, v in pydicom_config.items() if isinstance(v, bool | int | str)},
    }


def list_folders(files: Sequence[str]) -> tuple[Path, ...]:
    """Return the existing folders of files."""
    return tuple({Path(name).parent: None for name in files if Path(name).exists()})


def _list_entries(folders: Sequence[Path]) -> set[tuple[str, tuple[int, int]]]:
    entries = (entry for folder in folders for entry in os.scandir(folder))
    return {(e.name, (s.st_mtime_ns, s.st_size)) for e in entries if e.is_file() and (s := e.stat())}


def _find_open_files(files: Sequence[str]) -> tuple[str, ...]:
    """Return the files that are open; none if the system does not tell."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        return ()
    wanted = {str(Path(name).resolve()): name for name in files}
    found = []
    for descriptor in descriptors.iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue
        if target in wanted:
            found.append(wanted[target])
    return tuple(sorted(found))
