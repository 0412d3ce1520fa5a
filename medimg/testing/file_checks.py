"""Checks of file formats: renamed, truncated, damaged and missing files."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from medimg.errors import MedimgError, MedimgWarning, NotAnImageError
from medimg.testing.check import get_rule, report_breach, require
from medimg.testing.corruption import damaged

if TYPE_CHECKING:
    from collections.abc import Callable

    from medimg.core.volume import Volume
    from medimg.io.series import Series

__all__ = ["FILE_CHECKS", "FileCheck", "Open", "open_one"]

Open: TypeAlias = "Callable[[Path], Series]"

_DAMAGED: Final = 60


@dataclass(frozen=True, slots=True)
class FileCheck:
    """
    One rule of the contract about single files, executable.

    Attributes
    ----------
    name : str
        Name of the check, as shown by pytest.
    rule : str
        The rule, in one sentence.
    function : callable
        Function of the opener, a copy of the file, and a folder to write in.
    """

    name: str
    rule: str
    function: Callable[[Open, Path, Path], None] = field(repr=False)

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, path: str | Path, opener: Open | None = None) -> None:
        """
        Check the format of a valid file, on copies.

        Parameters
        ----------
        path : str or Path
            File that holds one series by itself.
        opener : callable, optional
            Path → Series; :func:`medimg.scan` by default.

        Raises
        ------
        AssertionError
            If the rule is broken.
        """
        source = Path(path)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "source" / source.name
            copy.parent.mkdir()
            copy.write_bytes(source.read_bytes())
            with report_breach(self.name, self.rule):
                self.function(opener or open_one, copy, Path(folder))


def open_one(path: Path) -> Series:
    """Return the one series of a file, by :func:`medimg.scan`; NotAnImageError if there is not one."""
    from medimg.io.scan import scan

    index = scan(path, progress=False)
    if len(index) != 1:
        raise NotAnImageError(f"{len(index)} series in {path}; expected one")
    return index[0]


def _make_check(function: Callable[[Open, Path, Path], None]) -> FileCheck:
    return FileCheck(function.__name__, get_rule(function), function)


def _read(opener: Open, path: Path) -> Volume:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MedimgWarning)
        return opener(path).read()


@_make_check
def folder_and_stem_do_not_matter(opener: Open, path: Path, folder: Path) -> None:
    """A file reads the same under another name, in a folder with spaces and letters of any script."""
    expected = _read(opener, path)
    moved = folder / "a b'ü–日" / f"cöpy of it{''.join(path.suffixes[-2:])}"
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    found = _read(opener, moved)
    require(expected.array.tobytes() == found.array.tobytes(), "other values")
    require(np.array_equal(expected.affine, found.affine), "another affine")


@_make_check
def file_beside_it_does_not_matter(opener: Open, path: Path, folder: Path) -> None:
    """A file reads the same with others beside it, even of the same name with another extension."""
    expected = _read(opener, path)
    stem = path.name.removesuffix("".join(path.suffixes))
    for name in (stem, f"{stem}.nii", f"{stem}.json", f"{stem}.txt", f"{path.name}.bak"):
        beside = path.parent / name
        if not beside.exists():
            beside.write_bytes(b"\x5c\x01\x00\x00 something else")
    found = _read(opener, path)
    require(expected.array.tobytes() == found.array.tobytes(), "other values")


@_make_check
def file_that_is_gone_is_refused(opener: Open, path: Path, folder: Path) -> None:
    """A file that does not exist, or was removed since it was opened, is a MedimgError that names it."""
    series = opener(path)
    path.unlink()
    for source in (path, series):
        try:
            _read(opener, source) if isinstance(source, Path) else source.read()
        except MedimgError as error:
            require(path.name in str(error), "a message without its name")
        except Exception as error:
            raise AssertionError(type(error).__name__) from error
        else:
            require(False, "a volume")


@_make_check
def file_without_content_is_refused(opener: Open, path: Path, folder: Path) -> None:
    """An empty file, one of zeros and one of noise under its name raise a MedimgError."""
    noise = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    for content in (b"", bytes(5000), noise):
        path.write_bytes(content)
        require(_try_read(opener, path) is None, f"a volume of {len(content)} bytes without sense")


@_make_check
def file_cut_short_is_refused(opener: Open, path: Path, folder: Path) -> None:
    """A file that ends within its pixels raises a MedimgError, and is never padded."""
    whole = path.read_bytes()
    expected = _read(opener, path)
    for share in (0.999, 0.9, 0.6):
        path.write_bytes(whole[: int(len(whole) * share)])
        found = _try_read(opener, path)
        # data after the pixels may be lost
        same = found is not None and found.array.tobytes() == expected.array.tobytes()
        require(found is None or same, f"other values from {share:.1%} of the file")


@_make_check
def damaged_file_is_a_volume_or_a_medimg_error(opener: Open, path: Path, folder: Path) -> None:
    """A damaged file gives a volume or a MedimgError, no other exception and no other warning."""
    for number, content in enumerate(damaged(path.read_bytes(), count=_DAMAGED)):
        path.write_bytes(content)
        try:
            _try_read(opener, path)
        except AssertionError as error:
            raise AssertionError(f"{error} (copy {number} of medimg.testing.damaged)") from error


def _try_read(opener: Open, path: Path) -> Volume | None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", MedimgWarning)
        try:
            return opener(path).read()
        except MedimgError:
            return None
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} instead of a MedimgError") from error


#: Checks of every format of single files.
FILE_CHECKS: Final = (
    folder_and_stem_do_not_matter,
    file_beside_it_does_not_matter,
    file_that_is_gone_is_refused,
    file_without_content_is_refused,
    file_cut_short_is_refused,
    damaged_file_is_a_volume_or_a_medimg_error,
)
