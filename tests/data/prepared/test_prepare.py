"""Prepared folders: the same images as without one, whatever happens on the way."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import medimg
from medimg import ImageDataset, Preprocess
from medimg.core.content_hash import content_hash, json_text
from medimg.data.prepared.source_table import MANIFEST, Manifest
from medimg.errors import DatasetError, LeakageError, MedimgError, MedimgWarning, PreprocessError, ReadError
from tests.data.prepared.conftest import RECIPE
from tests.dicom_files import write_stack

if TYPE_CHECKING:
    from medimg.data.cache.images import StoredDtype


def images(data: ImageDataset) -> torch.Tensor:
    return torch.stack([data[n][0] for n in range(len(data))])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", 0.0012), ("uint8", 0.0095)])
@pytest.mark.parametrize("shard_bytes", [1, 2**27])
def test_images_labels_and_patients_are_those_of_the_dataset(
    dataset: ImageDataset, tmp_path: Path, dtype: StoredDtype, tolerance: float, shard_bytes: int
) -> None:
    found = medimg.prepare(dataset, None, tmp_path / "out", dtype=dtype, shard_bytes=shard_bytes)
    assert (found.n_prepared, found.n_failed, found.n_new, found.n_images) == (6, 0, 6, 18)
    assert len(list((tmp_path / "out" / "shards").iterdir())) == (6 if shard_bytes == 1 else 1)
    prepared = ImageDataset.from_prepared(tmp_path / "out")
    assert (images(prepared) - images(dataset)).abs().max() <= tolerance
    assert prepared.labels.tolist() == dataset.labels.tolist()
    assert prepared.patients == dataset.patients
    assert prepared.classes == dataset.classes
    assert prepared.series_uids == dataset.series_uids
    assert prepared.modalities == dataset.modalities
    assert prepared.preprocess == dataset.preprocess
    assert prepared.image_indices == dataset.image_indices
    bags = ImageDataset.from_prepared(tmp_path / "out", unit="series")
    assert bags[5][0].shape == (3, 3, 40, 40)


@pytest.mark.parametrize(
    "recipe",
    [
        Preprocess(size=40),
        Preprocess(size=(24, 40), slices="middle", channels="adjacent"),
        Preprocess(size=40, spacing=1.5),
        Preprocess(size=40, spacing=(3.0, 1.0, 1.0), slices=2),
        Preprocess(size=40, window=("lung", "bone", "brain"), channels="windows"),
        Preprocess(size=(8, 24, 24), dims=3),
    ],
    ids=["all slices", "adjacent", "spacing", "spacings", "windows", "3-D"],
)
def test_recipes(root: Path, tmp_path: Path, recipe: Preprocess) -> None:
    plain = ImageDataset.from_folder(root, recipe, progress=False)
    medimg.prepare(plain, None, tmp_path / "out", dtype="float32")
    prepared = ImageDataset.from_prepared(tmp_path / "out")
    assert len(prepared) == len(plain)
    assert torch.equal(images(prepared), images(plain))


def test_sources_without_labels(root: Path, tmp_path: Path) -> None:
    index = medimg.scan(root)
    medimg.prepare(index, RECIPE, tmp_path / "a")
    prepared = ImageDataset.from_prepared(tmp_path / "a")
    assert not prepared.is_labeled
    assert len(set(prepared.patients)) == 5
    paths = sorted(path for path in root.glob("*/*"))
    medimg.prepare(paths, RECIPE, tmp_path / "b")
    assert torch.equal(images(ImageDataset.from_prepared(tmp_path / "b")), images(prepared))


def test_several_labels(root: Path, tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "path": [str(path) for path in sorted(root.glob("*/*"))],
            "edema": [0, 1, 1, 0, 1, 0],
            "mass": [1, 1, 0, 0, 0, 1],
            "site": list("xxyyyx"),
        }
    )
    data = ImageDataset.from_csv(
        table, preprocess=RECIPE, label=["edema", "mass"], domain="site", patient=None
    )
    medimg.prepare(data, None, tmp_path / "out")
    prepared = ImageDataset.from_prepared(tmp_path / "out")
    assert prepared.task == "multilabel"
    assert np.array_equal(prepared.labels, data.labels)
    assert prepared.domains == data.domains
    assert prepared.classes == ("edema", "mass")


def test_a_second_call_reads_only_what_is_new_or_changed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = medimg.prepare(ImageDataset.from_folder(root, RECIPE, progress=False), None, out, shard_bytes=1)
    assert first.n_new == 6
    again = medimg.prepare(ImageDataset.from_folder(root, RECIPE, progress=False), None, out)
    assert (again.n_new, again.n_prepared) == (0, 6)
    write_stack(root / "b" / "new", [100.0, 102.0, 104.0], SeriesInstanceUID="1.2.9", PatientID="SENTINEL-9")
    changed = root / "a" / "0"
    for path in changed.iterdir():
        os.utime(path, (1, 1))
    more = medimg.prepare(ImageDataset.from_folder(root, RECIPE, progress=False), None, out)
    assert (more.n_new, more.n_prepared) == (2, 7)
    # other labels need no images
    (root / "a" / "1").rename(root / "b" / "1")
    moved = ImageDataset.from_folder(root, RECIPE, progress=False)
    found = medimg.prepare(moved, None, out)
    assert found.n_new <= 1
    prepared = ImageDataset.from_prepared(out)
    assert prepared.labels.tolist() == moved.labels.tolist()
    other = medimg.prepare(moved.with_preprocess(RECIPE.replace(size=32)), None, out)
    assert other.n_new == 7


def test_normalization_needs_no_other_images(dataset: ImageDataset, tmp_path: Path) -> None:
    medimg.prepare(dataset, None, tmp_path / "out", dtype="float32")
    other = dataset.with_preprocess(RECIPE.replace(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
    assert medimg.prepare(other, None, tmp_path / "out", dtype="float32").n_new == 0
    assert torch.equal(images(ImageDataset.from_prepared(tmp_path / "out")), images(other))


def test_equal_sources_make_equal_shards(dataset: ImageDataset, tmp_path: Path) -> None:
    for name in ("a", "b"):
        medimg.prepare(dataset, None, tmp_path / name, shard_bytes=60_000)
    names = [sorted(path.name for path in (tmp_path / name / "shards").iterdir()) for name in ("a", "b")]
    assert names[0] == names[1]
    assert len(names[0]) == 3
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        medimg.prepare(dataset, None, tmp_path / "c", shard_bytes=60_000, executor=pool)
    assert sorted(path.name for path in (tmp_path / "c" / "shards").iterdir()) == names[0]


def test_unreadable_sources_are_reported_and_passed_over(root: Path, tmp_path: Path) -> None:
    index = medimg.scan(root)
    for path in (root / "a" / "1").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
        os.utime(path, (1, 1))
    sources: list[Any] = [*index, tmp_path / "nowhere", b"no image"]
    with pytest.warns(MedimgWarning, match="3 of 8 sources could not be prepared"):
        found = medimg.prepare(sources, RECIPE, tmp_path / "out")
    assert (found.n_prepared, found.n_failed) == (5, 3)
    table = found.to_pandas()
    assert table["outcome"].tolist() == ["prepared", "failed", *["prepared"] * 4, "failed", "failed"]
    assert "SENTINEL" not in repr(found) + table.to_string()
    prepared = ImageDataset.from_prepared(tmp_path / "out")
    assert len(prepared.skipped) == 3
    assert len(prepared) == 15
    with pytest.raises(DatasetError, match="could not be prepared"):
        medimg.prepare([tmp_path / "nowhere"], RECIPE, tmp_path / "other")


def test_it_is_wrong_to_call_it_so(dataset: ImageDataset, tmp_path: Path, root: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DatasetError, match="recipe"):
        medimg.prepare(dataset, Preprocess(size=8), out)
    with pytest.raises(DatasetError, match="reading"):
        medimg.prepare(dataset, None, out, reading={"on_missing": "warn"})
    with pytest.raises(PreprocessError, match="several sources"):
        medimg.prepare(str(root), None, out)
    with pytest.raises(DatasetError, match="no sources"):
        medimg.prepare([], None, out)
    with pytest.raises(ReadError, match="as a str"):
        medimg.prepare(dataset, None, Path("s3://bucket/out"))
    with pytest.raises(ReadError, match="null character"):
        medimg.prepare(dataset, None, "a\0b")
    with pytest.raises(DatasetError, match="manifest"):
        ImageDataset.from_prepared(tmp_path / "nowhere")
    assert not out.exists()


def test_prepared_images_are_split_trained_on_and_evaluated(dataset: ImageDataset, tmp_path: Path) -> None:
    medimg.prepare(dataset, None, tmp_path / "out")
    data = ImageDataset.from_prepared(tmp_path / "out")
    train, test = medimg.kfold(data, 2)[0]
    assert not set(train.patients) & set(test.patients)
    torch.manual_seed(0)
    model = medimg.TransferClassifier("squeezenet1_1", classes=data.classes, weights=None, preprocess=RECIPE)
    medimg.fine_tune(model, train, head_epochs=0, epochs=1, batch_size=4, progress=False)
    raw = dataset[[n for n, uid in enumerate(dataset.series_uids) if uid in set(test.series_uids)]]
    assert np.allclose(model.predict_proba(test), model.predict_proba(raw), atol=0.01)
    medimg.evaluate(model, test, n_resamples=20)
    with pytest.raises(LeakageError):
        medimg.evaluate(model, train, n_resamples=20)
    first = medimg.embed(model, data, cache=tmp_path / "features")
    assert np.array_equal(first.array, medimg.embed(model, data, cache=tmp_path / "features").array)


def test_the_same_patient_in_prepared_and_raw_images_is_a_leak(dataset: ImageDataset, tmp_path: Path) -> None:
    medimg.prepare(dataset, None, tmp_path / "out")
    data = ImageDataset.from_prepared(tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MedimgWarning)
        report = medimg.check_leaks(data, dataset, on_leak="report", near_duplicates=False)
    assert {"patient", "series"} <= {leak.kind for leak in report.leaks}


def test_original_pixels_are_refused(dataset: ImageDataset, tmp_path: Path) -> None:
    medimg.prepare(dataset, None, tmp_path / "out")
    data = ImageDataset.from_prepared(tmp_path / "out")
    with pytest.raises(ReadError, match="not its pixels"):
        data.series[0].read()
    with pytest.raises(MedimgError, match="prepare the sources again"):
        data.with_preprocess(Preprocess(size=64, slices=3))[0]
    again = ImageDataset.concat([data[:9], data[9:]])
    assert torch.equal(images(again), images(data))


def test_shards_are_tar_files_of_numpy_arrays(dataset: ImageDataset, tmp_path: Path) -> None:
    medimg.prepare(dataset, None, tmp_path / "out", dtype="float32")
    (shard,) = (tmp_path / "out" / "shards").iterdir()
    with tarfile.open(shard) as tar:
        arrays = [np.load(io.BytesIO(tar.extractfile(member).read())) for member in tar]  # type: ignore[union-attr]  # all are files
    prepared = ImageDataset.from_prepared(tmp_path / "out")
    assert np.array_equal(
        np.concatenate(arrays)[:, 0], torch.cat([prepared.planes(n) for n in range(18)]).numpy()
    )


def test_damaged_and_missing_shards(dataset: ImageDataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    medimg.prepare(dataset, None, out)
    (shard,) = (out / "shards").iterdir()
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DatasetError, match="is damaged"):
        images(ImageDataset.from_prepared(out))
    shard.write_bytes(data[:3000])
    with pytest.raises(DatasetError, match="no whole shard"):
        images(ImageDataset.from_prepared(out))
    assert medimg.prepare(dataset, None, out).n_new == 6
    images(ImageDataset.from_prepared(out))
    shard.unlink()
    with pytest.raises(DatasetError, match="no whole shard"):
        images(ImageDataset.from_prepared(out))
    assert medimg.prepare(dataset, None, out).n_new == 6


@given(at=st.floats(0, 1), bit=st.integers(0, 7), cut=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_manifests_are_errors(
    dataset: ImageDataset, tmp_path: Path, at: float, bit: int, cut: bool
) -> None:
    out = tmp_path / "out"
    if not out.exists():
        medimg.prepare(dataset, None, out)
    data = bytearray((out / MANIFEST).read_bytes())
    place = min(int(at * len(data)), len(data) - 1)
    if cut:
        del data[place:]
    else:
        data[place] ^= 1 << bit
    # a flip of a bit may hit what nothing is read from
    with contextlib.suppress(DatasetError):
        Manifest.from_bytes(bytes(data), "manifest")


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [3, 40, 40]},
        {"shape": [3, 1, 20, 80]},
        {"shape": [3, 2, 20, 40]},
        {"shape": [4800]},
        {"shape": [None] * 4},
        {"shard": None},
        {"shard": "../" * 21 + "x"},
        {"offset": None},
        {"offset": 2**62},
        {"digest": None},
        {"digest": "no digest"},
        {"patient": None},
        {"outcome": "other"},
        {"recipe": []},
        {"recipe": Preprocess(size=4000).to_dict()},
    ],
    ids=str,
)
def test_manifests_that_contradict_themselves_are_errors(
    dataset: ImageDataset, tmp_path: Path, change: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    medimg.prepare(dataset, None, out)
    table = pyarrow.parquet.read_table(out / MANIFEST)
    meta = json.loads(table.schema.metadata[b"medimg"])
    del meta["sha256"]
    rows = table.to_pylist()
    for name, value in change.items():
        (meta if name in meta else rows[0])[name] = value
    meta["sha256"] = content_hash(json_text(meta))
    changed = pyarrow.Table.from_pylist(rows, table.schema.with_metadata({"medimg": json_text(meta)}))
    pyarrow.parquet.write_table(changed, out / MANIFEST)
    with pytest.raises(DatasetError, match="prepare the folder again"):
        ImageDataset.from_prepared(out)


@pytest.mark.parametrize(
    ("count", "name", "value"),
    [(10**6, "error", "x"), (10**4, "error", "x" * 10**7), (10**4, "sop_instance_uids", ["x" * 10**7])],
    ids=["rows", "text", "text in lists"],
)
def test_small_manifests_of_large_tables_are_errors(
    dataset: ImageDataset, tmp_path: Path, count: int, name: str, value: Any
) -> None:
    medimg.prepare(dataset, None, tmp_path / "out")
    table = pyarrow.parquet.read_table(tmp_path / "out" / MANIFEST)
    row = pyarrow.Table.from_pylist([table.to_pylist()[0] | {name: value}], table.schema)
    numbers = pyarrow.array(np.zeros(count, np.int32))
    arrays = []
    for column in row.columns:
        (values,) = column.chunks
        if pyarrow.types.is_list(values.type):
            found: Any = pyarrow.DictionaryArray.from_arrays(numbers, values.flatten()[:1])
            found = pyarrow.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), found)
        else:
            found = pyarrow.DictionaryArray.from_arrays(numbers, values)
        arrays.append(found)
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(arrays, table.schema.names), file, compression="zstd")
    assert len(file.getvalue()) < 500_000
    with pytest.raises(DatasetError, match="far more memory"):
        Manifest.from_bytes(file.getvalue(), "manifest")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_pipes_in_place_of_files_are_errors(dataset: ImageDataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    medimg.prepare(dataset, None, out)
    (shard,) = (out / "shards").iterdir()
    for path in (shard, out / MANIFEST):
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(DatasetError, match="not a regular file"):
            ImageDataset.from_prepared(out)[0]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8(root: Path, tmp_path: Path) -> None:
    (root / "a" / "0").rename(root / "a" / os.fsdecode(b"caf\xe9"))
    (root / "b").rename(root / os.fsdecode(b"\xe9"))
    data = ImageDataset.from_folder(root, RECIPE, progress=False)
    sources = [*medimg.scan(root), tmp_path / os.fsdecode(b"no\xe9")]
    with pytest.warns(MedimgWarning, match="1 of 7"):
        medimg.prepare(sources, RECIPE, tmp_path / "unlabeled")
    medimg.prepare(data, None, tmp_path / "out", dtype="float32")
    prepared = ImageDataset.from_prepared(tmp_path / "out")
    assert torch.equal(images(prepared), images(data))
    assert prepared.labels.tolist() == data.labels.tolist()
    assert any("caf\\udce9" in series.path for series in prepared.series)
    assert medimg.prepare(data, None, tmp_path / "out", dtype="float32").n_new == 0


_CALL = """
import sys, os, time, pathlib, medimg
from medimg.data.prepared import prepare as module
write = module.StorageFolder.write
def slow(self, name, source):
    write(self, name, source)
    print("written", flush=True)
    time.sleep(0.2)
