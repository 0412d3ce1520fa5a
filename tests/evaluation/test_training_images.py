"""A model knows the images that it was trained with, in this process and from its checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import medimg
from medimg.data.identifiers import hash_series_ids
from medimg.errors import CheckpointError, DatasetError, LeakageError
from medimg.models import safetensors_file, training_images
from medimg.models.digest import tensors_sha256
from medimg.models.training_images import TrainingImages, note_renderer
from medimg.preprocessing.renderer import find_renderer
from tests.dicom_files import make_instance, write
from tests.models.fakes import classifier
from tests.models.images import TINY, picture_data, pixels, stacks

Sides = tuple[medimg.ImageDataset, medimg.ImageDataset, medimg.ImageDataset]


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    data = picture_data(tmp_path_factory.mktemp("seen") / "pictures", patients=24)
    train, val, test = medimg.split(data, fractions=(0.5, 0.25, 0.25))
    return train, val, test


@pytest.fixture(scope="module")
def trained(sides: Sides) -> medimg.TransferClassifier:
    model = classifier(preprocess=TINY)
    medimg.fit_head(model, sides[0])
    return model


def notes(model: medimg.TransferClassifier, data: Any, **options: Any) -> str:
    return " ".join(medimg.evaluate(model, data, n_resamples=10, **options).notes)


def test_training_images_are_refused_or_said(trained: medimg.TransferClassifier, sides: Sides) -> None:
    train, _, test = sides
    with pytest.raises(
        LeakageError, match="trained on 24 series and images of 12 patients of the data"
    ) as info:
        medimg.evaluate(trained, train, n_resamples=10)
    assert "SENTINEL" not in str(info.value)
    assert "how well it remembers them" in notes(trained, train, on_leak="report")
    assert "remembers" not in notes(trained, test)


def test_another_image_of_the_same_patient(trained: medimg.TransferClassifier, sides: Sides) -> None:
    train, _, test = sides
    model = classifier(preprocess=TINY)
    medimg.fit_head(model, train.subset([n for n in range(len(train)) if n % 2]))
    rest = train.subset([n for n in range(len(train)) if not n % 2])
    with pytest.raises(LeakageError, match=r"trained on images of \d+ patients of"):
        medimg.evaluate(model, rest, n_resamples=10)
    medimg.evaluate(model, test, n_resamples=10)


def test_copies_elsewhere_are_known_by_the_checkpoint(
    trained: medimg.TransferClassifier, sides: Sides, tmp_path: Path
) -> None:
    """Renamed files in another folder, given as if of other patients."""
    loaded = medimg.load(trained.save(tmp_path / "model.safetensors"))
    train, _, test = sides
    for number, (part, message) in enumerate(((train, "trained on 1 series of"), (test, ""))):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        rows = ["path,label,patient"]
        source, label = Path(part.sources[0]), part.classes[int(part.labels[0])]
        shutil.copyfile(source, folder / "copy.png")
        other = test if part is train else test.subset(range(1, len(test)))
        rows += [f"copy.png,{label},x"]
        for k, name in enumerate(other.sources[1:8]):
            shutil.copyfile(name, folder / f"{k}.png")
            rows.append(f"{k}.png,{other.classes[int(other.labels[k + 1])]},p{k}")
        (folder / "labels.csv").write_text("\n".join(rows) + "\n")
        data = medimg.ImageDataset.from_csv(
            folder / "labels.csv", patient="patient", preprocess=TINY, progress=False
        )
        if message:
            with pytest.raises(LeakageError, match=message):
                medimg.evaluate(loaded, data, n_resamples=10)
        else:
            medimg.evaluate(loaded, data, n_resamples=10)


def test_dicom_is_known_by_its_instances(tmp_path: Path) -> None:
    """Not by its bytes: other headers, another folder."""
    folders = stacks(tmp_path / "first", 4)
    labels = {folder.name: "ab"[n % 2] for n, folder in enumerate(folders)}

    def dataset(root: Path) -> medimg.ImageDataset:
        rows = ["path,label"] + [f"{name},{label}" for name, label in labels.items()]
        (root / "labels.csv").write_text("\n".join(rows) + "\n")
        return medimg.ImageDataset.from_csv(root / "labels.csv", preprocess=TINY, progress=False)

    model = classifier(preprocess=TINY)
    medimg.fit_head(model, dataset(tmp_path / "first"), C=1.0)
    other = tmp_path / "second"
    shutil.copytree(tmp_path / "first", other)
    for file in other.rglob("*.dcm"):
        header = pydicom.dcmread(file)
        header.StudyDescription = "changed"
        header.PatientID = f"other {header.PatientID}"
        header.save_as(file)
    assert model.images_seen is not None
    shared = model.images_seen.shared(dataset(other))
    assert (shared.series["train"], shared.patients["train"]) == (4, 0)
    unlike = tmp_path / "third"
    unlike.mkdir()
    for file in sorted((tmp_path / "first").rglob("*.dcm")):
        header = pydicom.dcmread(file)
        header.SOPInstanceUID = pydicom.uid.generate_uid()
        (unlike / file.parent.name).mkdir(exist_ok=True)
        header.save_as(unlike / file.parent.name / file.name)
    assert not model.images_seen.shared(dataset(unlike)).series["train"]


def test_validation_images_are_said(sides: Sides) -> None:
    train, val, test = sides
    model = classifier(preprocess=TINY)
    medimg.fit_head(model, train, val)
    assert "Validation data are among the evaluation data (12 series" in notes(model, val)
    assert "Validation" not in notes(model, test)


def test_calibration_data_count_as_validation(
    trained: medimg.TransferClassifier, sides: Sides, tmp_path: Path
) -> None:
    train, val, test = sides
    model = medimg.load(trained.save(tmp_path / "model.safetensors"))
    with pytest.raises(LeakageError, match="trained on 24 series of the validation data"):
        medimg.calibrate(model, train)
    assert model.calibration is None
    medimg.calibrate(model, val, coverage=None)
    assert "Validation data" in notes(model, val)
    assert "Validation data" not in notes(model, test)


def test_adaptation_is_said(sides: Sides) -> None:
    train, val, test = sides
    model = classifier(preprocess=TINY)
    medimg.fine_tune(
        model,
        train,
        val,
        epochs=1,
        adapt=medimg.adapt.CORAL(test),
        augment=None,
        progress=False,
    )
    assert "adapted to some of the evaluation data (12 series" in notes(model, test)


def test_training_again_adds(sides: Sides) -> None:
    train, val, _ = sides
    model = classifier(preprocess=TINY)
    for part in (train, val):
        medimg.fit_head(model, part)
    assert repr(model.images_seen) == "TrainingImages(36 train, 0 val, 0 target)"
    with pytest.raises(LeakageError):
        medimg.evaluate(model, train, n_resamples=10)


def test_what_lies_on_no_disk_is_counted(trained: medimg.TransferClassifier, sides: Sides) -> None:
    class InMemory:
        series = tuple(medimg.scan(Path(name).read_bytes())[0] for name in sides[0].sources[:3])
        patients = ("", "", "")

    model = classifier(preprocess=TINY)
    model.images_seen = TrainingImages().with_data(InMemory(), "train")
    assert model.images_seen.unknown == 3
    assert "3 series that the model was trained on can't be identified" in notes(model, sides[2])


def test_checkpoint_holds_salted_hashes_and_no_patients(
    trained: medimg.TransferClassifier, tmp_path: Path
) -> None:
    first, second = (trained.save(tmp_path / f"{n}.safetensors") for n in range(2))
    assert trained.images_seen is not None
    loaded = medimg.load(first).images_seen
    assert loaded is not None
    assert loaded.series == trained.images_seen.series
    assert loaded.salt == trained.images_seen.salt
    assert not any(loaded.patients.values())
    assert any(trained.images_seen.patients.values())
    assert b"SENTINEL" not in first.read_bytes()
    assert first.read_bytes() == second.read_bytes()


def test_other_models_have_other_hashes(sides: Sides) -> None:
    found = [TrainingImages().with_data(sides[0], "train").series["train"] for _ in range(2)]
    assert len(found[0]) == len(found[1]) == 24
    assert not found[0] & found[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("salt", r"images_seen\.salt must be 32 hexadecimal digits"),
        (
            "shape",
            r"images_seen\.train must be torch.uint8 of shape \(n, 8\); found torch.uint8 of shape \(192,\)",
        ),
        ("type", r"images_seen\.train must be torch.uint8 .*; found torch.int8"),
        ("role", "images_seen must have the fields train, val, target; found missing val"),
        ("header", "images_seen must be an object"),
        ("unknown", r"images_seen\.unknown must be a whole number, 0 or more; found -1"),
    ],
)
def test_tampered_hashes_are_refused(
    trained: medimg.TransferClassifier, tmp_path: Path, change: str, message: str
) -> None:
    path = trained.save(tmp_path / "model.safetensors")
    with safe_open(path, framework="pt") as opened:
        header = json.loads(opened.metadata()["medimg"])
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118  # no dict
    if change == "salt":
        header["images_seen"]["salt"] = "zz" * 16
    elif change == "shape":
        tensors["images_seen.train"] = tensors["images_seen.train"].reshape(-1)
    elif change == "type":
        tensors["images_seen.train"] = tensors["images_seen.train"].to(torch.int8)
    elif change == "role":
        del tensors["images_seen.val"]
    elif change == "header":
        header["images_seen"] = None
    else:
        header["images_seen"]["unknown"] = -1
    header["tensors_sha256"] = tensors_sha256(tensors)
    header["header_sha256"] = safetensors_file.header_sha256(header)
    save_file(tensors, path, metadata={"medimg": json.dumps(header)})
    with pytest.raises(CheckpointError, match=message):
        medimg.load(path)


def test_unknown_policy(trained: medimg.TransferClassifier, sides: Sides) -> None:
    with pytest.raises(DatasetError, match="on_leak"):
        medimg.evaluate(trained, sides[2], on_leak="ignore")  # type: ignore[arg-type]  # on purpose


def test_the_same_slices_in_other_series_are_known(tmp_path: Path) -> None:
    """Each as a series of its own, all of a stack, or all but one."""
    folders = stacks(tmp_path, 4)

    def dataset(paths: list[Path]) -> medimg.ImageDataset:
        rows = [
            (str(path.relative_to(tmp_path)), "ab"[int(path.relative_to(tmp_path).parts[0]) % 2])
            for path in paths
        ]
        table = pd.DataFrame(rows, columns=["path", "label"])
        return medimg.ImageDataset.from_csv(table, root=tmp_path, preprocess=TINY, progress=False)

    files = sorted(tmp_path.rglob("*.dcm"))
    whole, apart = dataset(folders), dataset(files)
    seen = {
        name: TrainingImages().with_data(data, "train") for name, data in (("whole", whole), ("apart", apart))
    }
    assert seen["apart"].shared(whole).series["train"] == 4
    assert seen["whole"].shared(apart).series["train"] == len(files) == 12
    for folder in folders:
        sorted(folder.glob("*.dcm"))[1].unlink()
    assert seen["whole"].shared(dataset(folders)).series["train"] == 4


def test_uncompressed_volumes_with_black_borders_are_told_apart(tmp_path: Path) -> None:
    """Headers, first, middle and last rows are the same in all."""
    for n in range(3):
        values = np.zeros((256, 256, 8), np.float32)
        values[90:170, 90:170, 1:7] = np.random.default_rng(n).normal(100, 10, (80, 80, 6))
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{n}.nii")
    shutil.copyfile(tmp_path / "0.nii", tmp_path / "copy.nii")
    names = [hash_series_ids([medimg.scan(tmp_path / f"{n}.nii")[0]])[0] for n in (0, 1, 2, "copy")]
    assert len({*names}) == 3
    assert names[0] == names[3]


def test_a_patient_of_the_files_under_another_name(tmp_path: Path) -> None:
    """The files name the patients that were trained on, a table those that are evaluated on."""
    for folder, start in (("first", 0), ("second", 100)):
        for n in range(4):
            ds = make_instance(pixels(n % 2, start + n), PatientID=f"SENTINEL-{n}")
            for level in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                setattr(ds, level, pydicom.uid.generate_uid())
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            write(ds, tmp_path / folder / "ab"[n % 2] / f"s{n}.dcm")
    first = medimg.ImageDataset.from_folder(tmp_path / "first", TINY, progress=False)
    second = medimg.ImageDataset.from_folder(tmp_path / "second", TINY, patient=r"s(\d)", progress=False)
    shared = TrainingImages().with_data(first, "train").shared(second)
    assert (shared.series["train"], shared.patients["train"]) == (0, 4)
    # whoever is known by two names is still one
    assert TrainingImages().with_data(first, "train").shared(first).patients["train"] == 4


def test_another_renderer_is_named_once(
    trained: medimg.TransferClassifier,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = trained.save(tmp_path / "model.safetensors")
    model = medimg.load(path)
    assert model.images_seen is not None
    here = find_renderer()
    assert model.images_seen.renderer == here
    other = "torch" if here == "compiled" else "compiled"
    monkeypatch.setattr(training_images, "find_renderer", lambda: other)
    caplog.set_level("INFO", logger="medimg")
    for _ in range(2):
        note_renderer(model)
    assert caplog.text.count("the images of training were rendered by") == 1
    model.images_seen = replace(model.images_seen, renderer="")
    note_renderer(model)
    assert caplog.text.count("the images of training were rendered by") == 1
