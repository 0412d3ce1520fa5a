"""Networks of other sources: timm, transformers, torchxrayvision, RadImageNet, folders, modules."""

from __future__ import annotations

import json
import socket
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet50

import medimg
from medimg import Preprocess, TransferClassifier
from medimg.errors import (
    CheckpointError,
    MedimgError,
    MissingDependencyError,
    PreprocessError,
    TrainingError,
    WeightsUnavailableError,
)
from medimg.io.files.hub_files import cached_file
from medimg.models.backbones import _hf_source, _timm_source, architecture, build_limits, registry
from medimg.models.backbones.architecture import find_backbone, resolve_weights
from tests.models.networks import digests, no_storage, step

CLASSES = ("a", "b", "c")
XRV = "torchxrayvision:densenet121-res224-all"


class Small(nn.Module):
    """A network of the user's own."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, 8, 3, stride=2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(self.norm(self.conv(x)).relu()).relu().mean(dim=(2, 3))
        found: torch.Tensor = self.fc(y)
        return found


def same(model: TransferClassifier, other: TransferClassifier) -> None:
    """Whether two models give bit-identical logits."""
    x = torch.randn(2, *model.preprocess.image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.eval()(x), other.eval()(x))


def stays_frozen(model: TransferClassifier) -> None:
    """Whether a training step leaves a frozen backbone bit-identical, and changes the head."""
    model.freeze()
    body, head = digests(model.backbone.state_dict()), digests(model.head.state_dict())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, *model.preprocess.image_shape, generator=generator)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    nn.functional.cross_entropy(model.train()(x), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert digests(model.backbone.state_dict()) == body
    assert digests(model.head.state_dict()) != head


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:", "no classification model 'timm:'.*timm:, hf:, torchxrayvision:, radimagenet:"),
        ("tim:resnet18", "no classification model"),
        ("torchxrayvision:densenet121-res224-al", "did you mean 'densenet121-res224-all'"),
        ("radimagenet:resnet18", "expected one of resnet50, densenet121, inception_v3"),
        ("hf:rad-dino", "hf:owner/name"),
        ("module:Small", r"medimg\.load\(path, backbone=network\)"),
    ],
)
def test_names_of_no_network(name: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TransferClassifier(name, classes=CLASSES)


@pytest.mark.parametrize(("name", "extra"), [("timm:resnet18", "timm"), ("hf:owner/name", "hf")])
def test_a_missing_library_is_named(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for library in ("timm", "transformers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=rf'pip install "medimg\[{extra}\]"'):
        TransferClassifier(name, classes=CLASSES)


def test_a_checkpoint_names_the_library_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = TransferClassifier(Small(), classes=CLASSES, preprocess=Preprocess(size=16))
    model.architecture = architecture.Architecture("timm:resnet18")
    model.backbone_library = "timm"
    path = model.save(tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match=r'timm.*pip install "medimg\[timm\]"'):
        medimg.load(path)


def test_a_network_itself(tmp_path: Path) -> None:
    network = Small()
    original = network.conv.weight
    model = TransferClassifier(network, classes=CLASSES, preprocess=Preprocess(size=32))
    assert model.backbone is network
    assert model.backbone_name == "module:Small"
    assert model.weights_name == "as built"
    assert model.head.weight.shape == (3, 8)
    assert model.stages == ("stem", "body")
    stays_frozen(model)
    assert network.conv.weight is original
    path = model.save(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"own \(Small\).*backbone=network"):
        medimg.load(path)
    same(model, medimg.load(path, backbone=Small()))
    other = Small()
    other.body = nn.Conv2d(4, 8, 5)
    with pytest.raises(CheckpointError, match="don't fit a module:Small"):
        medimg.load(path, backbone=other)
    plain = TransferClassifier("squeezenet1_1", classes=CLASSES, weights=None)
    with pytest.raises(CheckpointError, match="built from its name"):
        medimg.load(plain.save(tmp_path / "plain.safetensors"), backbone=Small())
    with pytest.raises(TrainingError, match="another classifier"):
        TransferClassifier(network, classes=CLASSES)


def test_a_network_itself_of_one_channel(tmp_path: Path) -> None:
    model = TransferClassifier(Small(1), classes=CLASSES)
    assert (model.preprocess.n_channels, model.architecture.channels) == (1, 1)
    path = model.save(tmp_path / "model.safetensors")
    same(model, medimg.load(path, backbone=Small(1)))
    with pytest.raises(TrainingError, match="must be 1"):
        TransferClassifier(Small(1), classes=CLASSES, in_channels=3)


def test_a_folded_network_of_ones_own(tmp_path: Path) -> None:
    network = Small().eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        network.fc = nn.Identity()  # type: ignore[assignment]  # no head
        expected = network(x.repeat(1, 3, 1, 1))
    network.fc = nn.Linear(8, 5)
    recipe = Preprocess(size=32, channels="single", mean=0.5, std=0.25)
    model = TransferClassifier(network, classes=CLASSES, in_channels=1, preprocess=recipe)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().embed(x), expected, rtol=1e-4, atol=1e-5)
    path = model.save(tmp_path / "model.safetensors")
    for given in (Small(), Small(1)):
        same(model, medimg.load(path, backbone=given))
    assert TransferClassifier(Small(), classes=CLASSES, in_channels=1).preprocess.n_channels == 1


def test_one_channel_of_a_checkpoint_of_three(tmp_path: Path) -> None:
    recipe = Preprocess(size=64, window="lung", mean=(0.3, 0.4, 0.5), std=(0.1, 0.2, 0.3))
    first = TransferClassifier("squeezenet1_1", classes=CLASSES, weights=None, preprocess=recipe)
    path = first.save(tmp_path / "first.safetensors")
    for backbone, weights in (("squeezenet1_1", path), (path, "DEFAULT")):
        model = TransferClassifier(backbone, classes=CLASSES, weights=weights, in_channels=1)
        expected = recipe.replace(channels="single", mean=0.4, std=0.2)
        assert model.preprocess.replace(mean=0.4, std=0.2) == expected
        assert model.preprocess.mean == pytest.approx((0.4,))
        assert (
            TransferClassifier(
                backbone, classes=CLASSES, weights=model.save(tmp_path / "one.safetensors")
            ).preprocess.n_channels
            == 1
        )


class Noisy(Small):
    """A network that adds noise, also in evaluation mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))


