"""What an explanation is, and that making one leaves the model as it was."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import medimg
from medimg import Explanation, Preprocess, TransferClassifier, Volume, explain, register_backbone
from medimg.core.display import render
from medimg.core.geometry import image_affine
from medimg.errors import GeometryError, TrainingError
from medimg.models.backbones import registry
from medimg.models.module_mode import module_mode
from medimg.saliency._back_projection import PixelMapping
from medimg.saliency._field_center import measure_field_centers
from medimg.saliency._grad_cam import activation_maps, head_gradient
from medimg.saliency._target_layer import find_layer
from tests.dicom_files import write_stack
from tests.saliency.planted import SEEN

RECIPE = Preprocess(window=SEEN, size=64)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, narrow: None) -> None:
    monkeypatch.setattr(registry, "_OWN", {})


def network(name: str = "resnet18", seed: int = 1, **options: Any) -> TransferClassifier:
    torch.manual_seed(seed)
    options = {"classes": ("a", "b", "c"), "preprocess": RECIPE, **options}
    return TransferClassifier(name, weights=None, **options).eval()


def noise(depth: int = 4, height: int = 50, width: int = 60) -> Volume:
    array = np.random.default_rng(0).random((1, depth, height, width), dtype=np.float32)
    return Volume(array, image_affine((2.0, 1.0, 1.0)))


def maps(
    model: TransferClassifier, pictures: Tensor, target: int, layer: str | None = None, **options: Any
) -> Any:
    with module_mode(model, training=False), torch.enable_grad():
        gradient = head_gradient(model, model.embed(pictures), target)
        found = find_layer(model.backbone, pictures, layer)
        return activation_maps(model.backbone, found, [(pictures, gradient)], **options)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet18", "layer4"), ("resnet18", "layer2"), ("densenet121", "features.denseblock4")],
)
def test_as_monai(name: str, layer: str) -> None:
    from monai.visualize.class_activation_maps import GradCAM

    model = network(name)
    pictures = RECIPE(noise(2))
    monai = GradCAM(
        model, f"backbone.{layer}", upsampler=lambda shape: lambda x: x, postprocessing=lambda x: x
    )
    heated = 0
    for target in range(3):
        theirs = monai(pictures, class_idx=target)[:, 0].detach().numpy()
        ours = maps(model, pictures, target, layer)
        heated += bool(ours.any())
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.max())
    assert heated, "of some class there is something to compare"


@pytest.mark.parametrize("name", ["densenet121", "resnet18", "squeezenet1_1", "swin_t"])
def test_behind_a_mean_it_is_what_each_cell_adds_to_the_logit(name: str) -> None:
    """The map of a network that ends in a mean is known without gradients (Zhou et al., CVPR 2016)."""
    model = network(name)
    pictures = RECIPE(noise(2))
    seen: list[Tensor] = []
    last = {"densenet121": "features", "resnet18": "layer4", "squeezenet1_1": "features", "swin_t": "permute"}
    handle = model.backbone.get_submodule(last[name]).register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    with torch.no_grad():
        model(pictures)
    handle.remove()
    # DenseNet's last ReLU changes its input, and so what was seen
    heated = 0
    for target in range(3):
        weight = model.head.weight[target].reshape(1, -1, 1, 1).detach()
        added = (weight * seen[0]).sum(dim=1).relu().numpy() / seen[0][0, 0].numel()
        heated += bool(added.any())
        for method in ("gradcam", "hirescam"):
            found = maps(model, pictures, target, method=method)
            np.testing.assert_allclose(found, added, rtol=1e-3, atol=1e-5 * added.max())
    assert heated, "of some class there is something to compare"


def test_methods_differ_where_places_do() -> None:
    model = network("alexnet")
    pictures = RECIPE(noise(2))
    plain, exact = (maps(model, pictures, 1, method=method) for method in ("gradcam", "hirescam"))
    assert np.abs(plain / plain.max() - exact / exact.max()).max() > 0.05


@pytest.mark.parametrize("pool", ["none", "mean", "max", "attention"])
def test_through_the_pooling(pool: Any) -> None:
    """Slices in batches, each with the gradient of its embedding, are the same as all at once."""
    model = network(pool=pool)
    volume = noise(5)
    found = explain(model, volume, "b", batch_size=2)
    pictures = RECIPE(volume)
    held: list[Tensor] = []
    handle = model.backbone.get_submodule("layer4").register_forward_hook(
        lambda module, inputs, output: held.append(output)
    )
    logits = model(pictures) if pool == "none" else model(pictures[None])
    (slope,) = torch.autograd.grad(logits[:, 1].sum(), held)
    handle.remove()
    cams = (slope.mean(dim=(2, 3), keepdim=True) * held[0]).sum(dim=1).relu().detach().numpy()
    axes = measure_field_centers(model.backbone, find_layer(model.backbone, pictures), RECIPE.hw).axes
    places = PixelMapping.of(volume, RECIPE, range(5))
    heat = places.to_source(cams, axes)
    assert heat.max() > 0
    np.testing.assert_allclose(
        found.heat, heat / max(heat.max(), places.padding_heat(cams, axes)[0]), atol=1e-3
    )
    one = explain(model, volume, "b", batch_size=100)
    np.testing.assert_allclose(found.heat, one.heat, atol=1e-3)
    assert found.weights.sum() == pytest.approx(1)
    table = model.predict(volume, unit="image")
    np.testing.assert_allclose(found.weights, table["weight"], rtol=1e-5)
    assert found.probability == pytest.approx(model.predict(volume)["p_b"][0], rel=1e-4)


def test_some_slices_are_those_of_all_but_for_the_scale() -> None:
    model, volume = network("densenet121", seed=0, pool="attention"), noise(6)
    everything, some = explain(model, volume, "b"), explain(model, volume, "b", slices=[4, 1])
    assert some.slices == (1, 4)
    part = everything.heat[[1, 4]]
    np.testing.assert_allclose(some.heat, part / part.max(), atol=1e-4)
    np.testing.assert_allclose(some.weights, everything.weights[[1, 4]])
    assert some.probability == pytest.approx(everything.probability)
    assert explain(model, volume, "b", slices=2).slices == (2,)


def test_the_target() -> None:
    model, volume = network(), noise(2)
    by_default = explain(model, volume)
    assert by_default.target == model.predict(volume)["predicted"][0]
    assert explain(model, volume, 2).target == "c"
    numbered: Any = np.int64(2)
    np.testing.assert_array_equal(explain(model, volume, "c").heat, explain(model, volume, numbered).heat)
    assert not np.array_equal(explain(model, volume, "a").heat, explain(model, volume, "c").heat)


def test_several_labels() -> None:
    model, volume = network(task="multilabel"), noise(2)
    found = explain(model, volume)
    scores: Any = model.predict(volume).loc[0, ["p_a", "p_b", "p_c"]]
    assert found.target == str(scores.idxmax()).removeprefix("p_")
    assert found.probability == pytest.approx(scores.max(), rel=1e-4)


def test_nothing_speaks_for_a_class() -> None:
    model = network()
    nn.init.constant_(model.head.weight, -1.0)
    found = explain(model, noise(2), "a")
    assert not found.heat.any()
    assert found.outside == 0
    assert found.overlay().dtype == np.uint8


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_stays_as_it_was(frozen: bool, context: Any) -> None:
    model = network("mobilenet_v3_small")
    expected = explain(model, noise(2), "b").heat
    assert expected.any()
    if frozen:
        model.freeze()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.train()
    modes = [m.training for m in model.modules()]
    asked = [p.requires_grad for p in model.parameters()]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with context():
        found = explain(model, noise(2), "b")
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
    np.testing.assert_allclose(found.heat, expected, atol=1e-5)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == asked
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_hooks_go_when_something_fails() -> None:
    model = network("mobilenet_v3_small")
    nn.init.constant_(next(model.backbone.parameters()), float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        explain(model, noise(2))
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card here")
def test_on_a_graphics_card() -> None:
    model = network()
    expected = explain(model, noise(2), "b")
    found = explain(model.to("cuda"), noise(2), "b")
    np.testing.assert_allclose(found.heat, expected.heat, atol=0.05)


class Rows(nn.Module):
    """(B, C, h, w) to (B, h, w, C), and back again as tokens behind a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 8, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1))
        tokens = self.last(tokens + self.attention(tokens, tokens, tokens)[0])
        logits: Tensor = self.head(tokens[:, 0])
        return logits


