from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medimg
from medimg import ImageDataset, Preprocess
from medimg.core import geometry
from medimg.errors import CheckpointError, MedimgWarning
from medimg.models.training_distribution import (
    ImageFacts,
    TrainingDistribution,
    record_training_distribution,
)
from tests.dicom_files import make_instance, write
from tests.models.fakes import classifier, images

RECIPE = Preprocess(size=32)
PIXELS = np.random.default_rng(0).integers(0, 2000, (40, 48), dtype=np.int16)


def scans(root: Path, count: int = 4, **attributes: Any) -> ImageDataset:
    """Single slices of two classes."""
    for n in range(count):
        given = {
            "SeriesInstanceUID": f"1.2.{n}",
            "PatientID": f"SENTINEL-{n}",
            "BodyPartExamined": "CHEST",
            "PixelSpacing": [0.6 + 0.1 * n, 0.6 + 0.1 * n],
            "SliceThickness": 2.0,
            **attributes,
        }
        write(make_instance(PIXELS, **given), root / "ab"[n % 2] / f"{n}.dcm")
    return ImageDataset.from_folder(root, RECIPE)


def trained(root: Path, **attributes: Any) -> medimg.TransferClassifier:
    model = classifier(preprocess=RECIPE)
    record_training_distribution(model, scans(root, **attributes))
    return model


def test_what_is_noted(tmp_path: Path) -> None:
    ranges = trained(tmp_path).training_ranges
    assert ranges == TrainingDistribution(
        series=4,
        modalities=("CT",),
        formats=("DICOM",),
        body_parts=("CHEST",),
        photometric=("MONOCHROME2",),
        spacing=(0.6, 0.9),
        slice_distance=None,
        slice_thickness=(2.0, 2.0),
        rows=(40.0, 40.0),
        columns=(48.0, 48.0),
    )


def test_training_notes_it_and_drops_the_calibration(tmp_path: Path) -> None:
    data = scans(tmp_path, count=8)

    def fine_tune(model: medimg.TransferClassifier) -> object:
        return medimg.fine_tune(model, data, head_epochs=1, epochs=0, progress=False, output=tmp_path)

    def fit_head(model: medimg.TransferClassifier) -> object:
        return medimg.fit_head(model, data, C=1.0)

    for train in (fit_head, fine_tune):
        model = classifier(preprocess=RECIPE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MedimgWarning)  # a random model's scores are those of chance
            medimg.calibrate(model, data, coverage=None)
        train(model)
        assert model.calibration is None
        assert model.training_ranges is not None
        assert model.training_ranges.modalities == ("CT",)
    # what training writes after each epoch has it, too
    assert medimg.load(tmp_path / "best.safetensors").training_ranges == model.training_ranges


def test_other_data_sets_tell_nothing() -> None:
    model = classifier()
    record_training_distribution(model, images())
    assert model.training_ranges is None
    assert "unlike" not in model.predict([])


