"""Optimizers, schedules, losses and metrics of the user's own, and further epochs of a finished training."""

from __future__ import annotations

import math
import threading
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor, nn
from torch.optim import lr_scheduler

from medimg import FitResult, TransferClassifier, fine_tune, load
from medimg.adapt import CORAL
from medimg.errors import MedimgWarning, TrainingError
from medimg.training import resume as resume_file
from medimg.training.optimization.custom import CustomLoss, CustomParts
from tests.models.fakes import changed, images, state
from tests.models.small_network import small_classifier
from tests.training.test_resume import CutOffError, cut_after, without_times

SGD = partial(torch.optim.SGD, momentum=0.9)


def trained(model: Any, output: Path | None = None, *, val: Any = ..., **settings: Any) -> FitResult:
    given = images(6, prefix="val", seed=1) if val is ... else val
    defaults = {"head_epochs": 1, "epochs": 2, "batch_size": 4, "lr": 3e-3, "progress": False}
    return fine_tune(model, images(10), given, **{**defaults, "output": output, **settings})


def focal(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    each = nn.functional.cross_entropy(logits, labels, reduction="none")
    return (1 - torch.exp(-each)) ** gamma * each


def kappa(labels: Any, probabilities: Any) -> float:
    return float(cohen_kappa_score(labels, probabilities.argmax(axis=1)))


def brier(labels: Any, probabilities: Any) -> float:
    return -float(np.mean((probabilities[:, 1] - labels) ** 2))


def test_an_optimizer_gets_the_groups_of_the_built_in_one() -> None:
    seen: list[list[dict[str, Any]]] = []

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        seen.append([{**group, "params": len(group["params"])} for group in groups])
        return torch.optim.AdamW(groups)

    own, built_in = small_classifier(), small_classifier()
    found = trained(own, optimizer=make, schedule="constant")
    expected = trained(built_in, schedule="constant")
    assert without_times(found) == without_times(expected)
    assert not changed(state(own), state(built_in))
    tried, head, full = seen
    assert tried == full
    assert {group["lr"] for group in head} == {3e-3}
    rates = sorted({round(math.log(group["lr"] / 3e-3), 6) for group in full})
    assert len(rates) == 1 + 5  # the head's, and one for each stage
    assert {group["weight_decay"] for group in full} == {0.0, 0.01}


@pytest.mark.parametrize("optimizer", [SGD, torch.optim.RMSprop, partial(torch.optim.Adam, betas=(0.5, 0.9))])
def test_momentum_of_an_own_optimizer_stays(optimizer: Any) -> None:
    kept: list[Any] = []

    def make(groups: Any) -> Any:
        made = optimizer(groups)
        kept.append(made)
        return made

    trained(small_classifier(), optimizer=make)
    for made in kept:
        for group in made.param_groups:
            for name in ("momentum", "betas"):
                assert group.get(name) == made.defaults.get(name)


def test_it_is_recorded_by_name(tmp_path: Path) -> None:
    schedule = partial(lr_scheduler.StepLR, step_size=2, gamma=0.5)
    result = trained(
        small_classifier(),
        tmp_path,
        optimizer=SGD,
        schedule=schedule,
        loss=focal,
        balance=None,
        metrics={"kappa": kappa, "brier": brier},
        monitor="val_brier",
    )
    assert result.monitor == "val_brier"
    assert result.best["val_brier"] == max(row["val_brier"] for row in result.history)
    assert {"val_kappa", "val_brier"} <= set(result.to_pandas().columns)
    assert "val_kappa" in (tmp_path / "history.csv").read_text().splitlines()[0]
    assert "kappa" in result._repr_html_()
    assert "kappa" in [line.get_label() for line in result.plot().axes[1].lines]
    summary = load(tmp_path / "best.safetensors").training_summary
    assert summary is not None
    assert summary["optimizer"] == "torch.optim.sgd.SGD"
    assert summary["schedule"] == "torch.optim.lr_scheduler.StepLR"
    assert summary["loss"].endswith("test_custom.focal")
    assert summary["metrics"]["kappa"].endswith("test_custom.kappa")
    assert summary["best"]["val_brier"] == result.best["val_brier"]


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (lambda optimizer, steps: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps), 3e-3 / 6),
        (lr_scheduler.CosineAnnealingLR, None),
        (partial(lr_scheduler.StepLR, step_size=3, gamma=0.1), 3e-4),
        (partial(lr_scheduler.ExponentialLR, gamma=0.5), 3e-3 * 0.5**5),
        (lambda optimizer: lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=1), 3e-3),
        (lambda o, steps: lr_scheduler.OneCycleLR(o, max_lr=3e-3, total_steps=steps), None),
    ],
)
def test_schedules_know_the_steps_of_a_phase(schedule: Any, last: float | None) -> None:
    """Ten items in batches of four are three steps an epoch, two epochs a phase."""
    result = trained(small_classifier(), head_epochs=2, epochs=0, schedule=schedule)
    if last is None:
        assert 0 <= result.history[-1]["lr"] < 3e-3 / 4
    else:
        assert result.history[-1]["lr"] == pytest.approx(last)


