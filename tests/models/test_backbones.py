from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model, get_model_weights

from medimg import Preprocess, TransferClassifier
from medimg.errors import PreprocessError, TrainingError, WeightsUnavailableError
from medimg.models.backbones.architecture import (
    Architecture,
    architecture_for,
    backbone_names,
    build_backbone,
    check_backbone,
    default_recipe,
    resolve_weights,
)
from medimg.models.backbones.heads import head_logits
from tests.models.fakes import classifier
from tests.models.networks import NAMES, no_storage, shapes


@pytest.mark.parametrize("name", NAMES)
def test_one_rule_finds_every_head(name: str) -> None:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with no_storage():
        model = TransferClassifier(name, classes=("a", "b", "c"), weights=None)
        original = get_model(name, weights=None, **options)
    heads = [m for m in original.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    last = heads[-1]
    assert last.weight.shape[0] == 1000
    assert type(model.head) is type(last)
    assert model.head.weight.shape == (3, *last.weight.shape[1:])
    # nothing else is gone but the auxiliary heads of GoogLeNet and Inception
    ours = sum(p.numel() for p in model.backbone.parameters())
    auxiliary = sum(
        p.numel() for n, p in original.named_parameters() if n.startswith(("aux1.", "aux2.", "AuxLogits."))
    )
    theirs = sum(p.numel() for p in original.parameters()) - sum(p.numel() for p in last.parameters())
    assert ours == theirs - auxiliary


def test_all_backbones_are_covered() -> None:
    assert len(backbone_names()) >= 80


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 64),
        ("squeezenet1_1", 64),
        ("mobilenet_v3_small", 64),
        ("efficientnet_b0", 64),
        ("densenet121", 64),
        ("shufflenet_v2_x0_5", 64),
        ("googlenet", 64),
        ("inception_v3", 75),
        ("mnasnet0_5", 64),
        ("regnet_y_400mf", 64),
        ("convnext_tiny", 64),
        ("swin_t", 64),
        ("vit_b_32", 64),
        ("alexnet", 64),
    ],
)
def test_forward_and_backward(name: str, size: int) -> None:
    model = classifier(name, preprocess=Preprocess(size=size)).train()
    x = torch.randn(2, 3, size, size)
    logits = model(x)
    assert logits.shape == (2, 2)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    with torch.no_grad():
        embedding = model.embed(x)
        assert embedding.ndim == 2
        assert torch.equal(head_logits(model.head, embedding), model(x))


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "squeezenet1_1"])
def test_body_and_head_compute_what_torchvision_does(name: str) -> None:
    options = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    original: Any = get_model(name, weights=None, **options).eval()
    parts = build_backbone(Architecture(name), initialize=False)
    state = original.state_dict()
    head = {n.rpartition(".")[2]: v for n, v in state.items() if n.startswith(f"{parts.head_name}.")}
    parts.head.load_state_dict(head)
    body = {n: v for n, v in state.items() if not n.startswith(f"{parts.head_name}.")}
    parts.body.load_state_dict(body)
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        logits = head_logits(parts.head, parts.body.eval()(x))
        expected = original(x)
    if name == "squeezenet1_1":
        # torchvision clips each position at 0 before it averages: undo that by the same layers without it
        with torch.no_grad():
            maps = original.classifier[1](original.features(x))
            expected = F.adaptive_avg_pool2d(maps, 1).flatten(1)
        assert (logits < 0).any()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_input_transform_belongs_to_pretrained_weights(name: str, tmp_path: Path) -> None:
    with no_storage():
        expected = get_model(name, weights=None, init_weights=False).state_dict()
    assert any(key.startswith(("aux1.", "AuxLogits.")) for key in expected)
    torch.save(
        {key: torch.zeros(t.shape, dtype=t.dtype) for key, t in expected.items()}, tmp_path / "mine.pth"
    )
    recipe = Preprocess(size=96)
    loaded = TransferClassifier(name, classes=("a", "b"), weights=tmp_path / "mine.pth", preprocess=recipe)
    assert getattr(loaded.backbone, "transform_input", None) is True
    assert getattr(shapes(name).backbone, "transform_input", None) is False
    path = loaded.save(tmp_path / "model.safetensors")
    assert getattr(TransferClassifier.load(path).backbone, "transform_input", None) is True


