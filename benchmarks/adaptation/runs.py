"""One training of the benchmark, and the store of results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import medimg
from benchmarks.adaptation.methods import Method
from benchmarks.adaptation.shifts import Scanned, Shift
from medimg.adapt import deep_embedded_risk, mutual_information, proxy_a_distance
from medimg.features.dataset_features import item_features

__all__ = ["PROTOCOL", "STORE", "Key", "Run", "load_runs", "run_once", "store_run"]

#: Results of other protocols (images, network, training) are not compared with these.
PROTOCOL: Final = 2
EPOCHS: Final = 10
STORE: Final = Path(__file__).parent.parent / "results" / "adaptation.jsonl"


@dataclass(frozen=True, slots=True)
class Key:
    """What identifies a run."""

    shift: str
    method: str
    settings: str
    seed: int
    tuning: bool

    @classmethod
    def make(cls, shift: str, name: str, method: Method, seed: int, *, tuning: bool) -> Key:
        """Describe a run by the settings that its method has now."""
        adaptation = method.make([None, None])
        found = {} if adaptation is None else adaptation.settings()
        found.pop("target_items", None)
        found |= {"backbone": method.backbone, **dict(method.options)}
        return cls(shift, name, json.dumps(found, sort_keys=True), seed, tuning)


@dataclass(frozen=True, slots=True)
class Run:
    """
    Scores of a trained model.

    Attributes
    ----------
    target, source : float
        AUROC of target and source images.
    val : float
        AUROC of validation images of the source.
    information, distance, risk : float
        Without labels of the target: mutual information of predictions, proxy A-distance of the embeddings,
        deep embedded risk.
    """

    key: Key
    target: float
    source: float
    val: float
    information: float
    distance: float
    risk: float
    seconds: float


def load_runs(path: Path = STORE) -> list[Run]:
    """Return the stored runs of this protocol."""
    return list(_read_lines(path)) if path.exists() else []


def _read_lines(path: Path) -> Iterator[Run]:
    for line in path.read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        if row.pop("protocol") == PROTOCOL:
            row["settings"] = json.dumps(row["settings"], sort_keys=True)
            key = Key(**{name: row.pop(name) for name in Key.__dataclass_fields__})
            yield Run(key, **row)


def store_run(run: Run, path: Path = STORE) -> None:
    """Append a run to the store."""
    key = run.key
    row = {
        "protocol": PROTOCOL,
        "shift": key.shift,
        "method": key.method,
        "settings": json.loads(key.settings),
        "seed": key.seed,
        "tuning": key.tuning,
        **{
            name: round(getattr(run, name), 5)
            for name in ("target", "source", "val", "information", "distance", "risk", "seconds")
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")


def run_once(root: Path, shift: Shift, method: Method, key: Key) -> Run:
    """Train a model and score it; the same seed gives all methods the same head and order of the data."""
    started = time.process_time()
    torch.manual_seed(key.seed)
    model = medimg.TransferClassifier(
        method.backbone,
        classes=shift.train.classes,
        weights=next((root / "weights" / method.backbone).glob("*.pth")),
        preprocess=shift.train.preprocess,
    )
    if method.backbone == "mobilenet_v2":
        restore_batchnorm(model.backbone, shift.train)
    medimg.fine_tune(
        model,
        shift.train,
        epochs=EPOCHS,
        adapt=method.make(shift.target),
        seed=key.seed,
        progress=False,
        devices=1,
        trainer_kwargs={"accelerator": "cpu"},
        **dict(method.options),
    )
    return score(model, shift, key, started)


def score(model: medimg.TransferClassifier, shift: Shift, key: Key, started: float) -> Run:
    """Return the scores of a trained model."""
    probabilities = {name: _predict(model, getattr(shift, name)) for name in ("val", "target", "scored")}
    features = {
        name: item_features(model, getattr(shift, name), progress=False).embeddings.numpy()
        for name in ("train", "val", "target")
    }
    chosen = probabilities["val"][np.arange(len(shift.val)), shift.val.labels]
    val = float(roc_auc_score(shift.val.labels, probabilities["val"][:, 1]))
    home = shift.home
    return Run(
        key,
        target=float(roc_auc_score(shift.scored.labels, probabilities["scored"][:, 1])),
        source=val if home is None else float(roc_auc_score(home.labels, _predict(model, home)[:, 1])),
        val=val,
        information=mutual_information(probabilities["target"]),
        distance=proxy_a_distance(
            features["val"],
            features["target"],
            source_patients=shift.val.patients,
            target_patients=shift.target.patients,
        ),
        risk=deep_embedded_risk(
            -np.log(chosen.clip(1e-6)), features["val"], features["train"], features["target"]
        ),
        seconds=time.process_time() - started,
    )


def _predict(model: medimg.TransferClassifier, data: Scanned) -> np.ndarray[Any, Any]:
    return np.asarray(model.predict_proba(data), np.float64)


@torch.no_grad()
def restore_batchnorm(network: nn.Module, data: Scanned) -> None:
    """
    Give BatchNorm layers that are identities the statistics of some images, without changing the network.

    The weights at hand were fused with the convolutions before, which leaves AdaBN nothing to replace.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    found: dict[nn.BatchNorm2d, list[torch.Tensor]] = {}

    def measure(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found[layer] = [f(inputs[0].transpose(0, 1).flatten(1)) for f in (_mean, _variance)]  # type: ignore[index]  # registered on these layers

    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    network.eval()
    network(data.images)
    for hook in hooks:
        hook.remove()
    for layer, (mean, variance) in found.items():
        assert layer.running_var is not None  # chosen by it
        assert layer.running_mean is not None
        scale = layer.weight / (layer.running_var + layer.eps).sqrt()
        shift = layer.bias - layer.running_mean * scale
        layer.weight.copy_(scale * (variance + layer.eps).sqrt())
        layer.bias.copy_(shift + mean * scale)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
        layer.num_batches_tracked.fill_(1)  # type: ignore[union-attr]  # has statistics


def _mean(rows: torch.Tensor) -> torch.Tensor:
    return rows.mean(dim=1)


def _variance(rows: torch.Tensor) -> torch.Tensor:
    return rows.var(dim=1)
