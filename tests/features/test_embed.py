"""Embeddings of data sets and of embed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import medimg
from medimg import ImageDataset, TransferClassifier, Volume
from medimg.core.geometry import image_affine
from medimg.data.image_loader import ImageLoader
from medimg.errors import PreprocessError, ReadError
from medimg.features import _source_embedder
from medimg.features._cache import FeatureCache
from tests.dicom_files import write_stack
from tests.models.fakes import classifier
from tests.models.images import TINY, picture_data, stacks


@pytest.fixture
def model() -> TransferClassifier:
    return classifier(preprocess=TINY)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return stacks(tmp_path / "scans")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def plain(model: TransferClassifier, sources: list[Path]) -> np.ndarray[Any, np.dtype[np.float32]]:
    with torch.no_grad():
        return np.concatenate([model.backbone.eval()(model.preprocess(path)).numpy() for path in sources])


def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a source was read")

    monkeypatch.setattr(_source_embedder.SourceEmbedder, "_read", refuse)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("workers", [1, 3])
def test_rows_of_sources(
    model: TransferClassifier, folders: list[Path], batch_size: int, workers: int
) -> None:
    found = medimg.embed(model, folders, batch_size=batch_size, workers=workers)
    assert np.allclose(found.array, plain(model, folders), rtol=1e-4, atol=1e-5)
    assert found.items.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert found.series_uids == tuple(f"1.2.{n}" for n in found.items)
    assert found.slices == (0, 1, 2) * 4
    assert found.sop_instance_uids == tuple(
        uid for path in folders for uid in model.preprocess.render(path).sop_instance_uids
    )
    assert found.labels is None
    assert found.patients == tuple(f"SENTINEL-{n}" for n in found.items)


def test_an_index_and_a_generator(model: TransferClassifier, folders: list[Path]) -> None:
    index = medimg.scan(folders[0].parent)
    expected = medimg.embed(model, folders).array
    assert np.array_equal(np.sort(medimg.embed(model, index).array, axis=0), np.sort(expected, axis=0))
    assert np.array_equal(medimg.embed(model, (path for path in folders)).array, expected)


def test_errors_are_collected(model: TransferClassifier, folders: list[Path], cache: Path) -> None:
    sources: list[str | Path] = ["nowhere", folders[0], folders[1] / "nowhere", folders[1], "nothing"]
    for _ in range(2):
        found = medimg.embed(model, sources, cache=cache, batch_size=2)
        assert sorted(found.errors) == [0, 2, 4]
        assert all(isinstance(error, ReadError) for error in found.errors.values())
        assert found.items.tolist() == [1, 1, 1, 3, 3, 3]
        assert np.allclose(found.array, plain(model, folders[:2]), rtol=1e-4, atol=1e-5)
    assert "3 sources failed" in repr(found)


def test_nothing_but_errors(model: TransferClassifier) -> None:
    found = medimg.embed(model, ["nowhere"])
    assert found.array.shape == (0, 512)
    assert len(found.pooled()) == 0
    assert medimg.embed(model, []).array.shape == (0, 512)


def test_the_second_time_nothing_is_read(
    model: TransferClassifier, folders: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = medimg.embed(model, folders, cache=cache)
    no_reading(monkeypatch)
    again = medimg.embed(model, folders, cache=cache)
    for name in ("array", "items"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    for name in ("series_uids", "sop_instance_uids", "slices", "patients"):
        assert getattr(first, name) == getattr(again, name)


def test_data_sets_and_sources_share_rows(
    model: TransferClassifier, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [*stacks(tmp_path / "all" / "a", 2), *stacks(tmp_path / "all" / "b", 1)]
    first = medimg.embed(model, paths, cache=cache)
    dataset = ImageDataset.from_folder(tmp_path / "all", TINY)
    calls: list[int] = []
    model.backbone.register_forward_pre_hook(lambda *_: calls.append(1))
    found = medimg.embed(model, dataset, cache=cache)
    assert not calls
    assert np.array_equal(first.array, found.array)


def test_a_changed_file_has_other_rows(model: TransferClassifier, folders: list[Path], cache: Path) -> None:
    before = medimg.embed(model, folders, cache=cache)
    write_stack(folders[1], [0, 2, 4, 6], SeriesInstanceUID="1.2.1", PatientID="SENTINEL-1")
    after = medimg.embed(model, folders, cache=cache)
    assert after.items.tolist().count(1) == 4
    assert np.array_equal(before.array[:3], after.array[:3])
    assert np.allclose(after.array, plain(model, folders), rtol=1e-4, atol=1e-5)


def test_files_that_change_while_they_are_read_are_not_kept(
    model: TransferClassifier, folders: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ImageLoader.tensor

    def changed(*arguments: Any, **options: Any) -> Any:
        made = before(*arguments, **options)
        for path in folders[0].iterdir():
            path.write_bytes(path.read_bytes() + b"\0\0")
        return made

    with monkeypatch.context() as patch:
        patch.setattr(ImageLoader, "tensor", changed)
        medimg.embed(model, folders[:1], cache=cache)
    assert not list(cache.glob("*.features"))


def test_volumes_are_not_kept(model: TransferClassifier, cache: Path) -> None:
    volume = Volume(np.zeros((1, 4, 64, 64), np.int16), image_affine((2.0, 1.0, 1.0)), "CT", "HU")
    found = medimg.embed(model, [volume], cache=cache)
    assert found.array.shape == (4, 512)
    assert not list(cache.glob("*.features"))


def test_many_sources_take_few_writes(
    model: TransferClassifier, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = picture_data(tmp_path / "pictures", patients=10, each=3)
    writes: list[int] = []
    before = FeatureCache._insert

    def noted(file: Any, entries: Any) -> None:
        writes.append(len(entries))
        before(file, entries)

    monkeypatch.setattr(FeatureCache, "_insert", noted)
    medimg.embed(model, dataset.series, cache=cache)
    assert writes == [60]


def test_a_data_set(model: TransferClassifier, tmp_path: Path) -> None:
    dataset = picture_data(tmp_path / "pictures", patients=3)
    found = medimg.embed(model, dataset)
    assert found.labels is not None
    assert found.labels.tolist() == dataset.labels.tolist()
    assert found.patients == dataset.patients
    assert found.series_uids == dataset.series_uids
    table = found.to_pandas()
    assert table.shape == (6, 3 + 512)
    assert "SENTINEL" not in repr(found)
    assert "SENTINEL" not in table.drop(columns="series_uid").to_csv()


def test_bags(tmp_path: Path) -> None:
    stacks(tmp_path / "all" / "a", 2)
    stacks(tmp_path / "all" / "b", 1)
    model = classifier(preprocess=TINY, pool="max").eval()
    dataset = ImageDataset.from_folder(tmp_path / "all", TINY, unit="series")
    found = medimg.embed(model, dataset)
    assert found.items.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    pooled = found.pooled("max")
    with torch.no_grad():
        expected = torch.cat([model.embed(dataset[n][0][None]) for n in range(3)])
    assert np.allclose(pooled.array, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert pooled.labels is not None
    assert pooled.labels.tolist() == dataset.labels.tolist()
    assert pooled.patients == dataset.patients
    assert pooled.to_pandas().shape == (3, 3 + 512)


def test_labels_of_several_classes_have_columns() -> None:
    found = medimg.Embeddings(np.ones((2, 3), np.float32), np.arange(2), labels=np.eye(2, dtype=np.float32))
    assert list(found.to_pandas().columns) == ["item", "label_0", "label_1", "f0", "f1", "f2"]


def test_unsound_requests(model: TransferClassifier, folders: list[Path]) -> None:
    with pytest.raises(PreprocessError, match="several sources"):
        medimg.embed(model, folders[0])  # type: ignore[arg-type]  # refused
    with pytest.raises(PreprocessError, match="workers"):
        medimg.embed(model, folders, workers=0)
    with pytest.raises(PreprocessError, match="batch_size"):
        medimg.embed(model, folders, batch_size=0)
