"""Terms of the methods: what they add, where their gradients go, and that a small training adapts by them."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medimg import Preprocess, adapt
from medimg.adapt import Side, coral_loss, mmd_loss, moment_distance
from medimg.adapt.base import Adaptation, AdaptationTerm
from medimg.adapt.terms import total_loss
from medimg.errors import TrainingError
from tests.models.fakes import images
from tests.sampling import SLOW

METHODS: dict[str, Callable[[Any], Adaptation]] = {
    "coral": lambda target: adapt.CORAL(target, weight=3.0),
    "coral of the paper": lambda target: adapt.CORAL(target, weight=30.0, relative=False),
    "mmd": adapt.MMD,
    "dann": lambda target: adapt.DANN(target, hidden=16),
    "cdan": lambda target: adapt.CDAN(target, hidden=16),
    "cdan plain": lambda target: adapt.CDAN(target, hidden=16, entropy=False),
    "m3sda": lambda target: adapt.MultiSource(target, domain="column", weight=1.0),
    "m3sda of the paper": lambda target: adapt.MultiSource(
        target, domain="column", weight=0.1, relative=False
    ),
    "mdan": lambda target: adapt.MultiSource(target, "mdan", domain="column", hidden=16),
    "mdan-hard": lambda target: adapt.MultiSource(target, "mdan-hard", domain="column", hidden=16),
}


def sides(seed: int = 0, features: int = 4, *, n: int = 10, m: int = 8) -> tuple[Tensor, Side, Side]:
    """Losses, a source of two domains, and a target that is shifted."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(n, features, generator=generator)
    target = torch.randn(m, features, generator=generator) + 1.0
    logits = torch.randn(n + m, 3, generator=generator)
    return (
        torch.rand(n, generator=generator),
        Side(source, logits[:n], torch.arange(n) % 3, torch.arange(n) % 2),
        Side(target, logits[n:]),
    )


def term_of(name: str, features: int = 4) -> AdaptationTerm:
    torch.manual_seed(0)
    term = METHODS[name](images(4)).make_term(features, 3, 2)
    assert term is not None
    return term


@pytest.mark.parametrize("name", METHODS)
def test_a_term_gives_a_finite_scalar_and_scalars_for_the_log(name: str) -> None:
    losses, source, target = sides()
    total, parts = term_of(name)(losses, source, target, 0.5)
    assert total.shape == ()
    assert parts
    for value in (total, *parts.values()):
        assert value.shape == ()
        assert math.isfinite(value.item())
    assert not any(value.requires_grad for value in parts.values())


def test_matching_adds_its_weighed_distance() -> None:
    losses, source, target = sides()
    s, t = source.embeddings, target.embeddings
    coral, _ = term_of("coral")(losses, source, target, 0.0)
    assert coral.item() == pytest.approx((losses.mean() + 3.0 * coral_loss(s, t, relative=True)).item())
    coral, _ = term_of("coral of the paper")(losses, source, target, 0.0)
    assert coral.item() == pytest.approx((losses.mean() + 30.0 * coral_loss(s, t)).item())
    mmd, _ = term_of("mmd")(losses, source, target, 0.0)
    assert mmd.item() == pytest.approx((losses.mean() + mmd_loss(s, t)).item())
    several = [s[source.domains == n] for n in (0, 1)]
    moments, _ = term_of("m3sda")(losses, source, target, 0.0)
    expected = losses.mean() + moment_distance(several, t, relative=True)
    assert moments.item() == pytest.approx(expected.item())
    moments, _ = term_of("m3sda of the paper")(losses, source, target, 0.0)
    assert moments.item() == pytest.approx((losses.mean() + 0.1 * moment_distance(several, t)).item())


@pytest.mark.parametrize("name", ["dann", "cdan", "cdan plain"])
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_embeddings_get_the_discriminators_gradient_reversed_and_ramped(name: str, progress: float) -> None:
    losses, source, target = sides()
    term = term_of(name)

    def gradients(progress: float) -> tuple[Tensor, list[Tensor]]:
        leaf = source.embeddings.clone().requires_grad_(True)
        total, _ = term(losses, source._replace(embeddings=leaf), target, progress)
        first, *rest = torch.autograd.grad(total, [leaf, *term.parameters()])
        return first, list(rest)

    found, own = gradients(progress)
    most, expected_own = gradients(50.0)  # beyond the end: nothing changes any more
    torch.testing.assert_close(found, most * adapt.ramp(progress) / adapt.ramp(1.0))
    # the discriminator learns at its full rate from the start
    for a, b in zip(own, expected_own, strict=True):
        torch.testing.assert_close(a, b)


