"""Where cells look is measured: kernels of trained networks are not centered where their strides say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn

from medimg import Preprocess, TransferClassifier, Volume, Window, explain
from medimg.core.geometry import image_affine
from medimg.saliency import explain as explain_module
from medimg.saliency._field_center import measure_field_centers
from medimg.saliency._receptive_field import Axis
from medimg.saliency._target_layer import Layer, find_layer
from tests.saliency.planted import on_patch
from tests.sampling import SLOW

SIZE = 224
SIDE = 64


class Strides(nn.Module):
    """Three padded convolutions of stride 2, whose kernels have all their weight at one place."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.steps = nn.Sequential(*[nn.Conv2d(3, 3, 3, stride=2, padding=1, bias=False) for _ in range(3)])
        for layer in self.steps.children():
            assert isinstance(layer, nn.Conv2d)
            layer.weight.data.zero_()
            layer.weight.data[:, :, row, column] = torch.eye(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.steps(x).mean(dim=(2, 3))
        return found


@pytest.mark.parametrize(("row", "column"), [(1, 1), (2, 1), (1, 2), (0, 0), (2, 2)])
def test_kernels_off_their_center_move_the_cells(row: int, column: int) -> None:
    network = Strides(row, column).eval()
    layer = find_layer(network, torch.randn(2, 3, 64, 48))
    assert layer.cells == (8, 6)
    assert layer.axes == (Axis(0.0, 8.0), Axis(0.0, 8.0)), "what strides and paddings say"
    found = measure_field_centers(network, layer, (64, 48)).axes
    # of three steps, by 1, 2 and 4 pixels
    for axis, place in zip(found, (row, column), strict=True):
        assert axis.start == pytest.approx(7 * (place - 1), abs=1e-6)
        assert axis.step == 8


def test_side_by_side_is_not_measured() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.Flatten())
    layer = find_layer(network, torch.randn(2, 3, 32, 32))
    network[0].register_forward_pre_hook(lambda *_: pytest.fail("pictures passed"))
    assert measure_field_centers(network, layer, (32, 32)) is layer


def test_measured_once_until_parameters_change() -> None:
    network = Strides(1, 1).eval()
    layer = find_layer(network, torch.randn(2, 3, 64, 64))
    passes: list[int] = []
    network.register_forward_hook(lambda *_: passes.append(1))
    first = measure_field_centers(network, layer, (64, 64), 16)
    assert measure_field_centers(network, layer, (64, 64), 16) == first
    assert len(passes) == 1
    with torch.no_grad():
        for step in network.steps.children():
            assert isinstance(step, nn.Conv2d)
            step.weight.copy_(step.weight.roll(1, dims=2))
    assert measure_field_centers(network, layer, (64, 64), 16).axes[0].start == pytest.approx(7, abs=1e-6)
    assert len(passes) == 2


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_batches_change_nothing(batch_size: int) -> None:
    layer = find_layer(Strides(2, 1).eval(), torch.randn(2, 3, 64, 64))
    sizes: set[int] = set()
    network = Strides(2, 1).eval()
    network.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
    found = measure_field_centers(network, layer, (64, 64), batch_size).axes
    assert found[0].start == pytest.approx(7, abs=1e-6)
    assert found[1].start == pytest.approx(0, abs=1e-6)
    assert max(sizes) <= batch_size


def test_what_nothing_reaches_stays_where_strides_say() -> None:
    network = Strides(1, 1).eval()
    for parameter in network.parameters():
        parameter.data.zero_()
    layer = find_layer(network, torch.randn(2, 3, 64, 64))
    assert measure_field_centers(network, layer, (64, 64)).axes == layer.axes


@pytest.mark.usefixtures("narrow")
def test_random_networks_look_where_strides_say() -> None:
    torch.manual_seed(0)
    model = TransferClassifier("resnet18", classes=["a", "b"], weights=None).eval()
    layer = find_layer(model.backbone, torch.randn(2, 3, SIZE, SIZE))
    for axis, strides in zip(
        measure_field_centers(model.backbone, layer, (SIZE, SIZE)).axes, layer.axes, strict=True
    ):
        assert strides.start == 0
        assert abs(axis.start) < 6, "cells are 32 pixels wide"


