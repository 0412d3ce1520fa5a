"""Many sources into tensors: each as it is by itself, in order, errors apart, memory bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import medimg
from medimg.core.geometry import image_affine
from medimg.core.parallel import ordered_map
from medimg.core.volume import Volume
from medimg.errors import MedimgError, MissingSlicesError, NotAnImageError, PreprocessError, ReadError
from medimg.preprocessing.preprocess import Preprocess
from medimg.preprocessing.torch_threads import share_cores
from tests.dicom_files import write_stack

SMALL = Preprocess(size=16)
WORKERS = [1, 2, 5, None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six series of 1 to 6 slices, the fourth of them without its pixels' end, and a text file."""
    for n in range(6):
        paths = write_stack(
            tmp_path / f"s{n}",
            [2.0 * z for z in range(n + 1)],
            SeriesInstanceUID=f"1.3.{n}",
            PatientID="SENTINEL",
        )
        if n == 3:
            paths[2].write_bytes(paths[2].read_bytes()[:-100])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("no image")
    return tmp_path


@pytest.fixture
def folders(root: Path) -> list[Path]:
    return [root / name for name in ("s5", "s3", "s0", "notes", "s2", "gone", "s4")]


FAILED = {1: MedimgError, 3: NotAnImageError, 5: ReadError}


def reference(sources: list[Path], recipe: Preprocess = SMALL) -> list[torch.Tensor]:
    """Each source by itself, nothing for those that fail."""
    return [
        torch.empty(0, 3, *recipe.hw) if n in FAILED else recipe(source) for n, source in enumerate(sources)
    ]


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("cached", [False, True])
def test_each_source_as_it_is_by_itself(
    folders: list[Path], workers: int | None, cached: bool, tmp_path: Path
) -> None:
    cache = medimg.ImageCache(tmp_path / "cache", dtype="float32") if cached else None
    expected = reference(folders)
    for _ in range(2):
        batch = medimg.read_tensors(folders, SMALL, workers=workers, cache=cache)
        assert torch.equal(batch.tensor, torch.cat(expected))
        assert batch.counts == tuple(len(tensor) for tensor in expected)
        assert {n: type(error) for n, error in batch.errors.items()}.keys() == FAILED.keys()
        assert all(isinstance(batch.errors[n], kind) for n, kind in FAILED.items())
        assert [torch.equal(a, b) for a, b in zip(batch, expected, strict=True)] == [True] * len(folders)
        assert batch.sources.tolist() == [n for n, tensor in enumerate(expected) for _ in tensor]
        assert batch.offsets[-1] == len(batch.tensor) == len(batch.slices) == len(batch.sop_instance_uids)
        for one, tensor in zip(medimg.iter_tensors(folders, SMALL, workers=workers), expected, strict=True):
            assert torch.equal(one.tensor, tensor)
            assert (one.error is not None) == (one.index in FAILED)
        good = SMALL.render(folders[-1])
        assert batch.sop_instance_uids[-5:] == good.sop_instance_uids
        assert batch.slices[-5:] == good.slices


def test_everything_that_can_be_read(root: Path) -> None:
    index = medimg.scan(root / "s2")
    volume = index[0].read()
    content = [path.read_bytes() for path in sorted((root / "s2").iterdir())]
    sources: list[Any] = [root / "s2", str(root / "s2"), index[0], volume, content, list(index[0].files)]
    batch = medimg.read_tensors(sources, SMALL)
    assert not batch.errors
    assert all(torch.equal(part, SMALL(volume)) for part in batch)
    assert torch.equal(medimg.read_tensors(index, SMALL).tensor, SMALL(volume))


def test_no_sources() -> None:
    assert medimg.read_tensors([], SMALL).tensor.shape == (0, 3, 16, 16)
    assert list(medimg.iter_tensors([], SMALL)) == []


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_a_buffer_of_the_caller(folders: list[Path]) -> None:
    expected = torch.cat(reference(folders))
    out = torch.full((40, 3, 16, 16), 7.0)
    for _ in range(2):
        batch = medimg.read_tensors(folders, SMALL, out=out, workers=2)
        assert batch.tensor.data_ptr() == out.data_ptr()
        assert torch.equal(out[: len(expected)], expected)
    assert (out[30:] == 7.0).all(), "beyond all that was planned"


def unsound_buffers() -> Iterator[Any]:
    yield np.zeros((40, 3, 16, 16), np.float32)
    yield torch.zeros(40, 3, 16, 16, dtype=torch.float64)
    yield torch.zeros(40, 3, 16, 17)
    yield torch.zeros(40, 3, 16, 32)[..., ::2]
    yield torch.zeros(40, 3, 16, 16, requires_grad=True)
    yield torch.zeros(40, 3, 16, 16, device="meta")
    yield torch.zeros(4, 3, 16, 16)


