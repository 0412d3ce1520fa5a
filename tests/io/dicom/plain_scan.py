"""The scan without shortcuts, each file by itself: what the fast one must equal."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np

from medimg.core.read_report import Skipped
from medimg.errors import MedimgError
from medimg.io.detect import identify_file
from medimg.io.dicom.header.instance import Instance
from medimg.io.dicom.header.open import open_dataset, to_tags
from medimg.io.dicom.series.build import build_dicom_series
from medimg.io.dicom.series.grouping import group_frames
from medimg.io.dicom.series.volume_reader import StackReader
from medimg.io.files.blob import as_blob
from medimg.io.series import Series
from medimg.io.series_index import SeriesIndex, SkippedFiles
from medimg.io.sources import list_source_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydicom.dataset import Dataset

    from medimg.io.files.blob import Blob

__all__ = ["differences", "parsed_header", "plain_scan"]


def plain_scan(source: str | Path | Sequence[Blob | str]) -> SeriesIndex:
    """Return the DICOM series of a source, and the DICOM files that belong to none."""
    instances: list[Instance] = []
    skipped: list[Skipped] = []
    files = source if isinstance(source, list) else list_source_files(source)[0]
    for blob in map(as_blob, files):
        try:
            with patch("medimg.io.dicom.header.instance.open_header", parsed_header):
                found = identify_file(blob)
        except MedimgError as error:
            if "is a DICOMDIR" in str(error):
                continue
            skipped.append(Skipped(blob.name, str(error)))
            continue
        if isinstance(found, Instance):
            instances.append(found)
    series: list[Series] = []
    for group in group_frames(instances):
        try:
            series.append(build_dicom_series(group))
        except MedimgError as error:
            skipped += [Skipped(i.path, str(error)) for i in group.instances]
    return SeriesIndex(tuple(sorted(series, key=lambda s: s.path)), SkippedFiles(skipped))


def parsed_header(blob: Blob, tags: frozenset[int]) -> Dataset:
    """Return what pydicom makes of some elements of a header."""
    return open_dataset(blob, tags=to_tags(*tags))


def differences(fast: SeriesIndex, plain: SeriesIndex) -> list[str]:
    """Return in what two indices differ, one line for each series."""
    dicom = [s for s in fast if s.format == "DICOM"]
    if len(dicom) != len(plain):
        return [f"{len(dicom)} series, {len(plain)} expected"]
    found = []
    for one, other in zip(dicom, plain, strict=True):
        unlike = [name for name in _COMPARED if getattr(one, name) != getattr(other, name)]
        if not np.array_equal(one.affine, other.affine):
            unlike.append("affine")
        if _plan(one) != _plan(other):
            unlike.append("plan")
        if unlike:
            found.append(f"{one.path}: {', '.join(unlike)}")
    reasons = {s.path: s.reason for s in fast.skipped}
    found += [f"{s.path}: skipped" for s in plain.skipped if reasons.get(s.path) != s.reason]
    return found


_COMPARED = (
    "uid", "modality", "description", "shape", "space", "files", "patient_id", "study_uid", "frame_times",
)  # fmt: skip


def _plan(series: Series) -> tuple[object, ...]:
    """Return what a reader of DICOM is going to do, down to each frame."""
    reader = series.reader
    assert isinstance(reader, StackReader)
    plan = reader.plan
    stack = plan.stack and (
        plan.stack.missing, plan.stack.irregular, plan.stack.gap, plan.stack.deviation, plan.stack.tilt,
    )  # fmt: skip
    # each instance once: it holds the facts of all its frames
    used = {id(frame.instance): frame.instance for channel in plan.channels for frame in channel}
    places = {key: place for place, key in enumerate(used)}
    frames = tuple(
        tuple((places[id(frame.instance)], frame.facts) for frame in channel) for channel in plan.channels
    )
    rest = plan.names, plan.times, plan.space, plan.duplicates, plan.notes, stack
    return tuple(used.values()), frames, *rest
