from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from medimg import FitResult, ImageDataset, fine_tune
from medimg.data.augmentation.random_scan import describe_augmentation
from medimg.data.identifiers import identifier_digest
from medimg.errors import CheckpointError, MedimgWarning, TrainingError
from medimg.models import safetensors_file
from medimg.models.checkpoint import read_digest
from medimg.models.digest import model_digest
from medimg.training import resume
from tests.models.fakes import SMALL, changed, classifier, images, state
from tests.models.small_network import small_classifier

REPOSITORY = Path(__file__).parents[2]


class CutOffError(Exception):
    """Stands for whatever ends a process."""


def cut_after(epochs: int) -> Any:
    """A callback that ends training in the middle of the epoch after so many, through all phases."""
    import pytorch_lightning as pl

    class Cutter(pl.Callback):
        seen = 0

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if self.seen == epochs:
                raise CutOffError

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.seen += 1

    return Cutter()


def trained(output: Path | None, model: Any, **settings: Any) -> FitResult:
    val = images(6, prefix="val", seed=1)
    return fine_tune(
        model,
        images(10),
        val,
        **{
            "head_epochs": 2,
            "epochs": 3,
            "batch_size": 4,
            "output": output,
            "progress": False,
            "lr": 3e-3,
            **settings,
        },
    )


def without_times(result: FitResult) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in result.history]


@pytest.mark.parametrize(("epochs", "ema"), [(0, None), (0, 0.9), (1, None), (3, 0.9)])
def test_a_training_that_was_cut_off_ends_as_the_unbroken_one(
    tmp_path: Path, epochs: int, ema: float | None
) -> None:
    settings: dict[str, Any] = {"ema": ema}
    whole = small_classifier("mobilenet_v3_small")
    expected = trained(tmp_path / "whole", whole, **settings)
    with pytest.raises(CutOffError):
        trained(
            tmp_path / "cut",
            small_classifier("mobilenet_v3_small"),
            callbacks=[cut_after(epochs)],
            **settings,
        )
    # a new process starts with another random head
    model = small_classifier("mobilenet_v3_small")
    torch.nn.init.normal_(model.head.weight)
    result = trained(tmp_path / "cut", model, resume=True, **settings)
    assert without_times(result) == without_times(expected)
    assert not changed(state(model), state(whole))
    assert result.best_epoch == expected.best_epoch


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MEDIMG_SLOW"), reason="takes 20 seconds: set MEDIMG_SLOW=1")
def test_phases_that_are_gradual_sampled_and_accumulated_resume_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "gradual": True,
        "epochs": 4,
        "balance": "sampler",
        "accumulate": 2,
        "mixup": 0.4,
        "schedule": "cosine",
        "label_smoothing": 0.1,
    }
    whole = small_classifier("resnet18")
    expected = trained(tmp_path / "whole", whole, **settings)
    assert [row["phase"] for row in expected.history] == ["head"] * 2 + ["gradual"] * 3 + ["full"]
    with pytest.raises(CutOffError):
        trained(tmp_path / "cut", small_classifier("resnet18"), callbacks=[cut_after(3)], **settings)
    model = small_classifier("resnet18")
    assert without_times(trained(tmp_path / "cut", model, resume=True, **settings)) == without_times(expected)
    assert not changed(state(model), state(whole))


WRITTEN_BEFORE = Path(__file__).parent / "written_before"


def tiny_backbone() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=4),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )


@pytest.mark.parametrize("epochs", [1, 2])
def test_files_of_earlier_versions_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    """The files, and the result of the unbroken training, were written when its state was one class."""
    from pytorch_lightning.callbacks import EarlyStopping
    from safetensors.torch import load_file

    import medimg
    from medimg.adapt import DANN
    from medimg.models.backbones import registry

    monkeypatch.setattr(registry, "_OWN", {})
    medimg.register_backbone("tiny", tiny_backbone, size=64, features=4)
    shutil.copy(WRITTEN_BEFORE / f"after_epoch_{epochs}.safetensors", tmp_path / "resume.safetensors")
    # the revision of recipes that the files were written with
    recipe = SMALL.replace(revision=3)
    model = classifier("tiny", preprocess=recipe)
    torch.nn.init.normal_(model.head.weight)
    result = fine_tune(
        model,
        images(10, preprocess=recipe),
        images(6, prefix="val", seed=1, preprocess=recipe),
        head_epochs=1,
        epochs=3,
        batch_size=4,
        lr=3e-3,
        ema=0.9,
        adapt=DANN(images(6, prefix="target", seed=2, preprocess=recipe), hidden=4),
        callbacks=[EarlyStopping("val_loss", patience=9)],
        output=tmp_path,
        resume=True,
        progress=False,
    )
    expected = json.loads((WRITTEN_BEFORE / "history.json").read_text())
    for row, before in zip(without_times(result), expected, strict=True):
        for name, value in before.items():
            assert row[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), name
    for name, value in load_file(WRITTEN_BEFORE / "weights.safetensors").items():
        torch.testing.assert_close(state(model)[name], value, rtol=1e-4, atol=1e-6)


def test_callbacks_go_on_counting(tmp_path: Path) -> None:
    from pytorch_lightning.callbacks import EarlyStopping

    def patient() -> EarlyStopping:
        return EarlyStopping("val_loss", patience=2, min_delta=10.0)

    settings: dict[str, Any] = {"head_epochs": 0, "epochs": 6}
    expected = trained(tmp_path / "whole", small_classifier(), callbacks=[patient()], **settings)
    assert len(expected.history) == 3
    with pytest.raises(CutOffError):
        trained(tmp_path / "cut", small_classifier(), callbacks=[patient(), cut_after(2)], **settings)
    result = trained(tmp_path / "cut", small_classifier(), callbacks=[patient()], resume=True, **settings)
    assert without_times(result) == without_times(expected)


def test_what_has_ended_is_not_trained_again(tmp_path: Path) -> None:
    model = small_classifier()
    first = trained(tmp_path, model)
    again = small_classifier()
    second = trained(tmp_path, again, resume=tmp_path)
    assert second.history == first.history
    assert not changed(state(model), state(again))


