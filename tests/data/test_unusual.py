"""Pictures under unusual circumstances: modes of torch, full disks, files that change, hostile numbers."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import medimg
from medimg.core.geometry import image_affine
from medimg.core.volume import Volume
from medimg.data.cache.image_cache import ImageCache
from medimg.errors import DecodeError, MedimgWarning, PreprocessError, ReadError
from medimg.preprocessing.preprocess import Preprocess
from tests.dicom_files import stack_pixels, write, write_stack
from tests.io.dicom.test_vendors import enhanced, frame, item

SMALL = Preprocess(size=16)
WORKERS = [1, 2]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for n in range(3):
        write_stack(tmp_path / f"s{n}", [2.0 * z for z in range(n + 2)], SeriesInstanceUID=f"1.3.{n}")
    return [tmp_path / f"s{n}" for n in range(3)]


def write_nifti(path: Path, array: Any, affine: Any = None, slope: float = 1.0) -> Path:
    image = nib.nifti1.Nifti1Image(array.transpose(2, 1, 0), np.eye(4) if affine is None else affine)
    image.header.set_slope_inter(slope, 0)
    nib.loadsave.save(image, path)
    return path


def volume(depth: int = 2) -> Volume:
    return Volume(np.zeros((1, depth, 8, 8), np.int16), image_affine((1.0, 1.0, 1.0)), "CT", "HU")


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("modes", list(product([False, True], repeat=2)))
def test_inference_mode(
    folders: list[Path], tmp_path: Path, workers: int, cached: bool, modes: tuple[bool, bool]
) -> None:
    made_in_it, read_in_it = modes
    sources = [folders[0], tmp_path / "gone", *folders[1:]]
    expected = torch.cat([SMALL(folder) for folder in folders])
    cache = ImageCache(tmp_path / "cache", dtype="float32") if cached else None
    with torch.inference_mode(made_in_it):
        out = torch.empty(20, 3, 16, 16)
    for given in (None, out):
        with torch.inference_mode(read_in_it):
            batch = medimg.read_tensors(sources, SMALL, out=given, workers=workers, cache=cache)
        assert list(batch.errors) == [1]
        assert torch.equal(batch.tensor, expected)
    with torch.inference_mode(read_in_it):
        assert torch.equal(SMALL(folders[0], out=out), SMALL(folders[0]))


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, "meta"])
def test_defaults_of_torch_change_nothing(
    folders: list[Path], tmp_path: Path, workers: int, cached: bool, kind: Any
) -> None:
    cache = ImageCache(tmp_path / "cache", dtype="float32") if cached else None
    expected = [SMALL(folder) for folder in folders]
    background = SMALL.background
    with ExitStack() as after:
        if kind == "meta":
            after.callback(torch.set_default_device, None)
            torch.set_default_device("meta")
        else:
            after.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(kind)
        found = list(medimg.iter_tensors([*folders, tmp_path / "gone"], SMALL, workers=workers, cache=cache))
        if kind != "meta":
            assert torch.equal(SMALL.background, background)
    assert {(one.tensor.dtype, one.tensor.device.type) for one in found} == {(torch.float32, "cpu")}
    assert all(torch.equal(one.tensor, tensor) for one, tensor in zip(found, expected, strict=False))


def test_a_buffer_that_wants_gradients_is_refused(folders: list[Path]) -> None:
    with pytest.raises(PreprocessError, match="must not require gradients"):
        SMALL(folders[0], out=torch.empty(4, 3, 16, 16, requires_grad=True))


def test_a_disk_that_is_full(folders: list[Path], tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="this system has no limits for files")
    cache = ImageCache(tmp_path / "cache")
    recipe = Preprocess(size=64)
    expected = recipe(folders[0])
    with ExitStack() as after:
        after.callback(signal.signal, signal.SIGXFSZ, signal.signal(signal.SIGXFSZ, signal.SIG_IGN))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        after.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        with pytest.warns(MedimgWarning, match="images can't be cached"):
            (found,) = medimg.read_tensors(folders[:1], recipe, cache=cache)
    assert (found - expected).abs().max() < 0.002
    assert not [path for path in Path(cache.folder).rglob("*") if path.is_file()]


def file_of(*kinds: str, spacing: float, number: int) -> Any:
    """A file of a series of each kind, in the same places."""
    frames = []
    for n, kind in enumerate(kinds):
        for z in range(3):
            _, groups = frame(2.0 * z, 0)
            groups.MRImageFrameTypeSequence = [
                item(FrameType=["ORIGINAL", "PRIMARY", "M", "NONE"], ComplexImageComponent=kind)
            ]
            frames.append((stack_pixels(2.0 * z) + np.uint16(2000 * n), groups))
    made = enhanced(frames, InstanceNumber=number)
    made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [spacing, spacing]
    return made


def test_series_of_one_file_are_told_apart_whatever_lies_beside(tmp_path: Path) -> None:
    write(file_of("MAGNITUDE", "PHASE", spacing=0.8, number=2), tmp_path / "scans" / "a.dcm")
    alone = list(medimg.scan(tmp_path / "scans"))
    assert len(alone) == 2
    write(file_of("MAGNITUDE", spacing=0.5, number=1), tmp_path / "scans" / "b.dcm")
    together = list(medimg.scan(tmp_path / "scans"))
    assert {series.uid for series in alone} < {series.uid for series in together}
    recipe = SMALL.replace(window=medimg.Window(2500, 5000))
    cache = ImageCache(tmp_path / "cache", dtype="float32")
    medimg.read_tensors(alone, recipe, cache=cache)
    cached = medimg.read_tensors(together, recipe, cache=cache)
    plain = medimg.read_tensors(together, recipe)
    assert not plain.errors
    assert torch.equal(cached.tensor, plain.tensor)


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_header_that_changed_since_the_scan(tmp_path: Path, packed: str) -> None:
    array = np.arange(5 * 24 * 24, dtype=np.int16).reshape(5, 24, 24)
    path = write_nifti(tmp_path / f"a.nii{packed}", array)
    before = medimg.scan(path)[0]
    write_nifti(path, array, slope=0.5)
    recipe = SMALL.replace(window=medimg.Window.preset("bone"))
    cache = ImageCache(tmp_path / "cache", dtype="float32")
    batch = medimg.read_tensors([before], recipe, cache=cache)
    assert isinstance(batch.errors[0], DecodeError)
    assert "scan again" in str(batch.errors[0])
    with pytest.raises(DecodeError, match="changed"):
        before.read()
    fresh = medimg.scan(path)[0]
    assert torch.equal(medimg.read_tensors([fresh], recipe, cache=cache).tensor, recipe(fresh))


def test_suv_of_what_has_none_are_refused_in_pieces_too(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", np.zeros((80, 256, 256), np.int16))
    recipe = SMALL.replace(window=medimg.Window.preset("lung"))
    assert not medimg.read_tensors([path], recipe).errors
    batch = medimg.read_tensors([path], recipe, reading={"values": "suv"})
    assert isinstance(batch.errors[0], ReadError)


def test_more_pictures_than_there_can_be_are_the_error_of_one_source(
    folders: list[Path], tmp_path: Path
) -> None:
    far = write_nifti(tmp_path / "far.nii", np.zeros((40, 8, 8), np.int16), np.diag([1.0, 1.0, 1e9, 1.0]))
    recipe = SMALL.replace(spacing=1.0, window=medimg.Window.preset("lung"))
    for found in (
        medimg.read_tensors([far, folders[0]], recipe).errors,
        {one.index: one.error for one in medimg.iter_tensors([far, folders[0]], recipe) if one.error},
    ):
        assert list(found) == [0]
        assert isinstance(found[0], PreprocessError)
    for refused in (lambda: recipe(far), lambda: recipe.count(medimg.scan(far)[0])):
        with pytest.raises(PreprocessError, match="coarser spacing"):
            refused()


def test_more_memory_than_there_is_is_the_error_of_one_source(folders: list[Path]) -> None:
    huge = Preprocess(size=16384)
    many = volume(4000)
    found = medimg.iter_tensors([many], huge)
    assert [type(one.error) for one in found] == [PreprocessError]
    with pytest.raises(PreprocessError, match="no memory"):
        huge.render(many)


class Lazy(Sequence[Any]):
    """A collection that makes its volumes when they are asked for."""

    def __init__(self) -> None:
        self.made = 0

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError
        self.made += 1
        return volume(1)


@pytest.mark.parametrize("workers", WORKERS)
def test_a_collection_is_not_taken_all_at_once(workers: int) -> None:
    sources = Lazy()
    results: Iterator[Any] = medimg.iter_tensors(sources, SMALL, workers=workers)
    for _ in range(3):
        next(results)
    assert sources.made <= 3 + workers + 2
    del results