@pytest.mark.parametrize(
    ("name", "weights", "size", "mean"),
    [
        ("resnet50", "DEFAULT", 224, 0.485),
        ("efficientnet_b3", "DEFAULT", 300, 0.485),
        ("inception_v3", "DEFAULT", 299, 0.485),
        ("efficientnet_v2_l", "DEFAULT", 480, 0.5),
        ("efficientnet_v2_l", "./mine.pth", 224, 0.5),
        ("swin_v2_t", "DEFAULT", 256, 0.485),
        ("efficientnet_b3", None, 224, 0.485),
        ("vit_b_16", "IMAGENET1K_V1", 224, 0.485),
    ],
)
def test_default_recipe(name: str, weights: str | None, size: int, mean: float) -> None:
    recipe = default_recipe(name, resolve_weights(name, weights))
    assert recipe.size == size
    assert isinstance(recipe.mean, tuple)
    assert recipe.mean[0] == mean


def test_swag_end_to_end_has_its_own_size() -> None:
    source = resolve_weights("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", accept_license=True)
    assert default_recipe("vit_b_16", source).size == 384


@pytest.mark.usefixtures("narrow")
def test_vit_is_built_for_the_size_of_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    with torch.device("meta"):
        shapes = get_model("vit_b_32", weights=None, image_size=96).state_dict()
    torch.save({name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}, path)
    with pytest.raises(PreprocessError, match=r"96×96 only.*size=96"):
        TransferClassifier("vit_b_32", classes=("a", "b"), weights=path, preprocess=Preprocess(size=224))
    # a recipe that nobody gave follows the weights
    for recipe in (None, Preprocess(size=96)):
        model = TransferClassifier("vit_b_32", classes=("a", "b"), weights=path, preprocess=recipe)
        assert model.architecture.image_size == 96
        assert model.preprocess == Preprocess(size=96)


def no_download(*_: Any, **__: Any) -> None:
    raise AssertionError("nothing is fetched")


@pytest.mark.parametrize("name", backbone_names())
def test_weights_say_size_normalization_and_license(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_download)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_download)
    for entry in get_model_weights(name):
        transforms = entry.transforms()
        licensed = entry.meta.get("license")
        assert (licensed is not None) == ("SWAG" in entry.name)
        if licensed is not None:
            with pytest.raises(WeightsUnavailableError, match=f"{licensed}.*accept_license=True"):
                TransferClassifier(name, classes=("a", "b"), weights=entry.name)
        source = resolve_weights(name, entry.name, accept_license=True)
        assert source is not None
        assert source.license == licensed
        recipe = default_recipe(name, source)
        assert recipe.hw == (transforms.crop_size[0],) * 2
        assert (recipe.mean, recipe.std) == (tuple(transforms.mean), tuple(transforms.std))
        architecture = architecture_for(name, weights=source, state=None, recipe=recipe)
        assert (architecture.image_size is not None) == name.startswith("vit_")
        if name.startswith("vit_") or name == "maxvit_t":
            other = Preprocess(size=recipe.hw[0] - 14)
            with pytest.raises(PreprocessError, match=f"×{recipe.hw[0]} only.*size={recipe.hw[0]}"):
                TransferClassifier(
                    name, classes=("a", "b"), weights=entry, preprocess=other, accept_license=True
                )


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_b_16", 65, "multiple of 16"),
        ("vit_b_16", (64, 96), "square"),
        ("maxvit_t", 192, "224×224 only"),
        ("inception_v3", 64, "at least 75×75"),
        ("swin_t", 16, "at least 32×32"),
        ("alexnet", (224, 40), "at least 63×63"),
    ],
)
def test_sizes_that_a_network_cannot_take(name: str, size: int | tuple[int, int], message: str) -> None:
    with pytest.raises(PreprocessError, match=message):
        classifier(name, preprocess=Preprocess(size=size))


def test_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(TrainingError, match="resnet50"):
        check_backbone("ResNet50")
    with pytest.raises(TrainingError, match="expected one of alexnet"):
        check_backbone("@@@")
