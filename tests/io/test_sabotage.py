"""
Spoiled copies of real series: what comes out under each policy, in one table.

A volume must hold the slices that the table names, each with the values of the original and in the place that
the original states, as pydicom alone sees both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medimg
from medimg.core.volume import Volume
from medimg.errors import (
    AmbiguousSeriesError,
    DuplicateSlicesError,
    MedimgError,
    MedimgWarning,
    MissingSlicesError,
    TiltedGantryError,
)
from tests.conformance import Conformance
from tests.io import sabotage as s
from tests.sampling import SLOW

ALL = tuple(range(s.COUNT))
FILLED = None

SCANS = {
    "CT": "dicom_misc/lidc_3pat_excerpt/tests/assets/test_image_data/small/LIDC-IDRI-0001",
    "MR": "dicom_qa/fmap/In/Siemens/4_gre_field_ph",
}


@dataclass(frozen=True)
class Stack:
    """
    One series that is read.

    slices: the original slice at each place, None for one that is interpolated; channels: 2 where the
    second holds the added scan; says: what a warning says, "" for none; notes: what the report says without
    a warning; placed: how many of the first slices must lie in the places that the originals state, all by
    default; second: whether it is the added scan by itself; straightened: whether pixels are looked up
    by their place in the patient, as the slices are moved against each other.
    """

    slices: tuple[int | None, ...] = ALL
    channels: int = 1
    says: str = ""
    notes: str = ""
    placed: int = 99
    space: str = "patient"
    second: bool = False
    straightened: bool = False


def less(*gone: int) -> tuple[int, ...]:
    return tuple(n for n in ALL if n not in gone)


def filled(*gone: int) -> tuple[int | None, ...]:
    return tuple(FILLED if n in gone else n for n in ALL)


def twice(place: int) -> tuple[int, ...]:
    return tuple(sorted((*ALL, place)))


SECOND = Stack(second=True)
TWO = [Stack(), SECOND]
GAP = "missing"
TILT = "tilted"
TWICE = "position of another"

SPOILED: dict[str, s.Spoil] = {
    "unmodified": lambda files: files,
    "one slice removed": s.without(5),
    "two neighbors removed": s.without(5, 6),
    "two separate slices removed": s.without(3, 8),
    "last slice removed": s.without(11),
    "first slice removed": s.without(0),
    "one file copied": s.plus(5, lambda ds: ds),
    "one slice duplicated, new UID": s.plus(5, s.with_new_uid),
    "different pixels at one position": s.plus(5, s.with_other_pixels),
    "file names shuffled": s.named_at_random,
    "instance numbers shuffled": s.numbered_at_random,
    "file names and instance numbers shuffled": s.both(s.named_at_random, s.numbered_at_random),
    "second series": s.with_second(s.setting(SeriesInstanceUID="1.2.3.99")),
    "second series, interleaved": s.with_second(s.setting(SeriesInstanceUID="1.2.3.99"), s.moved(s.halfway)),
    "one UID, two patients": s.with_second(s.setting(PatientID="someone else"), s.moved(s.halfway)),
    "one UID, two studies": s.with_second(s.setting(StudyInstanceUID="1.2.3.98"), s.moved(s.halfway)),
    "one UID, two series numbers": s.with_second(s.setting(SeriesNumber=977), s.moved(s.halfway)),
    "sheared by 15°": s.moved(s.sheared),
    "sheared by a row": s.moved(s.sheared_by_a_row),
    "jitter of 10 µm": s.moved(s.jittered),
    "one slice displaced by 3 %": s.moved(s.jittered_by_percent),
    "one slice displaced by 30 %": s.moved(s.uneven),
    "phase, acquisition number": s.phases(s.numbers_go_on, AcquisitionNumber=(1, 2)),
    "phase, temporal position": s.phases(s.numbers_go_on, TemporalPositionIdentifier=(1, 2)),
    "phase, acquisition time": s.phases(s.numbers_go_on, AcquisitionTime=("120000", "120130.5")),
    "phase, b-value": s.phases(s.numbers_go_on, DiffusionBValue=(0.0, 1000.0)),
    "phase, instance number": s.with_second(s.numbers_go_on),
    "phase, no distinguishing attribute": s.with_second(),
    "phase, acquisition number, unequal coverage": s.phases(
        s.numbers_go_on, s.without(0, 1, 2, 3), AcquisitionNumber=(1, 2)
    ),
    "phase, instance number, unequal coverage": s.with_second(s.numbers_go_on, s.without(0, 1, 2, 3)),
    "phase, file names shuffled": s.both(s.phases(AcquisitionNumber=(1, 2)), s.named_at_random),
    "echo": s.with_second(s.setting(EchoTime="99", EchoNumbers=2), s.numbers_go_on),
    "image type": s.with_second(s.setting(ImageType=["ORIGINAL", "PRIMARY", "X"]), s.numbers_go_on),
    "no series UID": s.stripped("SeriesInstanceUID"),
    "no series UID, two folders": s.both(
        s.with_second(s.in_subfolder, s.moved(s.halfway)), s.stripped("SeriesInstanceUID")
    ),
    "no SOP UIDs": s.stripped("SOPInstanceUID"),
    "no position": s.stripped("ImagePositionPatient"),
    "no orientation": s.stripped("ImageOrientationPatient"),
    "no pixel spacing": s.stripped("PixelSpacing"),
    "no instance number": s.stripped("InstanceNumber"),
    "no position, no instance number": s.stripped("ImagePositionPatient", "InstanceNumber"),
    "no patient, no study": s.stripped("PatientID", "StudyInstanceUID", "StudyID", "PatientName"),
    "no identifiers": s.stripped(
        "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SeriesNumber",
        "FrameOfReferenceUID", "InstanceNumber", "AcquisitionNumber",
    ),
    "no file meta": s.without_meta,
    "one SOP UID for all": s.setting(SOPInstanceUID="1.2.3.4.5"),
    "one SOP UID for all, phase": s.both(
        s.phases(AcquisitionNumber=(1, 2)), s.setting(SOPInstanceUID="1.2.3.4.5")
    ),
}  # fmt: skip

# name, policies, what comes of it: an error, or the series that are read
TABLE: list[tuple[str, dict[str, Any], type[MedimgError] | Stack | list[Stack]]] = [
    ("unmodified", {"on_missing": "raise", "on_duplicate": "raise", "on_tilt": "raise"}, Stack()),
    ("one slice removed", {}, MissingSlicesError),
    ("one slice removed", {"on_missing": "warn"}, Stack(less(5), says=GAP, placed=5)),
    ("one slice removed", {"on_missing": "keep"}, Stack(less(5), placed=5)),
    ("one slice removed", {"on_missing": "fix"}, Stack(filled(5))),
    ("two neighbors removed", {}, MissingSlicesError),
    ("two neighbors removed", {"on_missing": "warn"}, Stack(less(5, 6), says=GAP, placed=5)),
    ("two neighbors removed", {"on_missing": "keep"}, Stack(less(5, 6), placed=5)),
    ("two neighbors removed", {"on_missing": "fix"}, Stack(filled(5, 6))),
    ("two separate slices removed", {}, MissingSlicesError),
    ("two separate slices removed", {"on_missing": "warn"}, Stack(less(3, 8), says=GAP, placed=3)),
    ("two separate slices removed", {"on_missing": "keep"}, Stack(less(3, 8), placed=3)),
    ("two separate slices removed", {"on_missing": "fix"}, Stack(filled(3, 8))),
    # what is missing at an end can't be known
    ("last slice removed", {"on_missing": "raise"}, Stack(less(11))),
    ("last slice removed", {"on_missing": "fix"}, Stack(less(11))),
    ("first slice removed", {"on_missing": "raise"}, Stack(less(0))),
    ("one file copied", {"on_duplicate": "raise"}, DuplicateSlicesError),
    ("one file copied", {"on_duplicate": "warn"}, Stack(says=TWICE)),
    ("one file copied", {"on_duplicate": "fix"}, Stack()),
    ("one file copied", {"on_duplicate": "keep"}, Stack(twice(5), notes="position", placed=1)),
    ("one slice duplicated, new UID", {"on_duplicate": "raise"}, DuplicateSlicesError),
    ("one slice duplicated, new UID", {"on_duplicate": "warn"}, Stack(says=TWICE)),
    ("one slice duplicated, new UID", {"on_duplicate": "fix"}, Stack()),
    ("one slice duplicated, new UID", {"on_duplicate": "keep"}, Stack(twice(5), notes="position", placed=1)),
    ("different pixels at one position", {"on_duplicate": "raise"}, DuplicateSlicesError),
    ("different pixels at one position", {"on_duplicate": "warn"}, DuplicateSlicesError),
    ("different pixels at one position", {"on_duplicate": "fix"}, DuplicateSlicesError),
    ("different pixels at one position", {"on_duplicate": "keep"}, Stack((), notes="position", placed=1)),
    ("file names shuffled", {}, Stack()),
    ("instance numbers shuffled", {}, Stack()),
    ("file names and instance numbers shuffled", {}, Stack()),
    ("second series", {}, TWO),
    ("second series, interleaved", {}, TWO),
    ("one UID, two patients", {}, TWO),
    ("one UID, two studies", {}, TWO),
    ("one UID, two series numbers", {}, TWO),
    ("sheared by 15°", {"on_tilt": "raise"}, TiltedGantryError),
    ("sheared by 15°", {"on_tilt": "warn"}, Stack(says=TILT)),
    ("sheared by 15°", {"on_tilt": "keep"}, Stack()),
    ("sheared by 15°", {"on_tilt": "fix"}, Stack((FILLED,) * s.COUNT)),
    ("sheared by a row", {"on_tilt": "raise"}, TiltedGantryError),
    ("sheared by a row", {"on_tilt": "warn"}, Stack(says=TILT)),
    ("sheared by a row", {"on_tilt": "keep"}, Stack()),
    ("sheared by a row", {"on_tilt": "fix"}, Stack(straightened=True)),
    ("jitter of 10 µm", {}, Stack()),
    ("jitter of 10 µm", {"on_missing": "fix", "on_duplicate": "fix", "on_tilt": "fix"}, Stack()),
    ("one slice displaced by 3 %", {}, Stack(says="vary", placed=5)),
    ("one slice displaced by 30 %", {}, MissingSlicesError),
    ("one slice displaced by 30 %", {"on_missing": "warn"}, Stack(says="uneven", placed=5)),
    ("one slice displaced by 30 %", {"on_missing": "keep"}, Stack(placed=5)),
    ("one slice displaced by 30 %", {"on_missing": "fix"}, Stack(filled(5), placed=5)),
    ("phase, acquisition number", {}, Stack(channels=2)),
    ("phase, acquisition number", {"on_duplicate": "raise"}, Stack(channels=2)),
    ("phase, temporal position", {}, Stack(channels=2)),
    ("phase, acquisition time", {}, Stack(channels=2)),
    ("phase, b-value", {}, Stack(channels=2)),
    ("phase, instance number", {}, Stack(channels=2, says="Instance Number")),
    ("phase, no distinguishing attribute", {"on_duplicate": "raise"}, DuplicateSlicesError),
    ("phase, no distinguishing attribute", {"on_duplicate": "warn"}, DuplicateSlicesError),
    ("phase, no distinguishing attribute", {"on_duplicate": "fix"}, DuplicateSlicesError),
    ("phase, no distinguishing attribute", {"on_duplicate": "keep"}, Stack((), notes="position", placed=1)),
    ("phase, acquisition number, unequal coverage", {}, [Stack(), Stack(less(0, 1, 2, 3), second=True)]),
    ("phase, instance number, unequal coverage", {}, DuplicateSlicesError),
    ("phase, file names shuffled", {}, Stack(channels=2)),
    ("echo", {}, TWO),
    ("image type", {}, TWO),
    ("no series UID", {}, Stack(says="Series Instance UID")),
    ("no series UID, two folders", {}, [Stack(says="Series"), Stack(says="Series", second=True)]),
    ("no SOP UIDs", {}, Stack()),
    ("no position", {}, Stack(says="Instance Number", placed=0, space="image")),
    ("no orientation", {}, Stack(says="Instance Number", placed=0, space="image")),
    ("no pixel spacing", {}, Stack(says="1 mm")),
    ("no instance number", {}, Stack()),
    ("no position, no instance number", {}, MedimgError),
    ("no patient, no study", {}, Stack()),
    ("no identifiers", {}, Stack(says="Series Instance UID")),
    ("no file meta", {}, Stack()),
    ("one SOP UID for all", {}, Stack()),
    ("one SOP UID for all, phase", {}, Stack(channels=2)),
]


@pytest.fixture(scope="module")
def originals(real_data: Path) -> Callable[[str], s.Original]:
    known = {name: s.original(real_data / folder) for name, folder in SCANS.items()}
    return lambda name: known[name]


def id_of(row: tuple[str, dict[str, Any], Any]) -> str:
    name, policies, _ = row
    return ", ".join([name, *(f"{k}={v}" for k, v in policies.items())])


def told(expected: Stack | list[Stack]) -> str:
    stacks = expected if isinstance(expected, list) else [expected]
    first = stacks[0]
    facts = [f"{len(stacks)} series" if len(stacks) > 1 else "", f"{first.channels} channels"]
    facts[1] = facts[1] if first.channels > 1 else ""
    facts += [
        "some slices interpolated" if None in first.slices else "",
        "with a warning" if first.says else "",
    ]
    facts += ["noted in the report" if first.notes else "", "desheared" if first.straightened else ""]
    return ", ".join(["read", *(fact for fact in facts if fact)])


#: Every row with one of the scans, by turns; MEDIMG_SLOW=1 takes each row with all.
SPOILED_SCANS = [
    pytest.param(scan, row, id=f"{scan}-{id_of(row)}")
    for turn, scan in enumerate(SCANS)
    for n, row in enumerate(TABLE)
    if SLOW or n % len(SCANS) == turn
]


@pytest.mark.parametrize(("scan", "row"), SPOILED_SCANS)
def test_spoiled_series(
    originals: Callable[[str], s.Original],
    tmp_path: Path,
    scan: str,
    row: tuple[str, dict[str, Any], Any],
    conformance: Conformance,
) -> None:
    name, policies, expected = row
    original = originals(scan)
    files = SPOILED[name](original.copies())
    if "sheared" in name and s.shear_degrees(files) > 30 and policies["on_tilt"] != "keep":
        expected = TiltedGantryError  # steeper than any gantry
    outcome = expected.__name__ if isinstance(expected, type) else told(expected)
    conformance.note("modified series: outcome under each policy", f"{id_of(row)}: {outcome}", 1, 0)
    stated = s.stated_places(files)
    s.write_files(files, tmp_path)
    if isinstance(expected, type):
        with (
            warnings.catch_warnings(action="ignore", category=MedimgWarning),
            pytest.raises(expected) as raised,
        ):
            medimg.read(tmp_path, **policies)
        assert not isinstance(raised.value, AmbiguousSeriesError), raised.value
        return
    stacks = expected if isinstance(expected, list) else [expected]
    index = medimg.scan(tmp_path)
    assert not index.skipped, index.skipped[0]
    assert len(index) == len(stacks), [series.summary() for series in index]
    if len(stacks) > 1:
        with pytest.raises(AmbiguousSeriesError):
            medimg.read(tmp_path, **policies)
    found = [read(series, policies) for series in index]
    if len(stacks) > 1:
        found = paired(found, stacks, original)
    for (volume, texts), stack in zip(found, stacks, strict=True):
        assert_is(volume, texts, stack, original, stated)


def read(series: medimg.Series, policies: dict[str, Any]) -> tuple[Volume, str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volume = series.read(**policies)
    assert all(issubclass(w.category, MedimgWarning) for w in caught)
    assert volume.shape == series.shape or "fix" in policies.values() or "keep" in policies.values()
    return volume, " ".join(str(w.message) for w in caught)


def paired(
    found: list[tuple[Volume, str]], stacks: list[Stack], original: s.Original
) -> list[tuple[Volume, str]]:
    """The volumes in the order of the stacks: told by their values."""
    upside_down = [
        not np.array_equal(v.array[0, -1], original.values[stacks[0].slices[-1]]) for v, _ in found
    ]
    return [pair for _, pair in sorted(zip(upside_down, found, strict=True), key=lambda p: p[0])]


def assert_is(
    volume: Volume, texts: str, stack: Stack, original: s.Original, stated: dict[tuple[bool, int], Any]
) -> None:
    assert stack.says in texts
    assert bool(texts) == bool(stack.says), f"warned: {texts}"
    notes = " ".join(volume.report.warnings)
    by_number = np.argsort([int(ds.InstanceNumber) for ds in original.datasets])
    assert stack.notes.lower() in notes.lower(), notes
    assert volume.space == stack.space
    assert volume.shape[0] == stack.channels
    if not stack.slices:
        return
    assert volume.shape[1] == len(stack.slices)
    if stack.straightened:
        assert_straight(volume, original, stated)
        return
    for d, place in enumerate(stack.slices):
        if place is None:
            continue
        n = place if stack.space == "patient" else int(by_number[place])
        shown = original.values[n]
        channels = [shown[::-1]] if stack.second else [shown, shown[::-1]][: stack.channels]
        assert all(np.array_equal(volume.array[c, d], v) for c, v in enumerate(channels)), f"slice {d}"
        if d < stack.placed:
            corner = volume.affine[:3, 3] + d * volume.affine[:3, 0]
            assert np.linalg.norm(corner - stated[stack.second, n]) < 0.03, f"slice {d}"


def assert_straight(volume: Volume, original: s.Original, stated: dict[tuple[bool, int], Any]) -> None:
    """A perpendicular grid, on which every pixel has the value that it has in its file."""
    step, rows, columns = volume.affine[:3, :3].T
    assert abs(step @ rows) < 1e-6
    assert abs(step @ columns) < 1e-6
    for n, values in enumerate(original.values):
        offset = np.linalg.solve(volume.affine[:3, :3], stated[False, n] - volume.affine[:3, 3])
        d, h, w = (int(v) for v in np.rint(offset))
        assert np.allclose(offset, (d, h, w), atol=0.02)
        height, width = values.shape
        assert np.array_equal(volume.array[0, d, h : h + height, w : w + width], values)
        assert volume.padding is not None
        assert volume.padding[0, d].sum() == volume.padding[0, d].size - values.size


def test_the_table_is_about_all_that_is_spoiled() -> None:
    assert {name for name, *_ in TABLE} == set(SPOILED)