@pytest.mark.parametrize(
    ("attributes", "unlike", "message"),
    [
        ({}, "", ""),
        ({"PixelSpacing": [1.1, 1.1]}, "", ""),
        ({"BodyPartExamined": None}, "", ""),
        ({"Modality": "MR"}, "modality MR", "out of distribution in modality: MR; .* trained on CT"),
        ({"BodyPartExamined": "KNEE"}, "body part KNEE", "in body part: KNEE; .* trained on CHEST"),
        ({"PixelSpacing": [2.0, 2.0]}, "spacing 2 mm", "in spacing: 2 mm; .* trained on 0.6 to 0.9 mm"),
        ({"PixelSpacing": [0.6, 0.2]}, "spacing 0.2 mm", "in spacing: 0.2 mm"),
    ],
)
def test_one_image(tmp_path: Path, attributes: dict[str, Any], unlike: str, message: str) -> None:
    model = trained(tmp_path / "train")
    given = {"BodyPartExamined": "CHEST", "PixelSpacing": [0.7, 0.7], "SliceThickness": 2.0, **attributes}
    given = {name: value for name, value in given.items() if value is not None}
    path = write(make_instance(PIXELS, **given), tmp_path / "new.dcm")
    for source in (path, medimg.scan(path)[0], path.read_bytes()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            table = model.predict(source)
        assert table["unlike"].tolist() == [unlike]
        assert len(caught) == bool(message)
        if message:
            with pytest.warns(MedimgWarning, match=message):
                model.predict(source)


def test_one_warning_for_each_kind_not_for_each_image(tmp_path: Path) -> None:
    model = trained(tmp_path / "train")
    paths = [
        write(make_instance(PIXELS, Modality=modality, PixelSpacing=[3.0, 3.0]), tmp_path / f"{n}.dcm")
        for n, modality in enumerate(["MR", "PT", "MR", "MR", "CT"])
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = model.predict(paths, unit="image", batch_size=2)
    texts = [str(one.message) for one in caught]
    assert len(texts) == 2
    assert "4 of 5 images are out of distribution in modality: MR, PT; the model" in texts[0]
    assert "5 of 5 images are out of distribution in spacing: 3 mm" in texts[1]
    assert caught[0].filename == __file__
    assert table["unlike"].tolist()[0] == "modality MR; spacing 3 mm"
    assert not any("sentinel" in text.lower() for text in texts)


def test_volumes_and_distances_of_slices() -> None:
    ranges = TrainingDistribution.of([ImageFacts("CT", spacing=(1.0, 1.0), slice_distance=2.0)])
    array = np.zeros((1, 3, 8, 8), np.int16)
    thick = medimg.Volume(array, geometry.image_affine((5.0, 1.0, 1.0)), "CT", "HU")
    assert ranges.unlike(ImageFacts.of(thick)) == {"slice distance": "5 mm"}
    # a single slice has no neighbor, and a picture without millimeters no spacing
    single = medimg.Volume(array[:, :1], geometry.image_affine((5.0, 1.0, 1.0)), "CT", "HU")
    assert ranges.unlike(ImageFacts.of(single)) == {}
    plain = medimg.Volume(array, geometry.image_affine((1.0, 1.0, 1.0)), space="image")
    assert ImageFacts.of(plain).spacing == ()


def test_free_texts_are_no_codes(tmp_path: Path) -> None:
    """What someone wrote into a field for codes does not get into the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, on writing such a thing
        data = scans(tmp_path, BodyPartExamined="Sentinel^Name 1.2.1950")
    model = classifier(preprocess=RECIPE)
    with pytest.warns(MedimgWarning, match="BodyPartExamined is present but is not a short, printable text"):
        record_training_distribution(model, data)
    assert model.training_ranges is not None
    assert model.training_ranges.body_parts == ()
    assert "sentinel" not in json.dumps(model.training_ranges.to_dict()).lower()


def test_through_json(tmp_path: Path) -> None:
    ranges = trained(tmp_path).training_ranges
    assert ranges is not None
    values = json.loads(json.dumps(ranges.to_dict()))
    assert TrainingDistribution.from_dict(values) == ranges
    for bad, message in (
        ({**values, "more": 1}, "ranges must have the fields .*; found unknown 'more'"),
        ({**values, "modalities": "CT"}, r"ranges\.modalities must be a list of texts; found 'CT'"),
        ({**values, "spacing": [2, 1]}, r"ranges\.spacing must be two ascending numbers; found 2 and 1"),
        (
            {**values, "rows": ["a", "b"]},
            r"ranges\.rows must be a number, above 0 and below 1e\+30; found 'a'",
        ),
        ({**values, "columns": [1]}, r"ranges\.columns must be null or two numbers; found \[1\]"),
        ({**values, "series": None}, r"ranges\.series must be a whole number, 0 or more; found None"),
        ({}, "ranges must have the fields .*; found missing series, "),
        ("CT", "ranges must be an object with fields; found 'CT'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            TrainingDistribution.from_dict(bad)
