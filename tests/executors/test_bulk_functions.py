"""Every bulk function gives by an executor what it gives without one, whatever the workers do."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch

import medimg
from medimg import Preprocess, TransferClassifier
from medimg.errors import ExecutorError, MedimgError
from medimg.models.prediction import sent_model
from tests.dicom_files import write_stack

if TYPE_CHECKING:
    from collections.abc import Iterator

_SPAWN = multiprocessing.get_context("spawn")
_RECIPE = Preprocess(size=48, slices=3)


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=_SPAWN) as pool:
        yield pool


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.fixture(params=["processes", "threads"])
def executor(request: pytest.FixtureRequest) -> Executor:
    return cast("Executor", request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with three series each, and a file that is none."""
    root = tmp_path_factory.mktemp("archive")
    for number in range(6):
        folder = root / "ab"[number % 2] / f"series{number}"
        positions = [2.0 * n + 10 * number for n in range(4 + number % 2)]
        write_stack(folder, positions, SeriesInstanceUID=f"1.2.{number}", PatientID=f"p{number}")
    (root / "a" / "notes.txt").write_text("no image")
    return root


@pytest.fixture(scope="module")
def folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("*/*") if path.is_dir())


@pytest.fixture(scope="module")
def model() -> TransferClassifier:
    torch.manual_seed(3)
    return TransferClassifier("squeezenet1_1", classes=["a", "b"], weights=None, preprocess=_RECIPE)


@pytest.fixture(scope="module")
def dataset(root: Path) -> medimg.ImageDataset:
    return medimg.ImageDataset.from_folder(root, _RECIPE, progress=False)


def facts(index: medimg.SeriesIndex) -> list[Any]:
    return [(s.uid, s.shape, s.affine.tolist(), s.files, s.summary()) for s in index]


def test_scan(root: Path, executor: Executor) -> None:
    found, expected = medimg.scan(root, executor=executor), medimg.scan(root)
    assert facts(found) == facts(expected)
    assert [(s.path, s.reason) for s in found.skipped] == [(s.path, s.reason) for s in expected.skipped]
    assert np.array_equal(found[0].read().array, expected[0].read().array)


