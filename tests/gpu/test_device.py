"""
What runs on a GPU gives what the CPU gives.

Without a GPU the same tests run on the CPU. They need neither real scans nor the test extra beyond pytest:
``python -m pytest tests/gpu``.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import medimg
from medimg import Preprocess, TransferClassifier, Volume
from medimg.core.geometry import image_affine
from medimg.data.augmentation.random_scan import make_augmentation
from medimg.data.dataloader import EpochSampler, make_training_loader
from medimg.preprocessing.output_buffer import Output
from medimg.preprocessing.render import render
from medimg.preprocessing.resample_tensor import resample_tensor
from tests.models.fakes import images
from tests.models.small_network import make_network

_REPOSITORY = Path(__file__).parents[2]
_ON_GPU = torch.cuda.is_available()

# libraries warn of much on a GPU, such as of matrix products that could be rounded more
pytestmark = pytest.mark.filterwarnings("default" if _ON_GPU else "error")


def ct(depth: int = 6, dtype: Any = np.int16, channels: int = 1) -> Volume:
    """A CT with bone, air and noise."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 300, (channels, depth, 61, 47))
    values[:, :, 20:40, 10:30] += 700
    if np.dtype(dtype).kind == "u":
        values = values.clip(0)
    return Volume(values.astype(dtype), image_affine((3.0, 0.7, 0.9)), "CT", "HU")


@pytest.fixture
def model() -> TransferClassifier:
    torch.manual_seed(0)
    found = TransferClassifier(
        make_network(), classes=["a", "b"], weights=None, preprocess=Preprocess(size=64)
    )
    found.weights_name = None
    return found


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8, np.float32])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"window": ("lung", "bone", "brain"), "channels": "windows"},
        {"channels": "adjacent", "slices": 3},
        {"fit": "crop", "window": "percentile"},
        {"fit": "stretch", "size": (30, 90)},
        {"spacing": (2.0, 1.0, 1.0)},
        {"dims": 3, "size": (8, 40, 40)},
    ],
    ids=["plain", "windows", "adjacent", "crop", "stretch", "spacing", "3-D"],
)
def test_preprocessing(device: str, dtype: Any, fields: dict[str, Any]) -> None:
    recipe = Preprocess(**{"size": 56, "window": medimg.Window(center=100, width=900), **fields})
    volume = ct(dtype=dtype)
    found = recipe(volume, device=device)
    assert found.device.type == device
    assert found.dtype == torch.float32
    assert (found.cpu() - recipe(volume)).abs().max() <= 2e-3
    rendered = render(recipe, volume, Output.of(device, normalized=False))
    assert (rendered.planes.cpu() - recipe.render(volume).planes).abs().max() <= 2e-3


def test_a_buffer_on_the_device(device: str) -> None:
    recipe = Preprocess(size=40, slices=3)
    buffer = torch.empty(recipe(ct()).shape, device=device)
    found = recipe(ct(), out=buffer)
    assert found.data_ptr() == buffer.data_ptr()
    assert (found.cpu() - recipe(ct())).abs().max() <= 2e-3


@pytest.mark.parametrize("spacing", [(1.5, 1.0, 1.0), (6.0, 2.0, 0.5)])
def test_resampling(device: str, spacing: tuple[float, float, float]) -> None:
    volume = ct(dtype=np.float32)
    values = torch.from_numpy(volume.array.copy()).to(device)
    found = resample_tensor(values, volume.spacing, spacing).values
    expected = volume.resample(spacing=spacing).array
    assert found.device.type == device
    assert np.abs(found.cpu().numpy() - expected).max() <= 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("modality", ["CT", "MR", "DX"])
def test_augmentation(device: str, modality: str) -> None:
    """It runs where the images are, draws the same numbers there, and leaves intensities in their range."""
    recipe = Preprocess(size=64)
    augment: Any = make_augmentation("auto", recipe, [modality])
    batch = recipe(ct(8))
    draw = [augment(batch.to(place), torch.Generator().manual_seed(3)) for place in (device, "cpu")]
    assert draw[0].device.type == device
    assert draw[0].shape == batch.shape
    assert torch.isfinite(draw[0]).all()
    assert (draw[0].cpu() - draw[1]).abs().max() <= 2e-2
    assert not torch.equal(draw[1], batch)


def test_scores_embeddings_and_saliency(device: str, model: TransferClassifier) -> None:
    sources = [ct(4), ct(7, np.uint16)]
    expected = model.predict(sources)
    rows = medimg.embed(model, sources).array
    heat = medimg.explain(model, sources[0], slices=[2])
    there = copy.deepcopy(model).to(device)
    assert np.allclose(there.predict(sources)[["p_a", "p_b"]], expected[["p_a", "p_b"]], atol=2e-3)
    assert np.allclose(medimg.embed(there, sources).array, rows, atol=2e-3 * np.abs(rows).max())
    found = medimg.explain(there, sources[0], slices=[2])
    assert np.allclose(found.heat, heat.heat, atol=2e-2)