def test_an_earlier_training_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    quick: dict[str, Any] = {"head_epochs": 0, "epochs": 1}
    trained(tmp_path, small_classifier(), **quick)

    def read() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    before = read()
    message = (
        r"has the results of an earlier training \(best.safetensors, last.safetensors, history.csv, resume"
    )
    for way in (None, False):
        with pytest.raises(TrainingError, match=f"{message}.*resume=True.*overwrite=True.*another folder"):
            # nothing is looked at before: the data would be refused
            fine_tune(small_classifier(), images(1), images(1), resume=way, output=tmp_path)
    with pytest.raises(TrainingError, match="pass one of them"):
        trained(tmp_path, small_classifier(), **quick, resume=True, overwrite=True)
    other = tmp_path.parent / f"{tmp_path.name}-other"
    trained(other, small_classifier(), **quick)
    with pytest.raises(TrainingError, match=message):
        trained(tmp_path, small_classifier(), **quick, resume=other)
    with pytest.raises(TrainingError, match="overwrite must be"):
        trained(tmp_path, small_classifier(), **quick, overwrite=1)
    assert read() == before
    # a model without the state of its training can't go on
    (tmp_path / "resume.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"it has no resume\.safetensors to continue"):
        trained(tmp_path, small_classifier(), **quick, resume=True)
    trained(tmp_path, small_classifier(), **quick, lr=0.1, overwrite=True)
    assert read()["best.safetensors"] != before["best.safetensors"]


@pytest.mark.parametrize("kept", [["resume.safetensors"], ["best.safetensors"]])
def test_a_part_of_an_earlier_training_counts_too(tmp_path: Path, kept: list[str]) -> None:
    quick: dict[str, Any] = {"head_epochs": 0, "epochs": 1}
    trained(tmp_path, small_classifier(), **quick)
    for path in tmp_path.iterdir():
        if path.name not in kept:
            path.unlink()
    with pytest.raises(TrainingError, match=rf"\({kept[0]}\)"):
        trained(tmp_path, small_classifier(), **quick)
    if kept == ["resume.safetensors"]:
        (tmp_path / kept[0]).write_bytes(b"damaged")
        with pytest.raises(TrainingError, match=kept[0]):
            trained(tmp_path, small_classifier(), **quick)


def test_a_training_without_an_epoch_is_no_result(tmp_path: Path) -> None:
    quick: dict[str, Any] = {"head_epochs": 0, "epochs": 1}
    with pytest.raises(CutOffError):
        trained(tmp_path, small_classifier(), callbacks=[cut_after(0)], **quick)
    assert [path.name for path in tmp_path.iterdir()] == ["resume.safetensors"]
    assert len(trained(tmp_path, small_classifier(), **quick).history) == 1


def test_resume_without_a_state_starts_from_the_beginning(tmp_path: Path) -> None:
    assert (
        len(trained(tmp_path / "new", small_classifier(), resume=True, head_epochs=0, epochs=1).history) == 1
    )
    with pytest.raises(TrainingError, match="needs output="):
        trained(None, small_classifier(), resume=True)
    with pytest.raises(TrainingError, match="there is no file"):
        trained(tmp_path, small_classifier(), resume=tmp_path / "nothing")


def test_another_training_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, small_classifier(), head_epochs=1, epochs=1)
    quick: dict[str, Any] = {"head_epochs": 1, "epochs": 1, "resume": tmp_path}
    with pytest.raises(TrainingError, match=r"lr=0.001, before 0.003"):
        trained(tmp_path, small_classifier(), **{**quick, "lr": 1e-3})
    with pytest.raises(TrainingError, match="another network"):
        trained(tmp_path, classifier("resnet18"), **quick)
    with pytest.raises(TrainingError, match="the train data"):
        fine_tune(
            small_classifier(),
            images(12),
            images(6, prefix="val", seed=1),
            batch_size=4,
            lr=3e-3,
            progress=False,
            **quick,
        )


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, small_classifier(), head_epochs=0, epochs=1)
    path = tmp_path / "resume.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:-9] + b"x" + whole[-8:], b"PK" + whole[2:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"resume\.safetensors"):
            trained(tmp_path, small_classifier(), head_epochs=0, epochs=1, resume=True)
    (tmp_path / "resume.safetensors").write_bytes((tmp_path / "best.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="not the state of a training"):
        trained(tmp_path, small_classifier(), head_epochs=0, epochs=1, resume=True)


WRONG_STATES: list[tuple[str, dict[str, Any]]] = [
    ("missing adapt", {"adapt": None}),
    ("missing phase", {"phase": None}),
    ("done is not what was written", {"done": -1}),
    ("done is not what was written", {"done": True}),
    ("data is not what was written", {"data": [1]}),
    ("ends is not what was written", {"ends": ["x"]}),
    ("weights must have 2 values", {"weights": ["x"]}),
    ("missing rows", {"recorder": {}}),
    ("recorder is not what was written", {"recorder": 3}),
    ("no sound state of a training", {"kept_statistics": ["elsewhere"]}),
]


def test_a_state_with_a_valid_hash_and_other_content(tmp_path: Path) -> None:
    trained(tmp_path, small_classifier(), head_epochs=0, epochs=1)
    path = tmp_path / "resume.safetensors"
    header = safetensors_file.read_header(path, resume._KEY, "a state")
    tensors = safetensors_file.read_tensors(path, header)
    for message, change in WRONG_STATES:
        other = {
            name: value for name, value in {**header, **change}.items() if change.get(name, 0) is not None
        }
        safetensors_file.write(path, resume._KEY, other, tensors)
        with pytest.raises(CheckpointError, match=message):
            trained(tmp_path, small_classifier(), head_epochs=0, epochs=1, resume=True)


def test_the_result_knows_the_model_of_its_file(tmp_path: Path) -> None:
    model = small_classifier()
    first = trained(tmp_path, model, head_epochs=0, epochs=2)
    path = tmp_path / "best.safetensors"
    assert first.checkpoint == path
    assert first.model_sha256 == read_digest(path) == model_digest(model)
    assert trained(None, small_classifier(), head_epochs=0, epochs=1).model_sha256 is None
    # one that is gone, or that another run wrote, is written again
    for spoil in (path.unlink, partial(shutil.copyfile, small_classifier().save(tmp_path / "other"), path)):
        spoil()
        again = trained(tmp_path, small_classifier(), head_epochs=0, epochs=2, resume=True)
        assert again.model_sha256 == first.model_sha256 == read_digest(path)


def test_a_callback_state_that_is_no_json_gives_a_warning(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    class Odd(pl.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"what": object}

    with pytest.warns(MedimgWarning, match="state of Odd"):
        trained(tmp_path, small_classifier(), head_epochs=0, epochs=2, callbacks=[Odd()])


def test_nothing_of_patients_is_written(tmp_path: Path) -> None:
    trained(tmp_path, small_classifier(), head_epochs=0, epochs=1)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert b"train0" not in content, path
        assert b"val0" not in content, path


SCRIPT = """
import sys, time, warnings
import torch
warnings.simplefilter("error")
torch.set_num_threads(1)
import pytorch_lightning as pl
from tests.models.small_network import register_small_network
from tests.training.test_resume import train_and_save

class Slow(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        time.sleep(0.3)

register_small_network()
train_and_save(sys.argv[1], callbacks=[Slow()])
"""


def train_and_save(folder: str | Path, **settings: Any) -> None:
    """What is killed in the test below, and what goes on."""
    model = small_classifier("mobilenet_v3_small")
    fine_tune(
        model,
        images(10),
        images(6, prefix="val", seed=1),
        head_epochs=1,
        epochs=3,
        batch_size=2,
        output=folder,
        resume=True,
        progress=False,
        **settings,
    )
    model.save(Path(folder) / "final.safetensors")


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    from medimg import TransferClassifier

    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    killed = subprocess.Popen([sys.executable, "train.py", "cut"], cwd=tmp_path, env=environment)
    history = tmp_path / "cut" / "history.csv"
    until = time.monotonic() + 120
    while not (history.exists() and len(history.read_text().splitlines()) >= 3):
        assert time.monotonic() < until
        assert killed.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)  # in the middle of the next epoch
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert len(history.read_text().splitlines()) < 5
    assert not (tmp_path / "cut" / "final.safetensors").exists()
    # this is another process, which knows of the first what is on disk
    train_and_save(tmp_path / "cut")
    train_and_save(tmp_path / "whole")
    models = [TransferClassifier.load(tmp_path / name / "final.safetensors") for name in ("cut", "whole")]
    assert not changed(state(models[0]), state(models[1]))
    rows = [(tmp_path / name / "history.csv").read_text().splitlines() for name in ("cut", "whole")]
    assert [row.rpartition(",")[0] for row in rows[0]] == [row.rpartition(",")[0] for row in rows[1]]
    json.dumps(models[0].training_summary)


def written(folder: Path, flip: bool = False) -> Any:
    """Twelve pictures of six patients in a folder, split."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    rows = []
    for n in range(12):
        pixels = noise.integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(255 - pixels if flip else pixels).save(folder / f"{n}.png")
        rows.append((f"{n}.png", "ab"[n % 2], f"p{n}"))
    table = pd.DataFrame(rows, columns=["path", "label", "patient"])
    data = ImageDataset.from_csv(
        table, root=folder, path="path", label="label", patient="patient", preprocess=SMALL
    )
    return data.subset(range(8)), data.subset(range(8, 12))


SHORT: dict[str, Any] = {"head_epochs": 0, "epochs": 2, "batch_size": 4, "progress": False}


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Path, Any]:
    """A training that was cut off after its first epoch, and its data."""
    data = written(tmp_path / "here")
    with pytest.raises(CutOffError):
        fine_tune(small_classifier(), *data, output=tmp_path / "out", callbacks=[cut_after(1)], **SHORT)
    return tmp_path / "out", data


def test_every_setting_that_changes_the_result_is_compared(begun: tuple[Path, Any]) -> None:
    output, data = begun
    changes: list[tuple[dict[str, Any], str]] = [
        ({"augment": None}, "augment=None, before"),
        ({"augment": "MR"}, "augment="),
        ({"augment": lambda images: images * 0}, "augment='function"),
        ({"precision": "bf16-mixed"}, "precision='bf16-mixed', before '32-true'"),
        ({"trainer_kwargs": {"gradient_clip_val": 1e-6}}, "gradient_clip_val=1e-06, before None"),
        ({"trainer_kwargs": {"limit_train_batches": 1}}, "limit_train_batches=1, before None"),
    ]
    for change, message in changes:
        with pytest.raises(TrainingError, match=message):
            fine_tune(small_classifier(), *data, output=output, resume=True, **{**SHORT, **change})
    with pytest.raises(TrainingError, match=r"frozen parameters \(\d+, before 0\)"):
        fine_tune(small_classifier().freeze(), *data, output=output, resume=True, **SHORT)
    # neither where it runs, nor another name of the same precision
    same: dict[str, Any] = {"precision": 32, "trainer_kwargs": {"accelerator": "cpu", "deterministic": True}}
    assert (
        len(fine_tune(small_classifier(), *data, output=output, resume=True, **{**SHORT, **same}).history)
        == 2
    )


def test_data_are_their_content_and_not_their_place(begun: tuple[Path, Any], tmp_path: Path) -> None:
    output, _ = begun
    other = written(tmp_path / "flipped", flip=True)
    with pytest.raises(TrainingError, match="the train data; the val data"):
        fine_tune(small_classifier(), *other, output=output, resume=True, **SHORT)
    moved = written(tmp_path / "there")
    assert len(fine_tune(small_classifier(), *moved, output=output, resume=True, **SHORT).history) == 2


def test_a_network_from_random_weights_goes_on_updating_its_statistics(tmp_path: Path) -> None:
    """After an epoch the layers have statistics, which are not kept for that."""
    settings: dict[str, Any] = {"head_epochs": 0, "epochs": 2}
    whole, model = (small_classifier("mobilenet_v3_small") for _ in range(2))
    trained(tmp_path / "whole", whole, **settings)
    with pytest.raises(CutOffError):
        trained(tmp_path / "cut", model, callbacks=[cut_after(1)], **settings)
    # the same object, whose statistics have moved
    trained(tmp_path / "cut", model, resume=True, **settings)
    assert not changed(state(whole), state(model))


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (lambda x: x, lambda x: x, True),
        (lambda x: x, lambda x: x + 0, False),
        (lambda x: x * 1, lambda x: x * 2, False),
        (partial(torch.mul, other=1), partial(torch.mul, other=2), False),
        (partial(torch.mul, other=1), partial(torch.mul, other=1), True),
        (v2.GaussianBlur(3), v2.GaussianBlur(5), False),
        (v2.GaussianBlur(3), v2.GaussianBlur(3), True),
        ("auto", "geometric", False),
        ("MR", None, False),
    ],
)
def test_augmentations_are_told_apart(first: Any, second: Any, same: bool) -> None:
    assert (describe_augmentation(first) == describe_augmentation(second)) == same


@pytest.mark.parametrize("schema", [1, 2])
def test_a_recipe_of_an_earlier_revision_is_named(tmp_path: Path, schema: int) -> None:
    old = SMALL.replace(revision=3)
    fine_tune(classifier(preprocess=old), images(8, preprocess=old), output=tmp_path, **SHORT)
    if schema == 1:
        path = tmp_path / "resume.safetensors"
        saved = resume.load(path)
        digest = {"train": identifier_digest(images(8, preprocess=old)), "val": None}
        resume.save(replace(saved, more=None, weights=None, kept_statistics=None, data=digest), path)
    with pytest.raises(TrainingError, match=r"the recipe of the train data .*preprocess.replace\(revision=3"):
        fine_tune(classifier(), images(8), output=tmp_path, resume=True, **SHORT)
    with pytest.raises(TrainingError, match="differs in the train data:"):
        fine_tune(classifier(), images(6), output=tmp_path, resume=True, **SHORT)
