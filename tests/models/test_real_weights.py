from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import get_model_weights

from medimg import TransferClassifier
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