@pytest.mark.parametrize("features", [None, 5])
def test_a_network_that_is_random_in_evaluation_is_refused(features: int | None) -> None:
    medimg.register_backbone("noisy", Noisy, size=16, features=features)
    for backbone in ("noisy", Noisy()):
        with pytest.raises(TrainingError, match="another embedding each time for the same image"):
            TransferClassifier(backbone, classes=CLASSES, preprocess=Preprocess(size=16))


def test_a_network_without_values_is_refused() -> None:
    with pytest.raises(TrainingError, match="on the meta device"):
        TransferClassifier(Small().to("meta"), classes=CLASSES)


def test_a_checkpoint_is_a_backbone(tmp_path: Path) -> None:
    recipe = Preprocess(size=64, window="lung")
    first = TransferClassifier("squeezenet1_1", classes=CLASSES, weights=None, preprocess=recipe)
    path = first.save(tmp_path / "first.safetensors")
    for given in (path, str(path)):
        model = TransferClassifier(given, classes=("x", "y"))
        assert model.backbone_name == "squeezenet1_1"
        assert model.preprocess == recipe
        assert digests(model.backbone.state_dict()) == digests(first.backbone.state_dict())
    assert TransferClassifier(path, classes=("x", "y"), weights=None).weights_name is None


def test_paths_that_are_no_backbones(tmp_path: Path) -> None:
    torch.save(OrderedDict(a=torch.ones(2)), tmp_path / "plain.pth")
    (tmp_path / "folder").mkdir()
    for name, error, message in (
        ("plain.pth", TrainingError, "does not state of which network"),
        ("none.pth", WeightsUnavailableError, "no file or folder"),
        ("folder", TrainingError, "no config.json"),
    ):
        with pytest.raises(error, match=message):
            TransferClassifier(tmp_path / name, classes=CLASSES)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
