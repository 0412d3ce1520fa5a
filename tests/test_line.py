"""The whole line, from files to a loaded checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import medimg
from medimg.errors import TrainingError
from medimg.preprocessing.preprocess import Preprocess
from tests.dicom_files import make_instance, write

SMALL = Preprocess(window="lung", size=64)


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("line") / "ct"
    medimg.phantom.write_ct_dataset(folder, patients=12, slices=4, size=64, seed=3)
    return folder


def test_training_and_a_loaded_model_see_the_same_bits(ct: Path, tmp_path: Path) -> None:
    data = medimg.ImageDataset.from_csv(
        ct / "slices.csv", path="file", patient="patient_id", preprocess=SMALL
    )
    seen: dict[int, torch.Tensor] = {}

    def watch(batch: torch.Tensor) -> torch.Tensor:
        for image in batch:
            seen[hash(image.numpy().tobytes())] = image.clone()
        return batch

    train, val = medimg.split(data, fractions=(0.6, 0.4))
    model = medimg.TransferClassifier(
        "squeezenet1_1", classes=data.classes, weights=None, preprocess=data.preprocess
    )
    medimg.fine_tune(model, train, val, head_epochs=1, epochs=1, augment=watch, progress=False)
    loaded = medimg.load(model.save(tmp_path / "model.safetensors"))
    for index in range(len(train)):
        raw = loaded.preprocess(train.sources[index])
        assert torch.equal(raw[0], train[index][0])
        assert hash(raw[0].numpy().tobytes()) in seen
    files = list(dict.fromkeys(val.sources))
    proba = loaded.predict_proba(val, batch_size=len(val))
    table = loaded.predict(files, unit="image", batch_size=len(val))
    assert np.allclose(table[[f"p_{c}" for c in data.classes]].to_numpy(), proba, atol=1e-12)


def test_a_model_refuses_pixels_of_another_recipe(ct: Path) -> None:
    data = medimg.ImageDataset.from_csv(
        ct / "slices.csv", path="file", patient="patient_id", preprocess=SMALL
    )
    other = SMALL.replace(window="bone")
    model = medimg.TransferClassifier("squeezenet1_1", classes=data.classes, weights=None, preprocess=other)
    with pytest.raises(TrainingError, match=r"differ in preprocessing \(window="):
        medimg.fine_tune(model, data, progress=False)


def test_x_ray_pictures_and_their_dicom_twins_train_alike(tmp_path: Path) -> None:
    """The same pixels as PNG and as DX DICOM: the same tensors, and the same trained network."""
    rng = np.random.default_rng(2)
    rows = []
    for n in range(12):
        pixels = rng.integers(0, 255, (64, 64)).astype(np.uint8)
        pixels[: 32 * (n % 2)] //= 2
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
        ds = make_instance(
            pixels,
            Modality="DX",
            ImagePositionPatient=None,
            ImageOrientationPatient=None,
            RescaleIntercept=0,
            SeriesInstanceUID=f"1.2.{n + 1}",
            PixelSpacing=[0.2, 0.2],
            PatientID=f"p{n}",
        )
        write(ds, tmp_path / f"{n}.dcm")
        rows.append((n, ["well", "ill"][n % 2], f"p{n}"))
    table = pd.DataFrame(rows, columns=["n", "label", "patient"])
    outputs = []
    for suffix in ("png", "dcm"):
        data = medimg.ImageDataset.from_csv(
            table.assign(file=[f"{n}.{suffix}" for n in table.n]),
            path="file",
            patient="patient",
            root=tmp_path,
            preprocess=Preprocess(size=64),
        )
        torch.manual_seed(0)
        model = medimg.TransferClassifier(
            "squeezenet1_1", classes=data.classes, weights=None, preprocess=data.preprocess
        )
        train, val = medimg.split(data, fractions=(0.5, 0.5))
        medimg.fine_tune(model, train, val, head_epochs=0, epochs=1, batch_size=3, progress=False)
        outputs.append(model.predict_proba(val))
    assert np.array_equal(outputs[0], outputs[1])


def test_the_kermany_pictures_as_dx_files_give_the_same_tensors(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "cls" / "kermany_cxr224_dev"
    table = pd.read_csv(root / "labels.csv", dtype=str)
    chosen = table.groupby("label").head(8).reset_index(drop=True)
    for number, name in enumerate(chosen.file):
        pixels = np.asarray(Image.open(root / name).convert("L"))
        ds = make_instance(
            pixels,
            Modality="DX",
            ImagePositionPatient=None,
            ImageOrientationPatient=None,
            RescaleIntercept=0,
            SeriesInstanceUID=f"1.2.{number + 1}",
            PatientID=str(chosen.patient_id[number]),
        )
        ds.PixelSpacing = [0.14, 0.14]
        write(ds, tmp_path / f"{number}.dcm")
    pictures = medimg.ImageDataset.from_csv(chosen, path="file", patient="patient_id", root=root)
    dicom = medimg.ImageDataset.from_csv(
        chosen.assign(file=[f"{n}.dcm" for n in range(len(chosen))]), path="file", root=tmp_path
    )
    assert dicom.patients == pictures.patients
    for index in range(len(chosen)):
        assert torch.equal(dicom[index][0], pictures[index][0])


def test_nothing_of_a_patient_leaks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name and an ID planted in every file appear in nothing that medimg writes or says."""
    caplog.set_level(logging.DEBUG)
    rng = np.random.default_rng(4)
    rows = []
    for n in range(8):
        ds = make_instance(
            rng.integers(0, 2000, (64, 64)).astype(np.uint16),
            SeriesInstanceUID=f"1.2.{n + 1}",
            PatientID=f"SENTINEL-{n}",
            PatientName=f"Sentinel^{n}",
            PatientBirthDate="19000101",
            OtherPatientIDs=f"SENTINEL-OTHER-{n}",
        )
        write(ds, tmp_path / "scans" / f"{n}.dcm")
        rows.append((f"{n}.dcm", ["a", "b"][n % 2]))
    data = medimg.ImageDataset.from_csv(
        pd.DataFrame(rows, columns=["file", "label"]), path="file", root=tmp_path / "scans", preprocess=SMALL
    )
    train, test = medimg.split(data, fractions=(0.5, 0.5))
    model = medimg.TransferClassifier("squeezenet1_1", classes=data.classes, weights=None, preprocess=SMALL)
    output = tmp_path / "output"
    fit = medimg.fine_tune(model, train, test, head_epochs=0, epochs=1, batch_size=2, output=output)
    report = medimg.evaluate(model, test, n_resamples=50)
    report.to_html(output / "report.html", fit=fit)
    report.to_csv(output / "predictions.csv")
    table = model.predict(test.sources)
    spoken = capsys.readouterr()
    texts = [repr(data), repr(model), repr(fit), repr(report), str(report), table.to_csv(), caplog.text]
    texts += [spoken.out, spoken.err, *map(repr, medimg.scan(tmp_path / "scans"))]
    texts += [path.read_bytes().decode("latin-1") for path in output.iterdir()]
    texts += [path.name for path in output.iterdir()]
    for text in texts:
        assert "sentinel" not in text.lower()
        assert "19000101" not in text
