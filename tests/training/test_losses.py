from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medimg.data.dataloader import EpochSampler
from medimg.training.class_weights import sampling_weights
from medimg.training.losses import make_loss
from medimg.training.optimization.lr_scheduler import warm_cosine
from medimg.training.optimization.optimizer import make_optimizer
from tests.models.fakes import classifier

LABELS = np.array([0] * 6 + [1] * 2)


def test_weighted_loss_gives_every_class_the_same_share() -> None:
    logits = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    targets = torch.from_numpy(LABELS)
    loss = make_loss(LABELS, 2, "multiclass", "loss")(logits, targets).mean()
    each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    expected = (each[:6].mean() + each[6:].mean()) / 2
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    plain = make_loss(LABELS, 2, "multiclass", None)(logits, targets).mean()
    assert float(plain) == pytest.approx(float(each.mean()), rel=1e-5)


def test_weighted_labels() -> None:
    labels = np.array([[1, 1], [0, 1], [0, 0], [0, 0]], dtype=np.float32)
    loss = make_loss(labels, 2, "multilabel", "loss")
    assert loss.weight is not None
    assert loss.weight.tolist() == [3.0, 1.0]
    value = float(loss(torch.zeros(4, 2), torch.from_numpy(labels)).mean())
    # at logit 0 each term is log 2; column 0: (3 + 1 + 1 + 1) / 4, column 1: 1
    assert value == pytest.approx(math.log(2) * (6 / 4 + 1) / 2, rel=1e-5)


def test_sampler_draws_classes_equally() -> None:
    labels = np.array([0] * 900 + [1] * 100)
    drawn = labels[list(EpochSampler(len(labels), 0, odds=sampling_weights(labels, "multiclass")))]
    assert len(drawn) == 1000
    assert 0.44 < drawn.mean() < 0.56


def test_weight_decay_spares_norms_and_biases() -> None:
    model = classifier("resnet18", pool="attention").freeze(upto="layer3")
    optimizer = make_optimizer(model, 1e-3, 1e-4)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in found
            continue
        group = found[id(parameter)]
        assert group["lr"] == (1e-4 if name.startswith("backbone.") else 1e-3)
        norm_or_bias = name.endswith("bias") or ".bn" in name or "downsample.1" in name
        assert (group["weight_decay"] == 0.0) == norm_or_bias, name
    assert optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("total", [1, 2, 9, 10, 1000])
def test_schedule(total: int) -> None:
    factors = [warm_cosine(step, total) for step in range(total)]
    assert all(0 < f <= 1 for f in factors)
    top = int(np.argmax(factors))
    assert factors[top] == 1.0
    assert top == int(total * 0.1)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