def test_a_folded_stem_sees_one_channel_as_three(name: str, tmp_path: Path) -> None:
    recipe = Preprocess(size=64, mean=(0.5,) * 3, std=(0.25,) * 3)
    three = TransferClassifier(name, classes=CLASSES, weights=None, preprocess=recipe)
    path = three.save(tmp_path / "three.safetensors")
    one = TransferClassifier(
        name,
        classes=CLASSES,
        weights=path,
        in_channels=1,
        preprocess=recipe.replace(channels="single", mean=0.5, std=0.25),
    )
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        found, expected = one.eval().embed(x), three.eval().embed(x.repeat(1, 3, 1, 1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    same(one, medimg.load(one.save(tmp_path / "one.safetensors")))
    assert medimg.load(tmp_path / "one.safetensors").architecture.channels == 1
    stays_frozen(one)
    with pytest.raises(PreprocessError, match=r"model takes \(B, 1, H, W\)"):
        one(x.repeat(1, 3, 1, 1))


def test_the_default_preprocessing_of_a_folded_stem() -> None:
    model = TransferClassifier("squeezenet1_1", classes=CLASSES, weights=None, in_channels=1)
    assert model.preprocess == Preprocess(
        channels="single", mean=(0.485 + 0.456 + 0.406) / 3, std=(0.229 + 0.224 + 0.225) / 3
    )
    for wanted in (2, 0, True, "1"):
        with pytest.raises(TrainingError, match="in_channels of squeezenet1_1 must be 1 or 3"):
            TransferClassifier("squeezenet1_1", classes=CLASSES, weights=None, in_channels=wanted)  # type: ignore[arg-type]  # refused


@pytest.mark.usefixtures("narrow")
def test_torchxrayvision_is_built_without_the_library(tmp_path: Path) -> None:
    model = TransferClassifier(XRV, classes=CLASSES, weights=None, preprocess=None)
    assert model.preprocess == Preprocess(channels="single", mean=0.5, std=1 / 2048)
    # black is -1024 and white 1024, as the library has it
    assert model.preprocess.normalize(
        torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3)
    ).flatten().tolist() == [
        -1024,
        0,
        1024,
    ]
    assert model.backbone.features.conv0.weight.shape[1] == 1  # type: ignore[union-attr,index]  # a layer of torchvision
    same(model, medimg.load(model.save(tmp_path / "model.safetensors")))


def test_torchxrayvision_has_weights_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    source = resolve_weights(XRV, "DEFAULT")
    assert source is not None
    assert source.path.parent == tmp_path / ".torchxrayvision/models_data"
    assert source.url is not None
    assert source.url.endswith(source.path.name)
    assert source.license == "apache-2.0"
    with pytest.raises(WeightsUnavailableError, match="has no weights 'IMAGENET1K_V1'"):
        resolve_weights(XRV, "IMAGENET1K_V1")


def test_radimagenet_files_are_read_by_position(tmp_path: Path) -> None:
    with no_storage():
        shapes = resnet50().state_dict()
    names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool"]
    numbered = OrderedDict(
        (
            f"backbone.{names.index(name.partition('.')[0])}.{name.partition('.')[2]}",
            torch.zeros(v.shape, dtype=v.dtype),
        )
        for name, v in shapes.items()
        if not name.startswith("fc.")
    )
    numbered["backbone.0.weight"][:] = 7.0
    torch.save(numbered, tmp_path / "ResNet50.pt")
    model = TransferClassifier(
        "radimagenet:resnet50",
        classes=CLASSES,
        weights=tmp_path / "ResNet50.pt",
        preprocess=Preprocess(size=64),
    )
    assert bool((model.backbone.conv1.weight == 7.0).all())  # type: ignore[union-attr]  # a layer of torchvision
    assert find_backbone("radimagenet:resnet50").default_recipe(None, None).mean == (0.5,) * 3
    with pytest.raises(WeightsUnavailableError, match=r"weights=<path of the file>"):
        TransferClassifier("radimagenet:resnet50", classes=CLASSES)


def put_in_cache(cache: Path, repository: str, files: dict[str, str]) -> Path:
    """Write files of a repository as huggingface_hub keeps them."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("abc")
    (folder / "snapshots/abc").mkdir(parents=True)
    for name, text in files.items():
        (folder / "snapshots/abc" / name).write_text(text)
    return folder / "snapshots/abc"


def test_the_cache_of_the_hub_is_read_without_its_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = put_in_cache(tmp_path, "owner/name", {"pytorch_model.bin": "x"})
    names = ("model.safetensors", "pytorch_model.bin")
    assert cached_file("owner/name", names) == folder / "pytorch_model.bin"
    assert cached_file("owner/name@abc", names) == folder / "pytorch_model.bin"
    assert cached_file("owner/other", names) is None
    assert cached_file("owner/name@other", names) is None


def test_a_damaged_file_of_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from medimg.models.backbones.weights import WeightsSource

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = put_in_cache(tmp_path, "owner/name", {})
    blob = folder.parents[1] / "blobs" / ("0" * 64)
    blob.parent.mkdir()
    torch.save(OrderedDict(a=torch.ones(2)), blob)
    (folder / "pytorch_model.bin").symlink_to(blob)
    source = WeightsSource("owner/name", folder / "pytorch_model.bin", "https://huggingface.co/owner/name")
    with pytest.raises(
        WeightsUnavailableError, match=r"damaged: its SHA-256 starts with .* has it as 000000"
    ):
        source.load()


def test_paths_without_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lit.ckpt", "moco.pth.tar", "plain", "squeezenet1_1"):
        torch.save(TransferClassifier("squeezenet1_1", classes=CLASSES, weights=None).state_dict(), name)
    for name in ("lit.ckpt", "moco.pth.tar", "plain"):
        model = TransferClassifier("squeezenet1_1", classes=CLASSES, weights=name)
        assert model.weights_name == name
    with pytest.raises(
        WeightsUnavailableError, match=r"no file of weights at none\.ckpt.*the name of weights, or"
    ):
        TransferClassifier("squeezenet1_1", classes=CLASSES, weights="none.ckpt")
    with pytest.raises(WeightsUnavailableError, match="has no weights 'none'"):
        TransferClassifier("squeezenet1_1", classes=CLASSES, weights="none")
    (tmp_path / "folder").mkdir()
    with pytest.raises(TrainingError, match=r"the folder folder has no config\.json"):
        TransferClassifier("folder", classes=CLASSES)
    # names of networks stay names
    assert TransferClassifier("squeezenet1_1", classes=CLASSES, weights=None).weights_name is None


def test_advice_for_networks_themselves() -> None:
    class Probabilities(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).softmax(dim=1)

    class Encoder(Small):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Identity()  # type: ignore[assignment]  # no head
            self.norm_2 = nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.norm_2(self.body(self.conv(x))).mean(dim=(2, 3))
            return found

    recipe = Preprocess(size=32)
    for network in (Probabilities(), Encoder()):
        with pytest.raises(
            TrainingError, match=r'register it: medimg\.register_backbone\("name", build, .*features='
        ):
            TransferClassifier(network, classes=CLASSES, preprocess=recipe)
    with pytest.raises(TrainingError, match=r"found a class: pass Small\(\)"):
        TransferClassifier(Small, classes=CLASSES)  # type: ignore[arg-type]  # a class is refused


def test_a_recipe_of_three_channels_for_one() -> None:
    with pytest.raises(
        PreprocessError, match=r"model\.preprocess\.replace\(size=\.\.\.\).*without preprocess="
    ):
        TransferClassifier(
            "squeezenet1_1", classes=CLASSES, weights=None, in_channels=1, preprocess=Preprocess(size=64)
        )


def test_a_registered_network_of_one_channel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "_OWN", {})
    medimg.register_backbone("gray", lambda: Small(1), mean=(0.5,), std=(0.25,), size=32)
    model = TransferClassifier("gray", classes=CLASSES)
    assert model.preprocess == Preprocess(size=32, channels="single", mean=0.5, std=0.25)
    assert model.architecture.channels == 1
    stays_frozen(model)
    same(model, medimg.load(model.save(tmp_path / "model.safetensors")))
    with pytest.raises(PreprocessError, match="std"):
        medimg.register_backbone("other", lambda: Small(1), mean=(0.5,))


def test_advice_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"path of a folder with config\.json") as caught:
        TransferClassifier("hf:owner/name", classes=CLASSES, weights=None)
    assert "weights=None" not in str(caught.value)


# what follows needs the libraries


@pytest.fixture
def timm() -> Any:
    return pytest.importorskip("timm", reason="networks of timm need timm")


@pytest.mark.parametrize(("name", "size"), [("test_resnet", 64), ("test_vit", 64), ("test_convnext", 64)])
def test_timm(timm: Any, name: str, size: int, tmp_path: Path) -> None:
    recipe = Preprocess(size=size)
    model = TransferClassifier(f"timm:{name}", classes=CLASSES, weights=None, preprocess=recipe)
    assert model.backbone_name == f"timm:{name}"
    stays_frozen(model)
    logits = step(model.unfreeze())
    assert logits.shape == (2, 3)
    path = model.save(tmp_path / "model.safetensors")
    same(model, medimg.load(path))
    header = medimg.models.checkpoint.read_header(path)
    assert header["versions"]["timm"] == timm.__version__
    # other classes, from the checkpoint
    again = TransferClassifier(path, classes=("x", "y"))
    assert digests(again.backbone.state_dict()) == digests(model.backbone.state_dict())


def test_timm_reads_its_own_files(timm: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=7)
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    model = TransferClassifier("timm:test_vit", classes=CLASSES, weights=tmp_path / "vit.pth")
    x = torch.randn(2, *model.preprocess.image_shape)
    with torch.no_grad():
        expected = network.eval().forward_head(network.forward_features(x), pre_logits=True)
        assert torch.equal(model.eval().embed(x), expected)
    # position embeddings are resampled by timm for another size
    other = TransferClassifier(
        "timm:test_vit", classes=CLASSES, weights=tmp_path / "vit.pth", preprocess=Preprocess(size=96)
    )
    assert other.architecture.image_size == 96
    assert other(torch.randn(2, 3, 96, 96)).shape == (2, 3)
    same(other, medimg.load(other.save(tmp_path / "other.safetensors")))
    # one channel
    one = TransferClassifier("timm:test_vit", classes=CLASSES, weights=tmp_path / "vit.pth", in_channels=1)
    gray = torch.randn(2, 1, *model.preprocess.hw)
    with torch.no_grad():
        found, same_gray = one.eval().embed(gray), model.embed(gray.repeat(1, 3, 1, 1))
    torch.testing.assert_close(found, same_gray, rtol=1e-4, atol=1e-5)


def test_timm_refuses_what_does_not_fit(timm: Any, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(WeightsUnavailableError, match="don't fit timm:test_vit"):
        TransferClassifier("timm:test_vit", classes=CLASSES, weights=tmp_path / "resnet.pth")
    with pytest.raises(TrainingError, match=r"no network 'test_vi'.*did you mean 'test_vit"):
        TransferClassifier("timm:test_vi", classes=CLASSES)
    with pytest.raises(TrainingError, match="no weights 'nobody'"):
        TransferClassifier("timm:test_vit.nobody", classes=CLASSES)
    with pytest.raises(PreprocessError, match=r"takes square images; found .* 64×96"):
        TransferClassifier("timm:test_vit", classes=CLASSES, preprocess=Preprocess(size=(64, 96)))
    with pytest.raises(PreprocessError, match="at least 32×32"):
        TransferClassifier("timm:test_resnet", classes=CLASSES, preprocess=Preprocess(size=16))
    with pytest.raises(WeightsUnavailableError, match=r"dinov3-license.*accept_license=True"):
        TransferClassifier("timm:vit_base_patch16_dinov3.lvd1689m", classes=CLASSES)
    recipe = find_backbone("timm:vit_base_patch16_dinov3.lvd1689m").default_recipe(None, None)
    assert recipe.size == 256


@pytest.mark.parametrize(
    ("name", "side"), [("vit_tiny_patch16_224", 16), ("pit_ti_224", 8), ("swin_tiny_patch4_window7_224", 4)]
)
def test_timm_splits_the_whole_image_into_patches(timm: Any, name: str, side: int) -> None:
    source = find_backbone(f"timm:{name}")
    expected = rf"multiples of {side}; found .* 62×62.*replace\(size=64\)"
    with pytest.raises(PreprocessError, match=expected):
        source.plan(None, None, Preprocess(size=62))
    assert source.plan(None, None, Preprocess(size=64)).image_size == 64


def test_timm_models_of_cropped_images_still_load(
    timm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_timm_source, "_patch_side", lambda _: 1)
        model = TransferClassifier(
            "timm:vit_tiny_patch16_224", classes=CLASSES, weights=None, preprocess=Preprocess(size=60)
        )
    same(model, medimg.load(model.save(tmp_path / "model.safetensors")))


def test_timm_reports_what_a_file_has(timm: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = timm.create_model("test_resnet").state_dict()
    wrapped = {f"model.backbone.{name}": value for name, value in state.items()}
    extra = {"loss.weight": torch.ones(2), "model.projector.0.weight": torch.ones(2)}
    torch.save({"state_dict": {**wrapped, **extra}}, tmp_path / "lit.pth")
    with caplog.at_level("INFO"):
        model = TransferClassifier("timm:test_resnet", classes=CLASSES, weights=tmp_path / "lit.pth")
    report = model.weights_report
    assert report is not None
    assert (report.prefix, report.matched) == ("model.backbone.", report.total)
    heads = {f"model.backbone.{name}" for name in state if name not in model.backbone.state_dict()}
    assert set(report.left_out) == {*heads, *extra}
    assert "weights lit.pth:" in caplog.text
    assert "weights timm:" not in caplog.text
    # tensors that timm resamples
    vit = {f"net.{name}": value for name, value in timm.create_model("test_vit").state_dict().items()}
    torch.save({**vit, "loss.weight": torch.ones(2)}, tmp_path / "vit.pth")
    other = TransferClassifier(
        "timm:test_vit", classes=CLASSES, weights=tmp_path / "vit.pth", preprocess=Preprocess(size=96)
    ).weights_report
    assert other is not None
    assert (other.prefix, other.left_out) == ("net.", ("net.head.weight", "net.head.bias", "loss.weight"))


def test_timm_takes_a_part_of_a_file(timm: Any, tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    torch.save({n: v for n, v in state.items() if not n.startswith("layer4")}, tmp_path / "part.pth")
    path = tmp_path / "part.pth"
    with pytest.raises(WeightsUnavailableError, match=r"found, expected all: .*missing \(layer4"):
        TransferClassifier("timm:test_resnet", classes=CLASSES, weights=path)
    report = TransferClassifier(
        "timm:test_resnet", classes=CLASSES, weights=path, min_match=0.1
    ).weights_report
    assert report is not None
    assert report.missing
    assert all(name.startswith("layer4") for name in report.missing)
    wrong = timm.create_model("resnet10t").state_dict()
    torch.save(wrong, tmp_path / "wrong.pth")
    with pytest.raises(WeightsUnavailableError, match=r"wrong\.pth don't fit a timm:test_resnet: .*shape \("):
        TransferClassifier("timm:test_resnet", classes=CLASSES, weights=tmp_path / "wrong.pth")


def test_timm_takes_files_with_indexes_that_it_computes(timm: Any, tmp_path: Path) -> None:
    network = timm.create_model("swin_s3_tiny_224", img_size=64, depths=(1, 1, 1, 1), embed_dim=24)
    indexes = {n: v for n, v in network.named_buffers() if n not in network.state_dict()}
    assert indexes
    source = find_backbone("timm:swin_s3_tiny_224")
    plan = source.plan(None, None, Preprocess(size=64))
    plan = replace(plan, settings={"depths": (1, 1, 1, 1), "embed_dim": 24})
    parts = source.build(plan, None, initialize=False)
    report = architecture.load_backbone(
        parts,
        source.convert(parts, plan, OrderedDict({**network.state_dict(), **indexes})),
        backbone=source.name,
        source="swin.pth",
    )
    assert report.matched == report.total


def test_timm_has_weights_of_the_cache(timm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = put_in_cache(tmp_path, "timm/test_resnet.r160_in1k", {})
    network = timm.create_model("test_resnet")
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    model = TransferClassifier("timm:test_resnet", classes=CLASSES)
    assert model.weights_name == "timm:test_resnet.r160_in1k"
    body = model.backbone.state_dict()
    assert all(torch.equal(body[name], value) for name, value in network.state_dict().items() if name in body)


def test_a_folder_of_timm(timm: Any, tmp_path: Path) -> None:
    network = timm.create_model("test_resnet")
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    config = {"architecture": "test_resnet", "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = TransferClassifier(tmp_path, classes=CLASSES)
    assert model.backbone_name == "timm:test_resnet"
    assert model.preprocess.mean == (0.1,) * 3
    same(model, medimg.load(model.save(tmp_path / "model.safetensors")))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The connections that were tried."""
    tried: list[object] = []

    def connect(_: socket.socket, address: object) -> None:
        tried.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *names, **_: connect(None, names))  # type: ignore[arg-type]  # no socket yet
    return tried


