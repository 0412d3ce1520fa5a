from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import medimg
from medimg.data._image_store import RecentImages
from medimg.data.cache.images import RenderedImages
from medimg.data.dataloader import EpochSampler, make_training_loader
from medimg.data.dataset import ImageDataset
from medimg.data.splits.split import split
from medimg.errors import DatasetError, LeakageError, MedimgWarning, MissingSlicesError
from medimg.preprocessing.preprocess import Preprocess
from tests.dicom_files import write_stack

SMALL = Preprocess(size=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three patients each; patient 0 of a class has two series."""
    for label in ("healthy", "ill"):
        for patient in range(3):
            for series in range(2 if patient == 0 else 1):
                uid = f"1.{['healthy', 'ill'].index(label)}.{patient}.{series}"
                write_stack(
                    tmp_path / label / f"s{uid}",
                    [0, 2, 4],
                    SeriesInstanceUID=uid,
                    PatientID=f"SENTINEL-{label}-{patient}",
                )
    return tmp_path


def table_of_pictures(root: Path, rows: list[tuple[str, str, str]]) -> Path:
    for name, _, _ in rows:
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16)).astype(np.uint8)).save(
            root / name
        )
    pd.DataFrame(rows, columns=["path", "label", "patient"]).to_csv(root / "labels.csv", index=False)
    return root / "labels.csv"


def test_slices_and_series(folder: Path) -> None:
    slices = ImageDataset.from_folder(folder, SMALL)
    assert (len(slices), slices.classes) == (24, ("healthy", "ill"))
    image, label = slices[0]
    assert image.shape == (3, 16, 16)
    assert label == 0
    assert slices[23][1] == 1
    series = ImageDataset.from_folder(folder, SMALL, unit="series")
    assert len(series) == 8
    bag, _ = series[0]
    assert torch.equal(bag[0], image)
    assert bag.shape == (3, 3, 16, 16)
    assert len(set(slices.patients)) == 6


def test_an_item_has_the_bits_of_the_recipe(folder: Path) -> None:
    for memory in (0, 2**20):
        dataset = ImageDataset.from_folder(folder, SMALL, memory=memory)
        for index in (5, 0, 23, 5):
            whole = SMALL(Path(dataset.sources[index]).parent)
            assert torch.equal(dataset[index][0], whole[index % 3])


def test_labels_patients_and_order(tmp_path: Path) -> None:
    csv = table_of_pictures(tmp_path, [("b.png", "x", "P07"), ("a.png", "y", "P7"), ("c.png", "x", "P07")])
    dataset = ImageDataset.from_csv(csv, patient="patient", preprocess=SMALL)
    assert dataset.labels.tolist() == [0, 1, 0]
    assert dataset.patients == ("P07", "P7", "P07")
    assert ImageDataset.from_csv(csv, patient="patient", classes=["y", "x"]).labels.tolist() == [1, 0, 1]
    assert dataset.class_counts() == {"x": 2, "y": 1}


def test_multilabel(tmp_path: Path) -> None:
    table_of_pictures(tmp_path, [("a.png", "", "1"), ("b.png", "", "2")])
    table = pd.DataFrame(
        {"path": ["a.png", "b.png"], "mass": [1, 0], "nodule": ["1", "1"], "who": ["1", "2"]}
    )
    dataset = ImageDataset.from_csv(
        table, label=["mass", "nodule"], patient="who", root=tmp_path, preprocess=SMALL
    )
    label = dataset[0][1]
    assert isinstance(label, torch.Tensor)
    assert label.tolist() == [1, 1]
    assert (dataset.task, dataset.classes) == ("multilabel", ("mass", "nodule"))
    assert dataset.class_counts() == {"mass": 1, "nodule": 2}


def test_patients_from_paths(tmp_path: Path) -> None:
    for name in ("ill/person1_a.png", "ill/person1_b.png", "well/person2_a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    dataset = ImageDataset.from_folder(tmp_path, SMALL, patient=r"(person\d+)_")
    assert dataset.patients == ("person1", "person1", "person2")
    by_function = ImageDataset.from_folder(tmp_path, SMALL, patient=lambda path: path.name[:7])
    assert by_function.patients == dataset.patients
    with pytest.raises(DatasetError, match="does not match"):
        ImageDataset.from_folder(tmp_path, SMALL, patient=r"(subject\d+)")
    with pytest.warns(MedimgWarning, match="3 of 3 images have no known patient"):
        assert len(set(ImageDataset.from_folder(tmp_path, SMALL).patients)) == 3


def bad_tables() -> Iterator[tuple[str, list[tuple[str, str, str]], str]]:
    yield "a label without a file", [("a.png", "x", "1"), ("gone.png", "y", "2")], "have no file"
    yield "the same path twice", [("a.png", "x", "1"), ("a.png", "y", "2")], "repeat a path of the table"
    yield "an empty label", [("a.png", "", "1")], "column 'label' is empty"
    yield "no rows", [], "no rows"
    yield "a text file", [("a.png", "x", "1"), ("notes.txt", "y", "2")], "can't be read"


@pytest.mark.parametrize(("what", "rows", "message"), list(bad_tables()))
def test_bad_tables(tmp_path: Path, what: str, rows: list[tuple[str, str, str]], message: str) -> None:
    csv = table_of_pictures(tmp_path, [row for row in rows if row[0] == "a.png"][:1])
    (tmp_path / "notes.txt").write_text("no image")
    pd.DataFrame(rows, columns=["path", "label", "patient"]).to_csv(csv, index=False)
    with pytest.raises(DatasetError, match=message):
        ImageDataset.from_csv(csv, patient="patient")


def test_other_bad_input(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no folder"):
        ImageDataset.from_folder(tmp_path / "gone")
    with pytest.raises(DatasetError, match="no subfolders"):
        ImageDataset.from_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no image in the class folder"):
        ImageDataset.from_folder(tmp_path)
    with pytest.raises(DatasetError, match="no file"):
        ImageDataset.from_csv(tmp_path / "gone.csv")
    csv = table_of_pictures(tmp_path, [("a.png", "x", "1")])
    with pytest.raises(DatasetError, match="no column 'finding'; it has 'path', 'label', 'patient'"):
        ImageDataset.from_csv(csv, label="finding")
    with pytest.raises(DatasetError, match="not among the classes"):
        ImageDataset.from_csv(csv, patient="patient", classes=["y"])
    with pytest.raises(DatasetError, match="0 or 1"):
        ImageDataset.from_csv(csv, label=["label", "patient"])
    with pytest.raises(DatasetError, match="unit"):
        ImageDataset.from_csv(csv, patient="patient", unit="pixel")  # type: ignore[arg-type]  # on purpose


def test_subsets(folder: Path) -> None:
    dataset = ImageDataset.from_folder(folder, SMALL)
    part = dataset.subset([3, 20])
    assert torch.equal(part[1][0], dataset[20][0])
    assert part.labels.tolist() == [0, 1]
    assert len(dataset) == 24
    for wrong in ([], [24], [-1]):
        with pytest.raises(DatasetError):
            dataset.subset(wrong)
    with pytest.raises(DatasetError):
        part.with_preprocess(Preprocess(size=8))
    assert dataset.with_preprocess(Preprocess(size=8))[0][0].shape == (3, 8, 8)


def test_skipped_files_are_listed(folder: Path) -> None:
    (folder / "ill" / "notes.txt").write_text("no image")
    dataset = ImageDataset.from_folder(folder, SMALL)
    assert [Path(s.path).name for s in dataset.skipped] == ["notes.txt"]
    assert "1 files skipped" in dataset.summary()


def test_no_patient_in_texts(folder: Path) -> None:
    dataset = ImageDataset.from_folder(folder, SMALL)
    assert "sentinel" not in (repr(dataset) + dataset.summary()).lower()
    assert not any("sentinel" in repr(item).lower() for item in dataset._labeled)


def test_loader_processes_get_the_same_items(folder: Path) -> None:
    dataset = ImageDataset.from_folder(folder, SMALL)
    first = dataset[0][0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[0][0], first)


def test_memory_is_bounded() -> None:
    def images(count: int) -> RenderedImages:
        return RenderedImages(torch.zeros(count), (), ())

    recent = RecentImages(100, lambda kept: kept.planes.nbytes)
    kept = []
    for n in (0, 0, 1, 0, 1):
        kept.append(recent.get(n) is not None)
        recent.put(n, images(20))
    assert kept == [False, True, False, False, False], "80 bytes each: only one fits"
    recent.put(2, images(1000))
    assert recent.get(2) is not None, "the last one, whatever its size"
    for n in range(3):
        recent.put(n, images(10))
    assert [recent.get(n) is not None for n in range(3)] == [False, True, True]
    recent.get(1)
    recent.put(3, images(10))
    assert [n for n in range(4) if recent.get(n)] == [1, 3], "2 was used before 1"
    recent.discard(1)
    recent.put(4, images(10))
    assert [n for n in range(5) if recent.get(n)] == [3, 4]


class Labels(ImageDataset):
    """Only what a split looks at."""

    def __init__(self, labels: list[int], patients: list[str], k: int) -> None:
        self.task, self.classes = "multiclass", tuple(str(n) for n in range(k))
        self._l, self._p = labels, patients
        self._chosen = list(range(len(labels)))

    @property
    def labels(self) -> np.ndarray:
        return np.array([self._l[i] for i in self._chosen])

    @property
    def patients(self) -> tuple[str, ...]:
        return tuple(self._p[i] for i in self._chosen)

    @property
    def series_uids(self) -> tuple[str, ...]:
        return tuple(f"1.{i}" for i in self._chosen)

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(f"{i}.png" for i in self._chosen)

    def __len__(self) -> int:
        return len(self._chosen)

    def subset(self, indices: object) -> ImageDataset:
        part = Labels(self._l, self._p, len(self.classes))
        part._chosen = list(indices)  # type: ignore[call-overload]  # a fake
        return part


@settings(max_examples=60, deadline=None)
@given(
    patients=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), min_size=30, max_size=90),
    seed=st.integers(0, 1000),
)
def test_no_patient_is_ever_on_two_sides(patients: list[tuple[int, int]], seed: int) -> None:
    labels, names = [], []
    for n, (label, images) in enumerate([*patients, *[(k, 1) for k in (0, 1, 2) for _ in range(3)]]):
        labels += [label] * images
        names += [f"p{n}"] * images
    dataset = Labels(labels, names, 3)
    parts = split(dataset, seed=seed)
    assert sum(len(p) for p in parts) == len(dataset)
    for a in range(3):
        assert set(np.unique(parts[a].labels)) == {0, 1, 2}
        for b in range(a):
            assert not set(parts[a].patients) & set(parts[b].patients)
    shares = [len(set(p.patients)) / len(set(names)) for p in parts]
    assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.1)


def test_splits_are_stratified_and_repeatable() -> None:
    labels = [0] * 140 + [1] * 60
    dataset = Labels(labels, [f"p{n}" for n in range(200)], 2)
    first, again, other = (split(dataset, seed=s) for s in (4, 4, 5))
    assert [p.patients for p in first] == [p.patients for p in again]
    assert [p.patients for p in first] != [p.patients for p in other]
    for part in first:
        assert float(np.mean(part.labels)) == pytest.approx(0.3, abs=0.02)
    assert [len(p) for p in first] == [140, 30, 30]


def test_patients_with_several_classes_are_kept_whole() -> None:
    labels = [0, 1] * 20 + [0] * 20
    patients = [f"p{n // 2}" for n in range(40)] + [f"q{n}" for n in range(20)]
    parts = split(Labels(labels, patients, 2), fractions=(0.5, 0.5))
    assert not set(parts[0].patients) & set(parts[1].patients)


def test_a_split_that_cannot_be_clean_is_refused() -> None:
    with pytest.raises(LeakageError, match=r"class '1' has 1 patient\(s\)"):
        split(Labels([0, 0, 0, 1, 1, 1], ["a", "b", "c", "d", "d", "d"], 2))
    for wrong in ((1.0,), (0.5, 0.6), (1.2, -0.2), (np.nan, 0.5), (10**400, 0.5), "ab", 0.5):
        with pytest.raises(DatasetError, match="fractions"):
            split(Labels([0, 1] * 9, [str(n) for n in range(18)], 2), fractions=wrong)  # type: ignore[arg-type]  # on purpose


def test_the_same_series_under_two_patients_is_a_leak(tmp_path: Path) -> None:
    write_stack(tmp_path / "a", [0, 2, 4])
    rows = [(f"a/{n:03d}.dcm", "xy"[n % 2], f"p{n}") for n in range(3)]
    table = pd.DataFrame(rows, columns=["path", "label", "patient"])
    dataset = ImageDataset.from_csv(table, patient="patient", root=tmp_path)
    with pytest.raises(LeakageError, match="different patients share"):
        split(dataset, fractions=(0.5, 0.5))


def test_nothing_smaller_than_a_patient_is_split() -> None:
    with pytest.raises(DatasetError, match="finer groups leak"):
        split(Labels([0, 1] * 9, ["a"] * 18, 2), by="image")  # type: ignore[arg-type]  # on purpose


def test_the_patients_of_the_real_table(real_data: Path) -> None:
    root = real_data / "cls" / "kermany_cxr224_dev"
    dataset = ImageDataset.from_csv(root / "labels.csv", path="file", patient="patient_id")
    parts = medimg.split(dataset, seed=1)
    assert sum(len(p) for p in parts) == len(dataset) == 2547
    assert len({p for part in parts for p in set(part.patients)}) == sum(len(set(p.patients)) for p in parts)


def test_masks_choose_items(folder: Path) -> None:
    dataset = ImageDataset.from_folder(folder, SMALL)
    ill = dataset.subset(dataset.labels == 1)
    assert ill.labels.tolist() == [1] * 12
    unsound: list[Any] = [np.ones(3, bool), np.array([0.0, 1.0]), [[0, 1]]]
    for wrong in unsound:
        with pytest.raises(DatasetError, match="mask"):
            dataset.subset(wrong)
    shuffled = dataset.subset(list(range(len(dataset)))[::-1])
    with pytest.raises(DatasetError, match="before splitting"):
        shuffled.with_preprocess(Preprocess(size=8))


def test_changing_an_item_does_not_change_the_next(folder: Path) -> None:
    dataset = ImageDataset.from_folder(folder, SMALL)
    expected = dataset[0][0].clone()
    dataset.planes(0).zero_()
    dataset[0][0].zero_()
    assert torch.equal(dataset[0][0], expected)


def test_one_file_under_two_spellings(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    table_of_pictures(tmp_path, [("a.png", "x", "1"), ("b.png", "y", "2")])
    rows = [("a.png", "x", "1"), ("x/../a.png", "y", "2")]
    table = pd.DataFrame(rows, columns=["path", "label", "patient"])
    with pytest.raises(DatasetError, match="repeat a path of the table"):
        ImageDataset.from_csv(table, root=tmp_path, patient="patient")


def test_patients_are_stripped_and_labels_are_what_they_say(tmp_path: Path) -> None:
    rows = [("a.png", "None", "P1"), ("b.png", "NA", "P1 ")]
    dataset = ImageDataset.from_csv(table_of_pictures(tmp_path, rows), patient="patient")
    assert dataset.classes == ("NA", "None")
    assert set(dataset.patients) == {"P1"}


def test_whole_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    rows = [("a.png", "10", "1"), ("b.png", "9", "2"), ("c.png", "-1", "3")]
    dataset = ImageDataset.from_csv(table_of_pictures(tmp_path, rows), patient="patient")
    assert dataset.classes == ("-1", "9", "10")
    with pytest.raises(DatasetError, match="can't be opened"):
        ImageDataset.from_csv(tmp_path)


def test_many_labels_at_once_are_spread_over_all_sides() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random((200, 12)) < 0.35

    class Multi(Labels):
        @property
        def labels(self) -> np.ndarray:
            return positive[self._chosen].astype(np.float32)

        def subset(self, indices: object) -> ImageDataset:
            part = Multi(self._l, self._p, 12)
            part._chosen = list(indices)  # type: ignore[call-overload]  # a fake
            part.task = "multilabel"
            return part

    dataset = Multi([0] * 200, [f"p{n}" for n in range(200)], 12)
    dataset.task = "multilabel"
    for seed in range(5):
        parts = split(dataset, seed=seed)
        assert [len(p) for p in parts] == pytest.approx([140, 30, 30], abs=6)
        for part in parts:
            share = part.labels.mean(axis=0)
            assert np.abs(share - positive.mean(axis=0)).max() < 0.15


def test_series_with_gaps_name_themselves_and_can_be_read_by_policy(tmp_path: Path) -> None:
    for label in ("a", "b"):
        write_stack(tmp_path / label, [0, 2, 6], SeriesInstanceUID=f"1.{ord(label)}", PatientID=label)
    strict = ImageDataset.from_folder(tmp_path, SMALL)
    with pytest.raises(MissingSlicesError, match=r"000\.dcm"):
        strict[0]
    lenient = ImageDataset.from_folder(tmp_path, SMALL, reading={"on_missing": "keep"})
    assert len(lenient) == 6
    assert lenient[5][0].shape == (3, 16, 16)
    assert lenient.with_preprocess(Preprocess(size=8))[0][0].shape == (3, 8, 8)
    with pytest.raises(DatasetError, match="on_gap"):
        ImageDataset.from_folder(tmp_path, SMALL, reading={"on_gap": "keep"})


SENTINEL = "Sentinel^Name"


@pytest.mark.parametrize(
    "wrong", [{"label": ["finding", "name"]}, {"path": "name"}, {"classes": ["x"], "label": "name"}]
)
def test_cells_of_a_wrong_column_are_not_quoted(tmp_path: Path, wrong: dict[str, Any]) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    table = pd.DataFrame([("a.png", 1, SENTINEL, "p")], columns=["path", "finding", "name", "patient"])
    options = {"path": "path", "label": "finding", "patient": "patient", **wrong}
    with pytest.raises(DatasetError, match="check the column") as raised:
        ImageDataset.from_csv(table, root=tmp_path, preprocess=SMALL, **options)
    assert "sentinel" not in str(raised.value).lower()


def test_a_pipe_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="not a regular file"):
        ImageDataset.from_csv(tmp_path / "pipe")


class Doubled(ImageDataset):
    """What users write to change items."""

    def __getitem__(self, index: Any, /) -> Any:
        image, label = super().__getitem__(index)
        return 2 * image, label


def test_items_of_an_own_class_are_those_of_batches() -> None:
    arrays = [np.full((16, 16), 40 * n, np.uint8) for n in range(4)]
    make: dict[str, Any] = {"patients": list("abcd"), "classes": ["x", "y"], "preprocess": SMALL}
    plain = ImageDataset.from_arrays(arrays, [0, 1, 0, 1], **make)
    own = Doubled.from_arrays(arrays, [0, 1, 0, 1], **make).subset([3, 1])
    loader = make_training_loader(
        own, batch_size=2, workers=0, pin_memory=False, sampler=EpochSampler(2, seed=0), stored=True
    )
    (batch,) = loader
    assert not batch.stored
    for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
        assert torch.equal(image, 2 * plain[[3, 1][index]][0])