def test_a_step_against_the_discriminator_raises_its_loss() -> None:
    losses, source, target = sides()
    for name in ("dann", "cdan plain"):
        term = term_of(name)
        leaf = source.embeddings.clone().requires_grad_(True)
        total, before = term(losses, source._replace(embeddings=leaf), target, 1.0)
        (gradient,) = torch.autograd.grad(total, leaf)
        stepped = source._replace(embeddings=source.embeddings - 1e-2 * gradient)
        _, after = term(losses, stepped, target, 1.0)
        key = name.split()[0]
        assert after[key] > before[key]


@pytest.mark.parametrize("name", ["mdan", "mdan-hard"])
def test_mdan_descends_its_objective_while_its_discriminators_learn(name: str) -> None:
    losses, source, target = sides()
    term = term_of(name)
    leaf = source.embeddings.clone().requires_grad_(True)
    weights = losses.clone().requires_grad_(True)
    total, _ = term(weights, source._replace(embeddings=leaf), target, 1.0)
    by_features, by_losses, *own = torch.autograd.grad(total, [leaf, weights, *term.parameters()])

    # the closed form, with the discriminators' losses computed aside
    assert source.domains is not None
    judges: Any = term.discriminators
    objective = []
    for n in (0, 1):
        where = source.domains == n
        both = torch.cat([leaf[where], target.embeddings])
        logits = judges[n](both)
        truth = torch.cat([torch.zeros(int(where.sum())), torch.ones(len(target.embeddings))])
        each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        count = int(where.sum())
        objective.append(each[:count].mean() + each[count:].mean())
    told = torch.stack(objective)
    by_source = torch.stack([weights[source.domains == n].mean() for n in (0, 1)])
    value = adapt.mdan_objective(by_source, adapt.ramp(1.0) * told, gamma=10.0 if name == "mdan" else None)
    torch.testing.assert_close(total, value)
    expected = torch.autograd.grad(value, [leaf, weights], retain_graph=True)
    torch.testing.assert_close(by_features, expected[0])
    torch.testing.assert_close(by_losses, expected[1])
    learning = torch.autograd.grad(told.sum(), list(term.parameters()))
    for a, b in zip(own, learning, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["m3sda", "mdan", "mdan-hard"])
def test_a_batch_may_lack_a_source(name: str) -> None:
    losses, source, target = sides()
    alone = source._replace(domains=torch.zeros(len(losses), dtype=torch.long))
    term = term_of(name)
    leaf = source.embeddings.clone().requires_grad_(True)
    total, _ = term(losses, alone._replace(embeddings=leaf), target, 0.5)
    total.backward()
    assert leaf.grad is not None
    assert bool(leaf.grad.isfinite().all())
    assert all(p.grad is not None for p in term.parameters())


def test_long_products_are_randomized_and_the_same_each_time() -> None:
    method = adapt.CDAN(images(4), hidden=8, seed=3)
    losses, _, _ = sides()
    source, target = (
        Side(torch.randn(10, 2000), torch.randn(10, 3)),
        Side(torch.randn(4, 2000), torch.randn(4, 3)),
    )
    term, again = method.make_term(2000, 3, 1), method.make_term(2000, 3, 1)
    assert dict(term.named_buffers())["for_embeddings"].shape == (2000, 4096)
    for name, buffer in term.named_buffers():
        assert torch.equal(buffer, dict(again.named_buffers())[name])
    total, _ = term(losses, source, target, 0.5)
    assert math.isfinite(total.item())
    assert not list(method.make_term(1365, 3, 1).buffers())  # 4095


def test_conditional_terms_take_several_labels() -> None:
    losses, source, target = sides()
    several = source._replace(labels=torch.ones(10, 3))
    total, _ = term_of("cdan")(losses, several, target, 0.5)
    assert math.isfinite(total.item())
    other, _ = term_of("cdan")(losses, source, target, 0.5)
    assert total.item() != other.item()


