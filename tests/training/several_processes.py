"""
Trainings in several processes, started as ``torchrun`` does, but what was imported is so for all of them.

``python -m tests.training.several_processes COUNT`` reads a list of trainings, as `train` takes them, from
``work.json``, and writes what each process has found to ``rank<n>.json``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

import medimg
from medimg import fine_tune
from tests.models.fakes import Images, classifier, images
from tests.models.small_network import make_network, register_small_network

__all__ = ["run_processes", "train"]

_REPOSITORY: Final = Path(__file__).parents[2]


class _Viewing(nn.Module):
    """A network whose parts return views, which it changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.Flatten(2))
        self.second = nn.Sequential(nn.Linear(225, 64), nn.Flatten(1))
        self.third = nn.Linear(512, 64)
        self.fourth = nn.Linear(64, 16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.first(x).relu_()
        x = self.second(x).relu_()
        x = self.third(x)[:].relu_()
        found: Tensor = self.fc(self.fourth(x).relu_())
        return found


class _Careless(nn.Module):
    """A network that uses the parameters of a part without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = make_network()
        self.wide = nn.Linear(10, 100)
        self.fc = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.body(x)
        found: Tensor = self.fc(x @ self.wide.weight.T + self.wide.bias)
        return found


def register_networks() -> None:
    """Register networks by name."""
    register_small_network()
    medimg.register_backbone("viewing", _Viewing, size=64)
    medimg.register_backbone("careless", _Careless, size=64)


class _Stop(pl.Callback):
    """Ends the training before an epoch, or kills the last process in the middle of one."""

    def __init__(self, stop: int | None, kill: int | None) -> None:
        self._stop, self._kill = stop, kill

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Raise KeyError."""
        if trainer.current_epoch == self._stop:
            raise KeyError("stopped")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Wait, so that the others do so for this process, and end without a word."""
        last = trainer.global_rank == trainer.world_size - 1
        if last and batch_idx == 1 and trainer.current_epoch == self._kill:
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGKILL)


def train(
    *,
    backbone: str = "small",
    pool: str = "mean",
    series: bool = False,
    stop: int | None = None,
    kill: int | None = None,
    clip: float | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train with 8 items in a step, whatever the number of processes; return history and predictions."""
    model = classifier(backbone, pool=pool)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # each process drops other units
    bags: dict[str, Any] = {"unit": "series", "lengths": (3, 40, 5, 2, 35, 4) * 4} if series else {}
    few = {**bags, "lengths": bags["lengths"][:9]} if series else {}
    data = Images(np.array([0, 0, 0, 1] * 6), **bags)
    val = images(9, prefix="val", seed=1, **few)
    common = {"head_epochs": 1, "epochs": 2, "lr": 1e-2, "augment": None, "batch_statistics": "keep"}
    result = fine_tune(
        model,
        data,
        val,
        **{**common, **settings},
        batch_size=8 // int(os.environ.get("WORLD_SIZE", "1")),
        progress=False,
        callbacks=[_Stop(stop, kill)],
        trainer_kwargs={"accelerator": "cpu", "gradient_clip_val": clip},
    )
    tensors = model.state_dict().values()
    return {
        "history": [{k: v for k, v in row.items() if k != "seconds"} for row in result.history],
        "probabilities": model.predict_proba(val).tolist(),
        "plain": all(type(one) in (Tensor, nn.Parameter) for one in (*tensors, *model.parameters())),
        "total": sum(float(one.double().abs().sum()) for one in tensors),
    }


def run_processes(folder: Path, count: int, work: list[dict[str, Any]]) -> list[list[Any]]:
    """Return what each process has found in each training, or the error; of a killed process nothing."""
    (folder / "work.json").write_text(json.dumps(work))
    for old in folder.glob("rank*.json"):
        old.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.several_processes", str(count)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(_REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )
    paths = [folder / f"rank{rank}.json" for rank in range(count)]
    found = [json.loads(path.read_text()) if path.is_file() else [] for path in paths]
    assert found[0], done.stderr
    return found


def _run(work: list[dict[str, Any]]) -> list[Any]:
    found: list[Any] = []
    for one in work:
        try:
            found.append(train(**one))
        except (medimg.errors.MedimgError, KeyError) as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def main(count: int) -> None:
    """Start the processes, and wait for them."""
    torch.set_num_threads(1)
    register_networks()
    work = json.loads(Path("work.json").read_text())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"TORCHELASTIC_RUN_ID": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {**common, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            try:
                Path(f"rank{rank}.json").write_text(json.dumps(_run(work)))
            finally:
                os._exit(0)  # connections close at once
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
