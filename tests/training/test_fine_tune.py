from __future__ import annotations

import logging
import random
import signal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch

from medimg import FitResult, Preprocess, TransferClassifier, fine_tune, lr_find
from medimg.errors import LeakageError, TrainingError
from tests.models.fakes import SMALL, Images, changed, classifier, images, state
from tests.models.small_network import small_classifier
from tests.sampling import SLOW


def quick(model: TransferClassifier, train: Any, val: Any = None, **settings: Any) -> FitResult:
    return fine_tune(
        model, train, val, **{"head_epochs": 0, "epochs": 1, "batch_size": 4, "progress": False, **settings}
    )


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Training must leave nothing where it was started."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_it_learns(tmp_path: Path, empty_folder: Path) -> None:
    model = small_classifier("resnet18").train()
    val = images(10, prefix="val", seed=1)
    # a small network takes larger steps
    rate: dict[str, Any] = {} if SLOW else {"lr": 3e-2}
    result = quick(model, images(24), val, head_epochs=1, epochs=4, output=tmp_path / "out", **rate)
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4, 5]
    assert [row["phase"] for row in result.history] == ["head"] + 4 * ["full"]
    assert result.history[-1]["train_loss"] < 0.5 * result.history[0]["train_loss"]
    assert result.best["val_auroc"] == max(row["val_auroc"] for row in result.history) == 1.0
    assert result.monitor == "val_auroc"
    assert not model.training
    assert model.backbone.get_parameter("conv1.weight").device.type == "cpu"
    assert (model.predict_proba(val).argmax(axis=1) == val.labels).all()
    assert not list(empty_folder.iterdir())
    assert result.seconds > sum(row["seconds"] for row in result.history)


def test_files_and_restored_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    model = small_classifier("shufflenet_v2_x0_5")
    val = images(6, prefix="val", seed=1)
    result = quick(model, images(8), val, head_epochs=1, epochs=3, lr=3e-3, output=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [
        "best.safetensors",
        "history.csv",
        "last.safetensors",
        "resume.safetensors",
    ]
    assert result.checkpoint == tmp_path / "best.safetensors"
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), result.to_pandas())
    saved = TransferClassifier.load(result.checkpoint)
    assert not changed(state(model), state(saved))
    assert saved.training_summary == model.training_summary
    assert saved.training_summary is not None
    assert saved.training_summary["best"]["epoch"] == result.best_epoch
    loss = torch.nn.functional.cross_entropy(
        torch.log(torch.from_numpy(model.predict_proba(val))), torch.from_numpy(val.labels)
    )
    assert float(loss) == pytest.approx(result.best["val_loss"], rel=1e-4)
    assert "patient" not in (tmp_path / "best.safetensors").read_bytes()[:20000].decode(errors="ignore")
    assert b"train0" not in (tmp_path / "best.safetensors").read_bytes()


def test_best_is_not_just_the_last(tmp_path: Path) -> None:
    # validation labels that contradict the training data: the better it learns, the worse they fit
    val = images(8, prefix="val")
    val.labels = 1 - val.labels
    model = small_classifier("shufflenet_v2_x0_5")
    result = quick(model, images(8), val, epochs=6, lr=1e-2, output=tmp_path)
    assert result.best_epoch < 6
    row = max(result.history, key=lambda row: (row["val_auroc"], -row["val_loss"]))
    assert row["epoch"] == result.best_epoch
    assert not changed(state(model), state(TransferClassifier.load(tmp_path / "best.safetensors")))


def test_without_validation_the_last_epoch_stands() -> None:
    result = quick(small_classifier(), images(6), epochs=2)
    assert result.monitor is None
    assert result.best_epoch == 2
    assert result.history[0]["val_loss"] is None
    assert result.checkpoint is None


def test_one_class_in_validation_is_watched_by_its_loss() -> None:
    val = Images(np.zeros(4, dtype=np.int64), prefix="val")
    result = quick(small_classifier(), images(6), val, epochs=2)
    assert result.monitor == "val_loss"
    assert result.history[0]["val_auroc"] is None
    assert result.best["val_loss"] == min(row["val_loss"] for row in result.history)


