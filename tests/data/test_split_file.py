"""Folds, and splits that are written down and had again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.uid import generate_uid
from sklearn.model_selection import StratifiedGroupKFold

import medimg
from medimg import ImageDataset, Preprocess
from medimg.data.splits.kfold import assign_folds, split_by_fold
from medimg.errors import DatasetError, LeakageError
from medimg.models.training_images import TrainingImages
from medimg.training.resume import data_digest
from tests.dicom_files import make_instance, write
from tests.sampling import SLOW

SMALL = Preprocess(size=16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve patients: stacks of three slices and single pictures in turns, one patient with two of each."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "SENTINEL-folder"
    folder.mkdir()
    rows = []
    for n in range(14):
        patient = min(n, 11)
        if n % 2:
            uids = {f"{level}InstanceUID": generate_uid() for level in ("Study", "Series")}
            for z in range(3):
                pixels = rng.integers(0, 99, (16, 16)).astype(np.uint16)
                place = {"ImagePositionPatient": [0.0, 0.0, 2.0 * z], "PatientID": f"SENTINEL-{patient}"}
                write(make_instance(pixels, **uids, **place), folder / f"{n}" / f"{z}.dcm")
        else:
            Image.fromarray(rng.integers(0, 255, (16, 16)).astype(np.uint8)).save(folder / f"{n}.png")
        rows.append((f"{n}" if n % 2 else f"{n}.png", "abba"[n % 4], f"SENTINEL {patient}"))
    pd.DataFrame(rows, columns=["path", "label", "patient"]).to_csv(folder / "labels.csv", index=False)
    return folder


def data_of(root: Path, **options: Any) -> ImageDataset:
    given = {"preprocess": SMALL, **options}
    return ImageDataset.from_csv(root / "labels.csv", patient="patient", **given)


def rewritten(path: Path, **changes: Any) -> None:
    """Change a file as someone who knows how its hash is made."""
    content = json.loads(path.read_text()) | changes
    rest = {name: value for name, value in content.items() if name != "sha256"}
    content["sha256"] = hashlib.sha256(
        json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
    path.write_text(json.dumps(content))


def test_folds_keep_patients_and_classes(root: Path) -> None:
    data = data_of(root)
    folds = medimg.kfold(data, 3, seed=2)
    assert len(folds) == 3
    held_out = [item for _, test in folds for item in test._items]
    assert sorted(held_out, key=data._items.index) == list(data._items)
    for train, test in folds:
        assert not set(train.patients) & set(test.patients)
        assert len(train) + len(test) == len(data)
        assert set(np.unique(train.labels)) == set(np.unique(test.labels)) == {0, 1}
    expected = assign_folds(data.labels, data.patients, data.task, 3, 2)
    assert [len(test) for _, test in folds] == np.bincount(expected).tolist()
    assert [t._items for t, _ in medimg.kfold(data, 3, seed=2)] == [t._items for t, _ in folds]
    assert [t._items for t, _ in medimg.kfold(data, 3, seed=3)] != [t._items for t, _ in folds]


def test_folds_that_can_not_be_are_refused(root: Path) -> None:
    data = data_of(root)
    for wrong in (1, 2.0, True):
        with pytest.raises(DatasetError, match="folds"):
            medimg.kfold(data, wrong)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(LeakageError, match=r"class 'a' has 6 patient\(s\)"):
        medimg.kfold(data, 7)
    with pytest.raises(DatasetError, match="finer groups leak"):
        medimg.kfold(data, 2, by="image")  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("unit", ["image", "series"])
def test_a_split_is_had_again(root: Path, tmp_path: Path, unit: str) -> None:
    data = data_of(root, unit=unit)
    train, val, test = medimg.split(data, fractions=(0.5, 0.25, 0.25))
    train = train.subset(np.random.default_rng(1).permutation(len(train)))
    path = medimg.save_split(tmp_path / "made" / "split.json", train=train, val=val, test=test)
    assert "SENTINEL" not in path.read_text()
    assert ".dcm" not in path.read_text()
    moved = tmp_path / "moved"
    shutil.move(root, moved)
    table = pd.read_csv(moved / "labels.csv")[::-1]
    again = ImageDataset.from_csv(table, root=moved, patient="patient", preprocess=SMALL, unit=unit)  # type: ignore[arg-type]  # one of the units
    found = medimg.load_split(path, again)
    assert list(found) == ["train", "val", "test"]
    for before, after in zip((train, val, test), found.values(), strict=True):
        assert before.patients == after.patients
        assert [Path(p).name for p in before.sources] == [Path(p).name for p in after.sources]
        assert before.labels.tolist() == after.labels.tolist()
        assert before.image_indices == after.image_indices


def test_what_is_missing_changed_or_new_is_counted(root: Path, tmp_path: Path) -> None:
    data = data_of(root)
    path = medimg.save_split(
        tmp_path / "split.json", **dict(zip("ab", medimg.split(data, fractions=(0.5, 0.5)), strict=True))
    )
    table = pd.read_csv(root / "labels.csv")

    def loaded(rows: pd.DataFrame, **options: Any) -> dict[str, ImageDataset]:
        return medimg.load_split(
            path, ImageDataset.from_csv(rows, root=root, patient="patient", preprocess=SMALL), **options
        )

    with pytest.raises(
        DatasetError, match=r"2 of 14 series of .* missing from the dataset.*by hash: \w{12}, \w{12}$"
    ):
        loaded(table.iloc[2:])
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(root / "new.png")
    more = pd.concat([table, pd.DataFrame([("new.png", "a", "new")], columns=list(table.columns))])
    with pytest.raises(DatasetError, match="1 of 29 items are in no subset"):
        loaded(more)
    assert sum(map(len, loaded(more, on_additional="ignore").values())) == len(data)
    with pytest.raises(DatasetError, match="on_additional"):
        loaded(more, on_additional="keep")
    # a picture has no name but its content
    Image.fromarray(np.eye(16, dtype=np.uint8) * 2).save(root / "0.png")
    with pytest.raises(DatasetError, match=r"1 of 14 series of .* missing"):
        loaded(table)


def test_files_that_changed_are_refused_unless_that_is_known(root: Path, tmp_path: Path) -> None:
    data = data_of(root)
    path = medimg.save_split(tmp_path / "split.json", all=data)
    name = next((root / "1").iterdir())
    content = bytearray(name.read_bytes())
    content[-3] ^= 1
    name.write_bytes(content)
    with pytest.raises(DatasetError, match=r"1 of 14 series of .* of other files than those that were split"):
        medimg.load_split(path, data_of(root))
    assert len(medimg.load_split(path, data_of(root), verify=False)["all"]) == len(data)


def test_another_recipe_or_unit_is_told(root: Path, tmp_path: Path) -> None:
    path = medimg.save_split(tmp_path / "split.json", all=data_of(root))
    with pytest.raises(DatasetError, match=r"7 of 14 series of .* another number of images"):
        medimg.load_split(path, data_of(root, preprocess=SMALL.replace(slices=2)))
    with pytest.raises(DatasetError, match="unit='series'"):
        medimg.load_split(path, data_of(root, unit="series"))
    with pytest.raises(DatasetError, match="are not in the dataset"):
        medimg.load_split(path, data_of(root).subset([n for n in range(28) if n != 1]))


def test_sides_that_leak_are_neither_saved_nor_loaded(root: Path, tmp_path: Path) -> None:
    data = data_of(root)
    halves = medimg.split(data, fractions=(0.5, 0.5))
    with pytest.raises(LeakageError):
        medimg.save_split(tmp_path / "split.json", one=data, other=halves[0])
    assert not (tmp_path / "split.json").exists()
    path = medimg.save_split(tmp_path / "split.json", one=halves[0], other=halves[1])
    table = pd.read_csv(root / "labels.csv")
    table["patient"] = "all the same"
    everyone = ImageDataset.from_csv(
        table, root=root, patient="patient", preprocess=SMALL, file_patients="ignore"
    )
    with pytest.raises(LeakageError, match="1 × patient"):
        medimg.load_split(path, everyone)
    with pytest.raises(DatasetError, match="none was given"):
        medimg.save_split(tmp_path / "split.json")
    with pytest.raises(DatasetError, match="unit"):
        medimg.save_split(tmp_path / "split.json", a=data, b=data_of(root, unit="series"))


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": {}},
        {"parts": {"all": []}},
        {"parts": {"all": [[0, 0]]}},
        {"parts": {"all": [[99, 0, 1]]}},
        {"parts": {"all": [[0, 1, 1]]}},
        {"parts": {"all": [[0, 0, 10**12]]}},
        {"parts": {"all": [[0, -1, 1]]}},
        {"parts": {"all": [[0, 0, True]]}},
        {"parts": [1]},
        {"series": [["a", "b"]]},
        {"series": None},
        {"unit": 3},
    ],
)
def test_files_that_make_no_sense_are_refused(root: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    data = data_of(root)
    path = medimg.save_split(tmp_path / "split.json", all=data)
    rewritten(path, **changes)
    with pytest.raises(DatasetError, match="not as it was saved"):
        medimg.load_split(path, data)


def test_damaged_and_foreign_files_are_refused(root: Path, tmp_path: Path) -> None:
    data = data_of(root)
    path = medimg.save_split(tmp_path / "split.json", all=data)
    text = path.read_text()
    for wrong, match in (
        (text[:-20], "not a file of medimg.save_split"),
        (text.replace('"slice"', '"series"'), "not as it was saved"),
        ("[1]", "not a file of medimg.save_split"),
        ("[" * 10**5, "not a file of medimg.save_split"),
        ('{"what": "medimg split", "schema": 2}', "update medimg"),
        ('{"what": "medimg split"}', "schema unknown"),
    ):
        path.write_text(wrong)
        with pytest.raises(DatasetError, match=match):
            medimg.load_split(path, data)
    with pytest.raises(DatasetError, match="can't be opened"):
        medimg.load_split(tmp_path / "nowhere.json", data)
    rewritten_text = json.loads(text)
    path.write_text(text)
    series = rewritten_text["series"]
    series[0][2] = 10**12
    rewritten(path, series=series, parts={"all": [[0, 0, 10**12]]})
    with pytest.raises(DatasetError, match="another number of images"):
        medimg.load_split(path, data)


def test_the_same_picture_twice_of_one_patient(tmp_path: Path) -> None:
    rows = []
    for n in range(4):
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (16, 16)).astype(np.uint8)).save(
            tmp_path / f"{n}.png"
        )
        shutil.copy(tmp_path / f"{n}.png", tmp_path / f"{n}-copy.png")
        rows += [(f"{n}.png", "ab"[n % 2], f"p{n}"), (f"{n}-copy.png", "ab"[n % 2], f"p{n}")]
    pd.DataFrame(rows, columns=["path", "label", "patient"]).to_csv(tmp_path / "labels.csv", index=False)
    data = data_of(tmp_path)
    one, other = medimg.split(data, fractions=(0.5, 0.5))
    found = medimg.load_split(medimg.save_split(tmp_path / "s.json", one=one, other=other), data)
    assert [p.sources for p in found.values()] == [one.sources, other.sources]


def test_folds_are_those_of_scikit_learn() -> None:
    pytest.importorskip("sklearn", minversion="1.8")
    rng = np.random.default_rng(0)
    patients = [f"p{n}" for n in rng.integers(0, 60, 200)]
    labels = rng.integers(0, 3, 200)
    for seed in range(5):
        cut = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, patients)
        fold = assign_folds(labels, patients, "multiclass", 5, seed)
        assert [held.tolist() for _, held in cut] == [held.tolist() for _, held in split_by_fold(fold)]


def test_the_split_of_real_pictures_is_had_again(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "cls" / "kermany_cxr224_dev"
    rows = pd.read_csv(root / "labels.csv").iloc[:: 1 if SLOW else 3]
    data = ImageDataset.from_csv(rows, path="file", patient="patient_id", root=root)
    # other tests look for leaks among these
    parts = medimg.split(data, seed=1, check=None)
    path = medimg.save_split(tmp_path / "split.json", train=parts[0], val=parts[1], test=parts[2])
    found = medimg.load_split(path, data)
    assert [p.sources for p in found.values()] == [p.sources for p in parts]
    folds = medimg.kfold(data, check=None)
    sizes = [len(set(test.patients)) for _, test in folds]
    assert sum(sizes) == len(set(data.patients))
    for _, test in folds:
        assert float(np.mean(test.labels)) == pytest.approx(float(np.mean(data.labels)), abs=0.01)


def test_seeds_and_data_sets_that_are_none(root: Path, tmp_path: Path) -> None:
    data = data_of(root)
    for cut in (medimg.split, medimg.kfold):
        for wrong in (-1, 2**32, 1.0, None, "a", True):
            with pytest.raises(DatasetError, match="seed must be a whole number"):
                cut(data, seed=wrong, check=None)  # type: ignore[arg-type]  # on purpose
        with pytest.raises(DatasetError, match="found a list"):
            cut([data], check=None)  # type: ignore[arg-type]  # on purpose
        assert cut(data, seed=np.int64(3))  # type: ignore[arg-type]  # NumPy's integers will do
    with pytest.raises(DatasetError, match="found a list"):
        medimg.save_split(tmp_path / "split.json", train=[1])  # type: ignore[call-overload]  # on purpose
    with pytest.raises(DatasetError, match="found a str"):
        medimg.load_split(tmp_path / "split.json", "data")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(DatasetError, match="found a NoneType"):
        medimg.check_leaks(data, None)  # type: ignore[arg-type]  # on purpose


def test_values_as_deep_as_python_goes_are_refused(root: Path, tmp_path: Path) -> None:
    """What can just be read can't always be hashed."""
    data = data_of(root)
    path = tmp_path / "split.json"
    for depth in range(900, 1000, 1 if SLOW else 7):
        path.write_text('{"what": "medimg split", "schema": 1, "x": ' + "[" * depth + "]" * depth + "}")
        with pytest.raises(DatasetError, match=r"not a file of|not as it was saved"):
            medimg.load_split(path, data)
    with pytest.raises(DatasetError, match="can't be opened"):
        medimg.load_split("a\0b", data)


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    """Of files and folders, and of the patients that are read from them."""
    rng = np.random.default_rng(0)
    for n in range(4):
        folder = tmp_path / "ab"[n % 2] / os.fsdecode(b"p\xe9%d" % n)
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (16, 16)).astype(np.uint8)).save(folder / "x.png")
    data = ImageDataset.from_folder(tmp_path, SMALL, patient="(p.+)/", progress=False)
    report = medimg.check_leaks(data, data, on_leak="report")
    assert {leak.kind for leak in report.leaks} == {"patient", "file", "pixels"}
    assert len(TrainingImages().with_data(data, "train").patients["train"]) == 4
    assert data_digest(data) != data_digest(data.subset([0]))
