"""Reading from a real server equals reading the files, for every set of real scans."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest

import medimg
from medimg.errors import MedimgError
from medimg.io.dicom.series.volume_reader import StackReader
from tests.io.dicom.kinds import SETS
from tests.orthanc import Orthanc

Key = tuple[tuple[str, int, tuple[int, int] | None], ...]


def list_rounds(folder: Path) -> Iterator[list[Path]]:
    """Files of each folder, apart if they have the same SOP Instance UID: a server keeps one of them."""
    by_folder = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            by_folder[path.parent].append(path)
    for paths in by_folder.values():
        rounds: list[dict[str, Path]] = []
        for path in paths:
            uid = read_uid(path)
            if uid:
                free = next((one for one in rounds if uid not in one), None)
                if free is None:
                    rounds.append(free := {})
                free[uid] = path
        yield from (list(one.values()) for one in rounds)


def read_uid(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = pydicom.dcmread(path, specific_tags=["SOPInstanceUID"], stop_before_pixels=True)
        except Exception:
            return ""
        return str(found.get("SOPInstanceUID", ""))


def by_frames(index: Iterable[medimg.Series]) -> dict[Key, medimg.Series]:
    found = {}
    for series in index:
        assert isinstance(series.reader, StackReader)
        frames = [frame for channel in series.reader.plan.channels for frame in channel]
        found[tuple((f.instance.sop_instance_uid, f.facts.number, f.facts.corner) for f in frames)] = series
    return found


def try_to_read(series: medimg.Series, slices: list[int] | None = None) -> medimg.Volume | str:
    try:
        return series.read(slices, on_missing="warn")
    except MedimgError as error:
        return type(error).__name__


def check_equal(one: medimg.Volume, other: medimg.Volume) -> None:
    assert one.array.dtype == other.array.dtype
    assert one.array.tobytes() == other.array.tobytes()
    np.testing.assert_array_equal(one.affine, other.affine)
    for name in ("modality", "units", "photometric", "inverted", "space", "channels", "voi", "display_range"):
        assert getattr(one, name) == getattr(other, name), name
    assert (one.padding is None) == (other.padding is None)
    if one.padding is not None and other.padding is not None:
        np.testing.assert_array_equal(one.padding, other.padding)
    assert one.report.sop_instance_uids == other.report.sop_instance_uids
    assert one.report.transforms == other.report.transforms


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_volumes_equal_those_of_files(
    name: str, real_data: Path, orthanc: Orthanc, server: medimg.DicomWebServer
) -> None:
    compared = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for paths in list_rounds(real_data / "dicom_misc" / name):
            orthanc.clear()
            stored = server.store([str(path) for path in paths], on_error="collect")
            refused = {one.source for one in stored.failed}
            kept = [str(path) for path in paths if str(path) not in refused]
            if not kept:
                continue
            studies = dict.fromkeys(series.study_uid for series in server.search())
            local = by_frames(medimg.scan(kept))
            remote = by_frames(series for study in studies for series in server.scan(study))
            for key, series in local.items():
                # one slice of a multi-frame file may come without it
                for slices in (None, [series.shape[1] // 2]):
                    expected = try_to_read(series, slices)
                    found = try_to_read(remote[key], slices)
                    if isinstance(expected, str) or isinstance(found, str):
                        assert expected == found, series.path
                    else:
                        check_equal(found, expected)
                        compared += 1
                np.testing.assert_array_equal(series.affine, remote[key].affine)
                assert (series.modality, series.shape) == (remote[key].modality, remote[key].shape)
                assert series.frame_times == remote[key].frame_times
            assert local.keys() == remote.keys()
    assert compared > 0
