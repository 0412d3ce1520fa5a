"""A series under observation: what a read returns, and what it does besides."""

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

__all__ = ["Observation", "Read", "Reading", "folders_of"]

Read: TypeAlias = "Callable[[Sequence[int] | None], Volume]"


@dataclass(frozen=True, slots=True)
class Observation:
    """
    What one read returned and did besides.

    Attributes
    ----------
    volume : Volume
        What it returned.
    warnings : tuple of (type, str)
        Category and text of each warning.
    said : str
        What was printed and logged.
    changed : tuple of str
        Settings of the process that are not what they were.
    touched : tuple of str
        Files beside the source that appeared, vanished or changed.
    left_open : tuple of str
        Files of the series that are still open.
    """

    volume: Volume
    warnings: tuple[tuple[type[Warning], str], ...] = ()
    said: str = ""
    changed: tuple[str, ...] = ()
    touched: tuple[str, ...] = ()
    left_open: tuple[str, ...] = ()


class Reading:
    """
    A series, and what reading it gives; read once for all checks.

    Parameters
    ----------
    series : Series
        What to read.
    read : callable, optional
        Reads some slices, or all for None; ``series.read`` by default. Policies that resample or that keep
        duplicates change the shape: they are no matter of this contract.
    secrets : sequence of str
        Texts of the file that identify the patient.
    """

    def __init__(self, series: Series, *, read: Read | None = None, secrets: Sequence[str] = ()) -> None:
        self._series: Series | None = series
        self._read: Read = read or series.read
        self.secrets = tuple(s for s in secrets if s)

    @classmethod
    def of_volume(cls, volume: Volume, *, secrets: Sequence[str] = ()) -> Reading:
        """Return what checks of volumes need, without a series."""
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
            raise TypeError("there is only a volume, and no series")
        return self._series

    @cached_property
    def first(self) -> Observation:
        """The first read of all slices, which may import what it needs."""
        return self._observed(watch=False)

    @cached_property
    def second(self) -> Observation:
        """The second read of all slices, with an eye on what it does besides."""
        _ = self.first
        return self._observed(watch=True)

    @property
    def volume(self) -> Volume:
        """What the first read returned."""
        return self.first.volume

    def read(self, slices: Sequence[int] | None = None) -> Volume:
        """Read again, with warnings ignored: those of the first read are known."""
        return self.read_at_once([slices], 1)[0]

    def read_at_once(self, choices: Sequence[Sequence[int] | None], threads: int) -> list[Volume]:
        """Read several choices of slices, in threads where there are more than one, with warnings ignored."""
        # filters belong to the process: threads that set and restore them would do so for each other
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if threads == 1:
                return [self._read(slices) for slices in choices]
            with ThreadPoolExecutor(threads) as pool:
                return list(pool.map(self._read, choices))

    def _observed(self, *, watch: bool) -> Observation:
        folders = folders_of(self.series.files) if watch else ()
        before = _listing(folders)
        said = io.StringIO()
        with _listening(said) as caught:
            state = _settings() if watch else {}
            volume = self._checked_read()
            after = _settings() if watch else {}
        return Observation(
            volume,
            tuple((w.category, str(w.message)) for w in caught),
            said.getvalue(),
            tuple(sorted(name for name in state if state[name] != after[name])),
            tuple(sorted(dict(before ^ _listing(folders)))),
            _open_files(self.series.files) if watch else (),
        )

    def _checked_read(self) -> Volume:
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
def _listening(said: io.StringIO) -> Iterator[list[warnings.WarningMessage]]:
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


def _settings() -> dict[str, Any]:
    """Return what belongs to the process, and no reader may change."""
    random_numbers = np.random.get_state(legacy=False)  # noqa: NPY002  # what a reader may not touch
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


def folders_of(files: Sequence[str]) -> tuple[Path, ...]:
    """Return the folders that files lie in, as far as they exist."""
    return tuple({Path(name).parent: None for name in files if Path(name).exists()})


def _listing(folders: Sequence[Path]) -> set[tuple[str, tuple[int, int]]]:
    entries = (entry for folder in folders for entry in os.scandir(folder))
    return {(e.name, (s.st_mtime_ns, s.st_size)) for e in entries if e.is_file() and (s := e.stat())}


def _open_files(files: Sequence[str]) -> tuple[str, ...]:
    """Return which files are open; none where the system does not tell."""
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
