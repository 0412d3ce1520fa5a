"""Metrics of groups: which group an item is of, what each scores, and that small ones are not shown."""

import dataclasses
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement

import medimg
from medimg import scan
from medimg.errors import DatasetError, MedimgWarning
from medimg.evaluation.aggregation import make_units
from medimg.evaluation.evaluate import evaluate
from medimg.evaluation.subgroups import find_groups, find_subgroups, to_age_band
from tests.dicom_files import make_instance, write, write_stack
from tests.evaluation.fakes import make_pair, opened_files
from tests.models.fakes import classifier


@pytest.mark.parametrize(
    ("age", "band"),
    [
        (0, "0-17"),
        (17.99, "0-17"),
        (18, "18-39"),
        (np.int64(40), "40-59"),
        ("059Y", "40-59"),
        ("60", "60-79"),
        ("080Y", "80+"),
        ("023M", "0-17"),
        ("900W", "0-17"),
        ("010D", "0-17"),
        (None, "unknown"),
        (float("nan"), "unknown"),
        (-1, "unknown"),
        ("", "unknown"),
        ("Y45", "unknown"),
        ("999Y", "unknown"),
    ],
)
def test_bands_of_ages(age: Any, band: str) -> None:
    assert to_age_band(age) == band


def grouped(n_patients: int = 80, **options: Any) -> tuple[Any, Any, list[str]]:
    model, dataset = make_pair(n_patients=n_patients, per_patient=3, **options)
    sex = ["FM"[int(name.removeprefix("patient-")) // 2 % 2] for name in dataset.patients]
    return model, dataset, sex


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_a_group_scores_what_its_patients_score_alone(unit: Any) -> None:
    model, dataset, sex = grouped()
    report = evaluate(model, dataset, unit=unit, n_resamples=50, subgroups={"sex": sex})
    assert report.subgroups is not None
    for group, n in (("F", 40), ("M", 40)):
        chosen = np.array(sex) == group
        part = dataclasses.replace(
            dataset,
            labels=dataset.labels[chosen],
            patients=tuple(np.array(dataset.patients)[chosen]),
            series_uids=(),
            sources=(),
        )
        alone = evaluate(
            dataclasses.replace(model, probabilities=model.probabilities[chosen]),
            part,
            unit=unit,
            n_resamples=50,
        )
        rows = report.subgroups[report.subgroups["group"] == group].set_index("metric")
        assert set(rows["n_patients"]) == {n}
        assert set(rows["n_units"]) == {alone.n_units}
        assert not any("[" in name for name in rows.index)
        for name, row in rows.iterrows():
            estimate = alone.metrics[str(name)]
            assert (row["value"], row["low"], row["high"]) == pytest.approx(
                (estimate.value, estimate.low, estimate.high), nan_ok=True
            )
    assert report.metrics == evaluate(model, dataset, unit=unit, n_resamples=50).metrics


def test_every_way_to_give_groups_gives_the_same() -> None:
    model, dataset, sex = grouped()
    by_patient = dict(zip(dataset.patients, sex, strict=True))
    ways: list[Any] = [sex, np.array(sex), pd.Series(sex, index=range(7, 7 + len(sex))), by_patient]
    tables = [evaluate(model, dataset, n_resamples=20, subgroups={"sex": way}).subgroups for way in ways]
    assert tables[0] is not None
    for table in tables[1:]:
        assert table is not None
        pd.testing.assert_frame_equal(table, tables[0])


def test_small_groups_are_put_together_and_not_shown_if_still_small() -> None:
    model, dataset, _ = grouped(40)
    number = [int(name.removeprefix("patient-")) for name in dataset.patients]
    rare = ["rare" if n < 4 else "common" for n in number]
    report = evaluate(model, dataset, n_resamples=20, subgroups={"kind": rare})
    assert report.subgroups is not None
    assert "rare" not in report.subgroups.to_string()
    hidden = report.subgroups[report.subgroups["group"] == "other (fewer than 5 patients each)"]
    assert hidden[["n_patients", "n_units", "value", "low", "high"]].isna().all(axis=None)
    assert set(hidden["note"]) == {"fewer than 5 patients: not shown"}
    several = ["abc"[n % 3] if n < 9 else "common" for n in number]
    report = evaluate(model, dataset, n_resamples=20, subgroups={"kind": several})
    assert report.subgroups is not None
    assert report.subgroups.groupby("group")["n_patients"].first().to_dict() == {
        "common": 31,
        "other (fewer than 5 patients each)": 9,
    }


def test_small_numbers_are_noted() -> None:
    model, dataset, sex = grouped(80)
    notes = evaluate(model, dataset, n_resamples=20, subgroups={"sex": sex}).notes
    assert not [note for note in notes if "simulated" not in note]
    model, dataset, sex = grouped(40)
    report = evaluate(model, dataset, n_resamples=20, subgroups={"sex": sex})
    assert report.subgroups is not None
    assert set(report.subgroups["note"]) == {"fewer than 30 patients"}
    assert any("are not reliable: sex F, sex M" in note for note in report.notes)
    lacking = ["ill" if label else "well" for label in dataset.labels]
    report = evaluate(model, dataset, n_resamples=20, subgroups={"state": lacking})
    assert report.subgroups is not None
    rows = report.subgroups[report.subgroups["group"] == "ill"].set_index("metric")
    assert set(rows["note"]) == {"fewer than 30 patients; fewer than 10 patients of normal"}
    assert rows["value"].isna()["auroc"]
    assert not rows["value"].isna()["sensitivity"]


def test_a_patient_of_several_groups_and_of_none() -> None:
    model, dataset, _ = grouped(40)
    scanner: list[Any] = [
        "A" if i % 3 or int(p.split("-")[1]) < 20 else "B" for i, p in enumerate(dataset.patients)
    ]
    scanner = [
        None if int(p.split("-")[1]) < 6 else s for s, p in zip(scanner, dataset.patients, strict=True)
    ]
    report = evaluate(model, dataset, n_resamples=20, subgroups={"scanner": scanner})
    assert report.subgroups is not None
    counts = report.subgroups.groupby("group", sort=False)["n_patients"].first().to_dict()
    assert counts == {"A": 14, "several": 20, "unknown": 6}


def test_parts_of_units_are_units() -> None:
    model, dataset, _ = grouped(10)
    units = make_units(dataset, model.probabilities, "image")
    chosen = np.arange(len(units)) % 4 == 1
    part = units.part(chosen)
    assert len(part) == chosen.sum() == len(part.item_unit)
    assert np.array_equal(part.probabilities, units.probabilities[chosen])
    names = [units.patient_names[p] for p in units.patient[chosen]]
    assert [part.patient_names[p] for p in part.patient] == names
    whole = units.part(np.ones(len(units), dtype=bool))
    assert np.array_equal(whole.patient, units.patient)
    assert whole.patient_names == units.patient_names


@pytest.mark.parametrize(
    ("subgroups", "message"),
    [
        ({"sex": ["F"]}, "1 values; expected one for each of the 120"),
        ({"sex": 7}, "no values"),
        ({"sex": [None] * 120}, "no image has a group"),
        ({"id": list(range(120))}, "120 groups; expected at most 50"),
        ([], "empty"),
        ([7], "found list"),
    ],
)
def test_unfit_subgroups(subgroups: Any, message: str) -> None:
    model, dataset, _ = grouped(40)
    with pytest.raises(DatasetError, match=message):
        evaluate(model, dataset, n_resamples=5, subgroups=subgroups)


@dataclass(frozen=True)
class SeriesOnly:
    """A data set of series, as far as groups go."""

    series: tuple[Any, ...]
    domains: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.series)


def test_nothing_links_a_group_to_a_subject() -> None:
    model, dataset, sex = grouped()
    report = evaluate(model, dataset, n_resamples=5, subgroups={"sex": sex})
    assert not {"sex", "group"} & set(report.predictions.columns)
    assert json.dumps(report.provenance)
    assert report.subgroups is not None
    assert not set(report.predictions["subject"]) & set(report.subgroups.astype(str).to_numpy().ravel())


def written(folder: Path) -> SeriesOnly:
    """Four patients, each with what another one lacks."""
    people: list[dict[str, Any]] = [
        {"PatientSex": "F", "PatientAge": "045Y", "ManufacturerModelName": "One"},
        {"PatientSex": "M", "PatientBirthDate": "19400229", "StudyDate": "20200301"},
        {"PatientSex": "SENTINEL", "PatientAge": "SENT", "ManufacturerModelName": "Two"},
        {"InstitutionName": "SENTINEL HOSPITAL", "PatientAge": "008M"},
    ]
    for n, person in enumerate(people):
        instance = make_instance(np.full((4, 4), n, np.uint16), SeriesInstanceUID=f"1.2.{n + 1}")
        for keyword, value in person.items():
            element = {"PatientAge": "AS", "PatientSex": "CS"}.get(keyword)
            if element:
                instance[keyword] = DataElement(keyword, element, value, validation_mode=IGNORE)
            else:
                setattr(instance, keyword, value)
        # pydicom warns of what is against the standard
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write(instance, folder / f"{n}.dcm")
    found = sorted(scan(folder), key=lambda series: series.uid)
    # two items of the first
    return SeriesOnly((found[0], *found), ("",) * 5)


def test_groups_told_from_the_files(tmp_path: Path) -> None:
    dataset = written(tmp_path)
    with pytest.warns(MedimgWarning, match=r"PatientSex is present but is not F, M or O.*\(1 of 4 series\)"):
        assert find_groups(dataset, "sex", "sex") == ["F", "F", "M", "unknown", "unknown"]
    for column in ("age", "PatientAge"):
        with pytest.warns(MedimgWarning, match="PatientAge is present but is not an age"):
            found = find_groups(dataset, column, column)
        assert found == ["40-59", "40-59", "80+", "unknown", "0-17"]
    assert find_groups(dataset, "scanner", "scanner") == ["One", "One", "unknown", "Two", "unknown"]
    assert find_groups(dataset, "site", "site") == ["unknown"] * 4 + ["site 1"]
    named = dataclasses.replace(dataset, domains=("A", "A", "B", "B", ""))
    assert (
        find_groups(named, "site", "site")
        == find_groups(named, "domain", "domain")
        == ["A", "A", "B", "B", "unknown"]
    )
    assert find_groups(dataset, "kind", lambda series: series.modality) == ["CT"] * 5
    with pytest.raises(DatasetError, match="these tags are not available"):
        find_groups(dataset, "name", "PatientName")


def test_evaluation_opens_no_file_for_tags_and_each_once_for_pixels(tmp_path: Path) -> None:
    for n in range(24):
        write_stack(
            tmp_path / "ab"[n // 2 % 2] / f"{n}",
            [0.0, 2.0, 4.0],
            SeriesInstanceUID=f"1.2.3.{n}",
            PatientID=f"p{n}",
            PatientSex="FM"[n % 2],
            PatientAge=f"0{20 + 2 * n}Y",
            Manufacturer="AB"[n % 2],
            ManufacturerModelName="One",
            InstitutionName=f"SENTINEL {n % 2}",
            StationName="SENTINEL station",
        )
    recipe = medimg.Preprocess(size=32)
    data = medimg.ImageDataset.from_folder(tmp_path, recipe, progress=False)
    names = ["sex", "age", "scanner", "site", "Manufacturer", "StationName", "modality"]
    with opened_files(tmp_path) as opened:
        found = find_subgroups(data, names)
    assert not opened
    assert found["sex"] == ["FM"[int(patient[1:]) % 2] for patient in data.patients]
    assert set(found["site"]) == {"site 1", "site 2"}
    model = classifier(preprocess=recipe, classes=data.classes)
    part = data.subset(range(len(data)))
    with opened_files(tmp_path) as opened:
        report = evaluate(model, part, n_resamples=5, subgroups=names)
    assert set(opened.values()) == {1}
    assert len(opened) == 72
    assert report.subgroups is not None
    assert set(report.subgroups["subgroup"]) == set(names)


def test_datasets_of_a_table_keep_tags(tmp_path: Path) -> None:
    write_stack(tmp_path / "a", [0.0, 2.0], SeriesInstanceUID="1.2.1", PatientSex="F", Manufacturer="A")
    write_stack(tmp_path / "b", [0.0, 2.0], SeriesInstanceUID="1.2.2", PatientSex="M", Manufacturer="B")
    table = pd.DataFrame({"path": ["a", "b"], "label": ["x", "y"], "patient": ["1", "2"]})
    data = medimg.ImageDataset.from_csv(table, root=tmp_path, patient="patient", progress=False)
    with opened_files(tmp_path) as opened:
        found = find_subgroups(data.subset([0, 3]), ["sex", "Manufacturer"])
    assert found == {"sex": ["F", "M"], "Manufacturer": ["A", "B"]}
    assert not opened