OVERLAY = {"url": "http://127.0.0.1:9/weights.pth", "hf_hub_id": None, "source": "url"}
TIMM_REFUSED: list[Any] = [
    {"pretrained": True, "pretrained_cfg_overlay": OVERLAY},
    {"pretrained_cfg_overlay": OVERLAY},
    {"pretrained_cfg": {"url": "http://127.0.0.1:9/weights.pth"}},
    {"checkpoint_path": "/etc/passwd"},
    {"cache_dir": "/tmp"},
    {"scriptable": True},
    {"no_jit": True},
    {"features_only": True},
    {"model_name": "hf-hub:owner/name"},
    {"device": "meta"},
    ["pretrained"],
]


def test_a_file_has_no_say_in_how_timm_builds(timm: Any, offline: list[object], tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "pytorch_model.bin")
    model = TransferClassifier("timm:test_resnet", classes=CLASSES, weights=None)
    for arguments in TIMM_REFUSED:
        first = next(iter(arguments))
        (tmp_path / "config.json").write_text(
            json.dumps({"architecture": "test_resnet", "model_args": arguments})
        )
        with pytest.raises(TrainingError, match=first if isinstance(arguments, dict) else "must be an obj"):
            TransferClassifier(tmp_path, classes=CLASSES)
        if isinstance(arguments, dict):
            model.architecture = architecture.Architecture("timm:test_resnet", settings=arguments)
            path = model.save(tmp_path / "model.safetensors")
            for read in (medimg.load, lambda file: TransferClassifier(file, classes=CLASSES)):
                with pytest.raises((CheckpointError, TrainingError), match=first):
                    read(path)
    assert offline == []


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_as_timm_writes_it(timm: Any, channels: int, tmp_path: Path) -> None:
    from timm.models import save_for_hf

    network = timm.create_model("test_vit", num_classes=7, in_chans=channels)
    save_for_hf(network, tmp_path, safe_serialization=False)
    model = TransferClassifier(tmp_path, classes=CLASSES)
    assert (model.preprocess.n_channels, model.architecture.channels) == (channels, channels)
    x = torch.randn(2, *model.preprocess.image_shape)
    with torch.no_grad():
        expected = network.eval().forward_head(network.forward_features(x), pre_logits=True)
        assert torch.equal(model.eval().embed(x), expected)
    same(model, medimg.load(model.save(tmp_path / "model.safetensors")))