def test_labels_of_the_target_are_not_needed_and_a_missing_target_is_an_error() -> None:
    losses, source, _ = sides()
    for name in METHODS:
        with pytest.raises(TrainingError, match="target"):
            term_of(name)(losses, source, None, 0.5)


def test_several_terms_count_the_classification_once() -> None:
    losses, source, target = sides()
    terms = [term_of("coral"), term_of("mmd")]
    total, parts = total_loss(terms, losses, source, [target, target], 0.5)
    added = [term(losses, source, target, 0.5)[0] - losses.mean() for term in terms]
    assert total.item() == pytest.approx((losses.mean() + sum(added)).item())
    assert set(parts) == {"coral", "mmd"}
    assert total_loss([], losses, source, [], 0.5)[0].item() == pytest.approx(losses.mean().item())


class Toy:
    """A weak sign of the class that both domains share, and a strong one that only the source has."""

    def __init__(self, seed: int, shift: float = 2.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(400) % 2
        self.domains = torch.arange(400) // 2 % 2
        noise = torch.randn(2, 400, 2, generator=generator)
        sign = 2.0 * self.labels - 1.0
        shared = [sign + 0.6 * one[:, 0] for one in noise]
        self.source = torch.stack([shared[0], sign + 0.3 * noise[0, :, 1] + 0.3 * self.domains], dim=1)
        self.target = torch.stack([shared[1], shift + 0.3 * noise[1, :, 1]], dim=1)

    def accuracy(self, method: Any, steps: int = 200 if SLOW else 100) -> float:
        """Of the target, after a training like that of ``fine_tune``."""
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        head = nn.Linear(8, 2)
        term = method.make_term(8, 2, 2) if method is not None else AdaptationTerm()
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters(), *term.parameters()], lr=5e-3)
        generator = torch.Generator().manual_seed(1)
        for step in range(steps):
            a, b = (torch.randint(0, 400, (64,), generator=generator) for _ in range(2))
            f, g = body(self.source[a]), body(self.target[b])
            losses = F.cross_entropy(head(f), self.labels[a], reduction="none")
            source = Side(f, head(f), self.labels[a], self.domains[a])
            total, _ = term(losses, source, Side(g, head(g)), step / steps)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        with torch.no_grad():
            return float((head(body(self.target)).argmax(dim=1) == self.labels).float().mean())


@functools.cache
def toys_and_plain_accuracy(shift: float) -> tuple[list[Toy], float]:
    """Several, or without ``MEDIMG_SLOW=1`` one, and what comes of them without adaptation."""
    toys = [Toy(seed, shift) for seed in range(2 if SLOW else 1)]
    return toys, float(np.mean([toy.accuracy(None) for toy in toys]))


@pytest.mark.parametrize("name", METHODS)
def test_a_small_training_does_better_on_the_target_with_it(name: str) -> None:
    # classes are matched by what is predicted of them: that must be better than chance to begin with
    toys, plain = toys_and_plain_accuracy(-0.5 if name.startswith("cdan") else 2.0)
    adapted = np.mean([toy.accuracy(METHODS[name](images(4))) for toy in toys])
    assert adapted > plain + 0.15


@pytest.mark.parametrize("name", METHODS)
def test_settings_are_json_and_say_nothing_of_the_images(name: str) -> None:
    method = METHODS[name](images(4, prefix="secret"))
    found = method.settings()
    assert json.loads(json.dumps(found)) == found
    assert found["target_items"] == 4
    for text in (repr(method), json.dumps(found)):
        assert "secret" not in text
    assert found["name"] in repr(method)


def test_names_of_domains_stay_out_of_settings() -> None:
    method = adapt.MultiSource(images(4), domain=["clinic a", "clinic b"] * 2)
    assert method.settings()["domain"] == "own"
    assert "clinic" not in repr(method)