def test_scan_by_workers_that_do_not_see_the_files(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    with (
        ProcessPoolExecutor(1, mp_context=_SPAWN, initializer=os.chdir, initargs=(tmp_path,)) as pool,
        pytest.raises(ExecutorError, match=r"does not see a/.*absolute"),
    ):
        medimg.scan("a", executor=pool)


@pytest.mark.data
def test_scan_of_real_files(executor: Executor, real_data: Path) -> None:
    folder = real_data / "dicom_misc"
    found, expected = medimg.scan(folder, executor=executor), medimg.scan(folder)
    assert facts(found) == facts(expected)
    assert sorted(s.path for s in found.skipped) == sorted(s.path for s in expected.skipped)


@pytest.mark.parametrize("least", [1, 2, 7])
def test_a_series_may_be_scanned_in_parts(
    root: Path, threads: Executor, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medimg.io._header_scan._AT_ONCE", least)
    monkeypatch.setattr("medimg.io._header_scan._MOST_AT_ONCE", least)
    assert facts(medimg.scan(root, executor=threads)) == facts(medimg.scan(root))


def test_scan_with_an_index(root: Path, tmp_path: Path, executor: Executor) -> None:
    index = tmp_path / "index.sqlite"
    for _ in range(2):
        assert facts(medimg.scan(root, executor=executor, index=index)) == facts(medimg.scan(root))


def test_tensors(folders: list[Path], executor: Executor) -> None:
    sources = [*folders, Path("nowhere")]
    found = medimg.read_tensors(sources, _RECIPE, executor=executor)
    expected = medimg.read_tensors(sources, _RECIPE)
    assert torch.equal(found.tensor, expected.tensor)
    assert (found.counts, found.slices) == (expected.counts, expected.slices)
    assert found.sop_instance_uids == expected.sop_instance_uids
    assert str(found.errors[6]) == str(expected.errors[6])
    one_by_one = list(medimg.iter_tensors(iter(sources), _RECIPE, executor=executor, workers=3))
    assert torch.equal(torch.cat([one.tensor for one in one_by_one]), expected.tensor)
    assert one_by_one[6].tensor.shape == (0, 3, 48, 48)
    assert isinstance(one_by_one[6].error, MedimgError)


def test_tensors_of_a_cache_in_a_buffer(folders: list[Path], executor: Executor, tmp_path: Path) -> None:
    buffer = torch.full((30, 3, 48, 48), 7.0)
    expected = medimg.read_tensors(folders, _RECIPE)
    for _ in range(2):
        found = medimg.read_tensors(folders, _RECIPE, executor=executor, out=buffer, cache=tmp_path)
        assert found.tensor.data_ptr() == buffer.data_ptr()
        assert torch.allclose(found.tensor, expected.tensor, atol=0.02)
    assert list(tmp_path.rglob("*"))


def test_the_error_of_a_source_can_be_raised(folders: list[Path], executor: Executor) -> None:
    with pytest.raises(MedimgError, match="nowhere"):
        medimg.read_tensors([*folders, "nowhere"], _RECIPE, executor=executor, on_error="raise")


def test_embeddings_of_sources(
    model: TransferClassifier, folders: list[Path], executor: Executor, tmp_path: Path
) -> None:
    sources = [*folders, Path("nowhere")]
    expected = medimg.embed(model, sources)
    for _ in range(2):
        found = medimg.embed(model, sources, executor=executor, cache=tmp_path)
        assert np.allclose(found.array, expected.array, rtol=1e-4, atol=1e-5)
        assert found.items.tolist() == expected.items.tolist()
        assert (found.series_uids, found.patients) == (expected.series_uids, expected.patients)
        assert found.errors.keys() == {6}
    assert list(tmp_path.glob("*.features"))


@pytest.mark.parametrize("unit", ["image", "series"])
def test_embeddings_of_a_dataset(
    model: TransferClassifier, root: Path, executor: Executor, unit: Any
) -> None:
    data = medimg.ImageDataset.from_folder(root, _RECIPE, unit=unit, progress=False)
    data = data[np.random.default_rng(0).permutation(len(data)).tolist()]
    found, expected = medimg.embed(model, data, executor=executor, batch_size=2), medimg.embed(model, data)
    assert np.allclose(found.array, expected.array, rtol=1e-4, atol=1e-5)
    assert found.items.tolist() == expected.items.tolist()
    assert found.patients == expected.patients


@pytest.mark.parametrize("unit", ["series", "image"])
@pytest.mark.parametrize("tta", [None, ["hflip"]])
def test_predictions(
    model: TransferClassifier, folders: list[Path], executor: Executor, unit: Any, tta: Any
) -> None:
    sources = [*folders, Path("nowhere")]
    options: dict[str, Any] = {"unit": unit, "on_error": "collect", "tta": tta}
    found = model.predict(sources, executor=executor, **options)
    expected = model.predict(sources, **options)
    numbers = ["p_a", "p_b"]
    assert np.allclose(found[numbers], expected[numbers], rtol=1e-4, atol=1e-5, equal_nan=True)
    rest = expected.columns.difference(numbers)
    assert found[rest].equals(expected[rest])
    assert found.attrs == expected.attrs


def test_the_error_of_a_prediction_names_its_source(
    model: TransferClassifier, folders: list[Path], executor: Executor
) -> None:
    with pytest.raises(MedimgError, match="nowhere") as caught:
        model.predict([*folders, "nowhere"], executor=executor)
    assert any("source 6" in note for note in caught.value.__notes__)


def test_evaluation(model: TransferClassifier, dataset: medimg.ImageDataset, executor: Executor) -> None:
    order = np.random.default_rng(1).permutation(len(dataset)).tolist()
    data = dataset[order]
    probabilities = model.predict_proba(data, executor=executor, batch_size=2)
    assert np.allclose(probabilities, model.predict_proba(data), rtol=1e-4, atol=1e-5)
    found = medimg.evaluate(model, data, executor=executor, n_resamples=20)
    expected = medimg.evaluate(model, data, n_resamples=20)
    assert found.metrics["accuracy"].value == expected.metrics["accuracy"].value


def test_an_ensemble(model: TransferClassifier, folders: list[Path], executor: Executor) -> None:
    torch.manual_seed(4)
    other = TransferClassifier("squeezenet1_1", classes=["a", "b"], weights=None, preprocess=_RECIPE)
    both = medimg.Ensemble([model, other])
    found, expected = both.predict(folders, executor=executor), both.predict(folders)
    assert np.allclose(found["p_a"], expected["p_a"], rtol=1e-4, atol=1e-5)


def test_leaks(dataset: medimg.ImageDataset, executor: Executor) -> None:
    from medimg.data.leakage import _fingerprints

    part, rest = dataset[:6], dataset[4:]
    options: Any = {"on_leak": "report", "near_duplicates": False}
    shared = [(k.kind, k.parts, k.items) for k in medimg.check_leaks(part, rest, **options).leaks]
    assert "pixels" in {kind for kind, *_ in shared}
    _fingerprints._CACHE._found.clear()
    for _ in range(2):
        found = medimg.check_leaks(part, rest, executor=executor, **options)
        assert [(k.kind, k.parts, k.items) for k in found.leaks] == shared


def test_filling_a_cache(root: Path, executor: Executor, tmp_path: Path) -> None:
    data = medimg.ImageDataset.from_folder(root, _RECIPE, cache=tmp_path, progress=False)
    data.fill_cache(executor=executor)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert len(files) >= 6
    data.fill_cache()
    assert files == {path: path.stat().st_mtime_ns for path in files}


def test_a_model_is_sent_to_workers_that_do_not_see_its_file(
    model: TransferClassifier, folders: list[Path], threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent_model._loaded.clear()
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: self.name != "model.safetensors" and real(self))
    found = model.predict(folders, executor=threads)
    monkeypatch.undo()
    assert np.allclose(found["p_a"], model.predict(folders)["p_a"], rtol=1e-4, atol=1e-5)


def test_a_series_that_is_extracted_is_small(dataset: medimg.ImageDataset) -> None:
    import pickle

    part = dataset.extract([0, 1])
    assert len(set(part.series_uids)) == 1
    assert part.labels.tolist() == dataset.labels[:2].tolist()
    assert part.patients == dataset.patients[:2]
    assert torch.equal(part[1][0], dataset[1][0])
    assert len(pickle.dumps(part)) < 100_000


def test_warnings_of_workers_are_given(tmp_path: Path, processes: Executor) -> None:
    folder = tmp_path / "gap"
    write_stack(folder, [0.0, 1.0, 3.0, 4.0])
    with pytest.warns(medimg.errors.MedimgWarning, match="missing"):
        medimg.read_tensors([folder], _RECIPE, executor=processes, reading={"on_missing": "warn"})


def _kill_child(parent: int) -> Any:
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return "nowhere"


class DeadlyPath(os.PathLike[str]):
    """A path that kills the process to which it is sent."""

    def __fspath__(self) -> str:
        return "nowhere"

    def __reduce__(self) -> Any:
        return _kill_child, (os.getpid(),)


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_source_that_kills_its_worker_is_an_error_of_its_own(
    model: TransferClassifier, folders: list[Path]
) -> None:
    sources: Any = [folders[0], DeadlyPath(), folders[1]]
    with ProcessPoolExecutor(1, mp_context=_SPAWN) as pool:
        found = medimg.read_tensors(sources, _RECIPE, executor=pool)
    assert found.errors.keys() == {1}
    assert isinstance(found.errors[1], ExecutorError)
    assert torch.equal(found.tensor, medimg.read_tensors(folders[:2], _RECIPE).tensor)
    with ProcessPoolExecutor(1, mp_context=_SPAWN) as pool:
        table = model.predict(sources, executor=pool, on_error="collect")
    assert table["error"].notna().tolist() == [False, True, False]
    with ProcessPoolExecutor(1, mp_context=_SPAWN) as pool, pytest.raises(ExecutorError, match="died"):
        model.predict(sources, executor=pool)


def test_other_datasets_and_models_can_not_be_sent(
    model: TransferClassifier, dataset: medimg.ImageDataset, threads: Executor
) -> None:
    with pytest.raises(MedimgError, match="needs a TransferClassifier"):
        medimg.evaluate(torch.nn.Identity(), dataset, classes=["a", "b"], outputs="logits", executor=threads)
    for call in (
        lambda: medimg.scan(".", executor=3),  # type: ignore[arg-type]  # wrong on purpose
        lambda: medimg.read_tensors([], executor=3),  # type: ignore[arg-type]  # wrong on purpose
        lambda: medimg.embed(model, dataset, executor=3),  # type: ignore[arg-type]  # wrong on purpose
        lambda: model.predict([], executor=3),  # type: ignore[arg-type]  # wrong on purpose
        lambda: medimg.evaluate(model, dataset, executor=3),  # type: ignore[arg-type]  # wrong on purpose
        lambda: medimg.check_leaks(dataset, executor=3),  # type: ignore[arg-type]  # wrong on purpose
    ):
        with pytest.raises(ExecutorError, match="must be a"):
            call()