@pytest.mark.parametrize("given", [{"img_size": 32}, {"img_size": 32, "dynamic_img_size": True}, {}])
@pytest.mark.parametrize("stated", [None, 32, 160])
def test_image_size_of_a_folder_as_timm_writes_it(
    timm: Any, given: dict[str, Any], stated: int | None, tmp_path: Path
) -> None:
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_vit", num_classes=7, **given), tmp_path, model_args=given)
    if stated:
        config = json.loads((tmp_path / "config.json").read_text())
        config["pretrained_cfg"]["input_size"] = [3, stated, stated]
        (tmp_path / "config.json").write_text(json.dumps(config))
    model = TransferClassifier(tmp_path, classes=CLASSES)
    # timm states the size in the arguments, too
    size = (stated or 160) if "dynamic_img_size" in given else given.get("img_size", 160)
    assert model.preprocess.size == size
    same(model, medimg.load(model.save(tmp_path / "model.safetensors")))
    # as saved by earlier versions
    if size == 32 and given == {"img_size": 32}:
        model.architecture = replace(model.architecture, image_size=None)
        same(model, medimg.load(model.save(tmp_path / "earlier.safetensors")))


@pytest.mark.parametrize("size", ["64", [], [64, "x"], [64, 64, 64], {"a": 1}, 0, True])
def test_a_folder_of_timm_with_an_invalid_image_size(timm: Any, size: object, tmp_path: Path) -> None:
    arguments = {"img_size": size}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "model_args": arguments}))
    with pytest.raises(TrainingError, match="img_size of timm:test_vit must be one or two positive whole"):
        TransferClassifier(tmp_path, classes=CLASSES, weights=None)