@pytest.mark.parametrize("out", list(unsound_buffers()))
def test_an_unsound_buffer_is_refused_before_pixels_are_read(
    out: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pixels were read")

    monkeypatch.setattr("medimg.data.image_loader.render_series", refuse)
    with pytest.raises(PreprocessError, match=r"out (is|has)"):
        medimg.read_tensors([root / "s5"], SMALL, out=out)


def test_errors_can_end_it(folders: list[Path]) -> None:
    with pytest.raises(ReadError) as caught:
        medimg.read_tensors([folders[0], folders[5], folders[3]], SMALL, on_error="raise")
    assert caught.value.__notes__ == ["while reading source 1, counted from 0"]
    results = medimg.iter_tensors([folders[0], folders[5], folders[3]], SMALL, on_error="raise")
    assert next(results).index == 0
    with pytest.raises(ReadError):
        next(results)


def test_unsound_requests(root: Path) -> None:
    unsound: list[tuple[Any, dict[str, Any]]] = [
        (root / "s2", {}),
        (str(root / "s2"), {}),
        (b"DICM", {}),
        (5, {}),
        ([], {"on_error": "ignore"}),
        ([], {"workers": 0}),
        ([], {"recipe": "lung"}),
    ]
    for sources, options in unsound:
        for function in (medimg.read_tensors, medimg.iter_tensors):
            with pytest.raises(PreprocessError):
                function(sources, **options)


def test_policies_are_heeded(tmp_path: Path) -> None:
    write_stack(tmp_path / "gap", [0, 2, 6, 8, 10])
    assert isinstance(medimg.read_tensors([tmp_path / "gap"], SMALL).errors[0], MissingSlicesError)
    batch = medimg.read_tensors([tmp_path / "gap"], SMALL, reading={"on_missing": "keep"})
    assert batch.counts == (5,)


def test_no_patient_in_texts(folders: list[Path]) -> None:
    batch = medimg.read_tensors([folders[0], folders[3], folders[5]], SMALL)
    texts = [repr(batch), *map(str, batch.errors.values())]
    texts += [repr(one) for one in medimg.iter_tensors([folders[0], folders[5]], SMALL)]
    assert not any("sentinel" in text.lower() for text in texts)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_only_so_much_is_begun(workers: int) -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def work(n: int) -> int:
        with lock:
            begun.append(n)
        return n

    results = ordered_map(work, range(100), workers)
    for n in range(30):
        assert next(results) == n
        time.sleep(0.001)
        assert len(begun) <= n + 1 + workers + 2
    results.close()
    assert len(begun) <= 30 + workers + 2
    assert not [t for t in threading.enumerate() if t.name.startswith("medimg")]


def test_sources_are_taken_as_they_are_needed(root: Path) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Volume]:
        for n in range(10**9):
            taken.append(n)
            yield Volume(np.zeros((1, 1, 8, 8), np.int16), image_affine((1.0, 1.0, 1.0)), "CT", "HU")

    results = medimg.iter_tensors(endless(), SMALL, workers=2)
    for _ in range(3):
        next(results)
    del results
    assert len(taken) < 10


@pytest.mark.parametrize("workers", [1, 3])
def test_an_interrupt_ends_it(workers: int) -> None:
    begun: list[int] = []

    def work(n: int) -> int:
        begun.append(n)
        if n == 4:
            raise KeyboardInterrupt
        return n

    with pytest.raises(KeyboardInterrupt):
        list(ordered_map(work, range(1000), workers))
    assert len(begun) < 20
    assert not [t for t in threading.enumerate() if t.name.startswith("medimg")]


def test_threads_of_torch_are_shared_out_and_left_alone() -> None:
    before = torch.get_num_threads()
    inside = set(
        ordered_map(
            lambda _: torch.get_num_threads(), range(8), workers=max(2, before), initializer=share_cores
        )
    )
    assert inside == {1}
    assert torch.get_num_threads() == before
    other: list[int] = []
    thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert other == [before]


def test_order_whatever_takes_longest() -> None:
    def work(n: int) -> int:
        time.sleep(0.002 * (n % 3))
        return n

    assert list(ordered_map(work, range(20), workers=4)) == list(range(20))


def test_real_series_in_bulk(real_data: Path, tmp_path: Path) -> None:
    index = list(medimg.scan(real_data / "cls" / "kermany_cxr224_dev" / "dataset" / "train" / "NORMAL"))[:20]
    expected = torch.cat([SMALL(series) for series in index])
    for _ in range(2):
        batch = medimg.read_tensors(index, SMALL, cache=medimg.ImageCache(tmp_path, dtype="float32"))
        assert torch.equal(batch.tensor, expected)
