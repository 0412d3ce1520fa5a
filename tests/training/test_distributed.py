from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medimg import fine_tune
from medimg.errors import TrainingError
from tests.models.fakes import images
from tests.models.small_network import small_classifier

REPOSITORY = Path(__file__).parents[2]

START = """
import json, os, shutil, socket, sys, warnings
from pathlib import Path
import numpy as np
import torch
warnings.simplefilter("error")
torch.set_num_threads(1)
import pytorch_lightning
import medimg
from medimg import fine_tune
from tests.models.fakes import images
from tests.models.small_network import register_small_network, small_classifier

def fork():
    # as a launcher of processes does, but what was imported is so for both
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    child = os.fork()
    os.environ["LOCAL_RANK"] = "0" if child else "1"
    return child

def total(model):
    return sum(float(v.double().sum()) for v in model.state_dict().values())

register_small_network()
torch.manual_seed(0)
DDP = {"devices": 2, "strategy": "ddp", "trainer_kwargs": {"accelerator": "cpu"}}
"""

SCRIPT = (
    START
    + """
if __name__ == "__main__":
    child = fork() if sys.argv[1:] == ["fork"] else None
    model, val = small_classifier("shufflenet_v2_x0_5"), images(7, prefix="val", seed=1)
    result = fine_tune(
        model, images(13), val, head_epochs=1, epochs=1, batch_size=4, balance=None, progress=False,
        output="out", **DDP,
    )
    proba = torch.from_numpy(model.predict_proba(val))
    loss = torch.nn.functional.nll_loss(proba.log(), torch.from_numpy(val.labels))
    rank = os.environ.get("LOCAL_RANK", "0")
    found = {"history": result.history, "best": result.best["val_loss"], "loss": float(loss)}
    found["total"] = total(model)
    Path(f"rank{rank}.json").write_text(json.dumps(found))
    assert not child or os.waitpid(child, 0)[1] == 0
"""
)

ASKED = pytest.mark.skipif(
    not os.environ.get("MEDIMG_SLOW"), reason="trains in more processes: set MEDIMG_SLOW=1"
)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", pytest.param("script", marks=ASKED)])
def test_two_processes_agree_and_score_each_item_once(tmp_path: Path, start: str) -> None:
    """However they are started: by a launcher, or by Lightning, which runs the script once more."""
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "train.py", start],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank{n}.json").read_text()) for n in (0, 1))
    # 7 items in 2 processes: one is repeated, and must not count twice
    assert first["loss"] == pytest.approx(first["best"], rel=1e-5)
    assert first["total"] == pytest.approx(second["total"], rel=1e-12)
    for row, other in zip(first["history"], second["history"], strict=True):
        del row["seconds"], other["seconds"]
        assert row == other
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "rank0.json", "rank1.json", "train.py"]


ALIKE = (
    START
    + """
from sklearn.model_selection import StratifiedKFold
warnings.simplefilter("ignore", medimg.errors.MedimgWarning)
recipe = medimg.Preprocess(size=32)
common = {"head_epochs": 0, "epochs": 1, "batch_size": 4, "lr": 3e-3, **DDP}

def data(count, prefix):
    pixels = np.random.default_rng(len(prefix)).integers(0, 200, (count, 32, 32)).astype(np.uint8)
    labels = [n % 2 for n in range(count)]
    pixels[1::2, :, ::4] += 55
    patients = [f"{prefix}{n}" for n in range(count)]
    return medimg.ImageDataset.from_arrays(
        list(pixels), labels, patients=patients, classes=["a", "b"], preprocess=recipe
    )

def describe(model, result):
    return [total(model), str(result.checkpoint), Path(result.checkpoint).is_file(), result.candidates]

if __name__ == "__main__":
    written, replace, copy = [], os.replace, shutil.copyfile
    os.replace = lambda source, to: (written.append(str(to)), replace(source, to))
    shutil.copyfile = lambda source, to: (written.append(str(to)), copy(source, to))
    child = fork()
    train, val, target = data(16, "train"), data(6, "validation"), data(12, "t")
    found = {}
    model = small_classifier("shufflenet_v2_x0_5", preprocess=recipe)
    result = fine_tune(model, train, output="plain", progress=False, ema=0.5, **common)
    found["plain"] = describe(model, result)
    model = small_classifier("shufflenet_v2_x0_5", preprocess=recipe)
    auto = medimg.adapt.Auto(target, candidates=[medimg.adapt.AdaBN(target)])
    result = fine_tune(model, train, val, adapt=auto, output="auto", progress=False, **common)
    found["auto"] = describe(model, result)
    model = small_classifier("shufflenet_v2_x0_5", preprocess=recipe)
    result = medimg.cross_validate(
        model, train, fine_tune=common, folds=2, val_fraction=0, n_resamples=2, output="cv", progress=False
    )
    found["cv"] = [result.probabilities.tolist(), [str(fit.checkpoint) for fit in result.fits]]
    found["ensemble"] = total(result.ensemble())
    rank = os.environ["LOCAL_RANK"]
    Path(f"rank{rank}.json").write_text(json.dumps([found, written]))
    assert not child or os.waitpid(child, 0)[1] == 0
"""
)


