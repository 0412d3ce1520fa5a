from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from torch import Tensor, nn

import medimg
from medimg import ImageDataset, Preprocess, TransferClassifier
from medimg.errors import TrainingError
from medimg.models.pooling import embed_slices, slice_weights
from medimg.phantom import write_ct_dataset
from tests.models.fakes import changed, classifier, state

POOLS = ("mean", "max", "attention")
SIDE = 16


class Body(nn.Module):
    """Slices know of each other in training, by batch normalization; what passes is counted."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            convolution = nn.Conv2d(3, 6, 3, stride=2)
        self.net = nn.Sequential(
            convolution, nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.calls: list[tuple[int, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((len(x), self.training, torch.is_grad_enabled()))
        found: Tensor = self.net(x)
        return found


def bags(count: int = 2, slices: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(count, slices, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def trained(model: TransferClassifier, x: Tensor, mask: Tensor | None, **more: Any) -> Tensor:
    """Pass, and backpropagate something that every output has a part in."""
    model.zero_grad()
    logits: Tensor = model(x, mask, **more)
    (logits * torch.arange(1.0, 1.0 + logits.numel()).view_as(logits)).sum().backward()
    return logits.detach()


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_neither_results_nor_gradients(pool: str, training: bool) -> None:
    x = torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([x, torch.full((2, 4, 3, 32, 32), 1e4)], dim=1)
    mask = torch.arange(7).expand(2, 7) < 3
    plain, masked = (classifier("resnet18", pool=pool).train(training) for _ in range(2))
    expected, found = trained(plain, x, None), trained(masked, padded, mask)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(masked)[name], gradient, rtol=1e-4, atol=1e-5)
    for name in changed(state(plain), state(masked)):
        torch.testing.assert_close(state(masked)[name], state(plain)[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pool", POOLS)
def test_padding_gets_no_gradient(pool: str) -> None:
    model = classifier(pool=pool).eval()
    x = torch.randn(2, 4, 3, 64, 64, requires_grad=True)
    mask = torch.tensor([[True, False, True, False], [True, True, True, True]])
    trained(model, x, mask)
    assert x.grad is not None
    assert not x.grad[~mask].any()
    assert torch.isfinite(x.grad).all()
    if pool != "max":
        assert all(x.grad[mask].flatten(1).any(dim=1))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grad_slices", [5, 6, 100])
def test_enough_gradients_are_all_gradients(masked: bool, grad_slices: int) -> None:
    mask = torch.arange(5) < torch.tensor([[3], [5]]) if masked else None
    outcomes = []
    for more in ({}, {"grad_slices": grad_slices}):
        body = Body()
        before = torch.random.get_rng_state()
        embeddings = embed_slices(body, bags(), mask, **more)
        assert torch.equal(torch.random.get_rng_state(), before)
        embeddings.square().sum().backward()
        outcomes.append((embeddings, gradients(body), state(body)))
    (one, grads, after), (other, other_grads, other_after) = outcomes
    assert torch.equal(one, other)
    assert not changed(grads, other_grads)
    assert not changed(after, other_after)


def test_gradient_of_a_few_slices() -> None:
    """That of the slices that keep it, the others being constants; batch statistics are of these alone."""
    body = Body().train()
    x = bags(3, 6).requires_grad_()
    mask = torch.arange(6) < torch.tensor([[6], [1], [4]])
    expected_others = Body().eval()(x.detach().flatten(0, 1)).view(3, 6, -1)
    torch.manual_seed(3)
    embeddings = embed_slices(body, x, mask, grad_slices=2)
    assert embeddings[~mask].abs().max() == 0
    embeddings.sum().backward()
    assert x.grad is not None
    kept = x.grad.flatten(2).any(dim=2)
    assert kept.sum(dim=1).tolist() == [2, 1, 2]
    assert not (kept & ~mask).any()
    alone = Body().train()
    expected = alone(x.detach()[kept])
    assert torch.equal(embeddings[kept], expected)
    torch.testing.assert_close(embeddings[mask & ~kept], expected_others[mask & ~kept], rtol=1e-5, atol=1e-6)
    expected.sum().backward()
    assert not changed(gradients(alone), gradients(body))
    assert not changed(state(alone), state(body))
    assert body.training
    assert body.net[1].training


def test_slices_are_drawn_anew_and_alike_with_padding() -> None:
    def kept(x: Tensor, mask: Tensor | None) -> Tensor:
        x = x.clone().requires_grad_()
        embed_slices(Body().eval(), x, mask, grad_slices=2).sum().backward()
        assert x.grad is not None
        return x.grad.flatten(2).any(dim=2)

    torch.manual_seed(0)
    first, second = kept(bags(8), None), kept(bags(8), None)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    padded = torch.cat([bags(8), torch.zeros(8, 3, 3, SIDE, SIDE)], dim=1)
    mask = torch.arange(8).expand(8, 8) < 5
    assert torch.equal(kept(padded, mask)[:, :5], first)
    torch.manual_seed(0)
    counts = torch.stack([kept(bags(16), None) for _ in range(50)]).float().mean(dim=(0, 1))
    torch.testing.assert_close(counts, torch.full((5,), 0.4), rtol=0, atol=0.06)


def test_memory_is_bounded() -> None:
    body = Body().train()
    embed_slices(body, bags(1, 150), grad_slices=4)
    *others, kept = body.calls
    assert kept == (4, True, True)
    assert [size for size, _, _ in others] == [32, 32, 32, 32, 18]
    assert not any(training or gradient for _, training, gradient in others)
    body.calls.clear()
    with torch.no_grad():
        embed_slices(body.eval(), bags(1, 70))
        assert [size for size, _, _ in body.calls] == [32, 32, 6]
    body.calls.clear()
    embed_slices(body.requires_grad_(False), bags(1, 70))  # frozen
    assert [size for size, _, _ in body.calls] == [32, 32, 6]
    body.calls.clear()
    embed_slices(body.requires_grad_(True), bags(1, 70))
    assert [size for size, _, _ in body.calls] == [70]


def test_parts_change_nothing() -> None:
    body = Body().eval()
    mask = torch.rand(3, 40, generator=torch.Generator().manual_seed(0)) < 0.7
    whole = embed_slices(body, bags(3, 40), mask)
    with torch.no_grad():
        torch.testing.assert_close(embed_slices(body, bags(3, 40), mask), whole.detach())


def test_modes_come_back_after_an_error() -> None:
    body = Body().train()
    body.net[1].eval()
    with pytest.raises(RuntimeError):
        embed_slices(body, torch.zeros(1, 4, 2, SIDE, SIDE), grad_slices=1)
    assert body.training
    assert not body.net[1].training


@pytest.mark.parametrize("grad_slices", [0, -1, 1.5, "2", True])
def test_unsound_numbers_of_slices(grad_slices: Any) -> None:
    with pytest.raises(TrainingError, match="grad_slices"):
        embed_slices(Body(), bags(), grad_slices=grad_slices)


@pytest.mark.parametrize("pool", POOLS)
def test_a_classifier_keeps_a_few_gradients(pool: str) -> None:
    model = classifier(pool=pool).train()
    x = torch.randn(2, 5, 3, 64, 64, requires_grad=True)
    trained(model, x, None, grad_slices=2)
    assert x.grad is not None
    assert x.grad.flatten(2).any(dim=2).sum(dim=1).max() <= 2
    assert model.head.weight.grad is not None
    if model.attention is not None:
        # the attention sees all slices
        assert all(p.grad is not None and p.grad.any() for p in model.attention.value.parameters())
    assert torch.equal(model.eval()(x, grad_slices=9), model(x))


def test_weights_of_slices() -> None:
    embeddings = torch.tensor([[1.0, 0.0, 5.0, 2.0], [3.0, 4.0, 6.0, 2.0], [0.0, 4.0, 0.0, 2.0]])
    assert slice_weights(embeddings, "mean", None).tolist() == pytest.approx([1 / 3] * 3)
    assert slice_weights(embeddings, "none", None).tolist() == pytest.approx([1 / 3] * 3)
    expected = [1 / 12, (2 + 1 / 2 + 1 / 3) / 4, (1 / 2 + 1 / 3) / 4]
    assert slice_weights(embeddings, "max", None).tolist() == pytest.approx(expected)
    attention = classifier(pool="attention").attention
    assert attention is not None
    rows = torch.randn(7, 512)
    with torch.no_grad():
        weights = slice_weights(rows, "attention", attention)
        pooled = (weights[:, None] * rows).sum(dim=0)
        torch.testing.assert_close(pooled, attention(rows[None])[0])
    assert float(weights.sum()) == pytest.approx(1)


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six chest CT; one of each class has fewer slices than the others."""
    root = tmp_path_factory.mktemp("ct") / "data"
    write_ct_dataset(root, patients=6, slices=4, size=48, classes=("normal", "nodule"), progress=False)
    for series in sorted((root / "series").iterdir())[:2]:
        max(series.iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2]).unlink()
    return root


