"""One spelling and one order of classes, in folders, tables and datasets."""

from __future__ import annotations

import io
import random
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medimg import ImageDataset, Preprocess
from medimg.data.class_names import are_same_classes, sort_classes
from medimg.errors import DatasetError, MedimgWarning

SMALL = Preprocess(size=16)


def write_pictures(root: Path, labels: list[Any]) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for n, label in enumerate(labels):
        (root / f"{label}").mkdir(parents=True, exist_ok=True)
        name = f"{label}/p{n}.png"
        Image.fromarray(rng.integers(0, 256, (16, 16)).astype(np.uint8)).save(root / name)
        rows.append((name, label, f"p{n}"))
    return pd.DataFrame(rows, columns=["path", "label", "patient"])


def from_table(table: Any, root: Path, **options: Any) -> ImageDataset:
    return ImageDataset.from_csv(table, root=root, patient="patient", preprocess=SMALL, **options)


@given(st.lists(st.integers(-30, 200), unique=True), st.sampled_from(["", "grade ", "T"]))
def test_numbers_are_in_order(numbers: list[int], prefix: str) -> None:
    known = [n for n in sorted(numbers) if n >= 0 or not prefix]
    mixed = [f"{prefix}{n}" for n in known]
    random.Random(0).shuffle(mixed)
    assert sort_classes(mixed) == [f"{prefix}{n}" for n in known]


@given(st.sets(st.text(min_size=1)))
def test_the_order_does_not_depend_on_the_order(names: set[str]) -> None:
    assert sort_classes(names) == sort_classes(sorted(names, reverse=True))
    assert set(sort_classes(names)) == names


def test_folders_and_tables_agree(tmp_path: Path) -> None:
    table = write_pictures(tmp_path, list(range(12)))
    expected = tuple(map(str, range(12)))
    folder = ImageDataset.from_folder(tmp_path, SMALL, patient=r"(p\d+)")
    table.to_csv(tmp_path / "t.csv", index=False)
    floats = table.assign(label=table.label.astype(float))
    floats.to_csv(tmp_path / "f.csv", index=False)
    found = [from_table(t, tmp_path) for t in (table, floats, tmp_path / "t.csv", tmp_path / "f.csv")]
    assert {one.classes for one in (folder, *found)} == {expected}
    # a checkpoint from before has its own order and spelling
    stored = ("0.0", "1.0", "10.0", "11.0", *(f"{n}.0" for n in range(2, 10)))
    again = from_table(table, tmp_path, classes=stored)
    assert again.classes == stored
    assert again.labels.tolist() == [stored.index(f"{n}.0") for n in range(12)]
    assert not are_same_classes(again.classes, folder.classes)
    assert are_same_classes(stored, [name.removesuffix(".0") for name in stored])


@pytest.mark.parametrize(
    "labels", [["neg", "Neg"], ["no finding", "nofinding"], ["no_finding", "No finding"]]
)
def test_names_that_differ_by_case_or_blanks_warn(tmp_path: Path, labels: list[str]) -> None:
    table = write_pictures(tmp_path, labels)
    with pytest.warns(MedimgWarning, match="classes 0 and 1 .* only by case, blanks"):
        assert len(from_table(table, tmp_path).classes) == 2
    with pytest.warns(MedimgWarning, match="only by case"):
        ImageDataset.from_folder(tmp_path, SMALL, patient=r"(p\d+)")


def test_blanks_around_a_label_do_not_count(tmp_path: Path) -> None:
    table = write_pictures(tmp_path, ["neg", "pos", "neg"]).assign(label=["neg", "pos", "neg "])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_table(table, tmp_path).classes == ("neg", "pos")


@pytest.mark.parametrize("names", [["train", "val"], ["Training", "test"], ["train", "valid", "test_set"]])
def test_splits_are_not_classes(tmp_path: Path, names: list[str]) -> None:
    write_pictures(tmp_path, names)
    with pytest.warns(MedimgWarning, match="named like splits"):
        ImageDataset.from_folder(tmp_path, SMALL, patient=r"(p\d+)")