@pytest.mark.slow
def test_two_processes_end_alike_and_one_writes(tmp_path: Path) -> None:
    """Also without validation, which gives all of them the statistics of the main one."""
    (tmp_path / "train.py").write_text(ALIKE)
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (first, written), (second, others) = (
        json.loads((tmp_path / f"rank{n}.json").read_text()) for n in (0, 1)
    )
    assert first == second
    assert first["plain"][1:] == ["plain/best.safetensors", True, []]
    assert first["cv"][1] == [f"cv/fold_{n}/best.safetensors" for n in (1, 2)]
    assert {"auto/best.safetensors", "auto/last.safetensors", "cv/fold_1/result.safetensors"} <= set(written)
    assert others == []


EQUAL = """
import json, os, sys, warnings
from pathlib import Path
import numpy as np
import torch
warnings.simplefilter("error")
torch.set_num_threads(1)
from medimg import fine_tune
from tests.models.fakes import Images, classifier, images

if __name__ == "__main__":
    processes = int(sys.argv[1])
    model = classifier("squeezenet1_1")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # each process drops other units
    # classes of unequal size: weights must not depend on how a batch is shared out
    train, val = Images(np.array([0, 0, 0, 1] * 6)), images(9, prefix="val", seed=1)
    result = fine_tune(
        model, train, val, head_epochs=2, epochs=3, batch_size=8 // processes, progress=False, lr=3e-3,
        balance=sys.argv[2], devices=processes, augment=None,
        strategy="ddp" if processes > 1 else "auto", trainer_kwargs={"accelerator": "cpu"},
    )
    if os.environ.get("LOCAL_RANK", "0") == "0":
        Path(f"{processes}.json").write_text(json.dumps([result.history, model.predict_proba(val).tolist()]))
"""


@pytest.mark.slow
@ASKED
@pytest.mark.parametrize("balance", ["loss", "sampler"])
def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path: Path, balance: str) -> None:
    (tmp_path / "train.py").write_text(EQUAL)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    found = []
    for processes in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "train.py", processes, balance],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / f"{processes}.json").read_text()))
    (alone, proba), (shared, other) = found
    assert len(alone) == len(shared) == 5
    for row, twin in zip(alone, shared, strict=True):
        for name in ("train_loss", "val_loss", "val_auroc", "val_f1", "lr"):
            assert twin[name] == pytest.approx(row[name], abs=1e-4), (row["epoch"], name)
    assert alone[-1]["train_loss"] < 0.9 * alone[0]["train_loss"]
    assert np.allclose(proba, other, atol=1e-4)