def test_a_loss_of_torch_is_that_of_medimg() -> None:
    own, built_in = small_classifier(), small_classifier()
    module = nn.CrossEntropyLoss()
    found = trained(own, loss=module, balance=None)
    expected = trained(built_in, balance=None)
    assert without_times(found) == without_times(expected)
    assert not changed(state(own), state(built_in))
    assert module.reduction == "mean"


def test_forms_of_losses() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    each = nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(CustomLoss(nn.functional.cross_entropy)(logits, labels), each.mean().expand(4))
    indicators = torch.randint(0, 2, (4, 3)).float()
    several = nn.functional.binary_cross_entropy_with_logits(logits, indicators, reduction="none")
    torch.testing.assert_close(CustomLoss(nn.BCEWithLogitsLoss())(logits, indicators), several.mean(dim=1))
    with pytest.raises(TrainingError, match=r"returned \(2,\) torch.float32 for logits \(4, 3\)"):
        CustomLoss(lambda a, b: a[0, :2])(logits, labels)


def test_mixup_and_the_sampler_go_with_a_loss() -> None:
    result = trained(small_classifier(), loss=focal, balance="sampler", mixup=0.4)
    assert all(math.isfinite(row["train_loss"]) for row in result.history)


def adamw_of_all(groups: Any) -> Any:
    return torch.optim.AdamW([p for group in groups for p in group["params"]], lr=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sgd"}, r"optimizer must be a class such as torch\.optim\.SGD.*found a str"),
        ({"optimizer": partial(torch.optim.SGD, lr=0.1)}, "sets 'lr'.*set lr, backbone_lr_scale"),
        ({"optimizer": partial(torch.optim.SGD, weight_decay=0.1)}, "sets 'weight_decay'.*set weight_decay"),
        ({"optimizer": adamw_of_all}, "other learning rates than its groups"),
        (
            {"optimizer": lambda groups: torch.optim.SGD(groups[:1])},
            r"has 1 parameters, expected the \d+ trainable ones",
        ),
        ({"optimizer": lambda groups: None}, "returned a NoneType, expected a torch.optim.Optimizer"),
        ({"optimizer": torch.optim.LBFGS, "epochs": 1}, r"LBFGS fails on \d+ parameter groups: ValueError"),
        ({"schedule": attrgetter("absent")}, "fails on its optimizer: AttributeError"),
        ({"schedule": "linear"}, 'schedule must be "one_cycle"'),
        ({"schedule": "own"}, 'schedule must be "one_cycle"'),
        ({"schedule": 3}, "schedule must be .*found a int"),
        ({"schedule": lr_scheduler.ReduceLROnPlateau}, "stepped by a score"),
        ({"schedule": lambda o: lr_scheduler.ReduceLROnPlateau(o, "min")}, "returned a ReduceLROnPlateau"),
        ({"schedule": lr_scheduler.ExponentialLR}, "also needs gamma.*functools.partial"),
        ({"schedule": lr_scheduler.StepLR}, "also needs step_size"),
        ({"schedule": lambda o: None}, "returned a NoneType, expected a scheduler"),
        ({"loss": focal}, 'balance="loss".*pass balance=None'),
        (
            {"loss": focal, "balance": None, "label_smoothing": 0.1},
            "label_smoothing=0.1 is that of the built-in",
        ),
        ({"loss": nn.CrossEntropyLoss, "balance": None}, "found the class CrossEntropyLoss"),
        ({"loss": lambda a, b: a.detach().mean(), "balance": None}, "no gradient"),
        ({"loss": lambda a, b: 1.0, "balance": None}, "the loss returned float"),
        ({"loss": nn.BCEWithLogitsLoss(), "balance": None}, r"fails on logits \(2, 2\).*ValueError"),
        ({"loss": nn.Linear(2, 2), "balance": None}, "trainable parameters"),
        ({"metrics": [kappa]}, "metrics must be a mapping"),
        ({"metrics": {"auroc": kappa}}, "name of a built-in one"),
        ({"metrics": {"My kappa": kappa}}, "lower case letters"),
        ({"metrics": {"kappa": 3}}, "must be a function"),
        ({"metrics": {"kappa": kappa}, "val": None}, "pass val="),
        ({"metrics": {"kappa": lambda a, b: a["x"]}}, "the metric 'kappa' fails on labels"),
        ({"metrics": {"kappa": lambda a, b: "0.5"}}, "the metric 'kappa' returned a str, expected a number"),
        ({"metrics": {"kappa": lambda a, b: None}}, "the metric 'kappa' fails on labels"),
        ({"monitor": "val_kappa"}, 'monitor must be "auto"'),
        ({"metrics": {"n": lambda a, b: math.nan}, "monitor": "val_n"}, "the metric is not finite"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        trained(small_classifier(), tmp_path / "run", **{"head_epochs": 1, "epochs": 0, **settings})
    # NaN is known after an epoch only
    assert (tmp_path / "run").exists() == ("not finite" in message)


class Late:
    """A function that fails on its later calls."""

    def __init__(self, function: Any, good: int) -> None:
        self.function, self.left = function, good

    def __call__(self, *given: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ZeroDivisionError("late")
        return self.function(*given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"schedule": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=1)},
            "OneCycleLR fails on a step",
        ),
        (
            {"schedule": partial(lr_scheduler.LambdaLR, lr_lambda=lambda n: 1 / (2 - n))},
            "LambdaLR fails on a step: ZeroDivisionError",
        ),
        (
            {"optimizer": lambda groups: torch.optim.SparseAdam([{**g, "weight_decay": 0} for g in groups])},
            "fails on step 1 of an epoch: RuntimeError",
        ),
        (
            {"loss": Late(focal, 2), "balance": None},
            r"loss=.*Late fails on logits \(4, 2\).*ZeroDivisionError",
        ),
        ({"metrics": {"late": Late(kappa, 1)}}, "the metric 'late' fails on labels"),
    ],
)
def test_what_fails_in_training_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        trained(small_classifier(), **settings)


