"""Checks of series and readers of any format."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np

from medimg.core import geometry
from medimg.core.volume import Space
from medimg.errors import MedimgError, MedimgWarning
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.testing._pydicom_reference import read_dataset
from medimg.testing.check import require, series_check

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from medimg.core.volume import Volume
    from medimg.io.series import Series
    from medimg.testing.observed_read import Reading

__all__ = ["READER_CHECKS", "find_secrets"]

_KEYWORDS: Final = (
    "PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthDate",
    "PatientBirthName", "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers",
    "ReferringPhysicianName", "OperatorsName",
)  # fmt: skip
_SHORTEST: Final = 5
#: Common words, used instead of names in test files.
_COMMON: Final = frozenset({"patient", "series", "volume", "image", "slice", "array", "unknown", "anonymous"})


def find_secrets(series: Series) -> frozenset[str]:
    """
    Return the texts of a series that identify the patient.

    Short ones are left out, as they occur by chance, and those in the path or the description, which are
    shown anyway.
    """
    shown = " ".join((*series.files, series.description, series.uid, series.format)).lower()
    found = {series.patient_id} | (_read_secrets(series.path) if series.format == "DICOM" else frozenset())
    return frozenset(
        s for s in found if len(s) >= _SHORTEST and s.lower() not in _COMMON and s.lower() not in shown
    )


@lru_cache(maxsize=64)
def _read_secrets(path: str) -> frozenset[str]:
    dataset = read_dataset(path)
    if dataset is None:
        return frozenset()
    found: set[str] = set()
    with quiet_pydicom():
        for keyword in _KEYWORDS:
            try:
                text = str(dataset.get(keyword) or "").strip()
            # a damaged value identifies no one
            except Exception:
                continue
            found |= {text, *text.replace("=", "^").split("^")}
    return frozenset(s.strip() for s in found)


_THREADS: Final = 4
_IMAGE_FILES: Final = ("PNG", "JPEG", "JPEG 2000", "TIFF", "BMP", "WebP", "GIF")


@series_check
def series_says_what_it_is(reading: Reading) -> None:
    """A series has a UID, format, files, (C, D, H, W), a valid affine and a space before it is read."""
    series = reading.series
    for name in ("uid", "format"):
        text = getattr(series, name)
        require(isinstance(text, str) and text and text.isprintable(), f"no {name}")
    for name in ("modality", "description", "patient_id", "study_uid"):
        require(isinstance(getattr(series, name), str), f"{name} that is not text")
    require(series.files and all(isinstance(f, str) and f for f in series.files), "no files")
    shape = series.shape
    sound = isinstance(shape, tuple) and len(shape) == 4 and all(type(n) is int and n > 0 for n in shape)
    require(sound, f"the shape {shape}")
    require(series.space in get_args(Space), f"the space {series.space!r}")
    require(series.affine.shape == (4, 4) and np.isfinite(series.affine).all(), "an invalid affine")
    require(series.uid in series.summary(), "a summary without the UID")


@series_check
def times_fit_channels_or_frames(reading: Reading) -> None:
    """Frame times are None, or finite seconds that do not descend, for each channel or each frame."""
    times = reading.series.frame_times
    if times is None:
        return
    c, d = reading.series.shape[:2]
    clip = reading.series.space == "image" and len(times) == d
    require(len(times) == c or clip, f"{len(times)} times for {c} channels of {d} frames")
    require(np.isfinite(times).all() and (np.diff(times) >= 0).all(), f"the times {times[:5]}")


@series_check
def shape_is_as_promised(reading: Reading) -> None:
    """The volume has the shape of its series; an image file may be grayscale, with one channel for three."""
    promised, found = reading.series.shape, reading.volume.shape
    gray = reading.series.format in _IMAGE_FILES and promised[0] == 3 and found == (1, *promised[1:])
    require(found == promised or gray, f"{found}, promised {promised}")


@series_check
def place_is_as_promised(reading: Reading) -> None:
    """The volume has the affine and space of its series."""
    series, volume = reading.series, reading.volume
    near = np.allclose(series.affine, volume.affine, rtol=0, atol=1e-9)
    require(near, _describe_affines(series.affine, volume.affine))
    require(series.space == volume.space, f"the space {volume.space!r}, promised {series.space!r}")


@series_check
def origin_is_as_promised(reading: Reading) -> None:
    """The volume has the modality of its series, and its report the format and files."""
    series, volume = reading.series, reading.volume
    require(volume.modality == series.modality, f"{volume.modality!r}, promised {series.modality!r}")
    require(volume.report.format == series.format, f"{volume.report.format!r}, promised {series.format!r}")
    require(volume.report.files, "a report that names no files")
    foreign = set(volume.report.files) - set(series.files)
    require(not foreign, f"{len(foreign)} files in the report that are not of the series")


@series_check
def some_slices_equal_those_of_all(reading: Reading) -> None:
    """Reading some slices is bit-for-bit identical to taking them from the whole volume."""
    for slices in _choose_slices(reading.volume.shape[1]):
        expected, found = reading.volume.take(slices), reading.read(slices)
        difference = _describe_difference(expected, found)
        require(not difference, f"slices {_shorten(slices)} differ in {difference}")


@series_check
def slices_out_of_order_or_range_are_refused(reading: Reading) -> None:
    """Slices that are empty, negative, too large, repeated or descending raise a MedimgError with a text."""
    depth = reading.series.shape[1]
    for slices in ([], [-1], [depth], [0, 0], [depth, 0]):
        try:
            reading.read(slices)
        except MedimgError as error:
            require(str(error), f"no message for slices {slices} of {depth}")
            require(not _reveals_patient(reading, str(error)), "a message that identifies the patient")
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} for slices {slices} of {depth}") from error
        else:
            require(False, f"a volume for slices {slices} of {depth}")


@series_check
def reading_again_gives_equal_values(reading: Reading) -> None:
    """Reading twice gives equal volumes that share no memory."""
    difference = _describe_difference(reading.volume, reading.second.volume)
    require(not difference, f"the second volume differs in {difference}")
    shared = np.may_share_memory(reading.volume.array, reading.second.volume.array)
    require(not shared, "both volumes are views of one array")


@series_check
def threads_read_the_same(reading: Reading) -> None:
    """Threads that read one series at a time get what a single one gets."""
    depth = reading.volume.shape[1]
    chosen = sorted({0, depth // 2, depth - 1})
    whole, part = reading.volume, reading.volume.take(chosen)
    # of a large volume, more than one read of all would only take memory
    wanted = [None, chosen] * (_THREADS // 2) if whole.array.nbytes < 2**24 else [None, chosen]
    for slices, volume in zip(wanted, reading.read_at_once(wanted, _THREADS), strict=True):
        difference = _describe_difference(whole if slices is None else part, volume)
        require(not difference, f"a volume read in a thread differs in {difference}")


@series_check
def warnings_are_of_medimg_and_in_the_report(reading: Reading) -> None:
    """Reading issues MedimgWarning only, and the report repeats each warning."""
    for category, text in reading.first.warnings:
        require(issubclass(category, MedimgWarning), f"a {category.__name__}")
        require(
            any(text in noted or noted in text for noted in reading.volume.report.warnings), "one not noted"
        )


@series_check
def nothing_is_printed(reading: Reading) -> None:
    """Reading prints nothing; it issues warnings instead."""
    said = reading.second.said or reading.first.said
    require(not said, f"{len(said)} characters on the standard streams or in the log")


@series_check
def process_is_left_as_it_was(reading: Reading) -> None:
    """Reading changes no setting of the process: folder, environment, warnings, log, random numbers."""
    require(not reading.second.changed, f"other {', '.join(reading.second.changed)}")


@series_check
def nothing_is_written_beside_the_source(reading: Reading) -> None:
    """Reading leaves the folders of its files as they are."""
    require(not reading.second.touched, f"{len(reading.second.touched)} files appeared, vanished or changed")


@series_check
def files_are_closed(reading: Reading) -> None:
    """No file of the series is open after reading it."""
    require(not reading.second.left_open, f"{len(reading.second.left_open)} open files")


@series_check
def nobody_is_named(reading: Reading) -> None:
    """Reprs, reports, images, warnings and log hold nothing that identifies the patient."""
    for where, text in _list_texts(reading):
        require(not _reveals_patient(reading, text), f"it is in the {where}")


def _list_texts(reading: Reading) -> Iterator[tuple[str, str]]:
    volume = reading.volume
    yield "repr of the series", repr(reading.series)
    yield "repr of the volume", repr(volume)
    yield "repr of the report", repr(volume.report)
    yield "report", str(volume.report)
    yield "HTML", re.sub(r"base64,[^\"']*", "", volume._repr_html_())
    yield "repr of a copy", repr(volume.with_array(volume.array)) + repr(volume.take([0]).report)
    yield "warnings", " ".join(text for _, text in reading.first.warnings)
    yield "log or output", reading.first.said


def _reveals_patient(reading: Reading, text: str) -> bool:
    secrets = {*reading.secrets, *find_secrets(reading.series)}
    return any(secret.lower() in text.lower() for secret in secrets)


def _choose_slices(depth: int) -> list[list[int]]:
    """Return choices of slices: ends, middle, every other, uneven ones, and all."""
    some = [[0], [depth - 1], [depth // 2], sorted({0, depth - 1}), list(range(1, depth, 2)) or [0]]
    some.append(sorted({0, 1, depth // 2, depth - 1} & set(range(depth))))
    if depth <= 64:
        some.append(list(range(depth)))
    return [list(chosen) for chosen in dict.fromkeys(tuple(s) for s in some)]


def _shorten(slices: Sequence[int]) -> str:
    return str(list(slices)) if len(slices) < 6 else f"{list(slices[:3])} … {slices[-1]}"


def _describe_difference(expected: Volume, found: Volume) -> str:
    """Describe how two volumes that should be equal differ; "" if they don't."""
    if expected.array.shape != found.array.shape:
        return f"shape, {expected.array.shape} and {found.array.shape}"
    if expected.array.dtype != found.array.dtype:
        return f"type, {expected.array.dtype} and {found.array.dtype}"
    if expected.array.tobytes() != found.array.tobytes():
        return f"values, by up to {_max_difference(expected.array, found.array):g}"
    if not np.allclose(expected.affine, found.affine, rtol=0, atol=1e-9):
        return f"affine: {_describe_affines(expected.affine, found.affine)}"
    facts = ("modality", "units", "photometric", "inverted", "space", "channels")
    other = [name for name in facts if getattr(expected, name) != getattr(found, name)]
    if not _has_same_padding(expected, found):
        other.append("padding")
    if _list_windows(expected) != _list_windows(found):
        other.append("windows")
    reported = ("format", "series_uid", "sop_instance_uids", "frame_numbers")
    other += [n for n in reported if getattr(expected.report, n) != getattr(found.report, n)]
    # slices taken from several channels may name the files of all
    one_each = len(expected.report.files) == expected.shape[1]
    known = expected.report.files
    if found.report.files != known if one_each else not set(found.report.files) <= set(known):
        other.append("files")
    return ", ".join(other)


