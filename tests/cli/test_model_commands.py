"""``medimg train``, ``predict``, ``evaluate`` and ``explain``: a study from the shell alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import medimg
from medimg.cli.main import main


def split_of(study: Path, table: Path, model: medimg.TransferClassifier) -> dict[str, medimg.ImageDataset]:
    data = medimg.ImageDataset.from_csv(
        table, path="file", patient="patient_id", classes=model.classes, preprocess=model.preprocess
    )
    return medimg.load_split(study / "split.json", data)


def test_train_writes_a_study(study: Path, table: Path) -> None:
    names = {path.name for path in study.iterdir()}
    assert {"model.safetensors", "split.json", "report.html", "report.md", "predictions.csv"} <= names
    model = medimg.load(study / "model.safetensors")
    assert model.calibration is not None
    assert model.classes == ("consolidation", "normal")
    test = split_of(study, table, model)["test"]
    predictions = pd.read_csv(study / "predictions.csv")
    assert len(predictions) == len(set(test.patients))
    patients = set(pd.read_csv(table, dtype=str).patient_id)
    assert min(map(len, patients)) >= 6
    text = (study / "report.html").read_text() + (study / "predictions.csv").read_text()
    assert not any(patient in text for patient in patients)


def test_train_refuses_to_replace_a_study(
    study: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (study / "model.safetensors").read_bytes()
    assert main(["train", str(table), "--output", str(study)]) == 1
    assert "--force" in capsys.readouterr().err
    assert (study / "model.safetensors").read_bytes() == before


TRAIN = ["--path", "file", "--patient", "patient_id", "--backbone", "squeezenet1_1", "--weights", "none"]
TRAIN += ["--size", "48", "--window", "percentile", "--head-epochs", "0", "--epochs", "1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr", "nan"], "lr must be"),
        (["--epochs", "0"], "nothing would be trained"),
        (["--seed", "99999999999999999999"], "seed must be"),
        (["--subgroups", "nope"], "['nope']"),
    ],
)
def test_a_training_that_cannot_start_writes_nothing(
    options: list[str], message: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(table), *TRAIN, *options, "--output", str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_resuming_another_training_leaves_its_split(
    study: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (study / "split.json").read_bytes()
    assert main(["train", str(table), *TRAIN, "--output", str(study), "--resume", "--seed", "3"]) == 1
    message = capsys.readouterr().err
    assert "belongs to another training" in message
    assert "or --force instead of resume" in message
    assert (study / "split.json").read_bytes() == before


def test_an_earlier_training_stays_without_force(
    study: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"model")
    assert main(["train", str(table), *TRAIN, "--output", str(tmp_path)]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["train", str(table), *TRAIN, "--output", str(tmp_path), "--force", "--lr", "-1"]) == 1
    assert (tmp_path / "best.safetensors").read_bytes() == b"model"
    assert main(["train", str(table), *TRAIN, "--output", str(tmp_path), "--resume"]) == 1
    assert "; pass --force" in (error := capsys.readouterr().err), error


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_batches_larger_than_any_data(study: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(next((table.parent / "images").iterdir()))
    assert main(["predict", str(study / "model.safetensors"), image, "--batch-size", str(10**22)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_two_files_of_one_name_are_refused(
    study: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(study / "model.safetensors"), str(table), "--out", str(tmp_path / "same")]
    assert main([*command, "--html", str(tmp_path / "." / "same")]) == 1
    assert "name one file" in capsys.readouterr().err


def test_info_of_a_model(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(study / "model.safetensors"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["backbone"] == "squeezenet1_1"
    assert facts["classes"] == ["consolidation", "normal"]
    assert facts["image_size"] == [48, 48]
    assert facts["trained"]
    assert facts["calibrated"]
    for option in ("--series", "--tags"):
        assert main(["info", str(study / "model.safetensors"), option, "1"]) == 1
        assert f"omit {option}" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_predict_gives_what_python_gives(
    study: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, images = str(study / "model.safetensors"), str(table.parent / "images")
    expected = medimg.load(model).predict(images)
    out = tmp_path / "predictions.csv"
    command = ["predict", model, images, "--out", str(out)]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{out}\n"
    found = pd.read_csv(out)
    assert list(found) == list(expected)
    np.testing.assert_allclose(found["p_normal"], expected["p_normal"])
    assert main(command) == 1
    capsys.readouterr()

    assert main(["predict", model, images, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["p_normal"] for row in rows] == expected["p_normal"].tolist()


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_sources_without_a_prediction_are_rows_and_1(
    study: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "=notes.txt").write_text("no image")
    image = str(next((table.parent / "images").iterdir()))
    command = ["predict", str(study / "model.safetensors"), image, str(tmp_path / "=notes.txt")]
    assert main(command) == 1
    capsys.readouterr()
    assert main([*command, "--on-error", "collect"]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 3
    assert "1 of 2 rows have no prediction" in captured.err


def test_evaluate_gives_the_report_of_the_training(
    study: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, out = tmp_path / "report.html", tmp_path / "predictions.csv"
    command = ["evaluate", str(study / "model.safetensors"), str(table), "--path", "file"]
    command += ["--patient", "patient_id", "--n-resamples", "100"]
    assert main(command) == 1
    assert "train" in capsys.readouterr().err
    command += ["--split", str(study / "split.json"), "--html", str(page), "--out", str(out)]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    trained, again = (pd.read_csv(p) for p in (study / "predictions.csv", out))
    np.testing.assert_allclose(again["p_normal"].sort_values(), trained["p_normal"].sort_values(), atol=1e-6)
    assert found["patients"] == len(trained)
    assert 0 <= found["metrics"]["accuracy"]["low"] <= found["metrics"]["accuracy"]["value"] <= 1
    assert "<html" in page.read_text()


def test_explain_writes_pictures(
    study: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(next((table.parent / "images").iterdir()))
    command = ["explain", str(study / "model.safetensors"), image, "--out", str(tmp_path / "map")]
    assert main([*command, "--target", "normal", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["target"] == "normal"
    assert (tmp_path / "map" / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert medimg.read(tmp_path / "map" / "heat.nii.gz").array.max() <= 1
    assert main(command) == 1
    assert "--force" in capsys.readouterr().err