def test_an_error_of_the_network_is_not_that_of_the_optimizer() -> None:
    model = small_classifier()

    def fail(*_: Any) -> None:
        if model.training:
            raise ZeroDivisionError("of the network")

    model.head.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match="of the network"):
        trained(model, optimizer=SGD)


class WithoutGradients(nn.Module):
    """A network that computes without gradients, as some wrappers for inference do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.body(x)
        logits: Tensor = self.head(x)
        return logits


@pytest.mark.parametrize("frozen_head", [False, True])
def test_a_backbone_without_gradients_is_refused(*, frozen_head: bool) -> None:
    model = TransferClassifier(
        WithoutGradients(), classes=("a", "b"), weights=None, preprocess=small_classifier().preprocess
    )
    trained(model, head_epochs=1, epochs=0)
    before = state(model)
    model.head.requires_grad_(not frozen_head)
    with pytest.raises(TrainingError, match=r"no parameter of .* has a gradient.*torch\.no_grad"):
        trained(model, head_epochs=0, epochs=1)
    assert not changed(before, state(model))


def test_metrics_and_losses_get_arrays_of_their_own() -> None:
    def spoil(labels: Any, probabilities: Any) -> float:
        found = brier(labels, probabilities)
        labels[:], probabilities[:] = 0, 1
        return found

    def spoil_loss(logits: Tensor, labels: Tensor) -> Tensor:
        found = focal(logits, labels)
        if not logits.requires_grad:
            logits.zero_()
            labels.zero_()
        return found

    common: dict[str, Any] = {"balance": None, "epochs": 1}
    found = trained(small_classifier(), metrics={"a": spoil, "b": brier}, loss=spoil_loss, **common)
    expected = trained(small_classifier(), metrics={"a": brier, "b": brier}, loss=focal, **common)
    assert without_times(found) == without_times(expected)


def test_adaptation_weights_the_built_in_loss() -> None:
    with pytest.raises(TrainingError, match="adapt= weights the built-in loss"):
        trained(small_classifier(), adapt=CORAL(images(6, prefix="t", seed=2)), loss=focal, balance=None)


OWN: dict[str, Any] = {
    "optimizer": SGD,
    "schedule": partial(lr_scheduler.MultiStepLR, milestones=[2, 4], gamma=0.5),
    "loss": focal,
    "balance": "sampler",
    "metrics": {"kappa": kappa},
    "head_epochs": 0,
    "epochs": 3,
}


def test_a_training_of_own_parts_resumes(tmp_path: Path) -> None:
    whole = small_classifier()
    expected = trained(whole, tmp_path / "whole", **OWN)
    with pytest.raises(CutOffError):
        trained(small_classifier(), tmp_path / "cut", callbacks=[cut_after(1)], **OWN)
    for name, other in (
        ("optimizer", partial(torch.optim.SGD, momentum=0.5)),
        ("loss", partial(focal, gamma=1.0)),
        ("schedule", partial(lr_scheduler.MultiStepLR, milestones=[2, 4], gamma=0.4)),
        ("metrics", {"kappa": brier}),
    ):
        with pytest.raises(TrainingError, match=f"differs in {name}="):
            trained(small_classifier(), tmp_path / "cut", resume=True, **{**OWN, name: other})
    model = small_classifier()
    result = trained(model, tmp_path / "cut", resume=True, **OWN)
    assert without_times(result) == without_times(expected)
    assert not changed(state(model), state(whole))


class Running(nn.Module):
    """A loss that grows with each training step, which it counts in a buffer."""

    seen: Tensor

    def __init__(self, *, late: bool = False, extra: bool = False) -> None:
        super().__init__()
        self.late, self.extra = late, extra
        self.register_buffer("seen", torch.zeros(()))

    def get_extra_state(self) -> Any:
        return {"kept": "elsewhere"} if self.extra else torch.zeros(1)

    def set_extra_state(self, state: Any) -> None:
        pass

    def forward(self, logits: Tensor, labels: Tensor, scale: float = 0.1) -> Tensor:
        if self.training:
            self.seen += 1
            if self.late:
                self.register_buffer("new", torch.ones(2))
        return nn.functional.cross_entropy(logits, labels) * (1 + scale * self.seen)


class RunningImages(nn.Module):
    """An augmentation that counts the batches."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch: Tensor) -> Tensor:
        self.seen += 1
        return batch * (1 + 0.1 * self.seen)


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: partial(one, scale=0.2)])
def test_the_state_of_a_loss_is_that_of_one_training(wrap: Any, tmp_path: Path) -> None:
    module, augment = Running(), RunningImages()
    settings: dict[str, Any] = {"loss": wrap(module), "balance": None, "augment": augment, "head_epochs": 0}
    model, again = small_classifier(), small_classifier()
    first = trained(model, tmp_path, **settings)
    assert without_times(trained(again, **settings)) == without_times(first)
    assert not changed(state(model), state(again))
    assert (float(module.seen), float(augment.seen)) == (0, 0)
    # two epochs of three steps; checks before training do not count
    saved = resume_file.load(tmp_path / resume_file.FILE).loss
    assert [float(v) for name, v in saved.items() if name.endswith("seen")] == [6.0]


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: partial(one, scale=0.2)])
def test_the_state_of_a_loss_is_resumed(wrap: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"balance": None, "head_epochs": 0, "schedule": "constant"}
    whole, model = small_classifier(), small_classifier()
    expected = trained(whole, tmp_path / "whole", loss=wrap(Running()), **settings)
    with pytest.raises(CutOffError):
        trained(
            small_classifier(), tmp_path / "cut", loss=wrap(Running()), callbacks=[cut_after(1)], **settings
        )
    started = Running()
    started.seen += 5
    with pytest.raises(TrainingError, match="differs in loss="):
        trained(small_classifier(), tmp_path / "cut", loss=wrap(started), resume=True, **settings)
    result = trained(model, tmp_path / "cut", loss=wrap(Running()), resume=True, **settings)
    assert without_times(result) == without_times(expected)
    assert not changed(state(model), state(whole))


