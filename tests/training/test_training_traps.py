"""Ways in which training goes wrong silently, each closed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset
from torchvision import transforms

from medimg import Preprocess, lr_find
from medimg.adapt import CORAL, PGD
from medimg.data.augmentation.random_scan import make_augmentation
from medimg.errors import DatasetError, LeakageError, TrainingError, WeightsUnavailableError
from medimg.models.backbones.architecture import resolve_weights
from medimg.models.classifier import TransferClassifier
from medimg.training.fine_tune import fine_tune
from tests.models.fakes import Images, changed, classifier, images, state
from tests.models.small_network import small_classifier

QUICK: dict[str, Any] = {"progress": False, "batch_size": 4}


def test_an_epoch_without_validation_is_not_the_best() -> None:
    result = fine_tune(
        classifier(),
        images(8),
        images(8, prefix="val", seed=1),
        head_epochs=0,
        epochs=3,
        trainer_kwargs={"check_val_every_n_epoch": 2},
        **QUICK,
    )
    assert [row["val_loss"] is None for row in result.history] == [True, False, True]
    assert result.best_epoch == 2


def test_attention_is_not_trained_on_single_images() -> None:
    with pytest.raises(TrainingError, match="attention"):
        fine_tune(classifier(pool="attention"), images(8), **QUICK)


def test_training_and_validation_have_the_same_unit() -> None:
    bags = images(4, unit="series", lengths=(2, 2, 2, 2), prefix="val")
    with pytest.raises(TrainingError, match="unit"):
        fine_tune(classifier(pool="mean"), images(8), bags, **QUICK)


@pytest.mark.parametrize("what", ["series_uids", "sources"])
def test_the_same_series_or_file_on_both_sides_is_a_leak(what: str, tmp_path: Path) -> None:
    train, val = images(8), images(8, prefix="val", seed=1)
    for data, spelling in ((train, str(tmp_path / "a")), (val, str(tmp_path / "x" / ".." / "a"))):
        setattr(data, what, (spelling, *(f"{data.prefix}{n}" for n in range(7))))
    with pytest.raises(LeakageError, match="1 of 8"):
        fine_tune(classifier(), train, val, **QUICK)


def test_callbacks_start_each_phase_from_their_initial_state() -> None:
    from pytorch_lightning.callbacks import EarlyStopping

    patient = EarlyStopping("val_loss", patience=2, min_delta=10.0)
    result = fine_tune(
        classifier(),
        images(8),
        images(8, prefix="val", seed=1),
        head_epochs=3,
        epochs=6,
        callbacks=[patient],
        **QUICK,
    )
    assert [row["phase"] for row in result.history].count("full") == 3


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "16-true"])
def test_a_precision_that_changes_the_model_is_refused(precision: str) -> None:
    model = classifier()
    with pytest.raises(TrainingError, match="bf16-mixed"):
        fine_tune(model, images(8), precision=precision, **QUICK)
    assert next(model.parameters()).dtype == torch.float32


def test_numpy_settings_can_be_saved(tmp_path: Path) -> None:
    model = classifier()
    lr: Any = np.float32(1e-3)
    seed: Any = np.int64(3)
    fine_tune(model, images(8), lr=lr, seed=seed, head_epochs=0, epochs=1, output=tmp_path, **QUICK)
    assert model.save(tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    "settings",
    [{"lr": "1e-3"}, {"seed": 1.5}, {"epochs": True}, {"workers": "2"}, {"backbone_lr_scale": None}],
)
def test_settings_of_the_wrong_kind_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=next(iter(settings))):
        fine_tune(classifier(), images(8), **{**QUICK, **settings})


def test_an_output_that_is_a_file_is_seen_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="folder"):
        fine_tune(classifier(), images(8), output=tmp_path / "file", **QUICK)


def test_nothing_to_train_is_an_error() -> None:
    model = classifier()
    model.head.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing is trainable in the head phase"):
        fine_tune(model, images(8), **QUICK)
    with pytest.raises(TrainingError, match="no epoch"):
        fine_tune(classifier(), images(8), trainer_kwargs={"max_time": {"seconds": 0}}, **QUICK)


def test_a_backbone_rate_of_0_keeps_the_backbone() -> None:
    model = classifier("shufflenet_v2_x0_5")
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    fine_tune(model, images(8), head_epochs=0, epochs=1, backbone_lr_scale=0, **QUICK)
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


def test_torchs_own_subsets_are_refused_with_advice() -> None:
    part: Any = Subset(images(8), [0, 1])  # type: ignore[arg-type]  # what its users try first
    with pytest.raises(TrainingError, match="subset"):
        fine_tune(classifier(), part, **QUICK)


@pytest.mark.parametrize("classes", [2, {"a", "b"}, "ab", None, (n for n in "ab")])
def test_classes_are_names_in_an_order(classes: Any) -> None:
    with pytest.raises(TrainingError, match="classes"):
        TransferClassifier("squeezenet1_1", classes=classes, weights=None)


def test_predicting_leaves_random_numbers_and_modes_alone() -> None:
    model = classifier().train()
    model.backbone.eval()
    data = images(4)
    state = torch.random.get_rng_state()
    model.predict_proba(data)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert not model.backbone.training


@pytest.mark.parametrize("source", [None, 3.5, 7])
def test_predicting_on_nothing_known(source: Any) -> None:
    with pytest.raises(TrainingError, match="can't predict"):
        classifier().predict(source)


def test_a_date_is_not_called_damage(tmp_path: Path) -> None:
    path = tmp_path / "best-20240115.pth"
    torch.save(classifier().state_dict(), path)
    with pytest.raises(WeightsUnavailableError, match="rename"):
        classifier(weights=path)


def test_a_damaged_cached_file_names_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    source = resolve_weights("squeezenet1_1", "DEFAULT")
    assert source is not None
    source.path.parent.mkdir(parents=True)
    source.path.write_bytes(b"cut short")
    with pytest.raises(WeightsUnavailableError) as caught:
        classifier(weights="DEFAULT")
    assert str(source.url) in str(caught.value)
    assert str(source.path) in str(caught.value)


@pytest.mark.parametrize("state", [{0: torch.zeros(1)}, {"a": torch.zeros(2, 2).to_sparse()}])
def test_odd_state_dicts_are_refused(tmp_path: Path, state: Any) -> None:
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(WeightsUnavailableError):
        classifier(weights=tmp_path / "odd.pth")
    with pytest.raises(WeightsUnavailableError, match="DEFAULT"):
        classifier(weights=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradual": True, "epochs": 0}, "gradual=True needs a backbone that is trained"),
        ({"gradual": True, "backbone_lr_scale": 0}, "gradual=True needs a backbone that is trained"),
        ({"gradual": True, "epochs": 1}, "gradual=True .* epochs=1 .* raise epochs"),
        ({"adapt": CORAL(images(4, prefix="target")), "epochs": 0}, "adapt=CORAL needs a backbone"),
        (
            {"adapt": CORAL(images(4, prefix="target")), "backbone_lr_scale": 0},
            "adapt=CORAL needs a backbone",
        ),
    ],
)
def test_settings_of_a_backbone_that_is_not_trained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        fine_tune(classifier(), images(8), **{**QUICK, "epochs": 3, **settings})


@pytest.mark.parametrize("settings", [{"gradual": True}, {"adapt": CORAL(images(4, prefix="target"))}])
def test_settings_of_a_frozen_backbone(settings: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="all of it is frozen"):
        fine_tune(classifier().freeze(), images(8), **QUICK, **settings)


def test_adversarial_images_train_the_head_too() -> None:
    assert (
        fine_tune(classifier(), images(8), adapt=PGD(steps=1), head_epochs=1, epochs=0, **QUICK).best_epoch
        == 1
    )


@pytest.mark.parametrize("wrong", [lambda images: dict[str, int]()["a"], transforms.ToTensor()])
def test_augmentations_that_fail_are_seen_before_training(wrong: Any, tmp_path: Path) -> None:
    for use in (fine_tune, lr_find):
        with pytest.raises(TrainingError, match=r"augmentation fails on a batch .*(KeyError|TypeError)"):
            use(classifier(), images(8), augment=wrong, progress=False)


def test_trying_an_augmentation_draws_no_random_number() -> None:
    def draws(images: torch.Tensor) -> torch.Tensor:
        return images * random.random() * np.random.rand() * torch.rand(())  # noqa: NPY002

    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    before = random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    make_augmentation(draws, Preprocess(size=16))
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == before  # noqa: NPY002


def test_more_processes_than_cores_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"devices=4096 .* \d+ cores"):
        fine_tune(classifier(), images(8), devices=4096, trainer_kwargs={"accelerator": "cpu"}, **QUICK)


def test_pruning_is_refused() -> None:
    from pytorch_lightning.callbacks import ModelPruning

    with pytest.raises(TrainingError, match="ModelPruning changes parameters"):
        fine_tune(classifier(), images(8), callbacks=[ModelPruning("l1_unstructured")], **QUICK)


@dataclass
class Failing(Images):
    """Items that fail after some calls, in whichever process."""

    most: int = 13
    calls: int = 0

    def __getitem__(self, index: int) -> Any:
        self.calls += 1
        if self.calls > self.most:
            raise KeyError("no pixels")
        return super().__getitem__(index)


def _goes_on(folder: Path, settings: Mapping[str, Any]) -> None:
    """What was trained before the failure is there, and goes on to the same weights."""
    kept = TransferClassifier.load(folder / "best.safetensors")
    assert kept.training_summary is not None
    assert kept.training_summary["epochs_run"] == 1
    again, whole = small_classifier(), small_classifier()
    fine_tune(again, images(8), **settings, output=folder, resume=True)
    fine_tune(whole, images(8), **settings)
    assert not changed(state(again), state(whole))


LATER: dict[str, Any] = {**QUICK, "head_epochs": 0, "epochs": 3, "augment": None}


@pytest.mark.parametrize("workers", [None, 1])
def test_a_dataset_that_fails_later_is_named(tmp_path: Path, workers: int | None) -> None:
    failing = Failing(np.arange(8) % 2)
    with pytest.raises(DatasetError) as caught:
        fine_tune(small_classifier(), failing, **LATER, output=tmp_path, workers=workers)
    message = str(caught.value)
    assert message.startswith("item ")
    assert "of the dataset Failing can't be loaded: KeyError: 'no pixels'" in message
    assert "Traceback" not in message
    cause = caught.value.__cause__
    assert isinstance(cause, KeyError) or "in DataLoader worker process" in str(cause)
    _goes_on(tmp_path, LATER)


def test_a_dataset_that_fails_is_named_in_every_use() -> None:
    model = small_classifier()
    uses: list[Any] = [
        lambda data: model.predict_proba(data, progress=False),
        lambda data: fine_tune(model, data, **{**QUICK, "head_epochs": 1, "epochs": 0, "augment": None}),
        lambda data: lr_find(model, data, batch_size=4, steps=12, progress=False),
    ]
    for use in uses:
        with pytest.raises(DatasetError, match=r"the dataset Failing can't be loaded: KeyError"):
            use(Failing(np.arange(8) % 2, most=5))


def test_an_augmentation_that_fails_later_is_named(tmp_path: Path) -> None:
    calls = []

    def fading(batch: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        # the first is a trial
        return batch if len(calls) < 5 else batch * (1 / 0)

    settings: dict[str, Any] = {**LATER, "augment": fading}
    with pytest.raises(
        TrainingError, match=r"augment=.*fading: .* fails on a batch .*ZeroDivisionError"
    ) as caught:
        fine_tune(small_classifier(), images(8), **settings, output=tmp_path)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    kept = TransferClassifier.load(tmp_path / "best.safetensors")
    assert kept.training_summary is not None
    assert kept.training_summary["epochs_run"] == 1
    calls.clear()
    with pytest.raises(TrainingError, match="ZeroDivisionError"):
        lr_find(small_classifier(), images(8), batch_size=4, steps=12, augment=fading, progress=False)


def test_a_method_of_adaptation_that_fails_later_is_named() -> None:
    class Perturbing(PGD):
        def perturb(self, *_: Any) -> Any:
            raise ValueError("no change")

    with pytest.raises(TrainingError, match=r"adapt=.*Perturbing fails on images .*ValueError: no change"):
        fine_tune(small_classifier(), images(8), **LATER, adapt=Perturbing(steps=1))


def test_images_of_several_sizes_are_named() -> None:
    odd = images(8)
    odd.images[5] = torch.zeros(1, 3, 32, 32)
    with pytest.raises(DatasetError, match=r"images of one size; found \(3, 32, 32\), \(3, 64, 64\)"):
        fine_tune(small_classifier(), odd, **LATER)