def test_tokens_are_taken_where_they_still_have_a_say() -> None:
    register_backbone("rows", Rows, size=64)
    model = network("rows", preprocess=RECIPE.replace(size=64))
    found = explain(model, noise(2), "b")
    assert (found.layer, found.cells) == ("norm", (8, 8))
    assert explain(model, noise(2), "b", layer="patch").layer == "patch"


class Sorted(nn.Module):
    """Tokens that are sorted by columns after the patches, as Hiera sorts them by windows."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 8, 8)
        self.norm = nn.LayerNorm(8)
        self.last = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.patch(x)
        tokens = self.norm(maps.flatten(2).transpose(1, 2))
        side = maps.shape[2]
        tokens = self.last(tokens.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2))
        logits: Tensor = self.head(tokens.mean(dim=1))
        return logits


def test_tokens_in_another_order_than_the_image_are_left_out() -> None:
    register_backbone("sorted", Sorted, size=64)
    model = network("sorted", preprocess=RECIPE.replace(size=64))
    assert explain(model, noise(2), "b").layer == "norm"
    with pytest.raises(TrainingError, match="not in the order of the image"):
        explain(model, noise(2), "b", layer="last")


def test_channels_last() -> None:
    swin = network("swin_t", preprocess=RECIPE.replace(size=96))
    first, last = (explain(swin, noise(2), "b", layer=name) for name in ("permute", "norm"))
    np.testing.assert_allclose(first.heat, last.heat, atol=1e-4)
    wide = network("swin_t", preprocess=RECIPE.replace(size=(64, 128)))
    assert explain(wide, noise(2), "b", layer="norm").cells == (2, 4)


def test_small_pictures_take_an_earlier_layer() -> None:
    model = network(preprocess=RECIPE.replace(size=32))
    assert (explain(model, noise(2)).layer, explain(model, noise(2)).cells) == ("layer3", (2, 2))


def test_a_network_without_rows_and_columns() -> None:
    register_backbone(
        "flat", lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.Linear(4, 2)), size=16
    )
    with pytest.raises(TrainingError, match="has spatial resolution"):
        explain(network("flat", preprocess=RECIPE.replace(size=16)), noise(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "d"}, "no class 'd'; expected 'a', 'b', 'c'"),
        ({"target": 3}, "no class 3"),
        ({"target": -1}, "no class -1"),
        ({"target": True}, "no class True"),
        ({"target": 1.0}, "no class 1.0"),
        ({"method": "lime"}, 'method must be "gradcam" or "hirescam"'),
        ({"layer": "layer5"}, r"no layer 'layer5'; .* did you mean 'layer"),
        ({"layer": ""}, "no layer ''"),
        ({"layer": "avgpool"}, "output of the layer 'avgpool' is"),
        ({"slices": 4}, "uses of this volume, 0 to 3"),
        ({"slices": []}, r"slices=\[\] are not"),
        ({"slices": "all"}, "an index or several"),
        ({"slices": 1.5}, "an index or several"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        explain(network(), noise(), **options)


def test_only_what_the_recipe_takes() -> None:
    model = network(preprocess=RECIPE.replace(slices=2))
    found = explain(model, noise(6), "b")
    assert found.slices == (0, 5)
    with pytest.raises(TrainingError, match="this volume, \\[0, 5\\]"):
        explain(model, noise(6), slices=3)
    with pytest.raises(TrainingError, match="slice 3 has no heat map; expected one of 0, 5"):
        found.overlay(3)
    uneven = network(preprocess=RECIPE.replace(slices=3))
    with pytest.raises(GeometryError, match="unevenly"):
        explain(uneven, noise(6), "b").to_volume()


def test_overlay_is_the_picture_where_it_is_cold() -> None:
    found = explain(network(), noise(3), "b")
    gray = render(found.volume, index=1, window=SEEN)
    assert np.array_equal(found.overlay(1, alpha=0.0), np.repeat(gray[..., None], 3, axis=2))
    over = found.overlay(1).astype(int)
    heat = found.of_slice(1)
    cold = heat < 0.002
    assert np.abs(over - gray[..., None])[cold].max(initial=0) <= 1
    assert np.abs(over - gray[..., None])[heat > 0.6 * heat.max()].max() > 20
    assert found.overlay().shape == (50, 60, 3)
    assert not np.array_equal(found.overlay(1, colormap="viridis"), found.overlay(1))
    choices: list[Any] = [{"alpha": 1.1}, {"colormap": "nothing"}]
    for wrong in choices:
        with pytest.raises(TrainingError):
            found.overlay(1, **wrong)


def test_overlay_has_square_pixels_and_is_upright() -> None:
    array = np.zeros((1, 2, 30, 20), np.float32)
    array[0, :, :5] = 1.0
    # coronal: rows lead up, so that the first ones are shown at the bottom; 2 mm against 1 mm
    affine = np.array([[0.0, 0, 1, 0], [4, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    found = explain(network(), Volume(array, affine), "b")
    shown = found.overlay(0, alpha=0.0)
    assert shown.shape == (60, 20, 3)
    assert shown[52:].min() > 200
    assert shown[:45].max() == 0


def test_pictures_for_people() -> None:
    model = network()
    several, one = explain(model, noise(9), "b"), explain(model, noise(1), "b")
    for figure, axes in ((several.plot(), 14), (one.plot(), 3)):
        parts: list[Any] = list(figure.subfigs) or [figure]
        assert sum(len(part.axes) for part in parts) == axes
    assert one._repr_png_().startswith(b"\x89PNG")
    for options, message in (({"most": 0}, "most"), ({"most": 2.5}, "most"), ({"alpha": "1"}, "alpha")):
        with pytest.raises(TrainingError, match=message):
            one.plot(**options)
    with pytest.raises(TrainingError, match="no colormap"):
        one.plot(colormap=["inferno"])  # type: ignore[arg-type]  # on purpose


def test_names_of_classes_are_no_formulas() -> None:
    model = network()
    for slices in (1, 3):
        found = explain(model, noise(slices), "b")
        replace(found, target="$\\frac{$").plot().savefig(io.BytesIO())


def test_from_files_and_nothing_of_a_patient(tmp_path: Path) -> None:
    write_stack(tmp_path / "series", [0, 2, 4], PatientID="SENTINEL", PatientName="SENTINEL^NAME")
    model = network(preprocess=Preprocess(size=64))
    found = explain(model, tmp_path / "series", "b")
    assert isinstance(found, Explanation)
    assert found.heat.shape == found.volume.shape[1:]
    np.testing.assert_array_equal(found.heat, explain(model, medimg.scan(tmp_path)[0], "b").heat)
    assert "SENTINEL" not in repr(found)
    assert repr(found).startswith("Explanation(b, probability 0.")


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    explain(network(), noise(2), progress=True)
    assert "explaining" in capsys.readouterr().err
