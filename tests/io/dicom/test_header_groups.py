"""Groups of files by their headers: compiled and plain, against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from medimg._native.library import describe_library, load_library
from medimg.io.dicom.scanning import header_groups
from medimg.io.dicom.scanning.header_groups import CompiledHeaderGroups, HeaderGroups, PlainHeaderGroups
from tests.io.dicom.kinds import of_each_folder
from tests.io.dicom.test_fast_scan import siblings


def collect(groups: HeaderGroups, names: list[str], threads: int) -> tuple[Sequence[object], list[int]]:
    """Return class, series and rows of each group, in the order of the files, and the other files."""
    for at in range(0, len(names), 50):
        groups.add(names[at : at + 50], threads)
    found, rest = groups.finish()
    classes: dict[int, int] = {}
    listed = []
    for group in sorted(found, key=lambda group: group.rows.indices[0]):
        rows = group.rows
        # numbered by the first file of each
        number = classes.setdefault(group.header_class, rows.indices[0])
        listed.append(
            (
                number,
                group.series,
                rows.indices,
                rows.names,
                [list(column) for column in rows.columns],
                [a and a.packed for a in rows.acquisitions],
            )
        )
    return listed, rest


def check(names: list[str], threads: int = 1) -> int:
    """Compare the groups of both, and return how many files are in one."""
    library = load_library()
    if library is None:
        pytest.skip(f"the compiled library is {describe_library()}")
    expected = collect(CompiledHeaderGroups(library), names, threads)
    assert collect(PlainHeaderGroups(), names, threads) == expected
    return len(names) - len(expected[1])


@pytest.mark.parametrize("threads", [1, 3])
def test_real_files(real_data: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_groups, "_MAX_SHARED", 10)
    names = [str(path) for path in of_each_folder(real_data)]
    assert check(names[::threads], threads) > 100


# pydicom warns of them when it writes them
@pytest.mark.filterwarnings("ignore:The value length:UserWarning")
def test_values_too_long_to_be_compared(tmp_path: Path) -> None:
    names = []
    for number, size in enumerate([10, 1024, 1026, 16384, 16386]):
        names += siblings(tmp_path / f"common{number}", 3, ImageType="X" * size)
        names += siblings(tmp_path / f"kept{number}", 3, StationName="X" * size)
        names += siblings(tmp_path / f"own{number}", 3, SeriesDescription="X" * size)
    assert 0 < check(names) < len(names)
