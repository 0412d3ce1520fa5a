from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import get_model_weights

from medimg import Preprocess, TransferClassifier
from medimg.models.backbones.architecture import Architecture, build_backbone, resolve_weights
from medimg.models.backbones.heads import head_logits


def probe_images(folder: Path) -> list[tuple[Image.Image, int]]:
    with (folder / "expected_top1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    return [(Image.open(folder / r["file"]).convert("RGB"), int(r["imagenet_index"])) for r in rows]


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2"])
def test_loaded_weights_still_recognize_photographs(real_data: Path, name: str) -> None:
    (path,) = (real_data / "weights" / name).glob("*.pth")
    model = TransferClassifier(name, classes=[f"class {n}" for n in range(1000)], weights=path).eval()
    assert model.weights_name == path.name
    source = resolve_weights(name, path)
    assert source is not None
    _keep_head(model, dict(source.load().state))
    prepare = get_model_weights(name)["IMAGENET1K_V1"].transforms()
    for image, expected in probe_images(real_data / "weights" / "probe_images_dev"):
        x: Tensor = prepare(image)[None]
        with torch.no_grad():
            assert int(model(x).argmax()) == expected
            assert int(head_logits(model.head, model.embed(x)).argmax()) == expected


def _keep_head(model: TransferClassifier, weights: dict[str, Tensor]) -> None:
    name = build_backbone(Architecture(model.backbone_name)).head_name
    model.head.load_state_dict({part: weights[f"{name}.{part}"] for part in ("weight", "bias")})


@pytest.mark.parametrize("wrapping", ["Lightning", "MoCo", "EMA", "features"])
def test_wrapped_weights_compute_the_same(real_data: Path, tmp_path: Path, wrapping: str) -> None:
    (path,) = (real_data / "weights" / "squeezenet1_1").glob("*.pth")
    state = torch.load(path, weights_only=True)
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    wrapped: dict[str, object] = {
        "Lightning": {"state_dict": {f"model.{n}": v for n, v in state.items()}, "hyper_parameters": {}},
        "MoCo": {f"module.encoder_{k}.{n}": v for k, s in (("k", zeros), ("q", state)) for n, v in s.items()},
        "EMA": {"state_dict": zeros, "state_dict_ema": state},
        "features": {n.removeprefix("features."): v for n, v in state.items() if n.startswith("features.")},
    }
    torch.save(wrapped[wrapping], tmp_path / "mine.pth")
    recipe = Preprocess(size=64)
    plain, other = (
        TransferClassifier("squeezenet1_1", classes=["a", "b"], weights=file, preprocess=recipe).eval()
        for file in (path, tmp_path / "mine.pth")
    )
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(plain.embed(images), other.embed(images))