LAUNCHED = """
import json, os, sys, warnings
from pathlib import Path
import numpy as np
import torch
warnings.simplefilter("error")
torch.set_num_threads(1)
from medimg import fine_tune
from medimg.data.processes import is_main_process
from tests.models.fakes import Images, classifier, images
from pytorch_lightning import Callback

class Stop(Callback):
    def on_train_epoch_start(self, trainer, module):
        if os.environ.get("STOP") == str(trainer.current_epoch):
            os._exit(3)  # both processes are cut off in the middle

if __name__ == "__main__":
    model = classifier("squeezenet1_1")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # each process drops other units
    main = is_main_process()
    result = fine_tune(
        model, Images(np.array([0, 0, 0, 1] * 6)), images(9, prefix="val", seed=1), head_epochs=0, epochs=3,
        batch_size=int(sys.argv[1]), progress=False, lr=3e-3, balance="sampler", augment=None, output="out",
        resume="resume" in sys.argv, callbacks=[Stop()] if "STOP" in os.environ else (),
        trainer_kwargs={"accelerator": "cpu"},
    )
    if main:
        Path("found.json").write_text(json.dumps([result.history, model.predict_proba(images(9)).tolist()]))
"""


def _environments(launcher: str, port: int) -> list[dict[str, str]]:
    """Return what a launcher tells its two processes on two computers."""
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if launcher == "torchrun":
        common = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        return [{**master, **common, "RANK": str(n), "LOCAL_RANK": "0"} for n in (0, 1)]
    common = {
        "SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "127.0.0.1",
    }  # fmt: skip
    return [
        {**master, **common, "SLURM_PROCID": str(n), "SLURM_LOCALID": "0", "SLURM_NODEID": str(n)}
        for n in (0, 1)
    ]


def _run(folder: Path, environments: list[dict[str, str]], *arguments: str) -> list[int]:
    """Run the script in processes side by side, and return their exit statuses."""
    (folder / "train.py").write_text(LAUNCHED)
    running = [
        subprocess.Popen(
            [sys.executable, "train.py", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **more},
            stderr=subprocess.PIPE,
            text=True,
        )
        for more in environments
    ]
    errors = [process.communicate(timeout=240)[1] for process in running]
    statuses = [process.returncode for process in running]
    assert set(statuses) <= {0, 3}, errors
    return statuses


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("slurm", marks=ASKED)])
def test_two_computers_train_as_one_and_may_be_resumed_as_one(tmp_path: Path, launcher: str) -> None:
    """Two computers, started by a launcher, train as one does, which may also go on with their training."""
    folders = [tmp_path / name for name in ("alone", "together", "resumed")]
    for folder in folders:
        folder.mkdir()
    assert _run(folders[0], [{}], "8") == [0]
    assert _run(folders[1], _environments(launcher, _free_port()), "4") == [0, 0]
    stopped = [{**one, "STOP": "1"} for one in _environments(launcher, _free_port())]
    assert _run(folders[2], stopped, "4") == [3, 3]
    assert _run(folders[2], [{}], "8", "resume") == [0]
    (alone, proba), *others = (json.loads((folder / "found.json").read_text()) for folder in folders)
    for history, probabilities in others:
        assert len(history) == len(alone) == 3
        for row, twin in zip(alone, history, strict=True):
            for name in ("train_loss", "val_loss", "val_f1", "lr"):
                assert twin[name] == pytest.approx(row[name], abs=2e-3), (row["epoch"], name)
        assert np.allclose(proba, probabilities, atol=5e-3)
    assert sorted(path.name for path in folders[1].iterdir()) == ["found.json", "out", "train.py"]


def test_another_batch_in_all_is_refused(tmp_path: Path) -> None:
    assert _run(tmp_path, [{"STOP": "1"}], "8") == [3]
    (tmp_path / "train.py").write_text(LAUNCHED)
    done = subprocess.run(
        [sys.executable, "train.py", "4", "resume"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 1
    assert "batch_size=4, before 8" in done.stderr


@pytest.mark.parametrize("strategy", ["fsdp_cpu_offload", "deepspeed_stage_2", "model_parallel"])
def test_strategies_that_divide_the_model_are_refused(strategy: str) -> None:
    with pytest.raises(TrainingError, match="divides the model"):
        fine_tune(small_classifier(), images(8), strategy=strategy)


@pytest.mark.parametrize("name", ["strategy", "num_nodes", "devices"])
def test_arguments_of_fine_tune_are_no_trainer_kwargs(name: str) -> None:
    with pytest.raises(TrainingError, match=f"pass {name} to fine_tune"):
        fine_tune(small_classifier(), images(8), trainer_kwargs={name: 1})
