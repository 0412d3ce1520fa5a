"""Backbones found in the files of training scripts, whatever wraps and names them."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.vision_transformer import VisionTransformer

from medimg import TransferClassifier
from medimg.errors import TrainingError, WeightsUnavailableError
from medimg.evaluation.evaluate import describe_model
from medimg.models.backbones import architecture, registry
from medimg.models.backbones.architecture import load_backbone
from medimg.models.backbones.heads import HeadParts, split_head
from medimg.models.backbones.state_matching import match_state
from medimg.models.training_images import TrainingImages
from tests.models.fakes import SMALL, classifier
from tests.models.networks import NAMES
from tests.models.small_network import SMALL_NETWORK, make_network, register_small_network

State = dict[str, Any]


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OWN", {})
    register_small_network()


def small_state(seed: int = 7) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network()
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.normal_() if "var" not in name else value.uniform_(0.5, 1.5)
        return dict(network.state_dict())


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def without_head(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def numbered(state: State, *, skipped: tuple[str, ...] = ()) -> State:
    """Names as in ``nn.Sequential(*network.children())``."""
    children = [n for n, _ in make_network().named_children() if n not in skipped]
    return {
        f"{children.index(n.partition('.')[0])}.{n.partition('.')[2]}": v
        for n, v in state.items()
        if n.partition(".")[0] in children
    }


def noise(state: State) -> State:
    return {name: torch.rand_like(v) if v.is_floating_point() else v for name, v in state.items()}


S = small_state()
MLP = {"0.weight": torch.zeros(8, 16), "0.bias": torch.zeros(8), "2.weight": torch.zeros(4, 8)}
FILES: dict[str, State] = {
    "plain": S,
    "model": {"model": S, "epoch": 3},
    "net": {"net": S, "acc": 0.9},
    "state_dict": {"state_dict": S, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
    "teacher": {"teacher": S},
    "DataParallel": prefixed("module.", S),
    "Lightning": {
        "state_dict": {**prefixed("model.", S), "loss_fn.weight": torch.ones(2)},
        "hyper_parameters": {"lr": 0.1},
        "pytorch-lightning_version": "2.6",
        "callbacks": {},
    },
    "MoCo v1": {
        "arch": "small",
        "state_dict": {
            **prefixed("module.encoder_q.", S),
            **prefixed("module.encoder_k.", noise(S)),
            "module.queue": torch.zeros(16, 8),
            "module.queue_ptr": torch.zeros(1, dtype=torch.int64),
        },
    },
    "MoCo v2": {
        "state_dict": {
            **prefixed("module.encoder_q.", {**without_head(S), **prefixed("fc.", MLP)}),
            **prefixed("module.encoder_k.", {**without_head(noise(S)), **prefixed("fc.", MLP)}),
        }
    },
    "MoCo v3": {
        "state_dict": {
            **prefixed("module.base_encoder.", S),
            **prefixed("module.momentum_encoder.", noise(S)),
            **prefixed("module.predictor.", MLP),
        }
    },
    "SimCLR": {
        "state_dict": {**prefixed("encoder.", without_head(S)), **prefixed("projector.", MLP)},
    },
    "SimCLR, numbered": {
        **prefixed("f.", numbered(without_head(S), skipped=("avgpool",))),
        **prefixed("g.", MLP),
    },
    "BYOL": {
        "online_network": {**prefixed("encoder.", S), **prefixed("projection.", MLP)},
        "target_network": {**prefixed("encoder.", noise(S)), **prefixed("projection.", MLP)},
    },
    "DINO": {
        "student": {**prefixed("module.backbone.", noise(S)), **prefixed("module.head.mlp.", MLP)},
        "teacher": {**prefixed("backbone.", S), **prefixed("head.mlp.", MLP)},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "args": Namespace(arch="small", folder=Path("data")),
        "dino_loss": {"center": torch.zeros(1, 8)},
    },
    "solo-learn": {
        "state_dict": {
            **prefixed("backbone.", S),
            **prefixed("momentum_backbone.", noise(S)),
            "classifier.weight": torch.zeros(2, 16),
        }
    },
    "EMA": {"state_dict": noise(S), "state_dict_ema": S, "best": np.float64(0.5)},
    "RadImageNet": prefixed("backbone.", numbered(without_head(S))),
    "Sequential with its head": prefixed("model.", numbered(S)),
    "head within": {
        **without_head(S),
        **prefixed("projection_head.", MLP),
        "prototypes.weight": MLP["0.weight"],
    },
    "same in both": {"model": S, "best_model": dict(S)},
    "compiled": prefixed("_orig_mod.module.", S),
}


def model_from(path: Path, backbone: str = SMALL_NETWORK, **fields: Any) -> TransferClassifier:
    return TransferClassifier(backbone, classes=("a", "b"), weights=path, **{"preprocess": SMALL, **fields})


def is_loaded(model: TransferClassifier, state: State) -> bool:
    own = model.backbone.state_dict()
    assert own
    return all(torch.equal(value, state[name]) for name, value in own.items())


@pytest.mark.parametrize("name", FILES)
def test_files_of_training_scripts(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.pth"
    torch.save(FILES[name], path)
    model = model_from(path)
    assert is_loaded(model, S)
    report = model.weights_report
    assert report is not None
    assert report.share == 1.0
    assert report.matched == report.total > 0
    assert report.missing == ()
    assert f"{report.total} of {report.total} tensors" in str(report)


@pytest.mark.parametrize(
    ("name", "prefix", "others"),
    [
        ("DINO", "teacher.backbone.", ("student.module.backbone.",)),
        ("MoCo v1", "module.encoder_q.", ("module.encoder_k.",)),
        ("EMA", "state_dict_ema.", ("state_dict.",)),
        ("RadImageNet", "backbone.", ()),
    ],
)
def test_what_was_taken_and_left_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, prefix: str, others: tuple[str, ...]
) -> None:
    torch.save(FILES[name], tmp_path / "mine.pth")
    with caplog.at_level(logging.INFO, logger="medimg"):
        report = model_from(tmp_path / "mine.pth").weights_report
    assert report is not None
    assert (report.prefix, report.others) == (prefix, others)
    assert str(report) in caplog.text
    assert repr(prefix) in str(report)
    if others:
        assert f"not taken: the network under {others[0]!r}" in str(report)
        assert any(left.startswith(others[0]) for left in report.left_out)


def test_nothing_is_logged_of_an_ordinary_state_dict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(S, tmp_path / "mine.pth")
    with caplog.at_level(logging.INFO, logger="medimg"):
        report = model_from(tmp_path / "mine.pth").weights_report
    assert not caplog.text
    assert report is not None
    assert report.left_out == ("fc.weight", "fc.bias")


def test_the_network_is_chosen_by_its_shapes(tmp_path: Path) -> None:
    """Two networks of the same names, of which one has other widths."""
    wide = {n: torch.zeros([2 * side for side in v.shape]) for n, v in S.items()}
    torch.save({"teacher": wide, "student": S}, tmp_path / "mine.pth")
    assert is_loaded(model_from(tmp_path / "mine.pth"), S)
    deeper = {**S, **{n.replace("layer4.", "layer4.3."): v for n, v in noise(S).items() if "layer4" in n}}
    torch.save({"big": deeper, "small": S}, tmp_path / "mine.pth")
    assert is_loaded(model_from(tmp_path / "mine.pth"), S)


PARTIAL = {name: value for name, value in S.items() if not name.startswith("layer2.")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PARTIAL, r"% of the parameters found, expected all \(min_match=.*: 5 missing \(layer2\.0\.weight"),
        ({"net": prefixed("encoder.", PARTIAL)}, r"found under 'encoder\.', expected all"),
        (prefixed("f.", numbered(without_head(PARTIAL))), r" 0 % of the parameters found, expected all: "),
        (prefixed("f.", numbered(PARTIAL)), r"by the names of nn\.Sequential.*expected all: 5 missing"),
        ({**S, "layer5.weight": torch.zeros(2)}, r"1 unexpected \(layer5\.weight\)"),
        ({**S, "layer4.9.weight": torch.zeros(2)}, r"but also 1 of further layers \(layer4\.9\.weight\)"),
        ({**S, "conv1.weight": torch.zeros(8, 1, 5, 5)}, r"conv1\.weight \(8, 1, 5, 5\) instead of \(8, 3,"),
        ({**S, "conv1.weight": S["conv1.weight"].int()}, r"of another type \(conv1\.weight torch\.int32\)"),
        ({"one": S, "two": noise(S)}, r"several networks that fit, under the prefixes 'one\.', 'two\.'"),
        ({"something.else": torch.zeros(3)}, r"0 % of the parameters found.*unexpected \(something\.else\)"),
    ],
)
def test_refusals_name_what_is_wrong(tmp_path: Path, content: State, message: str) -> None:
    torch.save(content, tmp_path / "mine.pth")
    with pytest.raises(WeightsUnavailableError, match=message):
        model_from(tmp_path / "mine.pth")


def test_advice_is_of_use(tmp_path: Path) -> None:
    other = {name: value for name, value in S.items() if name.startswith("layer3.0.")}
    for content in ({"something.else": torch.zeros(3)}, other, {n: torch.zeros(1) for n in S}):
        torch.save(content, tmp_path / "mine.pth")
        with pytest.raises(WeightsUnavailableError, match="check by these names and shapes") as caught:
            model_from(tmp_path / "mine.pth")
        assert "min_match" not in str(caught.value)


def test_names_of_a_file_are_shown_escaped_and_shortened(tmp_path: Path) -> None:
    evil = "\x1b[31m\n" + "x" * 1000
    torch.save({f"{evil}.{name}": value for name, value in S.items()}, tmp_path / "mine\x1b.pth")
    report = model_from(tmp_path / "mine\x1b.pth").weights_report
    assert report is not None
    other = replace(report, others=(evil, evil))
    for text in (str(report), repr(report), repr(other), str(other)):
        assert text.isprintable()
        assert "\\x1b[31m\\n" in text
        assert len(text) < 1500


def test_names_of_infinite_tensors_are_escaped() -> None:
    network = nn.Sequential(OrderedDict([("a\x1b" + "b" * 500, nn.Linear(2, 2))]))
    parts = HeadParts(network, nn.Linear(2, 1), "")
    state = OrderedDict((name, value * torch.inf) for name, value in network.state_dict().items())
    with pytest.raises(WeightsUnavailableError, match=r"y\\n.pth have .* not finite in a\\x1bb") as caught:
        load_backbone(parts, state, backbone="x", source="y\n.pth")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_a_part_is_accepted_when_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grayscale = S["conv1.weight"][:, :1]
    torch.save({**PARTIAL, "conv1.weight": grayscale}, tmp_path / "mine.pth")
    with caplog.at_level(logging.INFO, logger="medimg"):
        model = model_from(tmp_path / "mine.pth", min_match=0.5)
    report = model.weights_report
    assert report is not None
    assert 0.5 < report.share < 1.0
    assert {name.partition(".")[0] for name in report.missing} == {"layer2", "conv1"}
    assert "missing or of another shape (layer2.0.weight" in caplog.text
    loaded = model.backbone.state_dict()
    assert torch.equal(loaded["layer4.0.weight"], S["layer4.0.weight"])
    assert all(bool(value.isfinite().all()) for value in loaded.values())
    with pytest.raises(WeightsUnavailableError, match=r"expected at least 99\.0 %"):
        model_from(tmp_path / "mine.pth", min_match=0.99)
    with pytest.raises(TrainingError, match="min_match"):
        model_from(tmp_path / "mine.pth", min_match=0.0)
    # which children are missing can't be told from numbers
    torch.save(numbered(PARTIAL), tmp_path / "numbered.pth")
    with pytest.raises(WeightsUnavailableError, match=r"names of nn\.Sequential.*expected all: "):
        model_from(tmp_path / "numbered.pth", min_match=0.5)


def test_part_of_several_networks_is_ambiguous(tmp_path: Path) -> None:
    first = {n: v for n, v in S.items() if n != "layer2.0.weight"}
    second = {n: v for n, v in S.items() if n != "layer3.0.weight"}  # of the same size
    for one, two in ((PARTIAL, noise(PARTIAL)), (first, second)):
        torch.save({"one": one, "two": two}, tmp_path / "mine.pth")
        with pytest.raises(WeightsUnavailableError, match="several networks"):
            model_from(tmp_path / "mine.pth", min_match=0.5)


def test_settings_of_scripts_are_not_imported(tmp_path: Path) -> None:
    """A class of the allowed names is a stand-in, whatever it would do."""
    before = torch.serialization.get_safe_globals()
    args = Namespace(a=[1], b=Path("x"), c={"d": np.float32(2.0)}, e=Namespace(f=np.zeros(3)))
    torch.save({"model": S, "args": args}, tmp_path / "mine.pth")
    assert is_loaded(model_from(tmp_path / "mine.pth"), S)
    assert torch.serialization.get_safe_globals() == before


class TimmAttention(nn.Module):
    """The attention of timm's ViT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        result: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(b, n, c))
        return result


class TimmBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = TimmAttention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 2 * width), "fc2": nn.Linear(2 * width, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        result: torch.Tensor = x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))
        return result


class TimmViT(nn.Module):
    """A ViT with the names and the order of computation of timm, MAE and DINO."""

    def __init__(self, size: int, patch: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.Sequential(*(TimmBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1) + self.pos_embed
        result: torch.Tensor = self.norm(self.blocks(tokens))[:, 0]
        return result


def timm_vit() -> TimmViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return TimmViT(64, 16, 24, 3, 2).eval()


def torchvision_vit() -> VisionTransformer:
    return VisionTransformer(64, 16, 2, 3, 24, 48, num_classes=2).eval()


MAE = {
    "mask_token": torch.zeros(1, 1, 8),
    "decoder_pos_embed": torch.zeros(1, 17, 8),
    "decoder_embed.weight": torch.zeros(8, 24),
    "decoder_blocks.0.attn.qkv.weight": torch.zeros(24, 8),
    "decoder_norm.weight": torch.zeros(8),
    "decoder_pred.bias": torch.zeros(4),
}


@pytest.mark.parametrize("kind", ["timm", "MAE", "DINO"])
def test_a_vit_of_timm_computes_the_same_in_torchvision(tmp_path: Path, kind: str) -> None:
    theirs = timm_vit()
    state = theirs.state_dict()
    files: dict[str, State] = {
        "timm": {**state, "head.weight": torch.zeros(5, 24), "head.bias": torch.zeros(5)},
        "MAE": {"model": {**state, **MAE}},
        "DINO": {
            "student": prefixed("module.backbone.", noise(state)),
            "teacher": {**prefixed("backbone.", state), "head.last_layer.weight": torch.zeros(4, 4)},
        },
    }
    torch.save(files[kind], tmp_path / "mine.pth")
    register_vit(torchvision_vit)
    model = model_from(tmp_path / "mine.pth", "tiny_vit").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.embed(images), theirs(images), rtol=1e-5, atol=1e-5)
    report = model.weights_report
    assert report is not None
    assert report.naming == "timm's names"
    assert report.matched == len(state)
    assert not (kind == "MAE" and set(MAE) - set(report.left_out))


def register_vit(make: Any) -> None:
    import medimg

    medimg.register_backbone("tiny_vit", make, size=64)


def test_a_vit_with_other_layers_is_refused() -> None:
    """DINOv2 has layer scales, with which torchvision's ViT would compute something else."""
    state = {**timm_vit().state_dict(), "blocks.0.ls1.gamma": torch.ones(24)}
    with pytest.raises(WeightsUnavailableError, match=r"by timm's names, .*1 unexpected \(blocks\.0\.ls1"):
        match_state(split_head(torchvision_vit()), state, backbone="vit", source="dinov2.pth")


def test_timm_itself(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="compares with timm's own ViT")
    theirs = timm.models.VisionTransformer(
        img_size=64, patch_size=16, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2, num_classes=0
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "mine.pth")
    register_vit(torchvision_vit)
    model = model_from(tmp_path / "mine.pth", "tiny_vit").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.embed(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_the_size_of_a_vit_is_read_from_names_of_timm() -> None:
    state = {"model.decoder_pos_embed": torch.zeros(1, 17, 8), "model.pos_embed": torch.zeros(1, 26, 8)}
    recipe = architecture.default_recipe("vit_b_16", None, state)
    assert recipe.size == 80


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2"])
def test_numbered_children_of_torchvision(tmp_path: Path, name: str) -> None:
    """RadImageNet's files are ``nn.Sequential(*list(network.children())[:-1])`` under "backbone."."""
    network = get_model(name, weights=None)
    holder = nn.Module()
    holder.backbone = nn.Sequential(*list(network.children())[:-1])
    state = holder.state_dict()
    assert "backbone.0.weight" in state or "backbone.0.conv0.weight" in state or len(state) > 50
    torch.save(state, tmp_path / "mine.pth")
    model = model_from(tmp_path / "mine.pth", name)
    assert is_loaded(model, network.state_dict())


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", NAMES)
def test_every_network_of_torchvision(name: str) -> None:
    """Its body is found beside another one, in numbers of children, and by the names of its only child."""
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = get_model(name, weights=None, **options)
    numbers = nn.Sequential(*network.children()).state_dict()
    whole = network.state_dict()
    parts = split_head(network)
    heads = (f"{parts.head_name}.",)
    own = parts.body.state_dict()
    files = {
        "moco": {**prefixed("module.encoder_q.", whole), **prefixed("module.encoder_k.", whole)},
        "numbers": prefixed("backbone.", numbers),
        "plain": whole,
    }
    if name.startswith("vit_"):  # its class token is in no child
        del files["numbers"]
    tops = {top for top, _, _ in (n.partition(".") for n in own)}
    if len(tops) == 1:
        files["child"] = {n.partition(".")[2]: v for n, v in own.items()}
    for kind, file in files.items():
        found = match_state(parts, file, backbone=name, source=kind, heads=heads)
        assert found.state.keys() == own.keys(), kind
        assert found.report.share == 1.0


def test_a_chain_of_checkpoints(tmp_path: Path) -> None:
    """Each checkpoint names what it started from, and knows the training images of all before."""
    torch.save({"state_dict": S}, tmp_path / "first.pth")
    first = TransferClassifier(
        SMALL_NETWORK, classes=("x", "y", "z"), weights=tmp_path / "first.pth", preprocess=SMALL
    )
    assert [one["name"] for one in first.weights_chain] == ["first.pth"]
    first.images_seen = TrainingImages()
    first.training_summary = {"train_items": 12}
    path = first.save(tmp_path / "first.safetensors")
    second = TransferClassifier(SMALL_NETWORK, classes=("a", "b"), weights=path)
    second.save(tmp_path / "second.safetensors")
    third = TransferClassifier(SMALL_NETWORK, classes=("c", "d"), weights=tmp_path / "second.safetensors")
    loaded = TransferClassifier.load(third.save(tmp_path / "third.safetensors"))
    for model in (third, loaded):
        assert [one["name"] for one in model.weights_chain] == [
            "second.safetensors",
            "first.safetensors",
            "first.pth",
        ]
        assert model.weights_chain[0]["sha256"] == model.weights_sha256
        assert model.weights_chain[1]["classes"] == ["x", "y", "z"]
        assert model.weights_chain[1]["train_items"] == 12
        assert model.weights_chain[2]["sha256"] == first.weights_sha256
        assert model.images_seen == first.images_seen
    assert loaded.weights_report is None
    assert describe_model(loaded)["model"]["weights trained from"] == "first.safetensors, first.pth"
    assert classifier().weights_chain == ()


@pytest.mark.parametrize("prefix", ["", "module.encoder_q."])
@pytest.mark.parametrize("min_match", [0.5, 1.0])
def test_a_deeper_network_is_refused_whatever_the_share(
    tmp_path: Path, prefix: str, min_match: float
) -> None:
    state = get_model("resnet18", weights=None).state_dict()
    state["layer1.2.conv1.weight"] = state["layer1.1.conv1.weight"]
    torch.save(prefixed(prefix, state), tmp_path / "deep.pth")
    with pytest.raises(
        WeightsUnavailableError, match=r"but also 1 of further layers.*deeper network: pass"
    ) as e:
        model_from(tmp_path / "deep.pth", "resnet18", min_match=min_match)
    assert "min_match" not in str(e.value)


def test_a_file_of_one_channel_names_the_argument(tmp_path: Path) -> None:
    state = get_model("resnet18", weights=None).state_dict()
    state["conv1.weight"] = state["conv1.weight"].sum(1, keepdim=True)
    torch.save(state, tmp_path / "gray.pth")
    with pytest.raises(WeightsUnavailableError, match=r"of one channel: pass in_channels=1$"):
        model_from(tmp_path / "gray.pth", "resnet18")
    model = model_from(tmp_path / "gray.pth", "resnet18", in_channels=1, preprocess=None)
    assert torch.equal(model.backbone.state_dict()["conv1.weight"], state["conv1.weight"])
