"""Stored values of every real file against independent decoders."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from medimg.errors import DecodeError, NotAnImageError, ReadError, TruncatedError
from medimg.io.dicom.header.attributes import has_value, quiet_pydicom
from medimg.io.dicom.header.open import open_dataset
from medimg.io.dicom.pixels._frames import StoredFrames
from tests.conformance import Conformance
from tests.io.dicom.independent import frames_by_others
from tests.io.dicom.kinds import SETS, of_each_kind
from tests.sampling import SLOW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BUNDLED = "pydicom"
JPEG_LOSSY = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}

#: Files that are broken: what medimg raises, and why.
BROKEN: dict[str, tuple[type[ReadError], str]] = {
    "pydicom/JPEG2000-embedded-sequence-delimiter.dcm": (
        DecodeError,
        "the size in its codestream is overwritten by a sequence delimiter",
    ),
    "pydicom/MR_truncated.dcm": (TruncatedError, "truncated"),
    "pydicom/badVR.dcm": (DecodeError, "Number of Frames is 1A"),
    "pydicom/meta_missing_tsyntax.dcm": (DecodeError, "two bytes of pixel data, and no image size"),
    "pydicom/nested_priv_SQ.dcm": (DecodeError, "two bytes of pixel data, and no image size"),
}

#: Files that no independent decoder reads, and the same image in another encoding.
TWINS = {
    "pydicom-data/emri_small_jpeg_2k_lossless_too_short.dcm": "emri_small_jpeg_2k_lossless.dcm",
    "pydicom-data/liver_rle.dcm": "liver.dcm",
    "pydicom-data/liver_nonbyte_aligned_rle.dcm": "liver_nonbyte_aligned.dcm",
    "pydicom-data/liver_nonbyte_aligned_deflate.dcm": "liver_nonbyte_aligned.dcm",
    "pydicom/SC_rgb_jpeg.dcm": "SC_rgb_jpeg_dcmd.dcm",
}

#: Files whose values others give otherwise: why, and how values of medimg become theirs.
DIFFERENT: dict[str, tuple[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]]] = {
    "pylibjpeg-data/TOSHIBA_J2K_SIZ1_PixRep0.dcm": (
        "the codestream is signed, the header says unsigned: other decoders wrap -2048 to 63488",
        lambda values: values.astype(np.uint16),
    ),
    "wg04_dev/RG3_JPLY": (
        "lossy JPEG overshoots 10 bits, to 1024: pydicom drops the higher bits, so that white becomes black",
        lambda values: values & 1023,
    ),
    "pylibjpeg-data/SC_rgb_jpeg_lossy_gdcm.dcm": (
        "the header says RGB, but the subsampled components must be YCbCr: other decoders do not convert",
        lambda values: np.asarray([]),
    ),
}


def parts(root: Path) -> dict[str, list[Path]]:
    """All files by part: of long series of alike files the first ones of each folder."""
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in sorted(p for p in (root / "dicom_misc").iterdir() if p.is_dir()):
        few = 1 if folder.name.startswith("lidc") else None
        found[folder.name] = list(of_each_folder(folder, few))
    for folder in sorted((root / "dicom_qa").iterdir()):
        found[f"qa {folder.name}"] = list(of_each_folder(folder, 2))
    bundled = Path(pydicom.__file__).parent / "data" / "test_files"
    found[BUNDLED] = sorted(p for p in bundled.rglob("*") if p.is_file())
    return found


def of_each_folder(root: Path, few: int | None) -> Iterator[Path]:
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        by_folder[path.parent].append(path)
    for paths in by_folder.values():
        yield from paths[:few]


def opened(path: Path) -> pydicom.Dataset | None:
    """A data set with pixels; None if a file is anything else."""
    try:
        dataset = open_dataset(path)
    except ReadError:
        return None
    with quiet_pydicom():
        has_pixels = any(
            has_value(dataset, name) for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
        )
    return dataset if has_pixels else None


def some_frames(source: StoredFrames) -> list[int]:
    return sorted({0, source.count // 2, source.count - 1})


def compare(path: Path, name: str, dataset: pydicom.Dataset, folder: Path) -> list[str]:
    """What is wrong with a file; [""] where no other decoder reads it."""
    with quiet_pydicom():
        source = StoredFrames(dataset)
    numbers = some_frames(source)
    ours = [source.decode(number)[0] for number in numbers]
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    tolerance = 2 if syntax in JPEG_LOSSY else 0
    problems: list[str] = []
    seen = False
    for who, theirs in frames_by_others(path, numbers, folder):
        seen = True
        for values, others in zip(ours, theirs, strict=True):
            if name in DIFFERENT:
                changed = DIFFERENT[name][1](values)
                assert not np.array_equal(values, others), f"{name} is as {who} has it: not DIFFERENT"
                if changed.size and not np.array_equal(changed, others):
                    problems.append(f"{name}: differs from {who} in another way than it should")
            elif values.shape != others.shape:
                problems.append(f"{name}: {values.shape}, {who} has {others.shape}")
            elif np.nanmax(np.abs(values.astype(np.float64) - others)) > tolerance:
                problems.append(f"{name}: other values than {who} has")
    return problems if seen else [""]


def judge(path: Path, name: str, folder: Path) -> tuple[str, list[str]]:
    """("compared", "listed" or "", what is wrong) of one file."""
    dataset = opened(path)
    if dataset is None:
        return "", []
    if name in BROKEN:
        with pytest.raises(BROKEN[name][0]), quiet_pydicom():
            StoredFrames(dataset).decode(0)
        return "listed", []
    try:
        found = compare(path, name, dataset, folder)
    except ReadError as error:
        return "compared", [f"{name} is not read, and not listed as BROKEN: {error}"]
    if found == [""]:
        return "listed", [] if name in TWINS else [f"{name} is read by no other decoder; where is its twin?"]
    if name in TWINS:
        found.append(f"{name} is read by other decoders: it needs no twin")
    return "listed" if name in DIFFERENT else "compared", found


@pytest.mark.slow
def test_stored_values_equal_those_of_independent_decoders(
    real_data: Path, tmp_path: Path, conformance: Conformance
) -> None:
    problems, listed, compared = [], set(), 0
    every = parts(real_data)
    assert set(SETS) <= set(every), "a part of the data has disappeared"
    lists = {Path(name).name for name in (*BROKEN, *TWINS, *DIFFERENT)}
    chosen = set(of_each_kind((path for paths in every.values() for path in paths), lists))
    for part, paths in every.items():
        reasons, count = [], 0
        for path in (path for path in paths if path in chosen):
            name = f"{part}/{path.name}"
            outcome, found = judge(path, name, tmp_path)
            problems += found
            count += outcome == "compared"
            if outcome == "listed":
                listed.add(name)
                reasons.append(f"{path.name}: {reason(name)}")
        compared += count
        conformance.note(
            "stored values: comparison with other decoders", part, count + len(reasons), len(reasons), reasons
        )
    assert not problems, "\n".join(problems)
    assert listed == {*BROKEN, *TWINS, *DIFFERENT}, "a file of these lists has disappeared"
    assert compared > (400 if SLOW else 120)


def reason(name: str) -> str:
    if name in TWINS:
        return f"not read by any other decoder; equal to {TWINS[name]}"
    return DIFFERENT[name][0] if name in DIFFERENT else f"broken: {BROKEN[name][1]}"


def test_files_without_another_decoder_equal_the_same_image_in_another_encoding(real_data: Path) -> None:
    bundled = Path(pydicom.__file__).parent / "data" / "test_files"
    for name, twin in TWINS.items():
        folder, file = name.split("/")
        root = bundled if folder == BUNDLED else real_data / "dicom_misc" / folder
        one, other = (
            StoredFrames(open_dataset(next(iter(sorted(root.rglob(name)))))) for name in (file, twin)
        )
        assert one.count == other.count
        tolerance = 2 if "jpeg" in file else 0
        for number in range(one.count):
            values, expected = (source.decode(number)[0].astype(np.int64) for source in (one, other))
            assert np.ptp(expected) > 0
            assert np.abs(values - expected).max() <= tolerance, (name, number)


def test_a_wrong_photometric_interpretation_does_not_change_colors(real_data: Path) -> None:
    """The same JPEG with RGB and with YBR_FULL in its header."""
    wrong = next(iter((real_data / "dicom_misc" / "pylibjpeg-data").rglob("SC_rgb_jpeg_lossy_gdcm.dcm")))
    right = Path(pydicom.__file__).parent / "data" / "test_files" / "SC_rgb_jpeg_lossy_gdcm.dcm"
    one, other = (StoredFrames(open_dataset(path)) for path in (wrong, right))
    assert (one.format.photometric, other.format.photometric) == ("RGB", "YBR_FULL")
    assert one.decode(0)[1]
    assert np.array_equal(one.decode(0)[0], other.decode(0)[0])


def test_objects_without_pixels_say_so(real_data: Path) -> None:
    for name in ("rtplan.dcm", "test-SR.dcm"):
        path = Path(pydicom.__file__).parent / "data" / "test_files" / name
        with pytest.raises(NotAnImageError, match="no pixel data"):
            StoredFrames(open_dataset(path))