def test_a_folder_of_timm_without_weights(timm: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet"}))
    with pytest.raises(WeightsUnavailableError, match=r"has none of .*weights=None for random"):
        TransferClassifier(tmp_path, classes=CLASSES)
    assert TransferClassifier(tmp_path, classes=CLASSES, weights=None).weights_name is None
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "mine.pth")
    model = TransferClassifier(tmp_path, classes=CLASSES, weights=tmp_path / "mine.pth")
    assert model.weights_name == "mine.pth"


def test_torchxrayvision_files_are_read_without_their_code(tmp_path: Path) -> None:
    xrv = pytest.importorskip("torchxrayvision.models", reason="a file of torchxrayvision is made by it")
    torch.manual_seed(0)
    network = xrv.DenseNet()
    torch.save(network, tmp_path / "xrv.pt")
    model = TransferClassifier(XRV, classes=CLASSES, weights=tmp_path / "xrv.pt")
    x = 1024 * torch.randn(1, 1, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().embed(x), network.eval().features2(x))


def test_a_folder_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="encoders of the hub need transformers")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14
    )
    torch.manual_seed(0)
    network = transformers.Dinov2Model(config)
    network.save_pretrained(tmp_path / "dino")
    images = {"image_mean": [0.53] * 3, "image_std": [0.26] * 3, "size": {"shortest_edge": 56}}
    (tmp_path / "dino/preprocessor_config.json").write_text(json.dumps({**images, "do_center_crop": False}))
    model = TransferClassifier(tmp_path / "dino", classes=CLASSES)
    assert model.preprocess == Preprocess(size=56, mean=(0.53,) * 3, std=(0.26,) * 3)
    x = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        assert torch.equal(model.eval().embed(x), network.eval()(x).pooler_output)
    stays_frozen(model)
    path = model.save(tmp_path / "model.safetensors")
    loaded = medimg.load(path)
    same(model, loaded)
    assert loaded.backbone_name == "hf:dino"
    with pytest.raises(PreprocessError, match=r"multiples of 14.*size=70"):
        TransferClassifier(tmp_path / "dino", classes=CLASSES, preprocess=Preprocess(size=64))


VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}


def hf_folder(folder: Path, config: object, images: object = None) -> Path:
    """Write a folder of transformers with random weights."""
    transformers = pytest.importorskip("transformers", reason="encoders of the hub need transformers")
    network = transformers.ViTModel(
        transformers.ViTConfig(**{k: v for k, v in VIT.items() if k != "model_type"})
    )
    network.save_pretrained(folder)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if images is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return folder