def test_files_do_not_depend_on_the_device(device: str, model: TransferClassifier, tmp_path: Path) -> None:
    medimg.register_backbone("gpu_test_network", make_network, size=64)
    found = TransferClassifier("gpu_test_network", classes=["a", "b"], weights=None)
    found.load_state_dict(model.state_dict())
    here = found.save(tmp_path / "cpu.safetensors")
    there = found.to(device).save(tmp_path / "device.safetensors")
    assert here.read_bytes() == there.read_bytes()
    loaded = medimg.load(there)
    assert next(loaded.parameters()).device.type == "cpu"


def precisions() -> list[Any]:
    half = pytest.param("16-mixed", marks=pytest.mark.skipif(not _ON_GPU, reason="needs a GPU"))
    return ["bf16-mixed", half]


@pytest.mark.parametrize("precision", precisions())
def test_mixed_precision_converges_as_full_precision(
    device: str, model: TransferClassifier, precision: str
) -> None:
    found = {}
    for one in (32, precision):
        trained = copy.deepcopy(model).to(device)
        result = medimg.fine_tune(
            trained, images(48), images(24, prefix="val", seed=1), head_epochs=0, epochs=12, batch_size=8,
            lr=1e-2, precision=one, augment=None, progress=False,
        )  # fmt: skip
        assert next(trained.parameters()).dtype == torch.float32
        found[one] = [row["train_loss"] for row in result.history], result.best["val_loss"]
    (losses, best), (mixed, mixed_best) = found.values()
    assert losses[-1] < 0.5 * losses[0]
    assert np.allclose(losses, mixed, atol=0.05)
    assert abs(best - mixed_best) < 0.05


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    "compile", [False, pytest.param(True, marks=pytest.mark.skipif(not _ON_GPU, reason="minutes on a CPU"))]
)
def test_memory_format_and_compilation_change_nothing(
    device: str, model: TransferClassifier, channels_last: bool, compile: bool
) -> None:
    settings: dict[str, Any] = {
        "head_epochs": 0, "epochs": 2, "batch_size": 8, "lr": 1e-3, "augment": None, "precision": 32,
        "progress": False,
    }  # fmt: skip
    plain, other = copy.deepcopy(model).to(device), copy.deepcopy(model).to(device)
    expected = medimg.fine_tune(plain, images(24), images(12, prefix="val"), **settings)
    found = medimg.fine_tune(
        other, images(24), images(12, prefix="val"), channels_last=channels_last, compile=compile, **settings
    )
    assert found.best["val_loss"] == pytest.approx(expected.best["val_loss"], abs=5e-3)
    layers = [module for module in other.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(layer.weight.is_contiguous() for layer in layers)


def test_batches_are_pinned(device: str) -> None:
    loader = make_training_loader(
        images(8), batch_size=4, workers=0, pin_memory=device == "cuda", sampler=EpochSampler(8, seed=0)
    )
    for batch in loader:
        assert batch.images.is_pinned() == (device == "cuda")
        copied = batch.images.to(device, non_blocking=True)
        assert torch.equal(copied.cpu(), batch.images)


def test_memory_stays_bounded(device: str, model: TransferClassifier) -> None:
    there = copy.deepcopy(model).to(device)
    volume = ct(20)
    there.predict([volume])
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    for _ in range(5):
        there.predict([volume])
    after = torch.cuda.memory_allocated() if device == "cuda" else 0
    assert after <= before + 2**20


_SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
import medimg
from tests.models.fakes import classifier, images
if __name__ == "__main__":
    count = int(sys.argv[1])
    model = classifier("squeezenet1_1")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    result = medimg.fine_tune(
        model, images(24), images(9, prefix="val", seed=1), head_epochs=0, epochs=2, batch_size=8 // count,
        devices=count, strategy="ddp" if count > 1 else "auto", precision=32, augment=None, progress=False,
        trainer_kwargs={"accelerator": accelerator},
    )
    if os.environ.get("LOCAL_RANK", "0") == "0":
        Path(f"{count}.json").write_text(json.dumps([row["train_loss"] for row in result.history]))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two GPUs; tests/training has it for processes"
)
def test_two_devices_train_as_one(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(_SCRIPT)
    for count in ("1", "2"):
        subprocess.run(
            [sys.executable, "train.py", count], cwd=tmp_path, timeout=300, check=True,
            env={**os.environ, "PYTHONPATH": str(_REPOSITORY)},
        )  # fmt: skip
    alone, together = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert np.allclose(alone, together, atol=2e-3)
