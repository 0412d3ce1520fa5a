"""AdaBN and PGD: what they change, and what they leave alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from medimg import Preprocess, adapt
from medimg.errors import TrainingError
from medimg.models.module_mode import module_mode
from tests.models.fakes import SMALL, changed, classifier, images, state
from tests.models.small_network import small_classifier

CPU = torch.device("cpu")


def target(n: int = 8, **fields: Any) -> Any:
    return images(n, seed=5, **fields)


def test_adabn_is_update_bn_on_the_target() -> None:
    model, same = small_classifier("resnet18").eval(), small_classifier("resnet18")
    data = target(8)
    adapt.AdaBN(data).finish(model, CPU, 4, 0)
    update_bn(DataLoader([data[n][0] for n in range(8)], batch_size=4), same)  # type: ignore[arg-type]  # a list will do
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, same.state_dict()[name])
    assert not model.training


def test_adabn_moves_statistics_alone_frozen_ones_too_and_restores_modes_and_momenta() -> None:
    model = small_classifier("resnet18").freeze(upto="layer2").train()
    before, modes = state(model), [m.training for m in model.modules()]
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    adapt.AdaBN(target()).finish(model, CPU, 3, 0)
    moved = changed(before, state(model))
    assert {name.rsplit(".", 1)[1] for name in moved} <= {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert "backbone.bn1.running_mean" in moved
    assert [m.training for m in model.modules()] == modes
    assert [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == momenta


def test_adabn_leaves_dropout_still_and_takes_no_random_numbers() -> None:
    torch.manual_seed(0)
    model = small_classifier("mobilenet_v2")
    before = torch.get_rng_state()
    adapt.AdaBN(target()).finish(model, CPU, 4, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_adabn_counts_every_item_alike_whatever_the_batch_size() -> None:
    found = []
    for batch_size in (2, 5, 8):
        model = small_classifier("resnet18")
        adapt.AdaBN(target(8)).finish(model, CPU, batch_size, 0)
        found.append(model.state_dict()["backbone.bn1.running_mean"])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_adabn_takes_bags_slice_by_slice() -> None:
    bags = target(4, unit="series", lengths=(1, 3, 2, 2))
    model, flat = small_classifier("resnet18", pool="mean"), small_classifier("resnet18")
    adapt.AdaBN(bags).finish(model, CPU, 8, 0)
    slices = torch.cat([bags[n][0] for n in range(4)])
    update_bn([slices], flat)
    found, expected = model.state_dict(), flat.state_dict()
    torch.testing.assert_close(found["backbone.bn1.running_var"], expected["backbone.bn1.running_var"])


def test_adabn_refuses_networks_without_batch_normalization() -> None:
    with pytest.raises(TrainingError, match="BatchNorm"):
        adapt.AdaBN(target()).finish(classifier("squeezenet1_1"), CPU, 4, 0)
    with pytest.raises(TrainingError, match="BatchNorm"):
        adapt.AdaBN(target()).check_model(classifier("squeezenet1_1"))
    adapt.AdaBN(target()).check_model(classifier("resnet18"))


def loss_of(model: nn.Module, labels: Tensor) -> Any:
    def loss(x: Tensor) -> Tensor:
        with module_mode(model, training=False):
            return F.cross_entropy(model(x), labels)

    return loss


def pictures(recipe: Preprocess, n: int = 4, *, bags: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (n, bags, 1, 64, 64) if bags else (n, 1, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.mean, recipe.std))
    return (torch.rand(shape, generator=generator).expand(*shape[:-3], 3, 64, 64) - mean) / std


def brightness(x: Tensor, recipe: Preprocess) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.mean, recipe.std))
    return x * std + mean


@pytest.mark.parametrize("bags", [0, 2])
@pytest.mark.parametrize("make", [classifier, lambda **fields: small_classifier("resnet18", **fields)])
def test_pgd_stays_within_its_bounds_and_raises_the_loss(make: Any, bags: int) -> None:
    model = make(pool="mean" if bags else "none").train()
    labels = torch.arange(4) % 2
    x = pictures(SMALL, bags=bags)
    before = state(model)
    method = adapt.PGD(epsilon=4 / 255)
    torch.manual_seed(0)
    found = method.perturb(x, loss_of(model, labels), SMALL)
    assert not changed(before, state(model))  # batch statistics too
    assert all(p.grad is None for p in model.parameters())
    assert not found.requires_grad
    light = brightness(found, SMALL)
    assert float(light.min()) >= -1e-6
    assert float(light.max()) <= 1 + 1e-6
    change = light - brightness(x, SMALL)
    assert 0.9 * 4 / 255 < float(change.abs().max()) <= 4 / 255 + 1e-6
    # gray stays gray
    torch.testing.assert_close(change[..., 0, :, :], change[..., 2, :, :], atol=1e-6, rtol=0)
    model.eval()
    with torch.no_grad():
        assert F.cross_entropy(model(found), labels) > F.cross_entropy(model(x), labels)
        # a random change of the same size does less
        noise = (torch.rand_like(x[..., :1, :, :]) - 0.5).sign() * 4 / 255
        noisy = (brightness(x, SMALL) + noise).clamp(0, 1)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SMALL.mean, SMALL.std))
        assert F.cross_entropy(model(found), labels) > F.cross_entropy(model((noisy - mean) / std), labels)


def test_pgd_changes_channels_apart_where_they_are_different_images() -> None:
    recipe = Preprocess(size=64, window=("lung", "bone", "brain"))
    model = small_classifier(preprocess=recipe).eval()
    x = pictures(recipe)
    found = adapt.PGD().perturb(x, loss_of(model, torch.arange(4) % 2), recipe)
    change = brightness(found, recipe) - brightness(x, recipe)
    assert not torch.allclose(change[:, 0], change[:, 2], atol=1e-4)


def test_pgd_can_leave_a_share_of_the_batch_as_it_is() -> None:
    model = small_classifier().eval()
    x = pictures(SMALL, 32)
    torch.manual_seed(0)
    found = adapt.PGD(share=0.5, steps=1).perturb(x, loss_of(model, torch.arange(32) % 2), SMALL)
    same = [torch.equal(a, b) for a, b in zip(found, x, strict=True)]
    assert 4 < sum(same) < 28


def test_pgd_is_the_same_for_the_same_seed_and_more_steps_go_further() -> None:
    model = small_classifier().eval()
    x, labels = pictures(SMALL), torch.arange(4) % 2

    def made(seed: int, steps: int = 3) -> Tensor:
        torch.manual_seed(seed)
        return adapt.PGD(steps=steps, step=2 / 255 / 4).perturb(x, loss_of(model, labels), SMALL)

    assert torch.equal(made(0), made(0))
    assert not torch.equal(made(0), made(1))
    with torch.no_grad():
        assert F.cross_entropy(model(made(0, 8)), labels) > F.cross_entropy(model(made(0, 1)), labels)