module.StorageFolder.write = slow
data = medimg.ImageDataset.from_folder(sys.argv[1], medimg.Preprocess(size=40, slices=3), progress=False)
medimg.prepare(data, None, sys.argv[2], shard_bytes=1, workers=1, progress=False)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_call_that_is_killed_is_continued(dataset: ImageDataset, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", _CALL, str(root), str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with pytest.raises(DatasetError, match="manifest"):
        ImageDataset.from_prepared(out)
    time.sleep(0.05)
    found = medimg.prepare(dataset, None, out)
    assert 3 <= found.n_new <= 4
    whole = medimg.prepare(dataset, None, tmp_path / "whole")
    assert whole.n_prepared == found.n_prepared
    assert torch.equal(
        images(ImageDataset.from_prepared(out)), images(ImageDataset.from_prepared(tmp_path / "whole"))
    )


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_temporary_files_of_a_call_that_is_killed_are_removed_by_the_next(
    dataset: ImageDataset, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    call = _CALL.replace("    write(self", "    print('written', flush=True); time.sleep(60); write(self")
    process = subprocess.Popen(
        [sys.executable, "-c", call, str(root), str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert list(temporary.glob("*/shard.tar"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    medimg.prepare(dataset, None, tmp_path / "out")
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_of_loaders(dataset: ImageDataset, tmp_path: Path, method: str) -> None:
    medimg.prepare(dataset, None, tmp_path / "out")
    data = ImageDataset.from_prepared(tmp_path / "out")
    loader = torch.utils.data.DataLoader(data, batch_size=5, num_workers=2, multiprocessing_context=method)
    found = torch.cat([batch for batch, _ in loader])
    assert torch.equal(found, images(data))


@pytest.mark.parametrize("place", ["memory", "s3"])
def test_object_storage(
    dataset: ImageDataset, tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    where = "memory://" if place == "memory" else f"{request.getfixturevalue('storage').url}/"
    url = f"{where}prepared-of-a-test"
    found = medimg.prepare(dataset, None, url)
    assert found.n_new == 6
    assert medimg.prepare(dataset, None, url).n_new == 0
    with pytest.raises(DatasetError, match="pass cache="):
        ImageDataset.from_prepared(url)
    data = ImageDataset.from_prepared(url, cache=tmp_path / "shards")
    medimg.prepare(dataset, None, tmp_path / "out")
    assert torch.equal(images(data), images(ImageDataset.from_prepared(tmp_path / "out")))
    assert len(list((tmp_path / "shards").iterdir())) == 1


@pytest.mark.data
def test_real_scans(real_data: Path, tmp_path: Path) -> None:
    index = [one for one in medimg.scan(real_data / "dicom_misc") if one.shape[1] * one.shape[2] < 2**22]
    recipe = Preprocess(size=64, slices=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MedimgWarning)
        found = medimg.prepare(index, recipe, tmp_path / "out", dtype="float32", shard_bytes=2**22)
        expected = medimg.read_tensors(index, recipe)
        prepared = ImageDataset.from_prepared(tmp_path / "out")
    assert found.n_failed == len(expected.errors)
    assert torch.equal(images(prepared), expected.tensor)