def chest_pictures(root: Path, count: int) -> tuple[Volume, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Real chest X-rays, every second with a checkerboard on it: slices, labels, and where."""
    rng = np.random.default_rng(0)
    files = sorted((root / "cls" / "kermany_cxr224_dev").rglob("*.jpeg"))
    chosen = [files[n] for n in rng.permutation(len(files))[:count]]
    array = np.stack([_gray(name) for name in chosen])
    labels, places = np.arange(count) % 2, rng.integers(0, SIZE - SIDE, (count, 2), endpoint=True)
    y, x = np.mgrid[:SIDE, :SIDE]
    board = np.where((y // 8 + x // 8) % 2, 230, 20)
    for n in np.flatnonzero(labels):
        row, column = places[n]
        array[n, row : row + SIDE, column : column + SIDE] = board
    return Volume(array[None], image_affine()), labels, places


def _gray(name: Path) -> npt.NDArray[np.float32]:
    with Image.open(name) as picture:
        return np.asarray(picture.convert("L").resize((SIZE, SIZE)), np.float32)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "squeezenet1_1",
            marks=pytest.mark.skipif(not SLOW, reason="a second network: set MEDIMG_SLOW=1"),
        ),
        "mobilenet_v2",
    ],
)
def test_pretrained_networks_on_real_pictures(
    real_data: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ImageNet weights, a head fitted on other pictures: the heat lies on what was planted."""
    (weights,) = (real_data / "weights" / name).glob("*.pth")
    recipe = Preprocess(window=Window.from_range(0, 255), size=SIZE)
    model = TransferClassifier(name, classes=["plain", "board"], weights=weights, preprocess=recipe).eval()
    n, trained = (100, 60) if SLOW else (48, 32)
    volume, labels, places = chest_pictures(real_data, n)
    with torch.no_grad():
        x = torch.cat([model.embed(part) for part in model.preprocess(volume).split(16)]).numpy()
    fit = LogisticRegression(C=0.01, max_iter=2000).fit(x[:trained], labels[:trained])
    assert fit.score(x[trained:], labels[trained:]) > 0.95
    weight, bias = (np.concatenate([-v, v]) / 2 for v in (fit.coef_, fit.intercept_))
    model.head.weight.data.copy_(torch.from_numpy(weight).reshape(model.head.weight.shape))
    assert model.head.bias is not None
    model.head.bias.data.copy_(torch.from_numpy(bias))
    shown = [i for i in range(trained, n) if labels[i]]
    shown_volume = volume.take(shown)

    def hits() -> Any:
        return on_patch(explain(model, shown_volume, "board"), places[shown], SIDE).mean()

    assert hits() >= 0.95
    if name == "mobilenet_v2":
        monkeypatch.setattr(explain_module, "measure_field_centers", lambda _backbone, layer, *_: layer)
        assert hits() < 0.9, "where its strides say, a trained network does not look"


def test_layers_of_tokens_can_be_measured() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = Strides(2, 1).steps
            self.norm = nn.LayerNorm(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens: torch.Tensor = self.norm(self.stem(x).flatten(2).transpose(1, 2))
            return tokens.mean(dim=1)

    network = Tokens().eval()
    layer = find_layer(network, torch.randn(2, 3, 64, 64))
    assert layer.layout == "tokens"
    assert isinstance(layer, Layer)
    assert measure_field_centers(network, layer, (64, 64)).axes[0].start == pytest.approx(7, abs=1e-3)


def test_last_layer_with_a_grid_is_found() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = find_layer(body, torch.randn(1, 3, 16, 12))
    assert (found.name, found.cells, found.axes[0]) == ("1", (14, 10), Axis(start=1.0, step=1.0))


def test_tokens_and_trailing_channels_become_maps() -> None:
    tokens = Layer("blocks.3.norm", (2, 3), "tokens")
    assert tokens.maps(torch.zeros(5, 1 + 6, 8)).shape == (5, 8, 2, 3)
    assert Layer("norm", (2, 3), "channels last").maps(torch.zeros(5, 2, 3, 8)).shape == (5, 8, 2, 3)
