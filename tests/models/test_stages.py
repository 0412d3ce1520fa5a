from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import get_model

from medimg.errors import TrainingError
from medimg.models.backbones.stages import split_stages
from tests.models.fakes import changed, classifier, state
from tests.models.networks import no_storage, shapes, step


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "stem layer1 layer2 layer3 layer4"),
        ("densenet121", "stem features.denseblock1 features.denseblock2 features.denseblock3 features.norm5"),
        ("vgg11_bn", "stem features.5 features.12 features.19 features.26 classifier"),
        ("inception_v3", "stem Conv2d_4a_3x3 Mixed_5d Mixed_6e Mixed_7c"),
        ("mobilenet_v2", "stem features.3 features.6 features.13 features.18"),
        ("convnext_tiny", "stem features.3 features.5 classifier"),
        ("swin_v2_t", "stem features.3 features.5 norm"),
        ("maxvit_t", "stem blocks.0 blocks.1 blocks.2 blocks.3 classifier"),
    ],
)
def test_stages_are_those_of_the_papers(name: str, expected: str) -> None:
    assert shapes(name).stages == tuple(expected.split())


def test_tokens_and_positions_belong_to_the_stem_and_the_last_norm_to_the_last() -> None:
    model = shapes("vit_b_32")
    first, *_, last = split_stages(model.backbone)
    stem = {id(p) for p in first.parameters()}
    for name in ("class_token", "encoder.pos_embedding", "conv_proj.weight"):
        assert id(model.backbone.get_parameter(name)) in stem
    assert id(model.backbone.get_parameter("encoder.ln.weight")) in {id(p) for p in last.parameters()}
    assert len(model.stages) == 13


def test_a_network_inside_others_is_found() -> None:
    with no_storage():
        inner = get_model("resnet18", weights=None)
    wrapped = nn.Sequential(nn.Identity(), nn.Sequential(inner))
    layers = [f"1.0.layer{n}" for n in range(1, 5)]
    assert [s.name for s in split_stages(wrapped)] == ["stem", *layers, "1.0.fc"]