@pytest.mark.parametrize(
    "kind",
    [{}, {"model_type": "dinov2", "mlp_ratio": 1}, {"model_type": "swin", "embed_dim": 8, "depths": [1]}],
)
def test_a_folded_encoder_of_transformers(kind: dict[str, Any], tmp_path: Path) -> None:
    if kind.get("model_type") == "swin":
        kind = {**kind, "num_heads": [2], "window_size": 2, "hidden_size": None}
        kind |= {"num_hidden_layers": None, "num_attention_heads": None}
    config = {k: v for k, v in {**VIT, **kind}.items() if v is not None}
    folder = hf_folder(tmp_path / "encoder", config)
    (folder / "model.safetensors").unlink()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        three = TransferClassifier(folder, classes=CLASSES, weights=None)
    path = three.save(tmp_path / "three.safetensors")
    one = TransferClassifier(path, classes=CLASSES, in_channels=1)
    assert one.preprocess.n_channels == 1
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        found, expected = one.eval().embed(x), three.eval().embed(x.repeat(1, 3, 1, 1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    same(one, medimg.load(one.save(tmp_path / "one.safetensors")))


HF_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"auto_map": {"AutoModel": "evil.Model"}}, "needs code"),
    ({"trust_remote_code": True}, "'trust_remote_code'"),
    ({"attn_implementation": "owner/kernel"}, "'attn_implementation'"),
    ({"_attn_implementation": "flash_attention_2"}, "'_attn_implementation'"),
    ({"_attn_implementation_internal": "owner/kernel"}, "'_attn_implementation_internal'"),
    ({"attn_implementation": {"": "owner/kernel"}}, "'attn_implementation'"),
    ({"text_config": {"experts_implementation": "owner/kernel"}}, "'experts_implementation'"),
    ({"attribute_map": {"x": "_attn_implementation_internal"}, "x": "owner/kernel"}, "'attribute_map'"),
    ({"model_type": "detr", "backbone": "owner/name"}, "'backbone'"),
    ({"model_type": "upernet", "use_pretrained_backbone": True}, "'use_pretrained_backbone'"),
    ({"model_type": "upernet", "backbone_config": {"model_type": "timm_backbone"}}, "network of timm"),
    ({"model_type": "timm_wrapper", "model_args": {"checkpoint_path": "x"}}, "network of timm"),
    ({"quantization_config": {"quant_method": "mxfp4"}}, "'quantization_config'"),
    ({"model_type": "detr"}, "has one inside"),  # the default of transformers
    ({"model_type": "detr", "backbone_config": None}, "has one inside"),
    ({"model_type": "detr", "use_timm_backbone": True}, "'use_timm_backbone' without"),
    ({"model_type": "detr", "use_timm_backbone": False}, "'use_timm_backbone' without"),
    ({"model_type": "dpt", "is_hybrid": True, "backbone": "owner/name"}, "'backbone'"),
    ({"model_type": "edgetam_vision_model"}, "has one inside"),
]


def test_a_configuration_gets_nothing_from_elsewhere(offline: list[object], tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "vit", {**VIT, "dtype": "float16", "torch_dtype": "load"})
    model = TransferClassifier(folder, classes=CLASSES)
    same(model, medimg.load(model.save(tmp_path / "model.safetensors")))
    for added, message in HF_REFUSED:
        (folder / "config.json").write_text(json.dumps({**VIT, **added}))
        with pytest.raises(TrainingError, match=message):
            TransferClassifier(folder, classes=CLASSES)
        model.architecture = architecture.Architecture("hf:vit", settings={**VIT, **added})
        with pytest.raises(CheckpointError, match=message):
            medimg.load(model.save(tmp_path / "model.safetensors"))
    assert offline == []


BIT = {"model_type": "bit", "embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "num_groups": 2}


def test_a_backbone_inside_is_built_offline(offline: list[object], tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="encoders of the hub need transformers")
    inside = {"backbone_config": {**BIT, "layer_type": "bottleneck", "out_features": ["stage2"]}}
    small = {"num_feature_levels": 1, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1}
    for config in ({**VIT, "model_type": "dpt"}, {"model_type": "detr", **inside, **small}):
        source = _hf_source.HFBackbone.rebuild(architecture.Architecture("hf:x", settings=config))
        assert source.count_parameters(architecture.Architecture("hf:x")) > 1000
    assert offline == []


#: Configurations that would take all memory, or hours, to build.
HF_HUGE: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 10**9}, "a num_hidden_layers of more than 1,024"),
    ({"hidden_size": 10**9}, "a hidden_size of more than 1,048,576"),
    ({"hidden_size": 2**19, "num_attention_heads": 2**15}, "more than 17,179,869,184 values"),
    ({"num_labels": 10**9}, "a num_labels of more than"),
    (
        {"image_size": 2**20, "patch_size": 1},
        "image_size of hf:.* from 1 to 4096|more than 17,179,869,184 values",
    ),
    ({"model_type": "swin", "depths": [1024] * 1000}, "a depths of more than 1,024"),
    ({"layer_types": ["full"] * 10**4}, "10,000 entries in layer_types"),
    ({"x\x1b[31m": 10**9}, r"a x\\x1b\[31m of more than"),
]


def test_building_ends_with_more_layers_than_any_network_has(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="encoders of the hub need transformers")
    monkeypatch.setattr(build_limits, "_MOST_PARTS", 300)
    settings = {"model_type": "efficientnet", "depth_coefficient": 1e9}
    source = _hf_source.HFBackbone.rebuild(architecture.Architecture("hf:x", settings=settings))
    with pytest.raises(TrainingError, match="more than 300 layers and tensors"):
        source.count_parameters(architecture.Architecture("hf:x"))


