"""Pictures kept on disk: never stale, never half, never anything of a patient."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import medimg
from medimg.data import image_loader
from medimg.data._labels import LabeledSeries
from medimg.data.cache.image_cache import ImageCache
from medimg.data.cache.images import RenderedImages, StoredDtype
from medimg.data.cache.keys import Address
from medimg.data.dataset import ImageDataset
from medimg.data.image_loader import ImageLoader
from medimg.data.resolved_source import ResolvedSource
from medimg.errors import DatasetError, MedimgWarning, ReadError
from medimg.io.series import Policies, Series
from medimg.preprocessing import render
from medimg.preprocessing.preprocess import IMAGENET_STD, Preprocess
from tests.dicom_files import write_stack

SMALL = Preprocess(size=16)
BOUND: dict[StoredDtype, float] = {"float16": 2**-12, "uint8": 1 / 510, "float32": 0.0}


def stack(folder: Path, uid: str = "1.2.3", **attributes: Any) -> Series:
    write_stack(folder, [0, 2, 4], SeriesInstanceUID=uid, PatientID="SENTINEL", **attributes)
    return medimg.scan(folder)[0]


@pytest.fixture
def series(tmp_path: Path) -> Series:
    return stack(tmp_path / "scan")


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "cache")


def made(cache: ImageCache, series: Series, recipe: Preprocess = SMALL) -> RenderedImages:
    loader = ImageLoader(recipe, Policies(), cache)
    return loader.load(ResolvedSource.resolve(series), loader.address(series))


def address(cache: ImageCache, series: Series, recipe: Preprocess = SMALL) -> Address:
    found = cache.address(recipe, series, Policies())
    assert found is not None
    return found


def entries(cache: ImageCache) -> list[Path]:
    return sorted(Path(cache.folder).rglob("*.safetensors"))


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a scan was opened")

    monkeypatch.setattr(image_loader, "render_series", refuse)


@pytest.mark.parametrize("kind", list(BOUND))
def test_what_is_kept_is_what_was_made_but_for_its_rounding(
    tmp_path: Path, series: Series, kind: StoredDtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ImageCache(tmp_path / "cache", dtype=kind)
    expected = SMALL.render(series)
    first = medimg.read_tensors([series], SMALL, cache=cache)
    forbid_reading(monkeypatch)
    again = medimg.read_tensors([series], SMALL, cache=cache)
    assert torch.equal(first.tensor, again.tensor)
    error = (again.tensor - SMALL.normalize(expected.planes)).abs().amax(dim=(0, 2, 3))
    assert (error <= BOUND[kind] / torch.tensor(IMAGENET_STD) * 1.001 + 1e-6 * (kind != "float32")).all()
    assert again.sop_instance_uids == first.sop_instance_uids == expected.sop_instance_uids
    assert again.slices == expected.slices
    assert made(cache, series).planes.shape[1] == 1, "three equal channels are one"


def test_a_changed_file_has_other_pictures(cache: ImageCache, tmp_path: Path, series: Series) -> None:
    before = made(cache, series).planes.clone()
    write_stack(
        tmp_path / "scan", [0, 2, 4], SeriesInstanceUID="1.2.3", PatientID="SENTINEL", RescaleIntercept=-900
    )
    after = made(cache, medimg.scan(tmp_path / "scan")[0]).planes
    assert not torch.equal(before, after)


def test_a_file_replaced_within_the_same_nanosecond_has_other_pictures(
    tmp_path: Path, series: Series
) -> None:
    cache = ImageCache(tmp_path / "cache")
    path = Path(series.files[1])
    old, content = address(cache, series), path.read_bytes()
    state = path.stat()
    path.write_bytes(content[:-2] + b"\x01\x02")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    assert address(cache, series) != old
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert address(cache, series) == old


def test_all_bytes_are_compared_if_asked(tmp_path: Path) -> None:
    found = {}
    for compare in ("samples", "bytes"):
        cache = ImageCache(tmp_path / "cache", compare=compare)
        one = large(tmp_path / compare / "large")
        path = Path(one.files[0])
        state, content = path.stat(), bytearray(path.read_bytes())
        before = address(cache, one)
        content[len(content) // 4] ^= 255
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        found[compare] = address(cache, one) == before
        os.utime(path, ns=(0, 0))
        assert address(cache, one) != before, "the time of modification, or the byte"
    assert found == {"samples": True, "bytes": False}, "the documented limit of samples"


def large(folder: Path) -> Series:
    from tests.dicom_files import make_instance, write

    write(make_instance(np.zeros((512, 512), np.uint16)), folder / "0.dcm")
    return medimg.scan(folder)[0]


def test_whatever_changes_tensors_changes_the_address(tmp_path: Path, series: Series) -> None:
    def all_addresses() -> list[str]:
        plain = ImageCache(tmp_path / "a")
        others = [
            plain.address(SMALL.replace(window="bone"), series, Policies()),
            plain.address(SMALL, series, Policies(on_missing="warn")),
            ImageCache(tmp_path / "a", dtype="uint8").address(SMALL, series, Policies()),
            plain.address(SMALL, stack(tmp_path / "b", "1.2.4"), Policies()),
            plain.address(SMALL, medimg.scan(series.files[0])[0], Policies()),
        ]
        return [address(plain, series).key, *(other.key for other in others if other)]

    found = all_addresses()
    assert len(set(found)) == len(found) == 6


def test_a_moved_folder_is_known_again(cache: ImageCache, tmp_path: Path, series: Series) -> None:
    before = address(cache, series)
    shutil.move(tmp_path / "scan", tmp_path / "elsewhere")
    assert address(cache, medimg.scan(tmp_path / "elsewhere")[0]) == before


def test_members_of_archives_are_told_apart(cache: ImageCache, tmp_path: Path, series: Series) -> None:
    stack(tmp_path / "both" / "x", "1.5")
    stack(tmp_path / "both" / "y", "1.6")
    archive = shutil.make_archive(str(tmp_path / "both"), "zip", tmp_path / "both")
    first, second = medimg.scan(archive)
    assert address(cache, first) != address(cache, second)


def test_what_is_in_memory_is_not_kept(cache: ImageCache, series: Series) -> None:
    content = Path(series.files[0]).read_bytes()
    assert cache.address(SMALL, medimg.scan(content)[0], Policies()) is None
    batch = medimg.read_tensors([content, medimg.read(series)], SMALL, cache=cache)
    assert batch.counts == (1, 3)
    assert not entries(cache)


def test_nothing_of_a_patient_in_the_cache(cache: ImageCache, tmp_path: Path) -> None:
    identifiers: dict[str, Any] = {"SeriesInstanceUID": "1.98765.4321", "PatientName": "Sentinel^Jane"}
    write_stack(tmp_path / "s", [0, 2], PatientID="SENTINEL", PatientBirthDate="19560417", **identifiers)
    medimg.read_tensors([tmp_path / "s"], SMALL, cache=cache)
    (entry,) = entries(cache)
    uid = medimg.read(tmp_path / "s").report.sop_instance_uids[0]
    text = str(entry.relative_to(cache.folder)).encode() + entry.read_bytes()
    for secret in ("SENTINEL", "Sentinel", "Jane", "19560417", "1.98765.4321", uid, str(tmp_path)):
        assert secret.encode() not in text


def truncated(content: bytes) -> bytes:
    return content[:-1]


def longer(content: bytes) -> bytes:
    return content + b"\0"


def empty(_: bytes) -> bytes:
    return b""


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def other_pixel(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def other_shape(content: bytes) -> bytes:
    return content.replace(b"[3,1,16,16]", b"[3,1,8,32] ").replace(b"[3,1,16,16]", b"[3,1,8,32] ")


def other_recipe(content: bytes) -> bytes:
    return content.replace(b"display", b"disp1ay")


def huge_header(content: bytes) -> bytes:
    return (2**62).to_bytes(8, "little") + content[8:]


DAMAGE = [truncated, longer, empty, half, other_pixel, other_shape, other_recipe, huge_header]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("by", ["bulk", "data set"])
def test_damaged_entries_are_made_anew(damage: Any, by: str, cache: ImageCache, tmp_path: Path) -> None:
    for name in ("a", "b"):
        stack(tmp_path / "scans" / name, f"1.2.{ord(name)}")

    def tensors() -> torch.Tensor:
        if by == "bulk":
            return medimg.read_tensors(medimg.scan(tmp_path / "scans"), SMALL, cache=cache).tensor
        dataset = ImageDataset.from_folder(tmp_path / "scans", SMALL, cache=cache, patient=lambda p: p.name)
        return torch.stack([dataset[n][0] for n in range(len(dataset))])

    expected = tensors().clone()
    for entry in entries(cache):
        content = entry.read_bytes()
        assert damage(content) != content
        entry.unlink()  # others may have it mapped
        entry.write_bytes(damage(content))
    with pytest.warns(MedimgWarning, match="damaged"):
        assert torch.equal(tensors(), expected)
    assert torch.equal(tensors(), expected), "mended, without a warning"


def test_an_entry_under_another_name_is_refused(cache: ImageCache, tmp_path: Path, series: Series) -> None:
    made(cache, series)
    other = stack(tmp_path / "other", "1.9", RescaleIntercept=-900)
    target = cache.path(address(cache, other), SMALL)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(entries(cache)[0], target)
    with pytest.warns(MedimgWarning, match="images other than its name"):
        again = made(cache, other)
    assert torch.equal(again.planes.float(), SMALL.render(other).planes.half().float())


def test_what_a_killed_writer_left_is_never_read(cache: ImageCache, series: Series) -> None:
    path = cache.path(address(cache, series), SMALL)
    path.parent.mkdir(parents=True)
    leftover = path.with_name(".medimg-0123.tmp")
    leftover.mkdir()
    (leftover / path.name).write_bytes(b"half")
    assert len(made(cache, series).planes) == 3
    assert not leftover.exists()


def test_a_writer_that_fails_leaves_nothing(
    cache: ImageCache, series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medimg.data.cache.image_cache.save_file", full)
    with pytest.warns(MedimgWarning, match="images can't be cached"):
        batch = medimg.read_tensors([series, series], SMALL, cache=cache)
    assert batch.counts == (3, 3)
    assert not [p for p in Path(cache.folder).rglob("*") if p.is_file()]
    dataset = ImageDataset([LabeledSeries(series, "x", "1")], classes=["x"], preprocess=SMALL, cache=cache)
    assert torch.equal(dataset[1][0], batch.tensor[1])


def _write(folder: str, scan: str, start: Any) -> None:
    torch.set_num_threads(1)
    cache = ImageCache(folder)
    series = medimg.scan(scan)[0]
    start.wait()
    for _ in range(20):
        pictures = made(cache, series)
        assert pictures.take().shape == (3, 1, 16, 16)
        cache.store(address(cache, series), SMALL, pictures)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a process with threads that is forked
def test_two_processes_write_the_same_entry(tmp_path: Path, series: Series) -> None:
    # a process that is spawned imports PyTorch first, which takes seconds
    context = multiprocessing.get_context(
        "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    )
    start = context.Barrier(2)
    writers = [
        context.Process(target=_write, args=(str(tmp_path / "c"), str(tmp_path / "scan"), start))
        for _ in range(2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    cache = ImageCache(tmp_path / "c")
    assert len(entries(cache)) == 1
    assert not list(Path(cache.folder).rglob("*.tmp"))
    assert torch.equal(made(cache, series).take(), SMALL.render(series).planes.half())


def test_threads_write_the_same_entry(cache: ImageCache, series: Series) -> None:
    before = threading.active_count()
    batch = medimg.read_tensors([series] * 8, SMALL, cache=cache, workers=4)
    assert len(entries(cache)) == 1
    assert all(torch.equal(part, batch[0]) for part in batch)
    assert threading.active_count() <= before


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    cache: ImageCache, series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = render.render_series

    def slow(*given: Any, **named: Any) -> Any:
        rendered = real(*given, **named)
        os.utime(series.files[0], (1, 1))
        return rendered

    monkeypatch.setattr(image_loader, "render_series", slow)
    assert len(made(cache, series).planes) == 3
    assert not entries(cache)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n, label in enumerate(["ill", "well", "ill"]):
        stack(tmp_path / "data" / label / str(n), f"1.7.{n}", RescaleIntercept=-1000 + 20 * n)
    return tmp_path / "data"


def labeled(folder: Path, cache: Any, **options: Any) -> ImageDataset:
    return ImageDataset.from_folder(
        folder, SMALL, patient=lambda path: path.parent.name, cache=cache, **options
    )


@pytest.mark.parametrize("unit", ["image", "series"])
def test_the_second_epoch_opens_no_scan(folder: Path, tmp_path: Path, unit: Any) -> None:
    dataset = labeled(folder, tmp_path / "cache", unit=unit)
    first = [image for image, _ in dataset]  # type: ignore[attr-defined]  # ends with an IndexError
    shutil.rmtree(folder)
    again = pickle.loads(pickle.dumps(dataset))
    for n, image in enumerate(first):
        assert torch.equal(dataset[n][0], image)
        assert torch.equal(again[n][0], image)
    plain = dataset.planes(0)
    assert plain.dtype == torch.float32
    assert torch.equal(
        SMALL.normalize(plain if unit == "series" else plain[None]).reshape(first[0].shape), first[0]
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_a_loader_share_the_cache(folder: Path, cache: ImageCache, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not start processes by {method}")
    dataset = labeled(folder, cache)
    dataset.fill_cache(progress=False)
    assert len(entries(cache)) == 3
    for path in folder.rglob("*.dcm"):
        path.unlink()
    loader = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context=method)
    images = torch.cat([batch for batch, _ in loader])
    assert torch.equal(images, torch.stack([dataset[n][0] for n in range(len(dataset))]))


def test_several_items_are_those_one_by_one(folder: Path, cache: ImageCache) -> None:
    for dataset in (labeled(folder, cache), labeled(folder, None), labeled(folder, None, unit="series")):
        chosen = [1, 0, 2] if dataset.unit == "series" else [7, 0, 3, 3, 8, 1, 2]
        for (image, label), n in zip(dataset.__getitems__(chosen), chosen, strict=True):
            assert torch.equal(image, dataset[n][0])
            assert label == dataset[n][1]


def test_a_subset_and_another_recipe_use_the_cache(folder: Path, cache: ImageCache) -> None:
    dataset = labeled(folder, cache)
    assert torch.equal(dataset.subset([4])[0][0], dataset[4][0])
    other = dataset.with_preprocess(SMALL.replace(size=8))
    assert other[0][0].shape == (3, 8, 8)
    assert {entry.parts[-3] for entry in entries(cache)} == {SMALL.fingerprint, other.preprocess.fingerprint}


def test_unsound_caches(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="can't make a cache"):
        ImageCache(tmp_path / "file")
    with pytest.raises(DatasetError, match=r"dtype must be .*'int4'"):
        ImageCache(tmp_path, dtype="int4")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(DatasetError, match=r"compare must be .*'name'"):
        ImageCache(tmp_path, compare="name")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(DatasetError, match="no cache"):
        labeled(folder, None).fill_cache()


def test_errors_are_not_kept(cache: ImageCache, series: Series) -> None:
    content = Path(series.files[0]).read_bytes()
    Path(series.files[0]).write_bytes(content[:-8])
    with pytest.raises(ReadError):
        made(cache, series)
    Path(series.files[0]).write_bytes(content)
    assert len(made(cache, series).planes) == 3