class Named(nn.Module):
    """Calls "stem" what is only the start of its first stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2)
        self.more = nn.Conv2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.second = nn.Conv2d(4, 4, 3, stride=2)
        self.third = nn.Conv2d(4, 4, 3, stride=2)


def test_a_module_called_stem_keeps_its_name() -> None:
    assert [s.name for s in split_stages(Named())] == ["norm", "second", "third"]


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (nn.Identity(), []),
        (nn.Conv2d(3, 4, 1), ["stem"]),
        (nn.Sequential(nn.Linear(3, 3)), ["stem"]),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), ["stem", "1"]),
        (nn.Sequential(*(nn.Linear(3, 3) for _ in range(25))), ["stem", *map(str, range(2, 25, 2))]),
    ],
)
def test_small_and_even_networks(network: nn.Module, expected: list[str]) -> None:
    assert [s.name for s in split_stages(network)] == expected
    assert [id(p) for s in split_stages(network) for p in s.parameters()] == [
        id(p) for p in network.parameters()
    ]


def test_shared_layers_are_held_once() -> None:
    layer = nn.Linear(3, 3)
    network = nn.Sequential(nn.Linear(3, 3), layer, nn.Linear(3, 3), layer, nn.Linear(3, 3))
    held = [id(p) for s in split_stages(network) for p in s.parameters()]
    assert len(held) == len(set(held)) == 8


@pytest.mark.usefixtures("narrow")
def test_unfreezing_goes_down_from_the_head() -> None:
    model = classifier("resnet18", pool="attention").freeze()
    for parameter in [*model.head.parameters(), *model.attention.parameters()]:  # type: ignore[union-attr]  # it has attention
        parameter.requires_grad_(False)
    model.unfreeze(downto="layer3.1")
    free = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert free == {name for name in _names(model.backbone) if name.startswith(("layer3.1.", "layer4."))}
    assert all(p.requires_grad for p in [*model.head.parameters(), *model.attention.parameters()])  # type: ignore[union-attr]  # it has attention
    assert not model.train().backbone.get_submodule("layer2").training
    assert model.backbone.get_submodule("layer4").training
    # what is trained already stays so
    model.unfreeze().freeze(upto="layer1").unfreeze(downto="layer4")
    assert all(p.requires_grad for p in model.backbone.get_submodule("layer2").parameters())
    assert all(p.requires_grad for p in model.unfreeze().parameters())


def _names(body: nn.Module) -> list[str]:
    return [name for name, _ in body.named_parameters()]


@pytest.mark.usefixtures("narrow")
def test_stages_in_steps_from_the_last() -> None:
    model = classifier("resnet18").freeze()
    for name in reversed(model.stages):
        model.unfreeze(downto=name)
        before = state(model.backbone)
        step(model)
        moved = {key.split(".")[0] for key in changed(before, state(model.backbone))}
        parts = {"conv1" if stage == "stem" else stage for stage in model.stages[model.stages.index(name) :]}
        assert moved - {"bn1"} == parts


def test_unknown_part_to_unfreeze() -> None:
    with pytest.raises(TrainingError, match=r"no part 'layer5'.*'stem', 'layer1'"):
        classifier("resnet18").unfreeze(downto="layer5")
    with pytest.raises(TrainingError, match="no part 3"):
        classifier("resnet18").freeze(upto=3)  # type: ignore[arg-type]  # refused


@pytest.mark.usefixtures("narrow")
def test_statistics_without_parameters_are_frozen_with_what_is_before_them() -> None:
    model = classifier("resnet18")
    model.backbone.add_module(
        "bn1", nn.BatchNorm2d(model.backbone.get_parameter("conv1.weight").shape[0], affine=False)
    )
    model.freeze(upto="layer2")
    before = state(model.backbone)
    step(model)
    moved = changed(before, state(model.backbone))
    assert not any(key.startswith(("conv1", "bn1", "layer1", "layer2")) for key in moved)
    assert any(key.startswith("layer3") and key.endswith("running_mean") for key in moved)
    model.unfreeze().train()
    assert model.backbone.get_submodule("bn1").training


@pytest.mark.usefixtures("narrow")
def test_summary_lists_stages_pooling_and_head() -> None:
    model = classifier("resnet18", pool="attention").freeze(upto="layer1")
    model.backbone.get_parameter("layer4.0.conv1.weight").requires_grad_(False)
    rows = [line.split() for line in model.summary().splitlines()]
    assert [row[0] for row in rows[1:]] == [*model.stages, "attention", "head", "all"]
    assert [row[2] for row in rows[1:-1]] == ["yes", "yes", "no", "no", "partly", "no", "no"]
    counts = [int(row[1].replace(",", "")) for row in rows[1:]]
    assert sum(counts[:-1]) == counts[-1] == sum(p.numel() for p in model.parameters())


def block(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs))


class Mobile(nn.Module):
    """The layout of timm's EfficientNet and MobileNet: stem, norm, blocks, last convolution, norm."""

    def __init__(self, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(*(nn.Sequential(block(4, 4, s), block(4, 4, 1)) for s in strides))
        self.conv_head, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)


@given(st.lists(st.sampled_from([1, 2]), min_size=2, max_size=6).map(tuple))
@settings(max_examples=25, deadline=None)
def test_a_sequence_has_one_stage_per_stride(strides: tuple[int, ...]) -> None:
    network = Mobile(strides)
    stages = split_stages(network)
    if sum(s > 1 for s in strides) > 1:
        assert len(stages) == 1 + sum(s > 1 for s in strides)
        for stage in stages[1:]:
            assert sum(_is_strided(m) for _, part in stage.modules for m in part.modules()) == 1
    held = [id(p) for stage in stages for p in stage.parameters()]
    assert held == [id(p) for p in network.parameters()]


def _is_strided(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.stride[0] > 1


def test_strides_side_by_side_are_one_stage() -> None:
    class Reduction(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = block(4, 4, 2), block(4, 4, 2)

    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), block(4, 64, 1), block(4, 4, 2), Reduction(), block(4, 64, 1), block(4, 4, 2)
    )
    assert [s.name for s in split_stages(network)] == ["stem", "2", "4", "5"]


def test_a_transformer_with_more_parts_has_a_stage_per_block() -> None:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch_embed, self.norm_pre = nn.Conv2d(3, 4, 2, 2), nn.LayerNorm(4)
            self.blocks = nn.Sequential(*(nn.Linear(9, 9) for _ in range(6)))
            self.norm, self.pre_logits = nn.LayerNorm(4), nn.Linear(4, 4)

    names = [s.name for s in split_stages(Transformer())]
    assert names == ["stem", *(f"blocks.{n}" for n in range(5)), "norm", "pre_logits"]
