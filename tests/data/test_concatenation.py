"""Datasets joined: series, patients, domains and classes of several sites, wherever a dataset is taken."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import medimg
from medimg import ImageDataset, Preprocess
from medimg.adapt import MultiSource, domains_of
from medimg.errors import DatasetError, LeakageError, MedimgWarning, TrainingError
from medimg.training.resume import data_digest
from tests.models.fakes import classifier
from tests.models.images import TINY, picture_data, stacks

SMALL = Preprocess(size=16)
RNG = np.random.default_rng(5)


def site(labels: Any, patients: Any, *, start: int = 0, **options: Any) -> ImageDataset:
    """Images that differ from those of every other `start`."""
    images = np.random.default_rng(start).integers(0, 256, (len(labels), 16, 16), np.uint8)
    options = {"preprocess": SMALL, **options}
    return ImageDataset.from_arrays(images, list(labels), patients=patients, **options)


@pytest.fixture
def pair() -> tuple[ImageDataset, ImageDataset]:
    """Two sites that count their patients from 1."""
    return site("abab", [1, 1, 2, 3]), site("bbaa", [1, 2, 2, 4], start=1)


def test_items_keep_their_order_images_and_labels(pair: tuple[ImageDataset, ImageDataset]) -> None:
    data = ImageDataset.concat({"Lyon": pair[0], "Bern": pair[1]}, patients="separate")
    expected = [part[n] for part in pair for n in range(len(part))]
    assert len(data) == 8
    for (image, label), (own, own_label) in zip((data[n] for n in range(8)), expected, strict=True):
        assert torch.equal(image, own)
        assert label == own_label
    assert data.domains == ("Lyon",) * 4 + ("Bern",) * 4
    assert [len(data), data.n_unknown_patients, data.unit, data.task] == [8, 0, "image", "multiclass"]
    # those that were joined are as before
    assert pair[1].domains == ("",) * 4
    assert pair[1].patients == ("1", "2", "2", "4")


def test_equal_patients_must_be_decided(pair: tuple[ImageDataset, ImageDataset]) -> None:
    with pytest.raises(LeakageError, match="2 of 4 patient IDs occur in several datasets"):
        ImageDataset.concat(pair)
    separate = ImageDataset.concat(pair, patients="separate")
    shared = ImageDataset.concat(pair, patients="shared")
    assert (len(set(separate.patients)), len(set(shared.patients))) == (6, 4)
    assert shared.patients == pair[0].patients + pair[1].patients
    # one name is one site, whose patients are the same
    assert len(set(ImageDataset.concat(pair, domains=["Lyon", "Lyon"]).patients)) == 4
    with pytest.raises(DatasetError, match="patients must be"):
        ImageDataset.concat(pair, patients="same")  # type: ignore[arg-type]  # refused


def test_spellings_of_a_patient_become_one() -> None:
    data = ImageDataset.concat(
        [site("ab", ["P-7", "x"]), site("ab", ["p\u20137", "y"], start=1)], patients="shared"
    )
    assert len(set(data.patients)) == 3
    separate = ImageDataset.concat({"A": site("ab", ["003", "x"])}, patients="separate")
    again = ImageDataset.concat({"A": site("ab", [3, "z"], start=2)}, patients="separate")
    # the same site joined at another time: its patients are found
    assert not medimg.check_leaks(separate, again, pixels=False, on_leak="report").is_clean


def test_unknown_patients_stay_unknown() -> None:
    with pytest.warns(MedimgWarning, match="no known patient"):
        parts = site("ab", None), site("ab", ["N/A", "1"], start=1)
    rules: tuple[Literal["check", "separate", "shared"], ...] = ("check", "separate", "shared")
    for rule in rules:
        data = ImageDataset.concat(parts, patients=rule)
        assert data.n_unknown_patients == 3
        assert len(set(data.patients)) == 4


def test_domains_of_a_list(pair: tuple[ImageDataset, ImageDataset]) -> None:
    named = site("ab", [8, 9], start=3, domains=["GE", ""])
    joined = ImageDataset.concat([pair[0], named, pair[1]], patients="separate")
    assert joined.domains == ("site 1",) * 4 + ("GE", "") + ("site 3",) * 4
    # subsets of one dataset are one site
    parts = ImageDataset.concat([pair[0][:2], pair[0][3:]])
    assert parts.domains == ("", "", "")
    assert parts.patients == ("1", "1", "3")
    nested = ImageDataset.concat([joined, site("ab", ["k", "l"], start=7, domains=["Rome", "Rome"])])
    assert set(nested.domains) == {"site 1", "GE", "", "site 3", "Rome"}


UNSOUND: list[tuple[Any, dict[str, Any], str]] = [
    ([], {}, "at least one dataset"),
    (3, {}, "takes a list of datasets"),
    ([1], {}, "takes datasets; found a int"),
    ("one", {"domains": ["A", "B"]}, "one name for each of 1 datasets"),
    ("one", {"domains": "A"}, "one name for each of 1 datasets; found a str"),
    ("one", {"domains": [" "]}, "empty or no text"),
    ("one", {"domains": [None]}, "empty or no text"),
    ("named", {"domains": ["A"]}, "keys are names"),
    ("two", {"domains": ["lyon", "Lyon"], "patients": "separate"}, "differ only by case"),
    ("twice", {"patients": "shared"}, "4 of 8 images are in several"),
]


@pytest.mark.parametrize(("what", "options", "message"), UNSOUND)
def test_unsound_requests(
    pair: tuple[ImageDataset, ImageDataset], what: Any, options: dict[str, Any], message: str
) -> None:
    one = pair[0]
    given: dict[str, Any] = {"one": [one], "named": {"A": one}, "two": list(pair), "twice": [one, one]}
    with pytest.raises(DatasetError, match=message) as raised:
        ImageDataset.concat(given[what] if isinstance(what, str) else what, **options)
    assert isinstance(raised.value, TypeError) == ("takes" in message)


def test_datasets_that_do_not_match(pair: tuple[ImageDataset, ImageDataset]) -> None:
    others = {
        r"dataset 2 and dataset 1 differ in preprocessing \(size=8": site(
            "ab", [7, 8], preprocess=Preprocess(size=8)
        ),
        "dataset 2 has unit='series', dataset 1 'image'": site("ab", [7, 8], unit="series"),
        "dataset 2 has task='multilabel'": site([[0, 1], [1, 0]], [7, 8], classes=["a", "b"]),
        "dataset 2 has no labels": ImageDataset.from_arrays(
            RNG.random((2, 16, 16)), patients=[7, 8], preprocess=SMALL
        ),
        r"dataset 2 has classes=\['a', 'c'\], dataset 1 \['a', 'b'\]": site("ac", [7, 8]),
    }
    for message, other in others.items():
        with pytest.raises(DatasetError, match=message):
            ImageDataset.concat([pair[0], other])


def test_classes_are_matched_by_name() -> None:
    first, second = site("ab", [1, 2]), site("ba", [3, 4], start=1, classes=["b", "a"])
    data = ImageDataset.concat([first, second])
    assert data.classes == ("a", "b")
    assert [data.classes[n] for n in data.labels] == ["a", "b", "b", "a"]
    numbers = ImageDataset.concat([site(["01", "2"], [1, 2]), site(["1", "02"], [3, 4], start=1)])
    assert numbers.labels.tolist() == [0, 1, 0, 1]
    # a class without images of a site is named
    rare = site("aab", [5, 6, 7], start=2)
    wide = ImageDataset.concat([rare, site("c", [8], start=3, classes=["c"])], classes=["c", "b", "a"])
    assert wide.class_counts() == {"c": 1, "b": 1, "a": 2}
    with pytest.raises(DatasetError, match="not among the classes"):
        ImageDataset.concat([rare, first], classes=["a"], patients="shared")
    with pytest.raises(DatasetError, match="twice"):
        ImageDataset.concat([rare], classes=["a", "b", "b"])


def test_columns_of_labels_are_matched_by_name() -> None:
    first = site([[1, 0, 1], [0, 0, 1]], [1, 2], classes=["x", "y", "z"])
    second = site([[1, 0], [0, 1]], [3, 4], start=1, classes=["z", "x"])
    with pytest.raises(DatasetError, match="no label column 'y', so that it is unknown"):
        ImageDataset.concat([first, second])
    with pytest.raises(DatasetError, match="no label column 'y'"):
        ImageDataset.concat([second, first], classes=["x", "y", "z"])
    data = ImageDataset.concat([first, second], classes=["x", "z"])
    assert data.labels.tolist() == [[1, 1], [0, 1], [0, 1], [1, 0]]


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6), sizes=st.tuples(st.integers(4, 7), st.integers(4, 7)), shared=st.booleans()
)
def test_no_patient_is_on_both_sides(seed: int, sizes: tuple[int, int], shared: bool) -> None:
    parts, rng = [], np.random.default_rng(seed)
    for number, count in enumerate(sizes):
        patients = [p for p in range(count) for _ in range(rng.integers(1, 3))]
        # all have both classes, so that splits exist
        labels = [("a", "b")[p % 2] for p in patients]
        parts.append(site(labels, patients, start=number + 10 * seed))
    data = ImageDataset.concat(parts, domains=["A", "B"], patients="shared" if shared else "separate")
    people = (lambda n: data.patients[n]) if shared else (lambda n: (data.domains[n], data.patients[n]))
    assert len(set(map(people, range(len(data))))) == (max(sizes) if shared else sum(sizes))
    for train, test in [
        medimg.split(data, fractions=(0.5, 0.5), seed=seed % 100, check="fast"),
        *medimg.kfold(data, 2, seed=1, check="fast"),
    ]:
        assert len(train) + len(test) == len(data)
        assert not set(train.patients) & set(test.patients)
        assert medimg.check_leaks(train, test, on_leak="report", pixels=False).is_clean
        if shared:
            bare = [{p.partition(" of site")[0] for p in part.patients} for part in (train, test)]
            assert not bare[0] & bare[1]


def test_a_copy_at_another_site_is_found(pair: tuple[ImageDataset, ImageDataset]) -> None:
    copied = site("ab", [7, 8], start=4)
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16), np.uint8)[[3, 2]]
    same = ImageDataset.from_arrays(images, ["b", "a"], patients=[9, 10], preprocess=SMALL)
    with pytest.raises(LeakageError, match="identical pixels"):
        medimg.split(ImageDataset.concat([pair[0], copied, same]), fractions=(0.5, 0.5))


def test_files_of_several_formats(tmp_path: Path) -> None:
    for n, label in enumerate("ab"):
        stacks(tmp_path / "dicom" / label, 2, start=10 * n)
    dicom = ImageDataset.from_folder(tmp_path / "dicom", TINY)
    pictures = picture_data(tmp_path / "png", patients=4, each=1)
    arrays = site("ab", [1, 2], preprocess=TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ImageDataset.concat({"A": dicom, "B": pictures, "C": arrays}, patients="separate")
    assert [len(data), len(set(data.patients))] == [12 + 4 + 2, 4 + 4 + 2]
    assert data.modalities[:2] == ("CT", "CT")
    assert [torch.equal(data[n][0], pictures[n - 12][0]) for n in range(12, 16)] == [True] * 4
    assert torch.equal(torch.stack([x for x, _ in data.__getitems__([0, 17])])[1], arrays[1][0])
    path = medimg.save_split(tmp_path / "split.json", one=data[:12], other=data[12:])
    again = medimg.load_split(path, data)
    assert again["other"].patients == data[12:].patients
    assert [data.skipped, data.with_preprocess(TINY.replace(size=8))[0][0].shape] == [(), (3, 8, 8)]


def test_subsets_know_all_that_was_found(tmp_path: Path) -> None:
    data = picture_data(tmp_path, patients=6, each=2)
    train, val, test = (data.subset(range(n, n + 4)) for n in (0, 4, 8))
    both = ImageDataset.concat([train, val])
    assert both.sources == data.sources[:8]
    assert {one.series.uid for one in both.labeled_series} == set(data.series_uids)
    assert len(both.labeled_series) == 12
    assert medimg.check_leaks(both, test, on_leak="report", near_duplicates=False).is_clean
    named = ImageDataset.concat({"train": train, "val": val})
    assert len(named.labeled_series) == 12
    slices = ImageDataset.concat([data.subset([3, 1]), data.subset([0])])
    assert slices.sources == tuple(data.sources[n] for n in (3, 1, 0))


def test_caches(tmp_path: Path) -> None:
    one = picture_data(tmp_path / "one", patients=2, each=1, cache=tmp_path / "cache")
    other = site("ab", ["x", "y"], preprocess=TINY, memory=100)
    data = ImageDataset.concat([one, other])
    assert data.cache is one.cache
    data.fill_cache(progress=False)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 4
    assert data._store.capacity == 2 * 2**30 + 100
    again = ImageDataset.concat([one, other], memory=7)
    assert torch.equal(again[3][0], data[3][0])
    assert again._store.capacity == 7
    third = site("ab", ["u", "v"], start=1, preprocess=TINY, cache=tmp_path / "second")
    with pytest.raises(DatasetError, match="2 different caches"):
        ImageDataset.concat([one, third])
    assert ImageDataset.concat([one, third], cache=tmp_path / "cache").cache is not None


def test_the_digest_of_a_training_depends_on_all_sites(pair: tuple[ImageDataset, ImageDataset]) -> None:
    def join(*parts: ImageDataset, **options: Any) -> str | None:
        return data_digest(ImageDataset.concat(parts, patients="separate", **options))

    assert join(*pair) == join(*pair)
    digests = {join(*pair), join(*pair[::-1]), join(pair[0]), join(*pair, domains=["A", "B"])}
    assert len(digests) == 4


def test_domains_are_sources_and_subgroups(pair: tuple[ImageDataset, ImageDataset]) -> None:
    parts = [site("ab" * 10, range(20), start=n) for n in (1, 2)]
    data = ImageDataset.concat({"Lyon": parts[0], "Bern": parts[1]}, patients="separate")
    numbers, names = domains_of(data, "column")
    assert (names, np.bincount(numbers).tolist()) == (("Bern", "Lyon"), [20, 20])
    sources = MultiSource(pair[0], "mdan", domain="column").source_domains(data)
    assert sources.tolist() == numbers.tolist()
    report = medimg.score(
        data.labels,
        RNG.random(len(data)),
        classes=data.classes,
        images=data,
        subgroups="site",
        n_resamples=20,
    )
    assert report.subgroups is not None
    assert set(report.subgroups["group"]) == {"Lyon", "Bern"}
    assert report.n_patients == 40


def test_lists_of_datasets_say_how_to_join_them(pair: tuple[ImageDataset, ImageDataset]) -> None:
    model = classifier()
    for several in (list(pair), pair[0] + pair[1]):
        with pytest.raises(TrainingError, match=r"ImageDataset\.concat"):
            medimg.fine_tune(model, several)  # type: ignore[arg-type]  # refused


def test_several_items_make_a_dataset(pair: tuple[ImageDataset, ImageDataset]) -> None:
    import pandas as pd

    data = pair[0]
    chosen: list[tuple[Any, list[int]]] = [
        (slice(3), [0, 1, 2]),
        (slice(-2, None), [2, 3]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        ([2, 0], [2, 0]),
        (range(1, 3), [1, 2]),
        (np.array([1]), [1]),
        (data.labels == 1, [1, 3]),
        ([True, False, False, True], [0, 3]),
        (pd.Series(data.labels) == 0, [0, 2]),
        (torch.tensor([1]), [1]),
        (torch.tensor([True, True, False, False]), [0, 1]),
    ]
    for index, expected in chosen:
        part = data[index]
        assert isinstance(part, ImageDataset)
        assert part.sources == tuple(data.sources[n] for n in expected)
    for one in (2, np.int64(2), np.array(2), torch.tensor(2), -2):
        image, label = data[one]  # type: ignore[index]  # arrays of one number are indices, too
        assert torch.equal(image, data[2][0])
        assert label == 0
    unsound: list[tuple[Any, str]] = [
        (slice(3, 3), "none was chosen"),
        ([], "none was chosen"),
        (np.zeros(4, bool), "none was chosen"),
        (slice("a", None), "whole numbers"),
        (slice(None, None, 0), "step of 0"),
        ([True], "mask of 4"),
        ([4], "from 0 to 3"),
        ([-1], "from 0 to 3"),
        ([0.5], "takes indices"),
        ((0, 1), r"dataset\[:3\]"),
        ("a", r"dataset\[:3\]"),
        (None, r"dataset\[:3\]"),
    ]
    for wrong, message in unsound:
        with pytest.raises(DatasetError, match=message):
            data[wrong]
    assert [label for _, label in iter(data)] == [0, 1, 0, 1]
