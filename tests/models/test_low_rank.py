"""Low-rank adapters: what is trained, what stays, and the merged network."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.models.vision_transformer import VisionTransformer

import medimg
from medimg import Preprocess, TransferClassifier, fine_tune, lr_find
from medimg.adapt import CORAL
from medimg.errors import TrainingError
from medimg.models.backbones import registry
from medimg.models.backbones.stages import split_stages
from medimg.models.freezing import frozen_fraction
from medimg.models.low_rank import LowRank, add_adapters, has_adapters, merge_adapters, merged_copy
from medimg.training._config import FineTuneConfig
from medimg.training.optimization.optimizer import make_optimizer
from tests.models.fakes import changed, classifier, images, state
from tests.sampling import SLOW

TINY = Preprocess(size=32)
SHORT: dict[str, Any] = {
    "head_epochs": 1,
    "epochs": 2,
    "batch_size": 4,
    "lr": 3e-3,
    "adapter": "lora",
    "rank": 2,
    "progress": False,
}
_MATRICES = ("in_proj_weight", "out_proj.weight", "0.weight", "3.weight")


def make_vit() -> nn.Module:
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5
    )


@pytest.fixture(autouse=True)
def tiny_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OWN", {})
    medimg.register_backbone("tiny_vit", make_vit, size=32)


def vit(**fields: Any) -> TransferClassifier:
    model = classifier("tiny_vit", preprocess=TINY, **fields)
    generator = torch.Generator().manual_seed(3)
    for name, values in model.backbone.named_parameters():
        if name.endswith("out_proj.weight"):  # torchvision's position embeddings and others are not zero
            nn.init.normal_(values, std=0.1, generator=generator)
    return model


def is_adapted(name: str) -> bool:
    return name.endswith(_MATRICES) and "encoder.layers" in name


def inputs(n: int = 5) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def data(n: int = 8, **fields: Any) -> Any:
    return images(n, preprocess=TINY, **fields)


def rank_of(difference: Tensor) -> int:
    return int(torch.linalg.matrix_rank(difference.double(), rtol=1e-4))


def test_all_but_the_adapted_weights_stays_bit_identical() -> None:
    model = vit()
    before = state(model.backbone)
    parameters = dict(model.named_parameters())
    fine_tune(model, data(), data(4, prefix="val", seed=1), **SHORT)
    moved = changed(before, state(model.backbone))
    assert moved == {name for name in before if is_adapted(name)}
    assert all(parameter.requires_grad for parameter in model.parameters())
    # the same objects, in plain layers
    assert [(n, id(p)) for n, p in model.named_parameters()] == [(n, id(p)) for n, p in parameters.items()]
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    after = state(model.backbone)
    assert {rank_of(after[name] - before[name]) for name in moved} <= {1, 2}


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16-mixed"},
        {"mixup": 0.4, "accumulate": 2, "ema": 0.9},
        {"adapt": True, "schedule": "cosine"},
        {"trainer_kwargs": {"gradient_clip_val": 1.0}, "backbone_lr_scale": 1.0, "layer_decay": 1.0},
    ],
)
def test_other_settings_change_only_adapted_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    model = vit()
    before = state(model.backbone)
    if "adapt" in settings:
        settings = {**settings, "adapt": CORAL(data(4, prefix="target", seed=2))}
    fit = fine_tune(model, data(), data(4, prefix="val", seed=1), output=tmp_path, **{**SHORT, **settings})
    moved = changed(before, state(model.backbone))
    assert moved == {name for name in before if is_adapted(name)}
    after = state(model.backbone)
    assert {rank_of(after[name] - before[name]) for name in moved} <= {1, 2}
    assert fit.checkpoint is not None
    assert not changed(state(medimg.load(fit.checkpoint)), state(model))


def test_series_are_trained_with_adapters() -> None:
    model = vit(pool="mean")
    before = state(model.backbone)
    bags = data(8, unit="series", lengths=(2, 3, 1, 4, 2, 2, 3, 2))
    fine_tune(model, bags, **{**SHORT, "grad_slices": 2})
    assert changed(before, state(model.backbone)) == {name for name in before if is_adapted(name)}


def test_frozen_weights_stay_identical_in_every_step() -> None:
    import pytorch_lightning as pl

    model = vit()
    before = {name: values.clone() for name, values in model.backbone.named_parameters()}
    seen: list[int] = []

    class Check(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            for name, values in model.backbone.named_parameters():
                plain = name.replace("parametrizations.", "").removesuffix(".original")
                if not name.endswith((".up", ".down")):
                    assert torch.equal(values, before[plain]), name
            seen.append(sum(p.numel() for p in model.backbone.parameters() if p.requires_grad))

    fine_tune(model, data(), callbacks=[Check()], **{**SHORT, "epochs": 1})
    shapes = [values.shape for name, values in before.items() if is_adapted(name)]
    # embeddings are cached in the head phase
    assert seen == [0, 0, *[2 * sum(map(sum, shapes))] * 2]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    "name",
    [
        "vit_b_32",
        "swin_t",
        "swin_v2_t",
        pytest.param(
            "maxvit_t", marks=[pytest.mark.slow, pytest.mark.skipif(not SLOW, reason="MEDIMG_SLOW=1")]
        ),
    ],
)
def test_merging_gives_the_same_network(name: str) -> None:
    size = 224 if name == "maxvit_t" else 64
    model = classifier(name, preprocess=Preprocess(size=size)).eval()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(7))
    plain, stages = model(x).detach(), [stage.name for stage in split_stages(model.backbone)]
    count = sum(p.numel() for p in model.backbone.parameters())
    found = add_adapters(model, 2, seed=0)
    assert torch.equal(model(x), plain), "new adapters change nothing"
    assert [stage.name for stage in split_stages(model.backbone)] == stages
    assert 0 < found.parameters < 0.25 * count
    for adapter in model.modules():
        if isinstance(adapter, LowRank):
            nn.init.normal_(adapter.up, std=0.05)
    assert any(p.requires_grad for p in split_stages(model.backbone)[-1].parameters())
    adapted = model(x).detach()
    model(x).square().sum().backward()
    trained = [p for p in model.backbone.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained), "an adapter that is not used has no gradient"
    merged = merged_copy(model)
    assert has_adapters(model)
    merge_adapters(model)
    assert not (adapted - plain).abs().max() < 1e-3
    for one in (model, merged):
        assert (one(x) - adapted).abs().max() < 1e-5
        assert not has_adapters(one)


def test_a_merge_keeps_every_bit_of_an_update_of_nothing() -> None:
    model = vit()
    weight = next(p for name, p in model.backbone.named_parameters() if name.endswith("in_proj_weight"))
    with torch.no_grad():
        weight[0] = -0.0
    before = copy.deepcopy(model)
    add_adapters(model, 4, seed=0)
    merge_adapters(model)
    assert torch.signbit(weight[0]).all()
    assert not changed(state(before), state(model))


def test_checkpoints_load_without_adapters(tmp_path: Path) -> None:
    model = vit()
    val = data(4, prefix="val", seed=1)
    fit = fine_tune(model, data(), val, output=tmp_path, **SHORT)
    assert fit.checkpoint is not None
    loaded = medimg.load(fit.checkpoint)
    x = inputs()
    assert (loaded(x) - model(x)).abs().max() < 1e-5
    assert loaded.state_dict().keys() == vit().state_dict().keys()
    summary = loaded.training_summary
    assert summary is not None
    assert (summary["adapter"], summary["rank"]) == ("lora", 2)
    assert summary["adapter_parameters"] == 2 * sum(
        sum(values.shape) for name, values in model.backbone.named_parameters() if is_adapted(name)
    )
    with torch.no_grad():
        logits = loaded(torch.stack([val[n][0] for n in range(len(val))]))
    loss = float(nn.functional.cross_entropy(logits, torch.from_numpy(np.asarray(val.labels))))
    assert fit.best["val_loss"] == pytest.approx(loss, rel=1e-5)


class CutOffError(Exception):
    """Stands for whatever ends a process."""


def cut_after(epochs: int) -> Any:
    import pytorch_lightning as pl

    class Cutter(pl.Callback):
        seen = 0

        def on_train_batch_end(self, *_: Any) -> None:
            if self.seen == epochs:
                raise CutOffError

        def on_train_epoch_end(self, *_: Any) -> None:
            self.seen += 1

    return Cutter()


@pytest.mark.parametrize("settings", [{}, {"ema": 0.5}, {"gradual": True, "epochs": 3}])
def test_a_training_that_was_cut_off_ends_as_the_unbroken_one(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    options = {**SHORT, **settings}
    val = data(4, prefix="val", seed=1)
    whole = vit()
    expected = fine_tune(whole, data(), val, **options)
    cut = vit()
    with pytest.raises(CutOffError):
        fine_tune(cut, data(), val, output=tmp_path, callbacks=[cut_after(2)], **options)
    assert not has_adapters(cut)
    assert all(parameter.requires_grad for parameter in cut.parameters())
    model = vit()
    found = fine_tune(model, data(), val, output=tmp_path, resume=True, **options)
    assert [row["train_loss"] for row in found.history] == [row["train_loss"] for row in expected.history]
    assert not changed(state(model), state(whole))


@pytest.mark.parametrize("other", [{"rank": 3}, {"adapter": None, "rank": None}])
def test_another_adapter_does_not_resume(tmp_path: Path, other: dict[str, Any]) -> None:
    with pytest.raises(CutOffError):
        fine_tune(vit(), data(), output=tmp_path, callbacks=[cut_after(1)], **SHORT)
    model = vit()
    before = state(model)
    with pytest.raises(TrainingError, match=r"differs in .*rank="):
        fine_tune(model, data(), output=tmp_path, resume=True, **{**SHORT, **other})
    assert not changed(before, state(model))
    assert not has_adapters(model)


def test_frozen_stages_get_no_adapters() -> None:
    model = vit().freeze(upto="encoder.layers.encoder_layer_1")
    before, fraction = state(model.backbone), frozen_fraction(model)
    fine_tune(model, data(), **SHORT)
    moved = changed(before, state(model.backbone))
    assert moved == {name for name in before if is_adapted(name) and "encoder_layer_2" in name}
    assert frozen_fraction(model) == fraction


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter": None}, "rank=2 is that of adapters"),
        ({"adapter": "dora"}, 'adapter must be "lora" or None'),
        ({"rank": 0}, "rank must be"),
        ({"rank": 2.5}, "rank must be"),
        ({"rank": 24}, "rank=24 is too large.*expected at most 23"),
        ({"batch_statistics": "update"}, "keeps the backbone frozen"),
        ({"backbone_lr_scale": 0}, "adapter='lora' needs a backbone that is trained"),
        ({"epochs": 0}, "adapter='lora' needs a backbone that is trained"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    model = vit()
    before = state(model)
    with pytest.raises(TrainingError, match=message):
        fine_tune(model, data(), **{**SHORT, **settings})
    assert not changed(before, state(model))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_networks_without_trainable_linear_layers_are_refused() -> None:
    with pytest.raises(TrainingError, match="needs a backbone that is trained"):
        fine_tune(vit().freeze(), data(), **SHORT)
    with pytest.raises(TrainingError, match="squeezenet1_1 has none: use a vision transformer"):
        fine_tune(classifier("squeezenet1_1", preprocess=TINY), data(), **SHORT)
    model = vit()
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(not is_adapted(name))
    with pytest.raises(TrainingError, match="no linear or attention layer of tiny_vit that is not frozen"):
        fine_tune(model, data(), **SHORT)


class SharedWeights(nn.Module):
    """Two layers with one weight, attention of other widths, and a layer smaller than its adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.first = nn.Linear(3 * 32 * 32, 16)
        self.second, self.third = nn.Linear(16, 16), nn.Linear(16, 16)
        self.third.weight = self.second.weight
        self.narrow = nn.Linear(16, 2)
        self.wide = nn.Linear(2, 16)
        self.attention = nn.MultiheadAttention(16, 2, kdim=12, vdim=20, batch_first=True)
        self.key, self.value = nn.Linear(16, 12), nn.Linear(16, 20)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.third(self.second(self.first(self.flatten(images))).relu())
        x = x + self.wide(self.narrow(x))
        y, _ = self.attention(x[:, None], self.key(x)[:, None], self.value(x)[:, None])
        logits: Tensor = self.head(self.norm(x + y[:, 0]))
        return logits


