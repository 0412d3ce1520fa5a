from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet50, vit_b_16

import medimg
from medimg import fine_tune
from medimg.errors import TrainingError
from medimg.training.optimization.sharding import Sharding, find_parts
from tests.models.fakes import images
from tests.models.small_network import small_classifier
from tests.training.several_processes import register_networks, run_processes, train

ASKED = pytest.mark.skipif(
    not os.environ.get("MEDIMG_SLOW"), reason="trains in more processes: set MEDIMG_SLOW=1"
)

#: Trainings that are one whatever divides them.
WORK: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"gradual": True, "epochs": 5, "ema": 0.7, "clip": 0.5, "accumulate": 3, "layer_decay": 0.5},
    "sampler": {"balance": "sampler", "head_epochs": 0, "epochs": 1},
    "bfloat16": {"precision": "bf16-mixed", "epochs": 1},
    "bags": {"series": True, "pool": "attention", "epochs": 1},
    "frozen_bags": {"series": True, "epochs": 0, "mixup": 0.0},
    "views": {"backbone": "viewing", "head_epochs": 0},
}
SAVED: dict[str, Any] = {"epochs": 4, "ema": 0.7}


@pytest.fixture(autouse=True)
def networks(small_network: None) -> None:
    register_networks()


def assert_alike(found: dict[str, Any], expected: dict[str, Any], name: str) -> None:
    """Compare scores of each epoch, and probabilities of the model in the end."""
    assert isinstance(found, dict), (name, found)
    assert found["plain"]
    for row, twin in zip(expected["history"], found["history"], strict=True):
        for score in ("train_loss", "val_loss", "val_auroc", "val_f1", "lr"):
            assert twin[score] == pytest.approx(row[score], abs=2e-3), (name, row["epoch"], score)
    assert np.allclose(found["probabilities"], expected["probabilities"], atol=2e-3), name


def run_alike(folder: Path, count: int, work: list[dict[str, Any]]) -> list[Any]:
    """Return what the processes have found, all of them the same."""
    first, *others = run_processes(folder, count, work)
    for other in others:
        assert other == first
    return first


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=ASKED)])
def test_processes_that_divide_a_model_train_as_one(tmp_path: Path, count: int) -> None:
    """Each part of a training: stages that are thawed, averages, clipping, accumulation, bags."""
    work = [*WORK.values(), {"backbone": "careless"}]
    *found, refused = run_alike(tmp_path, count, [{**one, "strategy": "fsdp"} for one in work])
    for (name, settings), one in zip(WORK.items(), found, strict=True):
        assert_alike(one, train(**settings), name)
    # it uses parameters of a part without calling it
    assert refused.startswith('TrainingError: strategy="fsdp" can\'t divide careless')


@pytest.mark.slow
def test_a_training_goes_on_with_the_other_strategy(tmp_path: Path) -> None:
    """Its files are those of any training, and the first process alone writes them."""
    pairs = [("ddp", "fsdp"), ("fsdp", "ddp"), ("fsdp", "fsdp")]
    work: list[dict[str, Any]] = []
    for first, second in pairs:
        output = f"{first}_{second}"
        work.append({**SAVED, "output": output, "stop": 2, "strategy": first})
        work.append({**SAVED, "output": output, "resume": True, "strategy": second})
    found = run_alike(tmp_path, 2, work)
    expected, val = train(**SAVED), images(9, prefix="val", seed=1)
    for (first, second), stopped, resumed in zip(pairs, found[::2], found[1::2], strict=True):
        folder = tmp_path / f"{first}_{second}"
        assert "stopped" in stopped
        assert_alike(resumed, expected, folder.name)
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["best.safetensors", "history.csv", "last.safetensors", "resume.safetensors"]
        model = medimg.load(folder / "best.safetensors")
        assert np.allclose(model.predict_proba(val), resumed["probabilities"], atol=1e-6)


@pytest.mark.slow
@ASKED
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_fewer_processes_go_on(tmp_path: Path, strategy: str) -> None:
    common = {**SAVED, "output": str(tmp_path / "out"), "strategy": strategy}
    run_alike(tmp_path, 4, [{**common, "stop": 1}])
    run_alike(tmp_path, 2, [{**common, "stop": 3, "resume": True}])
    found = train(**{**common, "strategy": "auto", "resume": True})
    assert_alike(found, train(**SAVED), "resumed")


@pytest.mark.slow
@ASKED
@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_as_one(tmp_path: Path, count: int) -> None:
    found = run_alike(tmp_path, count, [{**one, "strategy": "ddp"} for one in WORK.values()])
    for (name, work), one in zip(WORK.items(), found, strict=True):
        assert_alike(one, train(**work), name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "strategy"),
    [
        (2, "ddp"),
        pytest.param(2, "fsdp", marks=ASKED),
        pytest.param(4, "ddp", marks=ASKED),
        pytest.param(4, "fsdp", marks=ASKED),
    ],
)
def test_a_killed_process_ends_the_others_which_can_go_on(tmp_path: Path, count: int, strategy: str) -> None:
    """The others wait for it in a step: they end at once, not when messages are overdue, in 30 minutes."""
    common = {**SAVED, "output": "out", "strategy": strategy}
    *others, killed = run_processes(tmp_path, count, [{**common, "kill": 2}])
    assert killed == []
    for (said,) in others:
        assert "TrainingError: another process of this training has ended" in said
        assert "resume=True" in said
    (found,) = run_alike(tmp_path, count, [{**common, "resume": True}])
    assert_alike(found, train(**SAVED), "resumed")


def test_a_share_of_a_model_is_not_saved(tmp_path: Path) -> None:
    """As by a callback of the main process alone, which would wait for the others."""
    model = small_classifier()
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        divided = Sharding().copy_sharded(model, None)
        with pytest.raises(TrainingError, match='divided between processes by strategy="fsdp"'):
            divided.save(tmp_path / "model.safetensors")
    finally:
        torch.distributed.destroy_process_group()
    model.save(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"adapter": "lora"}, "adapter='lora'"),
        ({"adapt": "auto", "target": images(8, prefix="target")}, "adapt"),
        ({"compile": True}, "compile"),
        ({"channels_last": True}, "channels_last"),
        ({"precision": "16-mixed"}, "16-mixed"),
    ],
)
def test_what_a_divided_model_can_not_do_is_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(TrainingError, match=rf'strategy="fsdp" can\'t be combined with .*{named}.*ddp'):
        fine_tune(
            small_classifier(),
            images(8),
            images(8, prefix="val"),
            strategy="fsdp",
            devices=2,
            trainer_kwargs={"accelerator": "cpu"},
            **settings,
        )


def test_one_process_divides_nothing() -> None:
    alone, plain = (
        train(head_epochs=1, epochs=0, strategy=strategy)["probabilities"] for strategy in ("fsdp", "auto")
    )
    assert alone == plain


@pytest.mark.parametrize(("network", "parts"), [(resnet50, 10), (vit_b_16, 12)])
def test_large_parts_are_gathered_one_by_one(network: Any, parts: int) -> None:
    with torch.device("meta"):
        backbone = network()
    found = find_parts(backbone)
    assert len(found) == parts
    every = [parameter for part in found for parameter in part.parameters()]
    assert len(set(every)) == len(every)
    assert sum(p.numel() for p in every) > 0.8 * sum(p.numel() for p in backbone.parameters())


def test_networks_that_share_parameters_are_gathered_as_one() -> None:
    backbone = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    assert len(find_parts(backbone)) == 5
    backbone[3].weight = backbone[1].weight
    assert find_parts(backbone) == []