def _has_same_padding(one: Volume, other: Volume) -> bool:
    """Whether the same pixels are padded; no mask equals an empty one."""
    first, second = (np.zeros(v.shape, np.bool_) if v.padding is None else v.padding for v in (one, other))
    return np.array_equal(first, second)


def _list_windows(volume: Volume) -> tuple[Any, ...]:
    return volume.voi * volume.shape[1] if len(volume.voi) == 1 else volume.voi or ((),) * volume.shape[1]


def _max_difference(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    return float(np.nanmax(np.abs(one.astype(np.float64) - other.astype(np.float64)), initial=0.0))


def _describe_affines(one: geometry.Affine, other: geometry.Affine) -> str:
    return f"differences of up to {np.abs(one - other).max():.3g} mm"


#: Checks of every series and its reader, in addition to those of every volume.
READER_CHECKS: Final = (
    series_says_what_it_is,
    times_fit_channels_or_frames,
    shape_is_as_promised,
    place_is_as_promised,
    origin_is_as_promised,
    some_slices_equal_those_of_all,
    slices_out_of_order_or_range_are_refused,
    reading_again_gives_equal_values,
    threads_read_the_same,
    warnings_are_of_medimg_and_in_the_report,
    nothing_is_printed,
    process_is_left_as_it_was,
    nothing_is_written_beside_the_source,
    files_are_closed,
    nobody_is_named,
)