@pytest.mark.parametrize("balance", ["loss", "sampler", None])
def test_same_seed_same_result(balance: Any) -> None:
    train = Images(np.array([0, 0, 0, 0, 0, 1, 1]))
    runs = []
    for seed in (3, 3, 4):
        model = small_classifier("mobilenet_v3_small")
        result = quick(model, train, head_epochs=1, seed=seed, balance=balance)
        runs.append((state(model), [row["train_loss"] for row in result.history]))
        torch.rand(5)  # the caller's random numbers change nothing
    assert not changed(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert changed(runs[0][0], runs[2][0])


def test_callers_random_state_and_signals_are_left_alone() -> None:
    logger = logging.getLogger("pytorch_lightning")
    quick(small_classifier(), images(4))  # the first import of Lightning does change things
    model = small_classifier()
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)  # noqa: NPY002  # the legacy state is what must not be touched
    before = torch.get_rng_state(), random.getstate(), _numpy_state()
    handler, level = signal.getsignal(signal.SIGINT), logger.level
    quick(model, images(4))
    assert random.getstate() == before[1]
    assert _numpy_state() == before[2]
    assert signal.getsignal(signal.SIGINT) is handler
    assert logger.level == level
    assert torch.equal(torch.get_rng_state(), before[0])


def _numpy_state() -> list[int]:
    legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    numbers: list[int] = legacy["state"]["key"].tolist()
    return numbers