RECIPES = {
    "adjacent": Preprocess(size=32, channels="adjacent"),
    "windows": Preprocess(size=32, window=("lung", "soft_tissue", "bone")),
}


@pytest.mark.parametrize("channels", RECIPES)
@pytest.mark.parametrize("pool", POOLS)
def test_series_in_the_channels_of_the_recipe(ct: Path, channels: str, pool: str) -> None:
    recipe = RECIPES[channels]
    data = ImageDataset.from_csv(ct / "labels.csv", patient="patient_id", preprocess=recipe, unit="series")
    lengths = {len(data[n][0]) for n in range(len(data))}
    assert len(lengths) == 2
    first = data[0][0]
    assert not torch.equal(first[:, 0], first[:, 1])
    model = classifier(pool=pool, preprocess=recipe, classes=data.classes)
    before = state(model)
    medimg.fine_tune(model, data, head_epochs=0, epochs=1, batch_size=3, progress=False)
    assert {name.split(".")[0] for name in changed(before, state(model))} >= {"backbone", "head"}
    proba = model.predict_proba(data)
    columns = [f"p_{name}" for name in data.classes]
    folders = [str(Path(source).parent) for source in data.sources]
    table = model.predict(folders)
    np.testing.assert_allclose(table[columns].to_numpy(), proba, rtol=1e-5)
    slices = model.predict(folders, unit="image")
    assert slices.groupby("source", sort=False).size().tolist() == [len(data[n][0]) for n in range(len(data))]
    np.testing.assert_allclose(slices.groupby("source")["weight"].sum(), 1.0, rtol=1e-6)


def test_series_are_trained_with_a_few_gradients(ct: Path) -> None:
    recipe = RECIPES["adjacent"]
    data = ImageDataset.from_csv(ct / "labels.csv", patient="patient_id", preprocess=recipe, unit="series")
    model = classifier(pool="attention", preprocess=recipe, classes=data.classes)
    passed: list[int] = []
    model.backbone.register_forward_hook(
        lambda _, given, __: passed.append(len(given[0])) if torch.is_grad_enabled() else None
    )
    before = state(model)
    settings: dict[str, Any] = {"head_epochs": 0, "epochs": 1, "batch_size": 3, "progress": False}
    medimg.fine_tune(model, data, grad_slices=2, **settings)
    assert passed == [6, 6]
    assert {name.split(".")[0] for name in changed(before, state(model))} == {"backbone", "head", "attention"}