@pytest.mark.parametrize(
    "make",
    [
        lambda t: adapt.CORAL(t, weight=0.0),
        lambda t: adapt.CORAL(t, weight=math.nan),
        lambda t: adapt.CORAL(t, weight=True),
        lambda t: adapt.MMD(t, bandwidths=()),
        lambda t: adapt.MMD(t, estimate="x"),  # type: ignore[arg-type]  # refused
        lambda t: adapt.DANN(t, hidden=0),
        lambda t: adapt.CDAN(t, weight=-1),
        lambda t: adapt.MultiSource(t, "x"),  # type: ignore[arg-type]  # refused
        lambda t: adapt.MultiSource(t, gamma=0),
        lambda t: adapt.MultiSource(t, weight=0.0),
        lambda t: adapt.PGD(epsilon=0),
        lambda t: adapt.PGD(epsilon=2.0),
        lambda t: adapt.PGD(share=1.5),
        lambda t: adapt.PGD(steps=0),
    ],
)
def test_unsound_settings_are_refused(make: Any) -> None:
    with pytest.raises(TrainingError, match="found"):
        make(images(4))


def test_targets_that_do_not_fit_are_refused() -> None:
    train = images(4)
    with pytest.raises(TrainingError, match="with_preprocess"):
        adapt.CORAL(images(4, preprocess=Preprocess(size=32))).check(("a", "b"), train)
    with pytest.raises(TrainingError, match="unit"):
        adapt.CORAL(images(4, unit="series")).check(("a", "b"), train)
    with pytest.raises(TrainingError, match="at least 2"):
        adapt.CORAL(images(1)).check(("a", "b"), train)
    with pytest.raises(TrainingError, match="list"):
        adapt.CORAL([1, 2]).check(("a", "b"), train)  # type: ignore[arg-type]  # refused
    adapt.CORAL(images(4)).check(("a", "b"), train)
    adapt.PGD().check(("a", "b"), train)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_a_ramped_weight_grows_with_the_training(progress: float) -> None:
    losses, source, target = sides()
    s, t = source.embeddings, target.embeddings
    distances = {
        adapt.CORAL: coral_loss(s, t, relative=True),
        adapt.MMD: mmd_loss(s, t),
        adapt.MultiSource: moment_distance([s[source.domains == n] for n in (0, 1)], t, relative=True),
    }
    for method, distance in distances.items():
        more = {"domain": "column"} if method is adapt.MultiSource else {}
        term = method(images(4), weight=2.0, ramped=True, **more).make_term(4, 3, 2)
        assert term is not None
        total, _ = term(losses, source, target, progress)
        assert total.item() == pytest.approx((losses.mean() + 2.0 * adapt.ramp(progress) * distance).item())


@pytest.mark.parametrize("cap", [0.1, 1e6])
def test_a_cap_limits_the_gradient_and_nothing_else(cap: float) -> None:
    losses, source, target = sides()
    weights = torch.randn(4, generator=torch.Generator().manual_seed(1))

    def pull(method: Any) -> tuple[Tensor, Tensor]:
        """Return the gradients of classification and of the weighted distance."""
        leaf = source.embeddings.clone().requires_grad_(True)
        plain = losses + leaf @ weights
        total, _ = method.make_term(4, 3, 1)(plain, source._replace(embeddings=leaf), target, 0.5)
        (own,) = torch.autograd.grad(plain.mean(), leaf, retain_graph=True)
        (both,) = torch.autograd.grad(total, leaf)
        return own, both - own

    own, free = pull(adapt.MMD(images(4), weight=5.0))
    _, capped = pull(adapt.MMD(images(4), weight=5.0, cap=cap))
    expected = min(float(free.norm()), cap * float(own.norm()))
    assert float(capped.norm()) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(capped / capped.norm(), free / free.norm(), rtol=1e-4, atol=1e-4)


def test_settings_are_those_of_earlier_versions_unless_a_weight_is_ramped_or_capped() -> None:
    assert not {"ramped", "cap"} & adapt.MMD(images(4)).settings().keys()
    found = adapt.CORAL(images(4), ramped=True, cap=0.5).settings()
    assert (found["ramped"], found["cap"]) == (True, 0.5)


@pytest.mark.parametrize("fields", [{"cap": 0.0}, {"cap": -1.0}, {"ramped": "yes"}])
def test_settings_of_weights_are_checked(fields: Any) -> None:
    for method in (adapt.CORAL, adapt.MMD, adapt.MultiSource):
        with pytest.raises(TrainingError):
            method(images(4), **fields)