def test_interrupted_training_keeps_the_best_and_raises(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    class ControlC(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    model = small_classifier()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        quick(model, images(4), epochs=3, output=tmp_path, callbacks=[ControlC()])
    assert signal.getsignal(signal.SIGINT) is handler
    assert not changed(state(model), state(TransferClassifier.load(tmp_path / "best.safetensors")))
    assert len(pd.read_csv(tmp_path / "history.csv")) == 1
    assert not model.training


def test_loss_that_is_not_finite(tmp_path: Path) -> None:
    model = small_classifier()
    calls = []

    def spoil(batch: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return batch if len(calls) < 4 else batch * torch.nan

    with pytest.raises(TrainingError, match=r"loss became nan in epoch 2 \(full phase\), step 1: lower lr"):
        quick(model, images(8), epochs=3, output=tmp_path, augment=spoil)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not changed(state(model), state(TransferClassifier.load(tmp_path / "best.safetensors")))
    assert len(pd.read_csv(tmp_path / "history.csv")) == 1


def test_early_failure_leaves_the_model_as_it_came(tmp_path: Path) -> None:
    model = small_classifier("shufflenet_v2_x0_5")
    before = state(model)
    with pytest.raises(TrainingError, match="loss became nan"):
        quick(model, images(8), augment=lambda batch: batch * torch.nan, output=tmp_path / "out")
    assert not changed(before, state(model))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["resume.safetensors"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "both 0"),
        ({"epochs": -1}, "epochs must be a whole number"),
        ({"head_epochs": 0.5}, "head_epochs must be a whole number"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0.0}, "lr must be a number, above 0"),
        ({"lr": float("nan")}, "lr must be a number, above 0"),
        ({"backbone_lr_scale": -1.0}, "backbone_lr_scale"),
        ({"balance": "weights"}, "balance must be"),
        ({"augment": "strong"}, "augment must be"),
        ({"adapt": "coral"}, "adapt must be a method of medimg.adapt"),
        ({"resume": "last.ckpt"}, "there is no file last.ckpt"),
        ({"trainer_kwargs": {"max_epochs": 3}}, "pass head_epochs and epochs to fine_tune"),
        ({"trainer_kwargs": {"no_such": 3}}, "Lightning rejects these settings"),
        ({"precision": "12-bit"}, "Lightning rejects these settings"),
        ({"augment": lambda batch: batch[:1]}, "expected a tensor of the same shape"),
    ],
)
def test_unsound_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        quick(small_classifier(), images(4), **settings)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (images(0), "training dataset has no images"),
        (images(4, classes=("b", "a")), r"classes=\['b', 'a'\], the model \['a', 'b'\]"),
        (images(4, task="multilabel"), "task='multilabel'"),
        (images(4, preprocess=Preprocess(size=64, window="lung")), "window='lung', not 'auto'"),
        (images(4, unit="series"), 'pool="none" takes images'),
        (Images(np.zeros(4, dtype=np.int64)), "no example of 'b' among the 4"),
        (Images(np.array([0, 1, 2])), "range from 0 to 2"),
        (Images(np.array([0, 1, -1])), "range from -1 to 1"),
        (Images(np.zeros((4, 2), dtype=np.float32)), r"shape \(4, 2\); expected \(4,\)"),
    ],
)
def test_data_that_do_not_fit(train: Images, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        quick(small_classifier(), train)


def test_validation_data_are_checked_too() -> None:
    with pytest.raises(TrainingError, match="the validation dataset has classes"):
        quick(small_classifier(), images(4), images(4, classes=("b", "a"), prefix="val"))


def test_a_patient_on_both_sides_is_refused_and_not_named() -> None:
    with pytest.raises(LeakageError, match="2 of 2 patients") as caught:
        quick(small_classifier(), images(4), images(2))
    assert "train0" not in str(caught.value)


def test_multilabel() -> None:
    labels = np.array([[0, 1], [1, 0], [1, 1], [0, 0], [1, 0], [0, 0]], dtype=np.float32)
    train = Images(labels, task="multilabel")
    val = Images(labels, task="multilabel", prefix="val", seed=1)
    model = small_classifier("shufflenet_v2_x0_5", task="multilabel")
    result = quick(model, train, val, epochs=2)
    proba = model.predict_proba(val)
    assert proba.shape == (6, 2)
    assert not np.allclose(proba.sum(axis=1), 1.0)
    assert result.monitor == "val_auroc"
    with pytest.raises(TrainingError, match='needs task="multiclass"'):
        quick(model, train, balance="sampler")
    with pytest.raises(TrainingError, match="or no negative example of 'a'"):
        quick(
            model, Images(np.ones((3, 2), np.float32) * [1, 0] + [[0, 1], [0, 0], [0, 0]], task="multilabel")
        )


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_bags_of_unequal_length(pool: str) -> None:
    train = Images(np.array([0, 1, 0, 1, 0]), unit="series", lengths=(2, 1, 3, 2, 2))
    val = Images(np.array([0, 1]), unit="series", lengths=(1, 2), prefix="val")
    model = small_classifier("shufflenet_v2_x0_5", pool=pool)
    before = state(model)
    quick(model, train, val, batch_size=2)
    assert changed(before, state(model)) == set(before)
    assert model.predict_proba(val).shape == (2, 2)


def test_lone_last_item_does_not_break_batch_normalization() -> None:
    # 32 pixels become 1 x 1 in shufflenet: one value per channel can't be normalized
    recipe = Preprocess(size=32)
    train = images(5, preprocess=recipe)
    result = quick(classifier("shufflenet_v2_x0_5", preprocess=recipe), train)
    assert np.isfinite(result.history[0]["train_loss"])


def test_callbacks_and_loggers_pass_through(tmp_path: Path) -> None:
    from pytorch_lightning.callbacks import EarlyStopping
    from pytorch_lightning.loggers import CSVLogger

    stop = EarlyStopping("val_loss", patience=1, min_delta=1e9)
    logger = CSVLogger(tmp_path, name="log")
    val = images(4, prefix="val", seed=1)
    settings = {"logger": logger, "log_every_n_steps": 1, "gradient_clip_val": 1.0}
    result = quick(small_classifier(), images(4), val, epochs=5, callbacks=[stop], trainer_kwargs=settings)
    assert len(result.history) == 2
    table = pd.read_csv(tmp_path / "log" / "version_0" / "metrics.csv")
    assert {"train_loss", "val_loss", "val_accuracy", "val_auroc"} <= set(table.columns)


def test_progress_is_shown_only_if_asked(capfd: pytest.CaptureFixture[str]) -> None:
    quick(small_classifier(), images(4))
    quiet = capfd.readouterr()
    assert quiet.out == quiet.err == ""
    quick(small_classifier(), images(4), progress=True)
    shown = capfd.readouterr()
    assert "full phase, epoch 1/1" in shown.err
    assert shown.out == ""


def test_workers_give_the_same_result() -> None:
    results = []
    for workers in (0, 1):
        model = small_classifier()
        quick(model, images(6), workers=workers)
        results.append(state(model))
    assert not changed(*results)


def test_recipe_of_the_model_is_what_counts() -> None:
    same = Preprocess.from_dict(SMALL.to_dict())
    assert quick(small_classifier(), images(4, preprocess=same)).best_epoch == 1


def test_settings_without_effect_are_refused() -> None:
    bags = images(4, unit="series", lengths=(2, 3, 2, 3))
    with pytest.raises(TrainingError, match=r"mixup=0.4 mixes single images"):
        quick(small_classifier(pool="mean"), bags, mixup=0.4)
    with pytest.raises(TrainingError, match=r"batch_size is 1"):
        quick(small_classifier(), images(4), mixup=0.4, batch_size=1)
    with pytest.raises(TrainingError, match=r"grad_slices=4 limits the slices of a bag"):
        quick(small_classifier(), images(4), grad_slices=4)
    with pytest.raises(TrainingError, match=r"grad_slices=4 limits the slices of a bag"):
        lr_find(small_classifier(), images(4), grad_slices=4)


def one_class(**fields: Any) -> Any:
    from tests.models.fakes import Images

    return Images(np.zeros(4, dtype=np.int64), prefix="val", seed=1, **fields)


def test_callbacks_that_do_not_fit_are_refused_before_training() -> None:
    from pytorch_lightning import callbacks as known

    val = images(4, prefix="val", seed=1)
    for callbacks, data, message in (
        ([known.EarlyStopping("valid_loss")], val, "monitors 'valid_loss'"),
        ([known.EarlyStopping("val_loss")], None, "monitors 'val_loss'.*need val="),
        ([known.EarlyStopping("val_auroc", mode="max")], one_class(), "monitors 'val_auroc'"),
        ([known.BackboneFinetuning()], val, "BackboneFinetuning freezes layers"),
        ([known.LearningRateMonitor()], val, "LearningRateMonitor writes to a logger"),
        ([known.ModelCheckpoint()], val, "pass output="),
        ([known.GradientAccumulationScheduler({0: 2})], val, "use accumulate="),
        ([known.StochasticWeightAveraging(1e-2)], val, "use ema="),
        (known.Timer(), val, "found a Timer"),
        ([known.Timer], val, "found the class Timer"),
        ("timer", val, "found a str"),
    ):
        with pytest.raises(TrainingError, match=message):
            quick(small_classifier(), images(4), data, callbacks=callbacks)
    with pytest.raises(TrainingError, match="monitor='val_auroc' has no value"):
        quick(small_classifier(), images(4), one_class(), monitor="val_auroc")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainer_kwargs": [1]}, "trainer_kwargs must be a mapping"),
        ({"trainer_kwargs": {"max_epoch": 3}}, "Lightning rejects"),
        ({"trainer_kwargs": {"gradient_clip_val": "much"}}, "Lightning rejects"),
        ({"precision": "8"}, "Lightning rejects"),
        ({"output": 3}, "output must be a path; found a int"),
        ({"cache": 3}, "cache must be a path"),
        ({"resume": 3}, "resume must be a path"),
    ],
)
def test_mistakes_are_errors_of_medimg_before_training(settings: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        quick(small_classifier(), images(4), **settings)


def test_another_object_than_a_classifier() -> None:
    with pytest.raises(TrainingError, match="the model is a Linear; expected a TransferClassifier"):
        quick(cast(TransferClassifier, torch.nn.Linear(2, 2)), images(4))


@pytest.mark.parametrize("call", [fine_tune, lr_find], ids=lambda call: call.__name__)
def test_a_batch_whose_statistics_can_not_be_computed(call: Any) -> None:
    recipe = Preprocess(size=32)
    settings: dict[str, Any] = {"batch_size": 1, "progress": False}
    for items in (4, 2):  # the only batch of two items has as many
        model = classifier("mobilenet_v3_small", preprocess=recipe)
        before = state(model)
        if items == 4:
            with pytest.raises(TrainingError, match=r"1 image of 32×32 at a time.*larger batch_size"):
                call(model, images(items, preprocess=recipe), **settings)
        assert not changed(before, state(model))
    call(
        classifier("mobilenet_v3_small", preprocess=recipe).freeze(),
        images(2, preprocess=recipe),
        **settings,
        **({"epochs": 0} if call is fine_tune else {"steps": 10}),
    )


def noting() -> Any:
    from pytorch_lightning.loggers.logger import Logger

    class Log(Logger):
        name, version = "noting", 0

        def __init__(self) -> None:
            super().__init__()
            self.calls: list[str] = []
            self.settings: dict[str, Any] = {}

        def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
            self.calls.append("settings")
            self.settings = dict(params)

        def log_metrics(self, *_: Any, **__: Any) -> None:
            self.calls.append("metrics")

        def finalize(self, status: str) -> None:
            self.calls.append(status)

    return Log()


def test_loggers_get_the_settings_once_and_how_it_ended() -> None:
    good, bad, cut = noting(), noting(), noting()
    quick(small_classifier(), images(4), head_epochs=1, epochs=1, logger=good)
    assert good.calls == ["settings", "metrics", "metrics", "success"]
    assert good.settings["lr"] == 1e-3
    assert good.settings["precision"] == "32-true"
    assert good.settings["augment"] == "auto"
    assert all(v is None or isinstance(v, bool | int | float | str) for v in good.settings.values())
    broken = images(4)
    broken.images[1].fill_(float("nan"))
    with pytest.raises(TrainingError):
        quick(small_classifier(), broken, logger=bad)
    assert bad.calls == ["settings", "failed"]
    with pytest.raises(TrainingError, match="Lightning rejects"):
        quick(small_classifier(), images(4), precision="8", logger=cut)
    # before it began
    assert cut.calls == []
