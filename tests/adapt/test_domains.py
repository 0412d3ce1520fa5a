"""Domains and tags: from DICOM headers, from a column, by a rule; and nothing that identifies anybody."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

import medimg
from medimg.adapt import MultiSource, domains_of
from medimg.data.acquisition_tags import NUMBERED, NUMBERS, TEXTS, ages_of, read_acquisition_tags, sexes_of
from medimg.errors import DatasetError, MedimgWarning, TrainingError
from tests.dicom_files import make_instance, stack_pixels, write, write_stack
from tests.models.fakes import images

SCANNERS = (("Maker A", "Scan 1", "Hospital Alpha"), ("Maker B", "Scan 2", "Hospital Beta"))


def study(root: Path) -> medimg.SeriesIndex:
    """Two series of each of two scanners."""
    for n in range(4):
        maker, model, site = SCANNERS[n % 2]
        write_stack(
            root / f"s{n}",
            [0.0, 2.0, 4.0],
            SeriesInstanceUID=f"1.2.3.{n}",
            PatientID=f"SENTINEL-{n}",
            Manufacturer=maker,
            ManufacturerModelName=model,
            InstitutionName=site,
            KVP=120 if n % 2 else 100,
            SliceThickness=2.0,
            ConvolutionKernel=["B30f", "x"] if n % 2 else "",
        )
    return medimg.scan(root)


def dataset(root: Path, **fields: Any) -> medimg.ImageDataset:
    rows = [{"path": f"s{n}", "label": "ab"[n // 2], "patient": n, "site": "xy"[n // 2]} for n in range(4)]
    import pandas as pd

    return medimg.ImageDataset.from_csv(
        pd.DataFrame(rows), root=root, patient="patient", preprocess=medimg.Preprocess(size=32), **fields
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    study(folder)
    return folder


def test_read_acquisition_tags_series(root: Path) -> None:
    index = medimg.scan(root)
    found = read_acquisition_tags(index, ["Manufacturer", "KVP", "ConvolutionKernel", "EchoTime"])
    by_uid = dict(zip([s.uid for s in index], found, strict=True))
    assert by_uid["1.2.3.0"] == {
        "Manufacturer": "Maker A",
        "KVP": 100.0,
        "ConvolutionKernel": "",
        "EchoTime": "",
    }
    assert by_uid["1.2.3.1"]["ConvolutionKernel"] == "B30f"


def test_headers_are_not_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tube current and exposure alone, which differ from slice to slice, are read from the first file."""
    from medimg.data import acquisition_tags as module
    from medimg.io.dicom.header.open import open_header

    data, opened = dataset(root), []

    def counted(*args: Any) -> Any:
        opened.append(args)
        return open_header(*args)

    monkeypatch.setattr(module, "open_header", counted)
    found = read_acquisition_tags(
        data, [key for key in (*TEXTS, *NUMBERS, *NUMBERED) if key not in ("XRayTubeCurrent", "Exposure")]
    )
    assert len(found) == len(data) == 12
    assert domains_of(data, "Manufacturer")[1] == ("Maker A", "Maker B")
    assert not opened
    read_acquisition_tags(data, ["Exposure"])
    assert len(opened) == 4


def test_kept_elements_give_what_files_do(root: Path, tmp_path: Path) -> None:
    """Of many files at once, of one by one, in an archive, and by a saved index, which keeps no elements."""
    from medimg.data.acquisition_tags import read_missing_elements
    from medimg.io.dicom.header.acquisition import ACQUISITION_TAGS
    from medimg.io.dicom.header.open import open_header

    def values(dataset: Dataset) -> dict[int, Any]:
        return {int(element.tag): element.value for element in dataset}

    index = medimg.scan(root)
    for series in index:
        instance = series.reader.plan.first.instance  # type: ignore[attr-defined]  # of DICOM
        expected = values(open_header(instance.blob, ACQUISITION_TAGS))
        assert len(expected) > 5
        assert values(instance.acquisition.to_dataset()) == expected
        alone = medimg.scan(series.path)[0].reader.plan.first.instance  # type: ignore[attr-defined]  # of DICOM
        assert values(alone.acquisition.to_dataset()) == expected
    assert not read_missing_elements(index)
    saved = tmp_path / "index.sqlite"
    for _ in range(2):
        recalled = medimg.scan(root, index=saved)
    readers: list[Any] = [series.reader for series in recalled]
    # files that were written just now are not in the index
    missing = [reader for reader in readers if reader.plan.first.instance.acquisition is None]
    assert len(read_missing_elements(recalled)) == len(missing)
    assert b"Hospital" not in saved.read_bytes()
    assert read_acquisition_tags(recalled, ["Manufacturer"]) == read_acquisition_tags(index, ["Manufacturer"])


def test_sites_are_numbered_and_nobody_is_named(root: Path) -> None:
    found = read_acquisition_tags(medimg.scan(root), [*TEXTS, *NUMBERS, *NUMBERED])
    assert {tags["InstitutionName"] for tags in found} == {"site 1", "site 2"}
    shown = repr(found)
    for secret in ("SENTINEL", "Sentinel", "Hospital", "Alpha"):
        assert secret not in shown


