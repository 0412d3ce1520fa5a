"""Datasets of arrays and of .npz files, through splits, training, evaluation and caches."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import medimg
from medimg.core.volume import Volume
from medimg.errors import DatasetError, LeakageError, MedimgWarning, ReadError
from medimg.models.backbones import registry
from medimg.preprocessing.preprocess import Preprocess

RNG = np.random.default_rng(21)
GRAY = RNG.integers(0, 256, (6, 20, 24)).astype(np.uint8)
COLOR = RNG.integers(0, 256, (6, 20, 24, 3)).astype(np.uint8)
SMALL = Preprocess(size=32)
PATIENTS = ["a", "a", "b", "b", "c", "d"]


def make(images: Any = GRAY, labels: Any = (0, 1, 0, 1, 0, 1), **options: Any) -> medimg.ImageDataset:
    options = {"patients": PATIENTS, "preprocess": SMALL, **options}
    return medimg.ImageDataset.from_arrays(images, labels, **options)


def save_png(path: Path, image: npt.NDArray[Any]) -> Path:
    Image.fromarray(image).save(path)
    return path


@pytest.mark.parametrize("images", [GRAY, COLOR], ids=["gray", "color"])
def test_arrays_give_the_tensors_of_image_files(tmp_path: Path, images: npt.NDArray[Any]) -> None:
    data = make(images)
    for n in range(2):
        expected = SMALL(save_png(tmp_path / f"{n}.png", images[n]))
        assert torch.equal(data[n][0], expected[0])


@pytest.mark.parametrize(
    ("shape", "axes", "count", "channels"),
    [
        ((6, 20, 24), None, 1, 1),
        ((6, 20, 24, 3), None, 1, 3),
        ((6, 20, 24, 1), None, 1, 1),
        ((6, 1, 20, 24), None, 1, 1),
        ((6, 3, 20, 24), "NCHW", 1, 3),
        ((6, 3, 20, 24), "NDHW", 3, 1),
        ((6, 20, 3, 24), "NHCW", 1, 3),
        ((6, 5, 20, 24), None, 5, 1),
        ((6, 5, 20, 24, 3), None, 5, 3),
        ((6, 1, 5, 20, 24), None, 5, 1),
        ((6, 2, 5, 20, 24), "NCDHW", 5, 2),
    ],
)
def test_axes_by_shape_and_by_name(
    shape: tuple[int, ...], axes: str | None, count: int, channels: int
) -> None:
    images = RNG.integers(0, 256, shape).astype(np.uint8)
    data = make(images, axes=axes, unit="series")
    series = data.series[0]
    assert series.shape == (channels, count, 20, 24)
    volume = series.read()
    assert volume.is_color == (channels == 3)
    assert np.array_equal(np.sort(volume.array, axis=None), np.sort(images[0], axis=None))
    listed = make(list(images), axes=axes, unit="series")
    assert np.array_equal(listed.series[3].read().array, data.series[3].read().array)
    assert make(torch.from_numpy(images), axes=axes, unit="series").series[0].uid == series.uid


@pytest.mark.parametrize(
    "shape",
    [(6, 3, 20, 24), (6, 20, 24, 4), (6, 3, 20, 3), (6, 3, 5, 20, 24), (6, 20), (6,), (0, 2, 2), (1,) * 6],
)
def test_ambiguous_shapes_are_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(DatasetError, match=r"images"):
        make(np.zeros(shape, np.uint8), None, patients=None)


@pytest.mark.parametrize("axes", ["NCHW", "HW", "NHH", "NXHW", "", "nhw", 3, "NH"])
def test_axes_that_do_not_fit_are_errors(axes: Any) -> None:
    with pytest.raises(DatasetError, match="axes"):
        make(axes=axes)


def test_three_channels_of_other_types_are_colors_only_if_so_said() -> None:
    images = RNG.random((6, 3, 20, 24)).astype(np.float32)
    with pytest.raises(DatasetError, match="color=True or"):
        make(images, axes="NCHW")
    assert make(images, axes="NCHW", color=True).series[0].read().is_color
    assert not make(images, axes="NCHW", color=False).series[0].read().is_color
    with pytest.raises(DatasetError, match="array of real numbers"):
        make(np.array([["a.png"]]), [0], patients=None)
    for bad in (images * 255, -images):
        with pytest.raises(DatasetError, match="from 0 to 1"):
            make(bad, axes="NCHW", color=True)
        with pytest.raises(DatasetError, match="from 0 to 1"):
            make(list(bad), axes="NCHW", color=True)
    with pytest.raises(DatasetError, match="needs three channels"):
        make(color=True)


def test_lists_may_have_volumes_and_images_of_any_size() -> None:
    volume = Volume.from_array(np.zeros((3, 8, 9), np.int16), affine=np.eye(4), modality="CT", units="HU")
    data = medimg.ImageDataset.from_arrays(
        [volume, GRAY[0], GRAY[1, :5]], ["x", "y", "x"], patients=[1, 2, 3], preprocess=SMALL
    )
    assert len(data) == 5
    assert data.modalities[0] == "CT"
    assert torch.equal(data[1][0], SMALL(volume)[1])
    with pytest.raises(DatasetError, match="PIL"):
        make([Image.fromarray(GRAY[0])] * 6)
    with pytest.raises(DatasetError, match=r"array\[1\]: expected an array of real numbers"):
        make([GRAY[0], "b.png"], ["x", "y"], patients=None)


@pytest.mark.parametrize(
    ("labels", "classes", "expected", "names"),
    [
        ([0, 1, 2, 0, 1, 2], None, [0, 1, 2, 0, 1, 2], ("0", "1", "2")),
        (np.array([[0], [1], [0], [1], [0], [1]], np.uint8), ["n", "p"], [0, 1, 0, 1, 0, 1], ("n", "p")),
        (["b", "a", "b", "a", "b", "a"], None, [1, 0, 1, 0, 1, 0], ("a", "b")),
        (["b", "a", "b", "a", "b", "a"], ["b", "a"], [0, 1, 0, 1, 0, 1], ("b", "a")),
        ([0.0, 1.0, 0.0, 1.0, 0.0, 1.0], ["n", "p"], [0, 1, 0, 1, 0, 1], ("n", "p")),
        ([True, False] * 3, None, [1, 0] * 3, ("False", "True")),
        ([True, False] * 3, ["no", "yes"], [1, 0] * 3, ("no", "yes")),
        ([10, 2, 10, 2, 10, 2], None, [1, 0] * 3, ("2", "10")),
    ],
)
def test_labels_are_names_or_indices(labels: Any, classes: Any, expected: list[int], names: Any) -> None:
    data = make(labels=labels, classes=classes)
    assert data.classes == names
    assert data.labels.tolist() == expected


def test_rows_of_indicators_are_multilabel() -> None:
    rows = np.array([[1, 0, 1], [0, 0, 0]] * 3)
    data = make(labels=rows, classes=["a", "b", "c"])
    assert data.task == "multilabel"
    assert np.array_equal(data.labels, rows)
    assert make(labels=rows.astype(bool)).classes == ("0", "1", "2")
    assert not make(labels=None).is_labeled


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([0, 1], {}),
        ([0, 1, 0, 1, 0, 2], {"classes": ["a", "b"]}),
        ([0, 1, 0, 1, 0, -1], {"classes": ["a", "b"]}),
        ([1, 2, 1, 2, 1, 2], {"classes": ["1", "2"]}),
        ([0, 1, 0, 1, 0, np.nan], {}),
        (["a", "", "a", "b", "a", "b"], {}),
        (["a", None, "a", "b", "a", "b"], {}),
        (np.full((6, 2), 2), {}),
        (np.zeros((6, 2)), {"classes": ["a"]}),
        (np.zeros((6, 2, 2)), {}),
        ([[0], [1, 2], [3], [4], [5], [6]], {}),
        (None, {"classes": ["a"]}),
        ("ababab", {}),
        ([0, 1] * 3, {"classes": "ab"}),
        ([0, 1] * 3, {"patients": ["a"]}),
        ([0, 1] * 3, {"patients": "abcdef"}),
        ([0, 1] * 3, {"domains": ["a"]}),
        ([0, 1] * 3, {"patients": [1.5e17] * 6}),
    ],
)
def test_labels_and_patients_that_do_not_fit_are_errors(labels: Any, options: dict[str, Any]) -> None:
    with pytest.raises(DatasetError):
        make(labels=labels, **options)


def test_without_patients_each_image_is_its_own_with_a_warning() -> None:
    with pytest.warns(MedimgWarning, match="patients= with arrays") as caught:
        data = make(patients=None)
    assert caught[0].filename == __file__.replace(__name__, "") or "test_arrays" in caught[0].filename
    assert len(set(data.patients)) == 6
    with pytest.warns(MedimgWarning, match="2 of 6 images"):
        assert make(patients=["P1", "p1", 3, "003", None, "N/A"]).n_unknown_patients == 2
    assert len(set(make(patients=["P1", "p1", 3, "003", 3.0, "p1 "]).patients)) == 2
    assert make(domains=["x", "y"] * 3).domains == ("x", "y") * 3


def test_patients_group_splits_and_pixels_are_compared() -> None:
    train, val, test = medimg.split(make(labels=[0, 1, 1, 0, 0, 1]), fractions=(0.5, 0.25, 0.25), seed=1)
    patients = [set(part.patients) for part in (train, val, test)]
    assert not patients[0] & patients[1] | patients[0] & patients[2]
    assert medimg.check_leaks(train, val, test).is_clean
    copies = (
        make(GRAY[:2], [0, 1], patients=["x", "y"]),
        make(GRAY[1:3].astype(np.int16), [1, 0], patients=["z", "v"]),
    )
    with pytest.raises(LeakageError, match="identical pixels"):
        medimg.check_leaks(*copies)
    report = medimg.check_leaks(make(), make(), on_leak="report")
    assert {leak.kind for leak in report.leaks} >= {"patient", "file", "pixels"}


def test_a_saved_split_finds_the_images_by_content(tmp_path: Path) -> None:
    data = make()
    train, val, test = medimg.split(data, fractions=(0.5, 0.25, 0.25), seed=1)
    path = medimg.save_split(tmp_path / "split.json", train=train, val=val, test=test)
    order = [3, 1, 5, 0, 2, 4]
    other = make(GRAY[order], np.array([0, 1] * 3)[order], patients=np.array(PATIENTS)[order].tolist())
    parts = medimg.load_split(path, other)
    assert sorted(parts) == ["test", "train", "val"]
    assert sorted(parts["train"].patients) == sorted(train.patients)
    changed = GRAY.copy()
    changed[0, 0, 0] ^= 1
    with pytest.raises(DatasetError, match="missing from the dataset"):
        medimg.load_split(path, make(changed))


def test_caches_and_workers_have_the_same_images(tmp_path: Path) -> None:
    plain, cached = make(), make(cache=tmp_path / "cache")
    cached.fill_cache()
    again = make(cache=tmp_path / "cache")
    for n in range(6):
        assert (again[n][0] - plain[n][0]).abs().max() < 0.02
    assert torch.equal(pickle.loads(pickle.dumps(plain))[3][0], plain[3][0])
    bright = replace(Volume.from_array(GRAY[0]), display_range=(0.0, 100.0))
    other = make([bright], [0], patients=["a"], cache=tmp_path / "cache")
    assert not torch.equal(other[0][0], again[0][0])


def test_an_array_that_changes_is_an_error() -> None:
    mine = GRAY.copy()
    data = make(mine)
    mine[0] += 1
    with pytest.raises(ReadError, match="changed since"):
        data[0]
    assert data[1][0].shape == (3, 32, 32)


def test_bags_and_quantitative_volumes() -> None:
    hounsfield = RNG.integers(-1000, 1000, (4, 6, 20, 24)).astype(np.int16)
    data = make(
        hounsfield,
        [0, 1, 0, 1],
        patients=list("abcd"),
        modality="CT",
        units="HU",
        spacing=(5, 0.7, 0.7),
        unit="series",
    )
    assert data[0][0].shape == (6, 3, 32, 32)
    assert data.series[0].spacing == pytest.approx((5, 0.7, 0.7))
    expected = Volume.from_array(hounsfield[0], modality="CT", units="HU", spacing=(5, 0.7, 0.7))
    assert torch.equal(data[0][0], SMALL(expected))


def write_npz(path: Path, shape: tuple[int, ...] = (28, 28), *, compress: bool = True, **more: Any) -> Path:
    arrays: dict[str, Any] = {}
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        labels = np.arange(count, dtype=np.uint8)[:, None] % 2
        images = RNG.integers(0, 60, (count, *shape)).astype(np.uint8)
        images[labels[:, 0] == 1, : shape[0] // 2] += 150
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    (np.savez_compressed if compress else np.savez)(path, **{**arrays, **more})
    return path


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (28, 28, 28)], ids=["gray", "color", "volume"])
@pytest.mark.parametrize("compress", [True, False])
def test_npz_files_of_medmnist(tmp_path: Path, shape: tuple[int, ...], compress: bool) -> None:
    path = write_npz(tmp_path / "a.npz", shape, compress=compress)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MedimgWarning)
        data = medimg.ImageDataset.from_npz(path, "val", classes=["normal", "ill"], unit="series")
    assert data.class_counts() == {"normal": 4, "ill": 4}
    with np.load(path) as stored:
        expected = stored["val_images"][3]
    volume = data.series[3].read()
    assert volume.is_color == (len(shape) == 3 and shape[2] == 3)
    found = volume.array[0] if not volume.is_color else np.moveaxis(volume.array, 0, -1)
    assert np.array_equal(found.squeeze(), expected)
    assert volume.display_range == (None if volume.is_color else (0, 255))
    assert str(data.sources[3]).startswith("<val_images[3] ")


def make_halves() -> torch.nn.Module:
    """A network that sees which half of an image is bright."""
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 8))


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_an_npz_file_is_trained_on_and_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OWN", {})
    path = write_npz(tmp_path / "a.npz")
    recipe = Preprocess(size=32)
    medimg.register_backbone("halves", make_halves, size=32, features=8)
    train, val, test = (
        medimg.ImageDataset.from_npz(path, split, classes=["normal", "ill"], preprocess=recipe)
        for split in ("train", "val", "test")
    )
    model = medimg.TransferClassifier("halves", classes=train.classes, weights=None, preprocess=recipe)
    medimg.fine_tune(
        model, train, val, head_epochs=0, epochs=2, batch_size=8, output=tmp_path / "out", augment=None,
        trainer_kwargs={"enable_progress_bar": False},
    )  # fmt: skip
    report = medimg.evaluate(model, test)
    assert report.n_units == 8
    with pytest.raises(LeakageError):
        medimg.evaluate(model, train)
    embeddings = medimg.embed(model, test)
    assert len(embeddings) == 8
    assert model.predict_proba(test).shape == (8, 2)


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_plain_npz_files_and_splits_without_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=GRAY, labels=np.array(["x", "y"] * 3), extra_images=GRAY)
    assert medimg.ImageDataset.from_npz(tmp_path / "a.npz", None).classes == ("x", "y")
    assert not medimg.ImageDataset.from_npz(tmp_path / "a.npz", "extra").is_labeled
    np.savez(tmp_path / "f.npz", images=np.asfortranarray(GRAY.astype(">u2")))
    found = medimg.ImageDataset.from_npz(tmp_path / "f.npz", None)
    assert np.array_equal(found.series[2].read().array[0, 0], GRAY[2])


def test_splits_that_are_not_there_are_listed(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz")
    with pytest.raises(DatasetError, match="the splits test, train, val"):
        medimg.ImageDataset.from_npz(path, "dev")
    with pytest.raises(DatasetError, match="no array 'images'"):
        medimg.ImageDataset.from_npz(path, None)


def damage(path: Path, how: str) -> None:
    if how == "absent":
        path.unlink()
    elif how == "text":
        path.write_text("images")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 255
        path.write_bytes(content)
    elif how == "pickle":
        np.savez(path, train_images=np.array([{"a": 1}], dtype=object))
    else:
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 1000, 1000)}
        )
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("train_images.npy", buffer.getvalue() + bytes(100))


@pytest.mark.parametrize("how", ["absent", "text", "cut", "flipped", "pickle", "bomb", "folder"])
def test_damaged_npz_files_are_errors(tmp_path: Path, how: str) -> None:
    path = write_npz(tmp_path / "a.npz")
    if how == "folder":
        path = tmp_path
    else:
        damage(path, how)
    with pytest.raises(DatasetError):
        medimg.ImageDataset.from_npz(path)
