"""What a series and its reader must satisfy, whatever the format."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np

from medimg.core import geometry
from medimg.core.volume import Space
from medimg.errors import MedimgError, MedimgWarning
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.testing._pydicom_reference import dataset_of
from medimg.testing.check import contract, require

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from medimg.core.volume import Volume
    from medimg.io.series import Series
    from medimg.testing.observed_read import Reading

__all__ = ["READER_CHECKS", "secrets_of"]

_KEYWORDS: Final = (
    "PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthDate",
    "PatientBirthName", "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers",
    "ReferringPhysicianName", "OperatorsName",
)  # fmt: skip
_SHORTEST: Final = 5
#: What stands in for names in test files, and in the texts of medimg for what it means.
_COMMON: Final = frozenset({"patient", "series", "volume", "image", "slice", "array", "unknown", "anonymous"})


def secrets_of(series: Series) -> frozenset[str]:
    """
    Return the texts of a series that identify the patient.

    Short ones are left out, as they turn up by chance, and those that stand in the path of the files or in
    the description, which whoever chose them shows anyway.
    """
    shown = " ".join((*series.files, series.description, series.uid, series.format)).lower()
    found = {series.patient_id} | (_in_file(series.path) if series.format == "DICOM" else frozenset())
    return frozenset(
        s for s in found if len(s) >= _SHORTEST and s.lower() not in _COMMON and s.lower() not in shown
    )


@lru_cache(maxsize=64)
def _in_file(path: str) -> frozenset[str]:
    dataset = dataset_of(path)
    if dataset is None:
        return frozenset()
    found: set[str] = set()
    with quiet_pydicom():
        for keyword in _KEYWORDS:
            try:
                text = str(dataset.get(keyword) or "").strip()
            # a damaged value identifies nobody
            except Exception:
                continue
            found |= {text, *text.replace("=", "^").split("^")}
    return frozenset(s.strip() for s in found)


_THREADS: Final = 4
_PICTURES: Final = ("PNG", "JPEG")


@contract
def series_says_what_it_is(reading: Reading) -> None:
    """A series has a UID, format, files, (C, D, H, W), a sound affine and a space before anything is read."""
    series = reading.series
    for name in ("uid", "format"):
        text = getattr(series, name)
        require(isinstance(text, str) and text and text.isprintable(), f"no {name}")
    for name in ("modality", "description", "patient_id", "study_uid"):
        require(isinstance(getattr(series, name), str), f"{name} that is no text")
    require(series.files and all(isinstance(f, str) and f for f in series.files), "no files")
    shape = series.shape
    sound = isinstance(shape, tuple) and len(shape) == 4 and all(type(n) is int and n > 0 for n in shape)
    require(sound, f"the shape {shape}")
    require(series.space in get_args(Space), f"the space {series.space!r}")
    require(series.affine.shape == (4, 4) and np.isfinite(series.affine).all(), "an affine that is none")
    require(series.uid in series.summary(), "a summary without the UID")


@contract
def times_fit_channels_or_frames(reading: Reading) -> None:
    """Frame times are None, or finite seconds that do not descend, for each channel or each frame."""
    times = reading.series.frame_times
    if times is None:
        return
    c, d = reading.series.shape[:2]
    clip = reading.series.space == "image" and len(times) == d
    require(len(times) == c or clip, f"{len(times)} times for {c} channels of {d} frames")
    require(np.isfinite(times).all() and (np.diff(times) >= 0).all(), f"the times {times[:5]}")


@contract
def shape_is_as_promised(reading: Reading) -> None:
    """The volume has the shape of its series; a picture may turn out gray, with one channel for three."""
    promised, found = reading.series.shape, reading.volume.shape
    gray = reading.series.format in _PICTURES and promised[0] == 3 and found == (1, *promised[1:])
    require(found == promised or gray, f"{found}, promised {promised}")


@contract
def place_is_as_promised(reading: Reading) -> None:
    """The volume has affine and space of its series."""
    series, volume = reading.series, reading.volume
    near = np.allclose(series.affine, volume.affine, rtol=0, atol=1e-9)
    require(near, _difference(series.affine, volume.affine))
    require(series.space == volume.space, f"the space {volume.space!r}, promised {series.space!r}")


@contract
def origin_is_as_promised(reading: Reading) -> None:
    """The volume has the modality of its series, and its report the format and files."""
    series, volume = reading.series, reading.volume
    require(volume.modality == series.modality, f"{volume.modality!r}, promised {series.modality!r}")
    require(volume.report.format == series.format, f"{volume.report.format!r}, promised {series.format!r}")
    require(volume.report.files, "a report that names no files")
    foreign = set(volume.report.files) - set(series.files)
    require(not foreign, f"{len(foreign)} files in the report that are none of the series")


@contract
def some_slices_equal_those_of_all(reading: Reading) -> None:
    """Reading some slices gives what taking them out of the whole volume gives, bit by bit."""
    for slices in _choices(reading.volume.shape[1]):
        expected, found = reading.volume.take(slices), reading.read(slices)
        difference = _differs(expected, found)
        require(not difference, f"slices {_short(slices)} differ in {difference}")


@contract
def slices_out_of_order_or_range_are_refused(reading: Reading) -> None:
    """Slices that are none, negative, too large, repeated or descending end in a MedimgError that says so."""
    depth = reading.series.shape[1]
    for slices in ([], [-1], [depth], [0, 0], [depth, 0]):
        try:
            reading.read(slices)
        except MedimgError as error:
            require(str(error), f"no message for slices {slices} of {depth}")
            require(not _betrayed(reading, str(error)), "a message that holds what identifies the patient")
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} for slices {slices} of {depth}") from error
        else:
            require(False, f"a volume for slices {slices} of {depth}")


@contract
def reading_again_gives_equal_values(reading: Reading) -> None:
    """Reading twice gives equal volumes that share no memory."""
    difference = _differs(reading.volume, reading.second.volume)
    require(not difference, f"the second volume differs in {difference}")
    shared = np.may_share_memory(reading.volume.array, reading.second.volume.array)
    require(not shared, "both volumes are views of one array")


@contract
def threads_read_the_same(reading: Reading) -> None:
    """Threads that read one series at a time all get what a single one gets."""
    depth = reading.volume.shape[1]
    chosen = sorted({0, depth // 2, depth - 1})
    whole, part = reading.volume, reading.volume.take(chosen)
    # more than one read of all would only take memory where a volume is large
    wanted = [None, chosen] * (_THREADS // 2) if whole.array.nbytes < 2**24 else [None, chosen]
    for slices, volume in zip(wanted, reading.read_at_once(wanted, _THREADS), strict=True):
        difference = _differs(whole if slices is None else part, volume)
        require(not difference, f"a volume read in a thread differs in {difference}")


@contract
def warnings_are_of_medimg_and_in_the_report(reading: Reading) -> None:
    """Reading warns by MedimgWarning only, and the report repeats each warning."""
    for category, text in reading.first.warnings:
        require(issubclass(category, MedimgWarning), f"a {category.__name__}")
        require(
            any(text in noted or noted in text for noted in reading.volume.report.warnings), "one not noted"
        )


@contract
def nothing_is_printed(reading: Reading) -> None:
    """Reading prints nothing: what deserves a word is a warning."""
    said = reading.second.said or reading.first.said
    require(not said, f"{len(said)} characters on the standard streams or in the log")


@contract
def process_is_left_as_it_was(reading: Reading) -> None:
    """Reading changes no setting of the process: folder, environment, warnings, log, random numbers."""
    require(not reading.second.changed, f"other {', '.join(reading.second.changed)}")


@contract
def nothing_is_written_beside_the_source(reading: Reading) -> None:
    """Reading leaves the folders of its files as they are."""
    require(not reading.second.touched, f"{len(reading.second.touched)} files appeared, vanished or changed")


@contract
def files_are_closed(reading: Reading) -> None:
    """No file of the series is open after reading it."""
    require(not reading.second.left_open, f"{len(reading.second.left_open)} open files")


@contract
def nobody_is_named(reading: Reading) -> None:
    """Reprs, reports, pictures, warnings and log hold nothing that identifies the patient."""
    for where, text in _texts(reading):
        require(not _betrayed(reading, text), f"it stands in the {where}")


def _texts(reading: Reading) -> Iterator[tuple[str, str]]:
    volume = reading.volume
    yield "repr of the series", repr(reading.series)
    yield "repr of the volume", repr(volume)
    yield "repr of the report", repr(volume.report)
    yield "report", str(volume.report)
    yield "HTML", re.sub(r"base64,[^\"']*", "", volume._repr_html_())
    yield "repr of a copy", repr(volume.with_array(volume.array)) + repr(volume.take([0]).report)
    yield "warnings", " ".join(text for _, text in reading.first.warnings)
    yield "log or output", reading.first.said


def _betrayed(reading: Reading, text: str) -> bool:
    secrets = {*reading.secrets, *secrets_of(reading.series)}
    return any(secret.lower() in text.lower() for secret in secrets)


def _choices(depth: int) -> list[list[int]]:
    """Return ends, middle, every other, uneven ones, and all."""
    some = [[0], [depth - 1], [depth // 2], sorted({0, depth - 1}), list(range(1, depth, 2)) or [0]]
    some.append(sorted({0, 1, depth // 2, depth - 1} & set(range(depth))))
    if depth <= 64:
        some.append(list(range(depth)))
    return [list(chosen) for chosen in dict.fromkeys(tuple(s) for s in some)]


def _short(slices: Sequence[int]) -> str:
    return str(list(slices)) if len(slices) < 6 else f"{list(slices[:3])} … {slices[-1]}"


def _differs(expected: Volume, found: Volume) -> str:
    """Return in what two volumes differ that should be equal; "" for nothing."""
    if expected.array.shape != found.array.shape:
        return f"shape, {expected.array.shape} and {found.array.shape}"
    if expected.array.dtype != found.array.dtype:
        return f"type, {expected.array.dtype} and {found.array.dtype}"
    if expected.array.tobytes() != found.array.tobytes():
        return f"values, by up to {_most(expected.array, found.array):g}"
    if not np.allclose(expected.affine, found.affine, rtol=0, atol=1e-9):
        return f"affine: {_difference(expected.affine, found.affine)}"
    facts = ("modality", "units", "photometric", "inverted", "space", "channels")
    other = [name for name in facts if getattr(expected, name) != getattr(found, name)]
    if not _same_padding(expected, found):
        other.append("padding")
    if _windows(expected) != _windows(found):
        other.append("windows")
    reported = ("format", "series_uid", "sop_instance_uids", "frame_numbers")
    other += [n for n in reported if getattr(expected.report, n) != getattr(found.report, n)]
    # slices taken out of several channels may name the files of all
    one_each = len(expected.report.files) == expected.shape[1]
    known = expected.report.files
    if found.report.files != known if one_each else not set(found.report.files) <= set(known):
        other.append("files")
    return ", ".join(other)


def _same_padding(one: Volume, other: Volume) -> bool:
    """Whether the same pixels are padded; no mask is the same as an empty one."""
    first, second = (np.zeros(v.shape, np.bool_) if v.padding is None else v.padding for v in (one, other))
    return np.array_equal(first, second)


def _windows(volume: Volume) -> tuple[Any, ...]:
    return volume.voi * volume.shape[1] if len(volume.voi) == 1 else volume.voi or ((),) * volume.shape[1]


def _most(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    return float(np.nanmax(np.abs(one.astype(np.float64) - other.astype(np.float64)), initial=0.0))


def _difference(one: geometry.Affine, other: geometry.Affine) -> str:
    return f"differences of up to {np.abs(one - other).max():.3g} mm"


#: What every series and its reader must satisfy, beside what every volume must.
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