def test_states_of_a_loss_that_no_file_holds(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"balance": None, "head_epochs": 0}

    def cut(loss: nn.Module) -> None:
        with pytest.raises(CutOffError):
            trained(
                small_classifier(), tmp_path, loss=loss, callbacks=[cut_after(1)], overwrite=True, **settings
            )

    with pytest.warns(MedimgWarning, match=r"extra state of the loss .*Running"):
        cut(Running(extra=True))
    cut(Running(late=True))
    with pytest.raises(TrainingError, match=r"another state of the loss .*Running.*register all its buffers"):
        trained(small_classifier(), tmp_path, loss=Running(late=True), resume=True, **settings)


def test_a_loss_that_can_not_be_copied_is_named() -> None:
    module = Running()
    module.lock = threading.Lock()  # type: ignore[assignment]  # as writers have
    with pytest.raises(TrainingError, match=r"loss=.*Running can't be copied.*keep files, loggers"):
        trained(small_classifier(), loss=module, balance=None)


def lbfgs(groups: Any) -> torch.optim.Optimizer:
    """One group, at the rate of the head."""
    parameters = [p for group in groups for p in group["params"]]
    return torch.optim.LBFGS(parameters, lr=groups[0]["lr"], max_iter=2)


def test_the_check_of_own_parts_is_that_of_the_phase() -> None:
    steps: list[int] = []

    def schedule(optimizer: Any, count: int) -> Any:
        steps.append(count)
        return lr_scheduler.ConstantLR(optimizer, 1.0, total_iters=count)

    model = small_classifier()
    trained(model, optimizer=lbfgs, schedule=schedule, head_epochs=2, epochs=0, accumulate=2)
    assert all(p.requires_grad for p in model.parameters())
    # ten items in batches of four, of which two make a step
    assert steps == [4, 4]
    with pytest.raises(TrainingError, match="other learning rates than its groups"):
        trained(model, optimizer=lbfgs, head_epochs=1, epochs=1)
    assert all(p.requires_grad for p in model.parameters())