def test_a_configuration_allocates_no_more_than_its_file_has(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "vit", VIT)
    model = TransferClassifier(folder, classes=CLASSES)
    for added, message in HF_HUGE:
        (folder / "config.json").write_text(json.dumps({**VIT, **added}))
        with pytest.raises(TrainingError, match=message):
            TransferClassifier(folder, classes=CLASSES, weights=None)
        model.architecture = architecture.Architecture("hf:vit", settings={**VIT, **added})
        with pytest.raises(CheckpointError, match=message):
            medimg.load(model.save(tmp_path / "model.safetensors"))
    # 3 GB, which any network may have, but not that of this file
    wide = {**VIT, "hidden_size": 2**13, "intermediate_size": 2**13, "num_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps(wide))
    with pytest.raises(
        WeightsUnavailableError, match=r"model.safetensors has \d,\d+ parameters, but a hf:vit"
    ):
        TransferClassifier(folder, classes=CLASSES)
    model.architecture = architecture.Architecture("hf:vit", settings=wide)
    with pytest.raises(CheckpointError, match=r"it has \d,\d+ parameters, but a hf:vit has \d+,"):
        medimg.load(model.save(tmp_path / "model.safetensors"))


HF_INVALID: list[tuple[Any, Any, str]] = [
    ({"num_attention_heads": 0}, None, "can't build hf:vit"),
    ({"hidden_size": 0}, None, "can't build|fails on"),
    ({"hidden_size": -2}, None, "can't build"),
    ({"hidden_dropout_prob": "x"}, None, "can't build"),
    ({"dtype": "load", "initializer_range": "x"}, None, "can't build"),
    ({"patch_size": 0}, None, "patch_size of hf:vit must be a whole number"),
    ({"patch_size": -8}, None, "patch_size of hf:vit must be a whole number"),
    ({"patch_size": "x"}, None, "patch_size of hf:vit must be a whole number"),
    ({"image_size": []}, None, "image_size of hf:vit must be a whole number"),
    ({"image_size": {"height": 32}}, None, "image_size of hf:vit must be a whole number"),
    ({"image_size": "abc"}, None, "image_size of hf:vit must be a whole number"),
    ({"image_size": [[1]]}, None, "image_size of hf:vit must be a whole number"),
    ({"vision_config": [1]}, None, "vision_config of hf:vit must be an object"),
    ({}, {"size": {"height": "32"}}, "size of hf:vit must be a whole number"),
    ({}, {"crop_size": 0}, "crop_size of hf:vit must be a whole number"),
    ({}, {"image_mean": "0.5"}, "image_mean of hf:vit must be a number, or one for each"),
    ({}, {"image_mean": 0.5, "image_std": [None]}, "image_std of hf:vit must be a number"),
    ({"num_channels": 1}, {"image_mean": [], "image_std": [0.5]}, "image_mean of hf:vit must be a number"),
    ("[" * 100_000, None, "no config.json that can be read"),
    ({}, "[" * 100_000, "can't be read as a configuration"),
]


def test_an_invalid_configuration_of_transformers(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "vit", VIT)
    for config, images, message in HF_INVALID:
        (folder / "config.json").write_text(
            config if isinstance(config, str) else json.dumps({**VIT, **config})
        )
        written = images if isinstance(images, str) else json.dumps(images or {})
        (folder / "preprocessor_config.json").write_text(written)
        with pytest.raises(MedimgError, match=message):
            TransferClassifier(folder, classes=CLASSES, weights=None)
    (folder / "config.json").write_text(json.dumps({**VIT, "image_size": 40}))
    (folder / "preprocessor_config.json").write_text('{"image_mean": 0.5, "image_std": 0.25}')
    model = TransferClassifier(folder, classes=CLASSES, weights=None)
    assert model.preprocess == Preprocess(size=40, mean=(0.5,) * 3, std=(0.25,) * 3)


TIMM_INVALID: list[tuple[dict[str, Any], str]] = [
    ({"model_args": {"num_heads": 0}}, "timm can't build timm:test_vit: ZeroDivisionError"),
    ({"model_args": {"in_chans": "3"}}, "'3' channels"),
    ({"model_args": "x"}, "must be an object"),
    ({"model_args": {"depth": 10**9}}, "a depth of more than 1,024"),
    ({"model_args": {"embed_dim": 2**19, "num_heads": 2**10}}, "more than 17,179,869,184 values"),
    ({"pretrained_cfg": [1]}, "pretrained_cfg of timm:test_vit must be an object"),
    ({"pretrained_cfg": {"input_size": "abc"}}, "input_size of timm:test_vit must be a list of three whole"),
    (
        {"pretrained_cfg": {"input_size": [3, 0, 0]}},
        "input_size of timm:test_vit must be a list of three whole",
    ),
    ({"pretrained_cfg": {"mean": None}}, "mean of timm:test_vit must be a list of one or three"),
    ({"pretrained_cfg": {"std": [1, 1, "x"]}}, "std of timm:test_vit must be a list of one or three"),
    ({"pretrained_cfg": {"std": [0, 0, 0]}}, "std must be positive"),
]


def test_an_invalid_configuration_of_timm(timm: Any, tmp_path: Path) -> None:
    for config, message in TIMM_INVALID:
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", **config}))
        with pytest.raises(MedimgError, match=message):
            TransferClassifier(tmp_path, classes=CLASSES, weights=None)


def test_a_masked_autoencoder_is_refused(tmp_path: Path) -> None:
    decoder = {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
    }
    folder = hf_folder(tmp_path / "mae", {**VIT, "model_type": "vit_mae", **decoder})
    with pytest.raises(TrainingError, match="hf:mae gives another embedding each time"):
        TransferClassifier(folder, classes=CLASSES, weights=tmp_path / "mae/model.safetensors")


def test_timm_is_asked_for_a_quiet_build(timm: Any) -> None:
    source = _timm_source.TimmBackbone.open("timm:test_vit")
    assert source.count_parameters(architecture.Architecture("timm:test_vit")) > 100_000


@pytest.mark.parametrize(("name", "own", "fits", "other"), [("botnet26t_256", 256, 288, 272)])
def test_timm_networks_of_one_size_are_prepared_for_one_that_they_take(
    timm: Any, name: str, own: int, fits: int, other: int
) -> None:
    source = find_backbone(f"timm:{name}")
    assert source.default_recipe(None, None).size == own
    assert source.plan(None, None, Preprocess(size=own)).image_size is None
    assert source.plan(None, None, Preprocess(size=fits)).image_size == fits
    with pytest.raises(PreprocessError, match=rf"{other}×{other} .*its own size is {own}: use .*size={own}"):
        source.plan(None, None, Preprocess(size=other))