def test_read_acquisition_tags_an_archive(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((root / "s1").iterdir()):
            archive.write(file, f"deep/{file.name}")
    assert read_acquisition_tags(medimg.scan(path), ["Manufacturer"]) == [{"Manufacturer": "Maker B"}]


def test_read_acquisition_tags_an_index_from_another_process(root: Path) -> None:
    import pickle  # as it is passed to processes that read

    index = pickle.loads(pickle.dumps(medimg.scan(root)))
    assert {tags["Manufacturer"] for tags in read_acquisition_tags(index, ["Manufacturer"])} == {
        "Maker A",
        "Maker B",
    }


def test_read_acquisition_tags_shared_functional_groups(tmp_path: Path) -> None:
    group, kernel = Dataset(), Dataset()
    kernel.ConvolutionKernel = "Br40"
    group.CTReconstructionSequence = DicomSequence([kernel])
    instance = make_instance(stack_pixels(0.0), SharedFunctionalGroupsSequence=DicomSequence([group]))
    write(instance, tmp_path / "a.dcm")
    assert read_acquisition_tags(medimg.scan(tmp_path), ["ConvolutionKernel"]) == [
        {"ConvolutionKernel": "Br40"}
    ]


@pytest.mark.filterwarnings("ignore:The value length")
def test_invalid_values_are_named_and_not_taken_for_absent_ones(tmp_path: Path) -> None:
    for number, kvp in enumerate(("100,5", "nan", "", "100.5")):
        ds = make_instance(stack_pixels(0.0), SeriesInstanceUID=f"1.2.{number}")
        for keyword, vr, value in (
            ("KVP", "LO", kvp),
            ("PatientSex", "CS", "MALE" if number else "M"),
            ("PatientAge", "LO", "old" if number == 1 else "045Y"),
            ("Manufacturer", "LO", "X" * 200 if number else "Maker"),
        ):
            ds.add(DataElement(keyword, vr, value))
        write(ds, tmp_path / f"{number}.dcm")
    index = medimg.scan(tmp_path)
    with pytest.warns(MedimgWarning, match=r"KVP is present but is not finite numbers.* \(2 of 4 series\)"):
        assert [tags["KVP"] for tags in read_acquisition_tags(index, ["KVP"])] == ["", "", "", 100.5]
    with pytest.warns(MedimgWarning, match=r"Manufacturer is present .* \(3 of 4 series\)"):
        read_acquisition_tags(index, ["Manufacturer"])
    with pytest.warns(MedimgWarning, match=r"PatientSex is present .* \(3 of 4 series\)"):
        assert sexes_of(index) == ["M", "", "", ""]
    with pytest.warns(MedimgWarning, match=r"PatientAge is present .* \(1 of 4 series\)"):
        assert ages_of(index) == [45.0, None, 45.0, 45.0]


def test_other_formats_have_no_tags(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(tmp_path / "a.png")
    assert read_acquisition_tags(medimg.scan(tmp_path), ["Manufacturer", "KVP"]) == [
        {"Manufacturer": "", "KVP": ""}
    ]


@pytest.mark.parametrize("keyword", ["PatientName", "OperatorsName", "StudyDate", "nothing"])
def test_tags_that_may_identify_are_not_given_out(keyword: str) -> None:
    with pytest.raises(DatasetError, match="Manufacturer"):
        read_acquisition_tags([], [keyword])


def test_damaged_values_are_no_tags(tmp_path: Path) -> None:
    instance = make_instance(stack_pixels(0.0), Manufacturer="Doe^Jane")
    write(instance, tmp_path / "a.dcm")
    with pytest.warns(MedimgWarning, match="Manufacturer is present") as caught:
        assert read_acquisition_tags(medimg.scan(tmp_path), ["Manufacturer"]) == [{"Manufacturer": ""}]
    assert not any("Doe" in str(w.message) for w in caught)


def test_domains_by_keyword_by_column_by_rule_and_by_name(root: Path) -> None:
    data = dataset(root, domain="site")
    indices, names = domains_of(data, "Manufacturer")
    assert names == ("Maker A", "Maker B")
    assert indices.tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3
    indices, names = domains_of(data, "column")
    assert (names, indices.tolist()) == (("x", "y"), [0] * 6 + [1] * 6)
    indices, names = domains_of(data, lambda series: series.uid[-1])
    assert (names, indices.tolist()) == (("0", "1", "2", "3"), [n for n in range(4) for _ in range(3)])
    indices, names = domains_of(data, [5, 7] * 6)
    assert (names, indices.tolist()) == (("5", "7"), [0, 1] * 6)
    assert domains_of(data, np.array(["b", "a"] * 6))[0].tolist() == [1, 0] * 6  # type: ignore[arg-type]  # too


def test_domains_of_parts_are_those_of_their_items(root: Path) -> None:
    part = dataset(root).subset([0, 4, 5])
    assert domains_of(part, "Manufacturer")[0].tolist() == [0, 1, 1]


def test_domains_that_nobody_names_are_an_error(root: Path) -> None:
    data = dataset(root)
    for by in ("column", "StationName"):
        with pytest.raises(TrainingError, match="no image has a domain"):
            domains_of(data, by)
    with pytest.raises(TrainingError, match="12 items"):
        domains_of(data, ["a"])
    with pytest.raises(TrainingError, match="12 items"):
        domains_of(data, 3)  # type: ignore[arg-type]  # refused
    with pytest.raises(DatasetError, match="PatientName"):
        domains_of(data, "PatientName")


def test_items_without_a_name_are_one_domain() -> None:
    indices, names = domains_of(images(3), by=["", "b", ""])
    assert (names, indices.tolist()) == (("b", "unknown"), [1, 0, 1])


def test_multisource_needs_two_sources(root: Path) -> None:
    data = dataset(root)
    assert MultiSource(data).source_domains(data).tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3
    with pytest.raises(TrainingError, match="two sources"):
        MultiSource(data).source_domains(data.subset([0, 1, 2]))