def test_columns_that_occur_twice(tmp_path: Path) -> None:
    table = write_pictures(tmp_path, ["a", "b"])
    twice = pd.concat([table, table[["label"]]], axis=1)
    twice.to_csv(tmp_path / "twice.csv", index=False)
    for given_table in (twice, tmp_path / "twice.csv"):
        with pytest.raises(DatasetError, match="2 columns named 'label'"):
            from_table(given_table, tmp_path)
    # another column may
    more = pd.concat([table, pd.DataFrame({"x": [1, 2]}), pd.DataFrame({"x": [1, 2]})], axis=1)
    more.to_csv(tmp_path / "more.csv", index=False)
    for given_table in (more, tmp_path / "more.csv"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert from_table(given_table, tmp_path).classes == ("a", "b")
    with pytest.raises(DatasetError, match="a column twice"):
        from_table(table.assign(A=1), tmp_path, label=["A", "A"])


def test_booleans_are_indicators_in_frames_and_files(tmp_path: Path) -> None:
    table = write_pictures(tmp_path, ["a", "b"]).assign(A=[True, False], B=["TRUE", " false"], C=[1.0, 0.0])
    table.to_csv(tmp_path / "t.csv", index=False)
    for given_table in (table, tmp_path / "t.csv"):
        found = from_table(given_table, tmp_path, label=["A", "B", "C"])
        assert found.labels.tolist() == [[1, 1, 1], [0, 0, 0]]
    for wrong in (-1, 2, "yes", 0.5):
        with pytest.raises(DatasetError, match="column 'A' of row 1"):
            from_table(table.assign(A=[1, wrong]), tmp_path, label=["A", "B"])


def test_images_without_labels(tmp_path: Path) -> None:
    table = write_pictures(tmp_path, ["a", "b"])
    folder = ImageDataset.from_folder(tmp_path, SMALL, patient=r"(p\d+)", label=None)
    listed = from_table(table.drop(columns="label"), tmp_path, label=None)
    for found in (folder, listed, folder.subset([0, 1]), folder.with_preprocess(SMALL.replace(size=8))):
        assert (len(found), found.classes, found.is_labeled) == (2, (), False)
        assert found.labels.tolist() == [-1, -1]
        assert found[1][1] == -1
        assert "no labels" in repr(found)
    for wrong in ("0", 1.0):
        with pytest.raises(DatasetError, match=r"dataset\[:3\]"):
            folder[wrong]  # type: ignore[index]
    with pytest.raises(DatasetError, match="label=None"):
        ImageDataset.from_folder(tmp_path / "a", SMALL)
    with pytest.raises(DatasetError, match="None for images without"):
        from_table(table.drop(columns="label"), tmp_path)


def test_a_sign_is_not_a_hyphen(tmp_path: Path) -> None:
    table = write_pictures(tmp_path, [-1, 0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_table(table, tmp_path).classes == ("-1", "0", "1")


@pytest.mark.parametrize("word", ["nan", "NaN", "N/A", "#N/A", "<NA>", "null", "?", "#VALUE!"])
def test_words_for_missing_values_are_named(tmp_path: Path, word: str) -> None:
    table = write_pictures(tmp_path, ["a", "b"])
    with pytest.warns(MedimgWarning, match="missing values"):
        assert word in from_table(table.assign(label=["a", word]), tmp_path).classes


@pytest.mark.parametrize("column", ["label", "patient"])
def test_infinite_cells_are_refused(tmp_path: Path, column: str) -> None:
    table = write_pictures(tmp_path, ["a", "b"])
    with pytest.raises(DatasetError, match=rf"'{column}' is infinite in 1 row\(s\), the first is row 1"):
        from_table(table.assign(**{column: [1.0, float("inf")]}), tmp_path)


def test_a_column_of_identifiers_is_no_column_of_classes(tmp_path: Path) -> None:
    table = write_pictures(tmp_path, [f"Doe^John{n}" for n in range(24)])
    for wrong in ("label", "patient"):
        with pytest.raises(DatasetError, match="each of one patient only") as caught:
            from_table(table, tmp_path, label=wrong)
        assert not {"Doe", "p7"} & set(re.findall(r"\w+", str(caught.value)))
    with pytest.raises(DatasetError, match="each of one patient only"):
        ImageDataset.from_folder(tmp_path, SMALL, patient=r"(p\d+)")
    assert len(from_table(table, tmp_path, classes=list(table.label)).classes) == 24
    shared = table.assign(patient=["p", "q"] * 12, label=[n // 2 for n in range(24)])
    assert len(from_table(shared, tmp_path)) == 24


def test_uncertain_labels_are_named(tmp_path: Path) -> None:
    table = write_pictures(tmp_path, ["a", "b"]).assign(edema=[0.0, -1.0], mass=[1, 0])
    with pytest.raises(DatasetError, match="-1 in column 'edema' of row 1, which means uncertain"):
        from_table(table, tmp_path, label=["edema", "mass"])


def test_classes_are_a_list_of_any_type_with_an_order(tmp_path: Path) -> None:
    table = write_pictures(tmp_path, [0, 1])
    for classes in ([1, 0], (1.0, 0.0), np.array([1, 0]), pd.Index(["1", "0"])):
        assert from_table(table, tmp_path, classes=classes).classes == ("1", "0")
    for wrong in ({"0", "1"}, "01", {"0": 1}, 2):
        with pytest.raises(DatasetError, match="classes must be a list of names"):
            from_table(table, tmp_path, classes=wrong)


def test_a_table_is_read_once_from_a_buffer(tmp_path: Path) -> None:
    text = write_pictures(tmp_path, ["a", "b"]).to_csv(index=False)
    assert from_table(io.StringIO(text), tmp_path).classes == ("a", "b")
    twice = "path,label,label,patient\na/p0.png,a,b,p0\n"
    with pytest.raises(DatasetError, match="2 columns named 'label'"):
        from_table(io.BytesIO(twice.encode()), tmp_path)
    with pytest.raises(DatasetError, match="not a CSV table"):
        from_table(io.StringIO(text + "x,y,z,w\n"), tmp_path)


@pytest.mark.parametrize("wrong", [None, {"patient": ["Doe"]}, [("Doe", 1)]])
def test_other_tables_are_refused_without_their_content(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(DatasetError, match="csv must be the path of a table or a DataFrame") as caught:
        from_table(wrong, tmp_path)
    assert "Doe" not in str(caught.value)
    with pytest.raises(DatasetError, match="root must be a path"):
        ImageDataset.from_csv(pd.DataFrame({"path": ["a"]}), root=3)  # type: ignore[arg-type]  # wrong on purpose