def test_shared_and_small_weights_and_batch_statistics_stay_as_they_are() -> None:
    medimg.register_backbone("shared", SharedWeights, size=32)
    model = classifier("shared", preprocess=TINY)
    before = state(model.backbone)
    fine_tune(model, data(), **SHORT)
    projections = {f"attention.{name}_proj_weight" for name in ("q", "k", "v")}
    expected = {"first.weight", "key.weight", "value.weight", "attention.out_proj.weight", *projections}
    # one key position: queries and keys have no gradient
    unused = {"attention.q_proj_weight", "attention.k_proj_weight", "key.weight"}
    assert changed(before, state(model.backbone)) == expected - unused


class Statistics(nn.Module):
    """Layers with statistics and no parameters, after adapted and after other layers."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 32, 8, 8)
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm1d(32, affine=False) for _ in range(3))
        self.head = nn.Linear(32, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norms[0](self.convolution(images).mean((2, 3)))
        logits: Tensor = self.head(self.norms[2](self.second(self.norms[1](self.first(x)).relu())))
        return logits


@pytest.mark.parametrize("layers", [("first", "second", "norms"), ("norms", "first", "second")])
def test_statistics_without_parameters_stay_as_they_are(layers: tuple[str, ...]) -> None:
    network = Statistics()
    # in whichever order they were registered
    parts = {name: network._modules.pop(name) for name in layers}
    head = network._modules.pop("head")
    network._modules.update({**parts, "head": head})
    model = TransferClassifier(network, classes=("a", "b"), weights=None, preprocess=TINY)
    before = state(model.backbone)
    fine_tune(model, data(), **SHORT)
    assert changed(before, state(model.backbone)) == {"first.weight", "second.weight"}


def test_adapters_have_ten_times_the_rate_and_weight_decay() -> None:
    config = FineTuneConfig(lr=0.1, backbone_lr_scale=0.2, adapter="lora")
    assert config.rank == 8
    assert config.backbone_lr == pytest.approx(0.2)
    assert FineTuneConfig(lr=0.1, backbone_lr_scale=0.2).backbone_lr == pytest.approx(0.02)
    model = vit()
    found = add_adapters(model, 2, seed=0)
    optimizer = make_optimizer(model, 0.1, config.backbone_lr, layer_decay=0.5, weight_decay=0.01)
    first, *others = sorted({group["lr"] for group in optimizer.param_groups[2:]}, reverse=True)
    assert (first, others) == (pytest.approx(0.2), [pytest.approx(0.1), pytest.approx(0.05)])
    groups = optimizer.param_groups[2:]
    assert sum(p.numel() for group in groups for p in group["params"]) == found.parameters
    assert {group["weight_decay"] for group in groups} == {0.01}


def test_lr_find_takes_adapters_and_leaves_the_model_as_it_was() -> None:
    model = vit()
    before = state(model)
    found = lr_find(model, data(), steps=12, batch_size=4, adapter="lora", rank=2, progress=False)
    assert len(found.lrs) >= 10
    assert not changed(before, state(model))
    assert not has_adapters(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_updates_are_in_the_precision_of_the_weight() -> None:
    model = vit().eval()
    add_adapters(model, 2, seed=0)
    adapter = next(one for one in model.modules() if isinstance(one, LowRank))
    nn.init.normal_(adapter.up)
    weight = torch.randn(adapter.up.shape[0], adapter.down.shape[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = adapter(weight)
    assert torch.equal(found, adapter(weight))
