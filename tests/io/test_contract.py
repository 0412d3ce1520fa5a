"""The contract of readers: every breach is noticed, and every format and file of the data sets keeps it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import medimg
import medimg.testing
from medimg.errors import MedimgError
from medimg.io.series import Series
from medimg.testing import (
    FILE_CHECKS,
    READER_CHECKS,
    VOLUME_CHECKS,
    Reading,
    check_series,
    check_volume,
)
from medimg.testing.studies import Study, write_dicom
from tests.conformance import Conformance
from tests.io.broken_readers import (
    BROKEN,
    BROKEN_DICOM,
    BROKEN_FORMATS,
    LEFT_OPEN,
    SECRET,
    sound_series,
    write_fake,
)
from tests.sampling import SLOW


def broken_rules(series: Series) -> set[str]:
    reading = Reading(series, secrets=[SECRET])
    broken = set()
    for check in READER_CHECKS:
        try:
            check(reading)
        except AssertionError:
            broken.add(check.name)
    return broken


def test_a_sound_reader_keeps_every_rule(tmp_path: Path) -> None:
    assert broken_rules(sound_series(write_fake(tmp_path / "one.fake"))) == set()


@pytest.mark.parametrize("name", BROKEN)
def test_each_breach_is_noticed_by_its_check_alone(tmp_path: Path, name: str) -> None:
    series = BROKEN[name](sound_series(write_fake(tmp_path / "one.fake")))
    found = broken_rules(series)
    while LEFT_OPEN:
        LEFT_OPEN.pop().close()
    assert found == {name}


@pytest.mark.parametrize("name", BROKEN_DICOM)
def test_each_breach_of_dicom_is_noticed_by_its_check_alone(tmp_path: Path, name: str) -> None:
    write_dicom(Study(slices=5), tmp_path)
    (series,) = medimg.scan(tmp_path)
    assert broken_rules(series) == set()
    with pytest.raises(AssertionError, match=name):
        check_series(BROKEN_DICOM[name](series))
    assert broken_rules(BROKEN_DICOM[name](series)) == {name}


@pytest.mark.parametrize("name", BROKEN_FORMATS)
def test_each_breach_of_a_format_is_noticed_by_its_check_alone(tmp_path: Path, name: str) -> None:
    path = write_fake(tmp_path / "one.fake")
    found = set()
    for check in FILE_CHECKS:
        check(path, sound_series)
        try:
            check(path, BROKEN_FORMATS[name])
        except AssertionError:
            found.add(check.name)
    assert found == {name}


def test_no_check_is_without_a_breach() -> None:
    assert {c.name for c in READER_CHECKS} == {*BROKEN, *BROKEN_DICOM}
    assert {c.name for c in FILE_CHECKS} == set(BROKEN_FORMATS)
    assert len({c.rule for c in READER_CHECKS}) == len(READER_CHECKS)


def test_a_reader_that_raises_something_else_is_noticed(tmp_path: Path) -> None:
    def read(slices: Any, policies: Any) -> Any:
        raise KeyError("PixelData")

    series = replace(sound_series(write_fake(tmp_path / "one.fake")), reader=read)
    with pytest.raises(AssertionError, match="KeyError; a reader raises a MedimgError"):
        check_series(series)


def test_a_refusal_is_the_caller_s_to_judge(tmp_path: Path) -> None:
    write_dicom(Study(missing=(3,)), tmp_path)
    (series,) = medimg.scan(tmp_path)
    with pytest.raises(MedimgError, match="missing"):
        check_series(series)
    assert check_series(series, read=lambda s: series.read(s, on_missing="keep")).shape[1] == 7


def test_all_breaches_are_named_at_once(tmp_path: Path) -> None:
    series = sound_series(write_fake(tmp_path / "one.fake"))
    series = BROKEN["units_are_said"](BROKEN["shape_is_as_promised"](series))
    with pytest.raises(AssertionError, match=r"(?s)2 of \d+ rules.*shape_is_as_promised.*units_are_said"):
        check_series(series)
    with pytest.raises(AssertionError, match="units_are_said"):
        check_volume(series.read())
    with pytest.raises(TypeError, match="checks a series"):
        READER_CHECKS[0](series.read())
    assert len(VOLUME_CHECKS) > 10


def test_the_kit_is_loaded_only_when_asked_for() -> None:
    code = (
        "import sys, medimg, medimg.io; print('medimg.testing' in sys.modules);"
        "import medimg.testing; print('hypothesis' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 3


def test_without_hypothesis_the_message_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from medimg.errors import MissingDependencyError\n"
        "try:\n    import medimg.testing.strategies\n"
        "except MissingDependencyError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "medimg[testing]"' in done.stdout


def one_file(folder: Path, kind: str) -> Path:
    values = np.random.default_rng(5).integers(0, 255, (6, 5, 4))
    if kind == "dcm":
        write_dicom(Study(slices=1, rows=40, columns=40), folder)
        return next(folder.iterdir())
    path = folder / f"a.{kind}"
    if kind in {"png", "jpg"}:
        Image.fromarray(np.kron(values[0], np.ones((8, 8))).astype(np.uint8)).save(path)
    else:
        nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([-2.0, 2, 2, 1])), path)
    return path


@pytest.mark.parametrize("check", FILE_CHECKS, ids=lambda c: c.name)
@pytest.mark.parametrize("kind", ["dcm", "png", "jpg", "nii", "nii.gz"])
def test_formats_of_single_files(tmp_path: Path, kind: str, check: medimg.testing.FileCheck) -> None:
    check(one_file(tmp_path, kind))


@pytest.mark.parametrize("kind", ["dcm", "png", "jpg", "nii", "nii.gz"])
def test_every_format_keeps_the_contract(tmp_path: Path, kind: str) -> None:
    (series,) = medimg.scan(one_file(tmp_path, kind))
    check_series(series)


# Series that are refused, by the name of their first file, and why; each of them reads with "keep"
REFUSED = {
    "seg_image_ct_binary_overlap.dcm": "segments cover slices with gaps between them",
    "TE_20_SlcPos_-33.707626341697.dcm": "three slices of many, at uneven distances",
}
#: In these, series are many and alike: one in so many is checked.
STRIDES = {"kermany_cxr224_dev": 150}
#: Kinds of series of each set that are checked, one of each; MEDIMG_SLOW=1 checks all series.
MOST = 4
#: Sets with DICOM that takes long and is like that of philips_enh_1901, me, mosaic_ep2d and nih.
REPEATED = {"dicom_qa/enh", "dicom_qa/fmap"}
SETS = (
    "cls/covid_ct_md_dev", "cls/kermany_cxr224_dev", "dicom_misc/dcmstack_multiecho",
    "dicom_misc/dicom2nifti_dev", "dicom_misc/fodicom_dev", "dicom_misc/highdicom",
    "dicom_misc/lidc_3pat_excerpt", "dicom_misc/nema_enhmr_dev", "dicom_misc/nifti_reader_js",
    "dicom_misc/nifti_space_dev", "dicom_misc/pydicom-data", "dicom_misc/pydicom_examples",
    "dicom_misc/pylibjpeg-data", "dicom_misc/torchxrayvision_cxr", "dicom_misc/wg04_dev",
    "dicom_qa/12bit", "dicom_qa/agfa", "dicom_qa/canon_3000", "dicom_qa/ct_philips", "dicom_qa/enh",
    "dicom_qa/fmap", "dicom_qa/me", "dicom_qa/mosaic_ep2d", "dicom_qa/nih", "dicom_qa/philips_enh_1901",
    "dicom_qa/ts", "dicom_qa/xa60_terra",
)  # fmt: skip


def test_all_sets_are_checked(real_data: Path) -> None:
    tops = ("cls", "dicom_misc", "dicom_qa")
    assert {f"{top}/{p.name}" for top in tops for p in (real_data / top).iterdir() if p.is_dir()} == set(SETS)


def one_of_each_kind(index: Sequence[Series], part: str) -> list[Series]:
    """The smallest series of each kind: format, modality, one file or several, one channel or several."""
    smallest: dict[tuple[object, ...], Series] = {}
    for series in index:
        if part in REPEATED and series.format == "DICOM":
            continue
        kind = (series.format, series.modality, len(series.files) > 1, series.shape[0] > 1)
        known = smallest.setdefault(kind, series)
        if np.prod(series.shape) < np.prod(known.shape):
            smallest[kind] = series
    return list(smallest.values())[:MOST]


@pytest.mark.slow
@pytest.mark.parametrize("part", SETS)
def test_every_series_of_the_data_sets_keeps_the_contract(
    real_data: Path, part: str, conformance: Conformance
) -> None:
    index = medimg.scan(real_data / part)
    assert index
    broken, refused = [], []
    checked = index[:: STRIDES.get(Path(part).name, 1)] if SLOW else one_of_each_kind(index, part)
    assert checked
    for series in checked:
        try:
            check_series(series)
        except MedimgError as error:
            refused.append(f"{Path(series.path).name}: {error}")
            check_series(series, read=partial(series.read, on_missing="keep"))
        except AssertionError as error:
            broken.append(f"{series.path}: {error}")
    conformance.note("reader contract: series that pass all checks", part, len(checked), len(broken))
    assert not broken, "\n\n".join(broken)
    unexpected = [text for text in refused if text.split(":")[0] not in REFUSED]
    assert not unexpected, "\n".join(unexpected)