class Deaf(torch.optim.SGD):
    """Does not call its closure."""

    def step(self, closure: Any = None) -> Any:
        return super().step()


def test_an_optimizer_that_computes_no_gradients_is_named() -> None:
    with pytest.raises(TrainingError, match=r"optimizer=.*Deaf does not call the closure"):
        trained(small_classifier(), optimizer=Deaf)


class Counting(torch.optim.SGD):
    """Has a number and an object in its state."""

    def __init__(self, groups: Any, *, kept: Any = 1) -> None:
        super().__init__(groups, lr=0.1)
        self.kept = kept

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                values = self.state[parameter]
                values["count"] = values.get("count", 0) + self.kept if self.kept is not None else object()
                if self.kept is not None and values["count"] % 2:
                    parameter.data.mul_(0.99)
        return result


def test_numbers_in_the_state_of_an_optimizer_are_kept(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer": Counting, "head_epochs": 0, "epochs": 2}
    whole = small_classifier()
    trained(whole, tmp_path / "whole", **settings)
    with pytest.raises(CutOffError):
        trained(small_classifier(), tmp_path / "cut", callbacks=[cut_after(1)], **settings)
    model = small_classifier()
    trained(model, tmp_path / "cut", resume=True, **settings)
    assert not changed(state(model), state(whole))


def test_objects_in_the_state_of_an_optimizer_are_said(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer": partial(Counting, kept=None), "head_epochs": 0, "epochs": 2}
    with pytest.raises(CutOffError), pytest.warns(MedimgWarning, match="the state of Counting has objects"):
        trained(small_classifier(), tmp_path, callbacks=[cut_after(1)], **settings)
    with pytest.raises(TrainingError, match=r"can't be resumed within a phase.*Counting"):
        trained(small_classifier(), tmp_path, resume=True, **settings)


def test_more_epochs_for_a_finished_training(tmp_path: Path) -> None:
    first = trained(small_classifier(), tmp_path, epochs=2, ema=0.9)
    more = small_classifier()
    result = trained(more, tmp_path, epochs=4, resume=True, ema=0.9)
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4, 5]
    assert [row["phase"] for row in result.history] == ["head", "full", "full", "full", "full"]
    assert without_times(result)[:3] == without_times(first)
    # a schedule of its own: its rate rises again
    assert result.history[3]["lr"] > result.history[2]["lr"]
    summary = load(tmp_path / "last.safetensors").training_summary
    assert summary is not None
    assert (summary["epochs"], summary["epochs_run"]) == (4, 5)
    assert summary["ended_before_after"] == [2]
    again = trained(small_classifier(), tmp_path, epochs=5, resume=True, ema=0.9)
    assert without_times(again)[:5] == without_times(result)
    assert len(again.history) == 6
    for epochs in (4, 2):
        with pytest.raises(TrainingError, match=f"epochs={epochs}, before 5"):
            trained(small_classifier(), tmp_path, epochs=epochs, resume=True, ema=0.9)


def test_further_epochs_that_are_cut_off_go_on(tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        trained(small_classifier(), tmp_path / name, epochs=1)
    whole = small_classifier()
    expected = trained(whole, tmp_path / "whole", epochs=4, resume=True)
    with pytest.raises(CutOffError):
        trained(small_classifier(), tmp_path / "cut", epochs=4, resume=True, callbacks=[cut_after(1)])
    with pytest.raises(TrainingError, match=r"has not ended.*epochs=4"):
        trained(small_classifier(), tmp_path / "cut", epochs=6, resume=True)
    model = small_classifier()
    result = trained(model, tmp_path / "cut", epochs=4, resume=True)
    assert without_times(result) == without_times(expected)
    assert not changed(state(model), state(whole))


def test_further_epochs_of_the_whole_network_after_those_of_the_head(tmp_path: Path) -> None:
    trained(small_classifier(), tmp_path, head_epochs=2, epochs=0)
    result = trained(small_classifier(), tmp_path, head_epochs=2, epochs=2, resume=True)
    assert [row["phase"] for row in result.history] == ["head", "head", "full", "full"]
    with pytest.raises(TrainingError, match=r"lr=0\.1, before 0\.003"):
        trained(small_classifier(), tmp_path, head_epochs=2, epochs=3, lr=0.1, resume=True)


def test_a_training_that_was_cut_off_does_not_get_more_epochs(tmp_path: Path) -> None:
    with pytest.raises(CutOffError):
        trained(small_classifier(), tmp_path, callbacks=[cut_after(2)])
    with pytest.raises(TrainingError, match=r"has not ended.*epochs=2"):
        trained(small_classifier(), tmp_path, epochs=5, resume=True)


def test_nothing_of_its_own_changes_nothing() -> None:
    parts = CustomParts.make(optimizer=None, schedule=None, loss=None, metrics=None, taken=())
    assert not parts.identity
    assert not parts.names
    assert parts.columns == ()
