"""One word for a unit of items: "image", for which "slice" is accepted, and stays in files."""

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import medimg
from medimg._validation import check_item_unit
from medimg.calibration.result import Calibration
from medimg.errors import DatasetError
from tests.evaluation.fakes import make_pair


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for n in range(4):
        (tmp_path / "data" / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 40 * n, np.uint8)).save(tmp_path / "data" / "ab"[n % 2] / f"{n}.png")
    return tmp_path / "data"


def dataset(root: Path, unit: Any) -> medimg.ImageDataset:
    return medimg.ImageDataset.from_folder(root, medimg.Preprocess(size=32), unit=unit, patient=r"(\d)\.png")


def test_both_words_make_the_same_dataset(root: Path, tmp_path: Path) -> None:
    new, old = (dataset(root, unit) for unit in ("image", "slice"))
    assert new.unit == old.unit == medimg.ImageDataset.from_folder(root, patient=r"(\d)\.png").unit == "image"
    assert "4 images" in new.summary()
    # files have the word of before
    file = medimg.save_split(tmp_path / "split.json", all=new)
    assert json.loads(file.read_text())["unit"] == "slice"
    assert len(medimg.load_split(file, old)["all"]) == 4
    with pytest.raises(DatasetError, match="unit='image', the dataset has unit='series'"):
        medimg.load_split(file, dataset(root, "series"))
    with pytest.raises(DatasetError, match='unit must be "image" or "series"; found'):
        dataset(root, "slices")


def test_both_words_predict_the_same(root: Path) -> None:
    model = medimg.TransferClassifier(
        "squeezenet1_1", classes=["a", "b"], weights=None, preprocess=medimg.Preprocess(size=32)
    )
    tables = [model.predict(sorted(root.glob("*/*.png")), unit=unit) for unit in ("image", "slice")]
    pd.testing.assert_frame_equal(tables[0], tables[1])


def test_a_calibration_of_before_is_read() -> None:
    values: dict[str, Any] = {
        "unit": "slice", "items": 4, "patients": 2, "temperature": [1.0], "loss": [0.5, 0.5],
        "operating_point": None, "points": [], "coverage": None, "quantiles": [], "bins": [],
        "parameters_sha256": "0" * 64,
    }  # fmt: skip
    found = Calibration.from_dict(values, None, ("a", "b"), "multiclass")
    assert found.unit == "image"
    assert found.to_dict()["unit"] == "slice"


@pytest.mark.parametrize("unit", ["slice", "image"])
def test_datasets_of_others_may_use_either(unit: str) -> None:
    model, data = make_pair(n_patients=4, per_patient=2)
    object.__setattr__(data, "unit", unit)
    report = medimg.evaluate(model, data, unit="image", n_resamples=5)
    assert report.provenance["evaluation"]["item"] == "image"
    assert report.size == "4 patients, 8 images"


def test_units_are_checked() -> None:
    assert [check_item_unit(one) for one in ("image", "slice", "series")] == ["image", "image", "series"]
    for wrong in ("patient", None, 1, np.zeros(2)):
        with pytest.raises(DatasetError, match="unit must be"):
            check_item_unit(wrong)


def test_no_code_compares_with_the_other_word() -> None:
    """A comparison with "slice" would be false for the datasets of medimg."""
    root = Path(medimg.__file__).parent
    found = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Compare) and path.name != "_validation.py":
                sides = [node.left, *node.comparators]
                if any(isinstance(one, ast.Constant) and one.value == "slice" for one in sides):
                    found.append(f"{path.relative_to(root)}:{node.lineno}")
    assert not found
