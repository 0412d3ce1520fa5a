"""Each choice of a training does what it says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import medimg
from medimg import FitResult, TransferClassifier, fine_tune, lr_find
from medimg.data.augmentation.mixup import mixup
from medimg.errors import TrainingError
from medimg.models.backbones.stages import split_stages
from medimg.training._config import FineTuneConfig
from medimg.training._phases import plan_phases
from medimg.training._trainer import TrainerConfig
from medimg.training.losses import make_loss
from medimg.training.optimization.lr_scheduler import make_schedule
from medimg.training.optimization.optimizer import make_optimizer
from tests.models.fakes import Images, changed, classifier, images, state
from tests.models.small_network import small_classifier
from tests.sampling import SLOW


def trained(model: TransferClassifier, **settings: Any) -> FitResult:
    val = settings.pop("val", images(6, prefix="val", seed=1))
    return fine_tune(
        model,
        settings.pop("train", images(8)),
        val,
        **{"head_epochs": 0, "epochs": 2, "batch_size": 4, "progress": False, **settings},
    )


def seen_by(callback_hook: str, look: Any) -> tuple[Any, list[Any]]:
    """A callback that keeps what `look` sees of the trainer."""
    import pytorch_lightning as pl

    found: list[Any] = []

    def hook(trainer: pl.Trainer, *_: Any) -> None:
        found.append(look(trainer))

    callback = pl.Callback()
    setattr(callback, callback_hook, hook)
    return callback, found


def test_stages_learn_the_more_slowly_the_earlier_they_are() -> None:
    model = classifier("resnet18")
    optimizer = make_optimizer(model, 1e-2, 1e-3, layer_decay=0.5)
    rate = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rate[p] for p in model.head.parameters()} == {1e-2}
    parts = split_stages(model.backbone)
    for depth, stage in enumerate(reversed(parts)):
        assert {rate[p] for p in stage.parameters()} == {1e-3 * 0.5**depth}
    assert len(rate) == len(list(model.parameters()))


def test_parameters_of_several_stages_are_trained_with_the_last() -> None:
    model = small_classifier()
    backbone: Any = model.backbone
    early, late = backbone.layer2[0], backbone.layer4[0]
    early.weight = late.weight
    optimizer = make_optimizer(model, 1e-2, 1e-3, layer_decay=0.5)
    (rate,) = (g["lr"] for g in optimizer.param_groups for p in g["params"] if p is late.weight)
    assert rate == make_optimizer(small_classifier(), 1e-2, 1e-3).param_groups[2]["lr"] == 1e-3


@pytest.mark.parametrize("backbone", ["vit_b_32", "convnext_tiny", "swin_t", "maxvit_t"])
def test_only_weights_that_multiply_decay(backbone: str) -> None:
    model = classifier(backbone, preprocess=None)
    optimizer = make_optimizer(model, 1e-2, 1e-3)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    spared = ("bias", "class_token", "pos_embedding", "layer_scale", "relative_position_bias_table")
    for name, parameter in model.named_parameters():
        one_dimensional = parameter.ndim == 1
        assert (decay[parameter] == 0) == (name.endswith(spared) or one_dimensional), name


@pytest.mark.parametrize("steps", [2, 3, 10, 200])
def test_one_cycle_rises_and_falls_with_the_momentum_against_it(steps: int) -> None:
    optimizer = make_optimizer(small_classifier(), 1e-2, 1e-3)
    schedule = make_schedule(optimizer, "one_cycle", steps)
    rates, momenta = [], []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        schedule.step()
    top = int(np.argmax(rates))
    assert rates[0] == pytest.approx(1e-2 / 25)
    assert max(rates) <= 1e-2
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert optimizer.param_groups[0]["lr"] < 1e-6
    assert top <= max(1, steps // 3)
    assert momenta[top] == pytest.approx(min(momenta), abs=1e-3)
    assert max(momenta) == momenta[0]
    if steps >= 10:
        assert max(rates) > 0.95e-2


@pytest.mark.parametrize("kind", ["one_cycle", "cosine", "constant"])
def test_the_rate_of_the_last_step_is_in_the_history(kind: Any) -> None:
    rows = trained(small_classifier(), schedule=kind, epochs=3).history
    assert (len({row["lr"] for row in rows}) == 1) == (kind == "constant")
    assert (rows[-1]["lr"] < 0.7e-3) == (kind != "constant")


def test_gradual_unfreezing_trains_one_stage_more_each_epoch() -> None:
    model = small_classifier("resnet18")
    names = {p: name for name, p in model.named_parameters()}
    callback, found = seen_by(
        "on_train_epoch_start",
        lambda trainer: {names[p] for g in trainer.optimizers[0].param_groups for p in g["params"]},
    )
    result = trained(model, head_epochs=1, epochs=4, gradual=True, callbacks=[callback], augment=None)
    assert [row["phase"] for row in result.history] == ["head", "gradual", "gradual", "gradual", "full"]
    parts = [{names[p] for p in stage.parameters()} for stage in split_stages(model.backbone)]
    head = {"head.weight", "head.bias"}
    assert found == [head, *(head.union(*parts[-n:]) for n in (1, 2, 3)), head.union(*parts)]


@pytest.mark.parametrize(("epochs", "phases"), [(1, 1), (2, 2), (30, 5)])
def test_the_last_phase_trains_everything(epochs: int, phases: int) -> None:
    body = classifier("resnet18").backbone
    found = plan_phases(FineTuneConfig(head_epochs=0, epochs=epochs, gradual=True), body)
    assert len(found) == phases
    assert found[-1].name == "full"
    assert sum(phase.epochs for phase in found) == epochs
    assert [phase.epochs_before for phase in found] == list(range(phases))


def test_what_is_averaged_is_validated_and_kept() -> None:
    plain, mean = small_classifier("shufflenet_v2_x0_5"), small_classifier("shufflenet_v2_x0_5")
    settings: dict[str, Any] = {"epochs": 3, "lr": 1e-2, "augment": None}
    trained(plain, **settings)
    result = trained(mean, ema=0.999, **settings)
    assert changed(state(plain), state(mean))
    val = images(6, prefix="val", seed=1)
    proba = torch.from_numpy(mean.predict_proba(val))
    loss = torch.nn.functional.nll_loss(proba.log(), torch.from_numpy(val.labels))
    assert float(loss) == pytest.approx(result.best["val_loss"], rel=1e-4)


def test_the_mean_of_frozen_weights_is_what_they_are() -> None:
    model = small_classifier("shufflenet_v2_x0_5").freeze()
    before = state(model.backbone)
    trained(model, ema=0.9, head_epochs=1)
    assert not changed(before, state(model.backbone))


def test_mixup_mixes_images_and_losses_alike() -> None:
    batch = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    blend, pairs = mixup(batch, 0.4, torch.Generator().manual_seed(3))
    assert 0 < pairs.share < 1
    expected = pairs.share * batch + (1 - pairs.share) * batch[pairs.partners]
    assert torch.equal(blend, expected)
    loss = make_loss(np.array([0, 1]), 2, "multiclass", None)
    labels, logits = torch.tensor([0, 1, 1, 0]), torch.randn(4, 2)
    soft = pairs.share * torch.eye(2)[labels] + (1 - pairs.share) * torch.eye(2)[labels[pairs.partners]]
    each = torch.nn.functional.cross_entropy(logits, soft, reduction="none")
    assert torch.allclose(pairs.losses(loss, logits, labels), each, atol=1e-6)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_smoothing_is_that_of_torch(task: str) -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    if task == "multiclass":
        labels = torch.tensor([0, 1, 2, 0, 1])
        expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    else:
        labels = torch.eye(3)[[0, 1, 2, 0, 1]]
        soft = labels * 0.8 + 0.1
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, soft)
    loss = make_loss(labels.numpy(), 3, task, None, 0.2)(logits, labels)
    assert loss.shape == (5,)
    assert float(loss.mean()) == pytest.approx(float(expected), rel=1e-6)


def test_accumulated_batches_are_as_one_large_batch() -> None:
    # squeezenet has no batch statistics, and without dropout nothing depends on how many pass together
    found = []
    for batch_size, accumulate in ((4, 1), (2, 2)):
        model = classifier()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trained(
            model, batch_size=batch_size, accumulate=accumulate, augment=None, schedule="constant", val=None
        )
        found.append(state(model))
    for name in found[0]:
        assert torch.allclose(found[0][name], found[1][name], atol=1e-5), name


def test_patience_ends_a_phase() -> None:
    val = images(8, prefix="val")
    val.labels = 1 - val.labels
    result = trained(
        small_classifier("shufflenet_v2_x0_5"), val=val, epochs=12, lr=1e-2, patience=2, monitor="val_loss"
    )
    assert len(result.history) == result.best_epoch + 2 < 12
    assert result.monitor == "val_loss"


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy", "val_balanced_accuracy", "val_f1"])
def test_the_named_score_chooses_the_best_epoch(monitor: Any) -> None:
    result = trained(small_classifier("shufflenet_v2_x0_5"), epochs=3, monitor=monitor)
    values = [row[monitor] * (-1 if monitor == "val_loss" else 1) for row in result.history]
    assert result.monitor == monitor
    assert values[result.best_epoch - 1] == max(values)


def test_scores_that_are_not_there_can_not_be_watched() -> None:
    with pytest.raises(TrainingError, match="patience= needs validation data"):
        trained(small_classifier(), val=None, patience=2)
    with pytest.raises(TrainingError, match="monitor= needs validation data"):
        trained(small_classifier(), val=None, monitor="val_loss")
    alone = Images(np.zeros(4, dtype=np.int64), prefix="val")
    with pytest.raises(TrainingError, match="monitor='val_auroc' has no value"):
        trained(small_classifier(), val=alone, monitor="val_auroc")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_decay": 0.0}, "layer_decay must be a number, above 0"),
        ({"schedule": "linear"}, 'schedule must be "one_cycle", "cosine" or "constant"'),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"mixup": -0.1}, "mixup must be a number, 0 or more"),
        ({"ema": 1.0}, "ema must be a number, above 0 and below 1"),
        ({"accumulate": 0}, "accumulate must be a whole number, 1 or more"),
        ({"patience": 0}, "patience must be a whole number, 1 or more"),
        ({"monitor": "loss"}, 'monitor must be "auto"'),
        ({"gradual": "yes"}, "gradual must be True or False"),
        ({"weight_decay": float("inf")}, "weight_decay"),
        ({"channels_last": "yes"}, "channels_last must be True"),
        ({"logger": "wandb"}, 'logger must be "tensorboard" or a logger'),
        ({"logger": "tensorboard"}, "pass output="),
        ({"trainer_kwargs": {"accumulate_grad_batches": 2}}, "pass accumulate to fine_tune"),
    ],
)
def test_unsound_choices(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        trained(small_classifier(), **settings)


def test_memory_layout_changes_no_weight_that_is_frozen_and_is_set_back() -> None:
    model = small_classifier("resnet18").freeze(upto="layer3")
    before = state(model.backbone)
    trained(model, channels_last=True)
    assert changed(before, state(model.backbone))
    assert {name.partition(".")[0] for name in changed(before, state(model.backbone))} <= {"layer4"}
    assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MEDIMG_SLOW"), reason="compiles for a minute: set MEDIMG_SLOW=1")
def test_a_compiled_backbone_trains_alike() -> None:
    plain, compiled = classifier("resnet18"), classifier("resnet18")
    rows = [
        trained(model, augment=None, compile=choice).history
        for model, choice in ((plain, False), (compiled, True))
    ]
    for row, twin in zip(*rows, strict=True):
        assert twin["train_loss"] == pytest.approx(row["train_loss"], rel=1e-2)
    assert state(compiled).keys() == state(plain).keys()
    assert compiled.backbone._compiled_call_impl is None


def test_loggers_get_a_row_for_each_epoch_of_all_phases(tmp_path: Path) -> None:
    from pytorch_lightning.loggers import CSVLogger

    result = trained(small_classifier(), head_epochs=1, logger=CSVLogger(tmp_path, name="log"))
    table = pd.read_csv(tmp_path / "log" / "version_0" / "metrics.csv")
    assert table["step"].tolist() == [1, 2, 3]
    assert table["train_loss"].tolist() == [row["train_loss"] for row in result.history]


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trained(small_classifier(), output=tmp_path, logger="tensorboard")
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_curves_show_what_there_is() -> None:
    result = trained(small_classifier(), epochs=3)
    losses, scores = result.plot().axes
    assert legend(losses) == ["training", "validation", "best epoch"]
    assert "AUROC" in legend(scores)
    assert legend(trained(small_classifier(), val=None).plot().axes[0]) == ["training", "best epoch"]


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_rate_is_found_and_the_model_left_alone() -> None:
    model = classifier("shufflenet_v2_x0_5").freeze(upto="conv1")
    before, modes = state(model), [m.training for m in model.modules()]
    random = torch.random.get_rng_state()
    steps = 40 if SLOW else 20
    search = lr_find(model, images(24), batch_size=4, steps=steps)
    assert not changed(before, state(model))
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    assert 1e-6 < search.suggestion < 1.0
    assert 1e-6 < search.steepest < 1.0
    assert search.losses[0] > min(search.losses)
    assert list(search.to_pandas().columns) == ["lr", "loss"]
    assert search.lrs[0] == pytest.approx(1e-6)
    assert len(search.plot().axes) == 1
    assert lr_find(model, images(24), batch_size=4, steps=steps).losses == search.losses


def test_a_rate_is_that_of_ones_own_optimizer_and_loss() -> None:
    def find(**own: Any) -> Any:
        return lr_find(small_classifier(), images(24), batch_size=4, steps=12, **own)

    plain = find(balance=None)
    sgd = find(balance=None, optimizer=torch.optim.SGD)
    assert sgd.losses[0] == plain.losses[0]
    assert sgd.losses != plain.losses
    same = find(balance=None, loss=torch.nn.CrossEntropyLoss())
    assert same.losses == pytest.approx(plain.losses, rel=1e-4)
    halved = find(balance=None, loss=lambda logits, labels: 0.5 * F.cross_entropy(logits, labels))
    assert halved.losses[0] == pytest.approx(0.5 * plain.losses[0], rel=1e-5)


def test_an_optimizer_that_computes_the_loss_several_times() -> None:
    def make(groups: Any) -> Any:
        parameters = [p for group in groups for p in group["params"]]
        return torch.optim.LBFGS(parameters, lr=groups[0]["lr"], max_iter=3)

    model = small_classifier()
    model.freeze()
    found = lr_find(model, images(24), batch_size=4, steps=12, optimizer=make)
    assert found.losses[0] == lr_find(model, images(24), batch_size=4, steps=12).losses[0]
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if model.training and len(calls) > 5:
            raise ZeroDivisionError("of the network")

    model.head.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match="of the network"):
        lr_find(model, images(24), batch_size=4, steps=12, optimizer=torch.optim.SGD)


class Unsteppable(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        raise ValueError("no step")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"optimizer": 3}, "optimizer must be a class"),
        ({"optimizer": Unsteppable}, r"optimizer=.*Unsteppable fails on step 1: ValueError: no step"),
        ({"loss": torch.nn.CrossEntropyLoss()}, 'balance="loss"'),
        ({"loss": torch.nn.CrossEntropyLoss, "balance": None}, "loss must be a function"),
        ({"loss": lambda logits, _: logits.detach(), "balance": None}, "has no gradient"),
    ],
)
def test_ones_own_optimizer_and_loss_are_checked_before_a_rate_is_found(own: Any, message: str) -> None:
    model = small_classifier()
    before = state(model)
    with pytest.raises(TrainingError, match=message):
        lr_find(model, images(8), batch_size=4, steps=12, **own)
    assert not changed(before, state(model))


def test_a_rate_can_not_be_found_where_nothing_is_trained() -> None:
    model = small_classifier()
    model.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing is trainable"):
        lr_find(model, images(8))
    with pytest.raises(TrainingError, match="expected 0 < start < end"):
        lr_find(small_classifier(), images(8), start=1.0, end=0.1)
    with pytest.raises(TrainingError, match="diverged"):
        lr_find(small_classifier(), images(8), augment=lambda batch: batch * torch.nan)


def test_embeddings_of_a_head_phase_are_kept(tmp_path: Path) -> None:
    table = medimg.phantom.write_xray_dataset(tmp_path / "data", patients=8, size=(64, 64))
    data = medimg.ImageDataset.from_csv(
        table, path="file", patient="patient_id", preprocess=medimg.Preprocess(size=64)
    )
    states = []
    for _ in range(2):
        model = small_classifier(classes=data.classes)
        fine_tune(model, data, head_epochs=2, epochs=0, cache=tmp_path / "kept", progress=False)
        states.append(state(model))
        model.backbone.register_forward_pre_hook(lambda *_: pytest.fail("an image passed once more"))
        fine_tune(model, data, head_epochs=1, epochs=0, cache=tmp_path / "kept", progress=False)
    assert not changed(*states)


@pytest.mark.parametrize(
    ("devices", "environment", "index"),
    [
        (4, {}, 0),
        (4, {"LOCAL_RANK": "2"}, 2),
        ([1, 3], {"LOCAL_RANK": "1"}, 3),
        (4, {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_LOCALID": "3"}, 3),
        (8, {"LOCAL_RANK": "5"}, 0),  # a task that sees its own GPU only
        (1, {"LOCAL_RANK": "1"}, 0),  # of something else
    ],
)
def test_each_process_has_its_own_gpu(
    devices: Any, environment: dict[str, str], index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = TrainerConfig({"accelerator": "gpu", "devices": devices, "num_nodes": 1})
    assert config.device == torch.device("cuda", index)
